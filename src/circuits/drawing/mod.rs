//! Circuits as pictures, as text, and as attribution graphs: pure functions of a record.
//!
//! [`dot`] is for Graphviz, [`svg`] a picture that stands alone ([`layout`] says where its parts are), [`text`] is for the
//! terminal; all three are made of a [`drawn`] circuit. [`table`] has one line a circuit. [`attribution_graph`] is what a circuit does on one prompt, in the
//! format of circuit-tracer and Neuronpedia.

pub mod attribution_graph;
pub mod dot;
pub mod drawn;
pub mod layout;
pub mod svg;
pub mod table;
#[cfg(test)]
pub(crate) mod test_circuit;
pub mod text;
