//! Removes secrets from the data of a bundle: values of environment variables, annotations and keys that name a secret,
//! arguments of commands, credentials in URLs. Values that were removed are removed from texts, too.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// The replacement of a secret.
pub(super) const REDACTED: &str = "[redacted]";

/// Shorter values are not removed from texts: they would also match other words.
const SHORTEST: usize = 6;

/// Parts of keys whose values are secrets.
const SECRET_KEYS: [&str; 11] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "apikey",
    "api_key",
    "private_key",
    "privatekey",
    "authorization",
];

/// Prefixes of annotations that Kubernetes sets and that have no secrets.
const KNOWN_ANNOTATIONS: [&str; 4] = [
    "io.kubernetes.",
    "kubernetes.io/config.",
    "kubernetes.io/ingress-bandwidth",
    "kubernetes.io/egress-bandwidth",
];

/// Removes secrets, and remembers those that it has removed.
#[derive(Debug, Default)]
pub(super) struct Redactor {
    secrets: BTreeSet<String>,
}

impl Redactor {
    /// Removes the secrets of a JSON value.
    pub(super) fn value(&mut self, value: Value) -> Value {
        match value {
            Value::Object(object) => Value::Object(self.object(object)),
            Value::Array(values) => values.into_iter().map(|value| self.value(value)).collect(),
            Value::String(text) => Value::String(self.string(text)),
            other => other,
        }
    }

    fn object(&mut self, object: Map<String, Value>) -> Map<String, Value> {
        let redacted = object.into_iter().map(|(key, value)| {
            let name = key.to_ascii_lowercase();
            let value = match name.as_str() {
                "env" | "envs" | "environment" => self.environment(value),
                "command" | "args" | "cmd" | "entrypoint" => self.arguments(value),
                "annotations" | "updateannotations" | "update_annotations" => self.annotations(value),
                // Commands of a build can have its arguments.
                "history" => Value::String(REDACTED.to_owned()),
                "auth" => self.all(value),
                name if SECRET_KEYS.iter().any(|part| name.contains(part)) => self.all(value),
                _ => self.value(value),
            };
            (key, value)
        });
        redacted.collect()
    }

    /// `NAME=VALUE` in a list, or objects with `key` and `value`.
    fn environment(&mut self, value: Value) -> Value {
        let Value::Array(values) = value else { return self.all(value) };
        let redacted = values.into_iter().map(|value| match value {
            Value::String(text) => match text.split_once('=') {
                Some((name, value)) => {
                    // Other names have values such as paths, which are common words of texts.
                    if has_secret_name(name) {
                        self.remember(value);
                    }
                    Value::String(format!("{name}={REDACTED}"))
                }
                None => Value::String(text),
            },
            Value::Object(mut object) => {
                let name = object.get("key").or(object.get("name")).and_then(Value::as_str);
                let is_secret = name.is_some_and(has_secret_name);
                if let Some(value) = object.get_mut("value") {
                    if is_secret {
                        self.remember(&text_of(value));
                    }
                    *value = Value::String(REDACTED.to_owned());
                }
                Value::Object(object)
            }
            other => self.all(other),
        });
        redacted.collect()
    }

    /// The program stays, its arguments are removed.
    fn arguments(&mut self, value: Value) -> Value {
        let Value::Array(values) = value else { return self.value(value) };
        let redacted = values.into_iter().enumerate().map(|(place, value)| match place {
            0 => self.value(value),
            _ => Value::String(REDACTED.to_owned()),
        });
        redacted.collect()
    }

    fn annotations(&mut self, value: Value) -> Value {
        let Value::Object(object) = value else { return self.value(value) };
        let redacted = object.into_iter().map(|(key, value)| {
            let is_known = KNOWN_ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix));
            let value = if is_known { self.value(value) } else { self.all(value) };
            (key, value)
        });
        Value::Object(redacted.collect())
    }

    /// Removes every text of a value.
    fn all(&mut self, value: Value) -> Value {
        match value {
            Value::String(text) if text.is_empty() => Value::String(text),
            Value::String(text) => {
                self.remember(&text);
                Value::String(REDACTED.to_owned())
            }
            Value::Array(values) => values.into_iter().map(|value| self.all(value)).collect(),
            Value::Object(object) => {
                Value::Object(object.into_iter().map(|(key, value)| (key, self.all(value))).collect())
            }
            other => other,
        }
    }

    /// A text can be JSON itself, as in verbose statuses, or a URL.
    fn string(&mut self, text: String) -> String {
        if text.starts_with(['{', '['])
            && let Ok(value) = serde_json::from_str::<Value>(&text)
        {
            return self.value(value).to_string();
        }
        without_user(&text)
    }

    fn remember(&mut self, secret: &str) {
        if secret.chars().count() >= SHORTEST {
            self.secrets.insert(secret.to_owned());
        }
    }

    /// Removes secrets that were found before, and credentials in URLs, from a text.
    pub(super) fn text(&self, text: &str) -> String {
        // A secret can be a part of another one: the longest is removed first.
        let mut secrets: Vec<&String> = self.secrets.iter().collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        let text = secrets.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret, REDACTED));
        without_user(&text)
    }
}

/// Returns a value of the CRI as text: a string, or a list of bytes.
fn text_of(value: &Value) -> String {
    let bytes = value.as_array().into_iter().flatten().filter_map(Value::as_u64);
    let bytes: Vec<u8> = bytes.filter_map(|byte| u8::try_from(byte).ok()).collect();
    value.as_str().map_or_else(|| String::from_utf8_lossy(&bytes).into_owned(), str::to_owned)
}

fn has_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_KEYS.iter().any(|part| name.contains(part)) || name.contains("auth") || name.contains("key")
}

/// Removes user and password of URLs: `https://user:password@host/`.
fn without_user(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        let end = after.find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '?' | '#'));
        let authority = after.get(..end.unwrap_or(after.len())).unwrap_or_default();
        rest = match authority.rfind('@') {
            Some(place) => {
                shown.push_str(REDACTED);
                after.get(place..).unwrap_or_default()
            }
            None => after,
        };
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_removed_by_their_place() {
        let mut redactor = Redactor::default();
        let inner = json!({ "process": { "env": ["DB_PASSWORD=hunter2-x", "PATH=/bin"], "args": ["sh", "-c", "s3cr3t"] } });
        let value = json!({
            "envs": [{ "key": "API_TOKEN", "value": b"token-123456" }, { "key": "MODE", "value": "production" }],
            "annotations": { "example.com/config": "annotated-secret", "io.kubernetes.pod.uid": "uid-1" },
            "auth": { "username": "user-name", "password": "" },
            "auth_file": ["/root/.docker/config.json"],
            "info": inner.to_string(),
            "image": "https://robot:pull-secret@registry.test/x",
            "history": [{ "created_by": "ARG TOKEN=build-secret" }],
            "registryToken": "registry-token",
            "pid": 7,
        });
        let shown = redactor.value(value).to_string();
        for secret in [
            "hunter2-x",
            "s3cr3t",
            "token-123456",
            "production",
            "annotated-secret",
            "user-name",
            "pull-secret",
            "robot",
            "build-secret",
            "registry-token",
        ] {
            assert!(!shown.contains(secret), "{secret}: {shown}");
        }
        for kept in
            ["DB_PASSWORD", "API_TOKEN", "uid-1", "/root/.docker/config.json", "registry.test/x", ":7"]
        {
            assert!(shown.contains(kept), "{kept}: {shown}");
        }
        assert_eq!(
            redactor.text("failed with hunter2-x and token-123456 in production at http://a:b@c/d"),
            format!("failed with {REDACTED} and {REDACTED} in production at http://{REDACTED}@c/d")
        );
    }

    #[test]
    fn urls_without_a_user_stay() {
        for text in
            ["", "https://a.test/b@sha256:00", "x@y", "://", "see http://a.test and https://b.test?c=d@e"]
        {
            assert_eq!(without_user(text), text);
        }
        assert_eq!(without_user("ftp://u:p@h://q"), format!("ftp://{REDACTED}@h://q"));
    }
}
