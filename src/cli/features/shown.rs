//! What people are shown of directions.

use serde::Deserialize;

/// What is shown of a search. The texts are the server's: a later one may know more of them.
#[derive(Debug, Deserialize)]
pub struct FoundAnswer {
    measure: String,
    baseline: Option<f64>,
    data: Vec<FoundSite>,
    registered: Option<ShownDirection>,
}

#[derive(Debug, Deserialize)]
struct FoundSite {
    site: String,
    norm: f64,
    residual_norm: f64,
    separation: SiteSeparation,
    effects: Vec<SiteEffect>,
}

#[derive(Debug, Deserialize)]
struct SiteSeparation {
    accuracy: f64,
    auc: f64,
    random_accuracy: f64,
}

#[derive(Debug, Deserialize)]
struct SiteEffect {
    strength: f64,
    effect: f64,
    random_mean: f64,
    random_std: f64,
    random_exceeded: usize,
}

/// A registered direction.
#[derive(Debug, Deserialize)]
pub struct ShownDirection {
    id: String,
    model: String,
    directions: Vec<DirectionSite>,
}

#[derive(Debug, Deserialize)]
struct DirectionSite {
    site: String,
}

impl ShownDirection {
    pub fn summary(&self) -> String {
        let sites: Vec<&str> = self
            .directions
            .iter()
            .map(|part| part.site.as_str())
            .collect();
        format!("{} of {} at {}", self.id, self.model, sites.join(", "))
    }
}

impl FoundAnswer {
    /// Of each site a line on what it tells apart, and one for each strength.
    pub fn description(&self) -> String {
        let mut lines = Vec::new();
        for found in &self.data {
            let apart = &found.separation;
            lines.push(format!(
                "{}: length {:.3} (stream {:.3}), tells {:.0}% of held-out prompts apart (random {:.0}%), auc {:.3}",
                found.site,
                found.norm,
                found.residual_norm,
                100.0 * apart.accuracy,
                100.0 * apart.random_accuracy,
                apart.auc
            ));
            for effect in &found.effects {
                lines.push(format!(
                    "  {:+}: {} moves by {:+.3} nats, random ones by {:+.3} ± {:.3}; further than {} of 10",
                    effect.strength,
                    self.measure,
                    effect.effect,
                    effect.random_mean,
                    effect.random_std,
                    effect.random_exceeded
                ));
            }
        }
        lines.extend(
            self.baseline
                .map(|baseline| format!("unchanged: {baseline:+.3} nats")),
        );
        let registered = self.registered.as_ref();
        lines.extend(registered.map(|made| format!("registered: {}", made.summary())));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_found_is_told_site_by_site() {
        let answer = json!({
            "object": "direction.search", "measure": "next_token", "baseline": -0.5, "of a later server": 1,
            "data": [{
                "site": "2.resid_in", "vector": [1.0], "norm": 1.5, "residual_norm": 4.0, "explained": null,
                "separation": {"accuracy": 0.75, "auc": 0.875, "random_accuracy": 0.5},
                "effects": [{"strength": 0.2, "effect": 1.25, "random_mean": -0.1, "random_std": 0.25,
                             "random_exceeded": 9}]
            }],
            "registered": {"id": "d", "model": "m", "directions": [{"site": "2.resid_in"}, {"site": "final_resid"}]}
        });
        let answer: FoundAnswer = serde_json::from_value(answer).expect("an answer");
        let expected = "2.resid_in: length 1.500 (stream 4.000), tells 75% of held-out prompts apart (random 50%), \
                        auc 0.875\n  +0.2: next_token moves by +1.250 nats, random ones by -0.100 ± 0.250; further \
                        than 9 of 10\nunchanged: -0.500 nats\nregistered: d of m at 2.resid_in, final_resid";
        assert_eq!(answer.description(), expected);
    }
}
