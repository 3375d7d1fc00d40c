//! A direction as a control vector's file, and back: which residual site a numbered direction is at.
//!
//! A file's `direction.N` acts at the output of block N, counted from 0: the stream that block N + 1 finds, our
//! `{N+1}.resid_in`, and behind the last block `final_resid`. Some programs number blocks otherwise, which an offset
//! makes up for.

use std::collections::BTreeMap;

use super::direction::{DirectionPart, NamedDirection, site_of};
use crate::artifacts::control_vector::ControlVector;
use crate::models::location::Site;

/// Which directions of a file are taken, and where they act.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileLayers {
    /// Added to a file's numbers.
    pub offset: i64,
    /// Of the file's numbers, both included; none for all.
    pub range: Option<(usize, usize)>,
}

/// A file's directions at the sites of a model of `n_layers` layers. Those that are zero add nothing and are left out.
pub fn parts(
    file: &ControlVector,
    layers: FileLayers,
    n_layers: usize,
) -> Result<Vec<DirectionPart>, String> {
    let (first, last) = layers.range.unwrap_or((0, usize::MAX));
    if first > last {
        return Err(format!(
            "the layers from {first} to {last} are none; both ends are included"
        ));
    }
    let mut parts = Vec::new();
    for (&number, vector) in file.directions.range(first..=last) {
        let block = i64::try_from(number).ok();
        let block = block.and_then(|block| block.checked_add(layers.offset));
        let block = block.and_then(|block| usize::try_from(block).ok());
        let site = block
            .and_then(|block| Site::new(block.checked_mul(2)?.checked_add(2)?, n_layers))
            .ok_or_else(|| {
                format!(
                    "direction.{number} with the offset {} is at no block of the model, which has blocks 0 to {}",
                    layers.offset,
                    n_layers.saturating_sub(1)
                )
            })?;
        if vector.iter().any(|&value| value != 0.0) {
            parts.push(DirectionPart {
                site: site.to_string(),
                vector: vector.clone(),
                stats: None,
            });
        }
    }
    match parts.is_empty() {
        true => Err("none of its directions that are taken is other than zero".to_owned()),
        false => Ok(parts),
    }
}

/// The file of a direction of a model of `n_layers` layers.
pub fn file(
    direction: &NamedDirection,
    model_hint: String,
    n_layers: usize,
) -> Result<ControlVector, String> {
    let mut directions = BTreeMap::new();
    for part in &direction.parts {
        let site = site_of(&part.site, n_layers)?;
        // Behind block N is site 2N + 2, and no file has a direction.0.
        let number = (site.index() / 2).saturating_sub(1);
        if site.index() % 2 == 1 || number == 0 {
            return Err(format!(
                "{site} is not in a control vector's file: that has the streams behind block 1 and later ones, from \
                 2.resid_in to final_resid"
            ));
        }
        directions.insert(number, part.vector.clone());
    }
    Ok(ControlVector {
        model_hint: Some(model_hint),
        directions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::direction::DirectionSource;

    fn file_of(numbers: &[usize]) -> ControlVector {
        ControlVector {
            model_hint: None,
            directions: numbers.iter().map(|&n| (n, vec![n as f32, 1.0])).collect(),
        }
    }

    fn sites(
        layers: FileLayers,
        numbers: &[usize],
        n_layers: usize,
    ) -> Result<Vec<String>, String> {
        let parts = parts(&file_of(numbers), layers, n_layers)?;
        Ok(parts.into_iter().map(|part| part.site).collect())
    }

    #[test]
    fn a_direction_is_at_the_output_of_its_block() {
        let all = FileLayers::default();
        assert_eq!(
            sites(all, &[1, 2, 3], 4),
            Ok(vec![
                "2.resid_in".into(),
                "3.resid_in".into(),
                "final_resid".into()
            ])
        );
        assert!(sites(all, &[4], 4).is_err_and(|error| error.contains("blocks 0 to 3")));
        let earlier = FileLayers {
            offset: -1,
            range: Some((1, 2)),
        };
        assert_eq!(
            sites(earlier, &[1, 2, 3], 4),
            Ok(vec!["1.resid_in".into(), "2.resid_in".into()])
        );
        for offset in [-2, i64::MIN, i64::MAX] {
            let layers = FileLayers {
                offset,
                range: None,
            };
            assert!(sites(layers, &[1], 4).is_err(), "{offset}");
        }
        let none = FileLayers {
            offset: 0,
            range: Some((7, 9)),
        };
        assert!(sites(none, &[1, 2], 4).is_err());
        let backwards = FileLayers {
            offset: 0,
            range: Some((2, 1)),
        };
        assert!(sites(backwards, &[1, 2], 4).is_err_and(|error| error.contains("are none")));
        let mut zero = file_of(&[1, 2]);
        zero.directions.insert(1, vec![0.0, 0.0]);
        assert_eq!(parts(&zero, all, 4).expect("one is left").len(), 1);
    }

    #[test]
    fn what_is_exported_is_imported_as_it_was() {
        let made = |parts| NamedDirection {
            name: "d".to_owned(),
            description: String::new(),
            source: DirectionSource::Given {},
            parts,
        };
        let imported = parts(&file_of(&[1, 3]), FileLayers::default(), 4).expect("parts");
        let written = file(&made(imported.clone()), "m".to_owned(), 4).expect("a file");
        assert_eq!(parts(&written, FileLayers::default(), 4), Ok(imported));
        for site in ["0.resid_in", "1.resid_in", "2.resid_mid"] {
            let part = DirectionPart {
                site: site.to_owned(),
                vector: vec![1.0],
                stats: None,
            };
            let refused = file(&made(vec![part]), "m".to_owned(), 4).expect_err(site);
            assert!(refused.contains(site), "{refused}");
        }
    }
}
