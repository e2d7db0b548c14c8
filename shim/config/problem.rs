//! Parses one configuration file, and reports mistakes with line, key and, for an unknown key, the nearest key.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Layer;
use super::handlers;
use super::keys;
use super::nearest::nearest;

/// A mistake in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, counted from 1.
    pub line: usize,
    /// The dotted key; empty if the text is not TOML.
    pub key: String,
    /// The mistake, as text for the operator.
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

/// Parses a configuration file.
///
/// # Errors
/// The first mistake.
pub fn read(text: &str) -> Result<Layer, Problem> {
    let (layer, problems) = read_all(text);
    problems.into_iter().next().map_or(Ok(layer), Err)
}

/// Parses a configuration file. Returns all valid settings and all mistakes in the order of their lines.
#[must_use]
pub fn read_all(text: &str) -> (Layer, Vec<Problem>) {
    let (mut table, broken) = DeTable::parse_recoverable(text);
    if !broken.is_empty() {
        // The keys of a text that is not TOML are ambiguous: none is used.
        let broken = broken.iter().map(|error| at(text, error.span(), "", error.message()));
        let mut broken = sorted(broken.collect());
        // One syntax error causes others on the same line.
        broken.dedup_by_key(|problem| problem.line);
        return (Layer::default(), broken);
    }
    let mut problems = Vec::new();
    remove_unknown_keys(text, table.get_mut(), ("", ""), &mut problems);
    loop {
        // A wrong value is removed, so that the next one is found.
        let error = match Layer::deserialize(toml::Deserializer::from(table.clone())) {
            Ok(layer) => return (layer, sorted(problems)),
            Err(error) => error,
        };
        let key = error.span().and_then(|span| key_at(table.get_ref(), &span)).unwrap_or_default();
        problems.push(at(text, error.span(), &key, error.message()));
        if !remove(table.get_mut(), &key) {
            return (Layer::default(), sorted(problems));
        }
    }
}

fn sorted(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by_key(|problem| problem.line);
    problems
}

/// Removes a dotted key. Returns whether it existed.
fn remove(table: &mut DeTable<'_>, dotted: &str) -> bool {
    match dotted.split_once('.') {
        Some((name, rest)) => match table.get_mut(name).map(Spanned::get_mut) {
            Some(DeValue::Table(inner)) => remove(inner, rest),
            _ => false,
        },
        None => table.remove(dotted).is_some(),
    }
}

fn at(text: &str, span: Option<Range<usize>>, key: &str, why: &str) -> Problem {
    let start = span.map_or(0, |span| span.start).min(text.len());
    let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
    Problem { line, key: key.to_owned(), why: why.trim_end().replace('\n', "; ") }
}

/// Removes the unknown keys of a table, whose name in the declarations and whose path in the file are given.
fn remove_unknown_keys(
    text: &str,
    table: &mut DeTable<'_>,
    (name, path): (&str, &str),
    problems: &mut Vec<Problem>,
) {
    let mut unknown = Vec::new();
    for (key, value) in table.iter_mut() {
        if name == handlers::TABLE {
            if let DeValue::Table(inner) = value.get_mut() {
                let path = dotted(path, key);
                remove_unknown_keys(text, inner, (handlers::TABLE_OF_ONE, &path), problems);
            }
            continue;
        }
        let inner_table = keys::of_table(key.get_ref()).filter(|_| name.is_empty());
        let is_key = keys::of_table(name).is_some_and(|keys| keys.iter().any(|k| k.name == key.get_ref()));
        if !is_key && inner_table.is_none() {
            let dotted = dotted(path, key);
            let why = match nearest(name, key.get_ref()) {
                Some(near) => format!("unknown key; did you mean {near:?}?"),
                None => "unknown key; `berth config default` lists all keys".to_owned(),
            };
            problems.push(at(text, Some(key.span()), &dotted, &why));
            unknown.push(key.get_ref().to_string());
            continue;
        }
        if let DeValue::Table(inner) = value.get_mut()
            && inner_table.is_some()
        {
            remove_unknown_keys(text, inner, (key.get_ref(), key.get_ref()), problems);
        }
    }
    for key in unknown {
        table.remove(key.as_str());
    }
}

fn dotted(table: &str, key: &Spanned<impl AsRef<str>>) -> String {
    match table {
        "" => key.get_ref().as_ref().to_owned(),
        table => format!("{table}.{}", key.get_ref().as_ref()),
    }
}

/// Returns the key of the value that contains a span of the text.
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
    fn an_unknown_key_is_reported_with_its_line_and_the_nearest_key() {
        assert_eq!(
            problem("log_level = \"info\"\n\nsokcet = \"/x\"\n"),
            "3: sokcet: unknown key; did you mean \"socket\"?"
        );
        assert_eq!(
            problem("[network]\nsubnet = [\"10.0.0.0/8\"]\n"),
            "2: network.subnet: unknown key; did you mean \"subnets\"?"
        );
        assert_eq!(
            problem("[handlers.runc]\npth = \"/usr/sbin/runc\"\n"),
            "2: handlers.runc.pth: unknown key; did you mean \"path\"?"
        );
        assert_eq!(
            problem("[plugins.\"io.containerd.grpc.v1.cri\"]\n"),
            "1: plugins: unknown key; `berth config default` lists all keys"
        );
    }

    #[test]
    fn a_wrong_value_is_reported_with_its_line_and_key() {
        for (text, start) in [
            ("# x\nsocket = \"relative\"\n", "2: socket: \"relative\" is not an absolute path"),
            ("socket = 3\n", "1: socket: invalid type: integer `3`"),
            ("\n[network]\nmtu = 5\n", "3: network.mtu: 5 is not from 1280 to 65535"),
            ("network = 5\n", "1: network: invalid type"),
            ("log_format = \"xml\"\n", "1: log_format: unknown variant `xml`"),
            ("stream_address = \"nowhere\"\n", "1: stream_address: invalid socket address"),
            ("certs_dir = [\"/a\", 4]\n", "1: certs_dir: 4 is not a path"),
            ("[handlers.runc]\npath = \"runc\"\n", "2: handlers.runc.path: \"runc\" is not an absolute"),
            ("[network]\nsubnets = [\"10.83.0.0/16\", \"x\"]\n", "2: network.subnets: "),
        ] {
            let problem = problem(text);
            assert!(problem.starts_with(start), "{problem}");
        }
    }

    #[test]
    fn every_mistake_is_found() {
        let text = "sokcet = \"/x\"\nroot = \"relative\"\nstate = \"/fine\"\nparallel_pulls = 0\n\
                    [network]\nmtu = 5\nsubnet = []\n";
        let (layer, problems) = read_all(text);
        let lines: Vec<(usize, &str)> =
            problems.iter().map(|problem| (problem.line, problem.key.as_str())).collect();
        let expected =
            [(1, "sokcet"), (2, "root"), (4, "parallel_pulls"), (6, "network.mtu"), (7, "network.subnet")];
        assert_eq!(lines, expected);
        assert!(layer.state.is_some() && layer.root.is_none(), "valid settings are kept");
        let (_, problems) = read_all("a = = 1\nb = [\n");
        assert!(problems.iter().any(|problem| problem.line == 1), "{problems:?}");
    }

    #[test]
    fn invalid_toml_is_reported_with_its_line() {
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
            let (_, problems) = read_all(&text);
            prop_assert!(problems.len() <= text.lines().count() * 3 + 1);
            if let Err(problem) = read(&text) {
                prop_assert!(problem.line <= text.lines().count().max(1) + 1);
            }
        }
    }
}
