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
        let lines = lines_of_jsonl(&text).map_err(|(line, problem)| {
            ArtifactError::damaged(&file, format!("line {line}"), problem)
        })?;
        documents.extend(lines.into_iter().map(|line| TextDocument {
            path: format!("{path}:{}", line.path),
            text: line.text,
        }));
    }
    Ok(documents)
}

/// Plain text is cut into documents of about this many characters, at the ends of lines.
const PIECE: usize = 4096;

/// The documents of one file of UTF-8: a `.jsonl` file's lines, or pieces of plain text.
pub fn read_file(path: &Path) -> Result<Vec<TextDocument>, ArtifactError> {
    let bytes = atomic::read_small(path, LARGEST_FILE)?;
    let text = String::from_utf8(bytes)
        .map_err(|error| ArtifactError::damaged(path, "its text", error.to_string()))?;
    let named = path
        .extension()
        .is_some_and(|extension| extension == "jsonl");
    let parsed = match named {
        true => lines_of_jsonl(&text),
        false => Ok(pieces(&text)),
    };
    parsed.map_err(|(line, problem)| ArtifactError::damaged(path, format!("line {line}"), problem))
}

/// The `text` of each line, or the first line that has none, counted from 1.
pub fn lines_of_jsonl(text: &str) -> Result<Vec<TextDocument>, (usize, String)> {
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let document = |(index, line): (usize, &str)| match text_of_line(line) {
        Ok(text) => Ok(TextDocument {
            path: (index + 1).to_string(),
            text,
        }),
        Err(problem) => Err((index + 1, problem)),
    };
    lines.map(document).collect()
}

/// Pieces of whole lines.
pub fn pieces(text: &str) -> Vec<TextDocument> {
    let mut pieces = Vec::new();
    let mut piece = String::new();
    for line in text.split_inclusive('\n') {
        piece.push_str(line);
        if piece.len() >= PIECE {
            pieces.push(std::mem::take(&mut piece));
        }
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    let numbered = pieces.into_iter().enumerate();
    let document = |(index, text): (usize, String)| TextDocument {
        path: (index + 1).to_string(),
        text,
    };
    numbered.map(document).collect()
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
