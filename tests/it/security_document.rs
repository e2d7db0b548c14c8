//! `docs/security.md` names only tests that exist, and every test of `tests/it/attacks`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENT: &str = include_str!("../../docs/security.md");

/// Returns the path of the module in a file below `tests/it`, as the document writes it. All attacks are one module there.
fn module(file: &Path) -> String {
    let names: Vec<_> =
        file.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    match names.as_slice() {
        [first, ..] if first == "attacks" => first.clone(),
        [folders @ .., last] if last == "mod" => folders.join("::"),
        names => names.join("::"),
    }
}

/// Returns the tests of a source file as `module::name`.
fn tests_of(module: &str, source: &str) -> BTreeSet<String> {
    let after = source.split("#[tokio::test").skip(1);
    let names = after.filter_map(|rest| rest.split_once("fn ")?.1.split_once('('));
    names.map(|(name, _)| format!("{module}::{name}")).collect()
}

/// Returns all tests below `tests/it`.
fn all_tests() -> BTreeSet<String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let mut folders: Vec<PathBuf> = vec![top.clone()];
    let mut tests = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = fs::read_to_string(&path).unwrap();
                tests.append(&mut tests_of(&module(path.strip_prefix(&top).unwrap()), &source));
            }
        }
    }
    tests
}

#[test]
fn security_md_names_every_attack_test_and_only_existing_tests() {
    let known = all_tests();
    let quoted = DOCUMENT.split('`').skip(1).step_by(2);
    let named: BTreeSet<String> =
        quoted.filter(|text| text.contains("::") && !text.ends_with("::")).map(str::to_owned).collect();
    let unknown: Vec<_> = named.difference(&known).collect();
    assert!(unknown.is_empty(), "docs/security.md names tests that do not exist: {unknown:?}");
    let missing: Vec<_> =
        known.iter().filter(|name| name.starts_with("attacks::") && !named.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/security.md does not name {missing:?}");
}
