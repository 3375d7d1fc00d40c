//! Directories of text: which documents they hold, in an order that every machine agrees on.
//!
//! `.py`, `.txt` and `.md` files are one document each; a `.jsonl` file is one document a line, in its `text`.

use std::fs;
use std::path::{Path, PathBuf};

use super::{ArtifactError, atomic};

/// A file larger than this is no training text.
const LARGEST_FILE: u64 = 1 << 30;

/// A document and where it came from, relative to the directory, with `/` between folders.
#[derive(Debug, Clone)]
pub struct TextDocument {
    pub path: String,
    pub text: String,
}

/// Every document below `directory`, by path. Files that are not UTF-8 are left out.
pub fn read_documents(directory: &Path) -> Result<Vec<TextDocument>, ArtifactError> {
    let mut files = Vec::new();
    collect(directory, directory, &mut files)?;
    files.sort();
    let mut documents = Vec::new();
    for (path, file) in files {
        let Ok(text) = String::from_utf8(atomic::read_small(&file, LARGEST_FILE)?) else {
            continue;
        };
        if !path.ends_with(".jsonl") {
            documents.push(TextDocument { path, text });
            continue;
        }
        for (number, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
        {
            let place = format!("{path}:{}", number + 1);
            documents.push(TextDocument {
                text: text_of_line(line).map_err(|problem| {
                    ArtifactError::damaged(&file, format!("line {}", number + 1), problem)
                })?,
                path: place,
            });
        }
    }
    Ok(documents)
}

fn text_of_line(line: &str) -> Result<String, String> {
    #[derive(serde::Deserialize)]
    struct Line {
        text: String,
    }
    match serde_json::from_str::<Line>(line) {
        Ok(line) => Ok(line.text),
        Err(error) => Err(format!("{error}; expected an object with a string `text`")),
    }
}

fn collect(
    root: &Path,
    directory: &Path,
    files: &mut Vec<(String, PathBuf)>,
) -> Result<(), ArtifactError> {
    let entries = fs::read_dir(directory).map_err(ArtifactError::io("list", directory))?;
    for entry in entries {
        let entry = entry.map_err(ArtifactError::io("list", directory))?;
        let path = entry.path();
        let kind = entry
            .file_type()
            .map_err(ArtifactError::io("inspect", &path))?;
        if kind.is_dir() {
            collect(root, &path, files)?;
        } else if kind.is_file() {
            let wanted = ["py", "txt", "md", "jsonl"];
            let extension = path.extension().and_then(|extension| extension.to_str());
            if extension.is_some_and(|extension| wanted.contains(&extension)) {
                let relative = path.strip_prefix(root).unwrap_or(&path);
                let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
                files.push((parts.join("/"), path));
            }
        }
    }
    Ok(())
}
