//! Directories of text: which documents they hold, in an order that every machine agrees on.
//!
//! `.py`, `.txt` and `.md` files are one document each; a `.jsonl` file is one document a line, in its `text`.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::{ArtifactError, atomic, regular};

/// A file larger than this is no training text.
pub const LARGEST_FILE: u64 = 1 << 30;
/// Plain text is cut into documents of about this many characters, at the ends of lines.
const PIECE: usize = 4096;
/// What some programs put before a text to say that it is UTF-8. It is no part of the text.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// A document and where it came from, relative to the directory, with `/` between folders.
#[derive(Debug, Clone)]
pub struct TextDocument {
    pub path: String,
    pub text: String,
}

/// How the documents of a file are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFormat {
    /// An object with a string `text` a line, each a document.
    JsonLines,
    /// Text that is cut into pieces of whole lines.
    Plain,
}

impl TextFormat {
    /// That of a file called `name`.
    pub fn of(name: &str) -> Self {
        match name.to_ascii_lowercase().ends_with(".jsonl") {
            true => TextFormat::JsonLines,
            false => TextFormat::Plain,
        }
    }
}

/// Why a text has no further document.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A line, counted from 1, is not as it should be.
    #[error("line {line}: {problem}")]
    Line { line: usize, problem: String },
    #[error(transparent)]
    Read(#[from] io::Error),
}

impl TextError {
    fn in_file(self, path: &Path) -> ArtifactError {
        match self {
            TextError::Line { line, problem } => {
                ArtifactError::damaged(path, format!("line {line}"), problem)
            }
            TextError::Read(error) => ArtifactError::io("read", path)(error),
        }
    }
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
            let text = match text.strip_prefix(BYTE_ORDER_MARK) {
                Some(rest) => rest.to_owned(),
                None => text,
            };
            documents.push(TextDocument { path, text });
            continue;
        }
        for line in DocumentReader::of(text.as_bytes(), TextFormat::JsonLines, LARGEST_FILE) {
            let line = line.map_err(|error| error.in_file(&file))?;
            documents.push(TextDocument {
                path: format!("{path}:{}", line.path),
                text: line.text,
            });
        }
    }
    Ok(documents)
}

/// The documents of one file of UTF-8: a `.jsonl` file's lines, or pieces of plain text.
pub fn read_file(path: &Path) -> Result<Vec<TextDocument>, ArtifactError> {
    let (file, length) = regular::open(path)?;
    if length > LARGEST_FILE {
        let problem = format!("is longer than the {LARGEST_FILE} bytes that are read");
        return Err(ArtifactError::damaged(path, "the file", problem));
    }
    let format = TextFormat::of(&path.to_string_lossy());
    DocumentReader::of(BufReader::new(file), format, LARGEST_FILE)
        .map(|document| document.map_err(|error| error.in_file(path)))
        .collect()
}

/// The documents of a text, read line by line: at most a line and a document are in memory. After an error it ends.
pub struct DocumentReader<R> {
    reader: R,
    format: TextFormat,
    longest_line: u64,
    line: Vec<u8>,
    /// Lines read so far.
    lines: usize,
    /// Whole lines of plain text that are no document yet, and their characters.
    piece: String,
    characters: usize,
    /// Pieces so far.
    pieces: usize,
    ended: bool,
}

impl<R: BufRead> DocumentReader<R> {
    /// Of a text none of whose lines may have more than `longest_line` bytes.
    pub fn of(reader: R, format: TextFormat, longest_line: u64) -> Self {
        DocumentReader {
            reader,
            format,
            longest_line,
            line: Vec::new(),
            lines: 0,
            piece: String::new(),
            characters: 0,
            pieces: 0,
            ended: false,
        }
    }

    fn advance(&mut self) -> Result<Option<TextDocument>, TextError> {
        loop {
            self.line.clear();
            let most = self.longest_line.saturating_add(1);
            let mut bounded = (&mut self.reader).take(most);
            if bounded.read_until(b'\n', &mut self.line)? == 0 {
                return Ok((!self.piece.is_empty()).then(|| self.take_piece()));
            }
            self.lines += 1;
            let line = self.lines;
            let wrong = |problem: String| TextError::Line { line, problem };
            if self.line.len() as u64 > self.longest_line {
                let most = self.longest_line;
                return Err(wrong(format!(
                    "has more than {most} bytes, the longest line that is read"
                )));
            }
            let text =
                std::str::from_utf8(&self.line).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
            let text = match line {
                1 => text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text),
                _ => text,
            };
            match self.format {
                TextFormat::JsonLines if text.trim().is_empty() => {}
                TextFormat::JsonLines => {
                    let text = text_of_line(text.trim_end()).map_err(wrong)?;
                    let path = line.to_string();
                    return Ok(Some(TextDocument { path, text }));
                }
                TextFormat::Plain => {
                    self.piece.push_str(text);
                    self.characters += text.chars().count();
                    if self.characters >= PIECE {
                        return Ok(Some(self.take_piece()));
                    }
                }
            }
        }
    }

    fn take_piece(&mut self) -> TextDocument {
        self.pieces += 1;
        self.characters = 0;
        TextDocument {
            path: self.pieces.to_string(),
            text: std::mem::take(&mut self.piece),
        }
    }
}

impl<R: BufRead> Iterator for DocumentReader<R> {
    type Item = Result<TextDocument, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.advance().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &[u8], format: TextFormat) -> Result<Vec<String>, String> {
        DocumentReader::of(text, format, 20_000)
            .map(|document| match document {
                Ok(document) => Ok(document.text),
                Err(error) => Err(error.to_string()),
            })
            .collect()
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        let lines = "\u{feff}{\"text\": \"one\"}\r\n\r\n{\"text\": \"two\"}\n";
        let found = texts(lines.as_bytes(), TextFormat::JsonLines);
        assert_eq!(found, Ok(vec!["one".to_owned(), "two".to_owned()]));
        let plain = "\u{feff}one\r\ntwo".as_bytes();
        let found = texts(plain, TextFormat::Plain);
        assert_eq!(found, Ok(vec!["one\r\ntwo".to_owned()]));
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("a.py"), "\u{feff}x = 1\n").expect("a file");
        fs::write(folder.path().join("b.jsonl"), lines).expect("a file");
        let documents = read_documents(folder.path()).expect("documents");
        let found: Vec<&str> = documents.iter().map(|found| found.text.as_str()).collect();
        assert_eq!(found, ["x = 1\n", "one", "two"]);
        assert_eq!(documents[2].path, "b.jsonl:3");
        let file = read_file(&folder.path().join("b.jsonl")).expect("documents");
        assert_eq!(file.len(), 2);
    }

    #[test]
    fn plain_text_is_cut_by_characters_not_bytes() {
        let line = "\u{6f22}".repeat(1023) + "\n";
        let text = line.repeat(8);
        let found = texts(text.as_bytes(), TextFormat::Plain).expect("documents");
        let lengths: Vec<usize> = found.iter().map(|text| text.chars().count()).collect();
        assert_eq!(lengths, [4096, 4096]);
        assert_eq!(found.concat(), text);
    }

    #[test]
    fn the_first_line_at_fault_is_named_and_the_last() {
        let json = |text: &[u8]| texts(text, TextFormat::JsonLines).expect_err("a fault");
        assert!(json(b"{\"text\": \"a\"}\n\n{\"txt\": 1}\n{").starts_with("line 3: "));
        assert_eq!(
            json(b"{\"text\": \"a\"}\n\xff\n"),
            "line 2: it is not UTF-8"
        );
        let long = [b"\n".as_slice(), &[b'x'; 20_001]].concat();
        assert!(json(&long).contains("line 2: has more than 20000 bytes"));
        let mut documents = DocumentReader::of(&b"\xff\ngood\n"[..], TextFormat::Plain, 100);
        assert!(documents.next().is_some_and(|found| found.is_err()));
        assert!(documents.next().is_none());
    }
}
