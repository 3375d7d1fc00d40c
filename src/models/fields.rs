//! The fields of another program's `config.json`, read one at a time.

use serde_json::{Map, Value};

use super::config_error::ConfigError;

/// What is wrong with a field.
pub fn wrong(field: &'static str, problem: String) -> ConfigError {
    ConfigError { field, problem }
}

/// A JSON object whose fields are read one at a time, so that an error can name the field.
pub struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// A field that must be there.
    pub fn size(&self, field: &'static str) -> Result<usize, ConfigError> {
        let size = self.optional_size(field)?;
        size.ok_or_else(|| wrong(field, "is absent; it must be a whole number".to_owned()))
    }

    /// A field that may be absent or null.
    pub fn optional_size(&self, field: &'static str) -> Result<Option<usize>, ConfigError> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
                let problem = || format!("is {value}; it must be a whole number");
                size.map(Some).ok_or_else(|| wrong(field, problem()))
            }
        }
    }

    /// A field that may be absent or null.
    pub fn optional_number(&self, field: &'static str) -> Result<Option<f64>, ConfigError> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let problem = || format!("is {value}; it must be a number");
                let number = value.as_f64();
                number.map(Some).ok_or_else(|| wrong(field, problem()))
            }
        }
    }

    pub fn boolean(&self, field: &'static str, default: bool) -> Result<bool, ConfigError> {
        match self.0.get(field) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(value) => Err(wrong(
                field,
                format!("is {value}; it must be true or false"),
            )),
        }
    }

    /// An object that may be absent or null.
    pub fn object(&self, field: &'static str) -> Result<Option<Fields<'a>>, ConfigError> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields(object))),
            Some(value) => Err(wrong(field, format!("is {value}; it must be an object"))),
        }
    }

    /// A list that may be absent or null.
    pub fn list(&self, field: &'static str) -> Result<Option<&'a [Value]>, ConfigError> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(value) => Err(wrong(field, format!("is {value}; it must be a list"))),
        }
    }

    /// A list of numbers that must be there.
    pub fn numbers(&self, field: &'static str) -> Result<Vec<f64>, ConfigError> {
        let list = self.list(field)?;
        let list = list.ok_or_else(|| wrong(field, "is absent; it must be a list".to_owned()))?;
        let numbers: Option<Vec<f64>> = list.iter().map(Value::as_f64).collect();
        numbers.ok_or_else(|| wrong(field, "holds something that is no number".to_owned()))
    }

    /// A number that must be there.
    pub fn number(&self, field: &'static str) -> Result<f64, ConfigError> {
        let number = self.optional_number(field)?;
        number.ok_or_else(|| wrong(field, "is absent; it must be a number".to_owned()))
    }

    pub fn text(&self, field: &'static str, default: &'a str) -> Result<&'a str, ConfigError> {
        match self.0.get(field) {
            None => Ok(default),
            Some(Value::String(text)) => Ok(text),
            Some(value) => Err(wrong(field, format!("is {value}; it must be a text"))),
        }
    }
}
