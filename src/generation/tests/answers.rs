//! What an answer holds: texts and tokens, ends, seeds, log-probabilities.

use std::collections::BTreeMap;

use super::pair::{CONTEXT, answer, bits, catalog, request, steered};
use crate::generation::request::{Delta, Finish, GenerationRequest};
use crate::generation::sampling::Sampling;
use crate::generation::scheduler::generate;
use serde_json::json;

const PROMPT: &[u32] = &[40, 257, 33, 260, 101, 45];

/// Makes the greedy answer these tokens' bytes: each is certain to follow the one before it.
fn biased(tokens: &[u32]) -> GenerationRequest {
    let mut request = request(&[PROMPT]);
    request.max_tokens = tokens.len();
    request.sampling.logit_bias = tokens
        .iter()
        .zip(0u16..)
        .map(|(&id, at)| (id, 1000.0 - 50.0 * f32::from(at)))
        .collect();
    request.sampling.presence_penalty = 2000.0;
    request
}

#[test]
fn a_stop_text_ends_an_answer_across_tokens() {
    let catalog = catalog();
    let tokenizer = &catalog.models["dense"].tokenizer;
    let byte = |byte: u8| {
        (0..256)
            .find(|&id| tokenizer.token_bytes(id) == [byte])
            .expect("a byte token")
    };
    // Each token at most once, for the penalty forbids a second time.
    let ids: Vec<u32> = b"abc;\ndef".iter().map(|&b| byte(b)).collect();
    let plain = answer(&catalog, &biased(&ids));
    assert_eq!(
        (plain.choices[0].text.as_str(), plain.choices[0].finish),
        ("abc;\ndef", Finish::Length)
    );
    let stopped = answer(
        &catalog,
        &GenerationRequest {
            stop: vec!["c;\nd".into()],
            ..biased(&ids)
        },
    );
    let choice = &stopped.choices[0];
    assert_eq!(
        (choice.text.as_str(), choice.finish, choice.tokens.len()),
        ("ab", Finish::Stop, 2)
    );
    assert_eq!(stopped.completion_tokens, 2);
}

#[test]
fn the_end_of_the_text_is_not_part_of_it() {
    let catalog = catalog();
    let mut request = biased(&[40, 269]);
    request.max_tokens = 5;
    let answer = answer(&catalog, &request);
    let choice = &answer.choices[0];
    assert_eq!((choice.finish, choice.tokens.len()), (Finish::Stop, 1));
    assert!(!choice.text.contains("endoftext"));
}

#[test]
fn an_answer_ends_with_the_context() {
    let catalog = catalog();
    let answer = answer(
        &catalog,
        &GenerationRequest {
            max_tokens: 1000,
            ..request(&[PROMPT, &[1; 23]])
        },
    );
    assert_eq!(answer.choices[0].tokens.len(), CONTEXT - PROMPT.len());
    assert_eq!(answer.choices[1].tokens.len(), 1);
    assert_eq!(answer.choices[0].finish, Finish::Length);
    assert_eq!(
        (answer.prompt_tokens, answer.completion_tokens),
        (6 + 23, CONTEXT - 6 + 1)
    );
}

#[test]
fn samples_differ_and_seeds_repeat_them() {
    let catalog = catalog();
    let mut request = GenerationRequest {
        n: 3,
        ..request(&[PROMPT])
    };
    request.sampling.temperature = 1.0;
    let first = answer(&catalog, &request);
    let again = answer(&catalog, &request);
    let all = |generation: &crate::generation::request::Generation| {
        generation.choices.iter().map(bits).collect::<Vec<_>>()
    };
    assert_eq!(all(&first), all(&again));
    assert_ne!(bits(&first.choices[0]), bits(&first.choices[1]));
    let neighbour = GenerationRequest {
        sampling: Sampling {
            seed: Some(8),
            ..request.sampling.clone()
        },
        ..request.clone()
    };
    for choice in all(&answer(&catalog, &neighbour)) {
        assert!(!all(&first).contains(&choice), "seeds 7 and 8 share it");
    }
    let alone = GenerationRequest {
        n: 1,
        ..request.clone()
    };
    assert_eq!(
        bits(&answer(&catalog, &alone).choices[0]),
        bits(&first.choices[0])
    );
    request.sampling.seed = None;
    assert_ne!(
        all(&answer(&catalog, &request)),
        all(&answer(&catalog, &request))
    );
}

#[test]
fn the_arms_of_a_sample_share_its_seed() {
    let catalog = catalog();
    let edit = json!({"feature": "depth", "op": "add", "value": 1, "strength": 0});
    let steer = json!({"edits": [edit], "variants": ["baseline", "steered", "random"]});
    let request = GenerationRequest {
        n: 2,
        ..steered(&[PROMPT], steer)
    };
    let sampling = Sampling {
        temperature: 1.0,
        ..request.sampling.clone()
    };
    let answer = answer(
        &catalog,
        &GenerationRequest {
            sampling,
            ..request
        },
    );
    for sample in answer.choices.chunks(3) {
        assert_eq!(bits(&sample[0]), bits(&sample[1]));
        assert_eq!(bits(&sample[0]), bits(&sample[2]));
    }
    assert_ne!(bits(&answer.choices[0]), bits(&answer.choices[3]));
}

#[test]
fn log_probabilities_are_told_on_request_and_for_the_prompt_with_echo() {
    let catalog = catalog();
    let echoed = answer(
        &catalog,
        &GenerationRequest {
            echo: true,
            ..request(&[PROMPT])
        },
    );
    let choice = &echoed.choices[0];
    let ids: Vec<u32> = choice.prompt.iter().map(|token| token.id).collect();
    assert_eq!(ids, PROMPT);
    assert_eq!(choice.prompt[0].logprob, None);
    assert!(
        choice.prompt[1..]
            .iter()
            .all(|token| token.logprob.is_some_and(|p| p < 0.0) && token.top.len() == 3)
    );
    for token in &choice.tokens {
        assert_eq!(
            token.top[0].1,
            token.logprob.expect("a log-probability"),
            "greedy takes the most probable"
        );
    }
    let silent = answer(
        &catalog,
        &GenerationRequest {
            logprobs: None,
            ..request(&[PROMPT])
        },
    );
    assert!(
        silent.choices[0]
            .tokens
            .iter()
            .all(|token| token.logprob.is_none() && token.top.is_empty())
    );
    assert!(silent.choices[0].prompt.is_empty());
}

#[derive(Default)]
struct Listener {
    pieces: BTreeMap<usize, (String, usize, Option<Finish>)>,
    left: Option<usize>,
}

impl Listener {
    fn more(&mut self, delta: Delta) -> bool {
        let (text, tokens, finish) = self.pieces.entry(delta.choice).or_default();
        assert!(finish.is_none(), "a piece after the last");
        text.push_str(&delta.text);
        *tokens += delta.tokens.len();
        *finish = delta.finish;
        self.left.as_mut().is_none_or(|left| {
            *left -= 1;
            *left > 0
        })
    }
}

#[test]
fn the_pieces_of_an_answer_make_the_answer() {
    let catalog = catalog();
    let mut request = GenerationRequest {
        n: 3,
        stop: vec!["th".into(), "e".into()],
        ..request(&[PROMPT, &[3, 4]])
    };
    request.sampling.temperature = 1.5;
    let mut listener = Listener::default();
    let answer =
        generate(&catalog.resolved(&request), |delta| listener.more(delta)).expect("an answer");
    assert_eq!(answer.choices.len(), 6);
    for (index, choice) in answer.choices.iter().enumerate() {
        let expected = (
            choice.text.clone(),
            choice.tokens.len(),
            Some(choice.finish),
        );
        assert_eq!(listener.pieces[&index], expected);
    }
    let mut leaving = Listener {
        left: Some(2),
        ..Listener::default()
    };
    assert!(generate(&catalog.resolved(&request), |delta| leaving.more(delta)).is_err());
}
