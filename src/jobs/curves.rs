//! Loss curves of a job, term by term: gathered from its events, told as data and drawn as a picture.
//!
//! A step's event carries the terms of that step, an evaluation's the figures on held-out text; each name becomes one
//! curve. A job may have a million steps, so that a [`Collector`] reads events one by one, in any order, and keeps at
//! most [`MOST_POINTS`] buckets of a curve, whatever the job's length: steps that follow on one another share a bucket,
//! all buckets are equally wide, and of each the mean, the least and the greatest value are told. What is no finite
//! number is left out.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::job::Event;
use crate::plot::{Axis, Curve, Plot, PlotPoint, grid, notice};

/// Points of a curve.
pub const MOST_POINTS: u64 = 400;
/// The metrics that a picture may begin with: a training's, a pruning's.
const FIRST: [&str; 2] = ["loss", "task_loss"];
/// What the messages of the two kinds of events begin with that carry metrics.
const STEP: &str = "step ";
const EVALUATION: &str = "evaluation after step ";
/// What the names of held-out losses begin with.
const HELD_OUT: &str = "held_out";
/// More panels than this stand in three columns instead of two.
const MOST_IN_TWO_COLUMNS: usize = 4;

/// A job's metrics over its steps.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobCurves {
    #[schema(example = "fine_tuning.job.curves")]
    pub object: &'static str,
    /// The job's id.
    #[schema(example = "ftjob-0a1b2c3d")]
    pub job: String,
    /// All steps of the job, done or not: where every curve ends at last.
    pub steps: u64,
    /// What was measured in training, by name. `loss` is what is minimised, in nats per token (of a bridge: the weighted
    /// sum of its other terms). A bridge's terms have the names of their weights in `terms`; those of its twin term are
    /// `twin` (`weight`), `twin_native` (`native_weight`) and `twin_counterfactual` (`counterfactual_weight`).
    /// Cross-entropies and divergences are in nats per token; `encoder` and `decoder` are normalised mean squared errors
    /// and without a unit; `gradient_norm` is the gradient's before clipping, `learning_rate` the model's, `kept_fraction`
    /// the fraction of weights that may be other than zero. A pruning tells `task_loss` (nats), `nodes` (how many are
    /// kept), `training` (which of its masks is trained, from 0), `gradient_norm` and `learning_rate`.
    pub training: BTreeMap<String, Vec<CurvePoint>>,
    /// The same on held-out text, by name and only from steps with an evaluation: losses and divergences in nats per
    /// token; names that end in `nmse` are normalised mean squared errors and without a unit.
    pub held_out: BTreeMap<String, Vec<CurvePoint>>,
}

/// A metric over a few steps that follow on one another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct CurvePoint {
    /// The last of them that has a value, counted from 1.
    pub step: u64,
    /// The mean over them, in the metric's unit.
    pub value: f64,
    /// The least of them, in the metric's unit.
    pub low: f64,
    /// The greatest of them, in the metric's unit.
    pub high: f64,
}

/// All curves of a job: by metric, points in ascending step.
#[derive(Debug, Clone, PartialEq)]
pub struct Curves {
    /// All steps of the job.
    pub steps: u64,
    /// From the events of steps.
    pub training: BTreeMap<String, Vec<CurvePoint>>,
    /// From the events of evaluations.
    pub held_out: BTreeMap<String, Vec<CurvePoint>>,
}

/// Takes in a job's events.
#[derive(Debug)]
pub struct Collector {
    steps: u64,
    /// Steps of a bucket.
    width: u64,
    training: Buckets,
    held_out: Buckets,
}

/// By metric and by the bucket's number.
type Buckets = BTreeMap<String, BTreeMap<u64, Bucket>>;

/// The values of a metric at some steps.
#[derive(Debug)]
struct Bucket {
    count: u64,
    mean: f64,
    low: f64,
    high: f64,
    last: u64,
}

impl Collector {
    /// For a job that has so many steps in all.
    pub fn new(total_steps: usize) -> Self {
        let steps = total_steps as u64;
        Collector {
            steps,
            width: steps.div_ceil(MOST_POINTS).max(1),
            training: Buckets::new(),
            held_out: Buckets::new(),
        }
    }

    /// Events of other kinds, and of steps that the job does not have, say nothing.
    pub fn add(&mut self, event: &Event) {
        let buckets = if event.message.starts_with(STEP) {
            &mut self.training
        } else if event.message.starts_with(EVALUATION) {
            &mut self.held_out
        } else {
            return;
        };
        let Some(Value::Object(metrics)) = &event.metrics else {
            return;
        };
        let Some(step) = metrics.get("step").and_then(Value::as_u64) else {
            return;
        };
        if !(1..=self.steps).contains(&step) {
            return;
        }
        for (name, value) in metrics.iter().filter(|(name, _)| *name != "step") {
            let Some(value) = value.as_f64().filter(|value| value.is_finite()) else {
                continue;
            };
            buckets
                .entry(name.clone())
                .or_default()
                .entry((step - 1) / self.width)
                .or_insert_with(Bucket::new)
                .add(step, value);
        }
    }

    /// What the events so far amount to.
    pub fn finish(self) -> Curves {
        Curves {
            steps: self.steps,
            training: points(&self.training),
            held_out: points(&self.held_out),
        }
    }
}

fn points(buckets: &Buckets) -> BTreeMap<String, Vec<CurvePoint>> {
    let of_metric = |buckets: &BTreeMap<u64, Bucket>| buckets.values().map(Bucket::point).collect();
    buckets
        .iter()
        .map(|(name, buckets)| (name.clone(), of_metric(buckets)))
        .collect()
}

impl Bucket {
    fn new() -> Self {
        Bucket {
            count: 0,
            mean: 0.0,
            low: f64::INFINITY,
            high: f64::NEG_INFINITY,
            last: 0,
        }
    }

    fn add(&mut self, step: u64, value: f64) {
        self.count += 1;
        // A mean that is moved, unlike a sum, does not overflow.
        let count = self.count as f64;
        self.mean += value / count - self.mean / count;
        self.low = self.low.min(value);
        self.high = self.high.max(value);
        self.last = self.last.max(step);
    }

    fn point(&self) -> CurvePoint {
        CurvePoint {
            step: self.last,
            // Rounding may move a mean of equal values past them.
            value: self.mean.max(self.low).min(self.high),
            low: self.low,
            high: self.high,
        }
    }
}

impl Curves {
    /// As they are sent.
    pub fn of_job(self, job: &str) -> JobCurves {
        JobCurves {
            object: "fine_tuning.job.curves",
            job: job.to_owned(),
            steps: self.steps,
            training: self.training,
            held_out: self.held_out,
        }
    }

    /// A panel for every metric as one SVG document: the loss, the others of training by name, and the held-out ones
    /// that no panel of training shares its name with. Bands reach from the least to the greatest value.
    pub fn svg(&self, title: &str) -> String {
        let mut training: Vec<&String> = self.training.keys().collect();
        training.sort_by_key(|name| !FIRST.contains(&name.as_str()));
        let held_out = self.held_out.keys();
        let apart = held_out.filter(|name| !self.training.contains_key(*name));
        let panels: Vec<Plot> = training
            .into_iter()
            .chain(apart)
            .map(|name| self.panel(name))
            .collect();
        match panels.len() {
            0 => notice(title, "no steps yet"),
            few if few <= MOST_IN_TWO_COLUMNS => grid(title, &panels, 2),
            _ => grid(title, &panels, 3),
        }
    }

    fn panel(&self, name: &str) -> Plot {
        let curve = |label: &str, points: &[CurvePoint]| Curve {
            label: label.to_owned(),
            points: points.iter().map(CurvePoint::plotted).collect(),
        };
        let training = self.training.get(name);
        let held_out = self.held_out.get(name);
        let title = match training {
            None if !name.starts_with(HELD_OUT) => format!("{name} (held out)"),
            _ => name.to_owned(),
        };
        let curves: Vec<Curve> = training
            .map(|points| curve("training", points))
            .into_iter()
            .chain(held_out.map(|points| curve("held out", points)))
            .collect();
        let points = curves.iter().flat_map(|curve| &curve.points);
        let ends = points.flat_map(|point| [point.low, point.high]);
        // With fewer than three steps ticks would stand between them.
        let steps = self.steps.max(3) as f64;
        Plot {
            title,
            x: Axis::fitting("step", [0.0, steps]),
            y: Axis::fitting("", ends),
            curves,
        }
    }
}

impl CurvePoint {
    fn plotted(&self) -> PlotPoint {
        PlotPoint {
            x: self.step as f64,
            y: self.value,
            low: self.low,
            high: self.high,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::job::Level;
    use super::*;

    fn event(message: String, metrics: Option<Value>) -> Event {
        Event {
            number: 1,
            created_at: 0,
            level: Level::Info,
            message,
            metrics,
        }
    }

    fn step(step: u64, metrics: Value) -> Event {
        with_step(format!("step {step}"), step, metrics)
    }

    fn evaluation(step: u64, metrics: Value) -> Event {
        with_step(format!("evaluation after step {step}"), step, metrics)
    }

    fn with_step(message: String, step: u64, mut metrics: Value) -> Event {
        metrics["step"] = json!(step);
        event(message, Some(metrics))
    }

    fn collected(steps: usize, events: &[Event]) -> Curves {
        let mut collector = Collector::new(steps);
        for event in events {
            collector.add(event);
        }
        collector.finish()
    }

    #[test]
    fn few_steps_are_told_one_by_one() {
        let events: Vec<Event> = (1..=400)
            .map(|number| step(number, json!({"loss": number})))
            .collect();
        let curves = collected(400, &events);
        let expected = (1..=400).map(|number| CurvePoint {
            step: number,
            value: number as f64,
            low: number as f64,
            high: number as f64,
        });
        assert_eq!(curves.training["loss"], expected.collect::<Vec<_>>());
        assert!(curves.held_out.is_empty());
    }

    #[test]
    fn many_steps_share_buckets() {
        let loss = |step: u64| if step.is_multiple_of(2) { 3.0 } else { 1.0 };
        let events = |steps: u64| -> Vec<Event> {
            (1..=steps)
                .map(|number| step(number, json!({"loss": loss(number)})))
                .collect()
        };
        // Buckets of three; the job is not done.
        let curves = collected(801, &events(11));
        let points = &curves.training["loss"];
        let steps: Vec<u64> = points.iter().map(|point| point.step).collect();
        assert_eq!(steps, [3, 6, 9, 11]);
        assert!((points[0].value - 5.0 / 3.0).abs() < 1e-12);
        assert_eq!((points[0].low, points[0].high), (1.0, 3.0));
        assert_eq!(points[3].value, 2.0);
        for steps in [401, 799, 800, 1999, 4001] {
            let curves = collected(steps as usize, &events(steps));
            let points = &curves.training["loss"];
            assert!(points.len() as u64 <= MOST_POINTS, "{steps}");
            assert_eq!(points.last().map(|point| point.step), Some(steps));
            assert!(points.windows(2).all(|pair| pair[0].step < pair[1].step));
            assert!(points.iter().all(|point| point.low <= point.value));
            assert!(points.iter().all(|point| point.value <= point.high));
        }
    }

    #[test]
    fn the_order_of_events_does_not_matter() {
        let mut events: Vec<Event> = (1..=1000)
            .map(|number| step(number, json!({"loss": number % 8})))
            .collect();
        let forwards = collected(1000, &events);
        events.reverse();
        let backwards = collected(1000, &events);
        let (one, other) = (&forwards.training["loss"], &backwards.training["loss"]);
        assert_eq!(one.len(), other.len());
        for (one, other) in one.iter().zip(other) {
            assert_eq!(
                (one.step, one.low, one.high),
                (other.step, other.low, other.high)
            );
            assert!((one.value - other.value).abs() < 1e-12);
        }
    }

    #[test]
    fn what_tells_no_number_is_left_out() {
        let curves = collected(
            10,
            &[
                step(
                    1,
                    json!({"loss": null, "ce": "NaN", "kl": 0.5, "note": {"a": 1}}),
                ),
                step(11, json!({"loss": 1})),
                step(0, json!({"loss": 1})),
                event("step 2".into(), None),
                event("step 2".into(), Some(json!([1]))),
                event("step 2".into(), Some(json!({"loss": 1}))),
                event(
                    "checkpoint after step 2".into(),
                    Some(json!({"step": 2, "loss": 1})),
                ),
                evaluation(2, json!({"held_out_generated": 2.5, "held_out_real": null})),
            ],
        );
        assert_eq!(curves.training.keys().collect::<Vec<_>>(), ["kl"]);
        let names: Vec<_> = curves.held_out.keys().collect();
        assert_eq!(names, ["held_out_generated"]);
        let large = json!({"loss": f64::MAX});
        let curves = collected(800, &[step(1, large.clone()), step(2, large)]);
        assert_eq!(curves.training["loss"][0].value, f64::MAX);
    }

    #[test]
    fn curves_are_sent_by_name() {
        let curves = collected(
            7,
            &[
                step(1, json!({"loss": 2.0, "learning_rate": 0.5})),
                evaluation(1, json!({"held_out_generated": 3.0})),
            ],
        );
        let point = |value: f64| json!([{"step": 1, "value": value, "low": value, "high": value}]);
        assert_eq!(
            serde_json::to_value(curves.of_job("ftjob-1")).expect("JSON"),
            json!({
                "object": "fine_tuning.job.curves",
                "job": "ftjob-1",
                "steps": 7,
                "training": {"loss": point(2.0), "learning_rate": point(0.5)},
                "held_out": {"held_out_generated": point(3.0)},
            })
        );
    }

    #[test]
    fn every_metric_has_its_panel() {
        let mut events: Vec<Event> = (1..=50)
            .map(|number| {
                step(
                    number,
                    json!({"ce": 1.0, "loss": 9.0 / number as f64, "a<b>": 0}),
                )
            })
            .collect();
        events.push(evaluation(
            50,
            json!({"held_out_generated": 2.0, "ce": 1.5, "text_nmse": 0.1}),
        ));
        let svg = collected(50, &events).svg("job \"1\" & <2>");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<svg").count(), 1);
        assert_eq!(svg.matches("<g ").count(), 5);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(!svg.contains("<b>") && !svg.contains("<2>"));
        let titles = [
            "loss",
            "a&lt;b&gt;",
            "ce",
            "held_out_generated",
            "text_nmse (held out)",
        ];
        let places: Vec<usize> = titles
            .iter()
            .map(|title| svg.find(&format!(">{title}</text>")).expect("a title"))
            .collect();
        assert!(places.is_sorted(), "{places:?}");
        // Only the cross-entropy is known from both.
        assert_eq!(svg.matches(">training</text>").count(), 1);
        assert_eq!(svg.matches(">held out</text>").count(), 1);
    }

    #[test]
    fn a_job_that_has_not_begun_has_a_picture_too() {
        for steps in [0, 10] {
            let svg = collected(steps, &[]).svg("ftjob-1");
            assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
            assert!(svg.contains("no steps yet") && svg.contains("ftjob-1"));
        }
    }
}
