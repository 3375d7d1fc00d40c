//! The JSON parser's messages in the words of the wire. The parser speaks of Rust's types, which callers do not
//! have: of "expected struct At" is made "expected an object".

use crate::interventions::nearest::suggestion;

/// Says what a message of the parser means without a Rust type in it.
pub fn in_words(message: &str) -> String {
    // The path says where; the line is told of text that is no JSON only.
    let (said, place) = match message.rfind(" at line ") {
        Some(at) => message.split_at(at),
        None => (message, ""),
    };
    if let Some(rest) = said.strip_prefix("unknown variant ") {
        return unknown_word(rest);
    }
    let kinds = ["invalid type: ", "invalid value: ", "invalid length "];
    for kind in kinds {
        if let Some((got, expected)) = said
            .strip_prefix(kind)
            .and_then(|rest| rest.split_once(", expected "))
        {
            let got = match kind {
                "invalid length " => format!("a list of {got}"),
                _ => value(got),
            };
            return format!("expected {}, not {got}", expectation(expected));
        }
    }
    format!("{said}{place}")
}

/// A word that is none of those that can stand there, all of them quoted in the message.
fn unknown_word(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let [word, known @ ..] = quoted.as_slice() else {
        return "expected another word".to_owned();
    };
    let shown: String = word.chars().take(80).collect();
    let near = suggestion(&shown, known.iter().copied());
    let known: Vec<String> = known.iter().map(|known| format!("{known:?}")).collect();
    format!("{shown:?} is none of {}{near}", known.join(", "))
}

/// What was sent.
fn value(got: &str) -> String {
    let plain = match got {
        "map" => "an object",
        "sequence" => "a list",
        "null" | "unit value" => "null",
        _ => "",
    };
    if !plain.is_empty() {
        return plain.to_owned();
    }
    if let Some(text) = got.strip_prefix("string ") {
        let shown: String = text.chars().take(80).collect();
        return format!("the text {shown}");
    }
    let number = got
        .strip_prefix("integer ")
        .or_else(|| got.strip_prefix("floating point "))
        .or_else(|| got.strip_prefix("boolean "));
    match number {
        Some(number) => number.trim_matches('`').to_owned(),
        None => "this".to_owned(),
    }
}

/// What should have been sent.
fn expectation(expected: &str) -> String {
    let whole = |most: &str| format!("a whole number from 0 to {most}");
    match expected {
        "f32" | "f64" => "a number".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number".to_owned(),
        "u8" => whole("255"),
        "u16" => whole("65535"),
        "u32" => whole("4294967295"),
        "u64" | "u128" | "usize" => "a whole number of at least 0".to_owned(),
        "a nonzero u32" => "a whole number from 1 to 4294967295".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        "unit" => "null".to_owned(),
        "string or map" => "a text or an object".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" | "string" | "str" => "a text".to_owned(),
        "variant identifier" | "field identifier" => "a word".to_owned(),
        _ => match expected.split(' ').collect::<Vec<_>>().as_slice() {
            ["an", "array", "of", "length", length] | ["a", "tuple", "of", "size", length] => {
                format!("a list of {length}")
            }
            ["tuple", ..] => "a list".to_owned(),
            words if words.contains(&"struct") || words.contains(&"enum") => "an object".to_owned(),
            _ => expected
                .strip_prefix("expected ")
                .unwrap_or(expected)
                .to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::in_words;

    #[test]
    fn messages_speak_of_json() {
        for (message, words) in [
            (
                "invalid type: string \"all\", expected struct At at line 1 column 9",
                "expected an object, not the text \"all\"",
            ),
            (
                "invalid type: floating point `1.5`, expected usize",
                "expected a whole number of at least 0, not 1.5",
            ),
            (
                "invalid value: integer `-1`, expected u32",
                "expected a whole number from 0 to 4294967295, not -1",
            ),
            (
                "invalid type: map, expected a sequence",
                "expected a list, not an object",
            ),
            (
                "invalid length 3, expected an array of length 2",
                "expected a list of 2, not a list of 3",
            ),
            (
                "unknown variant `ad`, expected one of `add`, `set` at line 1 column 2",
                "\"ad\" is none of \"add\", \"set\"; the nearest is \"add\"",
            ),
            (
                "invalid type: boolean `true`, expected internally tagged enum Clip",
                "expected an object, not true",
            ),
            (
                "invalid type: integer `1`, expected struct variant Positions::Concatenated",
                "expected an object, not 1",
            ),
            (
                "expected value at line 1 column 1",
                "expected value at line 1 column 1",
            ),
        ] {
            assert_eq!(in_words(message), words);
        }
    }
}
