//! What one request leaves for the next: a prompt that begins like an earlier one starts where they part, and the
//! answer has the bits of one that starts from nothing.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::pair::{Catalog, answer, model, pair_of, request, steered};
use super::scheduling::{assert_same, submit};
use crate::features::pair::Pair;
use crate::generation::capacity::Capacity;
use crate::generation::engine::Engine;
use crate::generation::health::Probe;
use crate::generation::request::{EngineError, Generation, GenerationRequest};
use crate::generation::scheduler::Scheduler;
use crate::interventions::request::Strength;

pub const CONTEXT: usize = 96;

pub fn catalog() -> Catalog {
    static CATALOG: LazyLock<Catalog> = LazyLock::new(|| Catalog::of(pair_of("pair", 3, CONTEXT)));
    CATALOG.clone()
}

/// The first tokens of one long text.
pub fn text(length: usize) -> Vec<u32> {
    (0..length as u32)
        .map(|at| (at * at + 7 * at + 3) % 251)
        .collect()
}

/// Another text as long as this one.
pub fn other(text: &[u32]) -> Vec<u32> {
    text.iter().map(|id| (id + 1) % 251).collect()
}

/// The prompt with what is said of it changed.
pub fn plain(prompt: &[u32], change: impl FnOnce(&mut GenerationRequest)) -> GenerationRequest {
    let mut request = request(&[prompt]);
    change(&mut request);
    request
}

pub fn edit(changes: Value) -> Value {
    let mut edit =
        json!({"feature": {"node": "1.resid_in", "channel": 4}, "op": "set", "value": 2.5});
    for (name, value) in changes.as_object().expect("an object") {
        edit[name] = value.clone();
    }
    edit
}

pub fn edited(prompt: &[u32], changes: Value) -> GenerationRequest {
    steered(&[prompt], json!({"edits": [edit(changes)]}))
}

/// To the bit, with the alternatives of every token.
pub fn assert_equal(found: &Generation, cold: &Generation, what: &str) {
    assert_same(found, cold, what);
    let alternatives = |generation: &Generation| -> Vec<(u32, u32)> {
        let choices = generation.choices.iter();
        let tokens = choices.flat_map(|choice| choice.prompt.iter().chain(&choice.tokens));
        tokens
            .flat_map(|token| &token.top)
            .map(|(id, logprob)| (*id, logprob.to_bits()))
            .collect()
    };
    assert_eq!(alternatives(found), alternatives(cold), "{what}");
    assert_eq!(
        (found.prompt_tokens, found.completion_tokens),
        (cold.prompt_tokens, cold.completion_tokens)
    );
}

/// An engine's scheduler, and the requests that nobody else shares it with.
pub struct Served<'o> {
    scheduler: Scheduler<'o>,
    catalog: Catalog,
}

impl Served<'_> {
    pub fn new(capacity: Capacity) -> Self {
        Served {
            scheduler: Scheduler::new(capacity),
            catalog: catalog(),
        }
    }

    fn run(&mut self, request: &GenerationRequest) -> Generation {
        let keeper = submit(&mut self.scheduler, &self.catalog, request);
        while !self.scheduler.is_idle() {
            self.scheduler.step();
        }
        keeper.taken().expect("an answer")
    }

    /// The prompt tokens that a request need not run, its answer being what it would be anyway.
    pub fn cached(&mut self, request: &GenerationRequest) -> usize {
        let found = self.run(request);
        assert_equal(&found, &answer(&self.catalog, request), "beside a cold one");
        found.cached_tokens
    }
}

#[test]
fn whole_blocks_are_left_and_the_last_token_is_always_run() {
    for (length, expected) in [
        (1, 0),
        (15, 0),
        (16, 15),
        (17, 16),
        (32, 31),
        (48, 47),
        (50, 48),
    ] {
        let mut served = Served::new(Capacity::default());
        let request = plain(&text(length), |_| {});
        assert_eq!(served.cached(&request), 0, "{length} tokens, first");
        assert_eq!(served.cached(&request), expected, "{length} tokens, again");
        let kept = served.scheduler.kept();
        assert_eq!(
            (kept.queried_tokens, kept.hit_tokens),
            match length {
                // Nothing of one token can be left out.
                1 => (0, 0),
                _ => (2 * length, expected),
            }
        );
    }
}

#[test]
fn a_text_goes_on_where_an_earlier_one_ended() {
    let mut served = Served::new(Capacity::default());
    let first = plain(&text(30), |request| request.max_tokens = 20);
    let said = served.run(&first).choices.remove(0).tokens;
    // Another turn of a conversation: of what was said the last token was never fed back.
    let mut longer = text(30);
    longer.extend(said.iter().map(|token| token.id));
    longer.extend([1, 2, 3, 4, 5]);
    assert_eq!(served.cached(&plain(&longer, |_| {})), 48);
    let mut parted = longer.clone();
    parted[20] += 1;
    assert_eq!(served.cached(&plain(&parted, |_| {})), 16);
    let two = GenerationRequest {
        prompts: vec![longer, text(31)],
        ..request(&[])
    };
    assert_eq!(served.cached(&two), 48 + 16);
}

#[test]
fn only_the_same_edits_on_the_same_tokens_are_taken_up() {
    let prompt = text(50);
    let late = |value: f64| {
        edited(
            &prompt,
            json!({"value": value, "at": {"prompt": [[40, null]]}}),
        )
    };
    let mut served = Served::new(Capacity::default());
    for (name, request, expected) in [
        ("first", late(1.0), 0),
        ("before the first edited token", late(2.0), 32),
        ("unedited", plain(&prompt, |_| {}), 32),
        ("edited everywhere", edited(&prompt, json!({})), 0),
        ("the same", late(1.0), 48),
        (
            "the same in other words",
            {
                let request = late(-1.0);
                let mut steer = request.steer.expect("edits");
                steer.edits[0].value = Some(2.0);
                steer.edits[0].strength = Some(Strength::One(1.0));
                GenerationRequest {
                    steer: Some(steer),
                    ..request
                }
            },
            48,
        ),
        (
            "of another strength",
            edited(&prompt, json!({"strength": 0.5})),
            0,
        ),
        (
            "of another channel",
            edited(
                &prompt,
                json!({"feature": {"node": "1.resid_in", "channel": 5}}),
            ),
            0,
        ),
        (
            "of another operation",
            edited(&prompt, json!({"op": "add"})),
            0,
        ),
        (
            "under a condition",
            edited(
                &prompt,
                json!({
                    "when": {"all": [{"feature": {"node": "0.resid_in", "channel": 1}, "gt": 0.0}]}
                }),
            ),
            0,
        ),
        (
            "under another",
            edited(
                &prompt,
                json!({
                    "when": {"all": [{"feature": {"node": "0.resid_in", "channel": 1}, "gt": 0.1}]}
                }),
            ),
            0,
        ),
        (
            "read elsewhere",
            edited(&prompt, json!({"read": "encoder"})),
            0,
        ),
        (
            "of two",
            steered(
                &[&prompt],
                json!({"edits": [edit(json!({})), edit(json!({"value": 1}))]}),
            ),
            0,
        ),
        // Whatever comes behind them, sixteen tokens are edited alike.
        (
            "on fewer tokens",
            edited(
                &prompt,
                json!({"at": {"prompt": [[0, 20]], "generation": "none"}}),
            ),
            16,
        ),
        ("as at first", edited(&prompt, json!({})), 48),
    ] {
        assert_eq!(served.cached(&request), expected, "{name}");
    }
}

#[test]
fn counterfactuals_are_told_apart() {
    let prompt = text(50);
    let patched = |prompt: &[u32], to: &[u32]| {
        let to = json!({"prompt": to, "align": "end"});
        edited(prompt, json!({"op": "patch", "value": null, "to": to}))
    };
    let (second, mut third) = (other(&prompt), other(&prompt));
    third[49] = 0;
    let mut served = Served::new(Capacity::default());
    assert_eq!(served.cached(&patched(&prompt, &second)), 0);
    // All but its last token is the same, and so could be what is patched.
    assert_eq!(served.cached(&patched(&prompt, &third)), 0);
    assert_eq!(served.cached(&patched(&prompt, &second)), 48);
    // The same texts with another token beside each.
    assert_eq!(served.cached(&patched(&prompt[..49], &second)), 0);
}

/// The pair's models with a bridge of other weights between them.
fn with_another_bridge(catalog: &Catalog) -> Catalog {
    let other = pair_of("pair", 4, CONTEXT);
    let pair = Pair {
        bridge: other.bridge,
        fingerprint: other.fingerprint,
        ..Pair::clone(&catalog.pairs["pair"])
    };
    Catalog::of(pair)
}

#[test]
fn neither_models_nor_bridges_nor_salts_share_anything() {
    let prompt = text(50);
    let mut served = Served::new(Capacity::default());
    let salted = |salt: &str| {
        plain(&prompt, |request| {
            request.cache_salt = Some(salt.to_owned())
        })
    };
    for (name, request, expected) in [
        ("dense", plain(&prompt, |_| {}), 0),
        (
            "sparse",
            GenerationRequest {
                model: model("sparse"),
                ..request(&[&prompt])
            },
            0,
        ),
        ("a salt", salted("one"), 0),
        ("another salt", salted("two"), 0),
        ("the same salt", salted("one"), 48),
        ("no salt", plain(&prompt, |_| {}), 48),
        // What the sparse model has read of the prompt is known.
        ("edited", edited(&prompt, json!({})), 0),
    ] {
        assert_eq!(served.cached(&request), expected, "{name}");
    }
    served.catalog = with_another_bridge(&served.catalog);
    assert_eq!(
        served.cached(&edited(&prompt, json!({}))),
        0,
        "another bridge"
    );
    assert_eq!(
        served.cached(&plain(&prompt, |_| {})),
        48,
        "the same dense model"
    );
    served.catalog = catalog();
    assert_eq!(served.cached(&edited(&prompt, json!({}))), 48);
}

#[test]
fn what_is_not_used_for_the_longest_time_makes_room() {
    // Sixteen tokens of the dense model: two layers' keys and values of sixteen channels.
    let block = 2 * 2 * 16 * 16 * size_of::<f32>();
    let mut served = Served::new(Capacity::default());
    served.scheduler = Scheduler::keeping(Capacity::default(), 7 * block + 1);
    let prompt = |first: u32| {
        let mut prompt = text(40);
        prompt[0] = first;
        plain(&prompt, |request| request.max_tokens = 1)
    };
    let bytes = |served: &Served| served.scheduler.kept().bytes;
    for first in 0..3 {
        assert_eq!(served.cached(&prompt(first)), 0);
        assert_eq!(bytes(&served), (first as usize + 1) * 2 * block);
    }
    assert_eq!(served.cached(&prompt(0)), 32, "all three have room");
    assert_eq!(served.cached(&prompt(3)), 0);
    assert_eq!(bytes(&served), 7 * block, "only one block had to go");
    for (first, expected) in [(0, 32), (3, 32), (2, 32), (1, 16)] {
        assert_eq!(served.cached(&prompt(first)), expected, "{first}");
        assert!(bytes(&served) <= 7 * block);
    }
    // A text alone that is too long for all the room leaves its beginning.
    served.scheduler = Scheduler::keeping(Capacity::default(), 2 * block);
    let long = plain(&text(60), |_| {});
    assert_eq!((served.cached(&long), served.cached(&long)), (0, 32));
    assert_eq!(bytes(&served), 2 * block);
    served.scheduler = Scheduler::keeping(Capacity::default(), block - 1);
    assert_eq!((served.cached(&long), served.cached(&long)), (0, 0));
    assert_eq!(bytes(&served), 0);
}

#[test]
fn nothing_is_kept_where_the_setting_says_so() {
    let mut served = Served::new(Capacity {
        prefix_cache_mib: 0,
        ..Capacity::default()
    });
    for _ in 0..2 {
        assert_eq!(served.cached(&plain(&text(50), |_| {})), 0);
    }
    assert_eq!(served.scheduler.kept(), Default::default());
}

#[test]
fn a_model_that_goes_takes_what_is_kept_of_it_along() {
    let mut served = Served::new(Capacity::default());
    let request = plain(&text(50), |_| {});
    served.cached(&request);
    let of_one = served.scheduler.kept().bytes;
    served.catalog = Catalog::of(pair_of("pair", 3, CONTEXT));
    assert_eq!(
        served.cached(&request),
        0,
        "a model of equal weights is another one"
    );
    assert_eq!(served.scheduler.kept().bytes, 2 * of_one);
    served.catalog = catalog();
    served.scheduler.forget_unused();
    assert_eq!(served.scheduler.kept().bytes, of_one);
    assert_eq!(served.cached(&request), 48);
}

#[test]
fn who_leaves_leaves_whole_blocks() {
    let mut served = Served::new(Capacity {
        prefill_tokens: 21,
        ..Capacity::default()
    });
    let request = plain(&text(60), |_| {});
    let leaving = submit(&mut served.scheduler, &served.catalog, &request);
    served.scheduler.step();
    served.scheduler.step();
    leaving.gone.set(true);
    served.scheduler.step();
    assert!(leaving.taken().is_err() && served.scheduler.is_idle());
    // Of forty-two tokens.
    assert_eq!(served.cached(&request), 32);
}

/// Panics when a prompt has this many tokens.
struct Unlucky(usize);

impl Probe for Unlucky {
    fn computing(&self, request: &GenerationRequest) -> Result<(), EngineError> {
        assert_ne!(request.prompts[0].len(), self.0, "on purpose");
        Ok(())
    }
}

#[tokio::test]
async fn nothing_outlives_a_panic() {
    let engine = Engine::start_probed(Capacity::default(), Box::new(Unlucky(13)));
    let engine = engine.expect("a thread");
    let catalog = catalog();
    let ask = |length| engine.generate(catalog.resolved(&plain(&text(length), |_| {})));
    let cold = ask(50).await.expect("an answer");
    assert!(engine.kept().bytes > 0);
    assert_eq!(ask(50).await.expect("an answer").cached_tokens, 48);
    assert!(ask(13).await.is_err());
    engine.ping().await.expect("alive");
    assert_eq!(engine.kept().bytes, 0);
    let after = ask(50).await.expect("an answer");
    assert_equal(&after, &cold, "after a panic");
    assert_eq!(after.cached_tokens, 0);
}

#[test]
fn those_who_run_at_the_same_time_take_up_each_other_s_blocks() {
    let mut served = Served::new(Capacity {
        prefill_tokens: 32,
        ..Capacity::default()
    });
    let request = plain(&text(70), |_| {});
    let first = submit(&mut served.scheduler, &served.catalog, &request);
    served.scheduler.step();
    let second = submit(&mut served.scheduler, &served.catalog, &request);
    while !served.scheduler.is_idle() {
        served.scheduler.step();
    }
    let cold = answer(&served.catalog, &request);
    let (first, second) = (
        first.taken().expect("an answer"),
        second.taken().expect("an answer"),
    );
    assert_equal(&first, &cold, "the first");
    assert_equal(&second, &cold, "the second");
    assert_eq!((first.cached_tokens, second.cached_tokens), (0, 32));
}

#[test]
fn a_sparse_model_s_blocks_are_those_that_steering_reads() {
    let prompt = text(50);
    let mut served = Served::new(Capacity::default());
    let sparse = GenerationRequest {
        model: model("sparse"),
        ..request(&[&prompt])
    };
    let late = edited(&prompt, json!({"at": {"prompt": [-1]}}));
    assert_eq!(served.cached(&plain(&prompt, |_| {})), 0);
    // The dense model knows the prompt, but not the sparse one that it is read with.
    assert_eq!(served.cached(&late), 0);
    assert_eq!(served.cached(&sparse), 48);
    let mut served = Served::new(Capacity::default());
    assert_eq!(served.cached(&plain(&prompt, |_| {})), 0);
    assert_eq!(served.cached(&sparse), 0);
    assert_eq!(served.cached(&late), 48);
}
