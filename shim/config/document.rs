//! The keys as documents: the default configuration as a file, and a table for docs/configuration.md.

use super::handlers::{TABLE, TABLE_OF_ONE};
use super::keys::{self, ConfigKey, Layer};
use super::{DEFAULT_FILE, DROP_INS};

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
        text += &match *table {
            TABLE => format!("\n# {about}\n# [{TABLE_OF_ONE}]\n"),
            table => format!("\n# {about}\n[{table}]\n"),
        };
        for key in *keys {
            text += &commented(key)?;
        }
    }
    Ok(text)
}

fn commented(key: &ConfigKey) -> Result<String, toml::ser::Error> {
    let ConfigKey { name, about, .. } = key;
    Ok(match (keys::default_of(key.table, name)?, key.example) {
        // The table is a comment as well: its name has to be chosen.
        (Some(value), _) if key.table == TABLE_OF_ONE => format!("\n# {about}\n# {name} = {value}\n"),
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

/// Returns the manual page of the configuration file, in the language of man(7).
///
/// # Errors
/// A default is not valid TOML.
pub fn manual_page() -> Result<String, toml::ser::Error> {
    let mut text = format!(
        ".TH berth\\-config.toml 5 \"\" \"berth {}\"\n.SH NAME\nberth\\-config.toml \\- configuration of berth\n\
         .SH SYNOPSIS\n{DEFAULT_FILE}\n.br\n{DROP_INS}\n\
         .SH DESCRIPTION\nBoth files are in TOML and need not exist. Drop-ins are read in the order of their names; a \
         later file overrides an earlier one, and the flags override all. The daemon reads them when it starts.\n\
         .SH KEYS\n",
        env!("CARGO_PKG_VERSION")
    );
    for key in Layer::KEYS {
        text += &manual_entry(key)?;
    }
    for (table, about, keys) in Layer::TABLES {
        let table = if *table == TABLE { TABLE_OF_ONE } else { table };
        text += &format!(".SH TABLE {}\n{}\n", roff(table), roff(about));
        for key in *keys {
            text += &manual_entry(key)?;
        }
    }
    Ok(text + ".SH SEE ALSO\nberth(1), berth\\-serve(1), berth\\-config(1)\n")
}

fn manual_entry(key: &ConfigKey) -> Result<String, toml::ser::Error> {
    let note = key.note.map(|note| format!(" {}.", capitalized(note))).unwrap_or_default();
    let default = match (keys::default_of(key.table, key.name)?, key.example) {
        (Some(value), _) => format!(" The default is {value}."),
        (None, Some(example)) => format!(" An example is {example}."),
        (None, None) => String::new(),
    };
    let values = format!("{} Value: {}.{note}{default}", key.about, key.values);
    Ok(format!(".TP\n.B {}\n{}\n", roff(key.name), roff(&values)))
}

/// Escapes text for man(7). Markdown's backquotes are dropped.
fn roff(text: &str) -> String {
    text.replace('`', "").replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq")
}

/// Returns a text with an upper-case first letter.
fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
