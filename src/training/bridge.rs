//! Training a sparse model and its bridge to a frozen dense model, together.
//!
//! The loss, each term with its weight from the recipe (`y` logits, `h` streams, `d` dense, `s` sparse, `i` a site of the
//! sparse model and the dense one that it is joined to):
//!
//! ```text
//! CE(y_s) + KL(y_d || y_s)
//! + mean_i NMSE(f_i(h_d,i), h_s,i) + NMSE(g_i(h_s,i), h_d,i)
//! + mean_i KL(y_d || sparse tail from f_i(h_d,i))          dense to sparse
//! + mean_i KL(y_d || dense tail from g_i(h_s,i))           sparse to dense
//! + the twin term
//! ```
//!
//! A mean over sites can be replaced by one drawn site: the same in expectation, and the hybrids' partial passes
//! are what a step costs. Source: Gao et al. 2025, arXiv 2511.13653; the twin term is ours.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Result as CandleResult, Tensor};
use rand::Rng;

use super::TrainingError;
use super::data::{Batch, DRAW_CHANNELS, DRAW_PAIRS, DRAW_SITES, TrainingData, step_rng};
use super::initialise;
use super::model::{check_vocabulary, trainable};
use super::parameters::{ParameterGroup, Parameters, moved};
use super::passes::Passes;
use super::passes::gradients::WeightGradients;
use super::recipe::{BridgeRecipe, SiteChoice, Terms};
use super::run::{End, Ended, Loss, Mode, Objective, Plan, has_checkpoint, train};
use super::task_pairs::{check_tasks, push_pairs};
use super::twin::{TwinBatch, twin_loss};
use super::weighted_sum::WeightedSum;
use crate::artifacts::ArtifactId;
use crate::bridge::fidelity::{self, Fidelity};
use crate::bridge::least_squares::LeastSquares;
use crate::bridge::record::BridgeRecord;
use crate::bridge::site_map::{SiteMap, SiteMapError};
use crate::bridge::{self, Bridge, pair};
use crate::models::companions;
use crate::models::layers::Purpose;
use crate::models::layout::ModelFiles;
use crate::models::location::Site;
use crate::models::token_rows::TokenRows;
use crate::models::tokenizer::Tokenizer;
use crate::numerics::loss::normalised_mean_squared_error;
use crate::numerics::student_loss::{Lessons, student_loss};

/// Batches that a new bridge is fitted on before its training.
const FIT_STEPS: usize = 8;
/// The share of the mean variance that the fit adds to every input's own, against directions with almost none.
const RIDGE: f64 = 1e-3;

/// Trains the sparse model and bridge of a recipe and writes the pair to `pair/` below its directory.
pub fn train_bridge(
    recipe: &BridgeRecipe,
    device: &Device,
    mode: Mode,
) -> Result<Ended, TrainingError> {
    let begun = Instant::now();
    let dense_files = ModelFiles::read(&recipe.dense)?;
    let json = dense_files.tokenizer.clone().ok_or_else(|| {
        TrainingError::Recipe(format!("{} has no tokenizer", recipe.dense.display()))
    })?;
    let tokenizer = Tokenizer::from_bytes(&json)?;
    check_vocabulary(&tokenizer, recipe.sparse.vocab_size)?;
    let site_map = site_map(recipe, dense_files.config.n_layers)?;
    if recipe
        .terms
        .twin
        .as_ref()
        .is_some_and(|twin| twin.task_pairs > 0)
    {
        check_tasks(&tokenizer)?;
    }
    let data = TrainingData::load(&recipe.sources, &tokenizer, recipe.batches.length)?;
    tracing::info!(sources = ?data.sizes(), "training tokens");
    let parameters = initial_parameters(recipe, &dense_files, device)?;
    let mut objective =
        BridgeObjective::new(recipe, &dense_files, &parameters, data, tokenizer, device)?;
    let goes_on = matches!(mode, Mode::Resume | Mode::Export) && has_checkpoint(&recipe.output);
    if !(goes_on || recipe.start_from.as_deref().is_some_and(pair::is_pair)) {
        objective.fit_bridge(&parameters, FIT_STEPS)?;
    }
    let plan = Plan {
        batches: &recipe.batches,
        optimizer: &recipe.optimizer,
        sparsity: Some(&recipe.sparsity),
        bridge_learning_rate: recipe.bridge_learning_rate,
        output: &recipe.output,
        recipe_sha256: Plan::hash(recipe)?,
        begun,
    };
    let end = train(&plan, &parameters, &mut objective, mode)?;
    if end != End::Trained {
        let data = objective.data;
        return Ok(Ended { end, data });
    }
    let fidelity = objective.fidelity_of_all()?;
    let id = recipe.id.as_ref().map_or("bridge", ArtifactId::as_str);
    let record = BridgeRecord {
        id: identifier(id)?,
        dense: identifier(id)?,
        sparse: identifier(&format!("{id}-sparse"))?,
        encoder_fraction: recipe.encoder_fraction,
        site_map: site_map.names(),
        sites: fidelity.sites,
        training: serde_json::Map::new(),
    };
    let sparse_files = ModelFiles {
        config: recipe.sparse.clone(),
        tensors: parameters.tensors(ParameterGroup::Model),
        quantised: Default::default(),
        tokenizer: Some(json),
    };
    let folder = recipe.output.directory.join("pair");
    pair::write(
        &folder,
        (&dense_files, &sparse_files),
        &parameters.tensors(ParameterGroup::Bridge),
        &record,
    )?;
    // Both models have the dense one's tokenizer, and with it its way of writing conversations.
    for half in ["dense", "sparse"] {
        companions::copy(&recipe.dense, &folder.join(half))?;
    }
    let data = objective.data;
    Ok(Ended { end, data })
}

fn identifier(name: &str) -> Result<ArtifactId, TrainingError> {
    name.parse()
        .map_err(|error| TrainingError::Recipe(format!("{error}")))
}

/// How the recipe's models are joined: as it says, or as in the pair that it starts from, or evenly spaced.
fn site_map(recipe: &BridgeRecipe, dense_layers: usize) -> Result<SiteMap, TrainingError> {
    let sparse_layers = recipe.sparse.n_layers;
    let fault = |error: SiteMapError| TrainingError::Recipe(format!("{} {error}", error.field()));
    let start = recipe.start_from.as_deref();
    let start = match start.filter(|directory| pair::is_pair(directory)) {
        Some(directory) => {
            let wrong = |problem| TrainingError::Recipe(format!("start_from: {problem}"));
            let config = |half: &str| ModelFiles::read_config(&directory.join(half));
            let record = pair::read_record(directory)?;
            let map = record.joined(&config("dense")?, &config("sparse")?);
            let map = map.map_err(wrong)?;
            let (sparse, dense) = (map.sparse_layers(), map.dense_layers());
            if (sparse, dense) != (sparse_layers, dense_layers) {
                return Err(wrong(format!(
                    "its models have {sparse} and {dense} layers, those of the recipe {sparse_layers} and {dense_layers}"
                )));
            }
            Some(map)
        }
        None => None,
    };
    let asked = recipe.site_map.as_deref();
    SiteMap::chosen(asked, start, dense_layers, sparse_layers).map_err(fault)
}

/// The sparse model's and the bridge's weights: random, or those of the pair or model in `start_from`.
pub fn initial_parameters(
    recipe: &BridgeRecipe,
    dense: &ModelFiles,
    device: &Device,
) -> Result<Parameters, TrainingError> {
    let seed = recipe.batches.seed;
    let (sparse, bridge) = match &recipe.start_from {
        Some(directory) => {
            let (sparse, bridge) = start_from(directory, recipe)?;
            let bridge = bridge.map(|tensors| moved(&tensors, device));
            (moved(&sparse, device)?, bridge.transpose()?)
        }
        None => (initialise::model(&recipe.sparse, seed, device)?, None),
    };
    let mut parameters = Parameters::of_model(sparse, Some(recipe.sparsity.protected))?;
    let (n_sites, widths) = (
        recipe.sparse.n_sites(),
        (dense.config.d_model, recipe.sparse.d_model),
    );
    // Streams below 2^32 are the models' tensors; the bridge's follow after.
    let mut stream = 1u64 << 32;
    let draw = |name: &str, shape: &[usize], deviation: f64| {
        stream += 1;
        initialise::tensor(name, shape, deviation, seed, stream, device)
    };
    let bridge = match bridge {
        Some(tensors) => tensors,
        None => bridge::initial_tensors(n_sites, widths.0, widths.1, draw, device)?,
    };
    parameters.add_bridge(bridge)?;
    Ok(parameters)
}

type Tensors = BTreeMap<String, Tensor>;

/// The sparse model of a pair or a model's directory, and the bridge where there is one.
fn start_from(
    directory: &Path,
    recipe: &BridgeRecipe,
) -> Result<(Tensors, Option<Tensors>), TrainingError> {
    let (files, bridge) = match pair::is_pair(directory) {
        true => {
            let record = pair::read_record(directory)?;
            let dense = ModelFiles::read_config(&directory.join("dense"))?;
            let sparse = ModelFiles::read(&directory.join("sparse"))?;
            if sparse.config != recipe.sparse {
                return Err(TrainingError::Recipe(format!(
                    "start_from: the pair in {} has another sparse model than the recipe; name its folder `sparse` to \
                     start from that model alone",
                    directory.display()
                )));
            }
            let bridge = pair::read_tensors(directory, &record, &dense, &sparse.config)?;
            (sparse, Some(bridge))
        }
        false => (ModelFiles::read(directory)?, None),
    };
    let seed = recipe.batches.seed;
    Ok((trainable(files, directory, &recipe.sparse, seed)?, bridge))
}

/// The bridge loss on batches of a training's data.
pub struct BridgeObjective<'a> {
    recipe: &'a BridgeRecipe,
    dense: Passes,
    sparse: Passes,
    bridge: Bridge,
    data: TrainingData,
    tokenizer: Tokenizer,
    device: Device,
}

impl<'a> BridgeObjective<'a> {
    pub fn new(
        recipe: &'a BridgeRecipe,
        dense: &ModelFiles,
        parameters: &Parameters,
        data: TrainingData,
        tokenizer: Tokenizer,
        device: &Device,
    ) -> Result<Self, TrainingError> {
        let (config, sparse) = (dense.config.clone(), recipe.sparse.clone());
        let site_map = site_map(recipe, config.n_layers)?;
        Ok(BridgeObjective {
            bridge: Bridge::new(
                &parameters.tensors(ParameterGroup::Bridge),
                site_map,
                config.d_model,
                sparse.d_model,
                recipe.encoder_fraction,
                Purpose::Training,
            )?,
            dense: Passes::new(config, &moved(&dense.tensors, device)?, Purpose::Frozen)?,
            sparse: Passes::new(
                sparse,
                &parameters.tensors(ParameterGroup::Model),
                Purpose::Training,
            )?,
            recipe,
            data,
            tokenizer,
            device: device.clone(),
        })
    }

    /// Starts every encoder and decoder as the least-squares map between the two models' streams on `steps`
    /// batches; gradient descent would spend hundreds of noisy steps on the way there.
    fn fit_bridge(&self, parameters: &Parameters, steps: usize) -> Result<(), TrainingError> {
        let n_sites = self.bridge.site_map.n_sites();
        let (d_dense, d_sparse) = (self.bridge.d_dense, self.bridge.d_sparse);
        let mut decoders: Vec<LeastSquares> = (0..n_sites)
            .map(|_| LeastSquares::new(d_sparse, d_dense))
            .collect();
        let mut encoders: Vec<LeastSquares> = (0..n_sites)
            .map(|_| LeastSquares::new(d_dense, d_sparse))
            .collect();
        for step in 0..steps {
            let batch = self.batch(step)?;
            let (_, dense) = self.run(&self.dense, &batch)?;
            let (_, sparse) = self.run(&self.sparse, &batch)?;
            for (site, joined) in self.bridge.site_map.sites() {
                let site = site.index();
                let (dense, sparse) = (dense[joined.index()].detach(), sparse[site].detach());
                decoders[site].add(&sparse, &dense)?;
                encoders[site].add(&dense, &sparse)?;
            }
        }
        let mut fitted = Tensors::new();
        for (map, fits) in [("decoder", &decoders), ("encoder", &encoders)] {
            for (site, fit) in fits.iter().enumerate() {
                let (weight, bias) = fit.solve(RIDGE)?;
                fitted.insert(bridge::tensor_name(site, map, "weight"), weight);
                fitted.insert(bridge::tensor_name(site, map, "bias"), bias);
            }
        }
        for parameter in parameters.iter() {
            if let Some(tensor) = fitted.get(&parameter.name) {
                parameter.var.set(&tensor.to_device(&self.device)?)?;
            }
        }
        Ok(())
    }

    /// Text sequences, then the task pairs of the twin term.
    fn batch(&self, step: usize) -> Result<Batch, TrainingError> {
        let mut batch = self.data.batch(&self.recipe.batches, step)?;
        if let Some(twin) = &self.recipe.terms.twin {
            let mut rng = step_rng(self.recipe.batches.seed, step, DRAW_PAIRS);
            push_pairs(&mut batch, twin, &self.data, &self.tokenizer, &mut rng)?;
        }
        Ok(batch)
    }

    /// A model's logits and streams.
    fn run(&self, model: &Passes, batch: &Batch) -> CandleResult<(Tensor, Vec<Tensor>)> {
        let mut rows = TokenRows::sequences(&batch.inputs, batch.length, &self.device)?;
        model.forward(&mut rows)
    }

    /// The loss on one batch; `step` decides what is drawn.
    pub fn loss_on(&self, batch: &Batch, step: usize) -> Result<Loss, TrainingError> {
        let terms = &self.recipe.terms;
        let (dense_logits, dense_sites) = self.run(&self.dense, batch)?;
        let dense_logits = dense_logits.detach();
        let dense_sites: Vec<Tensor> = dense_sites.iter().map(Tensor::detach).collect();
        let (sparse_logits, sparse_sites) = self.run(&self.sparse, batch)?;
        let mut sum = WeightedSum::default();
        let (entropy, distillation) = (terms.cross_entropy, terms.distillation);
        let lessons = Lessons {
            targets: (entropy != 0.0).then_some((batch.targets.as_slice(), entropy)),
            teacher: (distillation != 0.0).then_some((&dense_logits, distillation)),
        };
        if lessons.targets.is_some() || lessons.teacher.is_some() {
            let loss = student_loss(&sparse_logits, &lessons)?;
            sum.add_total(&loss.total)?;
            sum.tell("cross_entropy", loss.cross_entropy);
            sum.tell("distillation", loss.divergence);
        }
        let streams = Streams {
            site_map: &self.bridge.site_map,
            dense_logits: &dense_logits,
            dense_sites: &dense_sites,
            sparse_sites: &sparse_sites,
        };
        self.add_reconstruction(&mut sum, terms, &streams)?;
        self.add_hybrids(&mut sum, terms, &streams, batch, step)?;
        self.add_twin(&mut sum, &streams, &sparse_logits, batch, step)?;
        sum.into_loss(batch.inputs.len())
    }

    fn add_reconstruction(
        &self,
        sum: &mut WeightedSum,
        terms: &Terms,
        streams: &Streams,
    ) -> CandleResult<()> {
        let n_layers = self.sparse.config().n_layers;
        let over_sites = |nmse: &dyn Fn(Site) -> CandleResult<Tensor>| {
            let each: Vec<Tensor> = Site::all(n_layers).map(nmse).collect::<CandleResult<_>>()?;
            Tensor::stack(&each, 0)?.mean_all()
        };
        sum.add("encoder", terms.encoder, || {
            over_sites(&|site| {
                let (h_d, h_s) = streams.at(site);
                let target = if terms.encoder_moves_sparse {
                    h_s.clone()
                } else {
                    h_s.detach()
                };
                normalised_mean_squared_error(&self.bridge.encode(site, h_d)?, &target)
            })
        })?;
        sum.add("decoder", terms.decoder, || {
            over_sites(&|site| {
                let (h_d, h_s) = streams.at(site);
                normalised_mean_squared_error(&self.bridge.decode(site, h_s)?, h_d)
            })
        })
    }

    fn add_hybrids(
        &self,
        sum: &mut WeightedSum,
        terms: &Terms,
        streams: &Streams,
        batch: &Batch,
        step: usize,
    ) -> CandleResult<()> {
        let mut rng = step_rng(self.recipe.batches.seed, step, DRAW_SITES);
        let total = batch.sequences();
        let count = terms
            .hybrid_sequences
            .map_or(total, |count| count.clamp(1, total));
        let first = rng.random_range(0..=total - count);
        let (first_row, n_rows) = (first * batch.length, count * batch.length);
        let ids = batch.slice(first, count);
        let window = |t: &Tensor| t.narrow(0, first_row, n_rows);
        let teacher = window(streams.dense_logits)?;
        let sites = |rng: &mut rand_chacha::ChaCha8Rng| -> Vec<Site> {
            let all: Vec<Site> = Site::all(self.sparse.config().n_layers).collect();
            match terms.sites {
                SiteChoice::All => all,
                SiteChoice::Sampled => vec![all[rng.random_range(0..all.len())]],
            }
        };
        let (to_sparse, to_dense) = (sites(&mut rng), sites(&mut rng));
        let hybrid = |model: &Passes, site: Site, stream: Tensor| {
            let mut rows = TokenRows::sequences(ids, batch.length, &self.device)?;
            let lessons = Lessons {
                targets: None,
                teacher: Some((&teacher, 1.0)),
            };
            let loss = student_loss(&model.tail(site, stream, &mut rows)?, &lessons)?;
            Ok(loss.total)
        };
        let over = |sites: &[Site], each: &dyn Fn(Site) -> CandleResult<Tensor>| {
            let all: Vec<Tensor> = sites
                .iter()
                .map(|&site| each(site))
                .collect::<CandleResult<_>>()?;
            Tensor::stack(&all, 0)?.mean_all()
        };
        sum.add("dense_to_sparse", terms.dense_to_sparse, || {
            over(&to_sparse, &|site| {
                let stream = self.bridge.encode(site, &window(streams.at(site).0)?)?;
                hybrid(&self.sparse, site, stream)
            })
        })?;
        sum.add("sparse_to_dense", terms.sparse_to_dense, || {
            over(&to_dense, &|site| {
                let stream = self.bridge.decode(site, &window(streams.at(site).1)?)?;
                hybrid(&self.dense, self.bridge.site_map.dense_of(site), stream)
            })
        })
    }

    fn add_twin(
        &self,
        sum: &mut WeightedSum,
        streams: &Streams,
        sparse_logits: &Tensor,
        batch: &Batch,
        step: usize,
    ) -> CandleResult<()> {
        let Some(twin) = &self.recipe.terms.twin else {
            return Ok(());
        };
        // The task pairs are the batch's last sequences; the text pairs stand before them.
        let count = 2 * (twin.task_pairs + twin.text_pairs);
        let weights = [twin.weight, twin.native_weight, twin.counterfactual_weight];
        if count == 0 || weights == [0.0; 3] {
            return Ok(());
        }
        let first = (batch.sequences() - count) * batch.length;
        let n_rows = count * batch.length;
        let window = |t: &Tensor| t.narrow(0, first, n_rows);
        let dense_sites: Vec<Tensor> = streams
            .dense_sites
            .iter()
            .map(window)
            .collect::<CandleResult<_>>()?;
        let sparse_sites: Vec<Tensor> = streams
            .sparse_sites
            .iter()
            .map(window)
            .collect::<CandleResult<_>>()?;
        let twin_batch = TwinBatch {
            ids: &batch.inputs[first..],
            targets: &batch.targets[first..],
            length: batch.length,
            task_sequences: 2 * twin.task_pairs,
            dense_sites: &dense_sites,
            sparse_sites: &sparse_sites,
            dense_logits: &window(streams.dense_logits)?,
            sparse_logits: &window(sparse_logits)?,
        };
        let mut rng = step_rng(self.recipe.batches.seed, step, DRAW_CHANNELS);
        let sites = twin
            .sites(self.sparse.config().n_layers)
            .map_err(|fault| candle_core::Error::Msg(fault.to_string()))?;
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..twin.sites {
            let site = sites[rng.random_range(0..sites.len())];
            let loss = twin_loss(
                &self.dense,
                &self.sparse,
                &self.bridge,
                twin,
                &twin_batch,
                site,
                &mut rng,
            )?;
            for (all, part) in
                parts
                    .iter_mut()
                    .zip([loss.bridged, loss.native, loss.counterfactual])
            {
                all.extend(part);
            }
        }
        for ((name, weight), part) in ["twin", "twin_native", "twin_counterfactual"]
            .into_iter()
            .zip(weights)
            .zip(&parts)
        {
            if !part.is_empty() {
                sum.add(name, weight, || Tensor::stack(part, 0)?.mean_all())?;
            }
        }
        Ok(())
    }

    fn fidelity(&self, batch: &Batch) -> CandleResult<Fidelity> {
        fidelity::measure(
            &self.dense.transformer,
            &self.sparse.transformer,
            &self.bridge,
            batch.text(),
            &self.device,
            Site::all(self.recipe.sparse.n_layers),
        )
    }

    /// The pair on held-out sequences of all sources together.
    pub fn fidelity_of_all(&self) -> CandleResult<Fidelity> {
        let length = self.recipe.batches.length;
        let mut all = Batch::new(length);
        for (_, batch) in self
            .data
            .held_out(self.recipe.output.evaluation_sequences, length)
        {
            all.append(batch);
        }
        self.fidelity(&all)
    }
}

impl Objective for BridgeObjective<'_> {
    fn loss(&mut self, step: usize) -> Result<Loss, TrainingError> {
        self.sparse.begin_step()?;
        self.loss_on(&self.batch(step)?, step)
    }

    fn gradients(&self) -> Option<&WeightGradients> {
        self.sparse.gradients()
    }

    fn evaluate(&mut self) -> Result<Vec<(String, f32)>, TrainingError> {
        let mut results = Vec::new();
        let held_out = self.data.held_out(
            self.recipe.output.evaluation_sequences,
            self.recipe.batches.length,
        );
        for (name, batch) in held_out {
            let fidelity = self.fidelity(&batch)?;
            let count = fidelity.sites.len() as f64;
            let mean = |of: fn(&crate::bridge::record::SiteRecord) -> f64| {
                fidelity.sites.iter().map(of).sum::<f64>() / count
            };
            let figures = [
                ("dense_loss", fidelity.dense_loss),
                ("sparse_loss", fidelity.sparse_loss),
                ("distillation", fidelity.distillation),
                ("encoder_nmse", mean(|site| site.encoder_nmse)),
                ("decoder_nmse", mean(|site| site.decoder_nmse)),
                ("dense_to_sparse_kl", mean(|site| site.dense_to_sparse_kl)),
                ("sparse_to_dense_kl", mean(|site| site.sparse_to_dense_kl)),
            ];
            results
                .extend(figures.map(|(figure, value)| (format!("{name}_{figure}"), value as f32)));
        }
        Ok(results)
    }
}

/// What both models made of a batch.
struct Streams<'a> {
    site_map: &'a SiteMap,
    dense_logits: &'a Tensor,
    dense_sites: &'a [Tensor],
    sparse_sites: &'a [Tensor],
}

impl Streams<'_> {
    /// The sparse stream at a site, after the dense one where that is joined.
    fn at(&self, site: Site) -> (&Tensor, &Tensor) {
        (
            &self.dense_sites[self.site_map.dense_of(site).index()],
            &self.sparse_sites[site.index()],
        )
    }
}
