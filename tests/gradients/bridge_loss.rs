//! The bridge loss of a tiny pair: its gradient along a random direction in every tensor that is trained, what its
//! stopped gradients stop, and that drawing one site is right in the mean.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use candle_core::{Device, Result, Tensor, Var};
use causeway::bridge::Bridge;
use causeway::bridge::site_map::SiteMap;
use causeway::models::config::{
    Activation, Norm, Positions, ResidualActivation, TransformerConfig,
};
use causeway::models::layers::Purpose;
use causeway::models::layout::ModelFiles;
use causeway::models::location::Site;
use causeway::models::tensor_names::tensor_shapes;
use causeway::models::tokenizer::{Tokenizer, train_bpe};
use causeway::training::bridge::BridgeObjective;
use causeway::training::data::{Batch, DRAW_CHANNELS, TrainingData, step_rng};
use causeway::training::parameters::{Parameter, ParameterGroup, Parameters};
use causeway::training::passes::Passes;
use causeway::training::recipe::{
    Batches, BridgeRecipe, Clip, Optimizer, Output, SiteChoice, Source, Sparsity, Terms, Twin,
};
use causeway::training::twin::{TwinBatch, TwinLoss, twin_loss};

use super::noise;

const VOCABULARY: usize = 270;
const LENGTH: usize = 5;
const N_LAYERS: usize = 2;
/// Text sequences, then pairs for the twin term: one of text, one of a task.
const SEQUENCES: usize = 6;

/// AbsTopK is left out everywhere: a difference quotient would step over its jumps.
fn config(d_model: usize) -> TransformerConfig {
    TransformerConfig {
        n_layers: N_LAYERS,
        d_model,
        n_heads: 2,
        d_head: 4,
        d_mlp: 14,
        vocab_size: VOCABULARY,
        context_length: LENGTH,
        norm: Norm::Rms,
        bias: true,
        activation: Activation::Gelu,
        residual_activation: ResidualActivation::Identity,
        positions: Positions::Added,
        active_fraction: None,
        active_locations: BTreeSet::new(),
        tied_unembedding: false,
        bigram_table: false,
        attention_sinks: true,
        variant: Default::default(),
    }
}

fn no_terms() -> Terms {
    Terms {
        cross_entropy: 0.0,
        distillation: 0.0,
        encoder: 0.0,
        decoder: 0.0,
        encoder_moves_sparse: false,
        dense_to_sparse: 0.0,
        sparse_to_dense: 0.0,
        sites: SiteChoice::All,
        hybrid_sequences: None,
        twin: None,
    }
}

fn twin(weight: f32, native_weight: f32, counterfactual_weight: f32) -> Twin {
    Twin {
        weight,
        native_weight,
        counterfactual_weight,
        task_pairs: 1,
        quote_share: 0.0,
        text_pairs: 1,
        channels: 4,
        sites: 2,
        at: Vec::new(),
        decisive_weight: 3.0,
    }
}

fn recipe(terms: Terms) -> BridgeRecipe {
    let clip = Clip::Norm { at: 1.0 };
    BridgeRecipe {
        id: None,
        dense: PathBuf::new(),
        sparse: config(13),
        start_from: None,
        site_map: None,
        encoder_fraction: 1.0,
        sources: vec![Source::Generated {
            documents: 2,
            seed: 1,
            weight: 1.0,
        }],
        batches: Batches {
            steps: 1,
            sequences: SEQUENCES,
            length: LENGTH,
            seed: 1,
        },
        optimizer: Optimizer {
            learning_rate: 1e-3,
            warmup_steps: 1,
            final_fraction: 0.0,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip,
        },
        bridge_learning_rate: 1e-3,
        sparsity: Sparsity {
            kept_fraction: 0.5,
            anneal_from: 0.0,
            anneal_to: 0.5,
            anneal: Default::default(),
            protected: 0,
            rate_growth_limit: 4.0,
            normalise_rate: false,
        },
        terms,
        output: Output {
            directory: PathBuf::new(),
            checkpoint_every: 1,
            evaluate_every: 1,
            evaluation_sequences: 1,
            checkpoint_minutes: 10.0,
            tasks: Vec::new(),
            task_pairs: 8,
        },
    }
}

/// A pair with random weights, and a batch for it.
struct Pair {
    dense: ModelFiles,
    parameters: Parameters,
    tokenizer: Tokenizer,
    batch: Batch,
    site_map: Option<Vec<String>>,
}

fn random_tensors(
    shapes: BTreeMap<String, Vec<usize>>,
    seed: u64,
) -> Result<BTreeMap<String, Tensor>> {
    let tensor = |(index, (name, shape)): (usize, (String, Vec<usize>))| {
        let count = shape.iter().product();
        let values: Vec<f32> = noise(count, seed + index as u64)
            .iter()
            .map(|x| 0.6 * x)
            .collect();
        Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
    };
    shapes.into_iter().enumerate().map(tensor).collect()
}

impl Pair {
    fn new() -> Result<Self> {
        Self::with_dense_layers(N_LAYERS)
    }

    /// The same with a dense model of another depth, joined evenly.
    fn with_dense_layers(n_layers: usize) -> Result<Self> {
        let (dense, sparse) = (config(9), config(13));
        let dense = TransformerConfig { n_layers, ..dense };
        let mut parameters =
            Parameters::of_model(random_tensors(tensor_shapes(&sparse), 400)?, Some(0))?;
        let bridge = Bridge::tensor_shapes(sparse.n_sites(), dense.d_model, sparse.d_model);
        parameters.add_bridge(random_tensors(bridge, 500)?)?;
        let mut batch = Batch::new(LENGTH);
        for sequence in 0..SEQUENCES as u32 {
            let token = |place: u32| (sequence * 31 + place * (7 + sequence)) % VOCABULARY as u32;
            batch.push(&(0..=LENGTH as u32).map(token).collect::<Vec<u32>>());
        }
        let text = "def first(x):\n    return second(x, first)\n".repeat(3);
        Ok(Pair {
            dense: ModelFiles {
                tensors: random_tensors(tensor_shapes(&dense), 300)?,
                config: dense,
                quantised: Default::default(),
                tokenizer: None,
            },
            parameters,
            tokenizer: train_bpe([text].into_iter(), VOCABULARY).expect("a tokenizer"),
            batch,
            site_map: None,
        })
    }

    fn with_objective<T>(&self, terms: Terms, read: impl FnOnce(&BridgeObjective) -> T) -> T {
        let recipe = BridgeRecipe {
            site_map: self.site_map.clone(),
            ..recipe(terms)
        };
        let data = TrainingData::load(&recipe.sources, &self.tokenizer, LENGTH).expect("text");
        let tokenizer =
            Tokenizer::from_bytes(&self.tokenizer.to_json().expect("JSON")).expect("a tokenizer");
        let objective = BridgeObjective::new(
            &recipe,
            &self.dense,
            &self.parameters,
            data,
            tokenizer,
            &Device::Cpu,
        );
        read(&objective.expect("an objective"))
    }

    /// Holds the gradient of the loss in every parameter that `moved` picks against the loss's own change.
    fn check(&self, what: &str, terms: Terms, moved: impl Fn(&Parameter) -> bool) -> Result<()> {
        self.with_objective(terms, |objective| {
            let loss = || objective.loss_on(&self.batch, 3).expect("a loss").total;
            let value = || Ok(f64::from(loss().to_scalar::<f32>()?));
            let gradients = loss().backward()?;
            let mut checked = 0;
            for parameter in self.parameters.iter().filter(|parameter| moved(parameter)) {
                let gradient = gradients.get(&parameter.var);
                let gradient = gradient
                    .unwrap_or_else(|| panic!("{what}: {} has no gradient", parameter.name));
                let slope = |direction: &Tensor| -> Result<f64> {
                    Ok(f64::from(
                        (gradient * direction)?.sum_all()?.to_scalar::<f32>()?,
                    ))
                };
                checked += 1;
                differs_by(
                    &parameter.var,
                    &value,
                    slope,
                    &format!("{what}: {}", parameter.name),
                )?;
            }
            assert!(checked > 10, "{what}: {checked} tensors checked");
            Ok(())
        })
    }

    /// Which groups have a gradient that is not zero.
    fn reached(&self, terms: Terms) -> Result<BTreeSet<String>> {
        self.with_objective(terms, |objective| {
            let gradients = objective
                .loss_on(&self.batch, 3)
                .expect("a loss")
                .total
                .backward()?;
            let mut reached = BTreeSet::new();
            for parameter in self.parameters.iter() {
                let size = match gradients.get(&parameter.var) {
                    Some(gradient) => gradient.abs()?.max_all()?.to_scalar::<f32>()?,
                    None => 0.0,
                };
                if size > 0.0 {
                    reached.insert(part_of(parameter));
                }
            }
            Ok(reached)
        })
    }
}

/// `sparse`, `encoder` or `decoder`.
fn part_of(parameter: &Parameter) -> String {
    match parameter.group {
        ParameterGroup::Model => "sparse".to_owned(),
        ParameterGroup::Bridge => parameter
            .name
            .split('.')
            .nth(2)
            .expect("site.N.map.part")
            .to_owned(),
    }
}

/// Holds `slope` along a random direction against the change of `value` when `var` moves along it.
fn differs_by(
    var: &Var,
    value: &dyn Fn() -> Result<f64>,
    slope: impl Fn(&Tensor) -> Result<f64>,
    what: &str,
) -> Result<()> {
    const STEP: f64 = 2e-3;
    let direction = Tensor::from_vec(noise(var.elem_count(), 77), var.dims(), var.device())?;
    let start = var.as_tensor().copy()?;
    let at = |by: f64| -> Result<f64> {
        var.set(&(&start + (&direction * by)?)?)?;
        value()
    };
    let measured = (at(STEP)? - at(-STEP)?) / (2.0 * STEP);
    var.set(&start)?;
    let slope = slope(&direction)?;
    assert!(
        (slope - measured).abs() <= 4e-3 + 1e-2 * measured.abs(),
        "{what}: the gradient says {slope}, the loss changes by {measured}"
    );
    Ok(())
}

fn all_terms() -> Terms {
    Terms {
        cross_entropy: 1.0,
        distillation: 0.5,
        encoder: 1.5,
        decoder: 0.7,
        dense_to_sparse: 2.0,
        sparse_to_dense: 3.0,
        hybrid_sequences: Some(4),
        twin: Some(twin(2.0, 1.0, 0.5)),
        ..no_terms()
    }
}

fn in_the_bridge(parameter: &Parameter) -> bool {
    parameter.group == ParameterGroup::Bridge
}

#[test]
fn the_bridge_has_the_gradient_of_every_term() -> Result<()> {
    Pair::new()?.check("all terms", all_terms(), in_the_bridge)
}

#[test]
fn the_bridge_to_a_deeper_model_has_the_gradient_of_every_term() -> Result<()> {
    let names = [
        "0.resid_in",
        "1.resid_in",
        "1.resid_mid",
        "2.resid_mid",
        "final_resid",
    ];
    let pair = Pair {
        site_map: Some(names.map(str::to_owned).into()),
        ..Pair::with_dense_layers(3)?
    };
    // Without what the bridge does not move.
    let terms = Terms {
        cross_entropy: 0.0,
        distillation: 0.0,
        ..all_terms()
    };
    pair.check("three layers", terms, in_the_bridge)
}

#[test]
fn the_sparse_model_has_the_gradient_of_every_term_that_moves_it() -> Result<()> {
    let terms = Terms {
        cross_entropy: 1.0,
        distillation: 0.5,
        decoder: 0.7,
        dense_to_sparse: 2.0,
        sparse_to_dense: 3.0,
        ..no_terms()
    };
    // The logits' bias is a parameter of these models as well.
    Pair::new()?.check("no stopped gradient", terms, |parameter| {
        parameter.group == ParameterGroup::Model
    })
}

#[test]
fn the_sparse_model_can_follow_the_encoder() -> Result<()> {
    let pair = Pair::new()?;
    let terms = |moves: bool| Terms {
        encoder: 1.0,
        encoder_moves_sparse: moves,
        ..no_terms()
    };
    let expected = |parts: &[&str]| {
        parts
            .iter()
            .map(|part| part.to_string())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(pair.reached(terms(false))?, expected(&["encoder"]));
    assert_eq!(pair.reached(terms(true))?, expected(&["encoder", "sparse"]));
    let decoder = Terms {
        decoder: 1.0,
        ..no_terms()
    };
    assert_eq!(pair.reached(decoder)?, expected(&["decoder", "sparse"]));
    let distillation = Terms {
        distillation: 1.0,
        ..no_terms()
    };
    assert_eq!(pair.reached(distillation)?, expected(&["sparse"]));
    let twin_alone = |weight, native, counterfactual| Terms {
        twin: Some(twin(weight, native, counterfactual)),
        ..no_terms()
    };
    for (terms, parts) in [
        (twin_alone(1.0, 0.0, 0.0), &["decoder", "sparse"][..]),
        (twin_alone(0.0, 1.0, 0.0), &["sparse"]),
        (twin_alone(0.0, 0.0, 1.0), &["decoder", "sparse"]),
    ] {
        assert_eq!(pair.reached(terms)?, expected(parts));
    }
    Ok(())
}

#[test]
fn the_parts_of_the_twin_term_have_their_gradients_in_the_streams() -> Result<()> {
    let pair = Pair::new()?;
    let (dense_config, sparse_config) = (config(9), config(13));
    let dense = Passes::new(dense_config, &pair.dense.tensors, Purpose::Frozen)?;
    let sparse = Passes::new(
        sparse_config,
        &pair.parameters.tensors(ParameterGroup::Model),
        Purpose::Training,
    )?;
    let bridge = Bridge::new(
        &pair.parameters.tensors(ParameterGroup::Bridge),
        SiteMap::identity(N_LAYERS),
        9,
        13,
        1.0,
        Purpose::Training,
    )?;
    let n_rows = 4 * LENGTH;
    let ids = &pair.batch.inputs[..n_rows];
    let stream = |width: usize, seed: u64| {
        Var::from_vec(noise(n_rows * width, seed), (n_rows, width), &Device::Cpu)
    };
    let (dense_stream, sparse_stream) = (stream(9, 61)?, stream(13, 62)?);
    let logits = |seed| Ok::<_, candle_core::Error>(stream(VOCABULARY, seed)?.as_tensor().detach());
    let (dense_logits, sparse_logits) = (logits(64)?, logits(63)?);
    let site = Site::before_mlp(0, N_LAYERS);
    type Part = fn(TwinLoss) -> Option<Tensor>;
    let loss = |part: Part| -> Result<Tensor> {
        let batch = TwinBatch {
            ids,
            targets: &pair.batch.targets[..n_rows],
            length: LENGTH,
            task_sequences: 2,
            dense_sites: &vec![dense_stream.as_tensor().clone(); 2 * N_LAYERS + 1],
            sparse_sites: &vec![sparse_stream.as_tensor().clone(); 2 * N_LAYERS + 1],
            dense_logits: &dense_logits,
            sparse_logits: &sparse_logits,
        };
        let mut rng = step_rng(1, 3, DRAW_CHANNELS);
        let loss = twin_loss(
            &dense,
            &sparse,
            &bridge,
            &twin(1.0, 1.0, 1.0),
            &batch,
            site,
            &mut rng,
        )?;
        part(loss).ok_or_else(|| candle_core::Error::Msg("no such part".into()))
    };
    let parts: [(&str, Part); 2] = [
        ("native", |loss| loss.native),
        ("counterfactual", |loss| loss.counterfactual),
    ];
    for (name, part) in parts {
        let value = || Ok(f64::from(loss(part)?.to_scalar::<f32>()?));
        let gradients = loss(part)?.backward()?;
        let gradient = gradients.get(&sparse_stream).expect("a gradient");
        let slope = |direction: &Tensor| -> Result<f64> {
            Ok(f64::from(
                (gradient * direction)?.sum_all()?.to_scalar::<f32>()?,
            ))
        };
        differs_by(&sparse_stream, &value, slope, name)?;
        // Only the task's pair counts.
        let by_row = gradient.abs()?.sum(1)?.to_vec1::<f32>()?;
        let (text, task) = by_row.split_at(2 * LENGTH);
        assert!(text.iter().all(|&g| g == 0.0), "{name}: {by_row:?}");
        assert!(task.iter().all(|&g| g > 0.0), "{name}: {by_row:?}");
    }
    Ok(())
}

#[test]
fn one_drawn_site_is_all_sites_in_the_mean() -> Result<()> {
    let pair = Pair::new()?;
    let terms = |sites| Terms {
        dense_to_sparse: 1.0,
        sparse_to_dense: 1.0,
        sites,
        ..no_terms()
    };
    let mean_of = |sites, steps: usize| {
        pair.with_objective(terms(sites), |objective| -> Result<Vec<f64>> {
            let mut sums = vec![0.0; 2];
            for step in 0..steps {
                let loss = objective.loss_on(&pair.batch, step).expect("a loss");
                for (sum, (_, term)) in sums.iter_mut().zip(&loss.terms) {
                    *sum += f64::from(term.to_scalar::<f32>()?) / steps as f64;
                }
            }
            Ok(sums)
        })
    };
    let (all, drawn) = (
        mean_of(SiteChoice::All, 1)?,
        mean_of(SiteChoice::Sampled, 400)?,
    );
    let one = mean_of(SiteChoice::Sampled, 1)?;
    for ((all, drawn), one) in all.iter().zip(&drawn).zip(&one) {
        assert!(
            (drawn / all - 1.0).abs() < 0.06,
            "the mean of draws is {drawn}, of all sites {all}"
        );
        assert!((one / all - 1.0).abs() > 1e-4, "a single draw is no mean");
    }
    Ok(())
}
