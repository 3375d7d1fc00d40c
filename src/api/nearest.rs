//! The known names nearest to a misspelt one.

/// How many are suggested.
const SUGGESTIONS: usize = 3;

/// `", did you mean ...?"` with the nearest of `known`, or what there is to choose from where nothing is near.
pub fn suggestion<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let mut near: Vec<(usize, &str)> =
        known.into_iter().map(|known| (distance(name, known), known)).collect();
    if near.is_empty() {
        return "; there is none".to_owned();
    }
    near.sort();
    near.truncate(SUGGESTIONS);
    let names: Vec<&str> = near.into_iter().map(|(_, name)| name).collect();
    format!("; the nearest: {}", names.join(", "))
}

/// How many letters must be added, dropped or exchanged to turn one name into the other. Only the first 64
/// letters count, for a name may be as long as a request.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, letter) in from.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, other) in to.iter().enumerate() {
            let exchanged = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = exchanged.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_comes_first() {
        let text = suggestion("max_token", ["model", "max_tokens", "top_k", "stop"]);
        assert!(text.starts_with("; the nearest: max_tokens, "), "{text}");
    }
}
