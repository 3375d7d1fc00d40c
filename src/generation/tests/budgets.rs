//! What a request may keep until it is answered: counted before it exists, against a limit that is named.

use serde_json::{Value, json};

use super::forward::PROMPT;
use super::pair::{D_SPARSE, request, steered};
use crate::generation::request::{EngineError, GenerationRequest};
use crate::generation::scheduler::generate;

fn outcome(asked: &GenerationRequest) -> Result<usize, (String, String)> {
    match generate(asked, |_| true) {
        Ok(answer) => Ok(answer.choices.len()),
        Err(EngineError::Invalid { message, param }) => Err((message, param.unwrap_or_default())),
        Err(other) => panic!("{other}"),
    }
}

fn group(edits: usize, returns: Value) -> GenerationRequest {
    let channels: Vec<Value> = (0..D_SPARSE)
        .map(|channel| json!({"channel": channel, "weight": 1}))
        .collect();
    let edit = json!({"feature": {"node": "1.resid_in", "channels": channels}, "op": "add", "value": 0.01});
    let steer =
        json!({"edits": vec![edit; edits], "return": returns, "variants": ["steered", "random"]});
    steered(&[PROMPT], steer)
}

#[test]
fn receipts_and_activations_are_budgeted_by_edits_arms_channels_and_tokens() {
    let within = |asked: GenerationRequest, answer_bytes: usize| {
        outcome(&GenerationRequest {
            answer_bytes: Some(answer_bytes),
            ..asked
        })
    };
    let wide = || group(64, json!(["receipt", "activations"]));
    let (message, param) = within(wide(), 100_000).expect_err("a refusal");
    assert_eq!(param, "steer.return");
    assert!(message.contains("limits.max_answer_bytes"), "{message}");
    assert_eq!(within(wide(), 4 << 20), Ok(2));
    // Each of what is multiplied counts: fewer edits, arms, or things to return fit.
    assert_eq!(within(group(1, json!(["receipt"])), 100_000), Ok(2));
    assert_eq!(within(group(64, json!([])), 100_000), Ok(2));
    let many = GenerationRequest {
        n: 32,
        ..group(1, json!(["receipt"]))
    };
    assert!(within(many, 100_000).is_err());
}

#[test]
fn log_probabilities_are_budgeted_by_tokens_and_alternatives() {
    let ask = |logprobs: Option<usize>, n: usize| {
        outcome(&GenerationRequest {
            logprobs,
            n,
            answer_bytes: Some(20_000),
            ..request(&[PROMPT])
        })
    };
    let (message, param) = ask(Some(20), 8).expect_err("a refusal");
    assert_eq!(param, "logprobs");
    assert!(message.contains("limits.max_answer_bytes"), "{message}");
    assert_eq!(ask(Some(0), 8), Ok(8));
    assert_eq!(ask(Some(20), 1), Ok(1));
    assert_eq!(ask(None, 64), Ok(64));
}
