//! What tasks that users bring promise: a line at fault is named, a pair's split is its own, and a seed decides the order.

use std::collections::{BTreeMap, BTreeSet};

use super::tests::toy_encode;
use super::{
    AnyTask, LEAST_IN_SPLIT, LONGEST_DESCRIPTION, LONGEST_LINE, LONGEST_TASK, MOST_PAIRS,
    PairsError, Side, Task, TextPair, Unusable, UserTask, UserTaskError, token_pairs,
};
use crate::corpus::Split;

fn side(prompt: impl Into<String>, answer: &str) -> Side {
    Side {
        prompt: prompt.into(),
        answer: answer.into(),
    }
}

/// Usable by the toy tokenizer.
fn pair(number: usize) -> TextPair {
    TextPair {
        presented: side(format!("n = {number}\nprint(\"a"), "\")\n"),
        counterfactual: side(format!("n = {number}\nprint('a"), "')\n"),
        anything_else: false,
    }
}

fn pairs(how_many: usize) -> Vec<TextPair> {
    (0..how_many).map(pair).collect()
}

fn line(pair: &TextPair) -> String {
    serde_json::to_string(pair).expect("JSON")
}

fn file(pairs: &[TextPair]) -> String {
    let lines: Vec<String> = pairs.iter().map(line).collect();
    lines.join("\n")
}

fn parse(file: &str) -> Result<UserTask, UserTaskError> {
    UserTask::parse("quotes", "", file.as_bytes())
}

fn held_out(task: &UserTask) -> BTreeSet<String> {
    let pairs = task.shuffled(0, Split::HeldOut);
    pairs.map(|pair| pair.presented.prompt.clone()).collect()
}

#[test]
fn a_file_s_pairs_are_read_and_written_again() {
    let mut given = pairs(40);
    given[3].anything_else = true;
    given[4].presented.prompt = "a \u{1f600}\t\u{0}\"\\".into();
    let text = format!(
        "\u{feff}{}\r\n\n  \n{}\n",
        file(&given[..7]),
        file(&given[7..])
    );
    let task = UserTask::parse("quotes", "Which quote.", text.as_bytes()).expect("a task");
    assert_eq!(task.pairs(), given);
    assert_eq!(
        (task.name(), task.description()),
        ("quotes", "Which quote.")
    );
    let again = parse(&task.to_lines().expect("lines")).expect("a task");
    assert_eq!(again.pairs(), given);
    assert_eq!(UserTask::new("quotes", "", given).expect("a task"), again);
}

#[test]
fn a_pair_s_split_is_its_own() {
    let given = pairs(300);
    let task = UserTask::new("quotes", "", given.clone()).expect("a task");
    let (train, held) = (task.pairs_of(Split::Train), task.pairs_of(Split::HeldOut));
    assert_eq!(train + held, 300);
    assert!((60..140).contains(&held), "{held} of 300 are held out");

    let reversed = given.iter().rev().cloned().collect();
    let reversed = UserTask::new("quotes", "", reversed).expect("a task");
    let in_order = |task: &UserTask, split| task.shuffled(3, split).cloned().collect::<Vec<_>>();
    for split in [Split::Train, Split::HeldOut] {
        assert_eq!(in_order(&task, split), in_order(&reversed, split));
    }
    let fewer = UserTask::new("quotes", "", given[..200].to_vec()).expect("a task");
    assert!(held_out(&fewer).is_subset(&held_out(&task)));

    // What is asked in one direction must not be known from the other.
    let swapped = given[..100].iter().cloned().map(TextPair::swapped);
    let both = [given[..100].to_vec(), swapped.collect()].concat();
    let both = UserTask::new("quotes", "", both).expect("a task");
    let prompts = held_out(&both);
    assert!(prompts.len() > LEAST_IN_SPLIT);
    for pair in both.shuffled(0, Split::HeldOut) {
        assert!(prompts.contains(&pair.counterfactual.prompt));
    }
}

#[test]
fn the_line_and_the_field_at_fault_are_named() {
    let good = line(&pair(0));
    let side = r#"{"prompt": "p", "answer": "a"}"#;
    let other = r#"{"prompt": "q", "answer": "b"}"#;
    for (bad, told) in [
        ("{".to_owned(), "it is no JSON at column 1: EOF"),
        ("[]".to_owned(), "it is a list; it must be an object"),
        (
            format!(r#"{{"presented": {side}}}"#),
            "counterfactual is missing",
        ),
        (
            format!(r#"{{"presented": {side}, "counterfactual": "q"}}"#),
            "counterfactual is a text; it must be an object",
        ),
        (
            format!(
                r#"{{"presented": {{"promt": "p", "answer": "a"}}, "counterfactual": {other}}}"#
            ),
            "presented.promt is no field of a pair; the nearest is \"prompt\"",
        ),
        (
            format!(r#"{{"presented": {side}, "counterfactual": {other}, "anything": true}}"#),
            "anything is no field of a pair; the nearest is \"anything_else\"",
        ),
        (
            format!(r#"{{"presented": {side}, "counterfactual": {other}, "anything_else": 1}}"#),
            "anything_else is a number; it must be true or false",
        ),
        (
            format!(
                r#"{{"presented": {{"prompt": null, "answer": "a"}}, "counterfactual": {other}}}"#
            ),
            "presented.prompt is null; it must be a text",
        ),
        (
            format!(
                r#"{{"presented": {{"prompt": "p", "answer": ""}}, "counterfactual": {other}}}"#
            ),
            "presented.answer is empty",
        ),
        (
            format!(
                r#"{{"presented": {side}, "counterfactual": {{"prompt": "p", "answer": "b"}}}}"#
            ),
            "counterfactual.prompt is the same as presented.prompt",
        ),
        (
            format!(
                r#"{{"presented": {side}, "counterfactual": {{"prompt": "q", "answer": "a"}}}}"#
            ),
            "counterfactual.answer is the same as presented.answer",
        ),
        (good.clone(), "it asks the same as line 1"),
        (
            " ".repeat(LONGEST_LINE + 1),
            "it has 65537 bytes; a line may have 65536",
        ),
    ] {
        // The blank line counts; what comes after the fault is not looked at.
        let text = format!("{good}\n\n{bad}\n[");
        let error = parse(&text).expect_err(&bad);
        let message = error.to_string();
        assert!(
            message.starts_with(&format!("line 3: {told}")),
            "{bad}: {message}"
        );
        assert!(matches!(error, UserTaskError::Pair { index: 1, .. }));
    }
    let binary = [good.as_bytes(), b"\n\xff"].concat();
    let error = UserTask::parse("quotes", "", &binary).expect_err("no text");
    assert_eq!(error.to_string(), "line 2: it is not UTF-8");

    let mut given = pairs(20);
    given[5].counterfactual.answer.clear();
    let error = UserTask::new("quotes", "", given.clone()).expect_err("an empty answer");
    assert_eq!(
        error.to_string(),
        "pairs[5]: counterfactual.answer is empty"
    );
    given[5].counterfactual.answer = "x".repeat(LONGEST_LINE);
    let error = UserTask::new("quotes", "", given).expect_err("a long answer");
    assert!(
        error.to_string().starts_with("pairs[5]: it has "),
        "{error}"
    );
}

#[test]
fn names_and_sizes_are_bounded() {
    let named = |name: &str| UserTask::new(name, "", pairs(40)).map(|task| task.name().to_owned());
    for name in ["a", "my.task-2_b", &"x".repeat(64)] {
        assert_eq!(named(name).as_deref(), Ok(name));
    }
    for name in ["", "A", "a b", "../x", ".x", "a..b", "a/b", &"x".repeat(65)] {
        assert!(
            matches!(named(name), Err(UserTaskError::Name { .. })),
            "{name}"
        );
    }
    let taken = named("var_swap").expect_err("taken");
    assert!(
        matches!(taken, UserTaskError::Taken(Task::VarSwap)),
        "{taken}"
    );

    let described = |length: usize| UserTask::new("a", "\u{e9}".repeat(length), pairs(40));
    assert!(described(LONGEST_DESCRIPTION).is_ok());
    assert!(matches!(
        described(LONGEST_DESCRIPTION + 1),
        Err(UserTaskError::Description { .. })
    ));

    let many = pairs(MOST_PAIRS + 1);
    assert_eq!(parse(&file(&many)), Err(UserTaskError::TooMany));
    assert_eq!(UserTask::new("a", "", many), Err(UserTaskError::TooMany));
    let long = vec![b'\n'; LONGEST_TASK + 1];
    let error = UserTask::parse("a", "", &long).expect_err("too long");
    assert!(matches!(error, UserTaskError::TooLong { .. }));

    assert!(matches!(
        parse(""),
        Err(UserTaskError::TooFew {
            train: 0,
            held_out: 0
        })
    ));
    // By the time that both splits have enough there are pairs enough to spare in one of them.
    let least = (0..200).find(|&count| UserTask::new("a", "", pairs(count)).is_ok());
    let least = least.expect("enough of both");
    let task = UserTask::new("a", "", pairs(least)).expect("a task");
    assert_eq!(
        task.pairs_of(Split::Train)
            .min(task.pairs_of(Split::HeldOut)),
        LEAST_IN_SPLIT
    );
    let error = UserTask::new("a", "", pairs(least - 1)).expect_err("too few");
    assert!(error.to_string().contains("at least 4 of both"), "{error}");
}

#[test]
fn of_a_user_s_task_there_are_as_many_pairs_as_there_are() {
    let task = AnyTask::from(UserTask::new("quotes", "", pairs(90)).expect("a task"));
    for split in [Split::Train, Split::HeldOut] {
        let all = task.pairs_of(split).expect("a number");
        let of = |how_many, seed| {
            task.token_pairs(how_many, seed, split, toy_encode)
                .expect("pairs")
        };
        assert_eq!(of(usize::MAX, 1).len(), all);
        assert_eq!(of(5, 1), of(all, 1)[..5]);
        assert_eq!(of(all, 1), of(all, 1));
        assert_ne!(of(all, 1), of(all, 2));
        let distinct: BTreeSet<Vec<u32>> = of(all, 3)
            .into_iter()
            .map(|pair| pair.presented.prompt)
            .collect();
        assert_eq!(distinct.len(), all, "no pair comes twice");
        assert_eq!(of(0, 1), []);
    }
}

#[test]
fn pairs_that_a_tokenizer_cannot_use_are_counted_by_reason() {
    let mut given = pairs(120);
    for (index, pair) in given.iter_mut().enumerate() {
        match index % 6 {
            0 => pair.presented.prompt += " b",
            // One token, that both answers begin with.
            1 => (pair.presented.answer, pair.counterfactual.answer) = (") d".into(), ") e".into()),
            // The word goes on where the prompt ends.
            2 => (pair.presented.answer, pair.counterfactual.answer) = ("b".into(), "c".into()),
            3 => {
                pair.presented.prompt.insert_str(0, "x y z u v w ");
                pair.counterfactual.prompt.insert_str(0, "x y z u v w ");
            }
            _ => {}
        }
    }
    let task = AnyTask::from(UserTask::new("quotes", "", given).expect("a task"));
    let context = 8;
    let mut seen = BTreeMap::new();
    for split in [Split::Train, Split::HeldOut] {
        let all = task.pairs_of(split).expect("a number");
        let count = task
            .count(context, usize::MAX, 0, split, toy_encode)
            .expect("a count");
        assert_eq!(
            (count.drawn, count.drawn),
            (all, count.usable + count.reasons.values().sum::<usize>())
        );
        let found = task
            .token_pairs_within(context, usize::MAX, 0, split, toy_encode)
            .expect("pairs");
        assert_eq!(found.len(), count.usable);
        for (reason, times) in count.reasons {
            *seen.entry(reason).or_insert(0) += times;
        }
    }
    let each = [
        Unusable::NoTokenAtCut,
        Unusable::LengthsDiffer,
        Unusable::SameCandidate,
        Unusable::TooLong,
    ];
    let expected = each.into_iter().map(|reason| (reason, 20)).collect();
    assert_eq!(seen, expected, "of 120 pairs");

    let few = task
        .count(context, 10, 0, Split::Train, toy_encode)
        .expect("a count");
    assert_eq!(few.drawn, 10);
    let whole = |text: &str| Ok::<_, std::convert::Infallible>(vec![(0, 0..text.len())]);
    let error = task
        .token_pairs(50, 0, Split::Train, whole)
        .expect_err("no pairs");
    assert!(
        matches!(&error, PairsError::TooFew { task, found: 0, wanted: LEAST_IN_SPLIT, .. } if task == "quotes")
    );
}

#[test]
fn one_of_the_twenty_is_what_it_was() {
    for task in [Task::VarIf, Task::ClassInit] {
        let any = AnyTask::from(task);
        assert_eq!(
            (any.name(), any.description()),
            (task.name(), task.description())
        );
        let pairs = any
            .token_pairs(20, 5, Split::HeldOut, toy_encode)
            .expect("pairs");
        assert_eq!(
            pairs,
            token_pairs(task, 20, 5, Split::HeldOut, toy_encode).expect("pairs")
        );
        let count = any
            .count(usize::MAX, 100, 5, Split::HeldOut, toy_encode)
            .expect("a count");
        assert_eq!(count.drawn, 100);
        // The pairs counted are the ones that would be drawn.
        let texts = any.text_pairs(100, 5, Split::HeldOut);
        let first = texts
            .iter()
            .find_map(|text| super::token_pair(text, toy_encode).expect("tokens").ok());
        assert_eq!(first.as_ref(), pairs.first());
    }
}
