//! Reading one file: what is wrong in it, with line, key and, for an unknown key, the nearest known one.

use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Layer;
use super::keys::{KEYS, nearest};

/// What is wrong in a text of configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// The key, dotted; empty where the text is not TOML at all.
    pub key: String,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.why)
    }
}

/// Reads a text of configuration.
///
/// # Errors
/// The first thing that is wrong in it.
pub fn read(text: &str) -> Result<Layer, Problem> {
    let table = DeTable::parse(text).map_err(|error| at(text, error.span(), "", error.message()))?;
    check_keys(text, table.get_ref(), "")?;
    toml::from_str(text).map_err(|error| {
        let key = error.span().and_then(|span| key_at(table.get_ref(), &span)).unwrap_or_default();
        at(text, error.span(), &key, error.message())
    })
}

fn at(text: &str, span: Option<Range<usize>>, key: &str, why: &str) -> Problem {
    let start = span.map_or(0, |span| span.start).min(text.len());
    let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
    Problem { line, key: key.to_owned(), why: why.trim_end().replace('\n', "; ") }
}

fn check_keys(text: &str, table: &DeTable<'_>, name: &str) -> Result<(), Problem> {
    for (key, value) in table {
        let known = KEYS.iter().any(|k| k.table == name && k.name == key.get_ref());
        if !known {
            let dotted = dotted(name, key);
            let why = match nearest(name, key.get_ref()) {
                Some(near) => format!("there is no such key; the nearest is {near:?}"),
                None => "there is no such key; `berth config default` shows all".to_owned(),
            };
            return Err(at(text, Some(key.span()), &dotted, &why));
        }
        if let DeValue::Table(inner) = value.get_ref()
            && name.is_empty()
            && KEYS.iter().any(|k| k.table == key.get_ref())
        {
            check_keys(text, inner, key.get_ref())?;
        }
    }
    Ok(())
}

fn dotted(table: &str, key: &Spanned<impl AsRef<str>>) -> String {
    match table {
        "" => key.get_ref().as_ref().to_owned(),
        table => format!("{table}.{}", key.get_ref().as_ref()),
    }
}

/// The key whose value covers a place in the text.
fn key_at(table: &DeTable<'_>, place: &Range<usize>) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        if let DeValue::Table(inner) = value.get_ref()
            && let Some(found) = key_at(inner, place)
        {
            return Some(format!("{}.{found}", key.get_ref()));
        }
        let covers = value.span().start <= place.start && place.end <= value.span().end;
        covers.then(|| key.get_ref().to_string())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn problem(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_told_with_its_line_and_the_nearest_known_one() {
        assert_eq!(
            problem("log_level = \"info\"\n\nsokcet = \"/x\"\n"),
            "3: sokcet: there is no such key; the nearest is \"socket\""
        );
        assert_eq!(
            problem("[network]\nsubnet = [\"10.0.0.0/8\"]\n"),
            "2: network.subnet: there is no such key; the nearest is \"subnets\""
        );
        assert_eq!(
            problem("[plugins.\"io.containerd.grpc.v1.cri\"]\n"),
            "1: plugins: there is no such key; `berth config default` shows all"
        );
    }

    #[test]
    fn a_wrong_value_is_told_with_its_line_and_key() {
        for (text, start) in [
            ("# x\nsocket = \"relative\"\n", "2: socket: \"relative\" is not an absolute path"),
            ("socket = 3\n", "1: socket: invalid type: integer `3`"),
            ("\n[network]\nmtu = 5\n", "3: network.mtu: 5 is not from 1280 to 65535"),
            ("network = 5\n", "1: network: invalid type"),
            ("log_format = \"xml\"\n", "1: log_format: unknown variant `xml`"),
            ("stream_address = \"nowhere\"\n", "1: stream_address: invalid socket address"),
            ("certs_dir = [\"/a\", 4]\n", "1: certs_dir: 4 is not a path"),
            ("[network]\nsubnets = [\"10.83.0.0/16\", \"x\"]\n", "2: network.subnets: "),
        ] {
            let problem = problem(text);
            assert!(problem.starts_with(start), "{problem}");
        }
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line() {
        assert!(problem("a = 1\nb = = 2\n").starts_with("2: "));
        assert!(problem("socket = \"/a\"\nsocket = \"/b\"\n").starts_with("2: "));
    }

    #[test]
    fn one_folder_or_several() {
        let folders = |text: &str| Vec::from(read(text).unwrap().certs_dir.unwrap());
        assert_eq!(folders("certs_dir = \"/a\"").len(), 1);
        assert_eq!(folders("certs_dir = [\"/a\", \"/b\"]").len(), 2);
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "(\\[network\\]\n)?([a-z_]{1,12} ?= ?[\"0-9a-z/\\[\\], ]{0,20}\n){0,4}") {
            if let Err(problem) = read(&text) {
                prop_assert!(problem.line <= text.lines().count().max(1) + 1);
            }
        }
    }
}
