//! Edits counted in statistics of groups that nobody has named: measured over the reference text, once.

use std::sync::Arc;

use serde_json::{Value, json};

use super::pair::{
    Catalog, LAYERS, answer, assert_near, bits, first_distribution, pair, refusal, steered,
};
use crate::features::group::Group;
use crate::features::reference::ReferenceText;
use crate::features::statistics::visit_locations;
use crate::generation::capacity::Capacity;
use crate::generation::engine::Engine;
use crate::generation::request::{EngineError, GenerationRequest};
use crate::models::location::Location;

const PROMPT: &[u32] = &[40, 257, 33, 260, 101, 45];
const LENGTH: usize = 7;

fn text() -> ReferenceText {
    let tokens = (0..12 * LENGTH as u32).map(|index| (index * 37 + index * index) % 269);
    ReferenceText {
        tokens: tokens.collect(),
        length: LENGTH,
    }
}

/// The pair with reference text beside its statistics.
fn with_text() -> Catalog {
    let mut pair = pair("pair", 3);
    Arc::make_mut(&mut pair.reference).text = Some(text());
    Catalog::of(pair)
}

/// The projection on `channels` at every token of the text, by the definition.
fn values(catalog: &Catalog, node: &str, channels: &[(usize, f64)]) -> Vec<f64> {
    let sparse = &catalog.models["sparse"].transformer;
    let place = Location::parse(node, LAYERS).expect("a place");
    let norm = channels
        .iter()
        .map(|(_, weight)| weight * weight)
        .sum::<f64>()
        .sqrt();
    let mut values = Vec::new();
    visit_locations(
        sparse,
        &text().tokens,
        LENGTH,
        &[place],
        |_, _, rows, width| {
            values.extend(rows.chunks_exact(width).map(|row| {
                let terms = channels.iter();
                terms
                    .map(|&(channel, weight)| f64::from(row[channel]) * weight / norm)
                    .sum::<f64>()
            }));
        },
    )
    .expect("a pass");
    values
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares = values.iter().map(|value| (value - mean).powi(2));
    (squares.sum::<f64>() / values.len() as f64).sqrt()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

fn feature(node: &str, channels: &[(usize, f64)]) -> Value {
    let channels = channels
        .iter()
        .map(|(channel, weight)| json!({"channel": channel, "weight": weight}));
    json!({"node": node, "channels": channels.collect::<Vec<_>>()})
}

fn edited(edit: &Value) -> GenerationRequest {
    steered(&[PROMPT], json!({"edits": [edit]}))
}

#[test]
fn units_of_unnamed_groups_are_their_own_statistics() {
    let catalog = with_text();
    let cases: [(&str, &[(usize, f64)]); 4] = [
        ("1.resid_mid", &[(1, 3.0), (7, -4.0), (9, 0.5)]),
        // Places without statistics of their own.
        ("0.mlp.post_act", &[(2, 1.0)]),
        ("1.attn.v", &[(3, 2.0), (4, 2.0)]),
        // A place with statistics, which say nothing of groups.
        ("1.resid_in", &[(0, 1.0), (5, 2.0)]),
    ];
    for (node, channels) in cases {
        let feature = feature(node, channels);
        let values = values(&catalog, node, channels);
        for (unit, expected) in [("std", deviation(&values)), ("max", largest(&values))] {
            assert!(expected > 0.0, "{node}");
            let by_unit = json!({"feature": feature, "op": "add", "value": 1.5, "unit": unit});
            let raw = json!({"feature": feature, "op": "add", "value": 1.5 * expected});
            let plain = json!({"feature": feature, "op": "add", "value": 1.5});
            let [by_unit, raw, plain] =
                [by_unit, raw, plain].map(|edit| first_distribution(&catalog, &edited(&edit), 0));
            assert_near(&by_unit, &raw, 1e-4);
            assert_ne!(by_unit, plain, "{node} {unit}");
        }
    }
}

#[test]
fn bare_channels_have_units_and_means_wherever_they_are() {
    let catalog = with_text();
    let node = "1.attn.q";
    let values = values(&catalog, node, &[(6, 1.0)]);
    let channel = json!({"node": node, "channel": 6});
    let pairs = [
        (
            json!({"feature": format!("{node}:6"), "op": "set", "value": 2, "unit": "std"}),
            json!({"feature": channel, "op": "set", "value": 2.0 * deviation(&values)}),
        ),
        (
            json!({"feature": channel, "op": "clamp", "min": 1, "max": 2, "unit": "max"}),
            json!({"feature": channel, "op": "clamp", "min": largest(&values), "max": 2.0 * largest(&values)}),
        ),
        (
            json!({"feature": channel, "op": "ablate", "to": "mean"}),
            json!({"feature": channel, "op": "set", "value": mean(&values)}),
        ),
    ];
    for (measured, raw) in pairs {
        let found = first_distribution(&catalog, &edited(&measured), 0);
        assert_near(
            &found,
            &first_distribution(&catalog, &edited(&raw), 0),
            1e-4,
        );
    }
}

/// A channel with a negative weight is largest where the channel is smallest.
#[test]
fn a_negative_channel_counts_from_its_smallest_value() {
    let mut lower = pair("pair", 3);
    let place = Location::parse("1.resid_in", LAYERS).expect("a place");
    let reference = Arc::make_mut(&mut lower.reference);
    let mut statistics = reference.place(place).expect("statistics").clone();
    statistics.min[3] = -2.5;
    reference.insert(place, statistics);
    let catalog = Catalog::of(lower);
    let feature = feature("1.resid_in", &[(3, -1.0)]);
    let by_unit = json!({"feature": feature, "op": "add", "value": 1, "unit": "max"});
    let raw = json!({"feature": feature, "op": "add", "value": 2.5});
    assert_eq!(
        bits(&answer(&catalog, &edited(&by_unit)).choices[0]),
        bits(&answer(&catalog, &edited(&raw)).choices[0])
    );
}

#[test]
fn without_reference_text_the_refusal_says_what_is_missing() {
    let catalog = Catalog::of(pair("other", 4));
    let edit = json!({"feature": feature("1.resid_mid", &[(1, 1.0), (2, 1.0)]), "op": "add", "value": 1,
        "unit": "std"});
    let request = steered(&[PROMPT], json!({"edits": [edit], "bridge": "other"}));
    match refusal(&catalog, &request) {
        EngineError::Invalid { message, param } => {
            assert_eq!(param.as_deref(), Some("steer.edits[0].unit"));
            for said in ["other", "reference text", "1.resid_mid"] {
                assert!(message.contains(said), "{message}");
            }
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_group_is_measured_once_beside_the_engine() {
    let edit = json!({"feature": feature("1.resid_mid", &[(1, 3.0), (7, -4.0)]), "op": "add", "value": 1,
        "unit": "std"});
    let expected = answer(&with_text(), &edited(&edit));
    let catalog = with_text();
    let engine = Engine::start(Capacity::default()).expect("a thread");
    let asked = catalog.resolved(&edited(&edit));
    let group = Group {
        place: Location::parse("1.resid_mid", LAYERS).expect("a place"),
        channels: vec![1, 7],
        weights: vec![0.75 / 1.25, -1.0 / 1.25],
    };
    let kept = || catalog.pairs["pair"].reference.measured.get(&group);
    assert_eq!(kept(), None);
    let whole = engine.generate(asked.clone()).await.expect("an answer");
    assert_eq!(bits(&whole.choices[0]), bits(&expected.choices[0]));
    let first = kept().expect("it was measured");
    let stream = engine.stream(asked).await.expect("taken on");
    let streamed = stream.answer.await.expect("an end").expect("an answer");
    assert_eq!(bits(&streamed.choices[0]), bits(&expected.choices[0]));
    let second = kept().expect("it is kept");
    assert!(Arc::ptr_eq(&first, &second), "it was measured again");
}
