//! The rules of the house as tests: which module may use which, how files begin and end, what they are called,
//! and what stands at the repository's root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every module at the top of `src` with its layer. A module uses those of lower layers and of its own.
const LAYERS: [(&str, u32); 20] = [
    ("numerics", 0),
    ("artifacts", 0),
    ("memory", 0),
    ("plot", 0),
    ("tls", 0),
    ("corpus", 0),
    ("models", 1),
    ("tasks", 1),
    ("bridge", 2),
    ("interventions", 3),
    ("features", 3),
    ("generation", 4),
    ("training", 4),
    ("evaluation", 5),
    ("settings", 5),
    ("jobs", 5),
    ("serving", 5),
    ("telemetry", 5),
    ("api", 6),
    ("cli", 7),
];
/// Modules of a lower or the same layer that a module must all the same do without.
const APART: [(&str, &[&str]); 7] = [
    ("numerics", &["artifacts", "corpus"]),
    ("artifacts", &["numerics", "corpus"]),
    ("corpus", &["numerics", "artifacts"]),
    (
        "plot",
        &["numerics", "artifacts", "memory", "tls", "corpus"],
    ),
    ("tasks", &["numerics", "artifacts", "models"]),
    ("training", &["interventions", "features", "generation"]),
    ("generation", &["training"]),
];
const LONGEST_FILE: usize = 600;
/// What may stand at the root, besides dot-files.
const AT_ROOT: [&str; 13] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "src",
    "bridges",
    "openapi",
    "configs",
    "tests",
    "docker",
    "benches",
    "docs",
    "LICENSE",
    "CHANGELOG.md",
];
/// Names that say nothing of what is inside.
const EMPTY_NAMES: [&str; 8] = [
    "utils", "util", "common", "helpers", "helper", "manager", "misc", "shared",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// One Rust file: its path from the root with `/`, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The module at the top of `src` that the file belongs to; none for `lib.rs`, `main.rs` and tests.
    fn module(&self) -> Option<&str> {
        let (module, _) = self.path.strip_prefix("src/")?.split_once('/')?;
        Some(module)
    }

    /// The lines that are shipped: without comments and without the tests at the file's end.
    fn shipped_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let is_test_file =
            name == "tests.rs" || name.starts_with("test_") || self.path.contains("/tests/");
        let end = match is_test_file {
            true => 0,
            false => self
                .text
                .find("#[cfg(test)]\nmod tests {")
                .unwrap_or(self.text.len()),
        };
        let lines = self.text[..end].lines().enumerate();
        lines
            .map(|(index, line)| (index + 1, line))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

fn sources(directories: &[&str]) -> Vec<Source> {
    fn collect(directory: &Path, found: &mut Vec<Source>) {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a file of text");
                let path = path.strip_prefix(root()).expect("a path below the root");
                let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
                found.push(Source {
                    path: parts.join("/"),
                    text,
                });
            }
        }
    }
    let mut found = Vec::new();
    for directory in directories {
        collect(&root().join(directory), &mut found);
    }
    assert!(
        found.len() >= directories.len(),
        "no sources in {directories:?}"
    );
    found
}

fn layer(module: &str) -> Option<u32> {
    LAYERS
        .iter()
        .find(|(name, _)| *name == module)
        .map(|&(_, layer)| layer)
}

/// The top modules that a line of code names after `crate::`, alone or in braces.
fn used_modules(line: &str) -> Vec<&str> {
    let name = |text: &str| {
        text.find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(text.len())
    };
    let mut used = Vec::new();
    for (start, _) in line.match_indices("crate::") {
        // `$crate::` and `other_crate::` are something else.
        if line[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &line[start + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 0;
                for part in group.split(',') {
                    let part_name = part.trim_start();
                    if depth == 0 {
                        used.push(&part_name[..name(part_name)]);
                    }
                    depth += part.matches('{').count() as i32 - part.matches('}').count() as i32;
                }
            }
            None => used.push(&rest[..name(rest)]),
        }
    }
    used.retain(|name| !name.is_empty());
    used
}

#[test]
fn used_modules_are_found_however_they_are_written() {
    assert_eq!(used_modules("use crate::models::tap::NoTap;"), ["models"]);
    assert_eq!(
        used_modules("use crate::{numerics::rows, models::{tap, mlp}, bridge};"),
        ["numerics", "models", "bridge"]
    );
    assert_eq!(
        used_modules("let x: crate::tasks::Task = crate::corpus::draw();"),
        ["tasks", "corpus"]
    );
    assert!(used_modules("use my_crate::models;").is_empty());
}

#[test]
fn a_lower_layer_never_uses_a_higher_one() {
    let mut seen = BTreeSet::new();
    for source in sources(&["src"]) {
        let Some(module) = source.module() else {
            continue;
        };
        seen.insert(module.to_owned());
        let own =
            layer(module).unwrap_or_else(|| panic!("{}: {module} has no layer yet", source.path));
        let apart = APART
            .iter()
            .find(|(name, _)| *name == module)
            .map_or(&[] as &[&str], |(_, apart)| *apart);
        for (number, line) in source.text.lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for used in used_modules(line) {
                let place = format!("{}:{}: {module} uses {used}", source.path, number + 1);
                let theirs = layer(used).unwrap_or_else(|| panic!("{place}, which has no layer"));
                assert!(theirs <= own, "{place} of a higher layer");
                assert!(
                    !apart.contains(&used),
                    "{place}; the two are to know nothing of each other"
                );
            }
        }
    }
    // Modules join as they are written; the oldest must be here, or nothing was read.
    for module in ["numerics", "models", "training", "cli"] {
        assert!(seen.contains(module), "{module} was not read");
    }
}

#[test]
fn only_the_interface_knows_http() {
    for source in sources(&["src"]) {
        if matches!(source.module(), Some("api" | "cli")) || source.path == "src/main.rs" {
            continue;
        }
        for (number, line) in source.shipped_lines() {
            assert!(!line.contains("actix"), "{}:{number}: {line}", source.path);
        }
    }
}

/// Modules that get at files through `artifacts` alone.
const FILES_THROUGH_ARTIFACTS: [&str; 7] = [
    "models",
    "tasks",
    "bridge",
    "interventions",
    "features",
    "generation",
    "serving",
];

#[test]
fn only_artifacts_opens_files_of_weights_and_knows_their_formats() {
    let opening = [
        "File::open",
        "File::create",
        "OpenOptions",
        "fs::read(",
        "fs::read_to_string",
    ];
    let formats = ["safetensors::", "from_raw_buffer", "VarBuilder"];
    let mut known_to_artifacts = 0;
    for source in sources(&["src"]) {
        let Some(module) = source.module() else {
            continue;
        };
        for (number, line) in source.shipped_lines() {
            let place = format!("{}:{number}: {line}", source.path);
            let knows_format = formats.iter().any(|format| line.contains(format));
            if module == "artifacts" {
                known_to_artifacts += usize::from(knows_format);
                continue;
            }
            assert!(!knows_format, "{place} knows a format of weights");
            let opens = FILES_THROUGH_ARTIFACTS.contains(&module)
                && opening.iter().any(|opening| line.contains(opening));
            assert!(!opens, "{place} opens a file");
        }
    }
    assert!(known_to_artifacts > 0, "the formats are called otherwise");
}

/// Modules some of whose files still use each other in circles. No other may, and one that has none any more leaves
/// this list.
const WITH_CIRCLES: [&str; 4] = ["api", "cli", "evaluation", "jobs"];

/// The paths that a use tree or an expression names: `a::{b, c::d}` gives `a::b` and `a::c::d`. `text` begins after
/// `crate::`, `super::` or `self::`.
fn named_paths(text: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut path: Vec<String> = Vec::new();
    let mut depths = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if end > 0 {
            path.push(rest[..end].to_owned());
            rest = &rest[end..];
            if let Some(next) = rest.strip_prefix("::") {
                rest = next;
                continue;
            }
            paths.push(path.clone());
            // What a name is called here.
            if let Some((_, after)) = rest.trim_start().strip_prefix("as ").and_then(|renamed| {
                renamed.split_at_checked(renamed.find([',', ';', '}']).unwrap_or(renamed.len()))
            }) {
                rest = after;
            }
        } else if let Some(next) = rest.strip_prefix('{') {
            depths.push(path.len());
            rest = next;
            continue;
        }
        // After a name: the next of the group that it stands in, or the end.
        loop {
            rest = rest.trim_start();
            let Some(&depth) = depths.last() else {
                return paths;
            };
            path.truncate(depth);
            if let Some(next) = rest.strip_prefix(',') {
                rest = next;
                break;
            }
            match rest.strip_prefix('}') {
                Some(next) => {
                    depths.pop();
                    rest = next;
                }
                None => return paths,
            }
        }
    }
}

#[test]
fn paths_are_found_however_they_are_written() {
    let found = |text| {
        let paths = named_paths(text).into_iter();
        paths.map(|path| path.join("::")).collect::<Vec<_>>()
    };
    assert_eq!(found("models::tap::NoTap;"), ["models::tap::NoTap"]);
    assert_eq!(found("models::draw(x, y)"), ["models::draw"]);
    assert_eq!(
        found("a::{b, c::{D, E as F}, self,};"),
        ["a::b", "a::c::D", "a::c::E", "a::self"]
    );
    assert_eq!(found("{a::B, c};"), ["a::B", "c"]);
}

/// The files of `sources` that each of them uses, by their module paths such as `models::tap`.
fn uses(sources: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let module_of = |source: &Source| {
        let path = source
            .path
            .trim_start_matches("src/")
            .trim_end_matches(".rs");
        path.trim_end_matches("/mod").replace('/', "::")
    };
    let modules: BTreeSet<String> = sources.iter().map(module_of).collect();
    let mut used = BTreeMap::new();
    for source in sources {
        let own = module_of(source);
        // What a module passes on is not used by itself.
        let lines = source.shipped_lines().map(|(_, line)| line);
        let text: Vec<&str> = lines.filter(|line| !line.starts_with("pub use")).collect();
        let text = text.join(" ");
        let of_own: &mut BTreeSet<String> = used.entry(own.clone()).or_default();
        for (start, root) in ["crate::", "super::", "self::"]
            .into_iter()
            .flat_map(|root| text.match_indices(root))
        {
            let before = &text[..start];
            if before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let mut rest = &text[start..];
            let mut base: Vec<&str> = match root {
                "crate::" => Vec::new(),
                _ => own.split("::").collect(),
            };
            rest = rest.strip_prefix("crate::").unwrap_or(rest);
            rest = rest.strip_prefix("self::").unwrap_or(rest);
            while let Some(above) = rest.strip_prefix("super::") {
                base.pop();
                rest = above;
            }
            for path in named_paths(rest) {
                let full: Vec<&str> = base
                    .iter()
                    .copied()
                    .chain(path.iter().map(String::as_str))
                    .collect();
                let named = (1..=full.len())
                    .rev()
                    .map(|length| full[..length].join("::"));
                let file = named.into_iter().find(|name| modules.contains(name));
                of_own.extend(file.filter(|file| *file != own));
            }
        }
    }
    used
}

#[test]
fn files_do_not_use_each_other_in_circles() {
    let used = uses(&sources(&["src"]));
    // What a file uses, at however many removes.
    let reached = |from: &String| {
        let mut reached = BTreeSet::new();
        let mut next = vec![from];
        while let Some(file) = next.pop() {
            for file in used.get(file).into_iter().flatten() {
                if reached.insert(file) {
                    next.push(file);
                }
            }
        }
        reached
    };
    let mut with_circles = BTreeSet::new();
    for file in used.keys().filter(|file| reached(file).contains(file)) {
        let others = reached(file).into_iter();
        let circle: Vec<_> = others
            .filter(|other| *other != file && reached(other).contains(file))
            .collect();
        let module = file.split("::").next().unwrap_or(file);
        assert!(
            WITH_CIRCLES.contains(&module),
            "{file} is in a circle with {circle:?}"
        );
        with_circles.insert(module);
    }
    for module in WITH_CIRCLES {
        assert!(
            with_circles.contains(module),
            "{module} has no circles any more: take it out of WITH_CIRCLES"
        );
    }
    // Else nothing was found at all.
    assert!(used["models::transformer"].contains("models::attention"));
    assert!(used["artifacts::tensors"].contains("artifacts::atomic"));
}

#[test]
fn every_file_opens_by_saying_what_it_is() {
    for source in sources(&["src", "tests", "benches"]) {
        assert!(
            source.text.starts_with("//! "),
            "{} does not open with //!",
            source.path
        );
    }
}

#[test]
fn no_file_is_long() {
    for source in sources(&["src", "tests", "benches"]) {
        let lines = source.text.lines().count();
        assert!(
            lines <= LONGEST_FILE,
            "{} has {lines} lines; {LONGEST_FILE} are the most",
            source.path
        );
    }
}

#[test]
fn no_name_is_empty_of_meaning() {
    for source in sources(&["src", "tests", "benches"]) {
        for part in source.path.split('/') {
            let stem = part.strip_suffix(".rs").unwrap_or(part);
            assert!(
                !EMPTY_NAMES.contains(&stem),
                "{}: {stem} says nothing",
                source.path
            );
        }
    }
}

#[test]
fn shipped_code_neither_panics_for_convenience_nor_is_unfinished() {
    for source in sources(&["src"]) {
        for (number, line) in source.shipped_lines() {
            for shortcut in [".unwrap()", ".expect(", "todo!", "unimplemented!", "dbg!"] {
                assert!(!line.contains(shortcut), "{}:{number}: {line}", source.path);
            }
        }
    }
}

#[test]
fn no_test_is_switched_off() {
    // In two pieces, so that this line is not one itself.
    let attribute = concat!("#[", "ignore");
    for source in sources(&["src", "tests", "benches"]) {
        assert!(
            !source.text.contains(attribute),
            "{} has a test that is switched off",
            source.path
        );
    }
}

#[test]
fn only_what_belongs_there_stands_at_the_root() {
    let listed = Command::new("git")
        .args(["ls-files"])
        .current_dir(root())
        .output();
    let tracked = listed
        .ok()
        .filter(|output| output.status.success() && !output.stdout.is_empty());
    let names: BTreeSet<String> = match tracked {
        Some(output) => {
            let text = String::from_utf8(output.stdout).expect("paths in UTF-8");
            text.lines()
                .map(|path| path.split('/').next().unwrap_or(path).to_owned())
                .collect()
        }
        // Without git: everything there but what a build and a training leave behind.
        None => {
            let entries = fs::read_dir(root())
                .expect("the root")
                .map(|entry| entry.expect("an entry").file_name());
            let names = entries.map(|name| name.to_string_lossy().into_owned());
            names
                .filter(|name| !["target", "runs"].contains(&name.as_str()))
                .collect()
        }
    };
    assert!(names.contains("Cargo.toml"), "{names:?}");
    for name in names {
        assert!(
            name.starts_with('.') || AT_ROOT.contains(&name.as_str()),
            "{name} does not belong at the root"
        );
    }
}
