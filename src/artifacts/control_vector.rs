//! Control vectors: GGUF files of the architecture `controlvector`, which llama.cpp and repeng write and read.
//!
//! The tensor `direction.N`, float32 `[width]` with N from 1, is added to the residual stream at the output of block N,
//! counted from 0, at every token. `controlvector.model_hint` names a kind of model for people, and
//! `controlvector.layer_count` says how many directions there are. A file is read from memory: it comes with a request.

use std::collections::BTreeMap;
use std::io::Cursor;

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::gguf::known_types;
use super::gguf_header;

const ARCHITECTURE: &str = "controlvector";
const ARCHITECTURE_KEY: &str = "general.architecture";
const HINT_KEY: &str = "controlvector.model_hint";
const COUNT_KEY: &str = "controlvector.layer_count";
/// Characters of a hint that are kept.
const LONGEST_HINT: usize = 200;

/// What a file of directions holds.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlVector {
    /// The kind of model that it was made for, as its maker calls it.
    pub model_hint: Option<String>,
    /// By the number of the block at whose output each is added.
    pub directions: BTreeMap<usize, Vec<f32>>,
}

impl ControlVector {
    /// Reads a file of at most `most` directions, each of `width` numbers. Nothing is allocated for a tensor before its
    /// shape is found to be that; the header takes no more than some forty bytes for each of the file's.
    pub fn from_bytes(bytes: &[u8], width: usize, most: usize) -> Result<Self, String> {
        let mut reader = Cursor::new(bytes);
        gguf_header::check(&mut reader, bytes.len() as u64)?;
        let content = Content::read(&mut reader).map_err(known_types)?;
        match content.metadata.get(ARCHITECTURE_KEY) {
            Some(Value::String(architecture)) if architecture == ARCHITECTURE => {}
            Some(Value::String(other)) => {
                let other: String = other.chars().take(LONGEST_HINT).collect();
                return Err(format!(
                    "it is a file of {other:?}; a control vector says {ARCHITECTURE:?} in {ARCHITECTURE_KEY}"
                ));
            }
            _ => {
                return Err(format!(
                    "it has no {ARCHITECTURE_KEY}; a control vector says {ARCHITECTURE:?} there"
                ));
            }
        }
        let count = content.tensor_infos.len();
        if count == 0 || count > most {
            return Err(format!(
                "it has {count} tensors; between 1 and {most} directions are read, one for each layer of the model"
            ));
        }
        let mut directions = BTreeMap::new();
        for (name, info) in &content.tensor_infos {
            let shown: String = name.chars().take(LONGEST_HINT).collect();
            let block = block_of(name).ok_or_else(|| {
                format!(
                    "it has a tensor {shown:?}; a control vector has direction.1, direction.2 and so on"
                )
            })?;
            if info.ggml_dtype != GgmlDType::F32 {
                return Err(format!(
                    "{shown} is of the type {:?}; directions are float32",
                    info.ggml_dtype
                ));
            }
            if info.shape.dims() != [width] {
                return Err(format!(
                    "{shown} has the shape {:?}; the residual stream of the model has the shape [{width}]",
                    info.shape.dims()
                ));
            }
            let failed = |error: candle_core::Error| format!("{shown}: {error}");
            let tensor = content.tensor(&mut reader, name, &Device::Cpu);
            let tensor = tensor.and_then(|tensor| tensor.dequantize(&Device::Cpu));
            let values = tensor.and_then(|tensor| tensor.to_vec1::<f32>());
            let values = values.map_err(failed)?;
            if values.iter().any(|value| !value.is_finite()) {
                return Err(format!("{shown} holds a number that is not finite"));
            }
            directions.insert(block, values);
        }
        let hint = match content.metadata.get(HINT_KEY) {
            Some(Value::String(hint)) => Some(hint.chars().take(LONGEST_HINT).collect()),
            _ => None,
        };
        Ok(ControlVector {
            model_hint: hint,
            directions,
        })
    }

    /// The file.
    pub fn to_bytes(&self) -> candle_core::Result<Vec<u8>> {
        let mut metadata = vec![(ARCHITECTURE_KEY, Value::String(ARCHITECTURE.to_owned()))];
        let hint = self.model_hint.clone();
        metadata.extend(hint.map(|hint| (HINT_KEY, Value::String(hint))));
        // No model has so many layers that the number would not fit.
        let count = u32::try_from(self.directions.len()).unwrap_or(u32::MAX);
        metadata.push((COUNT_KEY, Value::U32(count)));
        let mut tensors = Vec::with_capacity(self.directions.len());
        for (block, values) in &self.directions {
            let tensor = Tensor::new(values.as_slice(), &Device::Cpu)?;
            let tensor = QTensor::quantize(&tensor, GgmlDType::F32)?;
            tensors.push((format!("direction.{block}"), tensor));
        }
        let metadata: Vec<(&str, &Value)> =
            metadata.iter().map(|(key, value)| (*key, value)).collect();
        let tensors: Vec<(&str, &QTensor)> = tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect();
        let mut file = Cursor::new(Vec::new());
        gguf_file::write(&mut file, &metadata, &tensors)?;
        Ok(file.into_inner())
    }
}

/// N of `direction.N`, a whole number from 1 without zeros before it.
fn block_of(name: &str) -> Option<usize> {
    let number = name.strip_prefix("direction.")?;
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
    number.parse().ok().filter(|_| is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> ControlVector {
        ControlVector {
            model_hint: Some("llama".to_owned()),
            directions: BTreeMap::from([(1, vec![0.5, -1.25, 3.0e-7]), (3, vec![0.1, 0.2, -0.3])]),
        }
    }

    /// A file of this metadata and these tensors, whatever they are.
    fn file(metadata: &[(&str, Value)], tensors: &[(&str, Tensor)]) -> Vec<u8> {
        let metadata: Vec<(&str, &Value)> =
            metadata.iter().map(|(key, value)| (*key, value)).collect();
        let tensors: Vec<(&str, QTensor)> = tensors
            .iter()
            .map(|(name, tensor)| (*name, QTensor::quantize(tensor, GgmlDType::F32).unwrap()))
            .collect();
        let tensors: Vec<(&str, &QTensor)> = tensors
            .iter()
            .map(|(name, tensor)| (*name, tensor))
            .collect();
        let mut bytes = Cursor::new(Vec::new());
        gguf_file::write(&mut bytes, &metadata, &tensors).unwrap();
        bytes.into_inner()
    }

    fn architecture() -> (&'static str, Value) {
        (ARCHITECTURE_KEY, Value::String(ARCHITECTURE.to_owned()))
    }

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn what_is_written_is_read_to_the_bit() {
        let bytes = example().to_bytes().unwrap();
        assert_eq!(ControlVector::from_bytes(&bytes, 3, 4), Ok(example()));
        let content = Content::read(&mut Cursor::new(&bytes)).unwrap();
        assert_eq!(content.metadata[COUNT_KEY].to_u64().unwrap(), 2);
    }

    #[test]
    fn files_that_are_something_else_are_refused_in_words() {
        let read = |bytes: &[u8]| ControlVector::from_bytes(bytes, 3, 2).expect_err("refused");
        let good = tensor(&[1.0, 2.0, 3.0]);
        let named = |name: &'static str| file(&[architecture()], &[(name, good.clone())]);
        let other = (ARCHITECTURE_KEY, Value::String("llama".to_owned()));
        let one = [("direction.1", good.clone())];
        for (bytes, said) in [
            (file(&[other], &one), "\"llama\""),
            (file(&[], &one), "has no general.architecture"),
            (file(&[architecture()], &[]), "has 0 tensors"),
            (named("direction.0"), "direction.1, direction.2"),
            (named("direction.01"), "direction.1, direction.2"),
            (named("direction.-1"), "direction.1, direction.2"),
            (named("direction."), "direction.1, direction.2"),
            (named("direction.99999999999999999999999"), "direction.1"),
            (named("token_embd.weight"), "token_embd.weight"),
            (
                file(&[architecture()], &[("direction.1", tensor(&[1.0, 2.0]))]),
                "shape [2]",
            ),
            (
                file(
                    &[architecture()],
                    &[("direction.1", tensor(&[1.0; 9]).reshape((3, 3)).unwrap())],
                ),
                "shape [3, 3]",
            ),
            (
                file(
                    &[architecture()],
                    &[("direction.1", tensor(&[1.0, f32::NAN, 2.0]))],
                ),
                "not finite",
            ),
            (
                file(
                    &[architecture()],
                    &[
                        ("direction.1", good.clone()),
                        ("direction.2", good.clone()),
                        ("direction.3", good.clone()),
                    ],
                ),
                "has 3 tensors",
            ),
        ] {
            let error = read(&bytes);
            assert!(error.contains(said), "{said}: {error}");
        }
        let aligned_to_nothing = [architecture(), ("general.alignment", Value::U32(0))];
        assert!(read(&file(&aligned_to_nothing, &one)).contains("general.alignment"));
    }

    #[test]
    fn files_that_end_early_or_claim_too_much_are_refused() {
        let bytes = example().to_bytes().unwrap();
        let read = |bytes: &[u8]| ControlVector::from_bytes(bytes, 3, 4);
        // The last bytes are padding, which nobody misses.
        for length in 0..bytes.len() - 32 {
            assert!(read(&bytes[..length]).is_err(), "{length} bytes");
        }
        // The numbers of tensors and of keys, and the length of the first key.
        for at in [8, 16, 24] {
            for claimed in [u64::MAX, 1 << 40, 1 << 29] {
                let mut bytes = bytes.clone();
                bytes[at..at + 8].copy_from_slice(&claimed.to_le_bytes());
                assert!(read(&bytes).is_err(), "{claimed} at {at}");
            }
        }
        // A shape that the file has no room for.
        let name = b"direction.1";
        let at = bytes
            .windows(name.len())
            .position(|part| part == name)
            .unwrap()
            + name.len()
            + 4;
        let mut huge = bytes.clone();
        huge[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(read(&huge).is_err_and(|error| error.contains("direction.1")));
        let mut quantised = bytes.clone();
        quantised[at + 8..at + 12].copy_from_slice(&1u32.to_le_bytes());
        assert!(read(&quantised).is_err_and(|error| error.contains("float32")));
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x55;
            // Whatever it makes of it, it comes back.
            let _ = read(&bytes);
        }
    }
}
