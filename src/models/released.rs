//! The configuration of a released sparse checkpoint, `beeg_config.json`, as a [`TransformerConfig`].
//!
//! Fields that a file leaves out take the defaults of the code it was trained with; unknown fields are
//! ignored, for the files carry training settings too. The one field that must not be ignored is
//! `use_tied_aux_matrix`: it changes the forward pass in a way that is not implemented here.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::config::{
    Activation, ActiveLocation, ConfigError, Norm, Positions, ResidualActivation, TransformerConfig,
};
use super::fields::{Fields, wrong};

/// The value that an absent `afrac_loctypes` takes.
const DEFAULT_LOCATIONS: &str = "attn_in,attn_out,mlp_in,mlp_out";

/// Parses a `beeg_config.json`. Without `d_pos_emb` the result says [`Positions::Added`]; whether the model
/// uses positions at all shows only in its weights (its position embedding is zero where it does not).
pub fn parse_config(json: &[u8]) -> Result<TransformerConfig, ConfigError> {
    let value: Value =
        serde_json::from_slice(json).map_err(|error| wrong("the file", error.to_string()))?;
    let Value::Object(object) = value else {
        return Err(wrong("the file", "is not a JSON object".to_owned()));
    };
    from_object(&object)
}

/// The same, of an object already parsed.
pub fn from_object(object: &Map<String, Value>) -> Result<TransformerConfig, ConfigError> {
    let fields = Fields(object);
    if fields.boolean("use_tied_aux_matrix", false)? {
        let problem =
            "is true; such a model has a second matrix in its forward pass, which is not supported";
        return Err(wrong("use_tied_aux_matrix", problem.to_owned()));
    }
    let d_model = fields.size("d_model")?;
    let n_heads = fields.size("n_head")?;
    let d_head = match fields.optional_size("d_head")? {
        Some(d_head) => d_head,
        None if n_heads > 0 && d_model.is_multiple_of(n_heads) => d_model / n_heads,
        None => {
            let problem =
                format!("is absent and d_model {d_model} is no multiple of n_head {n_heads}");
            return Err(wrong("d_head", problem));
        }
    };
    let d_mlp = match fields.optional_size("d_mlp")? {
        Some(d_mlp) => d_mlp,
        None => fields
            .optional_size("n_mlp")?
            .unwrap_or(d_model.saturating_mul(4)),
    };
    let norm = if fields.boolean("rms_norm", false)? {
        Norm::Rms
    } else if fields.boolean("ln_bias", true)? {
        Norm::Layer
    } else {
        Norm::LayerNoBias
    };
    let activation = match fields.text("activation_type", "gelu")? {
        "gelu" => Activation::Gelu,
        "relu" => Activation::Relu,
        other => {
            let problem = format!("is {other:?}; it must be \"gelu\" or \"relu\"");
            return Err(wrong("activation_type", problem));
        }
    };
    let residual_activation = match fields.text("residual_activation_type", "identity")? {
        "identity" => ResidualActivation::Identity,
        "relu" => ResidualActivation::Relu,
        other => {
            let problem = format!("is {other:?}; it must be \"identity\" or \"relu\"");
            return Err(wrong("residual_activation_type", problem));
        }
    };
    let positions = match fields.optional_size("d_pos_emb")? {
        Some(channels) => Positions::Concatenated { channels },
        None => Positions::Added,
    };
    let active_fraction = fields.optional_number("afrac")?;
    let active_locations = parse_locations(fields.text("afrac_loctypes", DEFAULT_LOCATIONS)?)?;
    let config = TransformerConfig {
        n_layers: fields.size("n_layer")?,
        d_model,
        n_heads,
        d_head,
        d_mlp,
        vocab_size: fields.size("vocab_size")?,
        context_length: fields.size("block_size")?,
        norm,
        bias: fields.boolean("bias", true)?,
        activation,
        residual_activation,
        positions,
        active_locations: match active_fraction {
            Some(_) => active_locations,
            None => BTreeSet::new(),
        },
        active_fraction,
        tied_unembedding: fields.boolean("tied_unembed", true)?,
        bigram_table: fields.boolean("enable_bigram_table", false)?,
        attention_sinks: fields.boolean("sink", false)?,
        variant: Default::default(),
    };
    config.validate()?;
    Ok(config)
}

/// A comma-separated list of location names; the empty text is the empty list.
fn parse_locations(list: &str) -> Result<BTreeSet<ActiveLocation>, ConfigError> {
    let mut locations = BTreeSet::new();
    for name in list.split(',').filter(|name| !name.is_empty()) {
        let known = ActiveLocation::NAMES
            .iter()
            .find(|(known, _)| *known == name);
        let Some((_, location)) = known else {
            let names: Vec<&str> = ActiveLocation::NAMES
                .iter()
                .map(|(name, _)| *name)
                .collect();
            let problem = format!("names {name:?}; it must be one of {}", names.join(", "));
            return Err(wrong("afrac_loctypes", problem));
        };
        locations.insert(*location);
    }
    Ok(locations)
}
