//! Undefined enum values. A request with one is rejected: prost would read it as the first value of its enum, which is not
//! what the client requests.

use std::fmt;

/// A message that can check its enum values. The implementations are generated. For messages that only a client receives
/// they do nothing, because a newer server may define more values.
pub trait Known {
    /// Checks the enum values of this message and of the messages in it.
    ///
    /// # Errors
    /// The first value that the proto does not define.
    fn check(&self) -> Result<(), Unknown>;
}

/// A value that its enum does not define.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The field, as a dotted path from the checked message.
    pub field: String,
    /// The number on the wire.
    pub value: i32,
    /// The name of the enum.
    pub kind: &'static str,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid {}: {} is not a value of {}", self.field, self.value, self.kind)
    }
}

impl std::error::Error for Unknown {}

impl Unknown {
    fn below(self, field: impl fmt::Display) -> Self {
        Self { field: format!("{field}.{}", self.field), ..self }
    }
}

pub(crate) fn value<E: TryFrom<i32>>(
    field: &'static str,
    kind: &'static str,
    value: i32,
) -> Result<(), Unknown> {
    match E::try_from(value) {
        Ok(_) => Ok(()),
        Err(_) => Err(Unknown { field: field.to_owned(), value, kind }),
    }
}

pub(crate) fn one(field: &'static str, message: Option<&impl Known>) -> Result<(), Unknown> {
    message.map_or(Ok(()), |message| message.check().map_err(|unknown| unknown.below(field)))
}

pub(crate) fn all(field: &'static str, messages: &[impl Known]) -> Result<(), Unknown> {
    let check = |(place, message): (usize, &_)| {
        Known::check(message).map_err(|unknown| unknown.below(format_args!("{field}[{place}]")))
    };
    messages.iter().enumerate().try_for_each(check)
}

mod generated {
    #![allow(deprecated, clippy::all, clippy::pedantic, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/enums.rs"));
}
