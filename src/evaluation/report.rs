//! Results as markdown tables, to be pasted into a model card.

use std::fmt::Write as _;

use super::losses::SourceLosses;
use super::site_table::{SiteFigures, site_table};
use super::task_table::{RouteFigures, TaskRow};

/// The table of tasks.
pub fn task_table(rows: &[TaskRow]) -> String {
    let mut table = String::from(
        "| task | dense | sparse | native: place | channels to flip | flips 1 / 4 / 16 \
         | residual: place | channels to flip | flips 1 / 4 / 16 | before last | random, feature \
         | sublayer: place | channels to flip | flips 1 / 4 / 16 | before last | random, feature |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        // Writing to a string does not fail.
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} |",
            row.task,
            share(row.dense_accuracy),
            share(row.sparse_accuracy),
            native_cells(row.native.as_ref()),
            bridge_cells(row.residual.as_ref()),
            bridge_cells(row.sublayer.as_ref()),
        );
    }
    table
}

fn native_cells(figures: Option<&RouteFigures>) -> String {
    match figures {
        Some(figures) => format!(
            "{} | {} | {} / {} / {}",
            figures.place.as_str(),
            count(figures.channels_to_flip),
            share(figures.flips_1),
            share(figures.flips_4),
            share(figures.flips_16)
        ),
        None => "– | – | –".to_owned(),
    }
}

fn bridge_cells(figures: Option<&RouteFigures>) -> String {
    match figures {
        Some(bridge) => format!(
            "{} | {} | {}, {}",
            native_cells(Some(bridge)),
            share(bridge.flips_before_last),
            share(bridge.random),
            share(bridge.random_feature)
        ),
        None => "– | – | – | – | –".to_owned(),
    }
}

fn count(channels: Option<usize>) -> String {
    channels.map_or_else(|| "–".to_owned(), |channels| channels.to_string())
}

fn share(value: f64) -> String {
    format!("{value:.2}")
}

/// The table of losses, and one of the bridge's sites for each source.
pub fn loss_tables(sources: &[SourceLosses]) -> String {
    let mut table = String::from(
        "| held-out source | tokens | dense | sparse | KL(dense to sparse) | bigram | trigram |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for source in sources {
        let _ = writeln!(
            table,
            "| {} | {} | {:.3} | {:.3} | {:.4} | {:.3} | {:.3} |",
            source.source,
            source.tokens,
            source.dense,
            source.sparse,
            source.distillation,
            source.bigram,
            source.trigram
        );
    }
    for source in sources.iter().filter(|source| !source.sites.is_empty()) {
        let sites = source.sites.iter().map(SiteFigures::from);
        table.push_str(&site_table(&source.source, sites));
    }
    table
}
