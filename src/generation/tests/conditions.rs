//! What `when` sees: unedited values, whatever is edited before, however they are read, and in every arm.

use std::path::Path;

use serde_json::{Value, json};

use super::forward::{OTHER, PROMPT};
use super::pair::{Catalog, D_DENSE, answer, catalog, request, steered};
use crate::features::pair::Pair;
use crate::generation::request::{Choice, GenerationRequest};

/// The prompt's tokens that an edit of a choice touched.
fn touched(choice: &Choice, edit: usize) -> Vec<usize> {
    let receipt = choice.receipt.as_ref().expect("a receipt");
    let tokens = receipt.edits[edit].tokens.iter();
    tokens.map(|token| token.position).collect()
}

fn vector(site: &str) -> Value {
    let vector: Vec<f32> = (0..D_DENSE).map(|i| (i as f32 * 0.9).cos()).collect();
    json!({"site": site, "vector": vector})
}

/// A feature's values on the prompt without any edit.
fn unedited(catalog: &Catalog, feature: &Value, read: Option<&str>) -> Vec<f32> {
    let mut edit = json!({"feature": feature, "op": "add", "value": 0});
    if let Some(read) = read {
        edit["read"] = json!(read);
    }
    let steer = json!({"edits": [edit], "return": ["activations"]});
    let asked = GenerationRequest {
        max_tokens: 0,
        ..steered(&[PROMPT], steer)
    };
    let choice = answer(catalog, &asked).choices.remove(0);
    choice.activations.expect("activations")[0].before.clone()
}

#[test]
fn conditions_see_what_is_there_without_any_edit() {
    let catalog = catalog();
    // A change far larger than the stream itself, before everything that is looked at.
    let upstream = json!({"feature": vector("0.resid_in"), "op": "add", "value": 40});
    for (feature, read, edited) in [
        (vector("0.resid_mid"), None, vector("1.resid_mid")),
        (vector("1.resid_in"), None, vector("1.resid_in")),
        (
            json!({"node": "1.resid_in", "channel": 2}),
            Some("encoder"),
            json!({"node": "1.resid_mid", "channel": 3}),
        ),
        (
            json!({"node": "0.mlp.act_in", "channel": 4}),
            Some("encoder"),
            json!({"node": "1.mlp.act_in", "channel": 6}),
        ),
        (
            json!({"node": "1.resid_in", "channels": [{"channel": 2, "weight": 1}, {"channel": 9, "weight": -1}]}),
            Some("sparse"),
            json!({"node": "1.resid_mid", "channel": 3}),
        ),
    ] {
        let values = unedited(&catalog, &feature, read);
        // Between the least and the largest: some tokens are above it, some are not.
        let least = values.iter().copied().fold(f32::MAX, f32::min);
        let largest = values.iter().copied().fold(f32::MIN, f32::max);
        let bound = f64::from(least + largest) / 2.0;
        let expected: Vec<usize> = (0..PROMPT.len())
            .filter(|&at| f64::from(values[at]) > bound)
            .collect();
        assert!((1..PROMPT.len()).contains(&expected.len()), "{values:?}");
        let mut conditional = json!({"feature": edited, "op": "add", "value": 0.5,
            "at": {"generation": "none"}, "when": {"all": [{"feature": feature, "gt": bound}]}});
        if let Some(read) = read {
            conditional["read"] = json!(read);
        }
        let steer = json!({"edits": [upstream, conditional],
            "variants": ["steered", "random"], "return": ["receipt"]});
        let answer = answer(&catalog, &steered(&[PROMPT], steer));
        for choice in &answer.choices {
            let touched = touched(choice, 1);
            assert_eq!(touched, expected, "{feature} {:?}", choice.variant);
        }
    }
}

/// The same while tokens are generated, and for prompts whose arms take their steps together.
#[test]
fn conditions_on_generated_tokens_see_the_arm_s_own_tokens_unedited() {
    let catalog = catalog();
    let upstream = json!({"feature": vector("0.resid_in"), "op": "add", "value": 40});
    let condition = json!({"feature": vector("1.resid_in"), "gt": 0});
    let conditional = json!({"feature": vector("1.resid_mid"), "op": "add", "value": 0.5,
        "when": {"all": [condition]}});
    let steer = json!({"edits": [upstream, conditional], "variants": ["steered", "random", "baseline"],
        "return": ["receipt"]});
    let both = answer(&catalog, &steered(&[PROMPT, OTHER], steer));
    for (index, choice) in both.choices.iter().enumerate() {
        if index % 3 == 2 {
            continue;
        }
        let prompt = [PROMPT, OTHER][index / 3];
        let generated = choice.tokens.iter().map(|token| token.id);
        let whole: Vec<u32> = prompt.iter().copied().chain(generated).collect();
        let read = json!({"edits": [{"feature": vector("1.resid_in"), "op": "add", "value": 0}],
            "return": ["activations"]});
        let asked = GenerationRequest {
            max_tokens: 0,
            ..steered(&[&whole], read)
        };
        let read = answer(&catalog, &asked).choices.remove(0);
        let values = read.activations.expect("activations")[0].before.clone();
        // The last token is not fed.
        let expected: Vec<usize> = (0..whole.len() - 1)
            .filter(|&at| values[at] > 0.0)
            .collect();
        assert!(!expected.is_empty() && expected.len() < whole.len() - 1);
        assert_eq!(touched(choice, 1), expected, "choice {index}");
    }
}

/// No run that nobody needs: a condition before every edit is read where the edits are made.
#[test]
fn the_dense_model_runs_beside_itself_only_behind_an_edit() {
    use crate::generation::session::Session;
    let ask = |first: &str, looks: &str| {
        let edits = json!([
            {"feature": vector(first), "op": "add", "value": 1},
            {"feature": vector("final_resid"), "op": "add", "value": 1,
             "when": {"any": [{"feature": vector(looks), "gt": 0}]}},
        ]);
        let asked = steered(&[PROMPT], json!({"edits": edits}));
        Session::admit(asked).expect("a plan").needs(0).dense
    };
    assert_eq!(ask("1.resid_in", "1.resid_in"), 0);
    assert_eq!(ask("1.resid_in", "0.resid_mid"), 0);
    assert_eq!(ask("1.resid_in", "1.resid_mid"), 1);
}

/// Found by a user on the shipped pair: every unedited projection is below the threshold, and yet all tokens were
/// touched.
#[test]
fn an_edit_before_does_not_make_a_condition_true() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("bridges/tinypython");
    let pair = Pair::read(&shipped).expect("the shipped pair");
    let model = pair.dense.clone();
    let catalog = Catalog::of(pair);
    let prompt = model
        .tokenizer
        .encode("x = {\"a\": 1, \"b\": [2, 3")
        .expect("tokens");
    let half = model.config.d_model / 2;
    let vector: Vec<f32> = [vec![1.0; half], vec![-1.0; half]].concat();
    let edit = |site: &str, value: f64| json!({"feature": {"site": site, "vector": vector}, "op": "add", "value": value});
    let at = |site: &str| json!({"feature": {"site": site, "vector": vector}, "gt": 0.5});
    let mut conditional = edit("2.resid_in", 0.5);
    conditional["when"] = json!({"all": [at("1.resid_in")]});
    let steer = json!({"edits": [edit("0.resid_mid", 1.0), conditional],
        "variants": ["steered", "random"], "return": ["receipt"]});
    let asked = GenerationRequest {
        model: model.clone(),
        max_tokens: 1,
        steer: Some(serde_json::from_value(steer).expect("a steer field")),
        logprobs: None,
        ..request(&[&prompt])
    };
    for choice in answer(&catalog, &asked).choices {
        assert_eq!(touched(&choice, 0).len(), prompt.len());
        assert_eq!(touched(&choice, 1), [0usize; 0], "{:?}", choice.variant);
    }
}
