//! A pair's card: what its files hold and what it was measured to do, as text.
//!
//! `README.md` of a pair has two parts. What a person wrote stays; what stands between [`BEGIN`] and [`END`] is written
//! anew from the figures. The tables that follow from the pair's files alone ([`models_table`], [`features_tables`],
//! [`completions`]) can be written again at any time and compared.

use std::fmt::Write as _;

use candle_core::Result as CandleResult;
use serde::Serialize;

use super::EvaluationError;
use super::losses::SourceLosses;
use super::quotes::QuoteFigures;
use super::report;
use super::steering::{ARMS, DoseResponse};
use super::task_table::{RouteFigures, TaskRow};
use crate::features::effects::{ActsAt, PatchEffect};
use crate::features::pair::Pair;
use crate::features::registry::Feature;
use crate::models::model::LoadedModel;
use crate::models::tap::NoTap;
use crate::models::token_rows::TokenRows;

/// The line before the figures, and the one after them.
pub const BEGIN: &str = "<!-- Figures: written by `causeway eval card`. -->";
pub const END: &str = "<!-- End of the figures. -->";

/// Prompts as a newcomer would type them, chosen before any model had been tried on them.
pub const NEWCOMER_PROMPTS: [&str; 5] = [
    "def fibonacci(n):\n    ",
    "import os\n\ndef read_file(path):\n    with open(path",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n        ",
    "for i in range(10):\n    if i % 2 == 0:\n        print(",
    "numbers = [3, 1, 2]\nresult = sorted(",
];
/// Tokens that each is completed by.
const COMPLETION_TOKENS: usize = 32;

/// Everything on the card that was measured.
#[derive(Debug, Serialize)]
pub struct CardFigures {
    pub losses: Vec<SourceLosses>,
    pub steering: DoseResponse,
    pub quotes: Vec<QuoteFigures>,
    pub tasks: Vec<TaskRow>,
}

/// The text between the marks.
pub fn figures(
    models: &Pair,
    features: &[Feature],
    figures: &CardFigures,
) -> Result<String, EvaluationError> {
    let mut text = format!("{BEGIN}\n\n## Models\n\n{}", models_table(models)?);
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "\n## Held-out losses and fidelity\n\nNats a token, beside a bigram table and an interpolated trigram counted on the \
         training text. `real` are held-out files of packages that were trained on, `unseen packages` are packages that \
         nothing of was.\n\n{}\n{}",
        report::loss_tables(&figures.losses),
        worst_sites(&figures.losses),
    );
    let _ = write!(
        text,
        "\n## Quotes\n\n{}\n{}",
        steering_table(&figures.steering),
        quotes_text(&figures.quotes)
    );
    let _ = write!(
        text,
        "\n## Tasks\n\nThe accuracy of both models, and the best place natively, through the bridge into the residual stream, \
         and into a sublayer. *Channels to flip* is the fewest channels that flip half of the held-out pairs which the \
         edited model gets right; *flips* are with the first 1, 4 and 16 channels; *before last* edits all positions but \
         the last; *random, feature* are the flips of the two control arms.\n\n{}\n{}",
        report::task_table(&figures.tasks),
        passing_tasks(&figures.tasks),
    );
    let _ = write!(
        text,
        "\n## Features\n\nEach with tests that `causeway eval verify` runs again.\n\n{}",
        features_tables(features)
    );
    let _ = write!(
        text,
        "\n## A newcomer's prompts\n\nWritten before any model had been tried on them; greedy, {COMPLETION_TOKENS} tokens, \
         shown as they are.\n\n{}\n{END}\n",
        completions(models)?
    );
    Ok(text)
}

/// `card` with `figures` in place of those it has, or at its end.
pub fn with_figures(card: &str, figures: &str) -> String {
    let end = |from: usize| {
        let at = card[from..].find(END)?;
        Some(from + at + END.len())
    };
    match card.find(BEGIN).and_then(|from| Some((from, end(from)?))) {
        Some((from, to)) => {
            let rest = card[to..].trim_start_matches('\n');
            let gap = if rest.is_empty() { "" } else { "\n" };
            format!("{}{figures}{gap}{rest}", &card[..from])
        }
        None => format!("{}\n\n{figures}", card.trim_end()),
    }
}

/// What both models are made of.
pub fn models_table(models: &Pair) -> CandleResult<String> {
    let mut table = String::from("| | dense | sparse |\n|---|---|---|\n");
    let both = [&models.dense, &models.sparse];
    let mut row = |what: &str, cells: [String; 2]| {
        let _ = writeln!(table, "| {what} | {} | {} |", cells[0], cells[1]);
    };
    row(
        "layers, width, MLP",
        both.map(|model| {
            let config = &model.config;
            format!("{}, {}, {}", config.n_layers, config.d_model, config.d_mlp)
        }),
    );
    let site_map = &models.bridge.site_map;
    if !site_map.is_identity() {
        let joined: [Vec<String>; 2] = [
            site_map
                .sites()
                .map(|(_, dense)| dense.to_string())
                .collect(),
            site_map
                .sites()
                .map(|(sparse, _)| sparse.to_string())
                .collect(),
        ];
        row(
            "sites that are joined",
            joined.map(|names| names.join(", ")),
        );
    }
    row(
        "heads",
        both.map(|model| {
            let sinks = match model.config.attention_sinks {
                true => ", with sinks",
                false => "",
            };
            format!("{} of {}{sinks}", model.config.n_heads, model.config.d_head)
        }),
    );
    row(
        "AbsTopK",
        both.map(|model| match model.config.active_fraction {
            Some(fraction) => format!(
                "{fraction} at {} places",
                model.config.active_locations.len()
            ),
            None => "none".to_owned(),
        }),
    );
    row(
        "vocabulary, context",
        both.map(|model| {
            format!(
                "{}, {}",
                model.config.vocab_size, model.config.context_length
            )
        }),
    );
    row(
        "bigram table",
        both.map(|model| {
            if model.config.bigram_table {
                "yes"
            } else {
                "no"
            }
            .to_owned()
        }),
    );
    let counts = [
        matrix_weights(&models.dense)?,
        matrix_weights(&models.sparse)?,
    ];
    row(
        "weights of the layers and the unembedding, nonzero",
        counts.map(|(weights, nonzeros)| {
            format!(
                "{weights}, {:.1}%",
                100.0 * nonzeros as f64 / weights as f64
            )
        }),
    );
    row(
        "all parameters, nonzero",
        both.map(|model| format!("{}, {}", model.parameters, model.nonzeros)),
    );
    Ok(table)
}

/// The weights of a model's linear layers, and those that are not zero.
fn matrix_weights(model: &LoadedModel) -> CandleResult<(usize, usize)> {
    let (mut weights, mut nonzeros) = (0, 0);
    for linear in model.linears() {
        let (outputs, inputs) = linear.shape()?;
        weights += outputs * inputs;
        for input in 0..inputs {
            nonzeros += linear.weights_of_input(input)?.len();
        }
    }
    Ok((weights, nonzeros))
}

fn worst_sites(sources: &[SourceLosses]) -> String {
    let mut text = String::new();
    for source in sources.iter().filter(|source| !source.sites.is_empty()) {
        let worst = |kl: fn(&crate::bridge::record::SiteRecord) -> f64| {
            let worst = source
                .sites
                .iter()
                .max_by(|one, other| kl(one).total_cmp(&kl(other)));
            let mean = source.sites.iter().map(kl).sum::<f64>() / source.sites.len() as f64;
            let site = worst.map_or_else(String::new, |site| {
                format!("`{}` ({:.3})", site.site, kl(site))
            });
            format!("mean {mean:.3}, worst at {site}")
        };
        let _ = writeln!(
            text,
            "- {}: sparse less dense {:.3}; hybrids dense to sparse {}; sparse to dense {}",
            source.source,
            source.sparse - source.dense,
            worst(|site| site.dense_to_sparse_kl),
            worst(|site| site.sparse_to_dense_kl),
        );
    }
    text
}

/// The dose-response curve at every other strength.
fn steering_table(response: &DoseResponse) -> String {
    let mut table = format!(
        "The first feature below, patched on {} held-out pairs, of which the dense model gets {} right: two-way probability of \
         the other quote and, in brackets, flips.\n\n| strength |",
        response.pairs, response.right
    );
    let shown = |strength: f64| ((strength * 10.0).round() as u32).is_multiple_of(2);
    let points = response
        .curves
        .first()
        .map_or(&[][..], |curve| &curve.points);
    for point in points.iter().filter(|point| shown(point.strength)) {
        let _ = write!(table, " {} |", point.strength);
    }
    let columns = points.iter().filter(|point| shown(point.strength)).count();
    let _ = writeln!(table, "\n|---|{}", "---|".repeat(columns));
    for (arm, curve) in ARMS.iter().zip(&response.curves) {
        let _ = write!(table, "| {} |", arm.replace('_', " "));
        for point in curve.points.iter().filter(|point| shown(point.strength)) {
            let _ = write!(
                table,
                " {:.3} ({}) |",
                point.two_way.mean,
                share(point.flips)
            );
        }
        table.push('\n');
    }
    table
}

fn quotes_text(quotes: &[QuoteFigures]) -> String {
    let mut text = String::from(
        "| feature | strings of | pairs | right | flips | greedily right | greedy flips | two-way before, after |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for figures in quotes {
        let generated = [("generated", &figures.generated)];
        let real = figures
            .strings
            .iter()
            .map(|strings| (strings.source.as_str(), &strings.flips));
        for (source, flips) in generated.into_iter().chain(real) {
            let _ = writeln!(
                text,
                "| `{}` | {source} | {} | {} | {} | {} | {} | {:.3}, {:.3} |",
                figures.feature,
                flips.pairs,
                flips.right,
                share(flips.flips),
                flips.greedily_right,
                share(flips.greedy_flips),
                flips.two_way_before,
                flips.two_way
            );
        }
    }
    text.push_str(
        "\n`set` at **every** token of prompts without a string, to the value that is typical of each quote, each feature \
         changes the next token's distribution by a mean KL, in nats, of:\n\n| feature | prompts of | one quote | the other \
         |\n|---|---|---|---|\n",
    );
    for figures in quotes {
        for both in figures.unrelated.chunks(2) {
            let cells: Vec<String> = both
                .iter()
                .map(|effect| format!("{:.3}", effect.effect.mean_kl))
                .collect();
            let _ = writeln!(
                text,
                "| `{}` | {} | {} |",
                figures.feature,
                both[0].source,
                cells.join(" | ")
            );
        }
    }
    text
}

fn passing_tasks(rows: &[TaskRow]) -> String {
    let passing: Vec<String> = rows
        .iter()
        .filter(|row| row.best_bridge().is_some_and(RouteFigures::passes))
        .map(|row| format!("`{}`", row.task))
        .collect();
    format!(
        "A flip among at least half of the pairs with at most 16 channels of one place and both controls at 5% or less: {} of \
         {} tasks: {}.\n",
        passing.len(),
        rows.len(),
        passing.join(", ")
    )
}

/// What patching every feature does, by itself and beside the best group of each layer.
pub fn features_tables(features: &[Feature]) -> String {
    let mut text = String::from(
        "| feature | node | channels | to flip | flips | greedy flips | token swap | random, feature | acts at first, between, \
         last | prompts people wrote |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for feature in features {
        let Some(effects) = &feature.effects else {
            continue;
        };
        let outside = effects.outside.map_or_else(
            || "–".to_owned(),
            |outside| format!("{} of {} flip", outside.flipped, outside.right),
        );
        let _ = writeln!(
            text,
            "| `{}` | {} | {outside} |",
            feature.name,
            effect_cells(&effects.own)
        );
    }
    text.push_str(
        "\n*Token swap* exchanges only the embedding of the tokens that differ, in the dense stream at the node's site; *acts \
         at* says where the patch's squared norm lies: at the first token that differs, at the last, and between.\n\nThe best \
         group of at most 16 channels, layer by layer:\n\n| task | node | channels | to flip | flips | greedy flips | token swap \
         | random, feature | acts at first, between, last |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut told = Vec::new();
    for feature in features {
        let (Some(effects), Some(task)) = (&feature.effects, feature.tasks.first()) else {
            continue;
        };
        if told.contains(task) {
            continue;
        }
        told.push(*task);
        for layer in &effects.layers {
            let _ = writeln!(text, "| {task} | {} |", effect_cells(layer));
        }
    }
    text
}

fn effect_cells(effect: &PatchEffect) -> String {
    let ActsAt {
        first_difference,
        between,
        last,
    } = effect.acts_at;
    let to_flip = effect
        .channels_to_flip
        .map_or_else(|| "–".to_owned(), |count| count.to_string());
    format!(
        "{} | {} | {to_flip} | {:.2} of {} | {} of {} | {:.2} | {:.2}, {:.2} | {first_difference:.2}, {between:.2}, {last:.2}",
        effect.node,
        effect.channels,
        effect.flips,
        effect.right,
        share(effect.greedy_flips),
        effect.greedily_right,
        effect.token_swap_flips,
        effect.random_flips,
        effect.random_feature_flips,
    )
}

fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"))
}

/// The dense model's greedy completions of [`NEWCOMER_PROMPTS`].
pub fn completions(models: &Pair) -> Result<String, EvaluationError> {
    let mut text = String::new();
    for prompt in NEWCOMER_PROMPTS {
        let tokens = models.tokenizer().encode(prompt)?;
        let mut all = tokens.clone();
        for _ in 0..COMPLETION_TOKENS {
            let mut rows = TokenRows::sequences(&all, all.len(), models.dense.device())?;
            let logits = models.dense.forward(&mut rows, &mut NoTap)?;
            let next = logits.get(all.len() - 1)?.argmax(0)?.to_scalar::<u32>()?;
            if Some(next) == models.tokenizer().end_of_text() {
                break;
            }
            all.push(next);
        }
        let completed = models.tokenizer().decode(&all);
        let _ = writeln!(text, "```python\n{completed}\n```\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let card = format!("# Pair\n\nWords.\n\n{BEGIN}\nold\n{END}\n\n## Licence\n");
        let new = format!("{BEGIN}\nnew\n{END}\n");
        let expected = format!("# Pair\n\nWords.\n\n{BEGIN}\nnew\n{END}\n\n## Licence\n");
        assert_eq!(with_figures(&card, &new), expected);
        assert_eq!(with_figures(&expected, &new), expected);
        assert_eq!(with_figures("# Pair\n", &new), format!("# Pair\n\n{new}"));
    }
}
