//! What cannot be done is refused before anything runs, and the refusal names the field.

use serde_json::{Value, json};

use super::pair::{
    CONTEXT, D_DENSE, D_SPARSE, UNREAD, answer, catalog, model, refusal, request, steered,
};
use crate::generation::request::{EngineError, GenerationRequest};

const PROMPT: &[u32] = &[40, 257, 33, 260, 101, 45];

fn fault(error: EngineError) -> (String, String) {
    match error {
        EngineError::Invalid { message, param } => (param.unwrap_or_default(), message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn edits_too_large_to_compute_with_are_refused_once_they_are_found_out() {
    let catalog = catalog();
    let edit = json!({"feature": {"node": "1.resid_in", "channel": 4}, "op": "set", "value": 1e38});
    // Scored, a prompt has log-probabilities that must be numbers too.
    for max_tokens in [2, 0] {
        let request = GenerationRequest {
            max_tokens,
            echo: max_tokens == 0,
            logprobs: Some(0),
            ..steered(
                &[PROMPT],
                json!({"edits": [edit], "variants": ["baseline", "steered"]}),
            )
        };
        let (param, message) = fault(refusal(&catalog, &request));
        assert_eq!(param, "steer.edits", "{message}");
    }
}

#[test]
fn every_faulty_edit_is_refused_with_its_field() {
    let catalog = catalog();
    let channel = json!({"node": "1.attn.act_in", "channel": 2});
    let with = |key: &str, value: Value| {
        let mut edit = json!({"feature": channel, "op": "add", "value": 1});
        edit[key] = value;
        edit
    };
    let group = |channels: Value| json!({"node": "1.resid_in", "channels": channels});
    let vector = |site: &str, vector: Vec<f32>| json!({"site": site, "vector": vector});
    let patch = |to: Value| json!({"feature": channel, "op": "patch", "to": to});
    let when = |tests: Value| with("when", json!({"all": tests}));
    let unit = |feature: &Value, unit: &str| json!({"feature": feature, "op": "add", "value": 1, "unit": unit});
    let cases = [
        // Names.
        (with("feature", json!("quote_typ")), "feature"),
        (
            with("feature", json!({"node": "1.attn.in", "channel": 2})),
            "feature.node",
        ),
        (
            with("feature", json!({"node": "2.attn.act_in", "channel": 2})),
            "feature.node",
        ),
        (
            with("feature", vector("2.resid_mid", vec![1.0; D_DENSE])),
            "feature.site",
        ),
        (
            with("feature", vector("1.attn.act_in", vec![1.0; D_DENSE])),
            "feature.site",
        ),
        // Channels, groups and vectors.
        (
            with(
                "feature",
                json!({"node": "1.resid_in", "channel": D_SPARSE}),
            ),
            "feature",
        ),
        (
            with(
                "feature",
                json!({"node": "1.attn.act_in", "channel": D_SPARSE}),
            ),
            "feature",
        ),
        (
            with(
                "feature",
                json!({"node": "0.attn.act_in", "channel": UNREAD}),
            ),
            "feature",
        ),
        (with("feature", group(json!([]))), "feature.channels"),
        (
            with(
                "feature",
                group(json!([{"channel": 1, "weight": 1}, {"channel": 1, "weight": 1}])),
            ),
            "feature.channels",
        ),
        (
            with("feature", group(json!([{"channel": 1, "weight": 0}]))),
            "feature.channels",
        ),
        (
            with("feature", vector("1.resid_in", vec![1.0; D_DENSE + 1])),
            "feature.vector",
        ),
        (
            with("feature", vector("1.resid_in", vec![0.0; D_DENSE])),
            "feature.vector",
        ),
        // Arguments of operations.
        (json!({"feature": channel, "op": "add"}), "value"),
        (json!({"feature": channel, "op": "set"}), "value"),
        (json!({"feature": channel, "op": "scale"}), "value"),
        (json!({"feature": channel, "op": "clamp", "min": 0}), "max"),
        (
            json!({"feature": channel, "op": "clamp", "min": 1, "max": 0}),
            "min",
        ),
        (json!({"feature": channel, "op": "patch"}), "to"),
        (json!({"feature": channel, "op": "swap"}), "with"),
        (json!({"feature": channel, "op": "swap", "with": 2}), "with"),
        (
            json!({"feature": channel, "op": "swap", "with": 99}),
            "with",
        ),
        (
            json!({"feature": channel, "op": "swap", "with": D_SPARSE}),
            "feature",
        ),
        (json!({"feature": "depth", "op": "swap", "with": 2}), "with"),
        (
            json!({"feature": channel, "op": "scale", "value": 2, "unit": "std"}),
            "unit",
        ),
        (
            json!({"feature": channel, "op": "ablate", "value": 2}),
            "value",
        ),
        (
            json!({"feature": channel, "op": "ablate", "to": {"value": 2}}),
            "to",
        ),
        (
            json!({"feature": "depth", "op": "ablate", "to": "mean"}),
            "to",
        ),
        (patch(json!("zero")), "to"),
        (with("to", json!("zero")), "to"),
        (with("with", json!(3)), "with"),
        (with("min", json!(3)), "min"),
        // Units.
        (unit(&channel, "residual"), "unit"),
        (unit(&json!("depth"), "std"), "unit"),
        (
            unit(&json!({"node": "0.mlp.act_in", "channel": 1}), "max"),
            "unit",
        ),
        (
            unit(&vector("1.resid_in", vec![1.0; D_DENSE]), "std"),
            "unit",
        ),
        // Strengths.
        (with("strength", json!(10.5)), "strength"),
        (with("strength", json!([1, -11])), "strength"),
        (with("strength", json!([])), "strength"),
        (with("strength", json!(vec![1; 65])), "strength"),
        // Counterfactuals.
        (patch(json!({})), "to"),
        (patch(json!({"prompt": "a", "value": 1})), "to"),
        (patch(json!({"value": 1, "align": "end"})), "to.align"),
        (patch(json!({"prompt": [1, 2, 3]})), "to.prompt"),
        (patch(json!({"prompt": [1, 2, 3, 4, 5, 9999]})), "to.prompt"),
        (
            patch(json!({"prompt": [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]})),
            "to.prompt",
        ),
        (
            patch(json!({"prompt": vec![1; CONTEXT + 1], "align": "end"})),
            "to.prompt",
        ),
        (patch(json!({"prompt": "", "align": "end"})), "to.prompt"),
        // Positions and conditions.
        (with("at", json!({"prompt": [6]})), "at.prompt[0]"),
        (with("at", json!({"prompt": [0, [2, -9]]})), "at.prompt"),
        (with("at", json!({"generation": [-1]})), "at.generation"),
        (when(json!([])), "when.all"),
        (when(json!([{"feature": "depth"}])), "when.all[0]"),
        (
            when(json!([{"feature": "dept", "gt": 1}])),
            "when.all[0].feature",
        ),
        (
            when(json!([{"feature": vector("final_resid", vec![1.0; D_DENSE]), "gt": 1}])),
            "when.all[0].feature",
        ),
        // Reading and writing.
        (
            json!({"feature": {"node": "1.attn.v", "channel": 1}, "op": "add", "value": 1, "read": "encoder"}),
            "read",
        ),
        (
            json!({"feature": {"node": "1.attn.v", "channel": 1}, "op": "add", "value": 1, "write": "sublayer"}),
            "write",
        ),
        (
            json!({"feature": {"node": "1.resid_in", "channel": 1}, "op": "add", "value": 1, "write": "sublayer"}),
            "write",
        ),
        (
            json!({"feature": vector("1.resid_in", vec![1.0; D_DENSE]), "op": "add", "value": 1, "write": "sublayer"}),
            "write",
        ),
        (
            json!({"feature": vector("1.resid_in", vec![1.0; D_DENSE]), "op": "add", "value": 1, "read": "sparse"}),
            "read",
        ),
        (
            json!({"feature": vector("1.resid_in", vec![1.0; D_DENSE]), "op": "swap", "with": 1}),
            "with",
        ),
        (
            json!({"feature": {"node": "1.attn.v", "channel": 1}, "op": "add", "value": 1,
            "when": {"all": [{"feature": vector("0.resid_in", vec![1.0; D_DENSE]), "gt": 0}]}}),
            "when.all[0].feature",
        ),
    ];
    for (edit, field) in cases {
        let good = json!({"feature": channel, "op": "add", "value": 1});
        let request = steered(&[PROMPT], json!({"edits": [good, edit]}));
        let (param, message) = fault(refusal(&catalog, &request));
        assert!(
            param.starts_with(&format!("steer.edits[1].{field}")),
            "{edit}: {param}: {message}"
        );
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    let catalog = catalog();
    let mut request = steered(
        &[PROMPT],
        json!({"edits": [{"feature": "depth", "op": "set", "value": 1}]}),
    );
    let steer = request.steer.as_mut().expect("a steer field");
    steer.edits[0].value = Some(f64::NAN);
    assert_eq!(fault(refusal(&catalog, &request)).0, "steer.edits[0].value");
}

#[test]
fn near_names_are_offered() {
    let catalog = catalog();
    let message = |feature: Value| {
        let edit = json!({"feature": feature, "op": "add", "value": 1});
        fault(refusal(
            &catalog,
            &steered(&[PROMPT], json!({"edits": [edit]})),
        ))
        .1
    };
    assert!(message(json!("quote_typ")).contains("quote_type"));
    assert!(message(json!({"node": "1.atn.act_in", "channel": 1})).contains("\"1.attn.act_in\""));
}

#[test]
fn faults_of_the_whole_field_are_refused() {
    let catalog = catalog();
    let edit = |strength: Value| json!({"feature": "depth", "op": "add", "value": 1, "strength": strength});
    for (steer, field) in [
        (json!({"edits": vec![edit(json!(1)); 65]}), "steer.edits"),
        (
            json!({"edits": [edit(json!([1])), edit(json!([2]))]}),
            "steer.edits[1].strength",
        ),
        (json!({"variants": []}), "steer.variants"),
        (
            json!({"variants": ["steered", "steered"]}),
            "steer.variants",
        ),
        (
            json!({"edits": [edit(json!(1))], "variants": ["random_feature"]}),
            "steer.variants",
        ),
    ] {
        assert_eq!(
            fault(refusal(&catalog, &steered(&[PROMPT], steer))).0,
            field
        );
    }
}

#[test]
fn a_sparse_model_refuses_what_only_a_dense_one_has() {
    let catalog = catalog();
    let feature = json!({"node": "1.resid_in", "channel": 1});
    for (edit, field) in [
        (
            json!({"feature": feature, "op": "add", "value": 1, "write": "residual"}),
            "write",
        ),
        (
            json!({"feature": feature, "op": "add", "value": 1, "read": "encoder"}),
            "read",
        ),
        (
            json!({"feature": {"site": "1.resid_in", "vector": vec![1.0; D_DENSE]}, "op": "add", "value": 1}),
            "feature.vector",
        ),
    ] {
        let request = steered(&[PROMPT], json!({"edits": [edit]}));
        let request = GenerationRequest {
            model: model("sparse"),
            ..request
        };
        assert_eq!(
            fault(refusal(&catalog, &request)).0,
            format!("steer.edits[0].{field}")
        );
    }
}

#[test]
fn faults_of_the_request_are_refused() {
    let catalog = catalog();
    let long = vec![1; CONTEXT];
    let base = request(&[PROMPT]);
    let sampling = |change: fn(&mut crate::generation::sampling::Sampling)| {
        let mut request = base.clone();
        change(&mut request.sampling);
        request
    };
    for (request, field) in [
        (
            GenerationRequest {
                prompts: vec![],
                ..base.clone()
            },
            "prompt",
        ),
        (
            GenerationRequest {
                prompts: vec![vec![]],
                ..base.clone()
            },
            "prompt",
        ),
        (
            GenerationRequest {
                prompts: vec![vec![270]],
                ..base.clone()
            },
            "prompt",
        ),
        (request(&[&long]), "prompt"),
        (
            GenerationRequest {
                n: 0,
                ..base.clone()
            },
            "n",
        ),
        (
            GenerationRequest {
                n: 100_000,
                ..base.clone()
            },
            "n",
        ),
        (
            GenerationRequest {
                stop: vec![String::new()],
                ..base.clone()
            },
            "stop",
        ),
        (
            sampling(|sampling| sampling.temperature = -1.0),
            "temperature",
        ),
        (sampling(|sampling| sampling.top_p = -0.1), "top_p"),
        (sampling(|sampling| sampling.min_p = f64::NAN), "min_p"),
        (
            sampling(|sampling| sampling.repetition_penalty = 0.0),
            "repetition_penalty",
        ),
        (
            sampling(|sampling| {
                sampling.logit_bias.insert(270, 1.0);
            }),
            "logit_bias",
        ),
    ] {
        assert_eq!(fault(refusal(&catalog, &request)).0, field);
    }
    // A whole context can still be echoed.
    let echo = GenerationRequest {
        echo: true,
        max_tokens: 0,
        ..request(&[&long])
    };
    assert_eq!(answer(&catalog, &echo).choices[0].prompt.len(), CONTEXT);
}
