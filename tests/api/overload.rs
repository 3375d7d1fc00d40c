//! More requests than the server can carry.

use serde_json::{Value, json};

use crate::client::{Response, Server, wait_until};

/// A completion of so many prompts.
fn request(prompts: usize, stream: bool) -> Value {
    json!({
        "model": "tiny", "prompt": vec!["x = 1"; prompts], "n": 4, "max_tokens": 60, "stream": stream,
        "logit_bias": {"319": -100}
    })
}

/// The answer says that another time it would be another one.
#[track_caller]
fn is_turned_away(answer: &Response) {
    answer.is_error(503, None, Some("overloaded"));
    assert!(answer.headers["retry-after"].parse::<u64>().unwrap() > 0);
}

#[test]
fn who_finds_the_queue_full_is_turned_away() {
    let server = Server::with(|settings| {
        settings.engine.sequences = 1;
        settings.engine.waiting = 2;
    });
    // Each has so much to do, one sequence at a time, that none is done before it is told to go.
    let holders = [false, true, false].map(|stream| server.begin(&request(128, stream), 1.0));
    let gauges = ["causeway_requests_running", "causeway_requests_waiting"];
    let taken_on = || server.metrics(gauges).iter().sum::<f64>();
    wait_until("all three are taken on", || taken_on() == 3.0);
    for stream in [true, false, true, false] {
        is_turned_away(&server.post("/v1/completions", &request(1, stream)));
    }
    assert_eq!(server.get("/readyz").status, 200);
    drop(holders);
    server.wait_until_idle();
    server.post("/v1/completions", &request(1, false)).ok();
    let turned_away = "causeway_rejected_total{reason=\"overloaded\"}";
    assert_eq!(server.metric(turned_away), 4.0);
}

#[test]
fn ten_times_more_than_can_be_carried_is_answered_or_turned_away() {
    let server = Server::with(|settings| {
        settings.engine.sequences = 2;
        settings.engine.waiting = 2;
    });
    let answers: Vec<Response> = std::thread::scope(|scope| {
        let ask = |client| {
            let body = request(1, client % 2 == 0);
            let server = &server;
            scope.spawn(move || server.post("/v1/completions", &body))
        };
        let clients: Vec<_> = (0..40).map(ask).collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    });
    let (answered, rest): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == 200);
    assert!(!answered.is_empty());
    rest.into_iter().for_each(is_turned_away);
    let streams = answered
        .iter()
        .filter(|answer| !answer.headers.contains_key("content-length"));
    for stream in streams {
        let ends = stream.events().into_iter();
        let ends = ends.filter(|event| event["choices"][0]["finish_reason"] == "length");
        assert_eq!(ends.count(), 4, "{}", stream.body);
    }
    server.wait_until_idle();
}

#[test]
fn a_first_token_that_would_be_late_is_not_waited_for() {
    let server = Server::with(|settings| settings.limits.first_token_seconds = 0);
    for stream in [true, false] {
        is_turned_away(&server.post("/v1/completions", &request(1, stream)));
    }
    server.wait_until_idle();
    assert_eq!(server.get("/readyz").status, 200);
}
