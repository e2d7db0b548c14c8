//! The keys as documents: the default configuration as a file, and a table for docs/configuration.md.

use super::keys::{self, Key, Layer};

/// Returns the default configuration as a file with a comment for each key.
///
/// # Errors
/// A default is not valid TOML.
pub fn commented_default() -> Result<String, toml::ser::Error> {
    let mut text =
        String::from("# The settings of berth. Each line shows the default; see docs/configuration.md.\n");
    for key in Layer::KEYS {
        text += &commented(key)?;
    }
    for (table, about, keys) in Layer::TABLES {
        text += &format!("\n# {about}\n[{table}]\n");
        for key in *keys {
            text += &commented(key)?;
        }
    }
    Ok(text)
}

fn commented(key: &Key) -> Result<String, toml::ser::Error> {
    let Key { name, about, .. } = key;
    Ok(match (keys::default_of(key.table, name)?, key.example) {
        (Some(value), _) => format!("\n# {about}\n{name} = {value}\n"),
        (None, Some(example)) => format!("\n# {about}\n# {name} = {example}\n"),
        (None, None) => format!("\n# {about}\n# {name}\n"),
    })
}

/// Returns a Markdown table of all keys with the values that each accepts and its flag.
#[must_use]
pub fn table() -> String {
    let mut text = String::from("| key | values | flag |\n|---|---|---|\n");
    for key in Layer::KEYS.iter().chain(Layer::TABLES.iter().flat_map(|(_, _, keys)| *keys)) {
        let separator = if key.table.is_empty() { "" } else { "." };
        let note = key.note.map(|note| format!(". {}", capitalized(note))).unwrap_or_default();
        let flag = key.flag.map(|_| format!("`--{}`", key.name.replace('_', "-"))).unwrap_or_default();
        let name = format!("{}{separator}{}", key.table, key.name);
        text += &format!("| `{name}` | {}{note} | {flag} |\n", key.values);
    }
    text
}

/// Returns a text with an upper-case first letter.
fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
