//! Tasks that callers bring: what can be kept, which pairs a model can use, and how long they stay.

use causeway::settings::keys::Role;
use serde_json::{Value, json};

use crate::client::{Response, Server};
use crate::keys::key;

const TASKS: &str = "/v1/tasks";

/// A pair whose prompts have as many tokens as each other, whatever the tokenizer has merged.
pub fn pair(number: usize) -> Value {
    json!({
        "presented": {"prompt": format!("{number}\n1\n"), "answer": "1\n"},
        "counterfactual": {"prompt": format!("{number}\n2\n"), "answer": "2\n"}
    })
}

fn pairs(how_many: usize) -> Vec<Value> {
    (0..how_many).map(pair).collect()
}

fn body(id: &str, pairs: &[Value]) -> Value {
    json!({"id": id, "description": "Say it again.", "pairs": pairs})
}

fn made(server: &Server, id: &str) -> Value {
    let answer = server.post(TASKS, &body(id, &pairs(30)));
    answer.status_is(201);
    answer.json()
}

fn lines(pairs: &[Value]) -> String {
    pairs.iter().map(|pair| format!("{pair}\n")).collect()
}

fn upload(server: &Server, target: &str, lines: &str) -> Response {
    let headers = [("content-type", "application/x-ndjson")];
    server.send("POST", target, &headers, lines.as_bytes())
}

fn message(answer: &Response) -> String {
    let message = answer.json()["error"]["message"]
        .as_str()
        .map(str::to_owned);
    message.expect("a message")
}

fn own_ids(server: &Server) -> Vec<String> {
    let list = server.get(TASKS).ok();
    let own = list["data"].as_array().unwrap().iter();
    let own = own.filter(|task| task["origin"] == "own");
    own.map(|task| task["id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn one_is_made_listed_found_and_removed() {
    let server = Server::new();
    let task = made(&server, "again");
    assert_eq!(
        (
            &task["id"],
            &task["object"],
            &task["origin"],
            &task["description"]
        ),
        (
            &json!("again"),
            &json!("task"),
            &json!("own"),
            &json!("Say it again.")
        )
    );
    let sizes = ["train", "held_out"].map(|split| task["pairs"][split].as_u64().unwrap());
    assert_eq!(sizes.iter().sum::<u64>(), 30);
    assert_eq!(
        (&task["feature"], &task["usable"]),
        (&Value::Null, &Value::Null)
    );

    let list = server.get(TASKS).ok();
    let listed = list["data"].as_array().unwrap();
    assert_eq!(listed.len(), 21);
    assert_eq!(listed[20], task);
    assert_eq!(
        (&listed[0]["origin"], &listed[0]["pairs"]),
        (&json!("built_in"), &Value::Null)
    );
    let mut found = server.get("/v1/tasks/again").ok();
    let examples = found.as_object_mut().unwrap().remove("examples").unwrap();
    assert_eq!(found, task);
    assert_eq!(examples.as_array().unwrap().len(), 4);
    assert_eq!(examples[0]["presented"]["tokens"], Value::Null);

    let again = server.post(TASKS, &body("again", &pairs(30)));
    again.is_error(400, Some("id"), Some("already_exists"));
    let gone = server.delete("/v1/tasks/again").ok();
    assert_eq!(
        gone,
        json!({"id": "again", "object": "task", "deleted": true})
    );
    for answer in [
        server.get("/v1/tasks/again"),
        server.delete("/v1/tasks/again"),
    ] {
        answer.is_error(404, None, Some("task_not_found"));
    }
    assert_eq!(own_ids(&server), [] as [&str; 0]);
    made(&server, "again");
}

#[test]
fn the_twenty_can_be_looked_at_and_stay() {
    let server = Server::new();
    let task = server
        .get("/v1/tasks/with_open?examples=3&split=train&seed=7")
        .ok();
    assert_eq!(
        (&task["origin"], &task["pairs"]),
        (&json!("built_in"), &Value::Null)
    );
    assert_eq!(task["examples"].as_array().unwrap().len(), 3);
    let other = server
        .get("/v1/tasks/with_open?examples=3&split=train&seed=8")
        .ok();
    assert_ne!(task["examples"], other["examples"]);
    let answer = server.delete("/v1/tasks/with_open");
    answer.is_error(400, None, Some("built_in"));
    let taken = server.post(TASKS, &body("with_open", &pairs(30)));
    taken.is_error(400, Some("id"), Some("already_exists"));
    let near = server.get("/v1/tasks/with_opem");
    near.is_error(404, None, Some("task_not_found"));
    assert!(message(&near).contains("\"with_open\""), "{}", near.body);
    made(&server, "my_task");
    let near = server.get("/v1/tasks/my_tusk");
    assert!(message(&near).contains("\"my_task\""), "{}", near.body);
}

#[test]
fn what_is_wrong_with_a_pair_is_told_with_its_place() {
    let server = Server::new();
    let refused = |change: &dyn Fn(&mut Value), param: &str, code: Option<&str>| {
        let mut pairs = pairs(20);
        change(&mut pairs[3]);
        let answer = server.post(TASKS, &body("wrong", &pairs));
        answer.is_error(400, Some(param), code);
        // The same as a line of a file, which follows a blank one.
        let answer = upload(
            &server,
            "/v1/tasks/wrong/pairs",
            &format!("\n{}", lines(&pairs)),
        );
        assert_eq!(answer.status, 400, "{}", answer.body);
        let told = message(&answer);
        assert!(told.starts_with("line 5: "), "{told}");
        let blamed = answer.json()["error"]["param"].as_str().unwrap().to_owned();
        assert!(
            blamed.starts_with("pairs[3]") && param.starts_with("pairs[3]"),
            "{blamed}"
        );
    };
    let set = |pointer: &'static str, value: Value| {
        move |pair: &mut Value| *pair.pointer_mut(pointer).unwrap() = value.clone()
    };
    refused(
        &set("/presented/prompt", json!("")),
        "pairs[3].presented.prompt",
        None,
    );
    refused(
        &set("/counterfactual/answer", json!("")),
        "pairs[3].counterfactual.answer",
        None,
    );
    refused(
        &set("/counterfactual/answer", json!("1\n")),
        "pairs[3].counterfactual.answer",
        None,
    );
    refused(
        &set("/counterfactual/prompt", json!("3\n1\n")),
        "pairs[3].counterfactual.prompt",
        None,
    );
    refused(
        &set("/presented/prompt", json!(1)),
        "pairs[3].presented.prompt",
        None,
    );
    refused(
        &set("/presented/prompt", json!("x".repeat(70_000))),
        "pairs[3]",
        None,
    );
    refused(&|pair: &mut Value| *pair = self::pair(1), "pairs[3]", None);
    let unknown = |pair: &mut Value| pair["presented"]["promt"] = json!("x");
    refused(&unknown, "pairs[3].presented.promt", Some("unknown_field"));
    let missing = |pair: &mut Value| *pair = json!({"presented": pair["presented"]});
    refused(&missing, "pairs[3].counterfactual", Some("missing_field"));

    let broken = upload(
        &server,
        "/v1/tasks/wrong/pairs",
        &(lines(&pairs(20)) + "{\"presented\": \n"),
    );
    broken.is_error(400, Some("pairs[20]"), None);
    assert!(
        message(&broken).starts_with("line 21: it is no JSON"),
        "{}",
        broken.body
    );
    assert_eq!(own_ids(&server), [] as [&str; 0]);
}

#[test]
fn names_sizes_and_models_are_checked() {
    let server = Server::new();
    for id in ["", "Loud", "a@b", "../x", ".x", "a..b", &"x".repeat(65)] {
        server
            .post(TASKS, &body(id, &pairs(30)))
            .is_error(400, Some("id"), None);
    }
    let few = server.post(TASKS, &body("few", &pairs(6)));
    few.is_error(400, Some("pairs"), Some("too_few_pairs"));
    assert!(message(&few).contains("at least 4 of both"), "{}", few.body);
    let mut long = body("long", &pairs(30));
    long["description"] = json!("d".repeat(10_001));
    server
        .post(TASKS, &long)
        .is_error(400, Some("description"), None);
    let mut other = body("other", &pairs(30));
    other["model"] = json!("tinny");
    server
        .post(TASKS, &other)
        .is_error(404, Some("model"), Some("model_not_found"));

    let file = [("content-type", "text/plain")];
    let lines = lines(&pairs(30));
    let plain = server.send("POST", "/v1/tasks/plain/pairs", &file, lines.as_bytes());
    plain.is_error(415, None, Some("unsupported_media_type"));
    for (query, param) in [
        ("model=tinny", "model"),
        ("pairs=0", "pairs"),
        ("pairs=257", "pairs"),
        ("modle=tiny", "modle"),
    ] {
        server.get(&format!("{TASKS}?{query}")).blames(param);
    }
    for (query, param) in [
        ("split=test", "split"),
        ("examples=101", "examples"),
        ("pairs=4097", "pairs"),
    ] {
        server.get(&format!("{TASKS}/var_if?{query}")).blames(param);
    }
}

#[test]
fn a_file_makes_the_same_task_as_a_body() {
    let server = Server::new();
    let mut first = made(&server, "first");
    let mut reversed = pairs(30);
    reversed.reverse();
    let answer = upload(
        &server,
        "/v1/tasks/second/pairs?description=Say%20it%20again.&model=tiny",
        &format!("\u{feff}{}\n", lines(&reversed)),
    );
    answer.status_is(201);
    let mut second = answer.json();
    assert_eq!(second["usable"]["model"], "tiny");
    for task in [&mut first, &mut second] {
        for field in ["id", "created", "usable"] {
            task[field] = Value::Null;
        }
    }
    // Whatever the order, each pair is in its split.
    assert_eq!(first, second);
    let shown = |id: &str| {
        server
            .get(&format!("{TASKS}/{id}?examples=30&split=train"))
            .ok()["examples"]
            .clone()
    };
    assert_eq!(shown("first"), shown("second"));
}

#[test]
fn a_model_s_usable_pairs_are_counted_by_reason() {
    let server = Server::new();
    let mut given = pairs(60);
    for (index, pair) in given.iter_mut().enumerate() {
        match index % 4 {
            0 => pair["presented"]["prompt"] = json!(format!("{index}\n1\n1\n")),
            1 => pair["counterfactual"]["answer"] = json!("1\n\n"),
            2 => {
                let long = "1\n".repeat(60);
                pair["presented"]["prompt"] = json!(format!("{index}\n{long}"));
                pair["counterfactual"]["prompt"] =
                    json!(format!("{index}\n{long}").replace("1\n1\n", "1\n2\n"));
            }
            _ => {}
        }
    }
    server.post(TASKS, &body("mixed", &given)).status_is(201);
    let task = server
        .get("/v1/tasks/mixed?model=tiny&examples=100&split=held_out")
        .ok();
    let mut reasons = std::collections::BTreeMap::<String, u64>::new();
    for split in ["train", "held_out"] {
        let counts = &task["usable"][split];
        let number = |value: &Value| value.as_u64().unwrap();
        assert_eq!(counts["drawn"], task["pairs"][split]);
        let mut left_out = 0;
        for (reason, count) in counts["reasons"].as_object().unwrap() {
            *reasons.entry(reason.clone()).or_default() += number(count);
            left_out += number(count);
        }
        assert_eq!(
            number(&counts["drawn"]),
            number(&counts["usable"]) + left_out
        );
    }
    let counted = [
        "no_token_at_cut",
        "lengths_differ",
        "same_candidate",
        "too_long",
    ]
    .map(|reason| reasons[reason]);
    assert_eq!(counted, [0, 15, 15, 15], "{task}");

    // The examples agree with the counts, and their tokens with the tokenizer.
    let examples = task["examples"].as_array().unwrap();
    assert_eq!(task["pairs"]["held_out"], examples.len());
    let usable = examples
        .iter()
        .filter(|example| example["unusable"].is_null());
    assert_eq!(task["usable"]["held_out"]["usable"], usable.count());
    let side = &examples[0]["presented"];
    let tokenized = server
        .post(
            "/v1/tokenize",
            &json!({"model": "tiny", "prompt": side["prompt"]}),
        )
        .ok();
    assert_eq!(side["tokens"]["prompt"], tokenized["tokens"]);
    assert_eq!(side["tokens"]["prompt_strs"], tokenized["token_strs"]);
    assert_eq!(side["tokens"]["candidate_str"], "1");

    let few = server.get("/v1/tasks/mixed?model=tiny&pairs=5").ok();
    assert_eq!(few["usable"]["train"]["drawn"], 5);
    let list = server.get("/v1/tasks?model=tiny-sparse&pairs=3").ok();
    for task in list["data"].as_array().unwrap() {
        assert_eq!(task["usable"]["model"], "tiny-sparse");
        assert_eq!(task["usable"]["held_out"]["drawn"], 3, "{task}");
    }
}

#[test]
fn a_model_that_can_use_too_few_pairs_refuses_the_task() {
    let server = Server::new();
    let mut given = pairs(40);
    for pair in &mut given[5..] {
        pair["counterfactual"]["answer"] = json!("1\n\n");
    }
    let mut request = body("same", &given);
    request["model"] = json!("tiny");
    let refused = server.post(TASKS, &request);
    refused.is_error(400, Some("pairs"), Some("too_few_pairs"));
    let told = message(&refused);
    assert!(
        told.contains("times both sides have the same candidate"),
        "{told}"
    );
    assert_eq!(own_ids(&server), [] as [&str; 0]);
    let refused = upload(&server, "/v1/tasks/same/pairs?model=tiny", &lines(&given));
    refused.is_error(400, Some("pairs"), Some("too_few_pairs"));
    // Another model may be able to: nobody is asked where none is named.
    request.as_object_mut().unwrap().remove("model");
    server.post(TASKS, &request).status_is(201);
}

#[test]
fn they_are_there_after_a_restart() {
    let server = Server::new();
    let task = made(&server, "kept");
    made(&server, "gone");
    server.delete("/v1/tasks/gone").ok();
    let examples = |server: &Server| server.get("/v1/tasks/kept?model=tiny&examples=20").ok();
    let before = examples(&server);
    let server = server.restarted();
    assert_eq!(server.get(TASKS).ok()["data"][20], task);
    assert_eq!(examples(&server), before);
    assert_eq!(own_ids(&server), ["kept"]);
    let files = std::fs::read_dir(server.directory.join("data/tasks")).unwrap();
    assert_eq!(files.count(), 1, "what was removed left nothing");
}

#[test]
fn how_many_and_how_long_they_are_is_bounded() {
    let server = Server::with(|settings| {
        settings.limits.max_tasks = 2;
        settings.limits.max_task_bytes = 20_000;
    });
    made(&server, "one");
    let long = server.post(TASKS, &body("long", &pairs(400)));
    long.is_error(400, None, Some("over_budget"));
    assert!(
        message(&long).contains("limits.max_task_bytes"),
        "{}",
        long.body
    );
    made(&server, "two");
    let third = server.post(TASKS, &body("three", &pairs(30)));
    third.is_error(400, None, Some("over_budget"));
    assert!(
        message(&third).contains("limits.max_tasks"),
        "{}",
        third.body
    );
    server.delete("/v1/tasks/one").ok();
    made(&server, "three");
}

#[test]
fn trainers_keep_and_remove_them() {
    let server = Server::with(|settings| {
        settings.keys = vec![
            key("reader", Role::Infer, None),
            key("trainer", Role::Train, None),
        ];
    });
    let send = |name: &str, method: &str, path: &str, kind: &str, body: &str| {
        let bearer = format!("Bearer ck-{name}");
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        server.send(method, path, &headers, body.as_bytes())
    };
    let json = body("mine", &pairs(30)).to_string();
    let lines = lines(&pairs(30));
    let kinds = [
        (TASKS, "application/json", &json),
        ("/v1/tasks/other/pairs", "application/jsonl", &lines),
    ];
    for (path, kind, body) in kinds {
        send("reader", "POST", path, kind, body).is_error(403, None, Some("insufficient_role"));
        send("trainer", "POST", path, kind, body).status_is(201);
    }
    send("reader", "GET", "/v1/tasks/mine", "application/json", "").ok();
    let refused = send("reader", "DELETE", "/v1/tasks/mine", "application/json", "");
    refused.is_error(403, None, Some("insufficient_role"));
    send(
        "trainer",
        "DELETE",
        "/v1/tasks/mine",
        "application/json",
        "",
    )
    .ok();
}
