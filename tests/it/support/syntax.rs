//! The source of berth, as the tests of its structure read it.

use syn::{Attribute, Macro};

/// The root files of the crates.
pub const ROOTS: [&str; 12] = [
    "bench/src/main.rs",
    "cni/src/lib.rs",
    "demo/src/main.rs",
    "failpoint/src/lib.rs",
    "image/src/lib.rs",
    "json/src/lib.rs",
    "oci/src/lib.rs",
    "proto/src/lib.rs",
    "runtime/keeper/src/main.rs",
    "runtime/pause/src/main.rs",
    "runtime/src/lib.rs",
    "shim/lib.rs",
];

/// Returns whether an item exists only in tests.
pub fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| {
                let condition = list.tokens.to_string();
                condition.contains("test") && !condition.contains("not")
            })
    })
}

/// Returns the paths with `::` in the arguments of a macro, which are tokens without a syntax.
pub fn paths_of_macro(call: &Macro) -> Vec<Vec<String>> {
    let tokens = call.tokens.to_string();
    // Every second part is a string literal.
    let code: String = tokens.replace("\\\"", "").split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let code = code.replace(" :: ", "::").replace(":: ", "::");
    code.split(|c: char| !(c.is_alphanumeric() || "_:".contains(c)))
        .filter(|word| word.contains("::"))
        .map(|path| path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect())
        .filter(|path: &Vec<String>| path.len() > 1)
        .collect()
}
