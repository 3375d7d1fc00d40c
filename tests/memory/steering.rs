//! What steered requests and log-probabilities cost a server.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::MOST_ABOVE_IDLE;
use crate::server::Server;

/// Edits as many and as wide as there can be: 64, of 1,023 neurons and of a whole residual stream in turn.
fn widest(variants: &Value, strength: &Value, returns: &Value) -> Value {
    let edit = |index: usize, strength: &Value| {
        let (node, width) = [("0.mlp.post_act", 1023), ("1.resid_in", 384)][index % 2];
        let channels: Vec<Value> = (0..width)
            .map(|channel| json!({"channel": channel, "weight": 1}))
            .collect();
        json!({"feature": {"node": node, "channels": channels}, "op": "add", "value": 1e-6, "strength": strength})
    };
    let mut edits: Vec<Value> = (0..63).map(|index| edit(index, &json!(1))).collect();
    edits.push(edit(63, strength));
    json!({"edits": edits, "variants": variants, "return": returns})
}

#[test]
fn log_probabilities_of_many_tokens_are_bounded() {
    let server = Server::start(&[]);
    let prompts: Vec<Vec<u32>> = (0..240u32)
        .map(|first| (0..511u32).map(|at| (first + at * 7) % 2000).collect())
        .collect();
    let context = {
        let (_, models) = server.get("/v1/models/tinypython");
        let model: Value = serde_json::from_str(&models).expect("JSON");
        model["context_length"]
            .as_u64()
            .map_or(256, |length| length as usize)
    };
    let prompts: Vec<&[u32]> = prompts
        .iter()
        .map(|prompt| &prompt[..prompt.len().min(context)])
        .collect();
    for logprobs in [0, 5] {
        let above = server.peak_above_idle(|| {
            let body = json!({"model": "tinypython", "prompt": prompts, "max_tokens": 0, "echo": true,
                "n": 2, "logprobs": logprobs});
            let (status, answer) = server.post("/v1/completions", &body);
            let told = answer.len();
            assert!(matches!(status, 200 | 400), "{status}");
            assert!(status == 200 || answer.contains("limits.max_answer_bytes"), "{told}");
            assert!(logprobs > 0 || status == 200, "{}", &answer[..told.min(500)]);
        });
        assert!(above <= MOST_ABOVE_IDLE, "{logprobs}: {above} bytes");
    }
}

#[test]
fn receipts_of_many_channels_are_refused_before_they_exist() {
    let server = Server::start(&[]);
    let strengths: Vec<f64> = (0..60).map(|at| f64::from(at) / 60.0).collect();
    let variants = json!(["steered", "random", "random_feature"]);
    let returns = json!(["receipt", "activations"]);
    let steer = widest(&variants, &json!(strengths), &returns);
    let above = server.peak_above_idle(|| {
        let body = json!({"model": "tinypython", "prompt": "print(\"hello", "max_tokens": 8, "steer": steer});
        let (status, answer) = server.post("/v1/completions", &body);
        assert_eq!(status, 400, "{}", &answer[..answer.len().min(500)]);
        assert!(answer.contains("limits.max_answer_bytes"), "{answer}");
    });
    assert!(above <= MOST_ABOVE_IDLE, "{above} bytes");
}

#[test]
fn the_widest_edits_take_little_memory_and_hold_up_nobody() {
    let server = Server::start(&[]);
    let strengths: Vec<f64> = (0..32).map(|at| f64::from(at) / 32.0).collect();
    let steer = widest(&json!(["steered"]), &json!(strengths), &json!([]));
    let prompt = "def compute(first, second):\n    total = first + second\n".repeat(8);
    let done = AtomicBool::new(false);
    let above = server.peak_above_idle(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let body = json!({"model": "tinypython", "prompt": prompt, "max_tokens": 4, "steer": steer});
                let (status, answer) = server.post("/v1/completions", &body);
                done.store(true, Ordering::Release);
                assert_eq!(status, 200, "{}", &answer[..answer.len().min(500)]);
            });
            while !done.load(Ordering::Acquire) {
                let (status, answer) = server.get("/readyz");
                assert_eq!(status, 200, "{answer}");
                let body = json!({"model": "tinypython", "prompt": "x = ", "max_tokens": 1});
                let (status, answer) = server.post("/v1/completions", &body);
                assert_eq!(status, 200, "{answer}");
            }
        });
    });
    assert!(above <= MOST_ABOVE_IDLE, "{above} bytes");
}
