//! The words that names and strings are made of.
//!
//! Every kind of word has three pools: one that both splits use, one that only training text uses
//! and one that only held-out text uses. A held-out word never occurs in training text (a test
//! reads documents to make sure), so that a feature found on training text is tried on names it was
//! never fitted to. All nouns form their plural with a plain `s`, and no word is a Python keyword.

use super::split::Split;

/// The three pools of one kind of word.
pub(crate) struct Pool {
    shared: &'static [&'static str],
    train: &'static [&'static str],
    held_out: &'static [&'static str],
}

impl Pool {
    /// The words that both splits may use.
    pub(crate) fn shared(&self) -> &'static [&'static str] {
        self.shared
    }

    /// The words that only `split` may use.
    pub(crate) fn own(&self, split: Split) -> &'static [&'static str] {
        match split {
            Split::Train => self.train,
            Split::HeldOut => self.held_out,
        }
    }
}

/// Things: variables, attributes, classes, and with an `s` collections.
pub(crate) const NOUNS: Pool = Pool {
    shared: &[
        "item", "value", "name", "count", "total", "score", "node", "user", "price", "size",
        "width", "height", "key", "line", "word", "text", "result", "point", "row", "order",
        "file", "number", "group", "state",
    ],
    train: &[
        "apple", "car", "ticket", "player", "team", "letter", "level", "color", "weight", "table",
        "record", "event", "message", "limit", "offset", "page", "token", "account", "cell",
        "step", "signal", "tag", "worker", "buffer", "parent", "student", "product", "option",
        "model", "job",
    ],
    held_out: &[
        "river", "castle", "garden", "planet", "violin", "bottle", "kitten", "anchor", "basket",
        "candle", "dragon", "engine", "falcon", "guitar", "harbor", "island", "jacket", "kettle",
        "lantern", "mirror", "needle", "pepper", "ribbon", "saddle", "temple", "valley", "window",
        "tower",
    ],
};

/// Actions: functions and methods.
pub(crate) const VERBS: Pool = Pool {
    shared: &[
        "get", "make", "find", "build", "check", "update", "run", "add", "show", "load",
    ],
    train: &[
        "merge", "filter", "scan", "clean", "pack", "reset", "move", "sort", "handle", "split",
        "process", "collect",
    ],
    held_out: &[
        "polish", "harvest", "gather", "steer", "weave", "carve", "paint", "climb", "plant",
        "shuffle",
    ],
};

/// What strings and comments say.
pub(crate) const PROSE: Pool = Pool {
    shared: &[
        "hello", "world", "ready", "done", "error", "start", "end", "found", "empty", "new",
        "good", "last",
    ],
    train: &[
        "green", "morning", "please", "invalid", "loading", "warning", "simple", "happy", "yellow",
        "failed", "thanks", "today", "missing", "closed", "first", "wrong", "finished", "red",
        "blue", "old",
    ],
    held_out: &[
        "purple", "thunder", "gentle", "velvet", "frozen", "golden", "quiet", "sunny", "winter",
        "welcome", "broken", "hidden", "silver", "autumn", "distant", "sudden",
    ],
};

/// What is hung on a noun with an underscore: `user_id`. Shared by both splits.
pub(crate) const SUFFIXES: &[&str] = &[
    "id", "name", "size", "path", "list", "type", "key", "map", "index", "count", "start", "end",
];

/// One-letter names, shared by both splits.
pub(crate) const LETTERS: &[&str] = &["a", "b", "c", "i", "j", "k", "m", "n", "p", "x", "y", "z"];

/// The modules that documents import, with one function of each.
pub(crate) const MODULES: &[(&str, &str)] = &[
    ("os", "getcwd"),
    ("sys", "exit"),
    ("math", "sqrt"),
    ("json", "loads"),
    ("random", "choice"),
    ("time", "sleep"),
    ("re", "match"),
    ("copy", "deepcopy"),
];
