//! The names of types: which file declares which, read from tokens, so that those inside macros count too. Tests are
//! left out.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A type that others can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub name: String,
    /// The name that its schema has in the API's document, if it has one.
    pub schema: Option<String>,
}

/// The public types of a file.
pub fn declared(text: &str) -> Vec<Declared> {
    let mut found = Vec::new();
    let tokens: TokenStream = text.parse().expect("Rust");
    collect(tokens, &mut found);
    found
}

fn collect(tokens: TokenStream, found: &mut Vec<Declared>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    // What stands before an item: its attributes and `pub`.
    let (mut attributes, mut is_public) = (Vec::<TokenStream>::new(), false);
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        index += 1;
        match token {
            TokenTree::Punct(punct) if matches!(punct.as_char(), '#' | '!') => {
                if let Some(TokenTree::Group(group)) = tokens.get(index)
                    && group.delimiter() == Delimiter::Bracket
                {
                    attributes.push(group.stream());
                    index += 1;
                }
            }
            TokenTree::Ident(word) if word == "pub" => is_public = true,
            TokenTree::Ident(word)
                if ["struct", "enum", "trait", "type", "union"]
                    .iter()
                    .any(|kind| word == kind) =>
            {
                if let Some(TokenTree::Ident(name)) = tokens.get(index) {
                    let name = name.to_string();
                    if is_public {
                        let schema = schema_name(&attributes, &name);
                        found.push(Declared { name, schema });
                    }
                }
                (attributes, is_public) = (Vec::new(), false);
            }
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                let is_test = attributes
                    .iter()
                    .any(|attribute| attribute.to_string().replace(' ', "") == "cfg(test)");
                if !is_test {
                    collect(group.stream(), found);
                }
                (attributes, is_public) = (Vec::new(), false);
            }
            // `pub(crate)`.
            TokenTree::Group(_) => {}
            TokenTree::Punct(punct) if punct.as_char() == ';' => {
                (attributes, is_public) = (Vec::new(), false);
            }
            _ => {}
        }
    }
}

/// The name of a type's schema: its own unless `#[schema(as = ...)]` says another.
fn schema_name(attributes: &[TokenStream], name: &str) -> Option<String> {
    let texts: Vec<String> = attributes.iter().map(|tokens| tokens.to_string()).collect();
    let derives = |text: &String| text.starts_with("derive") && text.contains("ToSchema");
    texts.iter().find(|text| derives(text))?;
    let renamed = texts.iter().filter(|text| text.starts_with("schema"));
    let renamed = renamed.filter_map(|text| text.split("as = ").nth(1));
    let renamed = renamed.filter_map(|rest| rest.split([',', ')', ' ']).next());
    Some(renamed.map(str::to_owned).next().unwrap_or(name.to_owned()))
}

#[test]
fn types_are_found_wherever_they_stand() {
    let names = |text: &str| -> Vec<(String, Option<String>)> {
        let found = declared(text).into_iter();
        found.map(|found| (found.name, found.schema)).collect()
    };
    let named = |name: &str| (name.to_owned(), None);
    let schema = |name: &str, schema: &str| (name.to_owned(), Some(schema.to_owned()));
    assert_eq!(
        names(
            "pub struct A; struct B; pub(crate) enum C { D } #[cfg(test)] mod tests { pub struct E; } \
             fn f(x: A) { let pub_struct = 1; } pub trait G { type H; }"
        ),
        [named("A"), named("C"), named("G")]
    );
    assert_eq!(
        names(
            "made! { #[derive(Debug, ToSchema)] pub struct A { pub x: u8 } } \
             #[derive(ToSchema)] #[schema(as = Other)] pub enum B { C }"
        ),
        [schema("A", "A"), schema("B", "Other")]
    );
}
