//! The nearest known names to one that is not known, for error messages.

/// How many names are offered.
const OFFERED: usize = 3;

/// The known names a few edits away from `name`, nearest first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let allowed = (name.chars().count() / 3).max(2);
    let mut close: Vec<(usize, &str)> = known
        .into_iter()
        .map(|candidate| (strsim::levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .collect();
    close.sort();
    close.truncate(OFFERED);
    close.into_iter().map(|(_, candidate)| candidate).collect()
}

/// What to append to a message about an unknown name: nothing where no known name is near.
pub fn suggestion<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(name, known).as_slice() {
        [] => String::new(),
        [only] => format!("; the nearest is {only:?}"),
        several => {
            let quoted: Vec<String> = several.iter().map(|name| format!("{name:?}")).collect();
            format!("; the nearest are {}", quoted.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_names_come_first_and_far_ones_not_at_all() {
        let known = ["quote_type", "quote_open", "bracket_depth"];
        assert_eq!(nearest("quote_typ", known), ["quote_type"]);
        assert_eq!(nearest("quote_tpen", known), ["quote_open", "quote_type"]);
        assert!(nearest("indentation", known).is_empty());
    }
}
