//! The arms to compare with, and the numbers that receipts give of edits.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::forward::PROMPT;
use super::pair::{answer, catalog, steered};
use crate::generation::request::{Choice, GenerationRequest};
use crate::interventions::receipt::TouchedToken;

fn logprob(choice: &Choice) -> u32 {
    let token = &choice.tokens[0];
    token.logprob.expect("a log-probability").to_bits()
}

/// Of equal prompts every control arm is a draw of its own; the steered arms are equal.
#[test]
fn every_prompt_has_random_directions_of_its_own() {
    const PROMPTS: usize = 64;
    let catalog = catalog();
    let edits = json!([
        {"feature": {"node": "1.resid_in", "channel": 3}, "op": "add", "value": 2},
        {"feature": {"node": "1.attn.act_in", "channel": 4}, "op": "add", "value": 2},
    ]);
    let ask = |variants: Value, prompts: usize| {
        let steer = json!({"edits": edits, "variants": variants});
        let asked = GenerationRequest {
            max_tokens: 1,
            ..steered(&vec![PROMPT; prompts], steer)
        };
        answer(&catalog, &asked).choices
    };
    let draws = |choices: &[Choice]| choices.iter().map(logprob).collect::<BTreeSet<u32>>().len();
    assert_eq!(draws(&ask(json!(["steered"]), PROMPTS)), 1);
    let random = ask(json!(["random"]), PROMPTS);
    assert_eq!(draws(&random), PROMPTS);
    // The first prompts' draws do not depend on how many follow.
    let few = ask(json!(["random"]), 3);
    assert_eq!(
        few.iter().map(logprob).collect::<Vec<_>>(),
        random[..3].iter().map(logprob).collect::<Vec<_>>()
    );
    // There are fewer channels than prompts, but more than one.
    assert!(draws(&ask(json!(["random_feature"]), PROMPTS)) > 8);
}

fn tokens(edits: Value) -> Vec<Vec<TouchedToken>> {
    let steer = json!({"edits": edits, "return": ["receipt"]});
    let asked = GenerationRequest {
        max_tokens: 0,
        ..steered(&[PROMPT], steer)
    };
    let choice = answer(&catalog(), &asked).choices.remove(0);
    let receipt = choice.receipt.expect("a receipt");
    receipt.edits.into_iter().map(|edit| edit.tokens).collect()
}

#[test]
fn every_edit_of_a_place_tells_its_own_change() {
    for node in ["1.attn.act_in", "1.resid_in", "0.mlp.resid_delta"] {
        let add = |channel: usize, value: f64| json!({"feature": {"node": node, "channel": channel}, "op": "add", "value": value});
        let both = tokens(json!([add(3, 2.0), add(4, 1.0), add(3, -1.0)]));
        for (index, edit) in [add(3, 2.0), add(4, 1.0), add(3, -1.0)]
            .into_iter()
            .enumerate()
        {
            let alone = tokens(json!([edit])).remove(0);
            assert_eq!(alone.len(), both[index].len());
            for (alone, beside) in alone.iter().zip(&both[index]) {
                let own = (alone.change_norm, alone.relative_change);
                assert!(own.0 > 0.0);
                assert_eq!(
                    own,
                    (beside.change_norm, beside.relative_change),
                    "{node} {index}"
                );
            }
        }
        assert_ne!(both[0][0].change_norm, both[1][0].change_norm);
    }
}

#[test]
fn edits_inside_one_sublayer_tell_the_change_of_its_output() {
    let set =
        |node: &str| json!({"feature": {"node": node, "channel": 4}, "op": "set", "value": 2});
    let both = tokens(json!([set("0.attn.v"), set("0.attn.resid_delta")]));
    let numbers = |tokens: &[TouchedToken]| -> Vec<(f32, f32)> {
        let numbers = tokens.iter();
        numbers
            .map(|token| (token.change_norm, token.relative_change))
            .collect()
    };
    assert_eq!(numbers(&both[0]), numbers(&both[1]));
    let alone = tokens(json!([set("0.attn.v")]));
    assert_ne!(numbers(&alone[0]), numbers(&both[0]));
}
