//! The documents name files that exist, and their links lead to files and headings that exist.

use std::fs;
use std::path::{Path, PathBuf};

/// Paths of other projects that a document names.
const ELSEWHERE: [&str; 3] = ["src/lib.rs", "src/fragment.rs", "_default/hosts.toml"];

/// Endings of source files.
const SOURCES: [&str; 5] = [".rs", ".py", ".sh", ".proto", ".toml"];

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The documents at the top, in `docs` and in the folders that have their own.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![top().to_owned(), top().join("docs"), top().join("tests"), top().join("bench")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            } else if path.is_dir() && folder.starts_with(top().join("docs")) {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The paths of source files in a line: words with a slash and the ending of a source file.
fn paths(line: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-./:~".contains(c);
    line.split(move |c| !is_part(c))
        .map(|word| word.trim_end_matches(['.', ':']))
        .filter(|word| word.contains('/') && SOURCES.iter().any(|ending| word.ends_with(ending)))
        .filter(|word| !word.starts_with(['/', '~', '.']) && !word.contains("//"))
}

/// The targets of the links of a line.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn has_anchor(document: &Path, wanted: &str) -> bool {
    let text = fs::read_to_string(document).unwrap();
    let mut headings = text.lines().filter(|line| line.starts_with('#'));
    headings.any(|line| anchor(line.trim_start_matches('#')) == wanted)
}

/// Whether a link leads to a file, or to a heading of a document.
fn leads(document: &Path, link: &str) -> bool {
    if link.contains("://") || link.starts_with("mailto:") {
        return true;
    }
    let (file, heading) = link.split_once('#').unwrap_or((link, ""));
    let target = if file.is_empty() { document.to_owned() } else { document.parent().unwrap().join(file) };
    target.exists()
        && (heading.is_empty()
            || target.extension().is_none_or(|e| e != "md")
            || has_anchor(&target, heading))
}

#[test]
fn documents_name_files_that_exist() {
    let mut missing = Vec::new();
    for document in documents() {
        // Entries about former releases have the names of their time.
        if document.ends_with("CHANGELOG.md") {
            continue;
        }
        let beside = document.parent().unwrap().to_owned();
        for (number, line) in fs::read_to_string(&document).unwrap().lines().enumerate() {
            for path in paths(line).filter(|path| !ELSEWHERE.contains(path)) {
                // Tables name folders of the crate `shim` without it.
                if ![top().to_owned(), beside.clone(), top().join("shim")]
                    .iter()
                    .any(|base| base.join(path).exists())
                {
                    missing.push(format!("{}:{}: {path}", document.display(), number + 1));
                }
            }
        }
    }
    assert!(missing.is_empty(), "files that do not exist:\n{}", missing.join("\n"));
}

#[test]
fn links_of_documents_lead_somewhere() {
    let mut dead = Vec::new();
    for document in documents() {
        for (number, line) in fs::read_to_string(&document).unwrap().lines().enumerate() {
            for link in links(line).filter(|link| !leads(&document, link)) {
                dead.push(format!("{}:{}: {link}", document.display(), number + 1));
            }
        }
    }
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
}

#[test]
fn paths_and_anchors_are_found_in_text() {
    let line = "See `shim/pod/run.rs`, (runtime/src/wire) and docs/a.md, https://x/y.rs and `tests/run.sh`.";
    assert_eq!(paths(line).collect::<Vec<_>>(), ["shim/pod/run.rs", "tests/run.sh"]);
    assert_eq!(links("[a](b.md#c), [d](#e)").collect::<Vec<_>>(), ["b.md#c", "#e"]);
    assert_eq!(anchor(" Walk 1: `RunPodSandbox`"), "walk-1-runpodsandbox");
    assert!(leads(&top().join("README.md"), "docs/architecture.md#the-network"));
    assert!(!leads(&top().join("README.md"), "docs/architecture.md#no-such-heading"));
}

/// A file that no module declaration names is not compiled, and its tests do not run.
#[test]
fn every_file_of_the_integration_tests_is_a_module() {
    let folder = top().join("tests/it");
    let main = fs::read_to_string(folder.join("main.rs")).unwrap();
    let names = fs::read_dir(&folder).unwrap().flatten().filter_map(|entry| {
        let path = entry.path();
        path.file_stem().map(|name| name.to_string_lossy().into_owned()).filter(|name| name != "main")
    });
    let missing: Vec<_> = names.filter(|name| !main.contains(&format!("mod {name};"))).collect();
    assert!(missing.is_empty(), "not in main.rs: {missing:?}");
}
