//! The formats of a hook file: version 1.0.0, and the older 0.1.0 without a version (oci-hooks(5)).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use berth_runtime::plan::HookKind;
use oci_spec::runtime::Hook;
use serde::Deserialize;

use super::when::{Combination, Pattern, When};

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// A hook of a hook file.
#[derive(Debug)]
pub(super) struct HookFile {
    pub(super) hook: Hook,
    pub(super) when: When,
    pub(super) stages: Vec<HookKind>,
}

#[derive(Deserialize)]
struct Versioned {
    version: Option<String>,
}

/// Version 1.0.0.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Current {
    hook: HookEntry,
    when: Conditions,
    #[serde(default)]
    stages: Vec<String>,
}

#[derive(Deserialize)]
struct HookEntry {
    path: PathBuf,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    timeout: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conditions {
    always: Option<bool>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    commands: Vec<String>,
    has_bind_mounts: Option<bool>,
}

/// Version 0.1.0.
#[derive(Deserialize)]
struct Older {
    hook: PathBuf,
    #[serde(default)]
    arguments: Vec<String>,
    #[serde(default)]
    stages: Vec<String>,
    #[serde(default)]
    stage: Vec<String>,
    #[serde(default)]
    cmds: Vec<String>,
    #[serde(default)]
    cmd: Vec<String>,
    #[serde(default)]
    annotations: Vec<String>,
    #[serde(default)]
    annotation: Vec<String>,
    hasbindmounts: Option<bool>,
}

/// Reads a hook file.
pub(super) fn read(path: &Path) -> Result<HookFile, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > LONGEST {
        return Err(format!("longer than {LONGEST} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let file = parse(&text)?;
    match std::fs::metadata(file.hook.path()) {
        Ok(_) => Ok(file),
        Err(error) => Err(format!("hook.path: {}: {error}", file.hook.path().display())),
    }
}

fn parse(text: &str) -> Result<HookFile, String> {
    let versioned: Versioned = berth_json::from_str(text).map_err(|error| error.to_string())?;
    match versioned.version.as_deref() {
        Some("1.0.0") => current(berth_json::from_str(text).map_err(|error| error.to_string())?),
        None | Some("0.1.0") => older(berth_json::from_str(text).map_err(|error| error.to_string())?),
        Some(version) => Err(format!("unsupported version {version:?}")),
    }
}

fn current(file: Current) -> Result<HookFile, String> {
    let conditions = file.when;
    let annotations = conditions.annotations.iter().map(|(key, value)| {
        Ok((Pattern::parse("when.annotations", key)?, Pattern::parse("when.annotations", value)?))
    });
    let when = When {
        always: conditions.always,
        annotations: annotations.collect::<Result<_, String>>()?,
        commands: patterns("when.commands", &conditions.commands)?,
        has_bind_mounts: conditions.has_bind_mounts,
        combination: Combination::All,
    };
    if when.is_empty() {
        return Err("when: has no condition".to_owned());
    }
    let mut hook = hook(file.hook.path)?;
    if file.hook.timeout.is_some_and(|timeout| timeout <= 0) {
        return Err("hook.timeout: is not a positive number of seconds".to_owned());
    }
    hook.set_args(file.hook.args).set_env(file.hook.env).set_timeout(file.hook.timeout);
    Ok(HookFile { hook, when, stages: stages(&file.stages)? })
}

fn older(file: Older) -> Result<HookFile, String> {
    let annotations = one_of("annotations", file.annotations, file.annotation)?;
    let annotations = annotations
        .iter()
        .map(|value| Ok((Pattern::parse("annotations", ".*")?, Pattern::parse("annotations", value)?)));
    let when = When {
        always: None,
        annotations: annotations.collect::<Result<_, String>>()?,
        commands: patterns("cmds", &one_of("cmds", file.cmds, file.cmd)?)?,
        has_bind_mounts: file.hasbindmounts,
        combination: Combination::Any,
    };
    let stages = stages(&one_of("stages", file.stages, file.stage)?)?;
    let name = file.hook.display().to_string();
    let mut hook = hook(file.hook)?;
    if !file.arguments.is_empty() {
        hook.set_args(Some([name].into_iter().chain(file.arguments).collect()));
    }
    Ok(HookFile { hook, when, stages })
}

fn hook(path: PathBuf) -> Result<Hook, String> {
    if !path.is_absolute() {
        return Err(format!("hook.path: {} is not absolute", path.display()));
    }
    let mut hook = Hook::default();
    hook.set_path(path);
    Ok(hook)
}

/// Returns a list that a file may have under either of two keys. Both keys are an error.
fn one_of(field: &str, list: Vec<String>, synonym: Vec<String>) -> Result<Vec<String>, String> {
    match (list.is_empty(), synonym.is_empty()) {
        (false, false) => Err(format!("{field}: is specified twice")),
        (true, _) => Ok(synonym),
        (false, true) => Ok(list),
    }
}

fn patterns(field: &str, list: &[String]) -> Result<Vec<Pattern>, String> {
    list.iter().map(|text| Pattern::parse(field, text)).collect()
}

fn stages(names: &[String]) -> Result<Vec<HookKind>, String> {
    if names.is_empty() {
        return Err("stages: is empty".to_owned());
    }
    let known =
        |name: &String| HookKind::from_name(name).ok_or_else(|| format!("stages: unknown stage {name:?}"));
    names.iter().map(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_format() {
        let text = r#"{"version": "1.0.0", "hook": {"path": "/h", "args": ["h", "x"], "env": ["A=b"], "timeout": 3},
            "when": {"commands": [".*/init$"]}, "stages": ["prestart", "poststop"]}"#;
        let file = parse(text).unwrap();
        assert_eq!(file.stages, [HookKind::Prestart, HookKind::Poststop]);
        assert_eq!(file.hook.args().as_deref(), Some(&["h".to_owned(), "x".to_owned()][..]));
        assert_eq!(file.hook.timeout(), Some(3));
    }

    #[test]
    fn the_older_format() {
        let text = r#"{"hook": "/h", "arguments": ["x"], "cmd": ["init"], "stage": ["prestart"]}"#;
        let file = parse(text).unwrap();
        assert_eq!(file.stages, [HookKind::Prestart]);
        assert_eq!(file.hook.args().as_deref(), Some(&["/h".to_owned(), "x".to_owned()][..]));
    }

    #[test]
    fn mistakes_name_the_field() {
        let current = |rest: &str| format!(r#"{{"version": "1.0.0", {rest}}}"#);
        for (text, expected) in [
            ("{".to_owned(), "EOF"),
            (r#"{"version": "2.0.0"}"#.to_owned(), "unsupported version"),
            (
                current(r#""hook": {"path": "h"}, "when": {"always": true}, "stages": ["poststop"]"#),
                "hook.path",
            ),
            (current(r#""hook": {"path": "/h"}, "when": {}, "stages": ["poststop"]"#), "when"),
            (current(r#""hook": {"path": "/h"}, "when": {"always": true}"#), "stages"),
            (current(r#""hook": {"path": "/h"}, "when": {"always": true}, "stages": ["later"]"#), "later"),
            (
                current(r#""hook": {"path": "/h"}, "when": {"commands": ["("]}, "stages": ["poststop"]"#),
                "when.commands",
            ),
            (
                current(
                    r#""hook": {"path": "/h", "timeout": -1}, "when": {"always": true}, "stages": ["poststop"]"#,
                ),
                "timeout",
            ),
            (r#"{"hook": "/h", "stages": ["prestart"], "stage": ["prestart"]}"#.to_owned(), "twice"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
