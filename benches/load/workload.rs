//! What is asked, and when: all of it follows from a seed.

use std::sync::Arc;
use std::time::Duration;

use causeway::corpus::{CorpusGenerator, Split};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use rand_distr::{Distribution, Exp1};
use serde_json::{Value, json};

/// Different requests; more would only take longer to write.
const KINDS: usize = 512;
/// Where edits are made: inside every pair with two layers of this many channels.
const SITE: &str = "1.resid_mid";
const CHANNELS: usize = 64;

/// What requests are like.
pub struct Mix {
    pub model: String,
    pub steered_share: f64,
    pub streaming_share: f64,
}

/// One completion to ask for.
pub struct Ask {
    pub body: String,
    pub streams: bool,
}

/// A supply of requests and of the pauses between them.
pub struct Workload {
    asks: Vec<Arc<Ask>>,
    rng: StdRng,
}

impl Workload {
    pub fn new(mix: &Mix, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let texts = CorpusGenerator::new(seed, Split::Train);
        let ask = |text: String| Arc::new(ask(mix, &text, &mut rng));
        Workload {
            asks: texts.take(KINDS).map(ask).collect(),
            rng,
        }
    }

    pub fn ask(&mut self) -> Arc<Ask> {
        self.asks.choose(&mut self.rng).expect("some kinds").clone()
    }

    /// The time between two arrivals that do not know of each other, at `rate` a second.
    pub fn pause(&mut self, rate: f64) -> Duration {
        let unit: f64 = Exp1.sample(&mut self.rng);
        Duration::from_secs_f64(unit / rate)
    }

    /// For what else is left to chance.
    pub fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }
}

fn ask(mix: &Mix, text: &str, rng: &mut StdRng) -> Ask {
    let streams = rng.random_bool(mix.streaming_share);
    let length = rng.random_range(8..=400);
    let prompt: String = text.chars().take(length).collect();
    let mut body = json!({
        "model": mix.model, "prompt": prompt, "max_tokens": rng.random_range(1..=64), "seed": rng.random::<u32>()
    });
    if streams {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
    }
    if rng.random_bool(mix.steered_share) {
        body["steer"] = json!({"edits": [edit(rng)]});
    }
    Ask {
        body: body.to_string(),
        streams,
    }
}

/// An edit that needs no run of the sparse model, or one that reads from it.
fn edit(rng: &mut StdRng) -> Value {
    let feature = json!({"node": SITE, "channel": rng.random_range(0..CHANNELS)});
    let value = rng.random_range(0.1..2.0);
    match rng.random_range(0..3) {
        0 => json!({"feature": feature, "op": "add", "value": value}),
        1 => json!({"feature": feature, "op": "set", "value": value, "read": "sparse"}),
        _ => json!({"feature": feature, "op": "scale", "value": value, "read": "encoder"}),
    }
}
