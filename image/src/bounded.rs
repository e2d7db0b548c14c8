//! Bounded lists in untrusted JSON documents. An entry of three bytes (`{},`) may take a hundred times as
//! much in memory, so only as many entries as the limit are kept. The others are counted.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::Error;

/// A list that keeps its first `N` entries. `null` is an empty list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bounded<T, const N: usize> {
    kept: Vec<T>,
    count: usize,
}

/// The keys of an object. The first `N` are kept, the values are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BoundedKeys<const N: usize>(Bounded<String, N>);

impl<T, const N: usize> Bounded<T, N> {
    /// Returns the whole list.
    ///
    /// # Errors
    /// The list has more than `N` entries. `name` is the noun for them in the error.
    pub(crate) fn all(self, what: &str, name: &str) -> Result<Vec<T>, Error> {
        if self.count > N {
            return Err(Error::limit(what, format!("{} {name}, the limit is {N}", self.count)));
        }
        Ok(self.kept)
    }

    /// Returns whether the list has no entries.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the entries that were kept.
    pub(crate) fn kept(&self) -> &[T] {
        &self.kept
    }
}

impl<const N: usize> BoundedKeys<N> {
    /// See [`Bounded::all`].
    pub(crate) fn all(self, what: &str, name: &str) -> Result<Vec<String>, Error> {
        self.0.all(what, name)
    }

    /// See [`Bounded::is_empty`].
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T, const N: usize> Default for Bounded<T, N> {
    fn default() -> Self {
        Self { kept: Vec::new(), count: 0 }
    }
}

impl<const N: usize> Default for BoundedKeys<N> {
    fn default() -> Self {
        Self(Bounded::default())
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for Bounded<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const N: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for List<T, N> {
            type Value = Bounded<T, N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Bounded::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut list = Bounded::default();
                while list.count < N {
                    let Some(entry) = entries.next_element()? else { return Ok(list) };
                    list.kept.push(entry);
                    list.count += 1;
                }
                while entries.next_element::<IgnoredAny>()?.is_some() {
                    list.count += 1;
                }
                Ok(list)
            }
        }
        deserializer.deserialize_any(List(PhantomData))
    }
}

impl<'de, const N: usize> Deserialize<'de> for BoundedKeys<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<const N: usize>;
        impl<'de, const N: usize> Visitor<'de> for Object<N> {
            type Value = BoundedKeys<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(BoundedKeys::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut keys = Bounded::default();
                while keys.count < N {
                    let Some((key, IgnoredAny)) = entries.next_entry()? else { return Ok(BoundedKeys(keys)) };
                    keys.kept.push(key);
                    keys.count += 1;
                }
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    keys.count += 1;
                }
                Ok(BoundedKeys(keys))
            }
        }
        deserializer.deserialize_any(Object)
    }
}

/// Returns whether a document is an object. serde would accept a list as the fields of a struct in their
/// order.
pub(crate) fn is_object(json: &[u8]) -> bool {
    json.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_beyond_the_limit_are_counted() {
        let list = |json: &str| serde_json::from_str::<Bounded<String, 2>>(json);
        assert_eq!(list(r#"["a", "b"]"#).unwrap().all("x", "words").unwrap(), ["a", "b"]);
        assert!(list("null").unwrap().kept().is_empty());
        let many = list(r#"["a", "b", {"c": []}, 4]"#).unwrap();
        assert_eq!(many.kept(), ["a", "b"]);
        assert_eq!(
            many.all("config x", "words").unwrap_err().to_string(),
            "config x: 4 words, the limit is 2"
        );
        assert!(list("{}").is_err() && list("[1]").is_err() && list("7").is_err());
        let keys = |json: &str| serde_json::from_str::<BoundedKeys<2>>(json);
        assert_eq!(keys(r#"{"/a": {}, "/b": null}"#).unwrap().all("x", "volumes").unwrap(), ["/a", "/b"]);
        assert!(keys("null").unwrap().all("x", "volumes").unwrap().is_empty());
        assert!(keys(r#"{"a": 1, "b": 2, "c": 3}"#).unwrap().all("x", "volumes").is_err());
        assert!(keys("[]").is_err());
    }

    proptest! {
        #[test]
            fn any_text_is_parsed_or_rejected(text in "(\\[|\\]|\\{|\\}|,|:|\"a\"|null|1| ){0,30}") {
            drop(serde_json::from_str::<Bounded<String, 3>>(&text));
            drop(serde_json::from_str::<BoundedKeys<3>>(&text));
        }
    }
}
