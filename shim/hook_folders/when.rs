//! The conditions of a hook (oci-hooks(5)).

use std::collections::HashMap;

use regex_lite::Regex;

/// The longest pattern, in bytes.
const LONGEST: usize = 4096;

/// An extended regular expression that matches a part of a text.
#[derive(Debug)]
pub(super) struct Pattern(Regex);

impl Pattern {
    pub(super) fn parse(field: &str, text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("{field}: a pattern is longer than {LONGEST} bytes"));
        }
        Regex::new(text).map(Self).map_err(|error| format!("{field}: {text:?}: {error}"))
    }

    fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// How several conditions are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Combination {
    /// All conditions must match.
    All,
    /// One condition is enough (version 0.1.0).
    Any,
}

/// The conditions of a hook.
#[derive(Debug)]
pub(super) struct When {
    pub(super) always: Option<bool>,
    /// Patterns of keys and values.
    pub(super) annotations: Vec<(Pattern, Pattern)>,
    pub(super) commands: Vec<Pattern>,
    pub(super) has_bind_mounts: Option<bool>,
    pub(super) combination: Combination,
}

/// The properties of a container that conditions are about.
#[derive(Debug)]
pub(super) struct ContainerProperties<'a> {
    pub(super) annotations: &'a HashMap<String, String>,
    /// The program of the first process (`process.args[0]`).
    pub(super) command: Option<&'a str>,
    pub(super) has_bind_mounts: bool,
}

impl When {
    /// Whether there is no condition.
    pub(super) fn is_empty(&self) -> bool {
        self.always.is_none()
            && self.has_bind_mounts.is_none()
            && self.annotations.is_empty()
            && self.commands.is_empty()
    }

    /// Whether a container gets the hook. A condition that is set to false does not match.
    pub(super) fn matches(&self, container: &ContainerProperties<'_>) -> Result<bool, String> {
        let annotation = |(key, value): &(Pattern, Pattern)| {
            container.annotations.iter().any(|(name, text)| key.matches(name) && value.matches(text))
        };
        let mut results: Vec<bool> = self.always.into_iter().collect();
        results.extend(self.has_bind_mounts.map(|wanted| wanted && container.has_bind_mounts));
        results.extend(self.annotations.iter().map(annotation));
        if !self.commands.is_empty() {
            let command = container.command.ok_or("the container has no command")?;
            results.push(self.commands.iter().any(|pattern| pattern.matches(command)));
        }
        Ok(match self.combination {
            Combination::All => !results.is_empty() && results.into_iter().all(|matches| matches),
            Combination::Any => results.into_iter().any(|matches| matches),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse("test", text).unwrap()
    }

    fn when() -> When {
        When {
            always: None,
            annotations: Vec::new(),
            commands: Vec::new(),
            has_bind_mounts: None,
            combination: Combination::All,
        }
    }

    fn matches(when: &When, bind: bool) -> bool {
        let annotations = HashMap::from([("com.example.department".to_owned(), "fluid-dynamics".to_owned())]);
        let container = ContainerProperties {
            annotations: &annotations,
            command: Some("/usr/bin/init"),
            has_bind_mounts: bind,
        };
        when.matches(&container).unwrap()
    }

    #[test]
    fn single_conditions() {
        assert!(!matches(&when(), false));
        assert!(matches(&When { always: Some(true), ..when() }, false));
        assert!(!matches(&When { always: Some(false), ..when() }, false));
        assert!(matches(&When { has_bind_mounts: Some(true), ..when() }, true));
        assert!(!matches(&When { has_bind_mounts: Some(true), ..when() }, false));
        assert!(!matches(&When { has_bind_mounts: Some(false), ..when() }, false));
        assert!(matches(&When { commands: vec![pattern("^x$"), pattern(".*/init$")], ..when() }, false));
        assert!(!matches(&When { commands: vec![pattern("^init")], ..when() }, false));
        let department = || (pattern(r"^com\.example\.department$"), pattern(".*fluid-dynamics$"));
        assert!(matches(&When { annotations: vec![department()], ..when() }, false));
        let both = vec![department(), (pattern("^other$"), pattern(""))];
        assert!(!matches(&When { annotations: both, ..when() }, false));
        assert!(matches(&When { commands: vec![pattern("[[:alpha:]]+$")], ..when() }, false));
    }

    #[test]
    fn combinations() {
        let both = |combination| When {
            has_bind_mounts: Some(true),
            commands: vec![pattern("init")],
            combination,
            ..when()
        };
        assert!(!matches(&both(Combination::All), false));
        assert!(matches(&both(Combination::All), true));
        assert!(matches(&both(Combination::Any), false));
    }
}
