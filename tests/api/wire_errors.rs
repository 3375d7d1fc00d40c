//! A value of a wrong type in any field of any body: the error names the field as callers write it and says what it
//! wants in the words of JSON.

use serde_json::{Map, Value, json};

use crate::client::{Connection, Response, Server};
use crate::document;

/// A step of a field's path.
#[derive(Debug, Clone)]
enum Step {
    /// A field, and what an object with it must have besides.
    Field(String, Map<String, Value>),
    /// The first of a list.
    First,
}

/// A field of a body.
struct Field {
    steps: Vec<Step>,
    schema: Value,
    /// How many steps surely are in an error's path: those before a choice between shapes, which a parser reports
    /// as a whole.
    certain: usize,
}

fn resolved(schema: &Value) -> Value {
    match schema["$ref"].as_str() {
        Some(reference) => document::published()
            .pointer(&reference[1..])
            .expect("a target")
            .clone(),
        None => schema.clone(),
    }
}

/// A value that a schema allows.
fn sample(schema: &Value) -> Value {
    let schema = resolved(schema);
    if let Some(first) = schema["enum"].get(0) {
        return first.clone();
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        let mut parts = schema[key].as_array().into_iter().flatten();
        if let Some(part) = parts.find(|part| part["type"] != "null") {
            return sample(part);
        }
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds[0].as_str(),
        kind => kind.as_str(),
    };
    match kind {
        Some("boolean") => json!(true),
        Some("integer" | "number") => schema.get("minimum").cloned().unwrap_or(json!(1)),
        Some("array") => json!([sample(&schema["items"])]),
        Some("object") => Value::Object(required(&schema, "")),
        _ => json!("x"),
    }
}

/// Samples of what an object must have, one field left out.
fn required(schema: &Value, without: &str) -> Map<String, Value> {
    let names = schema["required"].as_array().into_iter().flatten();
    names
        .filter_map(Value::as_str)
        .filter(|name| *name != without)
        .map(|name| (name.to_owned(), sample(&schema["properties"][name])))
        .collect()
}

fn collect(schema: &Value, steps: &[Step], certain: Option<usize>, found: &mut Vec<Field>) {
    if steps.len() > 12 {
        return;
    }
    let schema = resolved(schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let steps = [steps, &[Step::Field(name.clone(), required(&schema, name))]].concat();
        found.push(Field {
            certain: certain.unwrap_or(steps.len()),
            schema: property.clone(),
            steps: steps.clone(),
        });
        collect(property, &steps, certain, found);
    }
    if schema["items"].is_object() {
        let steps = [steps, &[Step::First]].concat();
        collect(&schema["items"], &steps, certain, found);
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        let parts = schema[key].as_array().into_iter().flatten();
        let parts: Vec<&Value> = parts.filter(|part| part["type"] != "null").collect();
        let is_choice = key != "allOf" && parts.len() > 1;
        for part in parts {
            let certain = certain.or(is_choice.then_some(steps.len()));
            collect(part, steps, certain, found);
        }
    }
}

/// Whether a list of some length is what a schema wants.
fn takes_lists(schema: &Value) -> bool {
    let schema = resolved(schema);
    let has = |kind: &Value| {
        kind.as_array()
            .is_some_and(|kinds| kinds.contains(&json!("array")))
    };
    let parts = ["oneOf", "anyOf", "allOf"].into_iter();
    let mut parts = parts.filter_map(|key| schema[key].as_array()).flatten();
    schema["type"] == "array" || has(&schema["type"]) || parts.any(takes_lists)
}

/// The path as errors write it.
fn written(steps: &[Step]) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Field(name, _) if path.is_empty() => path += name,
            Step::Field(name, _) => path += &format!(".{name}"),
            Step::First => path += "[0]",
        }
    }
    path
}

/// The body that an operation shows, as far as the tiny pair has what it names.
fn shown(operation: &Value) -> Value {
    let content = &operation["requestBody"]["content"]["application/json"];
    let examples = content["examples"].as_object();
    let first = examples.and_then(|examples| examples.values().next());
    let mut body = first
        .map_or(&content["example"], |first| &first["value"])
        .clone();
    if body.is_null() {
        body = Value::Object(required(&resolved(&content["schema"]), ""));
    }
    for (field, value) in [
        ("model", json!("tiny")),
        ("bridge", json!("tiny")),
        ("channels", json!([{"channel": 1, "weight": 1}])),
    ] {
        if body.get(field).is_some() {
            body[field] = value;
        }
    }
    body
}

/// A body that is as shown but for this field.
fn body(shown: &Value, steps: &[Step], value: Value) -> Value {
    let mut fields = steps.iter().rev().fold(value, |inner, step| match step {
        Step::Field(name, others) => {
            let mut object = others.clone();
            object.insert(name.clone(), inner);
            Value::Object(object)
        }
        Step::First => json!([inner]),
    });
    let mut body = shown.clone();
    if let Some(Step::Field(name, _)) = steps.first() {
        body[name] = fields[name].take();
        // A conversation takes the place of a text.
        if let (Some(body), "messages") = (body.as_object_mut(), name.as_str()) {
            body.remove("prompt");
        }
        // A job's fields are those of its type.
        if let (Some(method), "method") = (body[name].as_object_mut(), name.as_str())
            && let Some(kind) = ["dense", "sparse", "bridge", "prune"]
                .into_iter()
                .find(|kind| method.contains_key(*kind))
            && method.contains_key("type")
            && steps.len() > 2
        {
            method.insert("type".to_owned(), json!(kind));
        }
    }
    body
}

/// Words of Rust, and of its parsers.
const RUST: [&str; 19] = [
    "struct",
    "enum",
    "variant",
    "usize",
    "isize",
    "u32",
    "u64",
    "i64",
    "f32",
    "f64",
    "untagged",
    "tuple",
    "sequence",
    "newtype",
    "tagged",
    "identifier",
    "At",
    "SteerRequest",
    "EditRequest",
];

/// What is wrong with the refusal of a field.
fn problem(answer: &Response, field: &Field) -> Option<String> {
    if answer.status != 400 {
        return Some("it is not refused".to_owned());
    }
    let error = &answer.json()["error"];
    let message = error["message"].as_str().unwrap_or("");
    let name = written(&field.steps);
    // Fields may be called as Rust calls other things.
    let said = message.replace(&name, "");
    let mut words = said.split(|c: char| !c.is_alphanumeric() && c != '_');
    if said.contains("::") {
        return Some("it says ::".to_owned());
    }
    if let Some(word) = words.find(|word| RUST.contains(word)) {
        return Some(format!("it says {word}"));
    }
    let param = error["param"].as_str().unwrap_or("");
    let certain = written(&field.steps[..field.certain]);
    // What is wrong inside the field may be named more exactly.
    let names_it =
        (name.starts_with(param) && param.len() >= certain.len()) || param.starts_with(&name);
    let is_named = names_it && !param.is_empty() && !param.contains('?');
    (!is_named).then(|| format!("it blames {param:?} for {name:?}"))
}

#[test]
fn a_wrong_type_in_any_field_is_told_in_the_words_of_the_wire() {
    let server = Server::with(|settings| {
        let template = settings.pairs[0].join("dense/chat_template.jinja");
        std::fs::write(template, "{{ messages[0].content }}").unwrap();
    });
    let mut connection = Connection::new(&server);
    let wrong = [
        json!(true),
        json!(7.25),
        json!(-3),
        json!("no such text"),
        json!({"no_such_field": 1}),
        json!([[[true]]]),
        // What could be the values of an object's fields.
        json!([]),
        json!(["1.attn.act_in", 1]),
    ];
    let (mut sent, mut problems) = (0, Vec::new());
    for (path, item) in document::published()["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            if schema.is_null() {
                continue;
            }
            let method = method.to_uppercase();
            let target = path.replace("{id}", "shipped_feature");
            let shown = shown(operation);
            let mut fields = Vec::new();
            collect(schema, &[], None, &mut fields);
            for field in fields {
                for value in &wrong {
                    let is_short = *value == json!([]) && takes_lists(&field.schema);
                    if is_short || document::fits(&field.schema, value) {
                        continue;
                    }
                    let body = body(&shown, &field.steps, value.clone()).to_string();
                    let answer = connection.send(&method, &target, body.as_bytes());
                    sent += 1;
                    if let Some(problem) = problem(&answer, &field) {
                        problems.push(format!(
                            "{problem}: {method} {target} {body}: {} {}",
                            answer.status, answer.body
                        ));
                    }
                }
            }
        }
    }
    assert!(sent > 500, "{sent}");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
