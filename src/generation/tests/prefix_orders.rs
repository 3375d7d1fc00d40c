//! Requests of every kind, again and in any order: with what earlier ones left they are answered as if there were
//! nothing.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::pair::{answer, model, steered};
use super::prefixes::{CONTEXT, Served, assert_equal, catalog, edit, edited, other, plain, text};
use super::scheduling::{Keeper, submit};
use crate::generation::capacity::Capacity;
use crate::generation::request::{Generation, GenerationRequest};
use crate::generation::scheduler::Scheduler;

/// Requests of every kind for a prompt, each with the tokens that need not be run when it is repeated, if the prompt
/// has fifty.
fn kinds(prompt: &[u32]) -> Vec<(&'static str, GenerationRequest, usize)> {
    let (length, second) = (prompt.len(), other(prompt));
    let half = json!({"prompt": [[length * 2 / 5, null]]});
    let native = |request: GenerationRequest| GenerationRequest {
        model: model("sparse"),
        ..request
    };
    let patch = |to: &[u32], read: &str| {
        let to = json!({"prompt": to, "align": "end"});
        edited(
            prompt,
            json!({"op": "patch", "value": null, "to": to, "read": read}),
        )
    };
    let with = |fields: Value| {
        let mut steer = json!({"edits": [edit(json!({"at": half.clone()}))]});
        for (name, value) in fields.as_object().expect("an object") {
            steer[name] = value.clone();
        }
        steered(&[prompt], steer)
    };
    let condition = |feature: Value| json!({"all": [{"feature": feature, "gt": -0.5}]});
    let inside = json!({"node": "0.mlp.post_act", "channel": 3});
    let vector: Vec<f64> = (0..16).map(|at| f64::from(at % 5) - 2.0).collect();
    let direction = json!({"site": "1.resid_mid", "vector": vector});
    let longer = [&text(20)[..], &second].concat();
    vec![
        ("plain", plain(prompt, |_| {}), 48),
        (
            "sampled",
            plain(prompt, |request| {
                (request.n, request.sampling.temperature) = (3, 1.2)
            }),
            48,
        ),
        (
            "echoed",
            plain(prompt, |request| {
                (request.echo, request.logprobs) = (true, None)
            }),
            48,
        ),
        ("scored", plain(prompt, |request| request.echo = true), 0),
        (
            "prompt alone",
            plain(prompt, |request| request.max_tokens = 0),
            48,
        ),
        ("sparse", native(plain(prompt, |_| {})), 48),
        ("steered natively", native(edited(prompt, json!({}))), 48),
        (
            "natively under a condition",
            native(edited(prompt, json!({"when": condition(inside.clone())}))),
            48,
        ),
        ("natively patched", native(patch(&second, "sparse")), 48),
        (
            "add",
            edited(prompt, json!({"op": "add", "value": 1.5})),
            48,
        ),
        ("set", edited(prompt, json!({})), 48),
        (
            "set in its second part",
            edited(prompt, json!({"at": half})),
            48,
        ),
        (
            "read by the encoder",
            edited(prompt, json!({"read": "encoder"})),
            48,
        ),
        (
            "into the sublayer",
            edited(
                prompt,
                json!({"feature": {"node": "1.attn.act_in", "channel": 2}, "write": "sublayer"}),
            ),
            48,
        ),
        (
            "a direction",
            edited(prompt, json!({"feature": direction.clone(), "op": "add"})),
            48,
        ),
        (
            "under a condition on a direction behind an edit",
            steered(
                &[prompt],
                json!({"edits": [
                    edit(json!({"feature": {"node": "0.resid_mid", "channel": 1}, "op": "add", "value": 1})),
                    edit(json!({"feature": direction, "op": "add", "when": condition(direction.clone())}))
                ]}),
            ),
            48,
        ),
        ("patched", patch(&second, "sparse"), 48),
        ("patched by the encoder", patch(&second, "encoder"), 48),
        // A block of the counterfactual's thirty tokens, which begin beside the prompt's twentieth.
        (
            "patched from a shorter text",
            patch(&second[length * 2 / 5..], "sparse"),
            36,
        ),
        // Four blocks of seventy, twenty of which stand before the prompt.
        ("patched from a longer text", patch(&longer, "encoder"), 44),
        (
            "inside a sublayer",
            edited(prompt, json!({"feature": inside})),
            48,
        ),
        (
            "inside a sublayer and patched",
            steered(
                &[prompt],
                json!({"edits": [
                    edit(json!({"feature": {"node": "1.attn.v", "channel": 3}, "op": "add", "value": 1})),
                    edit(json!({"op": "patch", "value": null, "to": {"prompt": second}}))
                ]}),
            ),
            48,
        ),
        (
            "a sweep",
            edited(prompt, json!({"strength": [0.5, 1.0]})),
            48,
        ),
        (
            "with a baseline",
            with(json!({"variants": ["steered", "baseline"]})),
            48,
        ),
        // A block before the first token that is touched; a receipt needs no more of what is before it.
        (
            "with controls",
            with(json!({"variants": ["steered", "random", "random_feature"]})),
            16,
        ),
        ("with a receipt", with(json!({"return": ["receipt"]})), 20),
        (
            "with activations",
            with(json!({"return": ["activations"]})),
            0,
        ),
    ]
}

#[test]
fn a_repeated_request_has_the_bits_of_the_first() {
    let prompt = text(50);
    for prefill_tokens in [512, 7] {
        for (name, request, expected) in kinds(&prompt) {
            let mut served = Served::new(Capacity {
                prefill_tokens,
                ..Capacity::default()
            });
            assert_eq!(served.cached(&request), 0, "{name}, first");
            assert_eq!(served.cached(&request), expected, "{name}, again");
        }
    }
}

/// Prompts that begin alike, each for all kinds of requests, with their answers from nothing.
fn many_requests(generator: &mut ChaCha8Rng) -> Vec<(String, GenerationRequest, Generation)> {
    let mut all = Vec::new();
    for prompt in 0..5 {
        let length = generator.random_range(1..60);
        let parts = generator.random_range(0..=length);
        let mut tokens = text(length);
        for id in &mut tokens[parts..] {
            *id = generator.random_range(0..251);
        }
        for (name, mut request, _) in kinds(&tokens) {
            request.max_tokens = generator.random_range(0..20).min(CONTEXT - length - 20);
            request.cache_salt = generator.random_bool(0.2).then(|| "salt".to_owned());
            let cold = answer(&catalog(), &request);
            all.push((
                format!("prompt {prompt} of {length}, {name}"),
                request,
                cold,
            ));
        }
    }
    all
}

/// Whoever comes when, is given up or runs beside whom, with whatever room, is answered as if there were no cache.
#[test]
fn no_order_of_requests_changes_an_answer() {
    let mut generator = ChaCha8Rng::seed_from_u64(20);
    let catalog = catalog();
    let requests = many_requests(&mut generator);
    let mut hits = 0;
    for round in 0..12 {
        let capacity = Capacity {
            sequences: generator.random_range(4..20),
            prefill_tokens: generator.random_range(1..80),
            waiting: 1000,
            ..Capacity::default()
        };
        let most = [20_000, 100_000, 1 << 20, 1 << 30][round % 4];
        let mut scheduler = Scheduler::keeping(capacity, most);
        let mut waiting: Vec<(Keeper, usize)> = Vec::new();
        for _ in 0..60 {
            let which = generator.random_range(0..requests.len());
            waiting.push((submit(&mut scheduler, &catalog, &requests[which].1), which));
            if generator.random_bool(0.1) {
                let leaving = generator.random_range(0..waiting.len());
                waiting[leaving].0.gone.set(true);
            }
            for _ in 0..generator.random_range(0..6) {
                scheduler.step();
                assert!(scheduler.kept().bytes <= most);
            }
            if generator.random_bool(0.02) {
                scheduler.renew_caches();
            }
        }
        while !scheduler.is_idle() {
            scheduler.step();
        }
        for (keeper, which) in waiting {
            let (name, _, cold) = &requests[which];
            match (keeper.taken(), keeper.gone.get()) {
                (Ok(found), _) => assert_equal(&found, cold, name),
                (Err(_), true) => {}
                (Err(error), false) => panic!("{name}: {error}"),
            }
        }
        hits += scheduler.kept().hit_tokens;
    }
    assert!(hits > 1000, "{hits} tokens were taken up");
}
