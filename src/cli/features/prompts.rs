//! Files of contrast prompts.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::artifacts::atomic;

/// Longer files hold more than a server takes at once.
const LONGEST_FILE: u64 = 64 << 20;

/// The prompts of a file: the lines that are not empty, each a text, or with the ending `.jsonl` each a JSON value.
pub fn read_prompts(path: &Path) -> anyhow::Result<Vec<Value>> {
    let bytes = atomic::read_small(path, LONGEST_FILE)?;
    let text = String::from_utf8(bytes);
    let text = text.with_context(|| format!("{} is no UTF-8", path.display()))?;
    let is_json = path.extension().is_some_and(|ending| ending == "jsonl");
    let prompts = prompts(&text, is_json);
    let prompts = prompts.with_context(|| path.display().to_string())?;
    ensure!(!prompts.is_empty(), "{} has no prompts", path.display());
    Ok(prompts)
}

fn prompts(text: &str, is_json: bool) -> anyhow::Result<Vec<Value>> {
    let lines = (1..).zip(text.lines());
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let prompt = |(number, line): (usize, &str)| match is_json {
        true => serde_json::from_str(line).with_context(|| format!("line {number} is no JSON")),
        false => Ok(Value::from(line)),
    };
    lines.map(prompt).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_is_a_prompt() {
        let plain = prompts("one\n\n  two \r\n", false).expect("prompts");
        assert_eq!(plain, [json!("one"), json!("  two ")]);
        let values = prompts(
            "\"a\"\n[1, 2]\n\n{\"prompt\": \"a\", \"answer\": \"b\"}\n",
            true,
        );
        let expected = [
            json!("a"),
            json!([1, 2]),
            json!({"prompt": "a", "answer": "b"}),
        ];
        assert_eq!(values.expect("prompts"), expected);
        let wrong = prompts("\"a\"\nb\n", true).expect_err("no JSON");
        assert!(wrong.to_string().contains("line 2"), "{wrong}");
    }
}
