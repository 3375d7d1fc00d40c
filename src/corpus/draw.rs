//! Random choices that a program is made of: names, numbers, phrases, quotes and small expressions.
//!
//! [`Draw`] carries the random stream, the split (which decides the words), the style of the text
//! being written, and the names that the program has defined so far, so that later lines refer to
//! earlier ones. Every choice goes through 32-bit draws: the text must not depend on the width of
//! `usize`.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::split::Split;
use super::words::{LETTERS, NOUNS, PROSE, Pool, SUFFIXES, VERBS};

/// How one text is written. Drawn once per text, as people keep to one habit in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// How often a string takes single quotes.
    single_quotes: f64,
    /// How often a statement is preceded by a comment.
    pub(crate) comments: f64,
    /// How often a function has a docstring.
    pub(crate) docstrings: f64,
    /// Blank lines between top-level pieces.
    pub(crate) blank_lines: usize,
}

/// The random stream of one text, with what that text has settled so far.
pub(crate) struct Draw<'r> {
    rng: &'r mut ChaCha8Rng,
    split: Split,
    /// The habits of the text being written.
    pub(crate) style: Style,
    scope: Vec<String>,
}

impl<'r> Draw<'r> {
    /// Starts a text: draws its style, with no name defined yet.
    pub(crate) fn new(rng: &'r mut ChaCha8Rng, split: Split) -> Self {
        // Symmetric in the two quotes, and half of the texts mix them evenly: the closing quote
        // must be read from the opening one, not guessed from the file.
        let single_quotes = [0.5, 0.5, 0.2, 0.8][rng.random_range(0..4u32) as usize];
        let style = Style {
            single_quotes,
            comments: [0.0, 0.1, 0.25][rng.random_range(0..3u32) as usize],
            docstrings: [0.0, 0.3][rng.random_range(0..2u32) as usize],
            blank_lines: rng.random_range(1..3u32) as usize,
        };
        Self {
            rng,
            split,
            style,
            scope: Vec::new(),
        }
    }

    /// True with the given probability.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.rng.random_bool(probability)
    }

    /// A whole number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u32, high: u32) -> usize {
        self.rng.random_range(low..=high) as usize
    }

    /// One element of a list that is not empty.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.rng.random_range(0..choices.len() as u32) as usize]
    }

    /// Both values, in random order.
    pub(crate) fn either_order<T>(&mut self, first: T, second: T) -> (T, T) {
        if self.chance(0.5) {
            (first, second)
        } else {
            (second, first)
        }
    }

    fn word(&mut self, pool: &Pool) -> &'static str {
        let words = if self.chance(0.45) {
            pool.shared()
        } else {
            pool.own(self.split)
        };
        self.pick(words)
    }

    /// A bare noun.
    pub(crate) fn noun(&mut self) -> &'static str {
        self.word(&NOUNS)
    }

    /// A bare verb.
    pub(crate) fn verb(&mut self) -> &'static str {
        self.word(&VERBS)
    }

    /// What follows a noun and an underscore.
    pub(crate) fn suffix(&mut self) -> &'static str {
        self.pick(SUFFIXES)
    }

    /// A variable's name, not put in scope.
    pub(crate) fn name(&mut self) -> String {
        match self.between(0, 9) {
            0..=5 => self.noun().to_owned(),
            6..=7 => format!("{}_{}", self.noun(), self.suffix()),
            _ => self.pick(LETTERS).to_owned(),
        }
    }

    /// Names that differ from each other.
    pub(crate) fn distinct_names(&mut self, how_many: usize) -> Vec<String> {
        let mut names: Vec<String> = Vec::with_capacity(how_many);
        while names.len() < how_many {
            let name = self.name();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Bare nouns that differ from each other.
    pub(crate) fn distinct_nouns(&mut self, how_many: usize) -> Vec<&'static str> {
        let mut nouns: Vec<&'static str> = Vec::with_capacity(how_many);
        while nouns.len() < how_many {
            let noun = self.noun();
            if !nouns.contains(&noun) {
                nouns.push(noun);
            }
        }
        nouns
    }

    /// A collection's name.
    pub(crate) fn plural(&mut self) -> String {
        format!("{}s", self.noun())
    }

    /// A function's name: `merge_tickets`, `merge` or, rarely, a noun.
    pub(crate) fn function_name(&mut self) -> String {
        match self.between(0, 9) {
            0..=3 => format!("{}_{}", self.verb(), self.noun()),
            4..=5 => format!("{}_{}s", self.verb(), self.noun()),
            6..=8 => self.verb().to_owned(),
            _ => self.noun().to_owned(),
        }
    }

    /// A class's name.
    pub(crate) fn class_name(&mut self) -> String {
        let noun = capitalised(self.noun());
        if self.chance(0.3) {
            noun + self.pick(&["List", "Store", "Reader", "Base"])
        } else {
            noun
        }
    }

    /// Remembers a name that the program now has.
    pub(crate) fn define(&mut self, name: &str) {
        self.scope.push(name.to_owned());
    }

    /// How many names are defined: pass it to [`Draw::leave`] at the end of a body.
    pub(crate) fn enter(&self) -> usize {
        self.scope.len()
    }

    /// Forgets the names defined since `mark`.
    pub(crate) fn leave(&mut self, mark: usize) {
        self.scope.truncate(mark);
    }

    /// A name in scope, mostly a recent one; a new one if there is none.
    pub(crate) fn known(&mut self) -> String {
        if self.scope.is_empty() || self.chance(0.2) {
            return self.name();
        }
        let depth = self.between(0, 5).min(self.scope.len() - 1);
        self.scope[self.scope.len() - 1 - depth].clone()
    }

    /// A number as text, small ones most often.
    pub(crate) fn number(&mut self) -> String {
        let number = match self.between(0, 9) {
            0..=5 => self.between(0, 9),
            6..=8 => self.between(10, 99),
            _ => self.between(100, 999),
        };
        number.to_string()
    }

    /// Words joined by spaces.
    pub(crate) fn phrase(&mut self, fewest: u32, most: u32) -> String {
        let length = self.between(fewest, most);
        let words: Vec<&str> = (0..length)
            .map(|_| {
                if self.chance(0.3) {
                    self.noun()
                } else {
                    self.word(&PROSE)
                }
            })
            .collect();
        words.join(" ")
    }

    /// A quote character, by the text's habit.
    pub(crate) fn quote(&mut self) -> char {
        if self.chance(self.style.single_quotes) {
            '\''
        } else {
            '"'
        }
    }

    /// The text in quotes.
    pub(crate) fn quoted(&mut self, text: &str) -> String {
        let quote = self.quote();
        format!("{quote}{text}{quote}")
    }

    /// A name in scope or a number.
    pub(crate) fn atom(&mut self) -> String {
        if self.chance(0.6) {
            self.known()
        } else {
            self.number()
        }
    }

    /// A short expression on one line.
    pub(crate) fn expression(&mut self) -> String {
        match self.between(0, 9) {
            0..=3 => self.atom(),
            4..=5 => {
                let operator = self.pick(&["+", "-", "*", "/", "%"]);
                format!("{} {operator} {}", self.known(), self.atom())
            }
            6 => format!("len({})", self.plural()),
            7 => format!("{}({})", self.function_name(), self.known()),
            8 => format!("{}[{}]", self.plural(), self.atom()),
            _ => format!("{}.{}", self.known(), self.noun()),
        }
    }

    /// A condition that ends in a letter or a digit, so that what follows it starts a token of its
    /// own.
    pub(crate) fn condition(&mut self) -> String {
        match self.between(0, 9) {
            0..=1 => self.known(),
            2..=4 => {
                let operator = self.pick(&[">", "<", ">=", "<="]);
                format!("{} {operator} {}", self.known(), self.atom())
            }
            5 => format!("{} == {}", self.known(), self.atom()),
            6 => format!("{} != {}", self.known(), self.atom()),
            7 => format!("{} in {}", self.known(), self.plural()),
            8 => format!("not {}", self.known()),
            _ => format!("len({}) > {}", self.plural(), self.number()),
        }
    }

    /// Items joined by `, `, each made by `item`.
    pub(crate) fn series(
        &mut self,
        how_many: usize,
        mut item: impl FnMut(&mut Self) -> String,
    ) -> String {
        let items: Vec<String> = (0..how_many).map(|_| item(self)).collect();
        items.join(", ")
    }
}

/// The word with its first letter in upper case.
pub(crate) fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().collect::<String>() + letters.as_str(),
        None => String::new(),
    }
}
