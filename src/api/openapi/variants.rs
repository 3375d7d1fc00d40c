//! What the variants of enumerations mean, which the library leaves out of the document.

use serde::Serialize;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{OpenApi, RefOr, Schema};

use crate::api::features::detail::ScoredBy;
use crate::api::models::ModelKind;
use crate::api::tasks::wire::{TaskOrigin, TaskSplit, UnusableReason};
use crate::discovery::directions::effect::DirectionMeasure;
use crate::documented::Documented;
use crate::features::direction::{DirectionMethod, ReadPositions};
use crate::features::group::Write;
use crate::interventions::request::{
    AblateTo, Align, AllOrNone, Operation, Read, Return, Unit, Variant,
};
use crate::serving::downloads::DownloadStatus;

/// Makes each of these enumerations a choice between words that are explained.
pub fn describe(document: &mut OpenApi) {
    describe_one::<AblateTo>(document);
    describe_one::<Align>(document);
    describe_one::<AllOrNone>(document);
    describe_one::<DirectionMeasure>(document);
    describe_one::<DirectionMethod>(document);
    describe_one::<DownloadStatus>(document);
    describe_one::<ModelKind>(document);
    describe_one::<Operation>(document);
    describe_one::<Read>(document);
    describe_one::<ReadPositions>(document);
    describe_one::<Return>(document);
    describe_one::<ScoredBy>(document);
    describe_one::<TaskOrigin>(document);
    describe_one::<TaskSplit>(document);
    describe_one::<Unit>(document);
    describe_one::<UnusableReason>(document);
    describe_one::<Variant>(document);
    describe_one::<Write>(document);
}

fn describe_one<T: Documented + Serialize>(document: &mut OpenApi) {
    let Some(components) = &mut document.components else {
        return;
    };
    let Some(RefOr::T(schema)) = components.schemas.get_mut(T::name().as_ref()) else {
        return;
    };
    let Schema::Object(words) = &*schema else {
        return;
    };
    let mut choice = OneOfBuilder::new().description(words.description.clone());
    for (variant, comment) in T::VARIANTS {
        let word = serde_json::to_value(variant).unwrap_or_default();
        let explained = ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(comment.trim()))
            .enum_values(Some([word]));
        choice = choice.item(explained);
    }
    *schema = Schema::OneOf(choice.build());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;
    use utoipa::OpenApi;

    use crate::api::openapi::ApiDocument;

    fn explained(schema: &Value) -> bool {
        let own = schema.get("description").is_some_and(Value::is_string);
        let choices = schema["oneOf"].as_array().into_iter().flatten();
        own || choices
            .filter(|choice| choice["type"] != "null")
            .any(|choice| choice.get("description").is_some_and(Value::is_string))
    }

    /// Collects what lacks an explanation in a schema and all that it leads to.
    fn unexplained(
        document: &Value,
        schema: &Value,
        place: &str,
        seen: &mut BTreeSet<String>,
        found: &mut Vec<String>,
    ) {
        if let Some(reference) = schema["$ref"].as_str() {
            if seen.insert(reference.to_owned()) {
                let target = document.pointer(&reference[1..]).expect("a target");
                let name = reference.rsplit('/').next().expect("a name");
                unexplained(document, target, name, seen, found);
            }
            return;
        }
        if let Some(words) = schema["enum"].as_array()
            && (words.len() != 1 || !explained(schema))
        {
            found.push(format!("{place}: {words:?}"));
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let place = format!("{place}.{name}");
            if !explained(property) {
                found.push(place.clone());
            }
            unexplained(document, property, &place, seen, found);
        }
        for key in ["oneOf", "anyOf", "allOf"] {
            for part in schema[key].as_array().into_iter().flatten() {
                if part["type"] != "null" && part.get("$ref").is_none() && !explained(part) {
                    found.push(format!("{place}: {part}"));
                }
                unexplained(document, part, place, seen, found);
            }
        }
        if schema["items"].is_object() {
            unexplained(document, &schema["items"], place, seen, found);
        }
    }

    #[test]
    fn every_field_and_every_word_of_steer_is_explained() {
        let document = serde_json::to_value(ApiDocument::openapi()).expect("a document");
        for body in ["CreateCompletion", "CreateChatCompletion"] {
            let fields = &document["components"]["schemas"][body]["properties"];
            let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
            for name in ["steer", "steering"] {
                assert!(explained(&fields[name]), "{body}.{name}");
                unexplained(&document, &fields[name], name, &mut seen, &mut found);
            }
            assert!(seen.len() > 15, "{seen:?}");
            assert_eq!(found, [""; 0]);
        }
    }
}
