//! Rotary positions as `config.json` tells them: `rope_theta` with `rope_scaling`, or `rope_parameters` with both.

use std::collections::BTreeSet;

use crate::models::config::ConfigError;
use crate::models::fields::{Fields, wrong};
use crate::models::variant::{Rotary, RotaryPairs, RotaryScaling};

/// The rotation of heads of `d_head` channels in a model whose context is `context_length` tokens. `base` and `part` are
/// the base and the share of channels where the file does not say.
pub fn rotary(
    fields: &Fields,
    d_head: usize,
    context_length: usize,
    base: f64,
    part: f64,
) -> Result<Rotary, ConfigError> {
    let parameters = match fields.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling")?,
    };
    let number = |field| -> Result<Option<f64>, ConfigError> {
        let own = parameters.as_ref().map(|own| own.optional_number(field));
        match own.transpose()?.flatten() {
            Some(number) => Ok(Some(number)),
            None => fields.optional_number(field),
        }
    };
    let part = number("partial_rotary_factor")?.unwrap_or(part);
    if !(part > 0.0 && part <= 1.0) {
        let problem = format!("is {part}; it must be above 0 and at most 1");
        return Err(wrong("partial_rotary_factor", problem));
    }
    let scaling = match &parameters {
        Some(parameters) => scaling(fields, parameters, context_length)?,
        None => RotaryScaling::None,
    };
    Ok(Rotary {
        base: number("rope_theta")?.unwrap_or(base),
        channels: (d_head as f64 * part) as usize / 2 * 2,
        pairs: RotaryPairs::Halves,
        scaling,
        layers_without: BTreeSet::new(),
    })
}

fn scaling(
    fields: &Fields,
    parameters: &Fields,
    context_length: usize,
) -> Result<RotaryScaling, ConfigError> {
    let kind = match parameters.text("rope_type", "")? {
        "" => parameters.text("type", "default")?,
        kind => kind,
    };
    let first_context = match parameters.optional_size("original_max_position_embeddings")? {
        Some(size) => size,
        None => fields
            .optional_size("original_max_position_embeddings")?
            .unwrap_or(context_length),
    };
    match kind {
        "default" => Ok(RotaryScaling::None),
        "linear" => Ok(RotaryScaling::Linear {
            factor: parameters.number("factor")?,
        }),
        "llama3" => Ok(RotaryScaling::Llama3 {
            factor: parameters.number("factor")?,
            low_frequency_factor: parameters.number("low_freq_factor")?,
            high_frequency_factor: parameters.number("high_freq_factor")?,
            first_context,
        }),
        "yarn" => {
            let factor = parameters.number("factor")?;
            for field in ["mscale", "mscale_all_dim"] {
                if parameters.optional_number(field)?.is_some() {
                    return Err(wrong(
                        "rope_scaling",
                        format!("has {field}, which is not supported"),
                    ));
                }
            }
            Ok(RotaryScaling::Yarn {
                factor,
                beta_fast: parameters.optional_number("beta_fast")?.unwrap_or(32.0),
                beta_slow: parameters.optional_number("beta_slow")?.unwrap_or(1.0),
                first_context,
                attention_factor: match parameters.optional_number("attention_factor")? {
                    Some(factor) => factor,
                    None if factor <= 1.0 => 1.0,
                    None => 0.1 * factor.ln() + 1.0,
                },
                truncate: parameters.boolean("truncate", true)?,
            })
        }
        "longrope" | "su" => {
            let growth = context_length as f64 / first_context as f64;
            Ok(RotaryScaling::Longrope {
                short: parameters.numbers("short_factor")?,
                long: parameters.numbers("long_factor")?,
                first_context,
                attention_factor: match parameters.optional_number("attention_factor")? {
                    Some(factor) => factor,
                    None if growth <= 1.0 => 1.0,
                    None => (1.0 + growth.ln() / (first_context as f64).ln()).sqrt(),
                },
            })
        }
        other => {
            let problem = format!(
                "has the type {other:?}; default, linear, llama3, yarn and longrope are supported"
            );
            Err(wrong("rope_scaling", problem))
        }
    }
}
