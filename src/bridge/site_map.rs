//! Which residual site of the dense model each site of the sparse one is joined to.
//!
//! A dense model may have more layers than its sparse partner. The sparse model's `2l + 1` sites are then joined to some
//! of the dense model's `2L + 1`, in the same order: an encoder reads the dense stream there, a decoder writes there, and
//! the layers of the dense model between two of them are passed without the bridge. Everything that goes from one model
//! to the other asks the [`SiteMap`]:
//!
//! - a residual site of the sparse model is the dense site that it is joined to;
//! - a sublayer's input reads the site before it. Written to the residual stream it goes to the dense site that this one
//!   is joined to; written to a sublayer, to the input of the dense sublayer that reads that dense site;
//! - all else of a sublayer reaches the stream at the site behind it, and the dense stream at the site which that one is
//!   joined to.
//!
//! Models of equal depth have the identity, and files say nothing of it.

use std::sync::Arc;

use crate::models::location::{Location, Site};

/// No more of a name is repeated to who wrote it.
const LONGEST_SHOWN: usize = 60;

/// For each site of a sparse model, in order, the dense site that it is joined to: strictly ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteMap {
    dense: Arc<[Site]>,
    sparse_layers: usize,
    dense_layers: usize,
}

/// Why sites cannot be joined: what is wrong with [`SiteMapError::field`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SiteMapError {
    #[error(
        "is {sparse}; the dense model has {dense} layers and cannot be the shallower of the two"
    )]
    Shallow { sparse: usize, dense: usize },
    #[error("is missing; it says where {sparse} layers are joined to {dense}")]
    Missing { sparse: usize, dense: usize },
    #[error(
        "names {found} sites; the sparse model has {expected}, and each is joined to one dense site"
    )]
    Count { found: usize, expected: usize },
    #[error(
        "has {name:?} for {sparse}; the dense model's sites are 0.resid_in, 0.resid_mid and so on to {last}.resid_mid, \
         and final_resid"
    )]
    Unknown {
        name: String,
        sparse: Site,
        last: usize,
    },
    #[error("has {dense} after {before}; its sites are in the order of the dense model, each once")]
    Order { dense: Site, before: Site },
    #[error("is not that of the bridge to go on from: {}", names.join(", "))]
    Other { names: Vec<String> },
}

impl SiteMapError {
    /// The field that is wrong, as recipes call it.
    pub fn field(&self) -> &'static str {
        match self {
            SiteMapError::Shallow { .. } => "sparse.n_layers",
            _ => "site_map",
        }
    }
}

impl SiteMap {
    /// Every site joined to the one of the same name.
    pub fn identity(n_layers: usize) -> Self {
        SiteMap {
            dense: Site::all(n_layers).collect(),
            sparse_layers: n_layers,
            dense_layers: n_layers,
        }
    }

    /// Evenly spaced: the input of layer `l` of `n` is joined to that of dense layer `l N / n`, its middle to that of dense
    /// layer `((2l + 1) N - n) / 2n`, both rounded down; the last site to the last.
    pub fn spaced(dense_layers: usize, sparse_layers: usize) -> Result<Self, SiteMapError> {
        deep_enough(dense_layers, sparse_layers)?;
        let inside = (0..sparse_layers).flat_map(|layer| {
            let attention = layer * dense_layers / sparse_layers;
            let mlp = ((2 * layer + 1) * dense_layers - sparse_layers) / (2 * sparse_layers);
            [
                Site::before_attention(attention, dense_layers),
                Site::before_mlp(mlp, dense_layers),
            ]
        });
        let last = Site::before_attention(dense_layers, dense_layers);
        Ok(SiteMap {
            dense: inside.chain([last]).collect(),
            sparse_layers,
            dense_layers,
        })
    }

    /// One dense site's name for each site of the sparse model.
    pub fn named(
        names: &[String],
        dense_layers: usize,
        sparse_layers: usize,
    ) -> Result<Self, SiteMapError> {
        deep_enough(dense_layers, sparse_layers)?;
        check_count(names, sparse_layers)?;
        let mut dense: Vec<Site> = Vec::with_capacity(names.len());
        for (name, sparse) in names.iter().zip(Site::all(sparse_layers)) {
            let Ok(Location::Site(site)) = Location::parse(name, dense_layers) else {
                return Err(SiteMapError::Unknown {
                    name: name.chars().take(LONGEST_SHOWN).collect(),
                    sparse,
                    last: dense_layers.saturating_sub(1),
                });
            };
            match dense.last() {
                Some(&before) if site <= before => {
                    return Err(SiteMapError::Order {
                        dense: site,
                        before,
                    });
                }
                _ => dense.push(site),
            }
        }
        Ok(SiteMap {
            dense: dense.into(),
            sparse_layers,
            dense_layers,
        })
    }

    /// As a bridge's record has it: nothing is said of the identity.
    pub fn recorded(
        names: Option<&[String]>,
        dense_layers: usize,
        sparse_layers: usize,
    ) -> Result<Self, SiteMapError> {
        match names {
            Some(names) => Self::named(names, dense_layers, sparse_layers),
            None if dense_layers == sparse_layers => Ok(Self::identity(dense_layers)),
            None => {
                deep_enough(dense_layers, sparse_layers)?;
                Err(SiteMapError::Missing {
                    sparse: sparse_layers,
                    dense: dense_layers,
                })
            }
        }
    }

    /// For a new training: what is asked for, or else what the bridge to go on from has, which is never another; evenly
    /// spaced where there is neither.
    pub fn chosen(
        asked: Option<&[String]>,
        start: Option<SiteMap>,
        dense_layers: usize,
        sparse_layers: usize,
    ) -> Result<Self, SiteMapError> {
        let asked = asked.map(|names| Self::named(names, dense_layers, sparse_layers));
        match (asked.transpose()?, start) {
            (None, None) => Self::spaced(dense_layers, sparse_layers),
            (Some(asked), Some(start)) if asked != start => Err(SiteMapError::Other {
                names: start.all_names(),
            }),
            (_, Some(map)) | (Some(map), None) => Ok(map),
        }
    }

    /// The dense site that a site of the sparse model is joined to.
    pub fn dense_of(&self, sparse: Site) -> Site {
        self.dense[sparse.index()]
    }

    /// The site of the sparse model that is joined to a dense one, where one is.
    pub fn sparse_of(&self, dense: Site) -> Option<Site> {
        let index = self.dense.binary_search(&dense).ok()?;
        Site::new(index, self.sparse_layers)
    }

    /// The dense site at which a place of the sparse model reads from the stream or reaches it.
    pub fn dense_site(&self, sparse: Location) -> Site {
        self.dense_of(sparse.site(self.sparse_layers))
    }

    /// All sites of the sparse model, each with the dense one that it is joined to.
    pub fn sites(&self) -> impl Iterator<Item = (Site, Site)> + '_ {
        Site::all(self.sparse_layers).zip(self.dense.iter().copied())
    }

    /// How many sites are joined: those of the sparse model.
    pub fn n_sites(&self) -> usize {
        self.dense.len()
    }

    pub fn sparse_layers(&self) -> usize {
        self.sparse_layers
    }

    pub fn dense_layers(&self) -> usize {
        self.dense_layers
    }

    /// Whether both models have the same sites, each joined to its own.
    pub fn is_identity(&self) -> bool {
        // As many sites in ascending order are all of them.
        self.dense_layers == self.sparse_layers
    }

    /// The dense sites' names, as a record keeps them; none of the identity.
    pub fn names(&self) -> Option<Vec<String>> {
        (!self.is_identity()).then(|| self.all_names())
    }

    fn all_names(&self) -> Vec<String> {
        self.dense.iter().map(Site::to_string).collect()
    }
}

/// Whether there is a name for each site of a sparse model of so many layers.
pub fn check_count(names: &[String], sparse_layers: usize) -> Result<(), SiteMapError> {
    let (found, expected) = (names.len(), 2 * sparse_layers + 1);
    match found == expected {
        true => Ok(()),
        false => Err(SiteMapError::Count { found, expected }),
    }
}

fn deep_enough(dense: usize, sparse: usize) -> Result<(), SiteMapError> {
    match dense < sparse {
        true => Err(SiteMapError::Shallow { sparse, dense }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn sites_are_spaced_evenly_and_kinds_stay_what_they_are() {
        let spaced = |dense, sparse| {
            let map = SiteMap::spaced(dense, sparse).expect("a map");
            map.all_names().join(" ")
        };
        assert_eq!(
            spaced(4, 2),
            "0.resid_in 0.resid_mid 2.resid_in 2.resid_mid final_resid"
        );
        assert_eq!(
            spaced(30, 3),
            "0.resid_in 4.resid_mid 10.resid_in 14.resid_mid 20.resid_in 24.resid_mid final_resid"
        );
        for dense in 1..40 {
            for sparse in 1..=dense {
                let map = SiteMap::spaced(dense, sparse).expect("a map");
                let again = SiteMap::named(&map.all_names(), dense, sparse);
                assert_eq!(again.as_ref(), Ok(&map), "{sparse} in {dense}");
                for (one, other) in map.sites() {
                    assert_eq!(one.index() % 2, other.index() % 2, "{sparse} in {dense}");
                    assert_eq!(map.sparse_of(other), Some(one));
                }
                assert_eq!(map.is_identity(), dense == sparse);
            }
        }
        assert_eq!(SiteMap::spaced(5, 5), Ok(SiteMap::identity(5)));
        assert_eq!(SiteMap::identity(5).names(), None);
    }

    #[test]
    fn places_are_joined_where_they_meet_the_stream() {
        let map = names("0.resid_in 1.resid_in 1.resid_mid 3.resid_in final_resid");
        let map = SiteMap::named(&map, 4, 2).expect("a map");
        let joined = |name: &str| {
            let place = Location::parse(name, 2).expect("a place");
            map.dense_site(place).to_string()
        };
        assert_eq!(joined("0.mlp.act_in"), "1.resid_in");
        assert_eq!(joined("0.attn.q"), "1.resid_in");
        assert_eq!(joined("0.mlp.post_act"), "1.resid_mid");
        assert_eq!(joined("1.attn.act_in"), "1.resid_mid");
        assert_eq!(joined("final_resid"), "final_resid");
        let unjoined = Site::new(1, 4).expect("a site");
        assert_eq!(map.sparse_of(unjoined), None);
    }

    #[test]
    fn what_joins_no_two_models_is_refused() {
        let refused = |text: &str| {
            let error = SiteMap::named(&names(text), 4, 1).expect_err("a refusal");
            error.to_string()
        };
        for (text, told) in [
            ("0.resid_in final_resid", "names 2 sites"),
            ("0.resid_in 4.resid_in final_resid", "3.resid_mid"),
            ("0.resid_in 1.attn.q final_resid", "1.attn.q"),
            (
                "0.resid_in final_resid 2.resid_in",
                "2.resid_in after final_resid",
            ),
            (
                "1.resid_in 1.resid_in final_resid",
                "1.resid_in after 1.resid_in",
            ),
        ] {
            let error = refused(text);
            assert!(error.contains(told), "expected {told:?} in: {error}");
        }
        let long = format!("0.resid_in {} final_resid", "x".repeat(1 << 16));
        assert!(refused(&long).len() < 400);
        assert_eq!(
            SiteMap::spaced(2, 3),
            Err(SiteMapError::Shallow {
                sparse: 3,
                dense: 2
            })
        );
        assert!(matches!(
            SiteMap::recorded(None, 4, 2),
            Err(SiteMapError::Missing { .. })
        ));
        assert_eq!(SiteMap::recorded(None, 2, 2), Ok(SiteMap::identity(2)));
    }

    #[test]
    fn a_training_goes_on_with_the_map_that_it_starts_from() {
        let own = names("0.resid_in 0.resid_mid final_resid");
        let start = SiteMap::named(&names("0.resid_in 2.resid_mid final_resid"), 3, 1);
        let start = start.expect("a map");
        let chosen = |asked: Option<&[String]>, start| SiteMap::chosen(asked, start, 3, 1);
        assert_eq!(chosen(None, Some(start.clone())), Ok(start.clone()));
        assert_eq!(chosen(None, None), SiteMap::spaced(3, 1));
        assert_eq!(chosen(Some(&own), None), SiteMap::named(&own, 3, 1));
        let error = chosen(Some(&own), Some(start)).expect_err("a refusal");
        assert!(error.to_string().contains("2.resid_mid"), "{error}");
    }
}
