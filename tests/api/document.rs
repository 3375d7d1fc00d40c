//! The OpenAPI document as the judge of what goes over the wire: every answer of the tests, and every request that
//! the server accepts, is held against it, and so is every example in it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex};

use causeway::api::server;
use jsonschema::{Draft, Registry, Validator};
use serde_json::{Value, json};

/// The document as it is published, and with every object of an answer closed to fields that are not documented.
static PUBLISHED: LazyLock<Value> = LazyLock::new(|| {
    let text = server::document().expect("a document that can be written");
    serde_json::from_str(&text).expect("JSON")
});
static CLOSED: LazyLock<Value> = LazyLock::new(|| {
    let mut document = PUBLISHED.clone();
    let components = PUBLISHED["components"]["schemas"].as_object().unwrap();
    let structures: Vec<String> = components
        .iter()
        .filter(|(_, schema)| schema.get("properties").or(schema.get("allOf")).is_some())
        .map(|(name, _)| format!("#/components/schemas/{name}"))
        .collect();
    for schema in document["components"]["schemas"]
        .as_object_mut()
        .unwrap()
        .values_mut()
    {
        // A component is closed where it is referred to: it may also be a part of a longer one.
        for (_, part) in schema.as_object_mut().into_iter().flatten() {
            close(part, &structures, false);
        }
        if let Some(parts) = schema.get_mut("allOf").and_then(Value::as_array_mut) {
            parts.iter_mut().for_each(reopen);
        }
    }
    for operation in document["paths"].as_object_mut().unwrap().values_mut() {
        close(operation, &structures, false);
    }
    document
});
static SCHEMAS: LazyLock<Registry<'static>> = LazyLock::new(|| {
    Registry::new()
        .draft(Draft::Draft202012)
        .add("causeway:///published", &*PUBLISHED)
        .and_then(|registry| registry.add("causeway:///closed", &*CLOSED))
        .and_then(|registry| registry.prepare())
        .expect("schemas whose references lead somewhere")
});
/// Validators by where their schema is.
static VALIDATORS: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);

/// The document.
pub fn published() -> &'static Value {
    &PUBLISHED
}

/// Whether a value is what a schema of the document says.
pub fn fits(schema: &Value, value: &Value) -> bool {
    let mut schema = schema.to_string();
    schema = schema.replace("\"#/", "\"causeway:///published#/");
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let options = jsonschema::options()
        .with_draft(Draft::Draft202012)
        .with_registry(&SCHEMAS)
        .build(&schema);
    options.unwrap().is_valid(value)
}

/// Addresses that are pages for people, and no part of the API.
const PAGES: [&str; 3] = ["/", "/docs", "/docs/"];

/// Forbids undocumented fields in every object below, however it is put together.
fn close(value: &mut Value, structures: &[String], is_part: bool) {
    match value {
        Value::Object(object) => {
            let is_structure = match object.get("$ref").and_then(Value::as_str) {
                Some(reference) => structures.iter().any(|structure| structure == reference),
                None => {
                    let is_object = object.get("type") == Some(&json!("object"));
                    (is_object && object.contains_key("properties")) || object.contains_key("allOf")
                }
            };
            for (key, part) in object.iter_mut() {
                match (key.as_str(), part) {
                    ("example" | "examples", _) => {}
                    ("allOf", Value::Array(parts)) => {
                        for part in parts {
                            close(part, structures, true);
                        }
                    }
                    (_, part) => close(part, structures, false),
                }
            }
            if is_structure && !is_part && !object.contains_key("additionalProperties") {
                object.insert("unevaluatedProperties".to_owned(), json!(false));
            }
        }
        Value::Array(parts) => parts
            .iter_mut()
            .for_each(|part| close(part, structures, false)),
        _ => {}
    }
}

/// A part of a component's `allOf` is closed with the whole.
fn reopen(part: &mut Value) {
    if let Some(part) = part.as_object_mut() {
        part.remove("unevaluatedProperties");
    }
}

/// What is wrong with a value, by the schema at this place of the document.
fn problem(document: &str, pointer: &str, value: &Value) -> Option<String> {
    let place = format!("causeway:///{document}#{pointer}");
    let validator = {
        let mut validators = VALIDATORS.lock().unwrap_or_else(|lock| lock.into_inner());
        let validator = validators.entry(place.clone()).or_insert_with(|| {
            let validator = jsonschema::options()
                .with_draft(Draft::Draft202012)
                .with_registry(&SCHEMAS)
                .build(&json!({"$ref": place}));
            Arc::new(validator.unwrap_or_else(|error| panic!("{place}: {error}")))
        });
        validator.clone()
    };
    let problems: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    (!problems.is_empty()).then(|| problems.join("; "))
}

/// A key as a part of a JSON pointer in an address.
fn escaped(key: &str) -> String {
    let key = key.replace('~', "~0").replace('/', "~1");
    key.replace('{', "%7B").replace('}', "%7D")
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, after @ ..] = rest {
        let code = after
            .get(..2)
            .and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The template of the document that an address belongs to: the one with the fewest variables, and of those the one that
/// says most of how they end.
fn template(path: &str) -> Option<&'static str> {
    let matches = |template: &str| {
        let (wanted, given) = (template.split('/'), path.split('/'));
        wanted.clone().count() == given.clone().count()
            && wanted.zip(given).all(|(wanted, given)| {
                let ending = wanted.rsplit_once('}').map(|(_, ending)| ending);
                let is_variable =
                    |ending: &str| given.len() > ending.len() && given.ends_with(ending);
                wanted == decoded(given)
                    || (wanted.starts_with('{') && ending.is_some_and(is_variable))
            })
    };
    let paths = PUBLISHED["paths"].as_object().unwrap().keys();
    paths
        .map(String::as_str)
        .filter(|template| matches(template))
        .min_by_key(|template| (template.matches('{').count(), usize::MAX - template.len()))
}

/// A request and its answer.
#[derive(Debug, Clone, Copy)]
pub struct Exchange<'a> {
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    pub sent: &'a [u8],
    pub status: u16,
    /// By names in lower case.
    pub headers: &'a BTreeMap<String, String>,
    pub body: &'a str,
}

impl Exchange<'_> {
    /// Fails the test where the document allows no such exchange.
    #[track_caller]
    pub fn check(&self) {
        if let Some(problem) = self.problem() {
            let sent = String::from_utf8_lossy(self.sent);
            panic!(
                "the document does not allow this: {problem}\n{} {} {sent}\n{} {}",
                self.method, self.target, self.status, self.body
            );
        }
    }

    /// What the document says against it.
    pub fn problem(&self) -> Option<String> {
        let (path, query) = self.target.split_once('?').unwrap_or((self.target, ""));
        let method = match self.method {
            "HEAD" => "get".to_owned(),
            method => method.to_lowercase(),
        };
        // The name that other servers have for it.
        let path = if path == "/healthz" { "/livez" } else { path };
        let template = template(path);
        let operation = template.and_then(|template| {
            let operation = PUBLISHED["paths"][template].get(&method)?;
            Some((format!("/paths/{}/{method}", escaped(template)), operation))
        });
        let Some((pointer, operation)) = operation else {
            if PAGES.contains(&path) || path.starts_with("/docs/") || path.starts_with("/page/") {
                return None;
            }
            return match (self.status, template) {
                (404, None) | (405, Some(_)) | (400 | 401 | 403 | 413 | 429, _) => self.error(),
                (status, _) => Some(format!("an undocumented address answers {status}")),
            };
        };
        let accepted = (200..300).contains(&self.status);
        accepted
            .then(|| self.request(&pointer, operation, query))
            .flatten()
            .or_else(|| self.answer(&pointer, operation))
    }

    fn error(&self) -> Option<String> {
        if self.method == "HEAD" {
            return None;
        }
        match serde_json::from_str(self.body) {
            Ok(body) => problem("closed", "/components/schemas/ErrorBody", &body),
            Err(error) => Some(format!("an error that is no JSON: {error}")),
        }
    }

    /// What is wrong with a request that was accepted.
    fn request(&self, pointer: &str, operation: &Value, query: &str) -> Option<String> {
        let documented = operation["parameters"].as_array();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decoded(name);
            // `metadata[key]=value` is a member of an object.
            let (name, key) = match name.strip_suffix(']').and_then(|name| name.split_once('[')) {
                Some((name, key)) => (name.to_owned(), Some(key.to_owned())),
                None => (name, None),
            };
            let index = documented.and_then(|documented| {
                let is_it =
                    |known: &Value| known["in"] == "query" && known["name"] == name.as_str();
                documented.iter().position(is_it)
            });
            let Some(index) = index else {
                return Some(format!("the query's {name} is not documented"));
            };
            let text = decoded(value);
            let place = format!("{pointer}/parameters/{index}/schema");
            let given = match key {
                Some(key) => json!({ key: text }),
                None => Value::from(text.clone()),
            };
            let wrong = problem("published", &place, &given);
            let as_json = serde_json::from_str(&text).ok();
            let other = as_json.map(|value: Value| problem("published", &place, &value));
            if let (Some(wrong), None | Some(Some(_))) = (wrong, other) {
                return Some(format!("the query's {name}: {wrong}"));
            }
        }
        if operation["requestBody"]["content"]["application/json"].is_null() {
            return None;
        }
        match serde_json::from_slice(self.sent) {
            Ok(body) => {
                let place = format!("{pointer}/requestBody/content/application~1json/schema");
                problem("published", &place, &body).map(|problem| format!("the request: {problem}"))
            }
            Err(error) => Some(format!("a body that is no JSON was accepted: {error}")),
        }
    }

    fn answer(&self, pointer: &str, operation: &Value) -> Option<String> {
        let status = self.status.to_string();
        let Some(response) = operation["responses"].get(&status) else {
            return Some(format!("the status {status} is not documented"));
        };
        for (name, header) in response["headers"].as_object().into_iter().flatten() {
            let Some(value) = self.headers.get(name) else {
                return Some(format!("the header {name} is missing"));
            };
            let is_text = header["schema"]["type"] == "string";
            let as_json = serde_json::from_str(value).ok().filter(|_| !is_text);
            let value = as_json.unwrap_or_else(|| Value::from(value.as_str()));
            let place = format!(
                "{pointer}/responses/{status}/headers/{}/schema",
                escaped(name)
            );
            if let Some(problem) = problem("published", &place, &value) {
                return Some(format!("the header {name}: {problem}"));
            }
        }
        if self.method == "HEAD" {
            return None;
        }
        let content_type = self.headers.get("content-type").map_or("", String::as_str);
        let media_type = content_type.split(';').next().unwrap_or("").trim();
        let content = response["content"].as_object();
        let documented = content.and_then(|content| {
            content
                .keys()
                .find(|known| known.split(';').next() == Some(media_type))
        });
        let Some(documented) = documented else {
            let is_empty = content.is_none() && self.body.is_empty();
            return (!is_empty).then(|| format!("the media type {media_type:?} is not documented"));
        };
        let place = format!(
            "{pointer}/responses/{status}/content/{}/schema",
            escaped(documented)
        );
        match media_type {
            "application/json" => match serde_json::from_str(self.body) {
                Ok(body) => problem("closed", &place, &body),
                Err(error) => Some(format!("the body is no JSON: {error}")),
            },
            "text/event-stream" => self.events(&place, &response["content"][documented]["schema"]),
            _ => problem("closed", &place, &Value::from(self.body)),
        }
    }

    /// What is wrong with a stream's events: each by itself, and the JSON in its data.
    fn events(&self, place: &str, schema: &Value) -> Option<String> {
        let reference = schema["$ref"].as_str().and_then(|at| at.strip_prefix('#'));
        let data = format!("{}/properties/data", reference.unwrap_or(place));
        let schema = PUBLISHED.pointer(&data.replace("%7B", "{").replace("%7D", "}"))?;
        let content = match schema["anyOf"].as_array() {
            Some(kinds) => {
                let index = kinds
                    .iter()
                    .position(|kind| kind.get("contentSchema").is_some());
                format!("{data}/anyOf/{}/contentSchema", index?)
            }
            None => format!("{data}/contentSchema"),
        };
        for text in self.body.split_terminator("\n\n") {
            let mut event = json!({});
            for line in text.lines().filter(|line| !line.starts_with(':')) {
                let (field, value) = line.split_once(": ")?;
                event[field] = Value::from(value);
            }
            let Some(told) = event.get("data").and_then(Value::as_str) else {
                continue;
            };
            let wrong = problem("closed", place, &event).or_else(|| match told {
                "[DONE]" => None,
                told => match serde_json::from_str(told) {
                    Ok(told) => problem("closed", &content, &told),
                    Err(error) => Some(format!("the data is no JSON: {error}")),
                },
            });
            if let Some(wrong) = wrong {
                return Some(format!("the event {text:?}: {wrong}"));
            }
        }
        None
    }
}

/// Every example of the document: where it is, the schema that it is an example of, and the value.
fn examples() -> Vec<(String, String, Value)> {
    fn collect(value: &Value, pointer: &str, found: &mut Vec<(String, String, Value)>) {
        let Value::Object(object) = value else {
            if let Value::Array(parts) = value {
                for (index, part) in parts.iter().enumerate() {
                    collect(part, &format!("{pointer}/{index}"), found);
                }
            }
            return;
        };
        // Beside `schema` stand examples of media types and parameters; in a schema its own.
        let schema = match object.contains_key("schema") {
            true => format!("{pointer}/schema"),
            false => pointer.to_owned(),
        };
        let is_a_property = pointer.ends_with("/properties");
        for (key, part) in object {
            let place = format!("{pointer}/{}", escaped(key));
            match (key.as_str(), part) {
                ("example", example) if !is_a_property => {
                    found.push((place, schema.clone(), example.clone()));
                }
                ("examples", Value::Object(examples)) if !is_a_property => {
                    for (name, example) in examples {
                        let place = format!("{place}/{name}");
                        found.push((place, schema.clone(), example["value"].clone()));
                    }
                }
                ("examples", Value::Array(examples)) if !is_a_property => {
                    for example in examples {
                        found.push((place.clone(), schema.clone(), example.clone()));
                    }
                }
                _ => collect(part, &place, found),
            }
        }
    }
    let mut found = Vec::new();
    collect(&PUBLISHED, "", &mut found);
    found
}

#[test]
fn every_example_is_what_its_schema_says() {
    let examples = examples();
    assert!(examples.len() > 50, "{} examples", examples.len());
    for (place, schema, example) in examples {
        let problem = problem("published", &schema, &example);
        assert_eq!(problem, None, "{place}: {example}");
    }
}

#[test]
fn what_is_not_documented_is_found() {
    let headers = |media_type: &str| {
        BTreeMap::from([
            ("content-type".to_owned(), media_type.to_owned()),
            ("x-request-id".to_owned(), "1".to_owned()),
        ])
    };
    let json = headers("application/json");
    let exchange = |method, target, sent: &'static str, status, body: &'static str| {
        let exchange = Exchange {
            method,
            target,
            sent: sent.as_bytes(),
            status,
            headers: &json,
            body,
        };
        exchange.problem()
    };
    let ok = exchange("GET", "/livez", "", 200, r#"{"status": "ok"}"#);
    assert_eq!(ok, None);
    let unlisted = exchange("GET", "/livez", "", 418, r#"{"status": "ok"}"#);
    assert!(unlisted.is_some_and(|problem| problem.contains("status 418")));
    let more = exchange("GET", "/livez", "", 200, r#"{"status": "ok", "more": 1}"#);
    assert!(more.is_some_and(|problem| problem.contains("more")));
    let nested = r#"{"object": "list", "data": [{"id": "a", "object": "model", "more": 1}]}"#;
    assert!(exchange("GET", "/v1/models", "", 200, nested).is_some());
    let error =
        r#"{"error": {"message": "m", "type": "server_error", "param": null, "code": null}}"#;
    assert_eq!(exchange("GET", "/v1/nothing", "", 404, error), None);
    assert!(exchange("GET", "/v1/nothing", "", 200, error).is_some());
    assert_eq!(exchange("GET", "/v1/completions", "", 405, error), None);
    let accepted = exchange(
        "POST",
        "/v1/features/x/verify",
        "{}",
        200,
        r#"{"object": 1}"#,
    );
    assert!(accepted.is_some());
    let query = exchange("GET", "/v1/features?wrong=1", "", 200, "{}");
    assert!(query.is_some_and(|problem| problem.contains("wrong is not documented")));
    let request = exchange("POST", "/v1/completions", r#"{"model": 1}"#, 200, "{}");
    assert!(request.is_some_and(|problem| problem.starts_with("the request:")));
    let stream = headers("text/event-stream");
    let events = |body: &'static str| {
        let exchange = Exchange {
            method: "POST",
            target: "/v1/completions",
            sent: br#"{"model": "m", "prompt": "p"}"#,
            status: 200,
            headers: &stream,
            body,
        };
        exchange.problem()
    };
    assert_eq!(events("data: [DONE]\n\n"), None);
    assert!(events("data: {\"choices\": []}\n\ndata: [DONE]\n\n").is_some());
}
