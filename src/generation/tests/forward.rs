//! Forward passes written out by hand, for steering to be held against.

use candle_core::{Device, Result, Tensor};
use serde_json::{Value, json};

use super::pair::{Catalog, LAYERS, assert_near, first_distribution, request, steered};
use crate::generation::request::GenerationRequest;
use crate::models::location::{Location, Site};
use crate::models::tap::{Recorder, ResidualTap};
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::numerics::loss::log_sum_exp;

pub const PROMPT: &[u32] = &[40, 257, 33, 260, 101, 45];
pub const OTHER: &[u32] = &[40, 99, 33, 258, 101, 45];

pub struct SetChannel {
    pub place: Location,
    pub channel: usize,
    pub value: f32,
}

impl ResidualTap for SetChannel {
    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        if place != self.place {
            return Ok(value);
        }
        let mut rows: Vec<Vec<f32>> = value.to_vec2()?;
        rows.iter_mut()
            .for_each(|row| row[self.channel] = self.value);
        Tensor::new(rows, &Device::Cpu)
    }
}

pub fn place(name: &str) -> Location {
    Location::parse(name, LAYERS).expect("a place")
}

/// One tap after another.
pub struct Both<'a>(&'a mut dyn ResidualTap, &'a mut Recorder);

impl ResidualTap for Both<'_> {
    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        let value = self.0.visit(place, value)?;
        self.1.visit(place, value)
    }
}

/// The values of some of the model's own places, and the logits of the last token.
pub fn run(
    model: &Transformer,
    ids: &[u32],
    names: &[&str],
    tap: &mut dyn ResidualTap,
) -> (Vec<Vec<Vec<f32>>>, Vec<f32>) {
    let own = |name: &str| Location::parse(name, model.config.n_layers).expect("a place");
    let mut recorder = Recorder::of(names.iter().map(|name| own(name)));
    let mut tokens = TokenRows::sequences(ids, ids.len(), &Device::Cpu).expect("rows");
    let logits = model
        .forward(&mut tokens, &mut Both(tap, &mut recorder))
        .expect("logits");
    let values = names.iter().map(|name| {
        recorder
            .get(own(name))
            .expect("a value")
            .to_vec2()
            .expect("rows")
    });
    (values.collect(), last_distribution(&logits))
}

pub fn last_distribution(logits: &Tensor) -> Vec<f32> {
    let logits: Vec<Vec<f32>> = logits.to_vec2().expect("logits");
    let last = logits.last().expect("a row");
    last.iter().map(|logit| logit - log_sum_exp(last)).collect()
}

pub fn read(model: &Transformer, ids: &[u32], name: &str) -> Vec<Vec<f32>> {
    run(model, ids, &[name], &mut crate::models::tap::NoTap)
        .0
        .remove(0)
}

/// What the dense model says when `change [rows][D]` is added to its stream at a site.
pub fn dense_with(catalog: &Catalog, ids: &[u32], name: &str, change: &[Vec<f32>]) -> Vec<f32> {
    let dense = &catalog.models["dense"].transformer;
    let Ok(Location::Site(site)) = Location::parse(name, dense.config.n_layers) else {
        panic!("{name} is no site")
    };
    let mut stream = read(dense, ids, name);
    for (row, change) in stream.iter_mut().zip(change) {
        row.iter_mut()
            .zip(change)
            .for_each(|(x, change)| *x += change);
    }
    let mut tokens = TokenRows::sequences(ids, ids.len(), &Device::Cpu).expect("rows");
    let logits = dense.tail(
        site,
        Tensor::new(stream, &Device::Cpu).expect("rows"),
        &mut tokens,
    );
    last_distribution(&logits.expect("logits"))
}

pub fn site(name: &str) -> Site {
    place(name).site(LAYERS)
}

pub fn column(catalog: &Catalog, at: &str, channel: usize) -> Vec<f32> {
    catalog.pairs["pair"]
        .bridge
        .decoder_column(site(at), channel)
        .expect("a column")
}

pub fn scaled(column: &[f32], factor: f32) -> Vec<f32> {
    column.iter().map(|value| value * factor).collect()
}

pub fn rms(row: &[f32]) -> f32 {
    (row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32).sqrt()
}

pub fn one(edit: Value) -> GenerationRequest {
    steered(&[PROMPT], json!({"edits": [edit]}))
}
/// The request's first distribution is the expected one, and not what comes without steering.
pub fn assert_steered(
    catalog: &Catalog,
    steered: &GenerationRequest,
    expected: &[f32],
    tolerance: f32,
) {
    let prompts: Vec<&[u32]> = steered.prompts.iter().map(Vec::as_slice).collect();
    let plain = GenerationRequest {
        model: steered.model.clone(),
        ..request(&prompts)
    };
    let plain = first_distribution(catalog, &plain, 0);
    assert!(
        plain
            .iter()
            .zip(expected)
            .any(|(a, b)| (a - b).abs() > 1e-2),
        "the edit does nothing"
    );
    assert_near(
        &first_distribution(catalog, steered, 0),
        expected,
        tolerance,
    );
}
