//! Which file of `src` uses which, read from their paths: `use` declarations and paths in code, followed through
//! re-exports to the file that has the item. Tests are left out.
//!
//! A `mod.rs` that re-exports an item of a child does not use the child; one whose own code uses the item does.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Item, ItemUse, UseTree, Visibility};

use crate::Source;

/// A path from the root of the crate, without `crate`.
type Path = Vec<String>;

/// What a file says of other files, not yet resolved.
#[derive(Default)]
struct Module {
    file: String,
    /// Its child modules, whether files or inline.
    children: BTreeSet<String>,
    /// Names that it re-exports, each with where it comes from.
    exported: BTreeMap<String, Path>,
    /// Modules of which it re-exports everything.
    exported_whole: Vec<Path>,
    /// Names that it imports for itself.
    imported: BTreeMap<String, Path>,
    /// Names that it declares.
    declared: BTreeSet<String>,
    /// Paths in its code, with their lines.
    paths: Vec<(Path, usize)>,
}

/// All modules of the crate by their paths.
pub struct Crate {
    modules: BTreeMap<Path, Module>,
}

/// One file's use of another: the line where it stands first and the path as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    pub line: usize,
    pub path: String,
}

/// For every file the files that it uses.
pub type Uses = BTreeMap<String, BTreeMap<String, Use>>;

/// The path of the module that a file is: `src/models/tap.rs` is `models::tap`.
fn module_of(path: &str) -> Path {
    let path = path.strip_prefix("src/").unwrap_or(path);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let path = path.strip_suffix("/mod").unwrap_or(path);
    match path {
        "lib" => Vec::new(),
        path => path.split('/').map(str::to_owned).collect(),
    }
}

/// Whether an item is compiled for tests only.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.to_token_stream().to_string().contains("test")
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn declared_name(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

/// The paths that a `use` names, each with the name it gets; none for everything of a module.
fn used(tree: &UseTree, before: &Path, found: &mut Vec<(Path, Option<String>)>) {
    match tree {
        UseTree::Path(path) => {
            let mut longer = before.clone();
            longer.push(path.ident.to_string());
            used(&path.tree, &longer, found);
        }
        UseTree::Name(name) if name.ident == "self" => {
            found.push((before.clone(), before.last().cloned()));
        }
        UseTree::Name(name) => {
            let mut path = before.clone();
            path.push(name.ident.to_string());
            found.push((path, Some(name.ident.to_string())));
        }
        UseTree::Rename(rename) => {
            let mut path = before.clone();
            if rename.ident != "self" {
                path.push(rename.ident.to_string());
            }
            found.push((path, Some(rename.rename.to_string())));
        }
        UseTree::Glob(_) => found.push((before.clone(), None)),
        UseTree::Group(group) => {
            for tree in &group.items {
                used(tree, before, found);
            }
        }
    }
}

/// The paths in code: names joined by `::`, and single names.
fn paths_in(tokens: TokenStream, found: &mut Vec<(Path, usize)>) {
    let mut current: Option<(Path, usize)> = None;
    let (mut colons, mut dotted) = (0, false);
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                let line = ident.span().start().line;
                match &mut current {
                    Some((path, _)) if colons == 2 => path.push(ident.to_string()),
                    _ => {
                        found.extend(current.take());
                        // A field or a method is no path, and `$crate` is one.
                        if !dotted {
                            current = Some((vec![ident.to_string()], line));
                        }
                    }
                }
                (colons, dotted) = (0, false);
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            TokenTree::Group(group) => {
                found.extend(current.take());
                (colons, dotted) = (0, false);
                paths_in(group.stream(), found);
            }
            TokenTree::Punct(punct) => {
                found.extend(current.take());
                (colons, dotted) = (0, punct.as_char() == '.');
            }
            TokenTree::Literal(_) => {
                found.extend(current.take());
                (colons, dotted) = (0, false);
            }
        }
    }
    found.extend(current);
}

impl Crate {
    /// Reads the files of `src`.
    pub fn read(sources: &[Source]) -> Self {
        let mut found = Crate {
            modules: BTreeMap::new(),
        };
        let mut for_tests = BTreeSet::new();
        for source in sources.iter().filter(|source| source.path != "src/main.rs") {
            let parsed = syn::parse_file(&source.text)
                .unwrap_or_else(|error| panic!("{}: {error}", source.path));
            let module = module_of(&source.path);
            found.add(&source.path, module, parsed.items, &mut for_tests);
        }
        found
            .modules
            .retain(|path, _| !(0..=path.len()).any(|length| for_tests.contains(&path[..length])));
        found
    }

    fn add(&mut self, file: &str, path: Path, items: Vec<Item>, for_tests: &mut BTreeSet<Path>) {
        let mut module = Module {
            file: file.to_owned(),
            ..Module::default()
        };
        let mut uses = Vec::new();
        for item in items {
            let child = |name: &syn::Ident| {
                let mut child = path.clone();
                child.push(name.to_string());
                child
            };
            if is_for_tests(attributes(&item)) {
                if let Item::Mod(item) = &item {
                    for_tests.insert(child(&item.ident));
                }
                continue;
            }
            module.declared.extend(declared_name(&item));
            match item {
                Item::Mod(item) => {
                    module.children.insert(item.ident.to_string());
                    if let Some((_, items)) = item.content {
                        self.add(file, child(&item.ident), items, for_tests);
                    }
                }
                Item::Use(item) => uses.push(item),
                other => paths_in(other.to_token_stream(), &mut module.paths),
            }
        }
        for item in uses {
            module.add_use(&path, &item);
        }
        self.modules.insert(path, module);
    }

    /// Follows an absolute path to the file that has what it names.
    fn file_of(&self, path: &[String], depth: usize) -> Option<&str> {
        let mut at = Path::new();
        for (index, name) in path.iter().enumerate() {
            let module = self.modules.get(&at)?;
            if module.children.contains(name) {
                at.push(name.clone());
                continue;
            }
            let rest = &path[index + 1..];
            if depth > 0
                && let Some(from) = module.exported.get(name)
            {
                let through = [from.as_slice(), rest].concat();
                return self.file_of(&through, depth - 1).or(Some(&module.file));
            }
            if !module.declared.contains(name) && depth > 0 {
                for whole in &module.exported_whole {
                    let through = [whole.as_slice(), &path[index..]].concat();
                    let declares = |path: &Path| {
                        let module = self.modules.get(path);
                        module.is_some_and(|module| {
                            module.declared.contains(name) || module.exported.contains_key(name)
                        })
                    };
                    if declares(whole) {
                        return self.file_of(&through, depth - 1);
                    }
                }
            }
            return Some(&module.file);
        }
        self.modules.get(&at).map(|module| module.file.as_str())
    }

    /// Which file uses which.
    pub fn uses(&self) -> Uses {
        let mut uses = Uses::new();
        for (at, module) in &self.modules {
            let own = uses.entry(module.file.clone()).or_default();
            let mut note = |absolute: &Path, written: &Path, line: usize| {
                if let Some(file) = self.file_of(absolute, 8)
                    && file != module.file
                {
                    own.entry(file.to_owned()).or_insert_with(|| Use {
                        line,
                        path: written.join("::"),
                    });
                }
            };
            for (path, line) in &module.paths {
                // `pub(super)` names no item.
                if path.iter().all(|name| name == "super") {
                    continue;
                }
                if let Some(absolute) = module.absolute(at, path) {
                    note(&absolute, path, *line);
                }
            }
        }
        uses
    }
}

impl Module {
    fn add_use(&mut self, at: &Path, item: &ItemUse) {
        let mut found = Vec::new();
        used(&item.tree, &Path::new(), &mut found);
        let is_exported = !matches!(item.vis, Visibility::Inherited);
        let line = item.use_token.span.start().line;
        for (path, name) in found {
            let Some(absolute) = self.absolute(at, &path) else {
                continue;
            };
            match name {
                Some(name) if is_exported => {
                    // A macro's export names the macro itself.
                    if absolute != [at.as_slice(), std::slice::from_ref(&name)].concat() {
                        self.exported.insert(name, absolute);
                    }
                }
                Some(name) => {
                    // Traits are used without being named again.
                    let is_module = name.starts_with(|c: char| c.is_lowercase());
                    self.imported.insert(name, absolute);
                    if !is_module {
                        self.paths.push((path, line));
                    }
                }
                None if is_exported => self.exported_whole.push(absolute),
                None => self
                    .paths
                    .push(([path, vec!["*".to_owned()]].concat(), line)),
            }
        }
    }

    /// A path as it is written in this module, from the root of the crate; none for other crates' and local names.
    fn absolute(&self, at: &Path, path: &[String]) -> Option<Path> {
        let first = path.first()?;
        let rest = &path[1..];
        let from = match first.as_str() {
            "crate" => Path::new(),
            "self" if !rest.is_empty() => at.clone(),
            "super" => {
                let ups = path.iter().take_while(|name| *name == "super").count();
                let base = at.get(..at.len().checked_sub(ups)?)?.to_vec();
                return Some([base.as_slice(), &path[ups..]].concat());
            }
            name if self.children.contains(name) => {
                return Some([at.as_slice(), path].concat());
            }
            name => match self.imported.get(name).or(self.exported.get(name)) {
                Some(imported) => imported.clone(),
                None => return None,
            },
        };
        Some([from.as_slice(), rest].concat())
    }
}

/// The groups of files that use one another in a circle, each with its uses.
pub fn circles(uses: &Uses) -> Vec<BTreeSet<&str>> {
    fn reach<'u>(uses: &'u Uses, from: &'u str) -> BTreeSet<&'u str> {
        let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(file) = next.pop() {
            for used in uses.get(file).into_iter().flat_map(BTreeMap::keys) {
                if reached.insert(used.as_str()) {
                    next.push(used);
                }
            }
        }
        reached
    }
    let reached: BTreeMap<&str, BTreeSet<&str>> = uses
        .keys()
        .map(|file| (file.as_str(), reach(uses, file)))
        .collect();
    let mut circles: Vec<BTreeSet<&str>> = Vec::new();
    for (file, others) in &reached {
        let circle: BTreeSet<&str> = others
            .iter()
            .copied()
            .filter(|other| {
                reached
                    .get(other)
                    .is_some_and(|theirs| theirs.contains(file))
            })
            .collect();
        if !circle.is_empty() && !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

/// One circle as text: every use that belongs to it.
pub fn told(uses: &Uses, circle: &BTreeSet<&str>) -> String {
    let mut text = format!("a circle of {} files:\n", circle.len());
    for file in circle {
        for (used, at) in &uses[*file] {
            if circle.contains(used.as_str()) {
                text += &format!("  {file}:{} uses {used} by {}\n", at.line, at.path);
            }
        }
    }
    text
}

fn source(path: &str, text: &str) -> Source {
    Source {
        path: path.to_owned(),
        text: text.to_owned(),
    }
}

#[test]
fn uses_are_found_however_they_are_written() {
    let uses = Crate::read(&[
        source("src/lib.rs", "pub mod a; pub mod b;"),
        source(
            "src/a/mod.rs",
            "pub mod x; pub mod y; pub use x::Thing; pub mod z;",
        ),
        source("src/a/x.rs", "pub struct Thing; fn f() { super::y::g() }"),
        source(
            "src/a/y.rs",
            "use crate::b; pub fn g() { b::h(vec![super::z::k()]) }",
        ),
        source(
            "src/a/z.rs",
            "pub fn k() {} #[cfg(test)] mod tests { use super::super::x::Thing; }",
        ),
        source(
            "src/b.rs",
            "use crate::a::{Thing, z}; pub fn h(_: Thing) { let x = 1; x.y.z::<u8>(); }",
        ),
    ])
    .uses();
    let of = |file: &str| uses[file].keys().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(of("src/lib.rs"), [""; 0]);
    assert_eq!(of("src/a/mod.rs"), [""; 0]);
    assert_eq!(of("src/a/x.rs"), ["src/a/y.rs"]);
    assert_eq!(of("src/a/y.rs"), ["src/a/z.rs", "src/b.rs"]);
    assert_eq!(of("src/a/z.rs"), [""; 0]);
    assert_eq!(of("src/b.rs"), ["src/a/x.rs"]);
}

#[test]
fn a_circle_is_found_through_any_number_of_files() {
    let uses = Crate::read(&[
        source("src/lib.rs", "pub mod a; pub mod b; pub mod c; pub mod d;"),
        source("src/a.rs", "use crate::b::B; pub struct A;"),
        source("src/b.rs", "use crate::c::C; pub struct B;"),
        source("src/c.rs", "pub struct C; fn f() -> crate::a::A { todo() }"),
        source("src/d.rs", "use crate::a::A;"),
    ])
    .uses();
    let found = circles(&uses);
    assert_eq!(found.len(), 1);
    let files: Vec<_> = found[0].iter().copied().collect();
    assert_eq!(files, ["src/a.rs", "src/b.rs", "src/c.rs"]);
    let parent = Crate::read(&[
        source("src/lib.rs", "pub mod a;"),
        source(
            "src/a/mod.rs",
            "pub mod x; pub use x::X; pub struct Y; fn f() -> X { X }",
        ),
        source("src/a/x.rs", "pub struct X(super::Y);"),
    ])
    .uses();
    assert_eq!(
        circles(&parent).len(),
        1,
        "a parent that uses what it exports"
    );
}
