//! Code of packages that nothing of was trained on: the hard half of held-out text.
//!
//! A directory with a folder a package. Files of a package that was trained on share its names and habits with what the
//! models saw; these do not.

use std::path::Path;

use super::EvaluationError;
use crate::artifacts::{ArtifactError, text_files};

/// One package.
#[derive(Debug, Clone)]
pub struct UnseenPackage {
    pub name: String,
    pub documents: Vec<String>,
}

/// The packages in a directory, by name.
pub fn packages(directory: &Path) -> Result<Vec<UnseenPackage>, EvaluationError> {
    let invalid = |problem: String| EvaluationError::Invalid(problem);
    let entries = directory
        .read_dir()
        .map_err(ArtifactError::io("read", directory))
        .map_err(|error| invalid(error.to_string()))?;
    let mut packages = Vec::new();
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        let documents = text_files::read_documents(&entry.path());
        let documents = documents.map_err(|error| invalid(error.to_string()))?;
        packages.push(UnseenPackage {
            name: entry.file_name().to_string_lossy().into_owned(),
            documents: documents.into_iter().map(|d| d.text).collect(),
        });
    }
    packages.sort_by(|one, other| one.name.cmp(&other.name));
    if packages.is_empty() {
        return Err(invalid(format!(
            "{} has no folder in it; it needs one for each package",
            directory.display()
        )));
    }
    Ok(packages)
}
