//! The places inside a transformer that can be read and changed, and their names.
//!
//! A *site* is a point in the residual stream: `2L + 1` of them, before each sublayer and after the last. A
//! *node location* is a point inside a sublayer. Both are written `{layer}.{place}`, as the released
//! checkpoints' tools write them. Against TransformerLens: `{l}.resid_in` = `blocks.{l}.hook_resid_pre`,
//! `{l}.resid_mid` = `hook_resid_mid`, `{l}.attn.resid_delta` = `hook_attn_out`, `{l}.mlp.resid_delta` =
//! `hook_mlp_out`, `{l}.mlp.post_act` = `mlp.hook_post`, `{l}.attn.y` = `attn.hook_z`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::config::TransformerConfig;

/// A point in the residual stream, counted from the first layer's input: `0 ..= 2L`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    index: usize,
    n_layers: usize,
}

impl Site {
    /// Site `index` of a model with `n_layers` layers; none past the last.
    pub fn new(index: usize, n_layers: usize) -> Option<Self> {
        (index <= 2 * n_layers).then_some(Site { index, n_layers })
    }

    /// All sites of a model, in the order of the forward pass.
    pub fn all(n_layers: usize) -> impl Iterator<Item = Site> {
        (0..=2 * n_layers).map(move |index| Site { index, n_layers })
    }

    /// The stream as layer `layer`'s attention finds it.
    pub fn before_attention(layer: usize, n_layers: usize) -> Self {
        Site {
            index: 2 * layer,
            n_layers,
        }
    }

    /// The stream between layer `layer`'s attention and its MLP.
    pub fn before_mlp(layer: usize, n_layers: usize) -> Self {
        Site {
            index: 2 * layer + 1,
            n_layers,
        }
    }

    pub fn index(self) -> usize {
        self.index
    }

    /// The site from which a pass of a model can begin and come by this one: itself, or the layer's first where attention
    /// and MLP read the same stream.
    pub fn pass_start(self, config: &TransformerConfig) -> Self {
        match config.variant.parallel_sublayers && self.index % 2 == 1 {
            true => Site {
                index: self.index - 1,
                ..self
            },
            false => self,
        }
    }

    /// The input of the sublayer that reads the stream here; none at the last site.
    pub fn read_by(self) -> Option<Location> {
        let kind = match self.index % 2 {
            0 => NodeKind::AttnIn,
            _ => NodeKind::MlpIn,
        };
        let layer = self.index / 2;
        (!self.is_last()).then_some(Location::Node(Node { layer, kind }))
    }

    pub fn is_last(self) -> bool {
        self.index == 2 * self.n_layers
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layer = self.index / 2;
        match (self.is_last(), self.index % 2) {
            (true, _) => write!(f, "final_resid"),
            (false, 0) => write!(f, "{layer}.resid_in"),
            (false, _) => write!(f, "{layer}.resid_mid"),
        }
    }
}

/// What kind of place inside a sublayer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeKind {
    /// The attention's input after norm and AbsTopK, `d_read` channels.
    AttnIn,
    Q,
    K,
    V,
    /// The heads' outputs before `c_proj`.
    AttnY,
    /// What the attention adds to the stream, after its AbsTopK.
    AttnOut,
    /// The MLP's input after norm and AbsTopK, `d_read` channels.
    MlpIn,
    /// The MLP's neurons after nonlinearity and AbsTopK.
    PostAct,
    /// What the MLP adds to the stream, after its AbsTopK.
    MlpOut,
}

impl NodeKind {
    /// Every kind with its name after the layer number.
    pub const NAMES: [(&'static str, NodeKind); 9] = [
        ("attn.act_in", NodeKind::AttnIn),
        ("attn.q", NodeKind::Q),
        ("attn.k", NodeKind::K),
        ("attn.v", NodeKind::V),
        ("attn.y", NodeKind::AttnY),
        ("attn.resid_delta", NodeKind::AttnOut),
        ("mlp.act_in", NodeKind::MlpIn),
        ("mlp.post_act", NodeKind::PostAct),
        ("mlp.resid_delta", NodeKind::MlpOut),
    ];

    fn name(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or("", |(name, _)| name)
    }
}

/// A place inside one layer's attention or MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    pub layer: usize,
    pub kind: NodeKind,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.layer, self.kind.name())
    }
}

/// A residual site or a node location.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Location {
    Site(Site),
    Node(Node),
}

impl Location {
    /// Every place of a model, layer after layer.
    pub fn all(n_layers: usize) -> Vec<Location> {
        let mut places = Vec::new();
        for layer in 0..n_layers {
            places.push(Location::Site(Site::before_attention(layer, n_layers)));
            let nodes = NodeKind::NAMES.map(|(_, kind)| Location::Node(Node { layer, kind }));
            let (attention, mlp) = nodes.split_at(6);
            places.extend_from_slice(attention);
            places.push(Location::Site(Site::before_mlp(layer, n_layers)));
            places.extend_from_slice(mlp);
        }
        places.extend(Site::new(2 * n_layers, n_layers).map(Location::Site));
        places
    }

    /// The place called `name` in a model of `n_layers` layers.
    pub fn parse(name: &str, n_layers: usize) -> Result<Self, UnknownLocation> {
        let unknown = || UnknownLocation {
            name: name.to_string(),
            last_layer: n_layers.saturating_sub(1),
        };
        let parsed: ParsedPlace = name.parse().map_err(|()| unknown())?;
        parsed.in_model(n_layers).ok_or_else(unknown)
    }

    /// The residual site this place reads from or writes to: a sublayer's input reads the site before it,
    /// everything else of a sublayer reaches the stream at the site after it.
    pub fn site(self, n_layers: usize) -> Site {
        match self {
            Location::Site(site) => site,
            Location::Node(Node { layer, kind }) => {
                let index = match kind {
                    NodeKind::AttnIn => 2 * layer,
                    NodeKind::MlpIn
                    | NodeKind::Q
                    | NodeKind::K
                    | NodeKind::V
                    | NodeKind::AttnY
                    | NodeKind::AttnOut => 2 * layer + 1,
                    NodeKind::PostAct | NodeKind::MlpOut => 2 * layer + 2,
                };
                Site { index, n_layers }
            }
        }
    }

    /// The layer it belongs to; the last site counts as one past the last layer's.
    pub fn layer(self) -> usize {
        match self {
            Location::Site(site) => site.index / 2,
            Location::Node(node) => node.layer,
        }
    }

    /// The last site that a pass comes by before this place, or the place itself.
    pub fn site_before(self, n_layers: usize) -> Site {
        match self {
            Location::Site(site) => site,
            Location::Node(Node { layer, kind }) => match kind {
                NodeKind::MlpIn | NodeKind::PostAct | NodeKind::MlpOut => {
                    Site::before_mlp(layer, n_layers)
                }
                NodeKind::AttnIn
                | NodeKind::Q
                | NodeKind::K
                | NodeKind::V
                | NodeKind::AttnY
                | NodeKind::AttnOut => Site::before_attention(layer, n_layers),
            },
        }
    }

    /// The site from which a pass of a model must go on to come by this place.
    pub fn pass_start(self, config: &TransformerConfig) -> Site {
        let site = self.site_before(config.n_layers);
        site.pass_start(config)
    }

    /// How many channels a model has there.
    pub fn width(self, config: &TransformerConfig) -> usize {
        match self {
            Location::Site(_) => config.d_model,
            Location::Node(node) => match node.kind {
                NodeKind::AttnIn | NodeKind::MlpIn => config.d_read(),
                NodeKind::Q | NodeKind::AttnY => config.d_attention(),
                NodeKind::K | NodeKind::V => config.d_key_value(),
                NodeKind::AttnOut | NodeKind::MlpOut => config.d_model,
                NodeKind::PostAct => config.d_mlp,
            },
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Site(site) => site.fmt(f),
            Location::Node(node) => node.fmt(f),
        }
    }
}

/// A name that is no place of the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no place is called {name:?}: residual sites are `L.resid_in`, `L.resid_mid` and `final_resid`, nodes \
     `L.attn.act_in|q|k|v|y|resid_delta` and `L.mlp.act_in|post_act|resid_delta`, with L from 0 to {last_layer}"
)]
pub struct UnknownLocation {
    pub name: String,
    pub last_layer: usize,
}

/// A well-formed name, not yet held against a model's depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ParsedPlace {
    ResidIn(usize),
    ResidMid(usize),
    FinalResid,
    Node(Node),
}

impl ParsedPlace {
    fn in_model(self, n_layers: usize) -> Option<Location> {
        let layer_exists = |layer: usize| (layer < n_layers).then_some(layer);
        Some(match self {
            ParsedPlace::ResidIn(layer) => {
                Location::Site(Site::before_attention(layer_exists(layer)?, n_layers))
            }
            ParsedPlace::ResidMid(layer) => {
                Location::Site(Site::before_mlp(layer_exists(layer)?, n_layers))
            }
            ParsedPlace::FinalResid => Location::Site(Site {
                index: 2 * n_layers,
                n_layers,
            }),
            ParsedPlace::Node(node) => {
                layer_exists(node.layer)?;
                Location::Node(node)
            }
        })
    }
}

impl FromStr for ParsedPlace {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        if name == "final_resid" {
            return Ok(ParsedPlace::FinalResid);
        }
        let (layer, place) = name.split_once('.').ok_or(())?;
        let canonical = layer == "0" || !layer.starts_with(['0', '+']);
        let layer: usize = layer.parse().map_err(|_| ())?;
        if !canonical {
            return Err(());
        }
        match place {
            "resid_in" => Ok(ParsedPlace::ResidIn(layer)),
            "resid_mid" => Ok(ParsedPlace::ResidMid(layer)),
            _ => NodeKind::NAMES
                .iter()
                .find(|(known, _)| *known == place)
                .map(|&(_, kind)| ParsedPlace::Node(Node { layer, kind }))
                .ok_or(()),
        }
    }
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A place's name as it stands in a file, to be held against a model with [`LocationName::in_model`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct LocationName(String);

impl LocationName {
    pub fn in_model(&self, n_layers: usize) -> Result<Location, UnknownLocation> {
        Location::parse(&self.0, n_layers)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Location> for LocationName {
    fn from(place: Location) -> Self {
        LocationName(place.to_string())
    }
}

impl<'de> Deserialize<'de> for LocationName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        match name.parse::<ParsedPlace>() {
            Ok(_) => Ok(LocationName(name)),
            Err(()) => Err(serde::de::Error::custom(format!(
                "{name:?} is not a place's name"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_found_under_its_own_name() {
        let places = Location::all(3);
        assert_eq!(places.len(), 3 * 11 + 1);
        for place in places {
            assert_eq!(Location::parse(&place.to_string(), 3), Ok(place));
        }
    }

    #[test]
    fn names_of_other_models_are_refused() {
        for name in [
            "3.resid_in",
            "0.attn",
            "attn.q",
            "00.resid_in",
            "-1.resid_in",
            "",
            "0.attn.act_in.x",
        ] {
            assert!(Location::parse(name, 3).is_err(), "{name}");
        }
    }
}
