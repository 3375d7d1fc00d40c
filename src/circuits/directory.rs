//! A circuit as a file: `circuit.json` in a directory of its own.

use std::path::Path;

use super::circuit::Circuit;
use crate::artifacts::{ArtifactError, atomic};

/// The file in a circuit's directory.
pub const CIRCUIT_FILE: &str = "circuit.json";
/// Of a pair's directory: the folder that holds a directory for each circuit that it comes with.
pub const CIRCUITS_FOLDER: &str = "circuits";
/// A longer file is not read.
const LARGEST_CIRCUIT: u64 = 16 << 20;

/// Why a circuit cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CircuitError {
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error("{path}: {problem}")]
    Invalid { path: String, problem: String },
}

/// The circuit in `directory`.
pub fn read(directory: &Path) -> Result<Circuit, CircuitError> {
    read_file(&directory.join(CIRCUIT_FILE))
}

/// The circuit in the file at `path`.
pub fn read_file(path: &Path) -> Result<Circuit, CircuitError> {
    let json = atomic::read_small(path, LARGEST_CIRCUIT)?;
    serde_json::from_slice(&json).map_err(|error| CircuitError::Invalid {
        path: path.display().to_string(),
        problem: error.to_string(),
    })
}

/// Writes a circuit into `directory`, which is made where it is not there.
pub fn write(directory: &Path, circuit: &Circuit) -> Result<(), CircuitError> {
    atomic::create_directory(directory)?;
    let path = directory.join(CIRCUIT_FILE);
    // Compact: `causeway circuits show` is for people, and examples are a number a token of every node.
    let json = serde_json::to_vec(circuit).map_err(|error| CircuitError::Invalid {
        path: path.display().to_string(),
        problem: error.to_string(),
    })?;
    Ok(atomic::write(&path, &json)?)
}
