//! Plans: a `steer` field with every name resolved, every number checked and everything computed that does not
//! depend on the tokens, once per request. What a plan holds can be carried out; what cannot be is refused here.

mod address;
mod circuit_nodes;
pub mod condition;
pub mod counterfactual;
mod each_node;
mod edit;
mod place_name;
mod scene;
mod source;
mod span;
mod statistics;
#[cfg(test)]
pub mod test_circuit;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::carry::{Carrier, KnownColumns};
use super::operation::Action;
use super::request::{EditRequest, Return, SteerRequest, Strength, Variant};
use super::subject::Subject;
use crate::bridge::site_map::SiteMap;
use crate::features::group::Write;
use crate::models::location::{Location, Site};

use counterfactual::{Stream, StreamModel};

use address::resolve_parts;

pub use address::{Resolved, resolve};
pub use edit::{Edit, EditedCircuit, Route, needs_sparse_rms, sublayer_output};
pub use scene::{PlanError, Scene, refused};
pub use source::Source;
pub use statistics::UnmeasuredGroups;

/// No request has more edits.
pub const MOST_EDITS: usize = 64;
/// Nor do they come to more, each site of a direction of several counted.
const MOST_EDITED_PLACES: usize = 1024;
/// Nor do its circuits come to more nodes, each edit's counted: they are listed one by one.
const MOST_CIRCUIT_NODES: usize = 1 << 20;
/// Nor do the dense columns that nodes of circuits are carried with take more bytes.
const MOST_COLUMN_BYTES: usize = 1 << 28;
/// No sweep has more strengths.
pub const LONGEST_SWEEP: usize = 64;
/// Strengths lie between this and its negative.
pub const LARGEST_STRENGTH: f64 = 10.0;

/// A second run of one sparse sublayer with edits inside it.
#[derive(Debug, Clone)]
pub struct Replay {
    /// The sublayer's residual delta, whose change is carried.
    pub output: Location,
    pub edits: Vec<usize>,
    /// Where the edits are, and the output.
    pub places: BTreeSet<Location>,
    /// Of every channel of the delta, in order.
    pub carrier: Carrier,
}

/// What happens at a site of a dense model, in the order of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Edit(usize),
    Replay(usize),
}

/// A validated request.
#[derive(Debug, Clone)]
pub struct Plan {
    pub bridge: Option<String>,
    pub native: bool,
    /// Layers of the model that answers.
    pub n_layers: usize,
    /// Where places of the sparse model are joined to it.
    pub site_map: SiteMap,
    pub edits: Vec<Edit>,
    pub replays: Vec<Replay>,
    pub streams: Vec<Stream>,
    /// The arms of each sample.
    pub variants: Vec<Variant>,
    /// The request named its variants.
    pub names_variants: bool,
    pub sweep: Option<Vec<f64>>,
    pub receipt: bool,
    pub activations: bool,
    /// The dense model's steps, by site; empty for a sparse model.
    pub steps: BTreeMap<Site, Vec<Step>>,
    /// The edits of a dense model's own nodes, by their place in its pass.
    pub own_edits: BTreeMap<Location, Vec<usize>>,
    /// Where the answering model is looked at or changed.
    pub places: BTreeSet<Location>,
}

/// The groups of a request that must be measured over reference text before it can be planned.
pub fn unmeasured_groups(request: &SteerRequest, scene: &Scene) -> UnmeasuredGroups {
    let mut groups = UnmeasuredGroups::default();
    for edit in request.edits.iter().take(MOST_EDITS) {
        groups.add(edit, scene);
    }
    groups
}

impl Plan {
    /// Checks and resolves a request.
    pub fn new(request: &SteerRequest, scene: &Scene) -> Result<Self, PlanError> {
        let variants = variants(request)?;
        if request.edits.len() > MOST_EDITS {
            let message = format!(
                "there are {} edits; a request has at most {MOST_EDITS}",
                request.edits.len()
            );
            return Err(refused(message, "steer.edits"));
        }
        let mut plan = Plan {
            bridge: scene.pair.map(|pair| pair.id().to_owned()),
            native: scene.native,
            n_layers: scene.n_layers(),
            site_map: scene.site_map(),
            edits: Vec::new(),
            replays: Vec::new(),
            streams: Vec::new(),
            variants,
            names_variants: request.variants.is_some(),
            sweep: sweep(&request.edits)?,
            receipt: request.returns.contains(&Return::Receipt),
            activations: request.returns.contains(&Return::Activations),
            steps: BTreeMap::new(),
            own_edits: BTreeMap::new(),
            places: BTreeSet::new(),
        };
        let mut columns = KnownColumns::new();
        let mut of_circuits = CircuitSize::default();
        for (index, asked) in request.edits.iter().enumerate() {
            let param = format!("steer.edits[{index}]");
            edit::arguments(asked, &param)?;
            let feature = format!("{param}.feature");
            let parts = resolve_parts(&asked.feature, scene, &feature)?;
            if plan.edits.len() + parts.len() > MOST_EDITED_PLACES {
                let message = format!(
                    "with each site of its directions and each place of its circuits counted the request has more than \
                     {MOST_EDITED_PLACES} edits"
                );
                return Err(refused(message, &feature));
            }
            of_circuits.add(&parts, scene, &feature)?;
            for resolved in parts {
                let edit = edit::compile(
                    asked,
                    resolved,
                    scene,
                    &mut plan.streams,
                    &mut columns,
                    &param,
                )?;
                plan.edits.push(edit);
            }
        }
        if !plan.native {
            plan.place_conditions();
            plan.gather_replays(scene, &mut columns)?;
            plan.leave_unread();
            plan.order_steps();
        }
        plan.places = plan.answering_places();
        Ok(plan)
    }

    /// No edit: nothing differs from an unsteered run.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// Conditions see unedited values, whatever is edited before the place that they look at.
    fn place_conditions(&mut self) {
        let site_map = &self.site_map;
        let sites = self.edits.iter();
        let sites = sites.map(|edit| edit.subject.answering_site(site_map));
        let Some(first_edited) = sites.min() else {
            return;
        };
        for condition in self.edits.iter_mut().flat_map(|edit| &mut edit.condition) {
            condition.look_beside_edits(first_edited, site_map);
        }
    }

    /// Edits inside one sublayer share its second run, and edits of its output made by the sparse model's own
    /// values join them, so that each sees what its predecessors left.
    fn gather_replays(
        &mut self,
        scene: &Scene,
        columns: &mut KnownColumns,
    ) -> Result<(), PlanError> {
        let mut outputs: Vec<Location> = Vec::new();
        for edit in &self.edits {
            if let (Route::Replayed, Some(output)) =
                (&edit.route, sublayer_output(edit.subject.place()))
                && !outputs.contains(&output)
            {
                outputs.push(output);
            }
        }
        for output in outputs {
            let inside = |edit: &Edit| {
                let place = edit.subject.place();
                matches!(edit.route, Route::Replayed) && sublayer_output(place) == Some(output)
                    || place == output
                        && edit.source == Source::Sparse
                        && judged_by_sparse_values(edit)
            };
            let edits: Vec<usize> = (0..self.edits.len())
                .filter(|&index| inside(&self.edits[index]))
                .collect();
            for &index in &edits {
                self.edits[index].route = Route::Replayed;
            }
            let pair = scene.pair("steer.bridge")?;
            let channels: Vec<usize> = (0..pair.sparse.config.d_model).collect();
            let carrier = Carrier::sharing(
                &pair.dense,
                &pair.sparse,
                &pair.bridge,
                output,
                &channels,
                Write::Residual,
                1.0,
                columns,
            )?;
            let carrier = carrier.map_err(|error| refused(error.to_string(), "steer.edits"))?;
            let inside = edits.iter().map(|&index| self.edits[index].subject.place());
            self.replays.push(Replay {
                places: inside.chain([output]).collect(),
                output,
                edits,
                carrier,
            });
        }
        Ok(())
    }

    /// An `add` moves a feature by the same amount wherever it stands. Unless the caller asked for the values, or
    /// another edit goes on from them, they need not be read, and the model that has them need not run.
    fn leave_unread(&mut self) {
        if self.receipt || self.activations {
            return;
        }
        let adds = |edit: &Edit| {
            matches!(edit.action, Action::Add(_))
                && matches!(edit.route, Route::Carried(_))
                && !needs_sparse_rms(edit)
        };
        let read: BTreeSet<(Location, Source)> = self
            .edits
            .iter()
            .filter(|edit| !adds(edit))
            .map(|edit| (edit.subject.place(), edit.source))
            .collect();
        for edit in &mut self.edits {
            if adds(edit) && !read.contains(&(edit.subject.place(), edit.source)) {
                edit.source = Source::Unread;
            }
        }
    }

    /// The first site of the answering model at or behind which anything is looked at.
    pub fn first_site(&self) -> Option<Site> {
        let places = self.places.iter();
        places.map(|place| place.site_before(self.n_layers)).min()
    }

    fn answering_places(&self) -> BTreeSet<Location> {
        if self.native {
            return self.edits.iter().map(|edit| edit.subject.place()).collect();
        }
        let sites = Site::all(self.n_layers).filter(|site| {
            self.steps.contains_key(site)
                || self.watches(*site)
                || !self.encoder_places(*site).is_empty()
                || !self.unedited_encoder_places(*site).is_empty()
        });
        let targets = self.edits.iter().filter_map(|edit| match &edit.route {
            Route::Carried(carrier) => Some(carrier.target),
            Route::InPlace | Route::Replayed => None,
        });
        let own = self.own_edits.keys().copied();
        sites
            .map(Location::Site)
            .chain(targets)
            .chain(own)
            .collect()
    }

    fn order_steps(&mut self) {
        for (index, edit) in self.edits.iter().enumerate() {
            if let Subject::OwnChannels(group) = &edit.subject {
                self.own_edits.entry(group.place).or_default().push(index);
                continue;
            }
            let step = match edit.route {
                Route::InPlace | Route::Carried(_) => Step::Edit(index),
                Route::Replayed => {
                    match self
                        .replays
                        .iter()
                        .position(|replay| replay.edits.first() == Some(&index))
                    {
                        Some(replay) => Step::Replay(replay),
                        None => continue,
                    }
                }
            };
            self.steps
                .entry(edit.subject.answering_site(&self.site_map))
                .or_default()
                .push(step);
        }
    }

    /// The places read in the unedited sparse model.
    pub fn sparse_places(&self) -> BTreeSet<Location> {
        let mut places: BTreeSet<Location> =
            self.replays.iter().map(|replay| replay.output).collect();
        for edit in &self.edits {
            let place = edit.subject.place();
            if edit.source == Source::Sparse {
                places.insert(place);
                if needs_sparse_rms(edit) {
                    places.insert(Location::Site(place.site(self.site_map.sparse_layers())));
                }
            }
            if self.stream_model(edit) == Some(StreamModel::Sparse) {
                places.insert(place);
            }
            places.extend(tests(edit, Source::Sparse).map(|test| test.subject.place()));
        }
        places
    }

    /// Whether the unedited sparse model runs on the arms' own tokens.
    pub fn reads_sparse(&self) -> bool {
        !self.replays.is_empty()
            || self.edits.iter().any(|edit| {
                edit.source == Source::Sparse || tests(edit, Source::Sparse).next().is_some()
            })
    }

    /// The places read in unedited runs of the dense model.
    pub fn dense_places(&self) -> BTreeSet<Location> {
        let reading = self
            .edits
            .iter()
            .filter(|edit| self.stream_model(edit) == Some(StreamModel::Dense));
        reading
            .map(|edit| &edit.subject)
            .chain(self.unedited_tests().map(|test| &test.subject))
            .map(|subject| subject.answering_place(&self.site_map))
            .collect()
    }

    /// Whether the dense model also runs without edits on the arms' own tokens.
    pub fn reads_dense(&self) -> bool {
        self.unedited_tests().next().is_some()
    }

    fn unedited_tests(&self) -> impl Iterator<Item = &condition::Test> {
        let conditions = self.edits.iter().flat_map(|edit| &edit.condition);
        let tests = conditions.flat_map(|condition| &condition.tests);
        tests.filter(|test| test.needs_unedited_run)
    }

    /// The streams that one model runs.
    pub fn streams_of(&self, model: StreamModel) -> Vec<usize> {
        let indices = 0..self.streams.len();
        indices
            .filter(|&index| self.streams[index].model == model)
            .collect()
    }

    /// The sparse model's places whose encoder values are read at `site` in the answering model's pass.
    pub fn encoder_places(&self, site: Site) -> BTreeSet<Location> {
        let edited = self
            .edits
            .iter()
            .filter(|edit| edit.source == Source::Encoder);
        let edited = edited.map(|edit| edit.subject.place());
        let tested = self
            .edits
            .iter()
            .flat_map(|edit| tests(edit, Source::Encoder))
            .filter(|test| !test.needs_unedited_run);
        edited
            .chain(tested.map(|test| test.subject.place()))
            .filter(|place| self.site_map.dense_site(*place) == site)
            .collect()
    }

    /// The sparse model's places whose encoder values are read at `site` in the dense model's unedited runs.
    pub fn unedited_encoder_places(&self, site: Site) -> BTreeSet<Location> {
        let patched = self.edits.iter().filter(|edit| {
            edit.source == Source::Encoder && self.stream_model(edit) == Some(StreamModel::Dense)
        });
        let tested = self
            .unedited_tests()
            .filter(|test| test.source == Source::Encoder);
        patched
            .map(|edit| edit.subject.place())
            .chain(tested.map(|test| test.subject.place()))
            .filter(|place| self.site_map.dense_site(*place) == site)
            .collect()
    }

    /// Whether a condition looks at the answering model's own stream at `site`.
    pub fn watches(&self, site: Site) -> bool {
        let tested = self.edits.iter().flat_map(|edit| tests(edit, Source::Own));
        tested
            .filter(|test| !test.needs_unedited_run)
            .any(|test| test.subject.place() == Location::Site(site))
    }

    fn stream_model(&self, edit: &Edit) -> Option<StreamModel> {
        match edit.action {
            Action::Patch { stream } => Some(self.streams[stream].model),
            _ => None,
        }
    }
}

fn tests(edit: &Edit, source: Source) -> impl Iterator<Item = &condition::Test> {
    let tests = edit.condition.iter().flat_map(|condition| &condition.tests);
    tests.filter(move |test| test.source == source)
}

/// How much the circuits of a request come to.
#[derive(Default)]
struct CircuitSize {
    nodes: usize,
    column_bytes: usize,
}

impl CircuitSize {
    /// Adds an edit's parts, where they are nodes of a circuit.
    fn add(&mut self, parts: &[Resolved], scene: &Scene, param: &str) -> Result<(), PlanError> {
        for part in parts.iter().filter(|part| part.nodes.is_some()) {
            let (place, nodes) = (part.subject.place(), part.subject.width());
            self.nodes += nodes;
            // What is inside a sublayer is carried by its output's columns, whichever of its nodes are edited.
            let is_carried = matches!(part.subject, Subject::Channels(_)) && !scene.native;
            if is_carried && sublayer_output(place).is_none() {
                let column = scene.model.config.d_model * size_of::<f32>();
                self.column_bytes = self
                    .column_bytes
                    .saturating_add(nodes.saturating_mul(column));
            }
        }
        if self.nodes > MOST_CIRCUIT_NODES {
            let message = format!(
                "the circuits of this request come to more than {MOST_CIRCUIT_NODES} nodes; ask for fewer edits, or for \
                 one `node` of a complement"
            );
            return Err(refused(message, param));
        }
        if self.column_bytes > MOST_COLUMN_BYTES {
            let message = format!(
                "carrying these nodes over the bridge takes {} MiB of columns; at most {} are taken: edit the sparse model \
                 itself, or one `node` at a time",
                self.column_bytes >> 20,
                MOST_COLUMN_BYTES >> 20
            );
            return Err(refused(message, param));
        }
        Ok(())
    }
}

fn judged_by_sparse_values(edit: &Edit) -> bool {
    let mut tests = edit.condition.iter().flat_map(|condition| &condition.tests);
    tests.all(|test| test.source == Source::Sparse)
}

fn variants(request: &SteerRequest) -> Result<Vec<Variant>, PlanError> {
    let Some(variants) = &request.variants else {
        return Ok(vec![Variant::Steered]);
    };
    let different: BTreeSet<Variant> = variants.iter().copied().collect();
    if variants.is_empty() || different.len() != variants.len() {
        return Err(refused(
            "`variants` names at least one variant, each once",
            "steer.variants",
        ));
    }
    Ok(variants.clone())
}

fn sweep(edits: &[EditRequest]) -> Result<Option<Vec<f64>>, PlanError> {
    let mut sweep: Option<Vec<f64>> = None;
    for (index, edit) in edits.iter().enumerate() {
        let param = format!("steer.edits[{index}].strength");
        let strengths = match &edit.strength {
            None => continue,
            Some(Strength::One(strength)) => std::slice::from_ref(strength),
            Some(Strength::Sweep(strengths)) => strengths.as_slice(),
        };
        if strengths.is_empty() || strengths.len() > LONGEST_SWEEP {
            let message = format!(
                "a sweep has 1 to {LONGEST_SWEEP} strengths, not {}",
                strengths.len()
            );
            return Err(refused(message, &param));
        }
        let allowed = -LARGEST_STRENGTH..=LARGEST_STRENGTH;
        let outside = |strength: &&f64| !allowed.contains(*strength);
        if let Some(strength) = strengths.iter().find(outside) {
            let message =
                format!("strength {strength} is outside -{LARGEST_STRENGTH} to {LARGEST_STRENGTH}");
            return Err(refused(message, &param));
        }
        if let Some(Strength::Sweep(strengths)) = &edit.strength
            && sweep.replace(strengths.clone()).is_some()
        {
            return Err(refused(
                "only one edit of a request can have a list of strengths",
                &param,
            ));
        }
    }
    Ok(sweep)
}
