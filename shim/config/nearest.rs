//! The suggestion for an unknown key.

use super::keys::{self, Layer};

/// Returns the key of a table that is nearest to a name, if one is near. Tables are keys of the top level.
#[must_use]
pub fn nearest(table: &str, name: &str) -> Option<&'static str> {
    let tables = Layer::TABLES.iter().map(|(name, ..)| *name).filter(|_| table.is_empty());
    keys::of_table(table)
        .into_iter()
        .flatten()
        .map(|key| key.name)
        .chain(tables)
        .map(|known| (distance(known, name), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().max(name.len()) / 2)
        .map(|(_, known)| known)
}

/// Returns how many letters must be added, removed or changed to get from one text to the other (Levenshtein
/// distance).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        let mut left = i + 1;
        for ((above_left, above), other) in row.iter().zip(row.iter().skip(1)).zip(&b) {
            left = (left + 1).min(above + 1).min(above_left + usize::from(letter != *other));
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in
            [("", "", 0), ("abc", "", 3), ("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_key_is_of_the_same_table_and_near() {
        assert_eq!(nearest("", "sokcet"), Some("socket"));
        assert_eq!(nearest("", "cni_bin_dir"), Some("cni_bin_dirs"));
        assert_eq!(nearest("network", "subnet"), Some("subnets"));
        assert_eq!(nearest("", "netwrok"), Some("network"));
        assert_eq!(nearest("network", "socket"), None);
        assert_eq!(nearest("", "plugins_io_containerd"), None);
    }
}
