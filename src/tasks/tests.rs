//! What pairs promise: two prompts of equal length, two candidates, one fact.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ops::Range;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{PairsError, Task, TextPair, Unusable, pair_documents, token_pair, token_pairs};
use crate::corpus::Split;

const SPLITS: [Split; 2] = [Split::Train, Split::HeldOut];

/// Splits a text where the tokenizer's pattern does:
/// `[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
fn pieces(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let is = |at: usize, test: fn(&u8) -> bool| bytes.get(at).is_some_and(test);
    let run = |mut at: usize, test: fn(&u8) -> bool| {
        while is(at, test) {
            at += 1;
        }
        at
    };
    let sign: fn(&u8) -> bool = |byte| !byte.is_ascii_alphanumeric() && !byte.is_ascii_whitespace();
    let mut found = Vec::new();
    let mut start = 0;
    while start < bytes.len() {
        let after_one =
            start + usize::from(!is(start, u8::is_ascii_alphanumeric) && bytes[start] != b'\n');
        let after_space = start + usize::from(bytes[start] == b' ');
        let end = if is(start, u8::is_ascii_alphabetic) {
            run(start, u8::is_ascii_alphabetic)
        } else if is(after_one, u8::is_ascii_alphabetic) {
            run(after_one, u8::is_ascii_alphabetic)
        } else if is(start, u8::is_ascii_digit) {
            run(start, u8::is_ascii_digit).min(start + 3)
        } else if is(after_space, sign) {
            run(run(after_space, sign), |byte| matches!(byte, b'\n' | b'/'))
        } else {
            let blank = run(start, u8::is_ascii_whitespace);
            match text[start..blank].rfind('\n') {
                Some(newline) => start + newline + 1,
                None if blank < bytes.len() && blank - start > 1 => blank - 1,
                None => blank,
            }
        };
        found.push(start..end);
        start = end;
    }
    found
}

/// One token for each piece, with an id that depends on its bytes alone.
pub(super) fn toy_encode(text: &str) -> Result<Vec<(u32, Range<usize>)>, Infallible> {
    Ok(pieces(text)
        .into_iter()
        .map(|bytes| {
            let id = text[bytes.clone()]
                .bytes()
                .fold(2_166_136_261_u32, |hash, byte| {
                    (hash ^ u32::from(byte)).wrapping_mul(16_777_619)
                });
            (id, bytes)
        })
        .collect())
}

fn some_pairs(task: Task, split: Split, how_many: usize) -> Vec<TextPair> {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    (0..how_many)
        .map(|_| task.text_pair(&mut rng, split))
        .collect()
}

#[test]
fn the_toy_tokenizer_cuts_like_the_real_pattern() {
    let cut = |text: &'static str| -> Vec<&str> {
        pieces(text).into_iter().map(|bytes| &text[bytes]).collect()
    };
    assert_eq!(
        cut("def f(x, y=None):\n    return \"a 1234\"\n\n\n  z"),
        [
            "def", " f", "(x", ",", " y", "=None", "):\n", "   ", " return", " \"", "a", " ",
            "123", "4", "\"\n\n\n", " ", " z"
        ]
    );
    assert_eq!(cut("x = 1\n\ny"), ["x", " =", " ", "1", "\n\n", "y"]);
    assert_eq!(
        cut("print(f\"hi {x}\")\n"),
        ["print", "(f", "\"hi", " {", "x", "}\")\n"]
    );
}

#[test]
fn names_are_the_published_ones_and_parse() {
    assert_eq!(Task::ALL.len(), 20);
    for task in Task::ALL {
        assert_eq!(task.name().parse(), Ok(task));
        assert!(!task.description().is_empty());
    }
    let names: BTreeSet<&str> = Task::ALL.map(Task::name).into();
    assert_eq!(names.len(), 20);
    let error = "single_duble_quote".parse::<Task>().unwrap_err();
    assert_eq!(error.near[0], "single_double_quote");
    assert!(error.to_string().contains("single_double_quote"));
}

#[test]
fn pairs_are_deterministic_and_splits_differ() {
    for task in Task::ALL {
        let train = some_pairs(task, Split::Train, 5);
        assert_eq!(train, some_pairs(task, Split::Train, 5));
        assert_ne!(train, some_pairs(task, Split::HeldOut, 5));
        let of = |seed, split| token_pairs(task, 5, seed, split, toy_encode).unwrap();
        assert_eq!(of(1, Split::Train), of(1, Split::Train));
        assert_ne!(of(1, Split::Train), of(2, Split::Train));
        assert_ne!(of(1, Split::Train), of(1, Split::HeldOut));
    }
}

#[test]
fn every_task_makes_short_pairs_that_differ() {
    for task in Task::ALL {
        for split in SPLITS {
            let pairs = some_pairs(task, split, 200);
            let distinct: BTreeSet<&str> = pairs
                .iter()
                .map(|pair| pair.presented.prompt.as_str())
                .collect();
            assert!(
                distinct.len() > 190,
                "{task}: {} distinct prompts",
                distinct.len()
            );
            for pair in &pairs {
                assert_eq!(pair.anything_else, task.anything_else());
                assert_ne!(pair.presented.prompt, pair.counterfactual.prompt, "{task}");
                assert_ne!(pair.presented.answer, pair.counterfactual.answer, "{task}");
                for side in [&pair.presented, &pair.counterfactual] {
                    assert_eq!(
                        side.answer.find('\n'),
                        Some(side.answer.len() - 1),
                        "{task}: {side:?}"
                    );
                    assert!(
                        side.prompt.len() <= 480,
                        "{task}: {}\n{}",
                        side.prompt.len(),
                        side.prompt
                    );
                }
            }
        }
    }
}

#[test]
fn nearly_every_pair_suits_the_toy_tokenizer() {
    for task in Task::ALL {
        for split in SPLITS {
            let pairs = some_pairs(task, split, 200);
            let usable = pairs
                .iter()
                .filter(|pair| token_pair(pair, toy_encode).unwrap().is_ok())
                .count();
            // Names of several pieces spoil a few pairs: `user_id` beside `user`.
            let least = match task {
                Task::ClassInit | Task::VarSwap => 90,
                _ => 190,
            };
            assert!(usable >= least, "{task}: {usable} of 200");
            assert_eq!(
                token_pairs(task, 200, 9, split, toy_encode).unwrap().len(),
                200
            );
        }
    }
}

#[test]
fn the_sides_of_a_pair_differ_in_few_tokens() {
    for task in Task::ALL {
        for pair in token_pairs(task, 200, 10, Split::Train, toy_encode).unwrap() {
            let differing = pair
                .presented
                .prompt
                .iter()
                .zip(&pair.counterfactual.prompt)
                .filter(|(one, other)| one != other)
                .count();
            let most = match task {
                // Both names of an exchange, of up to two tokens, stand in three places.
                Task::VarSwap => 6,
                Task::EnumerateRange => 4,
                _ => 3,
            };
            assert!(
                (1..=most).contains(&differing),
                "{task}: {differing} tokens differ"
            );
        }
    }
}

#[test]
fn candidates_are_the_ones_of_the_table() {
    let expected = [
        (Task::SingleDoubleQuote, "\")\n", "')\n"),
        (Task::BracketCounting, "]]\n", "]\n"),
        (Task::BracketBrace, ":", ","),
        (Task::SetOrString, ".add", " +="),
        (Task::SetOrStringFixedvarname, ".add", " +="),
        (Task::WithOpen, "r", "w"),
        (Task::FinalKwarg, "=None", "):\n"),
        (Task::ForWhile, " in", ":\n"),
        (Task::LambdaFunc, ":", "():\n"),
        (Task::IfEquals, " ==", " ="),
        (Task::EnumerateRange, " enumerate", " range"),
        (Task::VarIf, ":\n", "\n"),
        (Task::WhileReturnTrue, "\n", ":\n"),
    ];
    let id = |piece: &str| toy_encode(piece).unwrap()[0].0;
    for (task, presented, counterfactual) in expected {
        for pair in token_pairs(task, 100, 12, Split::HeldOut, toy_encode).unwrap() {
            assert_eq!(pair.presented.candidate, id(presented), "{task}");
            assert_eq!(pair.counterfactual.candidate, id(counterfactual), "{task}");
            let swapped = pair.clone().swapped();
            assert_eq!(swapped.presented, pair.counterfactual);
        }
    }
    for (task, presented) in [
        (Task::WithAs, " as"),
        (Task::ElseElif, ":\n"),
        (Task::FstringBrace, " {"),
        (Task::IfTernary, ":\n"),
    ] {
        for pair in token_pairs(task, 100, 12, Split::HeldOut, toy_encode).unwrap() {
            assert_eq!(pair.presented.candidate, id(presented), "{task}");
            assert!(pair.anything_else);
        }
    }
}

#[test]
fn documents_of_a_pair_go_on_from_its_prompts() {
    for task in Task::ALL {
        for split in SPLITS {
            let mut rng = ChaCha8Rng::seed_from_u64(13);
            for _ in 0..20 {
                let pair = task.text_pair(&mut rng.clone(), split);
                let (presented, counterfactual) = pair_documents(&mut rng, split, task);
                for (document, side) in [
                    (presented, pair.presented),
                    (counterfactual, pair.counterfactual),
                ] {
                    assert!(document.starts_with(&side.text()), "{task}:\n{document}");
                    assert!(document.len() > side.text().len() && document.ends_with('\n'));
                }
            }
        }
    }
}

#[test]
fn unusable_pairs_are_refused_with_the_reason() {
    let pair = &some_pairs(Task::WhileReturnTrue, Split::Train, 1)[0];
    let whole = |text: &str| Ok::<_, Infallible>(vec![(0, 0..text.len())]);
    assert_eq!(token_pair(pair, whole), Ok(Err(Unusable::NoTokenAtCut)));

    let mut longer = pair.clone();
    longer.presented.prompt.insert_str(0, "x ");
    assert_eq!(
        token_pair(&longer, toy_encode),
        Ok(Err(Unusable::LengthsDiffer))
    );

    let mut same = pair.clone();
    same.counterfactual = same.presented.clone();
    assert_eq!(
        token_pair(&same, toy_encode),
        Ok(Err(Unusable::SameCandidate))
    );

    let error = token_pairs(Task::VarIf, 3, 1, Split::Train, whole).unwrap_err();
    assert!(
        matches!(
            &error,
            PairsError::TooFew {
                found: 0,
                wanted: 3,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("no token starts"), "{error}");
}

#[test]
fn a_failing_tokenizer_is_passed_on() {
    let fail = |_: &str| Err::<Vec<(u32, Range<usize>)>, _>(std::fmt::Error);
    let error = token_pairs(Task::VarIf, 3, 1, Split::Train, fail).unwrap_err();
    assert!(matches!(error, PairsError::Encode { task, .. } if task == "var_if"));
}

#[test]
fn tasks_are_written_by_name_in_files() {
    // The serialised name must be the published one, which `rename_all` gives only by luck.
    for task in Task::ALL {
        let name = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(task.name());
        let read: Task = serde::Deserialize::deserialize(name).unwrap();
        assert_eq!(read, task);
    }
}
