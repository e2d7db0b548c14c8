//! Functions take the parts of the daemon that they use. Few take the whole daemon: the entries of the operations on pods
//! and containers, recovery, and the constructors of the services and of smaller parts.

use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{FnArg, Signature, Type};

/// The names of the type in `shim/daemon.rs` and of its shared form.
const WHOLE: [&str; 2] = ["Daemon", "Shared"];

/// Fewer functions than this take the whole daemon.
const LIMIT: usize = 20;

/// The functions of one file that take the whole daemon.
#[derive(Default)]
struct Takers {
    names: Vec<String>,
    /// Inside an `impl` block of the daemon, where `self` is the whole daemon.
    is_method: bool,
}

/// Whether a type contains the whole daemon, by reference or in an `Arc`.
fn is_whole(kind: &Type) -> bool {
    struct Finder(bool);
    impl Visit<'_> for Finder {
        fn visit_path_segment(&mut self, segment: &syn::PathSegment) {
            self.0 |= WHOLE.iter().any(|name| segment.ident == name);
            visit::visit_path_segment(self, segment);
        }
    }
    let mut finder = Finder(false);
    finder.visit_type(kind);
    finder.0
}

impl<'ast> Visit<'ast> for Takers {
    fn visit_item_impl(&mut self, block: &'ast syn::ItemImpl) {
        let outer = std::mem::replace(&mut self.is_method, is_whole(&block.self_ty));
        visit::visit_item_impl(self, block);
        self.is_method = outer;
    }

    fn visit_signature(&mut self, signature: &'ast Signature) {
        let is_whole = |input: &FnArg| match input {
            FnArg::Receiver(_) => self.is_method,
            FnArg::Typed(input) => is_whole(&input.ty),
        };
        if signature.inputs.iter().any(is_whole) {
            self.names.push(signature.ident.to_string());
        }
    }
}

fn takers(text: &str) -> Vec<String> {
    let mut takers = Takers::default();
    takers.visit_file(&syn::parse_file(text).unwrap());
    takers.names
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn few_functions_take_the_whole_daemon() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("shim"), &mut files);
    let names: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let found = takers(&fs::read_to_string(file).unwrap());
            found.into_iter().map(|name| format!("{}: {name}", file.display()))
        })
        .collect();
    println!("{} functions take the whole daemon:\n{}", names.len(), names.join("\n"));
    assert!(!names.is_empty(), "the type has another name now");
    assert!(names.len() < LIMIT, "{} functions take the whole daemon:\n{}", names.len(), names.join("\n"));
}

#[test]
fn every_form_of_the_daemon_is_found() {
    let text = "
        impl Daemon { fn method(&self) {} fn open() {} }
        fn reference(d: &Daemon) {} fn shared(d: Shared) {} fn arc(d: &Arc<crate::daemon::Daemon>) {}
        impl Other { fn inner(&self, name: &str, d: &Shared) {} fn not(&self) {} }
        fn part(pods: &Pods) -> Shared { fn nested(d: &Daemon) {} }
    ";
    assert_eq!(takers(text), ["method", "reference", "shared", "arc", "inner"]);
}
