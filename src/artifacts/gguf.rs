//! GGUF files: a header of keys and values, and tensors of many types.
//!
//! `candle`'s reader bounds what the header claims by the file's size. Tensors come out as float32, a caller's bound on
//! their bytes being held first.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Content;
pub use candle_core::quantized::gguf_file::Value as HeaderValue;
use candle_core::{Device, Tensor};

/// The element types that are read, by the names that llama.cpp gives them.
pub const TYPES: [(&str, GgmlDType); 13] = [
    ("F32", GgmlDType::F32),
    ("F16", GgmlDType::F16),
    ("BF16", GgmlDType::BF16),
    ("Q4_0", GgmlDType::Q4_0),
    ("Q4_1", GgmlDType::Q4_1),
    ("Q5_0", GgmlDType::Q5_0),
    ("Q5_1", GgmlDType::Q5_1),
    ("Q8_0", GgmlDType::Q8_0),
    ("Q2_K", GgmlDType::Q2K),
    ("Q3_K", GgmlDType::Q3K),
    ("Q4_K", GgmlDType::Q4K),
    ("Q5_K", GgmlDType::Q5K),
    ("Q6_K", GgmlDType::Q6K),
];

/// An open file with its header.
pub struct GgufFile {
    pub content: Content,
    reader: BufReader<File>,
}

impl GgufFile {
    pub fn read(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let mut reader = BufReader::new(file);
        check_alignment(&mut reader)?;
        let content = Content::read(&mut reader).map_err(known_types)?;
        Ok(GgufFile { content, reader })
    }

    pub fn has(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// The values of a tensor of at most `most` of them; none where there is no such tensor.
    pub fn values(&mut self, name: &str, most: usize) -> Result<Option<Vec<f32>>, String> {
        match self.content.tensor_infos.get(name) {
            None => return Ok(None),
            Some(info) if count(info.shape.dims()) > most as u64 => {
                return Err(format!("{name} has more than {most} values"));
            }
            Some(_) => {}
        }
        let tensor = self.tensor(name)?;
        let values = tensor.flatten_all().and_then(|tensor| tensor.to_vec1());
        values.map(Some).map_err(|error| format!("{name}: {error}"))
    }

    /// Every tensor of a wanted name as float32, which may take `most_bytes` together.
    pub fn tensors(
        &mut self,
        wanted: impl Fn(&str) -> bool,
        most_bytes: u64,
    ) -> Result<BTreeMap<String, Tensor>, String> {
        let infos = self.content.tensor_infos.iter();
        let infos = infos.filter(|(name, _)| wanted(name));
        let sizes = infos.map(|(name, info)| (name.clone(), count(info.shape.dims())));
        let sizes: BTreeMap<String, u64> = sizes.collect();
        let total = sizes
            .values()
            .fold(0u64, |sum, size| sum.saturating_add(*size));
        let total = total.saturating_mul(size_of::<f32>() as u64);
        if total > most_bytes {
            return Err(format!(
                "its tensors take {total} bytes as float32; those of its configuration take at most {most_bytes}"
            ));
        }
        let mut tensors = BTreeMap::new();
        for name in sizes.into_keys() {
            let tensor = self.tensor(&name)?;
            tensors.insert(name, tensor);
        }
        Ok(tensors)
    }

    fn tensor(&mut self, name: &str) -> Result<Tensor, String> {
        let tensor = self.content.tensor(&mut self.reader, name, &Device::Cpu);
        let tensor = tensor.and_then(|tensor| tensor.dequantize(&Device::Cpu));
        tensor.map_err(|error| format!("{name}: {error}"))
    }
}

/// How many values a shape has.
fn count(shape: &[usize]) -> u64 {
    shape
        .iter()
        .fold(1u64, |count, &size| count.saturating_mul(size as u64))
}

/// The reader divides by `general.alignment` as it stands in the file, so a zero there must be found first. The header's
/// own bytes say it: the key, the number of its type, and the value.
pub(super) fn check_alignment(reader: &mut (impl Read + Seek)) -> Result<(), String> {
    const KEY: &[u8] = b"general.alignment";
    /// The key, four bytes of type, and the widest value that is read.
    const WHOLE: usize = KEY.len() + 8;
    const BLOCK: u64 = 1 << 20;
    let failed = |error: std::io::Error| error.to_string();
    // Whatever may follow the end.
    let mut bytes: Vec<u8> = Vec::new();
    loop {
        let read = reader
            .by_ref()
            .take(BLOCK)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let last = read == 0;
        let searched = match last {
            true => bytes.len().saturating_sub(KEY.len() + 4),
            false => bytes.len().saturating_sub(WHOLE),
        };
        for at in 0..searched {
            if bytes[at] == KEY[0] && bytes[at..].starts_with(KEY) {
                let rest = &bytes[at + KEY.len()..];
                // The types of one byte, of two, and of four.
                let width = match rest[..4] {
                    [0 | 1, 0, 0, 0] => 1,
                    [2 | 3, 0, 0, 0] => 2,
                    _ => 4,
                };
                if rest[4..].iter().take(width).all(|byte| *byte == 0) {
                    return Err("general.alignment is 0; it must be a power of two".to_owned());
                }
            }
        }
        if last {
            break;
        }
        bytes.drain(..searched);
    }
    reader.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(())
}

/// Says which types are read where the reader does not know one.
pub(super) fn known_types(error: candle_core::Error) -> String {
    let error = error.to_string();
    if error.contains("dtype") {
        let known: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
        return format!(
            "{error}; tensors of the types {} are read",
            known.join(", ")
        );
    }
    error
}
