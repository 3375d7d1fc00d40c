//! Prompts run through one model once, so that editing them is cheap.
//!
//! Prompts of any lengths are rows of one batch, one cache slot a prompt. An edit changes nothing before the
//! first edited token, so only the rows from there on ("kept" rows) are run again, from the edited site on,
//! over the keys and values of what precedes them: `change [kept rows, width] -> logits [prompts, vocabulary]`.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, bail};

use crate::models::kv_cache::{CacheRow, KvCache};
use crate::models::location::{Location, Site};
use crate::models::tap::{Recorder, ResidualTap};
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;

/// A batch of prompts and what one model did with them.
pub struct PromptRun<'m> {
    model: &'m Transformer,
    /// Of the kept rows.
    ids: Vec<u32>,
    at: Vec<CacheRow>,
    /// The kept row of each prompt's last token.
    last: Vec<u32>,
    cache: KvCache,
    /// Of the kept rows: the residual stream at every site, and the other places asked for.
    values: BTreeMap<Location, Tensor>,
    logits: Tensor,
}

impl<'m> PromptRun<'m> {
    /// Runs `prompts`, keeping the rows of each from `keep_from` on.
    pub fn new(
        model: &'m Transformer,
        prompts: &[&[u32]],
        keep_from: &[usize],
        places: impl IntoIterator<Item = Location>,
    ) -> Result<Self> {
        let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        if prompts.iter().any(|prompt| prompt.is_empty()) || longest > model.config.context_length {
            let limit = model.config.context_length;
            bail!("prompts must have between 1 and {limit} tokens; the longest has {longest}")
        }
        let (mut ids, mut at) = (Vec::new(), Vec::new());
        let (mut kept, mut last) = (Vec::new(), Vec::new());
        for (slot, (prompt, &from)) in prompts.iter().zip(keep_from).enumerate() {
            let first_kept = from.min(prompt.len() - 1);
            for (position, &id) in prompt.iter().enumerate() {
                if position >= first_kept {
                    kept.push(ids.len() as u32);
                }
                ids.push(id);
                at.push(CacheRow { slot, position });
            }
            last.push(kept.len() as u32 - 1);
        }
        let n_layers = model.config.n_layers;
        let mut recorder = Recorder::of(Site::all(n_layers).map(Location::Site).chain(places));
        let mut cache = KvCache::new(&model.config, prompts.len(), longest, model.device())?;
        let mut rows = TokenRows::cached(&ids, at.clone(), &mut cache)?;
        let stream = model.embed(&rows)?;
        model.run(
            Site::before_attention(0, n_layers),
            stream,
            &mut rows,
            &mut recorder,
        )?;
        let kept_rows = Tensor::new(kept.as_slice(), model.device())?;
        let values = recorder
            .into_values()
            .into_iter()
            .map(|(place, value)| Ok((place, value.index_select(&kept_rows, 0)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        let mut run = PromptRun {
            model,
            ids: kept.iter().map(|&row| ids[row as usize]).collect(),
            at: kept.iter().map(|&row| at[row as usize]).collect(),
            last,
            cache,
            values,
            logits: kept_rows,
        };
        let stream = match Site::new(2 * n_layers, n_layers) {
            Some(site) => run.value(Location::Site(site))?.clone(),
            None => bail!("the model has no last site"),
        };
        run.logits = run.unembed_last(&stream)?;
        Ok(run)
    }

    /// The value at a place, `[kept rows, width]`.
    pub fn value(&self, place: Location) -> Result<&Tensor> {
        match self.values.get(&place) {
            Some(value) => Ok(value),
            None => bail!("{place} was not recorded"),
        }
    }

    /// The logits after each prompt, unedited: `[prompts, vocabulary]`.
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// How many rows are kept.
    pub fn kept_rows(&self) -> usize {
        self.ids.len()
    }

    /// Which prompt each kept row belongs to, and its position.
    pub fn kept(&self) -> &[CacheRow] {
        &self.at
    }

    /// The kept row of each prompt's last token.
    pub fn last_rows(&self) -> &[u32] {
        &self.last
    }

    /// The logits after each prompt when `change [kept rows, width]` is added at `target`.
    pub fn with_change(&mut self, target: Location, change: Vec<f32>) -> Result<Tensor> {
        let start = target.pass_start(&self.model.config);
        let stream = self.value(Location::Site(start))?.clone();
        let change = Tensor::from_vec(
            change,
            (self.kept_rows(), target.width(&self.model.config)),
            self.model.device(),
        )?;
        let mut rows = TokenRows::cached(&self.ids, self.at.clone(), &mut self.cache)?;
        let mut tap = AddAt {
            target,
            change: &change,
        };
        let stream = self.model.run(start, stream, &mut rows, &mut tap)?;
        self.unembed_last(&stream)
    }

    fn unembed_last(&self, stream: &Tensor) -> Result<Tensor> {
        let last = Tensor::new(self.last.as_slice(), self.model.device())?;
        let ids = Tensor::new(self.ids.as_slice(), self.model.device())?;
        let stream = stream.index_select(&last, 0)?;
        self.model.unembed(&stream, &ids.index_select(&last, 0)?)
    }
}

/// Adds a change to the value at one place.
pub struct AddAt<'t> {
    pub target: Location,
    pub change: &'t Tensor,
}

impl ResidualTap for AddAt<'_> {
    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        match place == self.target {
            true => &value + self.change.to_device(value.device())?,
            false => Ok(value),
        }
    }
}
