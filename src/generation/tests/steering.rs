//! What steering promises: nothing without edits, the same in any batch, and what each edit says.

use serde_json::{Value, json};

use super::forward::{OTHER, PROMPT, SetChannel, one, place, read, run};
use super::pair::{
    D_DENSE, D_SPARSE, answer, assert_near, bits, catalog, first_distribution, model, request,
    steered,
};
use crate::generation::request::{Choice, GenerationRequest};
use crate::generation::session::Session;

/// A value for every kind of place, with every way of carrying it.
fn assorted() -> Value {
    json!({"edits": [
        {"feature": {"node": "0.attn.act_in", "channel": 3}, "op": "add", "value": 1.5},
        {"feature": {"node": "0.attn.v", "channel": 4}, "op": "set", "value": 2},
        {"feature": {"node": "0.attn.resid_delta", "channel": 4}, "op": "scale", "value": -1},
        {"feature": {"node": "0.mlp.act_in", "channel": 6}, "op": "set", "value": 1, "read": "encoder"},
        {"feature": {"node": "0.mlp.post_act", "channel": 9}, "op": "add", "value": 1},
        {"feature": "depth", "op": "clamp", "min": 0.5, "max": 0.75},
        {"feature": "quote_type", "op": "add", "value": -1, "unit": "std",
         "when": {"any": [{"feature": "depth", "gt": 0.0}, {"feature": {"node": "0.resid_mid", "channel": 0}, "lt": 1}]}},
        {"feature": {"site": "final_resid", "vector": vec![0.25f32; D_DENSE]}, "op": "add", "value": 0.5,
         "unit": "residual"},
    ]})
}

/// As callers see it.
fn receipt_of(choice: &Choice) -> Value {
    serde_json::to_value(choice.receipt.as_ref().expect("a receipt")).expect("JSON")
}

#[test]
fn an_empty_edit_list_changes_no_bit() {
    let catalog = catalog();
    for model in ["dense", "sparse"] {
        let plain = GenerationRequest {
            model: super::pair::model(model),
            ..request(&[PROMPT, OTHER])
        };
        let empty = steered(
            &[PROMPT, OTHER],
            json!({"edits": [], "variants": ["steered", "baseline"]}),
        );
        let empty = answer(
            &catalog,
            &GenerationRequest {
                model: super::pair::model(model),
                ..empty
            },
        );
        let plain = answer(&catalog, &plain);
        for (index, choice) in empty.choices.iter().enumerate() {
            assert_eq!(bits(choice), bits(&plain.choices[index / 2]));
        }
    }
}

#[test]
fn a_prompt_alone_gives_what_it_gives_among_others() {
    let catalog = catalog();
    let prompts: [&[u32]; 3] = [PROMPT, &[12, 77], &[260, 3, 9, 200, 41, 42, 43, 44, 45]];
    let mut steer = assorted();
    steer["variants"] = json!(["steered", "random", "baseline"]);
    let together = answer(&catalog, &steered(&prompts, steer.clone()));
    for (index, prompt) in prompts.iter().enumerate() {
        let alone = answer(&catalog, &steered(&[prompt], steer.clone()));
        for (arm, variant) in ["steered", "random", "baseline"].into_iter().enumerate() {
            let (alone, among) = (&alone.choices[arm], &together.choices[3 * index + arm]);
            // Each prompt of a request has random directions of its own.
            let same = variant != "random" || index == 0;
            assert_eq!(bits(alone) == bits(among), same, "{index} {variant}");
        }
        assert_ne!(bits(&alone.choices[0]), bits(&alone.choices[2]));
    }
}

#[test]
fn token_by_token_is_the_whole_at_once() {
    let catalog = catalog();
    for (model, steer) in [("dense", assorted()), ("sparse", native())] {
        let stepwise = steered(&[PROMPT], steer.clone());
        let stepwise = answer(
            &catalog,
            &GenerationRequest {
                model: super::pair::model(model),
                ..stepwise
            },
        );
        let generated = &stepwise.choices[0].tokens;
        assert_eq!(generated.len(), 8);
        let whole: Vec<u32> = PROMPT
            .iter()
            .copied()
            .chain(generated.iter().map(|token| token.id))
            .collect();
        let whole = steered(&[&whole], steer);
        let whole = GenerationRequest {
            model: super::pair::model(model),
            echo: true,
            max_tokens: 0,
            ..whole
        };
        let echoed = answer(&catalog, &whole).choices.remove(0).prompt;
        for (at, token) in generated.iter().enumerate() {
            let echoed = &echoed[PROMPT.len() + at];
            assert_eq!(
                (token.id, token.logprob),
                (echoed.id, echoed.logprob),
                "token {at}"
            );
        }
    }
}

#[test]
fn an_add_that_nobody_looks_at_reads_nothing_and_does_the_same() {
    let catalog = catalog();
    let adds = |write: &str| {
        json!([
            {"feature": {"node": "0.attn.act_in", "channel": 3}, "op": "add", "value": 1.5, "write": write},
            {"feature": {"node": "0.resid_mid", "channels": [{"channel": 2, "weight": 1}, {"channel": 7, "weight": -2}]},
             "op": "add", "value": -0.7, "strength": [1, 0.3], "at": {"prompt": [-1]}},
            {"feature": {"node": "1.mlp.act_in", "channel": 9}, "op": "add", "value": 2, "read": "encoder"},
        ])
    };
    let followed = json!([
        {"feature": {"node": "0.resid_mid", "channel": 2}, "op": "add", "value": 1.5},
        {"feature": {"node": "0.resid_mid", "channel": 2}, "op": "scale", "value": 3},
    ]);
    // A write to the stream from behind a norm needs the sparse stream's size; a scale needs the value.
    for (edits, reads) in [(adds("sublayer"), 0), (adds("residual"), 1), (followed, 1)] {
        let ask = |returns: Value| {
            let steer =
                json!({"edits": edits, "variants": ["steered", "random"], "return": returns});
            steered(&[PROMPT, OTHER], steer)
        };
        let session = Session::admit(ask(json!([]))).expect("a plan");
        assert_eq!(session.needs(0).sparse, reads, "{edits}");
        let silent = answer(&catalog, &ask(json!([])));
        let recorded = answer(&catalog, &ask(json!(["receipt", "activations"])));
        for (silent, recorded) in silent.choices.iter().zip(&recorded.choices) {
            assert_eq!(bits(silent), bits(recorded), "{edits}");
        }
    }
}

/// Arms part before the sublayer that is edited, wherever in it the edit is.
#[test]
fn arms_of_a_sweep_inside_a_sublayer_are_what_each_is_alone() {
    let catalog = catalog();
    for node in [
        "0.attn.v",
        "0.attn.resid_delta",
        "0.mlp.post_act",
        "1.mlp.resid_delta",
    ] {
        let ask = |strengths: Value| {
            let edit = json!({"feature": {"node": node, "channel": 3}, "op": "set", "value": 1.5, "strength": strengths});
            let asked = steered(
                &[PROMPT],
                json!({"edits": [edit], "return": ["activations"]}),
            );
            let native = GenerationRequest {
                model: model("sparse"),
                ..asked
            };
            answer(&catalog, &native).choices
        };
        let together = ask(json!([0.5, 1, 2]));
        for (arm, strength) in together.iter().zip([0.5, 1.0, 2.0]) {
            assert_eq!(
                bits(arm),
                bits(&ask(json!(strength))[0]),
                "{node} {strength}"
            );
        }
    }
}

fn native() -> Value {
    json!({"edits": [
        {"feature": {"node": "0.attn.k", "channel": 3}, "op": "add", "value": 1.5},
        {"feature": {"node": "1.mlp.post_act", "channel": 3}, "op": "set", "value": 1.5,
         "when": {"all": [{"feature": "depth", "gt": -0.5}]}},
        {"feature": {"site": "1.resid_mid", "vector": vec![0.5f32; D_SPARSE]}, "op": "add", "value": -1},
    ]})
}

#[test]
fn strength_zero_is_the_baseline_and_a_sweep_gives_a_choice_each() {
    let catalog = catalog();
    let mut steer = assorted();
    for edit in steer["edits"].as_array_mut().expect("edits") {
        edit["strength"] = json!(0);
    }
    let none = answer(&catalog, &steered(&[PROMPT], steer.clone()));
    let baseline = answer(&catalog, &request(&[PROMPT]));
    assert_eq!(bits(&none.choices[0]), bits(&baseline.choices[0]));

    steer["edits"][0]["strength"] = json!([0, 4, -4]);
    steer["variants"] = json!(["baseline", "steered"]);
    let sweep = answer(
        &catalog,
        &GenerationRequest {
            n: 2,
            ..steered(&[PROMPT], steer)
        },
    );
    let strengths: Vec<Option<f64>> = sweep.choices.iter().map(|choice| choice.strength).collect();
    let of_a_sample = [None, Some(0.0), Some(4.0), Some(-4.0)];
    assert_eq!(strengths, [of_a_sample, of_a_sample].concat());
    assert_eq!(bits(&sweep.choices[1]), bits(&baseline.choices[0]));
    assert_ne!(bits(&sweep.choices[2]), bits(&sweep.choices[3]));
}

#[test]
fn patching_from_the_same_prompt_does_nothing() {
    let catalog = catalog();
    let baseline = answer(&catalog, &request(&[PROMPT]));
    for feature in [
        json!({"node": "1.attn.act_in", "channel": 3}),
        json!({"node": "0.attn.k", "channel": 3}),
        json!({"node": "1.resid_mid", "channel": 3}),
        json!({"site": "1.resid_mid", "vector": vec![1.0f32; D_DENSE]}),
    ] {
        let same = json!({"feature": feature, "op": "patch", "to": {"prompt": PROMPT}});
        let other =
            json!({"feature": feature, "op": "patch", "to": {"prompt": OTHER}, "strength": 4});
        assert_eq!(
            bits(&answer(&catalog, &one(same)).choices[0]),
            bits(&baseline.choices[0]),
            "{feature}"
        );
        assert_ne!(
            bits(&answer(&catalog, &one(other)).choices[0]),
            bits(&baseline.choices[0]),
            "{feature}"
        );
    }
    let mut encoder = json!({"feature": {"node": "1.mlp.act_in", "channel": 6}, "op": "patch",
        "to": {"prompt": PROMPT}, "read": "encoder"});
    assert_eq!(
        bits(&answer(&catalog, &one(encoder.clone())).choices[0]),
        bits(&baseline.choices[0])
    );
    encoder["to"]["prompt"] = json!([7, 7, 7, 7, 7, 7]);
    encoder["strength"] = json!(10);
    assert_ne!(
        bits(&answer(&catalog, &one(encoder)).choices[0]),
        bits(&baseline.choices[0])
    );
}

/// With the whole stream patched, a model goes on as from the counterfactual, generated tokens included.
#[test]
fn patching_everything_becomes_the_counterfactual() {
    let catalog = catalog();
    let everything = |width: usize| -> Vec<Value> {
        (0..width)
            .map(|channel| json!({"channel": channel, "weight": 1}))
            .collect()
    };
    let feature = json!({"node": "1.resid_in", "channels": everything(D_SPARSE)});
    let longer: Vec<u32> = [&[9u32, 8], OTHER].concat();
    for (counterfactual, align) in [(OTHER.to_vec(), "start"), (longer, "end")] {
        let to = json!({"prompt": counterfactual, "align": align});
        let patched = one(json!({"feature": feature, "op": "patch", "to": to}));
        let patched = answer(
            &catalog,
            &GenerationRequest {
                model: model("sparse"),
                ..patched
            },
        );
        let plain = GenerationRequest {
            model: model("sparse"),
            ..request(&[&counterfactual])
        };
        let plain = answer(&catalog, &plain);
        // Positional channels differ where the counterfactual is longer, and so do the first tokens' keys.
        match align {
            "start" => assert_eq!(bits(&patched.choices[0]), bits(&plain.choices[0])),
            _ => assert_eq!(patched.choices[0].tokens.len(), 8),
        }
    }
}

#[test]
fn a_sparse_model_is_edited_in_place() {
    let catalog = catalog();
    let sparse = &catalog.models["sparse"].transformer;
    for node in [
        "0.attn.act_in",
        "1.attn.v",
        "0.mlp.post_act",
        "1.resid_mid",
        "1.mlp.resid_delta",
    ] {
        let mut tap = SetChannel {
            place: place(node),
            channel: 2,
            value: 0.7,
        };
        let (values, expected) = run(sparse, PROMPT, &[node], &mut tap);
        assert!(values[0].iter().all(|row| row[2] == 0.7));
        let steer = json!({"edits": [{"feature": {"node": node, "channel": 2}, "op": "set", "value": 0.7}],
            "return": ["activations"]});
        let edited = GenerationRequest {
            model: model("sparse"),
            ..steered(&[PROMPT], steer)
        };
        assert_near(&first_distribution(&catalog, &edited, 0), &expected, 1e-5);
        let activations = answer(&catalog, &edited)
            .choices
            .remove(0)
            .activations
            .expect("activations");
        let after = &activations[0].after;
        assert_eq!(after, &vec![0.7; PROMPT.len() + 7]);
    }
}

#[test]
fn later_edits_of_a_place_see_what_earlier_ones_left() {
    let catalog = catalog();
    for node in [
        "1.resid_in",
        "1.attn.act_in",
        "1.attn.v",
        "0.mlp.resid_delta",
    ] {
        let set = |value: f64| json!({"feature": {"node": node, "channel": 3}, "op": "set", "value": value});
        let scale = json!({"feature": {"node": node, "channel": 3}, "op": "scale", "value": 2});
        let twice = steered(&[PROMPT], json!({"edits": [set(3.0), set(0.5), scale]}));
        let once = steered(&[PROMPT], json!({"edits": [set(1.0)]}));
        assert_near(
            &first_distribution(&catalog, &twice, 0),
            &first_distribution(&catalog, &once, 0),
            1e-5,
        );
    }
}

#[test]
fn control_arms_have_the_norm_of_the_steered_change() {
    let catalog = catalog();
    for model in ["dense", "sparse"] {
        for feature in [
            json!({"node": "1.attn.act_in", "channel": 3}),
            json!({"node": "1.resid_in", "channels": [{"channel": 3, "weight": 1}, {"channel": 4, "weight": -2}]}),
        ] {
            let steer = json!({
                "edits": [{"feature": feature, "op": "add", "value": 2, "strength": [0.5, 1]}],
                "variants": ["steered", "random", "random_feature"], "return": ["receipt"]});
            let request = GenerationRequest {
                model: super::pair::model(model),
                max_tokens: 2,
                ..steered(&[PROMPT], steer)
            };
            let answer = answer(&catalog, &request);
            let norms = |choice: usize| -> Vec<f64> {
                let receipt = receipt_of(&answer.choices[choice]);
                let tokens = receipt["edits"][0]["tokens"]
                    .as_array()
                    .expect("tokens")
                    .clone();
                let prompt = tokens
                    .iter()
                    .filter(|token| token["position"].as_u64() < Some(PROMPT.len() as u64));
                prompt
                    .map(|token| token["change_norm"].as_f64().expect("a norm"))
                    .collect()
            };
            assert_eq!(norms(0).len(), PROMPT.len());
            for choice in 1..6 {
                for (found, expected) in norms(choice).iter().zip(norms(choice % 2)) {
                    assert!(
                        (found - expected).abs() < 1e-5 * expected,
                        "{model} {choice}"
                    );
                }
            }
            let distributions: Vec<_> = answer.choices.iter().map(bits).collect();
            assert_ne!(distributions[1], distributions[3]);
            assert_ne!(distributions[3], distributions[5]);
        }
    }
}

/// The norm as the model really sees it, not as the receipt tells it.
#[test]
fn a_random_arm_moves_the_stream_as_far_as_the_steered_one() {
    let catalog = catalog();
    let edit =
        json!({"feature": {"node": "final_resid", "channel": 3}, "op": "add", "value": 0.001});
    let distance = |variant: &str| {
        let steer =
            json!({"edits": [edit], "variants": [variant, "baseline"], "return": ["receipt"]});
        let request = steered(&[PROMPT], steer);
        let baseline = first_distribution(&catalog, &request, 1);
        let moved = first_distribution(&catalog, &request, 0);
        moved
            .iter()
            .zip(&baseline)
            .map(|(a, b)| (a - b).powi(2))
            .sum::<f32>()
            .sqrt()
    };
    let (steered, random) = (distance("steered"), distance("random"));
    assert!(
        random > steered / 5.0 && random < steered * 5.0,
        "{random} against {steered}"
    );
}

#[test]
fn spans_and_conditions_choose_the_tokens() {
    let catalog = catalog();
    let sparse = &catalog.models["sparse"].transformer;
    let values = read(sparse, PROMPT, "0.resid_mid");
    let mut sorted: Vec<f32> = values.iter().map(|row| row[4]).collect();
    sorted.sort_by(f32::total_cmp);
    let median = f64::from(sorted[2] + sorted[3]) / 2.0;
    let touched = |edit: Value| -> Vec<u64> {
        let steer = json!({"edits": [edit], "return": ["receipt"]});
        let receipt = receipt_of(&answer(&catalog, &steered(&[PROMPT], steer)).choices[0]);
        let tokens = receipt["edits"][0]["tokens"]
            .as_array()
            .expect("tokens")
            .clone();
        assert_eq!(receipt["edits"][0]["tokens_touched"], tokens.len());
        tokens
            .iter()
            .filter_map(|token| token["position"].as_u64())
            .collect()
    };
    let edit = |more: Value| {
        let mut edit =
            json!({"feature": {"node": "1.attn.act_in", "channel": 2}, "op": "add", "value": 1});
        edit.as_object_mut()
            .expect("an edit")
            .extend(more.as_object().expect("fields").clone());
        edit
    };
    let at = json!({"at": {"prompt": [-1, [0, 2]], "generation": [[1, 3]]}});
    assert_eq!(touched(edit(at)), [0, 1, 5, 7, 8]);
    let threshold = json!({"feature": {"node": "0.resid_mid", "channel": 4}, "gt": median});
    let above: Vec<u64> = (0..PROMPT.len() as u64)
        .filter(|&at| f64::from(values[at as usize][4]) > median)
        .collect();
    assert_eq!(above.len(), 3);
    let when = json!({"at": {"generation": "none"}, "when": {"all": [threshold]}});
    assert_eq!(touched(edit(when)), above);
    let vector = vec![1.0f32; D_DENSE];
    let never = json!({"when": {"any": [{"feature": {"site": "1.resid_in", "vector": vector}, "gt": 1e6}]}});
    assert!(touched(edit(never)).is_empty());
}

#[test]
fn a_receipt_tells_what_was_done() {
    let catalog = catalog();
    let steer = json!({"edits": [{"feature": "quote_type", "op": "add", "value": 2, "unit": "std"}],
        "variants": ["steered", "baseline"], "return": ["receipt", "activations"]});
    let answer = answer(&catalog, &steered(&[PROMPT], steer.clone()));
    let receipt = receipt_of(&answer.choices[0]);
    assert_eq!(receipt["bridge"], "pair");
    let edit = &receipt["edits"][0];
    assert_eq!(edit["feature"], "quote_type");
    assert_eq!(edit["node"], "1.attn.act_in");
    assert_eq!(
        (&edit["write"], &edit["read"]),
        (&json!("residual"), &json!("sparse"))
    );
    assert_eq!(edit["decoder_nmse"], 0.125);
    let values = read(
        &catalog.models["sparse"].transformer,
        PROMPT,
        "1.attn.act_in",
    );
    for (at, row) in values.iter().enumerate() {
        let token = &edit["tokens"][at];
        let number = |key: &str| token[key].as_f64().expect("a number") as f32;
        assert_near(
            &[number("before"), number("after")],
            &[row[2], row[2] + 1.0],
            1e-5,
        );
        assert!(number("relative_change") > 0.0);
    }
    let request = steered(&[PROMPT], steer);
    let (steered, baseline) = (
        first_distribution(&catalog, &request, 0),
        first_distribution(&catalog, &request, 1),
    );
    let divergence: f32 = baseline
        .iter()
        .zip(&steered)
        .map(|(p, q)| p.exp() * (p - q))
        .sum();
    let told = receipt["kl_to_baseline"].as_f64().expect("a divergence") as f32;
    assert!(divergence > 1e-4);
    assert_near(&[told], &[divergence], 1e-5);
    let baseline = receipt_of(&answer.choices[1]);
    assert_eq!(
        (&baseline["kl_to_baseline"], &baseline["edits"]),
        (&json!(0.0), &json!([]))
    );
    let unedited = answer.choices[1].activations.clone().expect("activations");
    assert_eq!(unedited[0].before, unedited[0].after);
    assert_eq!(unedited[0].before.len(), PROMPT.len() + 7);
}

#[test]
fn edits_that_say_the_same_do_the_same() {
    let catalog = catalog();
    let statistics = catalog.pairs["pair"]
        .reference
        .place(place("1.resid_in"))
        .expect("statistics")
        .clone();
    let channel = json!({"node": "1.resid_in", "channel": 4});
    let negative = json!({"node": "1.resid_in", "channels": [{"channel": 4, "weight": -3}]});
    let set = |value: f64| json!({"feature": channel, "op": "set", "value": value});
    let add = |value: f64| json!({"feature": channel, "op": "add", "value": value});
    let (mean, std, max) = (statistics.mean[4], statistics.std[4], statistics.max[4]);
    for (edit, same) in [
        (json!({"feature": channel, "op": "ablate"}), set(0.0)),
        (
            json!({"feature": channel, "op": "ablate", "to": "mean"}),
            set(f64::from(mean)),
        ),
        (
            json!({"feature": channel, "op": "scale", "value": 0}),
            set(0.0),
        ),
        (
            json!({"feature": channel, "op": "patch", "to": {"value": 1.25}}),
            set(1.25),
        ),
        (
            json!({"feature": channel, "op": "clamp", "min": 2, "max": 2}),
            set(2.0),
        ),
        (
            json!({"feature": channel, "op": "add", "value": 2, "unit": "std"}),
            add(2.0 * f64::from(std)),
        ),
        (
            json!({"feature": channel, "op": "set", "value": 2, "unit": "max"}),
            set(2.0 * f64::from(max)),
        ),
        (
            json!({"feature": negative, "op": "set", "value": 1.5}),
            set(-1.5),
        ),
        (
            json!({"feature": negative, "op": "add", "value": -1, "unit": "std"}),
            add(f64::from(std)),
        ),
    ] {
        let (found, expected) = (
            answer(&catalog, &one(edit.clone())),
            answer(&catalog, &one(same)),
        );
        assert_eq!(
            bits(&found.choices[0]),
            bits(&expected.choices[0]),
            "{edit}"
        );
    }
    let swap = |edits: Value| {
        first_distribution(&catalog, &steered(&[PROMPT], json!({"edits": edits})), 0)
    };
    let forth = json!({"feature": channel, "op": "swap", "with": 9});
    let back = json!({"feature": {"node": "1.resid_in", "channel": 9}, "op": "swap", "with": 4});
    let plain = first_distribution(&catalog, &request(&[PROMPT]), 0);
    assert_near(&swap(json!([forth, back])), &plain, 1e-5);
    assert!(
        swap(json!([forth]))
            .iter()
            .zip(&plain)
            .any(|(a, b)| (a - b).abs() > 1e-3)
    );
}
