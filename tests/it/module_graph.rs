//! The modules of each crate form no circle: for every folder, the dependencies between its modules have one direction. The head of a folder lists its modules.
//! A module may use its parent and its children; such uses do not count, and neither do those of unit tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, Macro, UseTree};

use crate::support::syntax::{ROOTS, is_test, paths_of_macro};

/// The path of a module below its crate: `["store", "pod"]`.
type Module = Vec<String>;

/// A path in the source, as written: `["super", "Record"]`.
type Written = Vec<String>;

/// One module as it is read from its file.
#[derive(Default)]
struct Source {
    paths: Vec<Written>,
    /// Names that come from elsewhere, with where they come from: `use self::pod::Record` gives `Record`.
    imports: BTreeMap<String, Written>,
    children: BTreeSet<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl Source {
    fn import(&mut self, prefix: &Written, tree: &UseTree) {
        let with = |name: String| prefix.iter().cloned().chain([name]).collect::<Written>();
        match tree {
            UseTree::Path(path) => self.import(&with(path.ident.to_string()), &path.tree),
            UseTree::Name(name) if name.ident == "self" => self.paths.push(prefix.clone()),
            UseTree::Name(name) => self.imported(&name.ident.to_string(), with(name.ident.to_string())),
            UseTree::Rename(rename) => {
                self.imported(&rename.rename.to_string(), with(rename.ident.to_string()));
            }
            UseTree::Glob(_) => self.paths.push(prefix.clone()),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(prefix, tree)),
        }
    }

    fn imported(&mut self, name: &str, from: Written) {
        self.imports.insert(name.to_owned(), from.clone());
        self.paths.push(from);
    }
}

impl<'ast> Visit<'ast> for Source {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.import(&Written::new(), &item.tree);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.children.insert(item.ident.to_string());
        visit::visit_item_mod(self, item);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.paths.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.paths.extend(paths_of_macro(call));
        visit::visit_macro(self, call);
    }

    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}
}

/// All modules that are reached from a crate's root file.
fn read(root: &Path) -> BTreeMap<Module, Source> {
    let mut sources = BTreeMap::new();
    read_module(root, root.parent().unwrap(), &Module::new(), &mut sources);
    sources
}

fn read_module(file: &Path, folder: &Path, module: &Module, sources: &mut BTreeMap<Module, Source>) {
    let mut source = Source::default();
    let text = fs::read_to_string(file).unwrap();
    source.visit_file(&syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display())));
    for child in &source.children {
        let (plain, nested) = (folder.join(format!("{child}.rs")), folder.join(child).join("mod.rs"));
        let found = [plain, nested].into_iter().find(|file| file.exists());
        // A module in the same file was visited with it.
        if let Some(file) = found {
            let path = module.iter().chain([child]).cloned().collect();
            read_module(&file, &folder.join(child), &path, sources);
        }
    }
    sources.insert(module.clone(), source);
}

/// The module that a path of a module leads to, through imports of other modules.
fn target(
    sources: &BTreeMap<Module, Source>,
    from: &Module,
    path: &[String],
    depth: usize,
) -> Option<Module> {
    let (mut at, mut rest) = (from.clone(), path);
    match rest.first()?.as_str() {
        "crate" => at.clear(),
        "self" => {}
        "super" => drop(at.pop()),
        first if sources.get(from)?.children.contains(first) => rest = path,
        first => {
            // A name that was imported in this module.
            let import = sources.get(from)?.imports.get(first)?;
            if depth == 0 || import.first().is_some_and(|written| written == first) {
                return None;
            }
            return target(sources, from, import, depth - 1);
        }
    }
    if matches!(rest[0].as_str(), "crate" | "self" | "super") {
        rest = &rest[1..];
    }
    while let Some(next) = rest.first() {
        if next == "super" {
            at.pop();
        } else if sources.get(&at)?.children.contains(next) && sources.contains_key(&with(&at, next)) {
            at.push(next.clone());
        } else if depth > 0 && at != *from && sources.get(&at)?.imports.contains_key(next) {
            let import = &sources.get(&at)?.imports[next];
            let through = target(sources, &at, import, depth - 1);
            return through.or(Some(at));
        } else {
            break;
        }
        rest = &rest[1..];
    }
    Some(at)
}

fn with(module: &Module, child: &str) -> Module {
    module.iter().cloned().chain([child.to_owned()]).collect()
}

/// Which children of each module use which others, with one place for each.
type Edges = BTreeMap<Module, BTreeMap<String, BTreeMap<String, Module>>>;

fn edges(sources: &BTreeMap<Module, Source>) -> Edges {
    let mut edges = Edges::new();
    for (module, source) in sources {
        for path in &source.paths {
            let Some(to) = target(sources, module, path, 4) else { continue };
            let common = module.iter().zip(&to).take_while(|(left, right)| left == right).count();
            if let (Some(from), Some(to)) = (module.get(common), to.get(common)) {
                let folder = edges.entry(module[..common].to_vec()).or_default();
                folder.entry(from.clone()).or_default().entry(to.clone()).or_insert_with(|| module.clone());
            }
        }
    }
    edges
}

/// The modules that reach themselves.
fn circle(uses: &BTreeMap<String, BTreeMap<String, Module>>) -> BTreeSet<String> {
    let reached = |from: &String| {
        let mut reached = BTreeSet::new();
        let mut rest = vec![from];
        while let Some(next) = rest.pop() {
            for to in uses.get(next).into_iter().flat_map(BTreeMap::keys) {
                if reached.insert(to.clone()) {
                    rest.push(to);
                }
            }
        }
        reached
    };
    uses.keys().filter(|module| reached(module).contains(*module)).cloned().collect()
}

fn circles(root: &Path) -> String {
    let mut report = String::new();
    for (folder, uses) in edges(&read(root)) {
        let circle = circle(&uses);
        if circle.is_empty() {
            continue;
        }
        writeln!(report, "{} in crate::{}:", root.display(), folder.join("::")).unwrap();
        for (from, to) in uses.iter().filter(|(from, _)| circle.contains(*from)) {
            for (to, place) in to.iter().filter(|(to, _)| circle.contains(*to)) {
                writeln!(report, "    {from} uses {to} (in {})", place.join("::")).unwrap();
            }
        }
    }
    report
}

#[test]
fn modules_form_no_circle() {
    let report: String = ROOTS.iter().map(|file| circles(&root().join(file))).collect();
    assert!(report.is_empty(), "modules use each other in circles:\n{report}");
}

#[test]
fn a_circle_is_found_also_through_the_parent() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("lib.rs", "mod a; mod b; mod c; pub use b::Thing;");
    write("a.rs", "use crate::Thing; use crate::c::Other;");
    write("b.rs", "pub struct Thing; fn f() { super::c::g(); }");
    write("c.rs", "pub fn g() {} #[cfg(test)] mod tests { use crate::b::Thing; }");
    assert_eq!(circles(&folder.path().join("lib.rs")), "");
    for text in ["pub fn g() { crate::a::h(); }", "pub fn g() { format!(\"{}\", crate::a::h()); }"] {
        write("c.rs", text);
        let report = circles(&folder.path().join("lib.rs"));
        for line in ["a uses b", "b uses c", "c uses a"] {
            assert!(report.contains(line), "{text}: {report}");
        }
    }
}

/// Returns the modules of a folder that the head of its `mod.rs`, `lib.rs` or `main.rs` does not list.
fn unlisted(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let head: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
    let parsed = syn::parse_file(&text).unwrap();
    let modules = parsed.items.iter().filter_map(|item| match item {
        Item::Mod(item) if item.content.is_none() && !is_test(&item.attrs) => Some(item.ident.to_string()),
        _ => None,
    });
    let modules: Vec<String> = modules.collect();
    match modules.len() {
        0 | 1 => Vec::new(),
        _ => modules.into_iter().filter(|name| !head.contains(&format!("{name}`"))).collect(),
    }
}

#[test]
fn the_head_of_a_folder_lists_its_modules() {
    let mut folders: Vec<_> = ["shim", "runtime", "cni/src", "image/src", "oci/src", "bench/src"]
        .map(|name| root().join(name))
        .into();
    let mut report = String::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("tests") {
                folders.push(path);
            } else if ["mod.rs", "lib.rs", "main.rs"].iter().any(|name| path.ends_with(name)) {
                for name in unlisted(&path) {
                    writeln!(report, "{}: {name}", path.strip_prefix(root()).unwrap().display()).unwrap();
                }
            }
        }
    }
    assert!(report.is_empty(), "modules without an entry in the head of their folder:\n{report}");
}
