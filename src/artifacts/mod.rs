//! Bytes on disk: the only layer that opens, reads or writes a file of weights.
//!
//! Everything read here may come from a stranger, so each reader checks every declared size, offset and
//! count against the file's length before it allocates, and answers damage with an error, never a panic.
//! Everything written here is either wholly there or not there at all.
//!
//! - [`atomic`]: replace a file in one step.
//! - [`regular`]: open nothing but regular files.
//! - [`tensors`]: safetensors files.
//! - [`sparse_tensor`]: mostly-zero matrices inside a safetensors file.
//! - [`gguf`]: GGUF files.
//! - [`torch_pickle`]: the `.pt` files of released checkpoints.
//! - [`gguf`]: GGUF files. [`control_vector`]: those that hold directions to steer by.
//! - [`manifest`]: what a directory holds, by hash.
//! - [`partial_file`]: a file that arrives piece by piece.

pub mod atomic;
pub mod control_vector;
pub mod error;
pub mod gguf;
mod gguf_header;
pub mod manifest;
pub mod partial_file;
pub mod regular;
pub mod sparse_tensor;
pub mod tensors;
pub mod text_files;
pub mod torch_pickle;

pub use error::{ArtifactError, is_full};
pub use manifest::{ArtifactId, Manifest, NameError, hexadecimal};
