//! A bridge's figures at every site, and their table.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::bridge::record::SiteRecord;

/// The bridge at one site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SiteFigures {
    #[schema(example = "1.resid_mid")]
    pub site: String,
    /// Normalised mean squared errors of both maps.
    pub encoder_nmse: f64,
    pub decoder_nmse: f64,
    /// KL(dense || hybrid) in nats a token, when the sparse model goes on from the encoder's output.
    pub dense_to_sparse_kl: f64,
    /// The same when the dense model goes on from the decoder's.
    pub sparse_to_dense_kl: f64,
}

impl From<&SiteRecord> for SiteFigures {
    fn from(record: &SiteRecord) -> Self {
        SiteFigures {
            site: record.site.clone(),
            encoder_nmse: record.encoder_nmse,
            decoder_nmse: record.decoder_nmse,
            dense_to_sparse_kl: record.dense_to_sparse_kl,
            sparse_to_dense_kl: record.sparse_to_dense_kl,
        }
    }
}

/// The bridge's sites on text of one source, after an empty line.
pub fn site_table(source: &str, sites: impl Iterator<Item = SiteFigures>) -> String {
    let mut table = format!(
        "\n| site ({source}) | encoder NMSE | decoder NMSE | dense to sparse KL | sparse to dense KL |\n\
         |---|---|---|---|---|\n"
    );
    for site in sites {
        // Writing to a string does not fail.
        let _ = writeln!(
            table,
            "| {} | {:.3} | {:.3} | {:.4} | {:.4} |",
            site.site,
            site.encoder_nmse,
            site.decoder_nmse,
            site.dense_to_sparse_kl,
            site.sparse_to_dense_kl
        );
    }
    table
}
