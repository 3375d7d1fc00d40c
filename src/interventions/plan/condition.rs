//! `when`: thresholds on features at the same token, seeing unedited values.

use super::address::resolve;
use super::scene::{PlanError, Scene, refused};
use super::source::Source;
use crate::bridge::site_map::SiteMap;
use crate::interventions::carry::is_sublayer_input;
use crate::interventions::request::{Read, Threshold, When};
use crate::interventions::subject::Subject;
use crate::models::location::{Location, Site};

/// No condition has more thresholds.
pub const MOST_THRESHOLDS: usize = 16;

/// A validated `when`.
#[derive(Debug, Clone)]
pub struct Condition {
    /// Every test must hold; otherwise any one.
    pub all: bool,
    pub tests: Vec<Test>,
}

/// One feature between two bounds, either of which may be absent.
#[derive(Debug, Clone)]
pub struct Test {
    pub subject: Subject,
    pub source: Source,
    /// An edit changes the dense stream before the test's place: the value comes from a run of the dense model
    /// without any edits.
    pub needs_unedited_run: bool,
    pub above: Option<f64>,
    pub below: Option<f64>,
}

/// What a condition may look at, given the edit it belongs to.
pub struct Reach {
    /// How the edit reads its own feature.
    pub read: Option<Read>,
    /// The site at which a dense model is when the edit is computed; none where that is before the dense
    /// model runs.
    pub dense_site: Option<Site>,
}

impl Condition {
    pub fn new(when: &When, scene: &Scene, reach: &Reach, param: &str) -> Result<Self, PlanError> {
        let (all, thresholds, key) = match when {
            When::All(thresholds) => (true, thresholds, "all"),
            When::Any(thresholds) => (false, thresholds, "any"),
        };
        let param = format!("{param}.{key}");
        if thresholds.is_empty() || thresholds.len() > MOST_THRESHOLDS {
            let message = format!(
                "a condition has 1 to {MOST_THRESHOLDS} thresholds, not {}",
                thresholds.len()
            );
            return Err(refused(message, &param));
        }
        let tests = thresholds.iter().enumerate();
        let tests = tests
            .map(|(index, threshold)| test(threshold, scene, reach, &format!("{param}[{index}]")));
        Ok(Condition {
            all,
            tests: tests.collect::<Result<_, _>>()?,
        })
    }

    /// Marks the tests of the dense stream that stand behind an edit, the first of which is at `first_edited`.
    pub fn look_beside_edits(&mut self, first_edited: Site, site_map: &SiteMap) {
        for test in &mut self.tests {
            let dense = matches!(test.source, Source::Own | Source::Encoder);
            // At its own site an edit comes after whatever is read there. A dense model's nodes stand between sites.
            let is_behind = test.subject.answering_site(site_map) > first_edited;
            let is_node = matches!(test.subject, Subject::OwnChannels(_));
            test.needs_unedited_run = dense && (is_behind || is_node);
        }
    }

    /// Whether it holds, given each test's value on the token.
    pub fn holds(
        &self,
        mut value: impl FnMut(&Test) -> candle_core::Result<Option<f32>>,
    ) -> candle_core::Result<bool> {
        for test in &self.tests {
            let holds = value(test)?.map(f64::from).is_some_and(|value| {
                test.above.is_none_or(|bound| value > bound)
                    && test.below.is_none_or(|bound| value < bound)
            });
            // The first that differs decides.
            if holds != self.all {
                return Ok(holds);
            }
        }
        Ok(self.all)
    }
}

fn test(
    threshold: &Threshold,
    scene: &Scene,
    reach: &Reach,
    param: &str,
) -> Result<Test, PlanError> {
    let feature = format!("{param}.feature");
    let subject = resolve(&threshold.feature, scene, &feature)?.subject;
    for (bound, key) in [(threshold.gt, "gt"), (threshold.lt, "lt")] {
        if bound.is_some_and(|bound| !bound.is_finite()) {
            return Err(refused(
                "a threshold is a finite number",
                &format!("{param}.{key}"),
            ));
        }
    }
    if threshold.gt.is_none() && threshold.lt.is_none() {
        return Err(refused("a threshold needs `gt` or `lt`", param));
    }
    let source = source(&subject, scene, reach, &feature)?;
    Ok(Test {
        subject,
        source,
        needs_unedited_run: false,
        above: threshold.gt,
        below: threshold.lt,
    })
}

fn source(
    subject: &Subject,
    scene: &Scene,
    reach: &Reach,
    param: &str,
) -> Result<Source, PlanError> {
    if scene.native {
        return Ok(Source::Sparse);
    }
    let place = subject.place();
    let dense = subject.is_dense();
    let encoder = reach.read == Some(Read::Encoder);
    if !dense && !encoder {
        return Ok(Source::Sparse);
    }
    let Some(last) = reach.dense_site else {
        let message = "an edit inside a sparse sublayer is made before the dense model runs; its condition cannot \
                       look at a direction or a node of that one";
        return Err(refused(message, param));
    };
    // Seen in a run of the dense model without any edits, which is there before the edit is made.
    if matches!(subject, Subject::OwnChannels(_)) {
        return Ok(Source::Own);
    }
    if !dense && !is_sublayer_input(place) && !matches!(place, Location::Site(_)) {
        let message =
            format!("the encoder gives residual sites and sublayer inputs; {place} is neither");
        return Err(refused(message, param));
    }
    let site = subject.answering_site(&scene.site_map());
    if site > last {
        let message = format!("{place} comes after {last}, where the edit is made");
        return Err(refused(message, param));
    }
    Ok(if dense { Source::Own } else { Source::Encoder })
}
