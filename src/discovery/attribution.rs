//! First-order effects: the gradient of the answers' logit differences with respect to a change at one place.
//!
//! Gradients need whole sequences, so the prompts are padded on the right to equal length, bucket by bucket;
//! attention is causal, so what follows a prompt's last token does not reach its answer.

use candle_core::{Result, Tensor, Var};

use super::patching::{LocationPatch, Patching};
use super::prompt_run::AddAt;
use super::question::Question;
use super::route::Route;
use crate::models::location::Location;
use crate::models::tap::Recorder;
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::numerics::rows;

/// Sequences a bucket; lengths within one differ little.
const BUCKET: usize = 16;
/// A first-order estimate does not need more pairs than this; the sparse model is wider, its gradients dearer.
const MOST_DENSE_PAIRS: usize = 32;
const MOST_SPARSE_PAIRS: usize = 16;

/// Some of a [`Patching`]'s pairs, padded, with one model's residual stream at every site.
pub struct Attribution<'m> {
    model: &'m Transformer,
    native: bool,
    buckets: Vec<Bucket>,
}

struct Bucket {
    pairs: Vec<usize>,
    questions: Vec<Question>,
    ids: Vec<u32>,
    length: usize,
    /// The row of each pair's last token.
    last: Vec<u32>,
    /// For rows that a [`Patching`] keeps: the row here and the row there.
    rows: Vec<(usize, usize)>,
    /// The residual stream at every site.
    sites: Vec<Tensor>,
}

impl<'m> Attribution<'m> {
    /// Prepares the pairs that the model edited by `route` gets right, or the first of them.
    pub fn new(patching: &Patching<'m>, route: Route) -> Result<Self> {
        let (model, most_pairs) = match route {
            Route::Native => (&*patching.models.sparse, MOST_SPARSE_PAIRS),
            Route::Bridge(_) => (&*patching.models.dense, MOST_DENSE_PAIRS),
        };
        let right = patching.right(route);
        let mut chosen: Vec<usize> = (0..right.len()).filter(|&pair| right[pair]).collect();
        chosen.truncate(most_pairs);
        chosen.sort_by_key(|&pair| patching.pairs[pair].presented.len());
        let buckets = chosen
            .chunks(BUCKET)
            .map(|pairs| Bucket::new(model, patching, pairs))
            .collect::<Result<_>>()?;
        Ok(Attribution {
            model,
            native: route == Route::Native,
            buckets,
        })
    }

    /// Whether it was made for the model that `route` edits.
    pub fn suits(&self, route: Route) -> bool {
        self.native == (route == Route::Native)
    }

    /// The gradient at the patch's target, `[rows, width]`, of the sum of those pairs' logit differences that are still
    /// below `enough`, where `change [rows, width]` has already been added. Rows of other pairs get zeros.
    pub fn gradient(&self, patch: &LocationPatch, change: &[f32], enough: f32) -> Result<Vec<f32>> {
        let width = patch.columns.width;
        let mut gradient = vec![0f32; change.len()];
        for bucket in &self.buckets {
            let mut padded = vec![0f32; bucket.ids.len() * width];
            for &(here, there) in &bucket.rows {
                padded[here * width..][..width].copy_from_slice(&change[there * width..][..width]);
            }
            let found = bucket.gradient(self.model, patch.columns.target, padded, width, enough)?;
            for &(here, there) in &bucket.rows {
                gradient[there * width..][..width].copy_from_slice(&found[here * width..][..width]);
            }
        }
        Ok(gradient)
    }
}

impl Bucket {
    fn new(model: &Transformer, patching: &Patching, pairs: &[usize]) -> Result<Self> {
        let prompt = |pair: usize| patching.pairs[pair].presented.as_slice();
        let length = pairs
            .iter()
            .map(|&pair| prompt(pair).len())
            .max()
            .unwrap_or(1);
        let mut ids = Vec::with_capacity(pairs.len() * length);
        for &pair in pairs {
            ids.extend_from_slice(prompt(pair));
            // Whatever stands here is not read; a prompt's own first token is sure to be a token.
            ids.resize(ids.len().next_multiple_of(length), prompt(pair)[0]);
        }
        let last =
            |(index, &pair): (usize, &usize)| (index * length + prompt(pair).len() - 1) as u32;
        let kept = patching
            .row_positions()
            .enumerate()
            .filter_map(|(row, (pair, position))| {
                let index = pairs.iter().position(|&chosen| chosen == pair)?;
                Some((index * length + position, row))
            });
        let mut recorder = Recorder::of_sites(model.config.n_layers);
        let mut rows = TokenRows::sequences(&ids, length, model.device())?;
        let stream = model.embed(&rows)?;
        let first = crate::models::location::Site::before_attention(0, model.config.n_layers);
        model.run(first, stream, &mut rows, &mut recorder)?;
        Ok(Bucket {
            questions: pairs
                .iter()
                .map(|&pair| patching.pairs[pair].question)
                .collect(),
            last: pairs.iter().enumerate().map(last).collect(),
            rows: kept.collect(),
            sites: recorder.into_sites().iter().map(Tensor::detach).collect(),
            pairs: pairs.to_vec(),
            ids,
            length,
        })
    }

    fn gradient(
        &self,
        model: &Transformer,
        target: Location,
        change: Vec<f32>,
        width: usize,
        enough: f32,
    ) -> Result<Vec<f32>> {
        let change = Tensor::from_vec(change, (self.ids.len(), width), model.device())?;
        let change = Var::from_tensor(&change)?;
        let start = target.pass_start(&model.config);
        let mut rows = TokenRows::sequences(&self.ids, self.length, model.device())?;
        let mut tap = AddAt {
            target,
            change: change.as_tensor(),
        };
        let stream = model.run(
            start,
            self.sites[start.index()].clone(),
            &mut rows,
            &mut tap,
        )?;
        let last = Tensor::new(self.last.as_slice(), model.device())?;
        let logits = model.unembed(
            &stream.index_select(&last, 0)?,
            &rows.ids.index_select(&last, 0)?,
        )?;
        let vocabulary = logits.dim(1)?;
        let mut direction = vec![0f32; self.pairs.len() * vocabulary];
        rows::with_values(&logits, |values| {
            let each = values
                .chunks_exact(vocabulary)
                .zip(direction.chunks_exact_mut(vocabulary));
            for (question, (logits, direction)) in self.questions.iter().zip(each) {
                if question.logit_diff(logits) < enough {
                    question.add_gradient(logits, 1.0, direction);
                }
            }
        })?;
        let direction = Tensor::from_vec(direction, logits.shape(), model.device())?;
        let gradients = (logits * direction)?.sum_all()?.backward()?;
        match gradients.get(change.as_tensor()) {
            Some(gradient) => rows::to_vec(gradient),
            None => Ok(vec![0.0; self.ids.len() * width]),
        }
    }
}
