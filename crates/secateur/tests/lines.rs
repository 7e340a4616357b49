//! Rules of the text in sources: its width, and what messages name.

use std::path::{Path, PathBuf};

const WIDEST: usize = 100;

/// The files with one of these endings, without what is built or downloaded.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_left_out = name.starts_with('.') || ["target", "results", "venv"].contains(&&*name);
        if path.is_dir() && !is_left_out {
            files(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs" || ending == "md") {
            found.push(path);
        }
    }
}

#[test]
fn lines_fit_a_hundred_columns() {
    let mut found = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."), &mut found);
    assert!(found.len() > 200, "{} files", found.len());
    let mut wide = Vec::new();
    for path in found {
        let text = std::fs::read_to_string(&path).unwrap();
        let is_markdown = path.extension().is_some_and(|ending| ending == "md");
        let may_be_wide = |line: &str| {
            is_markdown && ["|", "![", "["].iter().any(|start| line.starts_with(start))
        };
        for (number, line) in (1..).zip(text.lines()) {
            if line.chars().count() > WIDEST && !may_be_wide(line.trim_start()) {
                wide.push(format!("{}:{number}: {line}", path.display()));
            }
        }
    }
    assert!(wide.is_empty(), "{}", wide.join("\n"));
}

/// The command line alone knows its options: messages of the libraries name settings in backquotes,
/// which it prints as options.
#[test]
fn messages_of_libraries_name_no_option() {
    let mut found = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut found);
    let is_library = |path: &Path| {
        let knows = ["cli", "cli.rs", "main.rs", "settings", "tests", "examples", "build.rs"];
        let mut parts = path.iter().map(|part| part.to_string_lossy());
        parts.all(|part| !knows.contains(&&*part))
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    found.retain(|path| {
        path.extension().is_some_and(|ending| ending == "rs")
            && is_library(path.strip_prefix(&root).unwrap())
    });
    assert!(found.len() > 100, "{} files", found.len());
    let is_option = |part: &str| part.starts_with(|c: char| c.is_ascii_lowercase());
    let mut named = Vec::new();
    for path in found {
        let text = std::fs::read_to_string(&path).unwrap();
        let own = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in (1..).zip(own.lines()) {
            let is_comment = line.trim_start().starts_with("//");
            if !is_comment && line.split("--").skip(1).any(is_option) {
                named.push(format!("{}:{number}: {line}", path.display()));
            }
        }
    }
    assert!(named.is_empty(), "{}", named.join("\n"));
}
