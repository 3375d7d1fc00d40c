//! Ways to spoil a request's body: its JSON value by value, then its bytes.
//!
//! A change of JSON puts *raw* text in a value's place, so that what no JSON value can be (`NaN`, `1e999`, half a
//! surrogate pair, a key twice) can be sent like anything else. Changes are plain data: proptest makes them and, when
//! one does harm, takes away from them until only the harmful part is left.

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::{Index, select};
use serde_json::Value;

/// Marks text that is written as it stands; in a key, where the key ends.
const RAW: char = '\u{1}';

/// What a body may be told where something else belongs: numbers and texts at the ends of their ranges, what is no
/// JSON, and words that mean something somewhere.
const FRAGMENTS: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1",
    "2",
    "3",
    "5",
    "16",
    "31",
    "32",
    "60",
    "64",
    "320",
    "-1",
    "-3",
    "0.5",
    "1.5",
    "1e-320",
    "1e-300",
    "1e-400",
    "1e30",
    "-1e38",
    "3.5e38",
    "1e308",
    "-1e308",
    "1e309",
    "1e999",
    "9007199254740993",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "123456789012345678901234567890",
    "NaN",
    "-Infinity",
    "0x10",
    "01",
    "1.",
    "+1",
    ".5",
    "\"\"",
    "\" \"",
    "\"NaN\"",
    "\"1\"",
    "\"-1e999\"",
    r#""\u0000""#,
    r#""\ud800""#,
    r#""\udc00\ud800""#,
    r#""\ud83d\ude00""#,
    r#""\x41""#,
    "\"\n\"",
    "\"\u{202e}\u{feff}e\u{301}\"",
    "\"../../../etc/passwd\"",
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "[1]",
    "[0, 1]",
    "[-1]",
    "[[0, 2]]",
    "[[null, 1]]",
    "[[3, -9223372036854775808]]",
    "[-9223372036854775808]",
    "[0, 0]",
    "[1e308, -1e308]",
    "[0.5, 1, 2]",
    "[\"a\"]",
    "[\"a\", \"b\"]",
    "[1, 319]",
    "[[1, 2], [3]]",
    "[\"\"]",
    "\"x = 1\"",
    "\"y = 2\"",
    "\"a b c d e f\"",
    "\"tiny\"",
    "\"tiny-sparse\"",
    "\"shipped_feature\"",
    "\"contrast\"",
    "\"0.resid_in\"",
    "\"1.resid_mid\"",
    "\"final_resid\"",
    "\"0.mlp.post_act\"",
    "\"1.attn.act_in\"",
    "\"1.attn.v\"",
    "\"9.attn.v\"",
    "\"add\"",
    "\"set\"",
    "\"clamp\"",
    "\"scale\"",
    "\"ablate\"",
    "\"patch\"",
    "\"swap\"",
    "\"zero\"",
    "\"mean\"",
    "\"all\"",
    "\"none\"",
    "\"raw\"",
    "\"std\"",
    "\"max\"",
    "\"residual\"",
    "\"sublayer\"",
    "\"sparse\"",
    "\"encoder\"",
    "\"start\"",
    "\"end\"",
    "[\"steered\"]",
    "[\"baseline\"]",
    "[\"random\", \"random_feature\"]",
    "[\"steered\", \"steered\"]",
    "[\"receipt\", \"activations\"]",
    "[\"single_double_quote\"]",
    r#"{"node": "1.resid_mid", "channel": 0}"#,
    r#"{"node": "1.attn.v", "channel": 3}"#,
    r#"{"node": "0.resid_in", "channels": [{"channel": 1, "weight": 1e-300}]}"#,
    r#"{"prompt": "x = 1"}"#,
    r#"{"value": 1e308}"#,
    r#"{"prompt": "all", "generation": "none"}"#,
    r#"{"all": []}"#,
    r#"{"any": [{"feature": "shipped_feature", "gt": 0}]}"#,
];

/// Names of fields, of which some mean something where others stand.
const FIELDS: &[&str] = &[
    "model",
    "prompt",
    "max_tokens",
    "n",
    "best_of",
    "echo",
    "logprobs",
    "stop",
    "seed",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stream",
    "stream_options",
    "suffix",
    "user",
    "cache_salt",
    "steer",
    "steering",
    "bridge",
    "edits",
    "variants",
    "return",
    "feature",
    "op",
    "value",
    "min",
    "max",
    "to",
    "with",
    "strength",
    "unit",
    "at",
    "when",
    "read",
    "write",
    "align",
    "generation",
    "node",
    "channel",
    "channels",
    "weight",
    "site",
    "vector",
    "gt",
    "lt",
    "all",
    "any",
    "nodes",
    "logits",
    "pairs",
    "limit",
    "target",
    "max_channels",
    "name",
    "tasks",
    "tests",
    "description",
    "expected",
    "instead",
    "at_least",
    "unknown",
    "",
    "__proto__",
    "\u{202e}",
    "\u{0}",
];

/// One change of a body.
#[derive(Debug, Clone)]
pub enum Damage {
    /// Of the value at this place among all there are.
    Json(Index, Change),
    /// Of the byte at this place.
    Byte(Index, ByteChange),
}

#[derive(Debug, Clone)]
pub enum Change {
    Replace(String),
    Drop,
    /// The same key once more, with another value.
    Twice(String),
    /// Into an object or a list, wherever there is one.
    Insert(&'static str, String),
    /// A list of so many of it.
    Repeat(usize),
}

#[derive(Debug, Clone)]
pub enum ByteChange {
    Flip(u8),
    Truncate,
    Insert(Vec<u8>),
    Remove(usize),
}

/// Any change.
pub fn damage() -> impl Strategy<Value = Damage> {
    let json = (any::<Index>(), change()).prop_map(|(at, change)| Damage::Json(at, change));
    let byte = (any::<Index>(), byte_change()).prop_map(|(at, change)| Damage::Byte(at, change));
    prop_oneof![4 => json, 1 => byte]
}

fn change() -> impl Strategy<Value = Change> {
    let raw = || prop_oneof![60 => select(FRAGMENTS).prop_map(str::to_owned), 1 => large()];
    prop_oneof![
        8 => raw().prop_map(Change::Replace),
        3 => Just(Change::Drop),
        2 => raw().prop_map(Change::Twice),
        4 => (select(FIELDS), raw()).prop_map(|(field, raw)| Change::Insert(field, raw)),
        1 => (0_usize..8).prop_map(Change::Repeat),
    ]
}

/// Values that are long or deep.
fn large() -> impl Strategy<Value = String> {
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = |depth: usize| format!("{}1{}", "{\"all\":".repeat(depth), "}".repeat(depth));
    let list = |of: &'static str| {
        move |length: usize| format!("[{}{of}]", format!("{of},").repeat(length))
    };
    prop_oneof![
        (1_usize..200).prop_map(deep),
        (1_usize..200).prop_map(objects),
        Just("[".repeat(50_000)),
        (1_usize..20_000).prop_map(list("1")),
        (1_usize..2_000).prop_map(list("\"a\"")),
        (1_usize..2_000).prop_map(list("[1,2]")),
        (1_usize..2_000).prop_map(list("{}")),
        (1_usize..2_000).prop_map(list(r#"{"feature": "shipped_feature", "op": "ablate"}"#)),
        (1_usize..2_000).prop_map(list(r#"{"channel": 1, "weight": 1}"#)),
        (1_usize..20_000).prop_map(|length| format!("\"{}\"", "a ".repeat(length))),
        (1_usize..5_000).prop_map(|length| format!("\"{}\"", "\u{1f600}".repeat(length))),
    ]
}

fn byte_change() -> impl Strategy<Value = ByteChange> {
    prop_oneof![
        (0_u8..8).prop_map(|bit| ByteChange::Flip(1 << bit)),
        Just(ByteChange::Truncate),
        vec(any::<u8>(), 1..8).prop_map(ByteChange::Insert),
        (1_usize..40).prop_map(ByteChange::Remove),
    ]
}

/// The body after all changes: first those of its JSON, then those of its bytes.
pub fn damaged(body: &Value, damages: &[Damage]) -> Vec<u8> {
    let mut body = body.clone();
    for damage in damages {
        if let Damage::Json(at, change) = damage {
            change.apply(&mut body, at);
        }
    }
    let mut text = String::new();
    render(&body, &mut text);
    let mut bytes = text.into_bytes();
    for damage in damages {
        if let Damage::Byte(at, change) = damage {
            let place = at.index(bytes.len() + 1);
            change.apply(&mut bytes, place);
        }
    }
    bytes
}

impl Change {
    fn apply(&self, body: &mut Value, at: &Index) {
        let mut places = Vec::new();
        match self {
            Change::Insert(..) => collect(body, String::new(), &mut places, Value::is_object),
            _ => collect(body, String::new(), &mut places, |_| true),
        }
        if places.is_empty() {
            return;
        }
        let place = at.get(&places);
        match self {
            Change::Drop | Change::Twice(_) => self.apply_to_child(body, place),
            _ => {
                let Some(value) = body.pointer_mut(place) else {
                    return;
                };
                match self {
                    Change::Replace(text) => *value = raw(text),
                    Change::Insert(field, text) => value[*field] = raw(text),
                    Change::Repeat(times) => *value = vec![value.clone(); *times].into(),
                    Change::Drop | Change::Twice(_) => {}
                }
            }
        }
    }

    /// What is done to a value where it hangs.
    fn apply_to_child(&self, body: &mut Value, place: &str) {
        let Some((parent, key)) = place.rsplit_once('/') else {
            return;
        };
        let key = key.replace("~1", "/").replace("~0", "~");
        match (body.pointer_mut(parent), self) {
            (Some(Value::Object(fields)), Change::Drop) => {
                fields.remove(&key);
            }
            (Some(Value::Object(fields)), Change::Twice(text)) => {
                fields.insert(format!("{key}{RAW}{}", fields.len()), raw(text));
            }
            (Some(Value::Array(list)), Change::Drop) => {
                list.pop();
            }
            (Some(Value::Array(list)), Change::Twice(text)) => list.push(raw(text)),
            _ => {}
        }
    }
}

impl ByteChange {
    fn apply(&self, bytes: &mut Vec<u8>, at: usize) {
        match self {
            ByteChange::Flip(mask) => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= mask;
                }
            }
            ByteChange::Truncate => bytes.truncate(at),
            ByteChange::Insert(more) => {
                bytes.splice(at..at, more.iter().copied());
            }
            ByteChange::Remove(count) => {
                bytes.drain(at..(at + count).min(bytes.len()));
            }
        }
    }
}

fn raw(text: &str) -> Value {
    Value::String(format!("{RAW}{text}"))
}

/// The places (JSON pointers) of a value and of all within it that are `wanted`.
fn collect(value: &Value, place: String, places: &mut Vec<String>, wanted: fn(&Value) -> bool) {
    if wanted(value) {
        places.push(place.clone());
    }
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = key.replace('~', "~0").replace('/', "~1");
                collect(value, format!("{place}/{key}"), places, wanted);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                collect(value, format!("{place}/{index}"), places, wanted);
            }
        }
        _ => {}
    }
}

/// Writes JSON in which raw text stands as it is.
fn render(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            text.push('{');
            for (index, (key, value)) in fields.iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                let key = key.split(RAW).next().unwrap_or_default();
                text.push_str(&Value::from(key).to_string());
                text.push(':');
                render(value, text);
            }
            text.push('}');
        }
        Value::Array(list) => {
            text.push('[');
            for (index, value) in list.iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                render(value, text);
            }
            text.push(']');
        }
        Value::String(string) => match string.strip_prefix(RAW) {
            Some(raw) => text.push_str(raw),
            None => text.push_str(&value.to_string()),
        },
        _ => text.push_str(&value.to_string()),
    }
}

#[test]
fn damage_is_what_it_says() {
    let body = serde_json::json!({"a": [1, {"b": "x"}], "c": 2});
    let change = |pointer: &str, change: &Change| {
        let mut body = body.clone();
        let mut places = Vec::new();
        collect(&body, String::new(), &mut places, |_| true);
        assert!(places.iter().any(|place| place == pointer), "{places:?}");
        match change {
            Change::Drop | Change::Twice(_) => change.apply_to_child(&mut body, pointer),
            Change::Replace(text) => *body.pointer_mut(pointer).unwrap() = raw(text),
            other => panic!("{other:?} is not tried"),
        }
        let mut text = String::new();
        render(&body, &mut text);
        text
    };
    assert_eq!(change("/a/1/b", &Change::Drop), r#"{"a":[1,{}],"c":2}"#);
    assert_eq!(
        change("/c", &Change::Twice("NaN".to_owned())),
        r#"{"a":[1,{"b":"x"}],"c":2,"c":NaN}"#
    );
    assert_eq!(
        change("/a/0", &Change::Replace(r#""\ud800""#.to_owned())),
        r#"{"a":["\ud800",{"b":"x"}],"c":2}"#
    );
}
