//! Where the values come from that edits and conditions look at.

/// Where a value is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The answering model itself, as edited at earlier places.
    Own,
    /// The unedited sparse model.
    Sparse,
    /// The encoder of the dense stream as edited at earlier sites.
    Encoder,
    /// Nowhere: what the edit does is known beforehand, and nobody asked for the values.
    Unread,
}
