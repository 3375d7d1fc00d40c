//! What edits do to the tokens of an arm, so that two arms can be compared: whatever decides the values that edits
//! leave in a model beside the arm's own tokens, as one hash, and which tokens each of them touches.
//!
//! A row that no edit touches is an unedited one as long as no row before it is touched: it attends to nothing else.
//! From the first touched token on, keys and values are those of another arm only if both have the same tokens, edits
//! of equal hash, and those edits on the same tokens.

use sha2::{Digest as _, Sha256};

use super::operation::Action;
use super::plan::condition::{Condition, Test};
use super::plan::counterfactual::{Stream, StreamModel};
use super::plan::{Edit, Plan, Route, Scene, Source};
use super::rows_of_arms::SteeredArm;
use super::subject::{Direction, Subject};
use crate::features::group::{Group, Write};
use crate::features::pair::Pair;
use crate::models::location::Location;

/// A Sha256.
pub type Digest = [u8; 32];

/// The parts of a plan's hashes that are the same for all of its arms.
#[derive(Debug)]
pub struct Fingerprints {
    /// Of everything that the edits go over.
    bridge: Digest,
    /// Of each edit.
    edits: Vec<Digest>,
}

/// What some edits of a plan do to the tokens of one arm.
#[derive(Debug, Clone)]
pub struct Effect {
    /// Of all that decides what they do; none where that is this arm's alone.
    pub digest: Option<Digest>,
    /// Their numbers in the plan.
    edits: Vec<usize>,
    prompt: usize,
    prompt_length: usize,
}

impl Fingerprints {
    pub fn of(plan: &Plan, scene: &Scene) -> Self {
        Fingerprints {
            bridge: scene.pair.map_or([0; 32], of_bridge),
            edits: plan.edits.iter().map(of_edit).collect(),
        }
    }

    /// What these edits of the plan do to an arm of prompt number `prompt`; none where there is nothing to do.
    /// `drawn` says that the arm's own directions stand in for the changes.
    pub fn effect(
        &self,
        plan: &Plan,
        edits: Vec<usize>,
        arm: &SteeredArm,
        (prompt, prompt_length): (usize, usize),
        drawn: bool,
    ) -> Option<Effect> {
        if edits.is_empty() || !arm.edits() {
            return None;
        }
        let mut hash = Hash::default();
        hash.bytes(&self.bridge);
        hash.count(edits.len());
        for &edit in &edits {
            hash.bytes(&self.edits[edit]);
            let Edit {
                strength, action, ..
            } = &plan.edits[edit];
            hash.real(strength.in_arm(arm.strength));
            if let Action::Patch { stream } = *action {
                let Stream { model, prompts } = &plan.streams[stream];
                hash.text(match model {
                    StreamModel::Sparse => "sparse",
                    StreamModel::Dense => "dense",
                });
                // A token's partner is counted from the prompt's end.
                hash.count(prompt_length);
                hash.count(prompts[prompt].len());
                prompts[prompt]
                    .iter()
                    .for_each(|&id| hash.count(id as usize));
            }
        }
        Some(Effect {
            digest: (!drawn).then(|| hash.finish()),
            edits,
            prompt,
            prompt_length,
        })
    }
}

impl Effect {
    /// The edits that touch the token at a position, by their places among the effect's.
    pub fn touching(&self, plan: &Plan, position: usize) -> Vec<usize> {
        let touches = |edit: &usize| {
            let span = &plan.edits[*edit].span;
            span.touches(self.prompt, self.prompt_length, position)
        };
        let edits = self.edits.iter().enumerate();
        edits
            .filter(|(_, edit)| touches(edit))
            .map(|(place, _)| place)
            .collect()
    }

    /// The first token of the prompt that any of them touches.
    pub fn first_touched(&self, plan: &Plan) -> Option<usize> {
        (0..self.prompt_length).find(|&position| !self.touching(plan, position).is_empty())
    }
}

/// A hash of values one after another, each so that no two lists of values come to the same bytes.
#[derive(Default)]
struct Hash(Sha256);

impl Hash {
    fn count(&mut self, count: usize) {
        self.0.update((count as u64).to_le_bytes());
    }

    fn real(&mut self, value: f64) {
        self.0.update(value.to_bits().to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn place(&mut self, place: Location) {
        self.text(&place.to_string());
    }

    fn finish(self) -> Digest {
        self.0.finalize().into()
    }
}

/// Everything of a pair that changes are read and carried with.
fn of_bridge(pair: &Pair) -> Digest {
    let mut hash = Hash::default();
    hash.text(&pair.fingerprint);
    hash.text(&pair.dense.fingerprint);
    hash.text(&pair.sparse.fingerprint);
    hash.real(pair.record.encoder_fraction);
    hash.count(pair.bridge.site_map.n_sites());
    for (_, joined) in pair.bridge.site_map.sites() {
        hash.place(Location::Site(joined));
    }
    for site in &pair.record.sites {
        hash.real(site.dense_rms);
        hash.real(site.sparse_rms);
    }
    hash.finish()
}

/// Of one edit, wherever it touches. Every field is named, so that a new one cannot be forgotten.
fn of_edit(edit: &Edit) -> Digest {
    let Edit {
        name: _,
        circuit: _,
        operation: _,
        subject,
        action,
        // The arm's stands in for it in a sweep.
        strength: _,
        span: _,
        condition,
        source,
        route,
        write,
    } = edit;
    let mut hash = Hash::default();
    add_subject(&mut hash, subject);
    add_action(&mut hash, action);
    match condition {
        None => hash.text("always"),
        Some(condition) => add_condition(&mut hash, condition),
    }
    add_source(&mut hash, *source);
    match route {
        Route::InPlace => hash.text("in place"),
        Route::Replayed => hash.text("replayed"),
        // Its columns follow from the bridge, the subject and the way of writing.
        Route::Carried(carrier) => {
            hash.text("carried");
            hash.place(carrier.target);
            hash.count(carrier.times_sparse_rms.into());
        }
    }
    hash.text(match write {
        None => "itself",
        Some(Write::Sublayer) => "sublayer",
        Some(Write::Residual) => "residual",
    });
    hash.finish()
}

fn add_subject(hash: &mut Hash, subject: &Subject) {
    match subject {
        Subject::Channels(group) | Subject::OwnChannels(group) => {
            let Group {
                place,
                channels,
                weights,
            } = group;
            hash.text(match subject {
                Subject::OwnChannels(_) => "own channels",
                _ => "channels",
            });
            hash.place(*place);
            hash.count(channels.len());
            channels.iter().for_each(|&channel| hash.count(channel));
            weights.iter().for_each(|&weight| hash.real(weight));
        }
        Subject::Direction(direction) => {
            let Direction {
                site,
                vector,
                squared_norm,
            } = direction;
            hash.text("direction");
            hash.place(Location::Site(*site));
            hash.count(vector.len());
            vector.iter().for_each(|&value| hash.real(value.into()));
            hash.real(*squared_norm);
        }
    }
}

fn add_action(hash: &mut Hash, action: &Action) {
    match action {
        Action::Add(value) => {
            hash.text("add");
            hash.real(*value);
        }
        Action::AddResidual(value) => {
            hash.text("add residual");
            hash.real(*value);
        }
        Action::Set(value) => {
            hash.text("set");
            hash.real(*value);
        }
        Action::Clamp { min, max } => {
            hash.text("clamp");
            hash.real(*min);
            hash.real(*max);
        }
        Action::Scale(value) => {
            hash.text("scale");
            hash.real(*value);
        }
        Action::Ablate(to) => {
            hash.text("ablate");
            hash.count(to.len());
            to.iter().for_each(|&value| hash.real(value.into()));
        }
        // Its stream is the arm's.
        Action::Patch { stream: _ } => hash.text("patch"),
        Action::Swap => hash.text("swap"),
        Action::AddEach(values) => {
            hash.text("add each");
            hash.count(values.len());
            values.iter().for_each(|&value| hash.real(value));
        }
        Action::ClampEach(bounds) => {
            hash.text("clamp each");
            hash.count(bounds.len());
            for &(min, max) in bounds {
                hash.real(min);
                hash.real(max);
            }
        }
        Action::ScaleEach(value) => {
            hash.text("scale each");
            hash.real(*value);
        }
    }
}

fn add_condition(hash: &mut Hash, condition: &Condition) {
    let Condition { all, tests } = condition;
    hash.text(if *all { "all" } else { "any" });
    hash.count(tests.len());
    for test in tests {
        let Test {
            subject,
            source,
            needs_unedited_run,
            above,
            below,
        } = test;
        add_subject(hash, subject);
        add_source(hash, *source);
        hash.count((*needs_unedited_run).into());
        for bound in [above, below] {
            match bound {
                None => hash.text("open"),
                Some(bound) => {
                    hash.text("bound");
                    hash.real(*bound);
                }
            }
        }
    }
}

fn add_source(hash: &mut Hash, source: Source) {
    hash.text(match source {
        Source::Own => "own",
        Source::Sparse => "sparse",
        Source::Encoder => "encoder",
        Source::Unread => "unread",
    });
}
