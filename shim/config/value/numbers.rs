//! Numbers with limits.

use serde::Deserialize;

use super::{Described, InvalidValue, invalid};

checked! {
    /// A degree of parallelism.
    Parallel, "usize", usize => usize, parallel,
        "1 to 64"
}

checked! {
    /// A limit of at least 1.
    AtLeastOne, "u64", u64 => u64, at_least_one,
        "a number of at least 1"
}

checked! {
    /// A depth of nested folders. The kernel accepts at most 2047: a path of one-letter names up to PATH_MAX.
    Depth, "usize", usize => usize, depth,
        "1 to 2047"
}

fn parallel(count: usize) -> Result<usize, InvalidValue> {
    if (1..=64).contains(&count) { Ok(count) } else { invalid(format!("{count} is not from 1 to 64")) }
}

fn at_least_one(count: u64) -> Result<u64, InvalidValue> {
    if count > 0 { Ok(count) } else { invalid("is 0, and must be at least 1") }
}

fn depth(count: usize) -> Result<usize, InvalidValue> {
    if (1..=2047).contains(&count) { Ok(count) } else { invalid(format!("{count} is not from 1 to 2047")) }
}
