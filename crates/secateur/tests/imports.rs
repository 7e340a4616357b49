//! How the files of every crate import each other: in no circle, and in the order that `lib.rs`
//! lists the modules in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A path of modules and an item, such as `["plan", "package", "Package"]`; of the crate's root
/// nothing.
type ItemPath = Vec<String>;

/// A crate's files, by module path; the root is empty.
struct Crate {
    files: BTreeMap<ItemPath, String>,
    /// What files re-export: by module and name, the path of the item.
    reexports: BTreeMap<(ItemPath, String), ItemPath>,
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The text before the tests, without comments.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// `a::{b, c::{d as e, self}}` as `a::b`, `a::c::d` and `a::c`.
fn expand(tree: &str) -> Vec<ItemPath> {
    let tree = tree.trim();
    let Some((prefix, rest)) = tree.split_once('{') else {
        let path = tree.split_whitespace().next().unwrap_or_default();
        return vec![path.split("::").filter(|part| *part != "self").map(str::to_owned).collect()];
    };
    // Other text may look like an import.
    let Some(inside) = rest.strip_suffix('}') else { return Vec::new() };
    let (mut depth, mut start, mut paths) = (0, 0, Vec::new());
    for (place, c) in inside.char_indices().chain([(inside.len(), ',')]) {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ',' && depth == 0 {
            if !inside[start..place].trim().is_empty() {
                paths.extend(expand(&format!("{prefix}{}", inside[start..place].trim())));
            }
            start = place + 1;
        }
    }
    paths
}

/// The trees of all `use` items, each with whether it is a re-export.
fn uses(code: &str) -> Vec<(bool, Vec<ItemPath>)> {
    let mut found = Vec::new();
    for (place, _) in code.match_indices("use ") {
        let line = code[..place].rsplit('\n').next().unwrap_or_default();
        let is_item =
            line.trim().is_empty() || (line.trim_start().starts_with("pub") && !line.contains('='));
        if let Some((tree, _)) = code[place + 4..].split_once(';').filter(|_| is_item) {
            found.push((
                line.contains("pub"),
                expand(&tree.split_whitespace().collect::<Vec<_>>().join(" ")),
            ));
        }
    }
    found
}

impl Crate {
    fn read(source: &Path) -> Self {
        let (mut files, mut folders) = (BTreeMap::new(), vec![source.to_owned()]);
        while let Some(folder) = folders.pop() {
            for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|ending| ending == "rs") {
                    let within = path.strip_prefix(source).unwrap().with_extension("");
                    let parts = within.iter().map(|part| part.to_str().unwrap().to_owned());
                    let module = parts
                        .filter(|part| !["lib", "main", "mod"].contains(&part.as_str()))
                        .collect();
                    files.insert(module, code(&std::fs::read_to_string(&path).unwrap()));
                }
            }
        }
        let mut all = Self { files, reexports: BTreeMap::new() };
        let mut reexports = BTreeMap::new();
        for (module, code) in &all.files {
            for path in
                uses(code).into_iter().filter(|(public, _)| *public).flat_map(|(_, paths)| paths)
            {
                if let (Some(name), Some(path)) = (path.last(), all.absolute(module, &path)) {
                    reexports.insert((module.clone(), name.clone()), path);
                }
            }
        }
        all.reexports = reexports;
        all
    }

    /// A path as it is from the crate's root; nothing where it leads to another crate.
    fn absolute(&self, module: &ItemPath, path: &[String]) -> Option<ItemPath> {
        let first = path.first()?.as_str();
        if first == "crate" {
            return Some(path[1..].to_vec());
        }
        let ups = path.iter().take_while(|part| *part == "super").count();
        if ups > 0 {
            return Some([&module[..module.len().checked_sub(ups)?], &path[ups..]].concat());
        }
        let child = [module.as_slice(), &path[..1]].concat();
        self.files.contains_key(&child).then(|| [module.as_slice(), path].concat())
    }

    /// The file in which an item is.
    fn file_of(&self, path: &[String], depth: usize) -> ItemPath {
        let length = (0..=path.len())
            .rev()
            .find(|&length| self.files.contains_key(&path[..length]))
            .unwrap_or(0);
        let module = path[..length].to_vec();
        let name = path.get(length).cloned().unwrap_or_default();
        match self.reexports.get(&(module.clone(), name)) {
            Some(item) if depth > 0 && item != path => self.file_of(item, depth - 1),
            _ => module,
        }
    }

    /// The files that each file imports from: by `use`, or by paths in its code.
    fn imports(&self) -> BTreeMap<ItemPath, BTreeSet<ItemPath>> {
        let of_file = |(module, code): (&ItemPath, &String)| {
            let mut paths: Vec<ItemPath> =
                uses(code).into_iter().filter(|(public, _)| !public).flat_map(|u| u.1).collect();
            for start in ["crate::", "super::"] {
                for (place, _) in code.match_indices(start) {
                    let path =
                        code[place..].split(|c| !is_word(c) && c != ':').next().unwrap_or_default();
                    let is_use = code[..place]
                        .rsplit(['\n', ';'])
                        .next()
                        .unwrap_or_default()
                        .contains("use ");
                    if !is_use && !code[..place].ends_with([':', '$']) {
                        paths.push(
                            path.trim_end_matches(':').split("::").map(str::to_owned).collect(),
                        );
                    }
                }
            }
            // A child is named without a prefix.
            let children = self
                .files
                .keys()
                .filter(|file| file.len() == module.len() + 1 && file.starts_with(module));
            for child in children.filter_map(|file| file.last()) {
                let start = format!("{child}::");
                let mut starts = code.match_indices(&start).map(|(place, _)| &code[..place]);
                let is_use = |before: &str| {
                    before.rsplit(['\n', ';']).next().unwrap_or_default().contains("use ")
                };
                if starts
                    .any(|before| !before.ends_with(|c| is_word(c) || c == ':') && !is_use(before))
                {
                    paths.push(vec![child.clone()]);
                }
            }
            let absolute = paths.iter().filter_map(|path| self.absolute(module, path));
            let files = absolute.map(|path| self.file_of(&path, 8)).filter(|file| file != module);
            (module.clone(), files.collect())
        };
        self.files.iter().map(of_file).collect()
    }

    /// The modules of the root, in the order of the file.
    fn order(&self) -> Vec<String> {
        let lines = self.files[&ItemPath::new()].lines();
        let module =
            |line: &str| Some(line.trim().strip_suffix(';')?.rsplit_once("mod ")?.1.to_owned());
        lines.filter_map(module).collect()
    }
}

/// Takes away, as long as there are any, files that import from none of the others: what is left is
/// in circles or imports from them.
fn circles(imports: &BTreeMap<ItemPath, BTreeSet<ItemPath>>) -> BTreeSet<ItemPath> {
    let mut left: BTreeSet<ItemPath> = imports.keys().cloned().collect();
    loop {
        let leads_in = |file: &ItemPath| imports[file].iter().any(|other| left.contains(other));
        let ends: Vec<ItemPath> = left.iter().filter(|file| !leads_in(file)).cloned().collect();
        if ends.is_empty() {
            return left;
        }
        left.retain(|file| !ends.contains(file));
    }
}

fn sources() -> Vec<PathBuf> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources: Vec<PathBuf> =
        std::fs::read_dir(crates).unwrap().map(|entry| entry.unwrap().path()).collect();
    sources.sort();
    sources.into_iter().map(|path| path.join("src")).filter(|path| path.is_dir()).collect()
}

fn problems(source: &Path) -> Vec<String> {
    let all = Crate::read(source);
    let imports = all.imports();
    let name =
        |file: &ItemPath| if file.is_empty() { "the root".to_owned() } else { file.join("/") };
    let in_circles = circles(&imports);
    let mut problems: Vec<String> = in_circles
        .iter()
        .map(|file| {
            let others: Vec<_> = imports[file].intersection(&in_circles).map(name).collect();
            format!(
                "{} is in a circle, or leads to one: it imports from {}",
                name(file),
                others.join(", ")
            )
        })
        .collect();
    let order = all.order();
    let place = |file: &ItemPath| order.iter().position(|module| Some(module) == file.first());
    for (file, others) in &imports {
        for other in others.iter().filter(|other| place(other) > place(file) && !file.is_empty()) {
            problems.push(format!(
                "{} imports from {}, which lib.rs lists below it",
                name(file),
                name(other)
            ));
        }
    }
    problems
}

#[test]
fn files_import_in_no_circle_and_from_above() {
    let sources = sources();
    assert!(sources.len() >= 7, "{sources:?}");
    for source in sources {
        let problems = problems(&source);
        assert!(problems.is_empty(), "{}:\n{}", source.display(), problems.join("\n"));
    }
}

#[test]
fn circles_and_wrong_orders_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("lib.rs", "mod low;\nmod high;\npub use low::Low;\n");
    write("low.rs", "mod part;\npub use part::Low;\n");
    write("low/part.rs", "pub struct Low;\n");
    write("high.rs", "use crate::low::{Low as Renamed};\n");
    assert_eq!(problems(folder.path()), Vec::<String>::new());
    // Through a re-export, to the file in which it is.
    write("low/part.rs", "use crate::high::High;\npub struct Low;\n");
    let found = problems(folder.path());
    assert!(found.iter().any(|problem| problem.starts_with("high is in a circle")), "{found:?}");
    assert!(
        found.iter().any(|problem| problem.starts_with("low/part imports from high, which")),
        "{found:?}"
    );
    // In the tests of a file anything is allowed.
    write(
        "low/part.rs",
        "pub struct Low;\n#[cfg(test)]\nmod tests {\n    use crate::high::High;\n}\n",
    );
    assert_eq!(problems(folder.path()), Vec::<String>::new());
    // A child that imports from its parent, which calls it.
    write("low.rs", "mod part;\nfn low() { part::low() }\nfn shared() {}\n");
    write("low/part.rs", "use super::shared;\npub fn low() {}\n");
    assert_eq!(problems(folder.path()).len(), 3);
    write("low.rs", "mod part;\npub use part::Low;\n");
    // A path without a use counts too.
    write("low/part.rs", "pub fn low() { super::super::high::high() }\n");
    assert!(!problems(folder.path()).is_empty());
}
