//! What documents promise: determinism, size, every idiom, and words kept apart.

use std::collections::BTreeSet;

use super::words::{NOUNS, PROSE, VERBS};
use super::{CorpusGenerator, Split};

fn documents(seed: u64, split: Split, how_many: usize) -> Vec<String> {
    CorpusGenerator::new(seed, split).take(how_many).collect()
}

/// The words of a text in lower case, with compound names and camel case taken apart.
fn words(text: &str) -> BTreeSet<String> {
    let mut apart = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_ascii_uppercase() || !letter.is_ascii_alphabetic() {
            apart.push(' ');
        }
        if letter.is_ascii_alphabetic() {
            apart.push(letter.to_ascii_lowercase());
        }
    }
    apart
        .split_whitespace()
        .map(|word| word.strip_suffix('s').unwrap_or(word).to_owned())
        .collect()
}

/// The words that belong to one split alone, without a final `s`, like [`words`].
fn own_words(split: Split) -> BTreeSet<String> {
    [NOUNS, VERBS, PROSE]
        .iter()
        .flat_map(|pool| pool.own(split))
        .map(|word| word.strip_suffix('s').unwrap_or(word).to_owned())
        .collect()
}

#[test]
fn a_document_depends_on_seed_split_and_index_alone() {
    let one_after_the_other = documents(5, Split::Train, 20);
    assert_eq!(one_after_the_other, documents(5, Split::Train, 20));
    let mut later = CorpusGenerator::starting_at(5, Split::Train, 13);
    assert_eq!(later.document(), one_after_the_other[13]);

    let distinct: BTreeSet<&String> = one_after_the_other.iter().collect();
    assert_eq!(distinct.len(), 20);
    assert_ne!(one_after_the_other, documents(6, Split::Train, 20));
    assert_ne!(one_after_the_other, documents(5, Split::HeldOut, 20));
}

#[test]
fn documents_are_small_ascii_files() {
    for split in [Split::Train, Split::HeldOut] {
        for document in documents(1, split, 300) {
            let lines = document.lines().count();
            assert!((15..=80).contains(&lines), "{lines} lines:\n{document}");
            assert!(document.is_ascii() && document.ends_with('\n') && !document.contains('\t'));
            assert!(
                document.lines().all(|line| line == line.trim_end()),
                "{document}"
            );
        }
    }
}

#[test]
fn the_two_quotes_are_about_equally_frequent() {
    let text = documents(2, Split::Train, 500).concat();
    for (double, single) in [
        ("(\"", "('"),
        (" = \"", " = '"),
        ("\")\n", "')\n"),
        ("\": ", "': "),
        ("f\"", "f'"),
    ] {
        let (double_times, single_times) =
            (text.matches(double).count(), text.matches(single).count());
        let share = double_times as f64 / (double_times + single_times) as f64;
        assert!(
            (0.4..0.6).contains(&share),
            "{double}: {double_times} against {single_times}"
        );
    }
}

#[test]
fn each_split_keeps_to_its_words() {
    let (train_only, held_out_only) = (own_words(Split::Train), own_words(Split::HeldOut));
    let shared: BTreeSet<String> = [NOUNS, VERBS, PROSE]
        .iter()
        .flat_map(|pool| pool.shared())
        .map(|&word| word.to_owned())
        .collect();
    assert!(train_only.is_disjoint(&held_out_only));
    assert!(shared.is_disjoint(&held_out_only) && shared.is_disjoint(&train_only));

    let in_train = words(&documents(3, Split::Train, 1000).concat());
    let in_held_out = words(&documents(3, Split::HeldOut, 1000).concat());
    let leaked: Vec<&String> = in_train.intersection(&held_out_only).collect();
    assert!(
        leaked.is_empty(),
        "held-out words in training text: {leaked:?}"
    );
    let missing: Vec<&String> = held_out_only.difference(&in_held_out).collect();
    assert!(
        missing.is_empty(),
        "held-out words that no document uses: {missing:?}"
    );
}

#[test]
fn both_forms_of_every_idiom_occur() {
    let text = documents(4, Split::Train, 300).concat();
    // What each form of an idiom looks like, and how many times 300 documents must hold it.
    let forms = [
        ("\")\n", 100),
        ("')\n", 100),
        ("]]\n", 50),
        ("[[", 50),
        (" = {", 100),
        (" = set(", 50),
        (" = str(", 50),
        (".add(", 50),
        ("current = set(", 20),
        ("current.add(", 20),
        ("current += ", 20),
        ("def __init__(self, ", 50),
        ("with open(", 50),
        ("return open(", 5),
        ("with (open(", 5),
        (" = open(", 5),
        ("\"r\") as ", 20),
        ("'w') as ", 12),
        ("=None):\n", 50),
        ("while ", 50),
        ("else:\n", 50),
        ("elif ", 50),
        ("(f\"", 25),
        ("(r\"", 5),
        (" else ", 50),
        ("    assert ", 50),
        ("lambda ", 50),
        ("():\n", 50),
        (" == ", 100),
        (" in enumerate(", 50),
        (" in range(", 100),
        (" == True:\n", 15),
        (" = True\n", 25),
        ("while True:\n", 25),
        ("return True\n", 25),
    ];
    let rare: Vec<(&str, usize)> = forms
        .into_iter()
        .map(|(form, least)| (form, least, text.matches(form).count()))
        .filter(|(_, least, times)| times < least)
        .map(|(form, _, times)| (form, times))
        .collect();
    assert!(rare.is_empty(), "{rare:?}");
}
