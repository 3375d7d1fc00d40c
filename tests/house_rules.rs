//! The rules of the house as tests: which module may use which, how files begin and end, what they are called,
//! and what stands at the repository's root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "house_rules/imports.rs"]
mod imports;
#[path = "house_rules/names.rs"]
mod names;

/// Every module at the top of `src` with its layer. A module uses those of lower layers and of its own.
const LAYERS: [(&str, u32); 26] = [
    ("documented", 0),
    ("objects_only", 0),
    ("numerics", 0),
    ("artifacts", 0),
    ("memory", 0),
    ("plot", 0),
    ("tls", 0),
    ("corpus", 0),
    ("models", 1),
    ("tasks", 1),
    ("bridge", 2),
    ("circuits", 2),
    ("features", 2),
    ("interventions", 3),
    ("discovery", 4),
    ("generation", 4),
    ("training", 4),
    ("evaluation", 5),
    ("pruning", 5),
    ("settings", 5),
    ("hub", 5),
    ("jobs", 5),
    ("serving", 5),
    ("telemetry", 5),
    ("api", 6),
    ("cli", 7),
];
/// Modules of a lower or the same layer that a module must all the same do without.
const APART: [(&str, &[&str]); 9] = [
    ("numerics", &["artifacts", "corpus"]),
    ("artifacts", &["numerics", "corpus"]),
    ("corpus", &["numerics", "artifacts"]),
    (
        "plot",
        &["numerics", "artifacts", "memory", "tls", "corpus"],
    ),
    ("tasks", &["numerics", "artifacts", "models"]),
    (
        "training",
        &["interventions", "features", "discovery", "generation"],
    ),
    ("generation", &["training", "discovery"]),
    ("discovery", &["training", "generation"]),
    ("bridge", &["features"]),
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

    /// Whether all of it is for tests.
    fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name == "tests.rs" || name.starts_with("test_") || self.path.contains("/tests/")
    }

    /// The lines that are shipped: without comments and without the tests at the file's end.
    fn shipped_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = match self.is_test() {
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
const FILES_THROUGH_ARTIFACTS: [&str; 9] = [
    "models",
    "tasks",
    "bridge",
    "interventions",
    "features",
    "discovery",
    "generation",
    "serving",
    "hub",
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

/// Every name of a type, or of a schema, with the files that declare it.
fn files_by_name(
    name: impl Fn(&names::Declared) -> Option<String>,
) -> BTreeMap<String, Vec<String>> {
    let mut files = BTreeMap::<String, Vec<String>>::new();
    for source in sources(&["src"]).iter().filter(|source| !source.is_test()) {
        for declared in names::declared(&source.text) {
            if let Some(name) = name(&declared) {
                files.entry(name).or_default().push(source.path.clone());
            }
        }
    }
    files
}

#[test]
fn every_schema_of_the_document_is_of_one_type() {
    let files = files_by_name(|declared| declared.schema.clone());
    assert!(files.len() > 100, "{} schemas", files.len());
    for (name, files) in files {
        assert_eq!(files.len(), 1, "the schema {name} is declared in {files:?}");
    }
}

/// Names that two types still share. No other may, and one that is of one type leaves this list.
const SHARED_NAMES: [&str; 24] = [
    "Arm",
    "Bridge",
    "Change",
    "ChannelEffect",
    "Contrast",
    "End",
    "GroupStep",
    "Job",
    "JobList",
    "Keys",
    "Metrics",
    "ModelKind",
    "Order",
    "Outcome",
    "Part",
    "Plan",
    "Progress",
    "Role",
    "Route",
    "Source",
    "Step",
    "StoreError",
    "Stream",
    "Style",
];

#[test]
fn no_two_types_have_one_name() {
    let files = files_by_name(|declared| Some(declared.name.clone()));
    for (name, files) in &files {
        let is_shared = files.len() > 1;
        let is_listed = SHARED_NAMES.contains(&name.as_str());
        assert_eq!(is_shared, is_listed, "{name}: {}", files.join(", "));
    }
    assert!(SHARED_NAMES.iter().all(|name| files.contains_key(*name)));
}

#[test]
fn no_files_use_one_another_in_a_circle() {
    let sources = sources(&["src"]);
    let uses = imports::Crate::read(&sources).uses();
    let circles = imports::circles(&uses);
    let told: Vec<String> = circles
        .iter()
        .map(|circle| imports::told(&uses, circle))
        .collect();
    assert!(circles.is_empty(), "{}", told.join("\n"));
}
