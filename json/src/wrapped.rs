//! A deserializer that wraps another one and replaces `null` by an empty value.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, Visitor};

/// Reads `null` as the empty value of the requested type: no members, an empty string, 0, false. An `Option`
/// is `None`.
#[derive(Debug)]
pub struct NullIsAbsent<D>(pub D);

/// Forwards to the method of the same name if there is a value. To find out, it requests an option first.
macro_rules! forward {
    ($($method:ident($($argument:ident: $type:ty),*) or $empty:ident($($value:expr)?);)*) => {$(
        fn $method<V: Visitor<'de>>(self, $($argument: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            struct IfPresent<V> {
                visitor: V,
                $($argument: $type,)*
            }
            impl<'de, V: Visitor<'de>> Visitor<'de> for IfPresent<V> {
                type Value = V::Value;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    self.visitor.expecting(f)
                }

                fn visit_none<E: Error>(self) -> Result<V::Value, E> {
                    self.visitor.$empty($($value)?)
                }

                fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
                    self.visitor.$empty($($value)?)
                }

                fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
                    deserializer.$method($(self.$argument,)* Wrapped(self.visitor))
                }
            }
            self.0.deserialize_option(IfPresent { visitor, $($argument,)* })
        }
    )*};
}

/// A visitor that wraps another one, so that members of its value are read in the same way.
struct Wrapped<V>(V);

/// An empty list or map.
struct Empty<E>(std::marker::PhantomData<E>);

impl<'de, E: Error> SeqAccess<'de> for Empty<E> {
    type Error = E;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, _: T) -> Result<Option<T::Value>, E> {
        Ok(None)
    }
}

impl<'de, E: Error> MapAccess<'de> for Empty<E> {
    type Error = E;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, _: K) -> Result<Option<K::Value>, E> {
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, _: T) -> Result<T::Value, E> {
        Err(E::custom("a value without a key"))
    }
}

fn empty<E>() -> Empty<E> {
    Empty(std::marker::PhantomData)
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for NullIsAbsent<D> {
    type Error = D::Error;

    forward! {
        deserialize_bool() or visit_bool(false);
        deserialize_i8() or visit_i8(0);
        deserialize_i16() or visit_i16(0);
        deserialize_i32() or visit_i32(0);
        deserialize_i64() or visit_i64(0);
        deserialize_i128() or visit_i128(0);
        deserialize_u8() or visit_u8(0);
        deserialize_u16() or visit_u16(0);
        deserialize_u32() or visit_u32(0);
        deserialize_u64() or visit_u64(0);
        deserialize_u128() or visit_u128(0);
        deserialize_f32() or visit_f32(0.0);
        deserialize_f64() or visit_f64(0.0);
        deserialize_char() or visit_str("");
        deserialize_str() or visit_str("");
        deserialize_string() or visit_str("");
        deserialize_bytes() or visit_bytes(&[]);
        deserialize_byte_buf() or visit_bytes(&[]);
        deserialize_seq() or visit_seq(empty());
        deserialize_tuple(len: usize) or visit_seq(empty());
        deserialize_tuple_struct(name: &'static str, len: usize) or visit_seq(empty());
        deserialize_map() or visit_map(empty());
        deserialize_struct(name: &'static str, fields: &'static [&'static str]) or visit_map(empty());
    }

    // These methods pass null on: the visitor handles it, or the type does not have an empty value.

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(Wrapped(visitor))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_option(Wrapped(visitor))
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_unit(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_newtype_struct(name, Wrapped(visitor))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_enum(name, variants, Wrapped(visitor))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_identifier(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_ignored_any(visitor)
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

macro_rules! visit {
    ($($method:ident($type:ty);)*) => {$(
        fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.0.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Wrapped<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    visit! {
        visit_bool(bool);
        visit_i8(i8);
        visit_i16(i16);
        visit_i32(i32);
        visit_i64(i64);
        visit_i128(i128);
        visit_u8(u8);
        visit_u16(u16);
        visit_u32(u32);
        visit_u64(u64);
        visit_u128(u128);
        visit_f32(f32);
        visit_f64(f64);
        visit_char(char);
        visit_str(&str);
        visit_borrowed_str(&'de str);
        visit_string(String);
        visit_bytes(&[u8]);
        visit_borrowed_bytes(&'de [u8]);
        visit_byte_buf(Vec<u8>);
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(NullIsAbsent(deserializer))
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(NullIsAbsent(deserializer))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, members: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Members(members))
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Members(members))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(data)
    }
}

/// The members of a list or map, which are read in the same way.
struct Members<A>(A);

/// The seed of a member.
struct Seed<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Seed<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(NullIsAbsent(deserializer))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Members<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Seed(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Members<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        // A key is never null.
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(Seed(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}
