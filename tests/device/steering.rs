//! Steering of every kind on a device, in one batch, against the CPU: what is read through the encoder, written into sublayers
//! and with the stream's size, replayed, patched, conditional, and controls of all.

use std::sync::Arc;

use causeway::features::pair::Pair;
use causeway::generation::request::{Choice, GenerationRequest};
use causeway::models::layout::ReadOptions;
use serde_json::{Value, json};

use super::{answered, both, furthest, placement, request, root};

const PROMPT: &str = "x = (\"a";
/// As many tokens.
const OTHER: &str = "x = ('a";

fn steers() -> Vec<Value> {
    let of = |edits: Value, variants: &[&str]| json!({"edits": edits, "variants": variants, "return": ["receipt"]});
    let vector: Vec<f32> = (0..128).map(|n| (n as f32 * 0.7).sin()).collect();
    vec![
        // A sublayer's input, written to the stream: the change takes the sparse stream's size.
        of(
            json!([{"feature": "bracket_depth_late", "op": "add", "value": 2, "write": "residual"}]),
            &["steered", "random"],
        ),
        // The same written into the sublayer, where the change waits for the pass; two edits come there together.
        of(
            json!([
                {"feature": "keyword_defaults", "op": "set", "value": 3, "write": "sublayer"},
                {"feature": {"node": "0.mlp.act_in", "channel": 5}, "op": "scale", "value": -2, "write": "sublayer"},
            ]),
            &["steered", "baseline", "random_feature"],
        ),
        // Through the encoder, at two sites.
        of(
            json!([
                {"feature": "quote_type", "op": "scale", "value": 2, "read": "encoder"},
                {"feature": "block_opened_late", "op": "clamp", "min": -0.5, "max": 0.5, "read": "encoder"},
            ]),
            &["steered", "random"],
        ),
        // Patched from another prompt, and where a condition holds alone.
        json!({
            "edits": [
                {"feature": "quote_type", "op": "patch", "to": {"prompt": OTHER}},
                {"feature": "quote_type_late", "op": "add", "value": 1,
                 "when": {"all": [{"feature": "statement_if", "lt": 1000}]}},
            ],
            "variants": ["steered"], "return": ["receipt"],
        }),
        // Inside a sublayer: what its output becomes is carried over.
        of(
            json!([{"feature": {"node": "1.mlp.post_act", "channel": 3}, "op": "add", "value": 4}]),
            &["steered", "random"],
        ),
        // A direction of the dense model's own.
        of(
            json!([
                {"feature": {"site": "2.resid_mid", "vector": vector}, "op": "add", "value": 0.3},
                {"feature": {"site": "2.resid_mid", "vector": vector}, "op": "scale", "value": 0.5},
            ]),
            &["steered", "random"],
        ),
    ]
}

/// What receipts tell of tokens, one number after another.
fn told(choice: &Choice) -> Vec<f32> {
    let receipt = choice.receipt.iter();
    let tokens = receipt.flat_map(|receipt| receipt.touched());
    let mut numbers: Vec<f32> = tokens
        .flat_map(|token| {
            [
                token.before,
                token.after,
                token.change_norm,
                token.relative_change,
            ]
        })
        .collect();
    let divergence = choice
        .receipt
        .iter()
        .filter_map(|receipt| receipt.kl_to_baseline);
    numbers.extend(divergence);
    numbers
}

#[test]
fn steering_of_every_kind_is_that_of_the_cpu() {
    let (on_cpu, on_device, launched) = both(|| {
        let options = ReadOptions {
            placement: placement(),
            ..ReadOptions::UNBOUNDED
        };
        let directory = root().join("bridges/tinypython");
        let pair = Arc::new(Pair::read_within(&directory, options).unwrap());
        let mut requests: Vec<GenerationRequest> = steers()
            .into_iter()
            .map(|steer| request(&pair, &pair.dense, PROMPT, Some(steer)))
            .collect();
        // Natively, where the features are.
        let native = json!({
            "edits": [
                {"feature": "quote_type", "op": "scale", "value": 1.5},
                {"feature": "keyword_defaults", "op": "add", "value": 1},
            ],
            "variants": ["steered", "random"], "return": ["receipt"],
        });
        requests.push(request(&pair, &pair.sparse, PROMPT, Some(native)));
        requests
            .iter_mut()
            .for_each(|request| request.max_tokens = 2);
        answered(requests)
    });
    assert!(launched.contains("row_edits_f32"), "{launched:?}");
    for (number, (on_cpu, on_device)) in on_cpu.iter().zip(&on_device).enumerate() {
        assert_eq!(on_cpu.choices.len(), on_device.choices.len());
        for (one, other) in on_cpu.choices.iter().zip(&on_device.choices) {
            let what = format!("request {number}, {:?}", one.variant);
            assert_eq!(one.text, other.text, "{what}");
            let (one, other) = (told(one), told(other));
            assert!(!one.is_empty() && one.len() == other.len(), "{what}");
            let most = one.iter().fold(1f32, |most, number| most.max(number.abs()));
            let apart = furthest(&one, &other);
            assert!(apart < 1e-3 * most, "{what}: {apart}, {one:?} {other:?}");
        }
    }
}
