//! Reads JSON of other programs. Programs in Go write `null` for empty lists, maps and structs, and read it
//! everywhere like an absent member (encoding/json, "Unmarshal": "The JSON null value [...] has no effect").
//! berth reads the files of images, registries, vendors and operators in the same way: a member that is
//! `null` has the empty value of its type.
//!
//! [`NullIsAbsent`] wraps a deserializer, so this works for all formats of serde.

mod wrapped;

use serde::de::{Deserialize, DeserializeOwned};

pub use wrapped::NullIsAbsent;

/// Parses a document.
///
/// # Errors
/// It is not JSON, or it does not have the form of `T`.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = T::deserialize(NullIsAbsent(&mut deserializer))?;
    deserializer.end()?;
    Ok(value)
}

/// Parses a document.
///
/// # Errors
/// As [`from_slice`].
pub fn from_str<'de, T: Deserialize<'de>>(text: &'de str) -> serde_json::Result<T> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = T::deserialize(NullIsAbsent(&mut deserializer))?;
    deserializer.end()?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Inner {
        list: Vec<String>,
        number: u32,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Outer {
        text: String,
        #[serde(default)]
        inner: Inner,
        #[serde(default)]
        all: Vec<Inner>,
        #[serde(default)]
        by_name: BTreeMap<String, Inner>,
        option: Option<Inner>,
        #[serde(default)]
        flag: bool,
        #[serde(default)]
        anything: serde_json::Value,
    }

    #[test]
    fn null_is_absence_at_every_depth() {
        let absent: Outer = from_str(r#"{"text": "t"}"#).unwrap();
        let null = r#"{"text": "t", "inner": null, "all": null, "byName": null, "option": null, "flag": null,
            "unknown": null, "anything": null}"#;
        assert_eq!(from_str::<Outer>(null).unwrap(), absent);
        let deep = r#"{"text": "t", "inner": {"list": null, "number": null}, "all": [{"list": null}, null],
            "byName": {"a": null, "b": {"list": ["x", null]}}, "option": {"number": null}}"#;
        let read: Outer = from_slice(deep.as_bytes()).unwrap();
        assert_eq!(read.inner, Inner::default());
        assert_eq!(read.all, [Inner::default(), Inner::default()]);
        assert_eq!(read.by_name["a"], Inner::default());
        assert_eq!(read.by_name["b"].list, ["x", ""]);
        assert_eq!(read.option, Some(Inner::default()));
        // As in Go, a string that is null is empty.
        assert_eq!(from_str::<Outer>(r#"{"text": null}"#).unwrap().text, "");
    }

    #[test]
    fn other_values_are_unchanged() {
        let text = r#"{"text": "t", "inner": {"list": ["a"], "number": 4294967295}, "flag": true, "anything": [null, 1]}"#;
        assert_eq!(from_str::<Outer>(text).unwrap(), serde_json::from_str::<Outer>(text).unwrap());
        for wrong in [
            "",
            "{",
            "null",
            r#"{"inner": {}}"#,
            r#"{"text": 1}"#,
            r#"{"text": "t"} x"#,
            r#"{"text": "t", "inner": {"number": -1}}"#,
        ] {
            assert!(from_str::<Outer>(wrong).is_err(), "{wrong}");
        }
        assert_eq!(from_str::<serde_json::Value>("[null]").unwrap(), serde_json::json!([null]));
    }

    proptest! {
        #[test]
        fn documents_without_null_are_unchanged(text in "(\\[|\\]|\\{|\\}|,|:|\"a\"|\"list\"|1| ){0,30}") {
            let plain = serde_json::from_str::<serde_json::Value>(&text).ok();
            prop_assert_eq!(from_str::<serde_json::Value>(&text).ok(), plain);
        }
    }
}
