//! Bounds that cannot be written beside what they bound: those of the variants of enumerations, for the library takes
//! bounds of fields only, and those that a check reads too, for it takes literals only. Where the server has a constant
//! it is that one.

use std::collections::BTreeMap;

use utoipa::openapi::schema::{AdditionalProperties, Array, ArrayItems, Object, SchemaType, Type};
use utoipa::openapi::{OpenApi, RefOr, Schema};

use crate::api::completions::chat::parameters::MOST_TOP_LOGPROBS;
use crate::api::completions::parameters::{LONGEST_STOP, MOST_STOPS};
use crate::api::completions::text::parameters::MOST_LOGPROBS;
use crate::generation::sampling::{MOST_SAMPLES, RANGES};
use crate::interventions::plan::condition::MOST_THRESHOLDS;
use crate::interventions::plan::{LARGEST_STRENGTH, LONGEST_SWEEP};

type Schemas = BTreeMap<String, RefOr<Schema>>;

/// Adds the bounds to the document's schemas.
pub fn add(document: &mut OpenApi) {
    let Some(components) = &mut document.components else {
        return;
    };
    let schemas = &mut components.schemas;
    for body in ["CreateCompletion", "CreateChatCompletion"] {
        bound_sampling(schemas, body);
    }
    for (name, lists) in [
        ("PromptField", 1..=3),
        ("CounterfactualPrompt", 1..=3),
        ("ActivationsPrompt", 1..=3),
    ] {
        for index in lists {
            if let Some(list) = list(schemas, name, index) {
                list.min_items = Some(1);
                if let Some(Schema::Array(inner)) = entry(list) {
                    inner.min_items = Some(1);
                }
            }
        }
    }
    if let Some(Schema::Object(text)) = variant(schemas, "StopField", 0) {
        bound_stop(text);
    }
    if let Some(texts) = list(schemas, "StopField", 1) {
        texts.max_items = Some(MOST_STOPS);
        if let Some(Schema::Object(text)) = entry(texts) {
            bound_stop(text);
        }
    }
    if let Some(Schema::Object(strength)) = variant(schemas, "Strength", 0) {
        bound_strength(strength);
    }
    if let Some(sweep) = list(schemas, "Strength", 1) {
        (sweep.min_items, sweep.max_items) = (Some(1), Some(LONGEST_SWEEP));
        if let Some(Schema::Object(strength)) = entry(sweep) {
            bound_strength(strength);
        }
    }
    if let Some(range) = list(schemas, "PositionOrRange", 1) {
        (range.min_items, range.max_items) = (Some(2), Some(2));
    }
    for index in 0..=1 {
        if let Some(Schema::Object(condition)) = variant(schemas, "When", index) {
            condition.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
            for thresholds in condition.properties.values_mut() {
                if let RefOr::T(Schema::Array(thresholds)) = thresholds {
                    (thresholds.min_items, thresholds.max_items) = (Some(1), Some(MOST_THRESHOLDS));
                }
            }
        }
    }
}

/// Writes the ranges of sampling into a body's fields.
fn bound_sampling(schemas: &mut Schemas, body: &str) {
    for range in RANGES {
        if let Some(number) = field(schemas, body, range.name) {
            number.default = Some(range.default.into());
            number.maximum = Some(range.most.into());
            match range.excludes_least {
                true => number.exclusive_minimum = Some(range.least.into()),
                false => number.minimum = Some(range.least.into()),
            }
        }
    }
    let counts = [
        ("n", 1, MOST_SAMPLES),
        ("best_of", 1, MOST_SAMPLES),
        // Of text; in a chat it is no number.
        ("logprobs", 0, MOST_LOGPROBS),
        ("top_logprobs", 0, MOST_TOP_LOGPROBS),
    ];
    for (name, least, most) in counts {
        if let Some(count) = field(schemas, body, name).filter(|field| is_number(field)) {
            (count.minimum, count.maximum) = (Some(least.into()), Some(most.into()));
        }
    }
}

fn is_number(field: &Object) -> bool {
    match &field.schema_type {
        SchemaType::Type(kind) => *kind == Type::Integer,
        SchemaType::Array(kinds) => kinds.contains(&Type::Integer),
        SchemaType::AnyValue => false,
    }
}

/// A field of an object.
fn field<'a>(schemas: &'a mut Schemas, name: &str, field: &str) -> Option<&'a mut Object> {
    let RefOr::T(Schema::Object(object)) = schemas.get_mut(name)? else {
        return None;
    };
    match inline(object.properties.get_mut(field)?)? {
        Schema::Object(field) => Some(field),
        _ => None,
    }
}

fn bound_stop(text: &mut Object) {
    (text.min_length, text.max_length) = (Some(1), Some(LONGEST_STOP));
}

fn bound_strength(strength: &mut Object) {
    strength.minimum = Some((-LARGEST_STRENGTH).into());
    strength.maximum = Some(LARGEST_STRENGTH.into());
}

/// A variant of the enumeration `name`.
fn variant<'a>(schemas: &'a mut Schemas, name: &str, index: usize) -> Option<&'a mut Schema> {
    match schemas.get_mut(name)? {
        RefOr::T(Schema::OneOf(variants)) => inline(variants.items.get_mut(index)?),
        _ => None,
    }
}

/// A variant that is a list.
fn list<'a>(schemas: &'a mut Schemas, name: &str, index: usize) -> Option<&'a mut Array> {
    match variant(schemas, name, index)? {
        Schema::Array(list) => Some(list),
        _ => None,
    }
}

/// What a list's entries are.
fn entry(list: &mut Array) -> Option<&mut Schema> {
    match &mut list.items {
        ArrayItems::RefOrSchema(entry) => inline(entry),
        ArrayItems::False => None,
    }
}

fn inline(schema: &mut RefOr<Schema>) -> Option<&mut Schema> {
    match schema {
        RefOr::T(schema) => Some(schema),
        RefOr::Ref(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use utoipa::OpenApi;

    use crate::api::openapi::ApiDocument;

    #[test]
    fn every_bound_reaches_its_variant() {
        let document = serde_json::to_value(ApiDocument::openapi()).expect("a document");
        for (place, bound) in [
            ("CreateCompletion/properties/temperature/maximum", json!(2)),
            ("CreateCompletion/properties/top_p/minimum", json!(0)),
            ("CreateChatCompletion/properties/top_p/default", json!(1.0)),
            (
                "CreateChatCompletion/properties/repetition_penalty/exclusiveMinimum",
                json!(0),
            ),
            ("CreateCompletion/properties/n/maximum", json!(128)),
            ("CreateCompletion/properties/best_of/minimum", json!(1)),
            ("CreateCompletion/properties/logprobs/maximum", json!(5)),
            (
                "CreateChatCompletion/properties/top_logprobs/maximum",
                json!(20),
            ),
            ("PromptField/oneOf/1/minItems", json!(1)),
            ("PromptField/oneOf/2/minItems", json!(1)),
            ("PromptField/oneOf/3/minItems", json!(1)),
            ("PromptField/oneOf/3/items/minItems", json!(1)),
            ("CounterfactualPrompt/oneOf/3/items/minItems", json!(1)),
            ("ActivationsPrompt/oneOf/1/minItems", json!(1)),
            ("StopField/oneOf/0/maxLength", json!(1000)),
            ("StopField/oneOf/1/maxItems", json!(4)),
            ("StopField/oneOf/1/items/minLength", json!(1)),
            ("Strength/oneOf/0/minimum", json!(-10)),
            ("Strength/oneOf/1/maxItems", json!(64)),
            ("Strength/oneOf/1/items/maximum", json!(10)),
            ("PositionOrRange/oneOf/1/maxItems", json!(2)),
            ("When/oneOf/0/additionalProperties", json!(false)),
            ("When/oneOf/1/properties/any/minItems", json!(1)),
            ("When/oneOf/1/properties/any/maxItems", json!(16)),
        ] {
            let pointer = format!("/components/schemas/{place}");
            assert_eq!(document.pointer(&pointer), Some(&bound), "{place}");
        }
    }
}
