//! What a plan costs, before any of it is carried out: the bytes that are kept for an answer's receipts, activations
//! and control arms, and the arithmetic that its edits add to every token.

use super::operation::Action;
use super::plan::{Plan, Route, Scene};
use super::receipt::{Record, told_channels};
use super::request::Variant;
use super::subject::Subject;

/// A touched token in a receipt, and the same in JSON, both without its text.
const TOUCHED_TOKEN: usize = 48 + 152;
/// A byte of a token's text, and the same in JSON, escaped or a replacement character.
const TEXT: usize = 3 + 6;
/// Two numbers of a token in activations, and the same in JSON.
const ACTIVATION: usize = 8 + 24;
/// A channel with its weight, and the same in JSON.
const CHANNEL: usize = 16 + 48;
/// An edit's other fields, in a receipt or in activations.
const EDIT: usize = 512;

/// Bytes kept for arms of a plan with so many tokens each, whose texts have so many bytes.
pub fn kept_bytes(
    plan: &Plan,
    scene: &Scene,
    arms: impl Iterator<Item = (Variant, usize, usize)>,
) -> usize {
    let edits = plan.edits.len();
    let channels = plan.edits.iter().map(told_channels);
    let listed = edits * EDIT + channels.sum::<usize>() * CHANNEL;
    let vocabulary = scene.model.config.vocab_size;
    let directions: usize = plan
        .edits
        .iter()
        .map(|edit| 4 * edit.changed_width(scene))
        .sum();
    let told = |variant: Variant, tokens: usize, text: usize| {
        let edited = variant != Variant::Baseline;
        let (receipt, activations) = (plan.receipt && edited, plan.activations);
        let mut bytes = 0usize;
        if receipt || activations {
            bytes += edits
                .saturating_mul(tokens)
                .saturating_mul(size_of::<Record>());
        }
        if receipt {
            let touched = tokens.saturating_mul(TOUCHED_TOKEN);
            let texts = text.saturating_mul(TEXT);
            bytes += listed + edits.saturating_mul(touched.saturating_add(texts));
        }
        if activations {
            bytes += listed + edits.saturating_mul(tokens).saturating_mul(ACTIVATION);
        }
        if plan.receipt {
            // The logits that its divergence from the baseline is taken of.
            bytes += 4 * vocabulary;
        }
        if matches!(variant, Variant::Random | Variant::RandomFeature) {
            bytes += directions;
        }
        bytes
    };
    arms.fold(0, |sum: usize, (variant, tokens, text)| {
        sum.saturating_add(told(variant, tokens, text))
    })
}

/// Multiplications that the edits add to each token of an arm.
pub fn work_per_token(plan: &Plan) -> usize {
    let edits = plan.edits.iter().map(|edit| {
        let read = match (&edit.subject, &edit.action) {
            (Subject::Direction(direction), _) => 4 * direction.vector.len(),
            (Subject::Channels(group) | Subject::OwnChannels(group), Action::Patch { .. }) => {
                8 * group.channels.len()
            }
            (Subject::Channels(group) | Subject::OwnChannels(group), _) => 6 * group.channels.len(),
        };
        let tests = edit.condition.iter().flat_map(|condition| &condition.tests);
        let tested: usize = tests.map(|test| test.subject.width()).sum();
        let written = match &edit.route {
            Route::Carried(carrier) => carrier.work(),
            Route::InPlace | Route::Replayed => 0,
        };
        read + tested + written
    });
    let replays = plan.replays.iter().map(|replay| replay.carrier.work());
    edits.chain(replays).sum()
}
