//! The engine's thread: commands in turn, panics contained, an end.

use super::pair::{answer, bits, catalog, model, request};
use crate::generation::capacity::Capacity;
use crate::generation::engine::Engine;
use crate::generation::request::{ActivationsRequest, EngineError, GenerationRequest};

const PROMPT: &[u32] = &[40, 257, 33, 260, 101, 45];

#[tokio::test]
async fn answers_come_through_the_handle() {
    let expected = answer(&catalog(), &request(&[PROMPT]));
    let engine = Engine::start(Capacity::default()).expect("a thread");
    engine.ping().await.expect("alive");
    let found = engine
        .generate(request(&[PROMPT]))
        .await
        .expect("an answer");
    assert_eq!(bits(&found.choices[0]), bits(&expected.choices[0]));
    let mut stream = engine.stream(request(&[PROMPT])).await.expect("taken on");
    let mut text = String::new();
    while let Some(piece) = stream.pieces.recv().await {
        text.push_str(&piece.text);
    }
    let whole = stream.answer.await.expect("an end").expect("an answer");
    assert_eq!(bits(&whole.choices[0]), bits(&expected.choices[0]));
    let refused = GenerationRequest {
        n: 0,
        ..request(&[PROMPT])
    };
    assert!(matches!(
        engine.stream(refused).await.err(),
        Some(EngineError::Invalid { .. })
    ));
    assert_eq!(text, expected.choices[0].text);
}

#[tokio::test]
async fn a_panic_fails_its_own_command_only() {
    let engine = Engine::start(Capacity::default()).expect("a thread");
    let failed = engine
        .work(|| -> Result<(), EngineError> { panic!("on purpose") })
        .await;
    assert!(matches!(failed, Err(EngineError::Failed(message)) if message.contains("on purpose")));
    engine
        .generate(request(&[PROMPT]))
        .await
        .expect("an answer");
}

#[tokio::test]
async fn nothing_runs_after_the_end() {
    let engine = Engine::start(Capacity::default()).expect("a thread");
    let other = engine.clone();
    engine.shutdown();
    assert!(matches!(other.ping().await, Err(EngineError::Stopped)));
    drop((engine, other));
}

#[tokio::test]
async fn callers_that_have_gone_are_skipped() {
    let engine = Engine::start(Capacity::default()).expect("a thread");
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let blocker = engine.clone();
    let blocking = tokio::spawn(async move { blocker.work(move || Ok(gate.recv().is_ok())).await });
    tokio::task::yield_now().await;
    let leaver = engine.clone();
    let (ran, seen) = std::sync::mpsc::channel::<()>();
    let leaving = tokio::spawn(async move { leaver.work(move || Ok(ran.send(()))).await });
    tokio::task::yield_now().await;
    leaving.abort();
    assert!(leaving.await.is_err());
    release.send(()).expect("a waiting command");
    assert!(blocking.await.expect("a task").expect("an answer"));
    engine.ping().await.expect("alive");
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn activations_are_those_of_a_forward_pass() {
    let engine = Engine::start(Capacity::default()).expect("a thread");
    let ask = |places: &[&str]| ActivationsRequest {
        run: GenerationRequest::of_prompts(model("sparse"), vec![PROMPT.to_vec()], true),
        places: places.iter().map(|place| (*place).to_owned()).collect(),
        features: Vec::new(),
        attention: Vec::new(),
    };
    let found = engine
        .activations(ask(&["1.attn.q", "final_resid"]))
        .await
        .expect("an answer");
    assert_eq!(
        (found.places[0].1, found.places[0].2.len()),
        (24, 24 * PROMPT.len())
    );
    let logits = found.logits.expect("logits");
    let greedy = GenerationRequest {
        model: model("sparse"),
        max_tokens: 1,
        ..request(&[PROMPT])
    };
    let token = engine.generate(greedy).await.expect("an answer").choices[0].tokens[0].clone();
    let last = logits.last().expect("a row");
    let total = crate::numerics::loss::log_sum_exp(last);
    assert_eq!(token.logprob, Some(last[token.id as usize] - total));
    let refused = engine.activations(ask(&["final_resid", "1.attn.w"])).await;
    assert!(
        matches!(refused, Err(EngineError::Invalid { param: Some(param), .. }) if param == "nodes[1]")
    );
}
