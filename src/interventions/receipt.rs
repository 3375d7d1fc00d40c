//! What was done, token by token, for a caller to check.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::plan::{Edit, Plan, Route, Source};
use super::request::{Operation, Read, Variant};
use super::row_edits::Outcome;
use super::rows_of_arms::SteeredArm;
use super::subject::Subject;
use crate::bridge::record::BridgeRecord;
use crate::features::group::{WeightedChannel, Write};
use crate::models::location::Location;

/// What was done in one arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Receipt {
    /// The bridge that edits were carried over; null for a sparse model's own.
    #[schema(required = true)]
    pub bridge: Option<String>,
    /// Empty for the baseline.
    pub edits: Vec<EditReceipt>,
    /// KL(baseline || this arm) in nats at the first generated token; null where nothing was generated.
    #[schema(required = true)]
    pub kl_to_baseline: Option<f32>,
}

impl Receipt {
    /// All edits' touched tokens.
    pub fn touched(&self) -> impl Iterator<Item = &TouchedToken> {
        self.edits.iter().flat_map(|edit| &edit.tokens)
    }
}

/// Of a circuit's nodes at one place so many are told.
const MOST_TOLD_NODES: usize = 64;

/// One edit as it was resolved, and what it did; of a direction of several sites or a circuit of several places, what it did
/// at one of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EditReceipt {
    /// The registered feature's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub feature: Option<String>,
    /// The circuit whose nodes were edited; left out elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub circuit: Option<CircuitPart>,
    /// The place that was read.
    pub node: String,
    /// The place of the dense model that was changed, where its bridge joins models of different depth; left out
    /// elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub dense_node: Option<String>,
    /// Empty for a raw vector. Of a circuit's nodes the first 64, with equal weights: each moves by itself, and the values of
    /// `tokens` are the sum of all over the root of their number.
    pub channels: Vec<WeightedChannel>,
    pub op: Operation,
    pub strength: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub read: Option<Read>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub write: Option<Write>,
    /// NMSE of the bridge's decoder at the site, over held-out text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub decoder_nmse: Option<f64>,
    /// NMSE of the encoder, where the feature was read through it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub encoder_nmse: Option<f64>,
    /// How many tokens it touched.
    pub tokens_touched: usize,
    pub tokens: Vec<TouchedToken>,
}

/// The part of a circuit that is at one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CircuitPart {
    /// The circuit's id.
    pub id: String,
    /// Whether the nodes are those outside of it.
    pub complement: bool,
    /// How many nodes at this place were edited.
    pub nodes: usize,
}

/// One touched token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TouchedToken {
    /// Counted from the prompt's first token.
    pub position: usize,
    /// The token's text; parts of characters are replacement characters.
    pub text: String,
    /// The feature's value before the edit.
    pub before: f32,
    /// And with its change; a control arm leaves the feature alone.
    pub after: f32,
    /// The norm of what this edit added to the answering model, each edit's own. Only edits inside one sublayer (`q`,
    /// `k`, `v`, `y`, `post_act`, and its `resid_delta` beside them) reach a dense model together, by the change of
    /// the sublayer's output: each of them tells the norm of that whole change.
    pub change_norm: f32,
    /// `change_norm` over the norm of what it was added to, before any edit of that place: the residual stream, or
    /// with `write: sublayer` the sublayer's input after its norm.
    pub relative_change: f32,
}

/// An edited feature on every token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EditActivations {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub feature: Option<String>,
    /// The circuit whose nodes these are; left out elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub circuit: Option<CircuitPart>,
    pub node: String,
    /// As in a receipt.
    pub channels: Vec<WeightedChannel>,
    /// One number for each token that was fed to the model: the prompt, then what was generated but its last.
    pub before: Vec<f32>,
    pub after: Vec<f32>,
}

/// What taps note down of one edit on one token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Record {
    pub touched: bool,
    pub before: f32,
    pub after: f32,
    pub change_norm: f32,
    pub base_norm: f32,
}

impl Record {
    /// Of an edit that was carried out on a row, or only read there.
    pub fn of(touched: bool, outcome: &Outcome) -> Self {
        Record {
            touched,
            before: outcome.before,
            after: outcome.after,
            change_norm: outcome.change_norm,
            base_norm: match touched {
                true => outcome.base_norm,
                false => 0.0,
            },
        }
    }
}

/// The notes of a request; nothing is kept where nothing was asked for.
#[derive(Debug, Default)]
pub struct Records {
    wanted: bool,
    /// By arm and edit, then by position: every token of an arm that is followed has one.
    records: BTreeMap<(usize, usize), Vec<Record>>,
}

impl Records {
    pub fn of(plan: &Plan) -> Self {
        Records {
            wanted: plan.receipt || plan.activations,
            records: BTreeMap::new(),
        }
    }

    /// Whether anything is kept.
    pub fn wanted(&self) -> bool {
        self.wanted
    }

    /// Adds or replaces a record.
    pub fn note(&mut self, arm: usize, edit: usize, position: usize, record: Record) {
        if !self.wanted {
            return;
        }
        let records = self.records.entry((arm, edit)).or_default();
        if records.len() <= position {
            records.resize(position + 1, Record::default());
        }
        records[position] = record;
    }

    /// Completes a record with what its change came to.
    pub fn measure(
        &mut self,
        arm: usize,
        edit: usize,
        position: usize,
        change_norm: f32,
        base_norm: f32,
    ) {
        let records = self.records.get_mut(&(arm, edit));
        if let Some(record) = records.and_then(|records| records.get_mut(position)) {
            record.change_norm = change_norm;
            record.base_norm = base_norm;
        }
    }

    fn of_edit(&self, arm: usize, edit: usize) -> impl Iterator<Item = (usize, &Record)> {
        let records = self.records.get(&(arm, edit));
        records.into_iter().flatten().enumerate()
    }

    /// The receipt of one arm, whose token at a position has this text.
    pub fn receipt(
        &self,
        plan: &Plan,
        record: Option<&BridgeRecord>,
        (index, arm): (usize, &SteeredArm),
        text: impl Fn(usize) -> String,
        kl_to_baseline: Option<f32>,
    ) -> Receipt {
        let edits = plan.edits.iter().enumerate();
        let edits = edits.filter(|_| arm.edits()).map(|(number, edit)| {
            let touched = self
                .of_edit(index, number)
                .filter(|(_, record)| record.touched);
            let tokens: Vec<TouchedToken> = touched
                .map(|(position, record)| TouchedToken {
                    position,
                    text: text(position),
                    before: record.before,
                    after: if arm.variant == Variant::Steered {
                        record.after
                    } else {
                        record.before
                    },
                    change_norm: record.change_norm,
                    relative_change: match record.base_norm > 0.0 {
                        true => record.change_norm / record.base_norm,
                        false => 0.0,
                    },
                })
                .collect();
            let place = edit.subject.place();
            let site = place.site(plan.site_map.sparse_layers()).index();
            let carried = !plan.native && matches!(edit.subject, Subject::Channels(_));
            let fidelity = record
                .filter(|_| carried)
                .and_then(|record| record.sites.get(site));
            EditReceipt {
                feature: edit.name.clone(),
                circuit: circuit_part(edit),
                node: place.to_string(),
                dense_node: dense_node(plan, edit).filter(|_| carried),
                channels: listed_channels(edit),
                op: edit.operation,
                strength: edit.strength.in_arm(arm.strength),
                read: read(edit),
                write: edit.write,
                decoder_nmse: fidelity.map(|site| site.decoder_nmse),
                encoder_nmse: fidelity
                    .filter(|_| edit.source == Source::Encoder)
                    .map(|site| site.encoder_nmse),
                tokens_touched: tokens.len(),
                tokens,
            }
        });
        Receipt {
            bridge: plan.bridge.clone(),
            edits: edits.collect(),
            kl_to_baseline,
        }
    }

    /// The edited features' values in one arm.
    pub fn activations(
        &self,
        plan: &Plan,
        (index, arm): (usize, &SteeredArm),
    ) -> Vec<EditActivations> {
        let edits = plan.edits.iter().enumerate();
        edits
            .map(|(number, edit)| {
                let mut activations = EditActivations {
                    feature: edit.name.clone(),
                    circuit: circuit_part(edit),
                    node: edit.subject.place().to_string(),
                    channels: listed_channels(edit),
                    before: Vec::new(),
                    after: Vec::new(),
                };
                for (_, record) in self.of_edit(index, number) {
                    activations.before.push(record.before);
                    let moved = record.touched && arm.variant == Variant::Steered;
                    activations
                        .after
                        .push(if moved { record.after } else { record.before });
                }
                activations
            })
            .collect()
    }
}

/// How many channels of an edit are told.
pub fn told_channels(edit: &Edit) -> usize {
    match (&edit.subject, &edit.circuit) {
        (Subject::Direction(_), _) => 0,
        (subject, None) => subject.width(),
        (subject, Some(_)) => subject.width().min(MOST_TOLD_NODES),
    }
}

fn listed_channels(edit: &Edit) -> Vec<WeightedChannel> {
    let mut channels = edit.subject.channels();
    channels.truncate(told_channels(edit));
    channels
}

fn circuit_part(edit: &Edit) -> Option<CircuitPart> {
    let circuit = edit.circuit.as_ref()?;
    Some(CircuitPart {
        id: circuit.id.clone(),
        complement: circuit.complement,
        nodes: edit.subject.width(),
    })
}

/// Where the dense model is changed, if its sites are not those of the sparse model.
fn dense_node(plan: &Plan, edit: &Edit) -> Option<String> {
    let changed = match &edit.route {
        Route::Carried(carrier) => carrier.target,
        Route::InPlace | Route::Replayed => {
            Location::Site(edit.subject.answering_site(&plan.site_map))
        }
    };
    (!plan.site_map.is_identity()).then(|| changed.to_string())
}

fn read(edit: &Edit) -> Option<Read> {
    match edit.source {
        Source::Own | Source::Unread => None,
        Source::Sparse => Some(Read::Sparse),
        Source::Encoder => Some(Read::Encoder),
    }
}
