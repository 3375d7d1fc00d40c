//! Many requests at once: each gets the answer it would get alone, and leaves nothing behind.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};

use super::pair::{Catalog, answer, bits, catalog, model, request, steered};
use crate::generation::capacity::Capacity;
use crate::generation::health::Load;
use crate::generation::request::{Delta, EngineError, Generation, GenerationRequest};
use crate::generation::scheduler::{Observer, Scheduler};
use crate::models::transformer::Transformer;

const PROMPT: &[u32] = &[40, 257, 33, 260, 101, 45];
const OTHER: &[u32] = &[41, 12, 33, 7, 101, 45];

type Outcome = Rc<RefCell<Option<Result<Generation, EngineError>>>>;

/// Keeps what comes of a request.
#[derive(Default, Clone)]
pub struct Keeper {
    outcome: Outcome,
    pub gone: Rc<Cell<bool>>,
    pieces: Rc<Cell<usize>>,
}

impl Keeper {
    pub fn taken(&self) -> Result<Generation, EngineError> {
        self.outcome.borrow_mut().take().expect("an outcome")
    }
}

impl Observer for Keeper {
    fn more(&mut self, _delta: Delta) -> bool {
        self.pieces.set(self.pieces.get() + 1);
        true
    }

    fn waits(&self) -> bool {
        !self.gone.get()
    }

    fn done(self: Box<Self>, answer: Result<Generation, EngineError>) {
        *self.outcome.borrow_mut() = Some(answer);
    }
}

pub fn submit(scheduler: &mut Scheduler, catalog: &Catalog, request: &GenerationRequest) -> Keeper {
    let keeper = Keeper::default();
    scheduler.submit(catalog.resolved(request), Box::new(keeper.clone()));
    keeper
}

/// Requests of every kind: plain, sampled, natively steered, and steered in all ways over the bridge.
fn mixture() -> Vec<GenerationRequest> {
    let channel = json!({"node": "1.resid_in", "channel": 4});
    let input = json!({"node": "1.attn.act_in", "channel": 2});
    let steer = |edits: Value| json!({"edits": edits, "return": ["receipt", "activations"]});
    let all = ["steered", "baseline", "random", "random_feature"];
    let mut sampled = request(&[PROMPT, OTHER]);
    (sampled.n, sampled.sampling.temperature) = (3, 1.3);
    let mut echoed = request(&[&[40; 11]]);
    echoed.echo = true;
    let native = GenerationRequest {
        model: model("sparse"),
        ..steered(
            &[OTHER],
            steer(json!([{"feature": channel, "op": "set", "value": 2.0}])),
        )
    };
    vec![
        request(&[PROMPT]),
        sampled,
        echoed,
        native,
        steered(
            &[PROMPT],
            steer(json!([{"feature": channel, "op": "add", "value": 1.5}])),
        ),
        steered(
            &[PROMPT],
            json!({"edits": [{"feature": channel, "op": "set", "value": 2.5}], "variants": all}),
        ),
        steered(
            &[OTHER],
            steer(
                json!([{"feature": input, "op": "scale", "value": 3.0, "write": "sublayer",
                          "strength": [0.5, 1.0]}]),
            ),
        ),
        steered(
            &[PROMPT],
            steer(
                json!([{"feature": channel, "op": "patch", "to": {"prompt": OTHER},
                          "read": "encoder"}]),
            ),
        ),
        steered(
            &[PROMPT],
            steer(json!([
                {"feature": {"node": "0.mlp.post_act", "channel": 3}, "op": "add", "value": 2.0},
                {"feature": channel, "op": "patch", "to": {"prompt": OTHER}}
            ])),
        ),
        steered(
            &[OTHER],
            json!({"edits": [{"feature": {"node": "1.attn.v", "channel": 3}, "op": "add", "value": 1.0}],
                   "variants": ["steered", "random"]}),
        ),
    ]
}

pub fn assert_same(found: &Generation, alone: &Generation, what: &str) {
    assert_eq!(found.choices.len(), alone.choices.len(), "{what}");
    for (found, alone) in found.choices.iter().zip(&alone.choices) {
        assert_eq!(bits(found), bits(alone), "{what}");
        assert_eq!(found.receipt, alone.receipt, "{what}");
        assert_eq!(found.activations, alone.activations, "{what}");
        assert_eq!(
            (found.variant, found.strength),
            (alone.variant, alone.strength)
        );
    }
}

#[test]
fn a_request_s_answer_does_not_depend_on_who_runs_beside_it() {
    let catalog = catalog();
    let requests = mixture();
    let alone: Vec<Generation> = requests.iter().map(|one| answer(&catalog, one)).collect();
    // Plenty of room; room for few at a time, with prompts in pieces of three; a slot for hardly anyone.
    for (sequences, prefill_tokens) in [(128, 512), (5, 3), (3, 1)] {
        let capacity = Capacity {
            sequences,
            prefill_tokens,
            waiting: 100,
            ..Capacity::default()
        };
        let mut scheduler = Scheduler::new(capacity);
        let mut keepers = Vec::new();
        // Some come while others are under way.
        for request in requests.iter().chain(requests.iter().rev()) {
            keepers.push(submit(&mut scheduler, &catalog, request));
            scheduler.step();
        }
        while !scheduler.is_idle() {
            scheduler.step();
        }
        let expected = alone.iter().chain(alone.iter().rev());
        for (index, (keeper, alone)) in keepers.iter().zip(expected).enumerate() {
            let found = keeper.taken().expect("an answer");
            let what = format!("request {index} with {sequences} slots");
            assert_same(&found, alone, &what);
        }
        assert_eq!(scheduler.load(), Load::default());
    }
}

#[test]
fn the_answer_does_not_depend_on_the_pieces_of_the_prompt() {
    let catalog = catalog();
    for request in mixture() {
        let whole = answer(&catalog, &request);
        let mut scheduler = Scheduler::new(Capacity {
            prefill_tokens: 2,
            ..Capacity::default()
        });
        let keeper = submit(&mut scheduler, &catalog, &request);
        while !scheduler.is_idle() {
            scheduler.step();
        }
        assert_same(&keeper.taken().expect("an answer"), &whole, "in pieces");
    }
}

#[test]
fn those_who_leave_or_fail_give_their_slots_back() {
    let catalog = catalog();
    let mut scheduler = Scheduler::new(Capacity::default());
    let long = GenerationRequest {
        max_tokens: 14,
        ..request(&[PROMPT])
    };
    let (leaving, staying) = (
        submit(&mut scheduler, &catalog, &long),
        submit(&mut scheduler, &catalog, &long),
    );
    scheduler.step();
    scheduler.step();
    assert_eq!(
        (scheduler.load().running, leaving.pieces.get()),
        (2, staying.pieces.get())
    );
    leaving.gone.set(true);
    scheduler.step();
    assert!(leaving.taken().is_err());
    assert_eq!(scheduler.load().running, 1);
    while !scheduler.is_idle() {
        scheduler.step();
    }
    assert_same(
        &staying.taken().expect("an answer"),
        &answer(&catalog, &long),
        "who stayed",
    );
    assert_eq!(scheduler.load(), Load::default());
}

#[test]
fn no_more_wait_than_are_let_in() {
    let catalog = catalog();
    let mut scheduler = Scheduler::new(Capacity {
        sequences: 1,
        waiting: 2,
        ..Capacity::default()
    });
    let first = submit(&mut scheduler, &catalog, &request(&[PROMPT]));
    scheduler.step();
    let kept: Vec<Keeper> = (0..2)
        .map(|_| submit(&mut scheduler, &catalog, &request(&[PROMPT])))
        .collect();
    let turned_away = submit(&mut scheduler, &catalog, &request(&[PROMPT]));
    assert!(matches!(turned_away.taken(), Err(EngineError::Busy)));
    while !scheduler.is_idle() {
        scheduler.step();
    }
    assert!(first.taken().is_ok() && kept.iter().all(|keeper| keeper.taken().is_ok()));
}

#[test]
fn those_that_come_together_wait_only_where_there_is_no_room() {
    let catalog = catalog();
    let mut scheduler = Scheduler::new(Capacity {
        sequences: 2,
        waiting: 1,
        ..Capacity::default()
    });
    let mut submit = || submit(&mut scheduler, &catalog, &request(&[PROMPT]));
    let (kept, turned_away) = ([submit(), submit(), submit()], submit());
    assert!(matches!(turned_away.taken(), Err(EngineError::Busy)));
    while !scheduler.is_idle() {
        scheduler.step();
    }
    assert!(kept.iter().all(|keeper| keeper.taken().is_ok()));
}

#[test]
fn a_request_past_its_deadline_ends() {
    let catalog = catalog();
    let mut scheduler = Scheduler::new(Capacity::default());
    let late = GenerationRequest {
        deadline: Some(Duration::ZERO),
        ..request(&[PROMPT])
    };
    let (late, other) = (
        submit(&mut scheduler, &catalog, &late),
        submit(&mut scheduler, &catalog, &request(&[PROMPT])),
    );
    while !scheduler.is_idle() {
        scheduler.step();
    }
    assert!(matches!(late.taken(), Err(EngineError::Deadline)));
    assert!(other.taken().is_ok());
}

#[test]
fn a_request_whose_first_token_is_late_is_turned_away() {
    let catalog = catalog();
    let mut scheduler = Scheduler::new(Capacity::default());
    let within = |first_token_within, max_tokens| GenerationRequest {
        first_token_within: Some(first_token_within),
        max_tokens,
        echo: max_tokens == 0,
        ..request(&[PROMPT])
    };
    let (moment, hour) = (Duration::ZERO, Duration::from_secs(3600));
    let mut submit = |request| submit(&mut scheduler, &catalog, &request);
    // With no tokens to generate the prompt is scored, which no token tells the beginning of.
    let late = [submit(within(moment, 4)), submit(within(moment, 0))];
    let timely = [submit(within(hour, 4)), submit(within(hour, 0))];
    while !scheduler.is_idle() {
        scheduler.step();
    }
    for late in late {
        assert!(matches!(late.taken(), Err(EngineError::Busy)));
    }
    assert!(timely.iter().all(|timely| timely.taken().is_ok()));
}

#[test]
fn a_request_that_has_begun_ends_at_its_deadline_only() {
    let seconds = Duration::from_secs;
    let request = GenerationRequest {
        first_token_within: Some(seconds(2)),
        deadline: Some(seconds(5)),
        ..request(&[PROMPT])
    };
    let overdue = |after, begun| request.overdue(seconds(after), begun);
    assert!(overdue(2, false).is_none() && overdue(5, true).is_none());
    assert!(matches!(overdue(3, false), Some(EngineError::Busy)));
    assert!(matches!(overdue(6, false), Some(EngineError::Busy)));
    assert!(matches!(overdue(6, true), Some(EngineError::Deadline)));
}

#[test]
fn an_arm_that_can_never_run_is_refused() {
    let catalog = catalog();
    let edit = json!({"feature": {"node": "1.resid_in", "channel": 4}, "op": "patch", "to": {"prompt": OTHER}});
    let mut scheduler = Scheduler::new(Capacity {
        sequences: 1,
        ..Capacity::default()
    });
    let keeper = submit(
        &mut scheduler,
        &catalog,
        &steered(&[PROMPT], json!({"edits": [edit]})),
    );
    let Err(EngineError::Invalid { param, .. }) = keeper.taken() else {
        panic!("it was let in");
    };
    assert_eq!(param.as_deref(), Some("steer.edits"));
}

#[test]
fn requests_of_many_arms_do_not_keep_others_waiting() {
    let catalog = catalog();
    let mut scheduler = Scheduler::new(Capacity {
        sequences: 4,
        ..Capacity::default()
    });
    let many = GenerationRequest {
        n: 40,
        ..request(&[PROMPT])
    };
    let many = submit(&mut scheduler, &catalog, &many);
    scheduler.step();
    let one = submit(&mut scheduler, &catalog, &request(&[OTHER]));
    while one.outcome.borrow().is_none() {
        scheduler.step();
    }
    assert!(many.outcome.borrow().is_none(), "forty went first");
}

#[test]
fn a_cache_that_memory_has_no_room_for_fails_its_request_and_no_other() {
    let sound = catalog();
    let mut absurd = Catalog::of(super::pair::pair("pair", 3));
    absurd.pairs.clear();
    let model = absurd.models.get_mut("dense").expect("a model");
    let model = std::sync::Arc::get_mut(model).expect("nobody else's");
    let mut transformer = Transformer::clone(&model.transformer);
    transformer.config.context_length = 1 << 56;
    model.transformer = std::sync::Arc::new(transformer);
    let mut scheduler = Scheduler::new(Capacity::default());
    let before = submit(&mut scheduler, &sound, &request(&[PROMPT]));
    scheduler.step();
    let refused = submit(&mut scheduler, &absurd, &request(&[PROMPT]));
    while !scheduler.is_idle() {
        scheduler.step();
    }
    let Err(EngineError::NoMemory(problem)) = refused.taken() else {
        panic!("memory has no room for it");
    };
    assert!(problem.contains("key-value cache"), "{problem}");
    let expected = answer(&sound, &request(&[PROMPT]));
    assert_eq!(
        bits(&before.taken().expect("an answer").choices[0]),
        bits(&expected.choices[0])
    );
}
