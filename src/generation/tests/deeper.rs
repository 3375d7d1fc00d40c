//! A sparse model beside a deeper dense one: every edit reaches the dense model where its place is joined, held against
//! forward passes written out.

use candle_core::{Device, Result, Tensor};
use serde_json::{Value, json};

use super::forward::{
    PROMPT, SetChannel, assert_steered, column, dense_with, one, place, read, rms, run, scaled,
    site,
};
use super::pair::{
    Catalog, D_DENSE, D_SPARSE, answer, assert_near, joined_pair, model, request, steered,
};
use super::prefixes::{assert_equal, text};
use super::scheduling::submit;
use crate::features::pair::Pair;
use crate::generation::capacity::Capacity;
use crate::generation::request::{Choice, GenerationRequest};
use crate::generation::scheduler::Scheduler;
use crate::models::location::Location;
use crate::models::tap::ResidualTap;
use crate::models::transformer::Transformer;
use crate::numerics::rows;

const LAYERS: usize = 4;
/// The dense sites of `0.resid_in`, `0.resid_mid`, `1.resid_in`, `1.resid_mid` and `final_resid`: kinds change, and layers
/// are left out.
const JOINED: [&str; 5] = [
    "0.resid_in",
    "1.resid_in",
    "1.resid_mid",
    "3.resid_mid",
    "final_resid",
];

fn deeper() -> Catalog {
    Catalog::of(joined_pair(LAYERS, &JOINED))
}

/// Adds rows at one place.
struct Add(Location, Vec<Vec<f32>>);

impl ResidualTap for Add {
    fn visit(&mut self, at: Location, value: Tensor) -> Result<Tensor> {
        match at == self.0 {
            true => value + Tensor::new(self.1.clone(), &Device::Cpu)?,
            false => Ok(value),
        }
    }
}

fn gains(model: &Transformer, name: &str) -> Vec<f32> {
    let site = Location::parse(name, model.config.n_layers).expect("a place");
    let input = model.sublayer_input(site.site(model.config.n_layers));
    rows::to_vec(&input.expect("an input").norm.gain).expect("gains")
}

#[test]
fn a_site_channel_is_carried_to_the_site_that_it_is_joined_to() {
    let catalog = deeper();
    let sparse = &catalog.models["sparse"].transformer;
    for (own, joined) in [
        ("1.resid_in", "1.resid_mid"),
        ("final_resid", "final_resid"),
    ] {
        let values = read(sparse, PROMPT, own);
        let column = column(&catalog, own, 8);
        let change: Vec<Vec<f32>> = values
            .iter()
            .map(|row| scaled(&column, 0.75 * (2.5 - row[8])))
            .collect();
        let expected = dense_with(&catalog, PROMPT, joined, &change);
        let edit = json!({"feature": {"node": own, "channel": 8}, "op": "set", "value": 2.5, "strength": 0.75});
        assert_steered(&catalog, &one(edit), &expected, 1e-4);
    }
}

#[test]
fn a_sublayer_input_is_carried_to_the_stream_where_its_site_is_joined() {
    let catalog = deeper();
    let sparse = &catalog.models["sparse"].transformer;
    let (values, stream) = (
        read(sparse, PROMPT, "1.mlp.act_in"),
        read(sparse, PROMPT, "1.resid_mid"),
    );
    let gain = gains(sparse, "1.resid_mid")[7];
    let column = column(&catalog, "1.resid_mid", 7);
    let change = values.iter().zip(&stream);
    let change: Vec<Vec<f32>> = change
        .map(|(row, stream)| scaled(&column, (1.5 - row[7]) * rms(stream) / gain))
        .collect();
    let expected = dense_with(&catalog, PROMPT, "3.resid_mid", &change);
    let edit = json!({"feature": {"node": "1.mlp.act_in", "channel": 7}, "op": "set", "value": 1.5, "write": "residual"});
    assert_steered(&catalog, &one(edit), &expected, 1e-4);
}

#[test]
fn a_sublayer_input_is_carried_into_the_sublayer_that_reads_the_joined_site() {
    let catalog = deeper();
    let (dense, sparse) = (
        &catalog.models["dense"].transformer,
        &catalog.models["sparse"].transformer,
    );
    // An attention of the sparse model, an MLP of the dense one.
    let (gain, dense_gains) = (gains(sparse, "1.resid_in")[7], gains(dense, "1.resid_mid"));
    let column = column(&catalog, "1.resid_in", 7);
    let mean = column.iter().sum::<f32>() / column.len() as f32;
    let values = read(sparse, PROMPT, "1.attn.act_in");
    let change = values.iter().map(|row| {
        let factor = (1.5 - row[7]) * (1.2 / 0.8) / gain;
        column
            .iter()
            .zip(&dense_gains)
            .map(|(w, g)| factor * g * (w - mean))
            .collect()
    });
    let target = Location::parse("1.mlp.act_in", LAYERS).expect("a place");
    let (_, expected) = run(dense, PROMPT, &[], &mut Add(target, change.collect()));
    let edit =
        json!({"feature": {"node": "1.attn.act_in", "channel": 7}, "op": "set", "value": 1.5});
    assert_steered(&catalog, &one(edit), &expected, 1e-4);
}

#[test]
fn a_node_inside_a_sublayer_is_carried_to_where_its_output_is_joined() {
    let catalog = deeper();
    let sparse = &catalog.models["sparse"].transformer;
    for (node, output, at, joined) in [
        (
            "0.attn.v",
            "0.attn.resid_delta",
            "0.resid_mid",
            "1.resid_in",
        ),
        (
            "0.mlp.post_act",
            "0.mlp.resid_delta",
            "1.resid_in",
            "1.resid_mid",
        ),
    ] {
        let before = read(sparse, PROMPT, output);
        let mut tap = SetChannel {
            place: place(node),
            channel: 6,
            value: 4.0,
        };
        let after = run(sparse, PROMPT, &[output], &mut tap).0.remove(0);
        let change: Vec<Vec<f32>> = before
            .iter()
            .zip(&after)
            .map(|(before, after)| {
                let mut delta = vec![0.0; D_DENSE];
                for channel in 0..D_SPARSE {
                    let step = after[channel] - before[channel];
                    let step = scaled(&column(&catalog, at, channel), step);
                    delta
                        .iter_mut()
                        .zip(step)
                        .for_each(|(sum, step)| *sum += step);
                }
                delta
            })
            .collect();
        let expected = dense_with(&catalog, PROMPT, joined, &change);
        let edit = json!({"feature": {"node": node, "channel": 6}, "op": "set", "value": 4});
        assert_steered(&catalog, &one(edit), &expected, 1e-4);
    }
}

/// What the encoder makes of the dense stream at a site's joined one.
fn encoded(catalog: &Catalog, own: &str, stream: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let stream = Tensor::new(stream, &Device::Cpu).expect("rows");
    let encoded = catalog.pairs["pair"].bridge.encode(site(own), &stream);
    encoded.expect("encoded").to_vec2().expect("rows")
}

#[test]
fn the_encoder_reads_the_stream_of_the_joined_site_as_edited_before() {
    let catalog = deeper();
    let dense = &catalog.models["dense"].transformer;
    // A vector at a dense site that nothing is joined to, before the one that is read.
    let vector: Vec<f32> = (0..D_DENSE).map(|i| (i as f32 * 0.7).sin()).collect();
    let at = Location::parse("0.resid_mid", LAYERS).expect("a place");
    let mut tap = Add(at, vec![vector.clone(); PROMPT.len()]);
    let (values, _) = run(dense, PROMPT, &["1.resid_mid"], &mut tap);
    let read = encoded(&catalog, "1.resid_in", values[0].clone());
    let column = column(&catalog, "1.resid_in", 2);
    let edited = values[0].iter().zip(&read).map(|(row, encoded)| {
        let change = scaled(&column, 3.0 - encoded[2]);
        row.iter().zip(change).map(|(x, d)| x + d).collect()
    });
    let edited: Vec<Vec<f32>> = edited.collect();
    let steer = json!({"edits": [
        {"feature": {"node": "1.resid_in", "channel": 2}, "op": "set", "value": 3, "read": "encoder"},
        {"feature": {"site": "0.resid_mid", "vector": vector}, "op": "add", "value": 1},
    ]});
    let own = Location::parse("1.resid_mid", LAYERS).expect("a place");
    let (_, expected) = run(dense, PROMPT, &[], &mut Stream(own, edited));
    assert_steered(&catalog, &steered(&[PROMPT], steer), &expected, 1e-4);
}

/// Puts rows in place of a stream.
struct Stream(Location, Vec<Vec<f32>>);

impl ResidualTap for Stream {
    fn visit(&mut self, at: Location, value: Tensor) -> Result<Tensor> {
        match at == self.0 {
            true => Tensor::new(self.1.clone(), &Device::Cpu),
            false => Ok(value),
        }
    }
}

#[test]
fn conditions_through_the_encoder_see_the_joined_site_unedited() {
    let catalog = deeper();
    let dense = &catalog.models["dense"].transformer;
    let stream = read(dense, PROMPT, "1.resid_mid");
    let rows = encoded(&catalog, "1.resid_in", stream);
    let of_channel = |channel: usize| -> Vec<f32> { rows.iter().map(|row| row[channel]).collect() };
    // Some channels are never among those that the encoder keeps.
    let varies = |channel: &usize| {
        of_channel(*channel)
            .iter()
            .any(|value| *value != rows[0][*channel])
    };
    let channel = (0..D_SPARSE).find(varies).expect("a channel that varies");
    let values = of_channel(channel);
    let largest = values.iter().copied().fold(f32::MIN, f32::max);
    let least = values.iter().copied().fold(f32::MAX, f32::min);
    let bound = f64::from(least + largest) / 2.0;
    let expected: Vec<usize> = (0..PROMPT.len())
        .filter(|&at| f64::from(values[at]) > bound)
        .collect();
    assert!((1..PROMPT.len()).contains(&expected.len()), "{values:?}");
    let vector: Vec<f32> = (0..D_DENSE).map(|i| (i as f32 * 0.9).cos()).collect();
    // A change far larger than the stream, before the place that is looked at.
    let upstream =
        json!({"feature": {"site": "0.resid_in", "vector": vector}, "op": "add", "value": 40});
    let conditional = json!({"feature": {"node": "1.resid_mid", "channel": 3}, "op": "add", "value": 0.5,
        "read": "encoder", "at": {"generation": "none"},
        "when": {"all": [{"feature": {"node": "1.resid_in", "channel": channel}, "gt": bound}]}});
    let steer = json!({"edits": [upstream, conditional], "return": ["receipt"]});
    let choice = answer(&catalog, &steered(&[PROMPT], steer))
        .choices
        .remove(0);
    let receipt = choice.receipt.expect("a receipt");
    let touched = receipt.edits[1].tokens.iter();
    let touched: Vec<usize> = touched.map(|token| token.position).collect();
    assert_eq!(touched, expected);
}

fn receipt_of(choice: &Choice) -> Value {
    serde_json::to_value(choice.receipt.as_ref().expect("a receipt")).expect("JSON")
}

#[test]
fn a_receipt_names_the_places_of_both_models() {
    let vector: Vec<f32> = vec![1.0; D_DENSE];
    let edits = json!([
        {"feature": {"node": "1.resid_in", "channel": 1}, "op": "add", "value": 1},
        {"feature": {"node": "1.attn.act_in", "channel": 2}, "op": "add", "value": 1},
        {"feature": {"node": "1.attn.act_in", "channel": 3}, "op": "add", "value": 1, "write": "residual"},
        {"feature": {"node": "0.attn.q", "channel": 4}, "op": "set", "value": 4},
        {"feature": {"site": "1.resid_mid", "vector": vector}, "op": "add", "value": 1},
    ]);
    let steer = json!({"edits": edits, "return": ["receipt"]});
    let found = answer(&deeper(), &steered(&[PROMPT], steer.clone()));
    let receipt = receipt_of(&found.choices[0]);
    let told = |key: &str| -> Vec<Value> {
        let edits = receipt["edits"].as_array().expect("edits").iter();
        edits.map(|edit| edit[key].clone()).collect()
    };
    assert_eq!(
        told("node"),
        [
            "1.resid_in",
            "1.attn.act_in",
            "1.attn.act_in",
            "0.attn.q",
            "1.resid_mid"
        ]
    );
    let expected = json!([
        "1.resid_mid",
        "1.mlp.act_in",
        "1.resid_mid",
        "1.resid_in",
        null
    ]);
    assert_eq!(json!(told("dense_node")), expected);
    for edit in receipt["edits"].as_array().expect("edits") {
        assert_eq!(edit["tokens_touched"], PROMPT.len() + 7);
    }
    // Where depths are equal there is one name for both.
    let equal = answer(&super::pair::catalog(), &steered(&[PROMPT], steer));
    let receipt = receipt_of(&equal.choices[0]);
    assert!(!receipt.to_string().contains("dense_node"));
}

#[test]
fn token_by_token_is_the_whole_at_once() {
    let catalog = deeper();
    let edits = json!([
        {"feature": {"node": "1.resid_in", "channel": 1}, "op": "scale", "value": 2, "read": "encoder"},
        {"feature": {"node": "1.attn.act_in", "channel": 2}, "op": "set", "value": 1.5},
        {"feature": {"node": "0.mlp.post_act", "channel": 3}, "op": "set", "value": 3},
        {"feature": {"node": "1.mlp.act_in", "channel": 4}, "op": "set", "value": 1, "write": "residual"},
    ]);
    let asked = steered(&[PROMPT], json!({"edits": edits}));
    let stepped = answer(&catalog, &asked).choices.remove(0);
    let mut whole: Vec<u32> = PROMPT.to_vec();
    whole.extend(stepped.tokens[..4].iter().map(|token| token.id));
    let again = answer(
        &catalog,
        &GenerationRequest {
            prompts: vec![whole],
            max_tokens: 4,
            ..asked
        },
    );
    let logprobs = |choice: &Choice, range: std::ops::Range<usize>| -> Vec<f32> {
        let tokens = choice.tokens[range].iter();
        tokens
            .map(|token| token.logprob.expect("asked for"))
            .collect()
    };
    assert_near(
        &logprobs(&again.choices[0], 0..4),
        &logprobs(&stepped, 4..8),
        0.0,
    );
    let plain = answer(&catalog, &request(&[PROMPT]));
    assert_ne!(logprobs(&plain.choices[0], 0..1), logprobs(&stepped, 0..1));
}

#[test]
fn the_sparse_model_of_a_deeper_one_is_edited_in_place() {
    let catalog = deeper();
    let edit = json!({"feature": {"node": "1.resid_mid", "channel": 5}, "op": "set", "value": 4});
    let asked = GenerationRequest {
        model: model("sparse"),
        ..one(edit)
    };
    // The same sparse model beside a dense one of its own depth.
    let expected = answer(&super::pair::catalog(), &asked);
    assert_equal(&answer(&catalog, &asked), &expected, "natively");
}

#[test]
fn what_is_kept_under_one_map_is_not_taken_up_under_another() {
    let one = deeper();
    let other = {
        let pair = joined_pair(
            LAYERS,
            &[
                "0.resid_in",
                "0.resid_mid",
                "1.resid_mid",
                "3.resid_mid",
                "final_resid",
            ],
        );
        // The same models, and a bridge that differs in nothing but where it joins them.
        Catalog::of(Pair {
            bridge: pair.bridge,
            record: pair.record,
            ..Pair::clone(&one.pairs["pair"])
        })
    };
    let edit = json!({"feature": {"node": "0.attn.v", "channel": 6}, "op": "set", "value": 4});
    let asked = GenerationRequest {
        max_tokens: 2,
        ..steered(&[&text(17)], json!({"edits": [edit]}))
    };
    let mut scheduler = Scheduler::new(Capacity::default());
    for (name, catalog, cached) in [
        ("first", &one, 0),
        ("again", &one, 16),
        ("under another map", &other, 0),
        ("again under that", &other, 16),
    ] {
        let keeper = submit(&mut scheduler, catalog, &asked);
        while !scheduler.is_idle() {
            scheduler.step();
        }
        let found = keeper.taken().expect("an answer");
        assert_equal(&found, &answer(catalog, &asked), name);
        assert_eq!(found.cached_tokens, cached, "{name}");
    }
}
