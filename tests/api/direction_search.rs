//! Directions from contrast prompts: what is found is held against what can be computed by other addresses.

use serde_json::{Value, json};

use crate::client::Server;
use crate::directions::WIDTH;
use crate::tiny_pair::REFERENCE_LENGTH;

/// Prompts that open a string with a single quote, and with a double one.
pub const POSITIVE: [&str; 5] = ["x = 'a", "print('b", "y = ['c", "f('d", "z = {'e"];
pub const NEGATIVE: [&str; 5] = ["x = \"a", "print(\"b", "y = [\"c", "f(\"d", "z = {\"e"];

/// What the stream of `site` holds at the last token of a prompt.
fn last_of(server: &Server, prompt: &str, site: &str) -> Vec<f64> {
    let asked = json!({"model": "tiny", "prompt": prompt, "nodes": [site]});
    let answer = server.post("/v1/activations", &asked).ok();
    let rows = answer["nodes"][site]["values"].as_array().unwrap();
    let row = rows.last().unwrap().as_array().unwrap().iter();
    row.map(|value| value.as_f64().unwrap()).collect()
}

#[test]
fn a_direction_is_found_from_prompts_and_checked_on_others() {
    let server = Server::new();
    let body = json!({
        "model": "tiny", "positive": POSITIVE, "negative": NEGATIVE, "sites": ["1.resid_mid", "1.resid_in"],
        "strengths": [0.5, -0.25], "answers": {"positive": 5, "negative": 9}, "seed": 3,
        "register": {"id": "quotes", "description": "Single ones"}
    });
    let found = server.post("/v1/features/direction", &body).ok();
    assert_eq!(
        found["prompts"],
        json!({"positive": 4, "negative": 4, "held_out_positive": 1, "held_out_negative": 1})
    );
    assert_eq!(
        (&found["measure"], &found["method"], &found["positions"]),
        (
            &json!("answer_tokens"),
            &json!("difference_of_means"),
            &json!("last")
        )
    );
    // The fourth of either kind is held out.
    for (site, data) in ["1.resid_mid", "1.resid_in"]
        .iter()
        .zip(found["data"].as_array().unwrap())
    {
        assert_eq!(data["site"], *site);
        let mut expected = vec![0.0; WIDTH];
        for index in [0, 1, 2, 4] {
            let (positive, negative) = (
                last_of(&server, POSITIVE[index], site),
                last_of(&server, NEGATIVE[index], site),
            );
            for ((sum, one), other) in expected.iter_mut().zip(positive).zip(negative) {
                *sum += (one - other) / 4.0;
            }
        }
        for (value, expected) in data["vector"].as_array().unwrap().iter().zip(&expected) {
            assert!((value.as_f64().unwrap() - expected).abs() < 1e-5, "{site}");
        }
        // Projections of the held-out ones, by hand.
        let length = expected
            .iter()
            .map(|value| value * value)
            .sum::<f64>()
            .sqrt();
        let projected = |prompt: &str| {
            let row = last_of(&server, prompt, site);
            row.iter().zip(&expected).map(|(a, b)| a * b).sum::<f64>() / length
        };
        let separation = &data["separation"];
        let (positive, negative) = (projected(POSITIVE[3]), projected(NEGATIVE[3]));
        let threshold = separation["threshold"].as_f64().unwrap();
        assert!((separation["positive_mean"].as_f64().unwrap() - positive).abs() < 1e-4);
        assert!((separation["negative_mean"].as_f64().unwrap() - negative).abs() < 1e-4);
        let right = f64::from(u8::from(positive > threshold) + u8::from(negative <= threshold));
        assert_eq!(separation["accuracy"], right / 2.0);

        // The effect is that of an edit in units of the residual, at every token.
        let odds = |strength: f64| {
            let prompts = [POSITIVE[3], NEGATIVE[3]].iter();
            let of_prompts = prompts.map(|prompt| {
                let edit = json!({"feature": {"site": site, "vector": data["vector"]}, "op": "add",
                                  "value": strength, "unit": "residual"});
                let asked = json!({"model": "tiny", "prompt": prompt, "logits": true, "steer": {"edits": [edit]}});
                let answer = server.post("/v1/activations", &asked).ok();
                let last = answer["logits"].as_array().unwrap().last().unwrap().clone();
                last[5].as_f64().unwrap() - last[9].as_f64().unwrap()
            });
            of_prompts.sum::<f64>() / 2.0
        };
        let baseline = odds(0.0);
        assert!((found["baseline"].as_f64().unwrap() - baseline).abs() < 1e-4);
        for (effect, strength) in data["effects"].as_array().unwrap().iter().zip([0.5, -0.25]) {
            assert_eq!(effect["strength"], strength);
            let expected = odds(strength) - baseline;
            let told = effect["effect"].as_f64().unwrap();
            assert!(
                (told - expected).abs() < 1e-3,
                "{site} {strength}: {told} {expected}"
            );
            assert!(
                effect["random_std"].as_f64().unwrap() > 0.0,
                "ten random ones are ten"
            );
            assert!(effect["random_exceeded"].as_u64().unwrap() <= 10);
        }
    }
    assert_eq!(found["registered"]["id"], "quotes");
    let detail = server.get("/v1/features/quotes").ok();
    assert_eq!(
        detail["source"],
        json!({"kind": "contrast", "method": "difference_of_means", "positions": "last", "positive": 4, "negative": 4})
    );
    assert_eq!(detail["directions"][0]["site"], "1.resid_in");
    assert_eq!(
        detail["directions"][0]["vector"],
        found["data"][1]["vector"]
    );
    assert_eq!(
        detail["directions"][0]["stats"]["tokens"],
        10 * REFERENCE_LENGTH
    );
    // Whoever asks again hears the same.
    let mut again = body.clone();
    again.as_object_mut().unwrap().remove("register");
    let same = server.post("/v1/features/direction", &again).ok();
    assert_eq!(same["data"], found["data"]);
    again["seed"] = json!(4);
    let other = server.post("/v1/features/direction", &again).ok();
    assert_eq!(other["data"][0]["vector"], found["data"][0]["vector"]);
    assert_ne!(other["data"][0]["effects"], found["data"][0]["effects"]);
    server.post("/v1/features/direction", &body).is_error(
        400,
        Some("register.id"),
        Some("already_exists"),
    );
}

#[test]
fn prompts_may_have_answers_and_principal_components_have_pairs() {
    let server = Server::new();
    let with_answers = |texts: [&str; 5], answer: &str| -> Value {
        let prompts = texts
            .iter()
            .map(|text| json!({"prompt": text, "answer": answer}));
        prompts.collect()
    };
    let body = json!({
        "model": "tiny", "positive": with_answers(POSITIVE, "')\n"), "negative": with_answers(POSITIVE, "\")\n"),
        "sites": ["final_resid"], "method": "pca", "strengths": [0.5]
    });
    let found = server.post("/v1/features/direction", &body).ok();
    assert_eq!(
        (&found["measure"], &found["positions"], &found["method"]),
        (&json!("answers"), &json!("answer"), &json!("pca"))
    );
    let data = &found["data"][0];
    let explained = data["explained"].as_f64().unwrap();
    assert!(explained > 0.0 && explained <= 1.0, "{explained}");
    // Without any change: the mean log-probability of the answers' tokens, by a completion that repeats its prompt.
    let scored = |answer: &str| {
        let text = format!("{}{answer}", POSITIVE[3]);
        let asked =
            json!({"model": "tiny", "prompt": text, "max_tokens": 0, "echo": true, "logprobs": 0});
        let choice = server.post("/v1/completions", &asked).ok()["choices"][0].clone();
        let starts = choice["logprobs"]["text_offset"].as_array().unwrap().iter();
        let probabilities = choice["logprobs"]["token_logprobs"]
            .as_array()
            .unwrap()
            .iter();
        let of_answer: Vec<f64> = starts
            .zip(probabilities)
            .filter(|(start, _)| start.as_u64().unwrap() as usize >= POSITIVE[3].len())
            .map(|(_, probability)| probability.as_f64().unwrap())
            .collect();
        of_answer.iter().sum::<f64>() / of_answer.len() as f64
    };
    let baseline = scored("')\n") - scored("\")\n");
    let told = found["baseline"].as_f64().unwrap();
    assert!((told - baseline).abs() < 1e-4, "{told} {baseline}");
    // Token ids say the same as texts, and what the model goes on with is a measure of its own.
    let ids = |text: &str| {
        let asked = json!({"model": "tiny", "prompt": text});
        server.post("/v1/tokenize", &asked).ok()["tokens"].clone()
    };
    let plain = json!({
        "model": "tiny", "positive": POSITIVE, "negative": NEGATIVE, "sites": ["1.resid_in"], "strengths": [0.3],
        "held_out": {"positive": ["a = 'b"], "negative": ["a = \"b", "c = \"d"]}, "positions": "all"
    });
    let mut as_ids = plain.clone();
    for (field, texts) in [("positive", POSITIVE), ("negative", NEGATIVE)] {
        as_ids[field] = texts.iter().map(|text| ids(text)).collect();
    }
    let found = server.post("/v1/features/direction", &plain).ok();
    assert_eq!(found["measure"], "next_token");
    assert_eq!(found["prompts"]["positive"], 5);
    assert_eq!(found["prompts"]["held_out_negative"], 2);
    assert_eq!(server.post("/v1/features/direction", &as_ids).ok(), found);
    // Nothing is measured where no strength is given.
    as_ids["strengths"] = json!([]);
    let found = server.post("/v1/features/direction", &as_ids).ok();
    assert_eq!(
        (&found["baseline"], &found["data"][0]["effects"]),
        (&Value::Null, &json!([]))
    );
}

#[test]
fn a_search_that_cannot_be_is_refused() {
    let server = Server::new();
    let body = json!({
        "model": "tiny", "positive": POSITIVE, "negative": NEGATIVE, "sites": ["1.resid_in"], "strengths": []
    });
    let with = |changes: Value| {
        let mut body = body.clone();
        body.as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        body
    };
    let answered = json!({"prompt": "x", "answer": " y"});
    let held = |positive: Value| json!({"held_out": {"positive": positive, "negative": ["x"]}});
    for (changes, param) in [
        (json!({"model": "tiny-sparse"}), "model"),
        (json!({"positive": []}), "positive"),
        (json!({"positive": ["x"]}), "positive"),
        (json!({"negative": vec!["x"; 257]}), "negative"),
        (held(json!([])), "held_out.positive"),
        (json!({"positive": ["x", "y"], "method": "pca"}), "negative"),
        (json!({"positive": [[1, 2], [3, 320]]}), "positive[1]"),
        (json!({"positive": ["x", []]}), "positive[1]"),
        (
            json!({"positive": ["x", "y".repeat(100_000)]}),
            "positive[1]",
        ),
        (json!({"positive": ["x", vec![1; 65]]}), "positive[1]"),
        (json!({"positive": ["x", answered]}), "positive[1]"),
        (
            json!({"positive": [answered, answered], "negative": [answered, {"prompt": "x", "answer": ""}]}),
            "negative[1]",
        ),
        (
            json!({"positive": [answered, answered], "negative": [{"prompt": [], "answer": [1]}, answered]}),
            "negative[0].prompt",
        ),
        (
            json!({"positive": [answered, answered], "negative": [{"prompt": "x", "answer": [1]}, answered]}),
            "negative[0]",
        ),
        (held(json!([answered])), "held_out.positive[0]"),
        (json!({"sites": []}), "sites"),
        (json!({"sites": ["1.resid_in", "0.attn.q"]}), "sites[1]"),
        (json!({"sites": ["1.resid_in", "1.resid_in"]}), "sites[1]"),
        (json!({"method": "mean"}), "method"),
        (json!({"positions": "answer"}), "positions"),
        (json!({"strengths": [0.1, 11]}), "strengths[1]"),
        (json!({"strengths": vec![0.1; 17]}), "strengths"),
        (
            json!({"answers": {"positive": 5, "negative": 5}}),
            "answers.negative",
        ),
        (
            json!({"answers": {"positive": 320, "negative": 5}}),
            "answers.positive",
        ),
        (json!({"texts": ["x"]}), "texts"),
        (json!({"register": {"id": "contrast"}}), "register.id"),
        (
            json!({"register": {"id": "shipped_feature"}}),
            "register.id",
        ),
        (json!({"register": {"id": "x"}, "texts": []}), "texts"),
        // Nothing tells them apart.
        (json!({"negative": POSITIVE}), "positive"),
        (json!({"negative": POSITIVE, "method": "pca"}), "positive"),
    ] {
        let answer = server.post("/v1/features/direction", &with(changes.clone()));
        assert_eq!(answer.status, 400, "{changes}: {}", answer.body);
        assert_eq!(
            answer.json()["error"]["param"],
            param,
            "{changes}: {}",
            answer.body
        );
    }
    server
        .post("/v1/features/direction", &with(json!({"model": "other"})))
        .is_error(404, Some("model"), Some("model_not_found"));
    assert_eq!(
        server.get("/v1/features").ok()["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}
