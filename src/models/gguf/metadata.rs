//! The values of a GGUF file's header, by key.

use std::collections::HashMap;

use crate::artifacts::gguf::HeaderValue;

/// The values of a file's header, by key.
pub struct Metadata<'a>(pub &'a HashMap<String, HeaderValue>);

impl Metadata<'_> {
    pub fn text(&self, key: &str) -> Result<Option<&str>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(HeaderValue::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!(
                "{key} is {:?}; it must be a text",
                other.value_type()
            )),
        }
    }

    /// A whole number of any width.
    pub fn size(&self, key: &str) -> Result<Option<usize>, String> {
        let number = match self.0.get(key) {
            None => return Ok(None),
            Some(HeaderValue::U8(x)) => i128::from(*x),
            Some(HeaderValue::I8(x)) => i128::from(*x),
            Some(HeaderValue::U16(x)) => i128::from(*x),
            Some(HeaderValue::I16(x)) => i128::from(*x),
            Some(HeaderValue::U32(x)) => i128::from(*x),
            Some(HeaderValue::I32(x)) => i128::from(*x),
            Some(HeaderValue::U64(x)) => i128::from(*x),
            Some(HeaderValue::I64(x)) => i128::from(*x),
            Some(other) => {
                let kind = other.value_type();
                return Err(format!("{key} is {kind:?}; it must be a whole number"));
            }
        };
        let size = usize::try_from(number);
        size.map(Some)
            .map_err(|_| format!("{key} is {number}; it must be a whole number from 0"))
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(HeaderValue::F32(x)) => Ok(Some(f64::from(*x))),
            Some(HeaderValue::F64(x)) => Ok(Some(*x)),
            Some(_) => Ok(self.size(key)?.map(|size| size as f64)),
        }
    }

    pub fn boolean(&self, key: &str) -> Result<Option<bool>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(HeaderValue::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(format!(
                "{key} is {:?}; it must be a bool",
                other.value_type()
            )),
        }
    }

    pub fn list(&self, key: &str) -> Result<Option<&[HeaderValue]>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(HeaderValue::Array(values)) => Ok(Some(values)),
            Some(other) => Err(format!(
                "{key} is {:?}; it must be a list",
                other.value_type()
            )),
        }
    }
}
