//! The header of a GGUF file, walked once before it is read: what it claims is held against bounds, without anything
//! being allocated.
//!
//! The reader in use bounds each length by the file's, but a list of bytes becomes one of values that are many times as
//! large, an alignment of zero is divided by, and a product of sizes may overflow. Layout: the letters `GGUF`, a version,
//! the numbers of tensors and of keys, then keys with values, then names of tensors with sizes, type and offset; all
//! little-endian.

use std::io::{Read, Seek, SeekFrom};

/// No header has more bytes; the vocabulary is the most of one.
const LONGEST: u64 = 256 << 20;
/// No header has more values, those in lists counted one by one.
const MOST_VALUES: u64 = 1 << 22;
const MOST_TENSORS: u64 = 1 << 16;
const MOST_DIMENSIONS: u32 = 4;
/// Lists of lists of lists.
const DEEPEST_LIST: u32 = 3;
const LONGEST_NAME: u64 = 1 << 16;
const ALIGNMENT: &[u8] = b"general.alignment";
const ALIGNMENT_NAME: &str = "general.alignment";
const STRING: u32 = 8;
const LIST: u32 = 9;

/// A header being walked.
struct Walk<'r, R> {
    reader: &'r mut R,
    /// Bytes of the file, or of the longest header, that are left.
    left: u64,
    values: u64,
    /// The first version's lengths have four bytes, the others' eight.
    wide: bool,
}

/// Walks the header from the file's beginning and goes back there; `length` is the file's.
pub fn check<R: Read + Seek>(reader: &mut R, length: u64) -> Result<(), String> {
    let mut walk = Walk {
        reader,
        left: length.min(LONGEST),
        values: 0,
        wide: true,
    };
    walk.header()?;
    let start = reader.seek(SeekFrom::Start(0));
    start.map(|_| ()).map_err(|error| error.to_string())
}

impl<R: Read + Seek> Walk<'_, R> {
    fn header(&mut self) -> Result<(), String> {
        if self.array()? != *b"GGUF" {
            return Err("it does not begin with GGUF".to_owned());
        }
        let version = self.word()?;
        if !(1..=3).contains(&version) {
            return Err(format!("it is of version {version}; 1 to 3 are read"));
        }
        self.wide = version > 1;
        let (tensors, keys) = (self.length()?, self.length()?);
        if tensors > MOST_TENSORS {
            return Err(format!(
                "it has {tensors} tensors; {MOST_TENSORS} are the most"
            ));
        }
        if keys > MOST_VALUES {
            return Err(format!("it has {keys} keys; {MOST_VALUES} are the most"));
        }
        for _ in 0..keys {
            let is_alignment = self.name()? == ALIGNMENT;
            let kind = self.word()?;
            match is_alignment {
                true => self.alignment(kind)?,
                false => self.value(kind, 0)?,
            }
        }
        for _ in 0..tensors {
            self.tensor()?;
        }
        Ok(())
    }

    fn tensor(&mut self) -> Result<(), String> {
        let name = self.name()?;
        let dimensions = self.word()?;
        let wrong = |problem: String| {
            let name = String::from_utf8_lossy(&name).into_owned();
            let name: String = name.chars().take(60).collect();
            Err(format!("tensor {name}: {problem}"))
        };
        if dimensions > MOST_DIMENSIONS {
            return wrong(format!(
                "it has {dimensions} dimensions; {MOST_DIMENSIONS} are the most"
            ));
        }
        let mut count = Some(1u64);
        for _ in 0..dimensions {
            let size = self.length()?;
            count = count.and_then(|count| count.checked_mul(size.max(1)));
        }
        // Whoever multiplies them by an element's size must not overflow either.
        if count.is_none_or(|count| count > 1 << 48) {
            return wrong("its sizes multiply to more than any file holds".to_owned());
        }
        self.skip(4 + 8)
    }

    /// A value of a type by its number.
    fn value(&mut self, kind: u32, depth: u32) -> Result<(), String> {
        self.values += 1;
        if self.values > MOST_VALUES {
            return Err(format!("its header has more than {MOST_VALUES} values"));
        }
        match kind {
            STRING => {
                let length = self.length()?;
                self.skip(length)
            }
            LIST if depth == DEEPEST_LIST => Err(format!(
                "its header has lists more than {DEEPEST_LIST} deep"
            )),
            LIST => {
                let kind = self.word()?;
                let count = self.length()?;
                match width(kind) {
                    Some(width) => {
                        self.values = self.values.saturating_add(count);
                        if self.values > MOST_VALUES {
                            return Err(format!("its header has more than {MOST_VALUES} values"));
                        }
                        self.skip(count.saturating_mul(width))
                    }
                    None => {
                        for _ in 0..count {
                            self.value(kind, depth + 1)?;
                        }
                        Ok(())
                    }
                }
            }
            kind => match width(kind) {
                Some(width) => self.skip(width),
                None => Err(format!(
                    "its header has a value of type {kind}; 0 to 12 are known"
                )),
            },
        }
    }

    fn alignment(&mut self, kind: u32) -> Result<(), String> {
        let width = width(kind).ok_or_else(|| format!("{ALIGNMENT_NAME} is no number"))?;
        let mut bytes = [0; 8];
        self.fill(&mut bytes[..width as usize])?;
        let alignment = u64::from_le_bytes(bytes);
        match alignment.is_power_of_two() && alignment <= 1 << 16 {
            true => Ok(()),
            false => Err(format!(
                "{ALIGNMENT_NAME} is {alignment}; it must be a power of two up to 65536"
            )),
        }
    }

    fn name(&mut self) -> Result<Vec<u8>, String> {
        let length = self.length()?;
        if length > LONGEST_NAME {
            return Err(format!(
                "a name has {length} bytes; {LONGEST_NAME} are the most"
            ));
        }
        let mut name = vec![0; length.min(self.left) as usize];
        self.fill(&mut name)?;
        match name.len() as u64 == length {
            true => Ok(name),
            false => Err(self.cut_off()),
        }
    }

    fn length(&mut self) -> Result<u64, String> {
        match self.wide {
            true => Ok(u64::from_le_bytes(self.array()?)),
            false => Ok(u64::from(self.word()?)),
        }
    }

    fn word(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        self.take(bytes.len() as u64)?;
        self.reader
            .read_exact(bytes)
            .map_err(|error| error.to_string())
    }

    fn skip(&mut self, count: u64) -> Result<(), String> {
        self.take(count)?;
        // The bound is far below what an offset holds.
        self.reader
            .seek_relative(count as i64)
            .map_err(|error| error.to_string())
    }

    fn take(&mut self, count: u64) -> Result<(), String> {
        match self.left.checked_sub(count) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.cut_off()),
        }
    }

    fn cut_off(&self) -> String {
        format!("its header ends beyond the file, or has more than {LONGEST} bytes")
    }
}

/// The bytes of a value of a type that always has the same number of them.
fn width(kind: u32) -> Option<u64> {
    match kind {
        // Whole numbers of one byte, and booleans.
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        // The last is a float.
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}
