//! Rules about the sources themselves (CONTRIBUTING.md): reasons of dependencies, no `unsafe`, short files.

use std::fs;
use std::path::Path;

use crate::{output, read, root};

/// Our crates' folders.
fn members() -> Vec<String> {
    let text = read("Cargo.toml");
    let line = text.lines().find(|line| line.starts_with("members = ")).unwrap();
    line.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Every file that git knows, with its text; binary ones left out.
fn files() -> Vec<(String, String)> {
    let list = output("git", &["ls-files"]);
    list.lines().filter_map(|path| Some((path.to_owned(), fs::read_to_string(root().join(path)).ok()?))).collect()
}

pub(crate) fn reasons() {
    let text = read("Cargo.toml");
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.iter().position(|line| *line == "[workspace.dependencies]").unwrap() + 1;
    let entries: Vec<usize> =
        (start..lines.len()).take_while(|at| !lines[*at].starts_with('[')).filter(|at| lines[*at].contains(" = ")).collect();
    assert!(entries.len() > 10);
    for at in entries {
        let above = (start..at).rev().map(|above| lines[above]).take_while(|line| !line.is_empty()).any(|line| line.starts_with('#'));
        assert!(above || lines[at].contains('#') || lines[at].starts_with("proto = "), "no reason stands at {}", lines[at]);
    }
    // What is no dependency of the workspace has its reason in the crate's own file.
    for member in members() {
        let text = read(&format!("{member}/Cargo.toml"));
        let mut last_was_reason = false;
        let mut inside = false;
        for line in text.lines() {
            if line.starts_with('[') {
                inside = line.contains("dependencies");
            } else if inside && line.contains(" = ") && !line.contains("workspace = true") {
                assert!(last_was_reason || line.contains('#'), "{member}: no reason stands at {line}");
            }
            last_was_reason = line.starts_with('#') || last_was_reason && !line.is_empty() && !line.starts_with('[');
        }
    }
}

pub(crate) fn no_unsafe() {
    let workspace = read("Cargo.toml");
    assert!(workspace.contains("[workspace.lints.rust]\nunsafe_code = \"forbid\""));
    for member in members() {
        assert!(
            read(&format!("{member}/Cargo.toml")).contains("[lints]\nworkspace = true"),
            "{member} does not take the workspace's lints"
        );
    }
    for (path, text) in files().iter().filter(|(path, _)| Path::new(path).extension().is_some_and(|ending| ending == "rs")) {
        for (n, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for (at, word) in code.match_indices(concat!("un", "safe")) {
                let (before, after) = (&code[..at], &code[at + word.len()..]);
                let whole = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
                    && !after.starts_with(|c: char| c.is_alphanumeric() || c == '_');
                let quoted = before.matches('"').count() % 2 == 1 || before.matches('`').count() % 2 == 1;
                assert!(!whole || quoted, "{path}:{}: {line}", n + 1);
            }
        }
    }
}

pub(crate) fn short_files() {
    let code = |path: &str| {
        Path::new(path).extension().is_some_and(|ending| ["rs", "sh", "toml", "py", "js", "css", "html"].iter().any(|code| ending == *code))
    };
    let long: Vec<String> = files()
        .iter()
        .filter(|(path, _)| code(path))
        .map(|(path, text)| (text.lines().count(), path))
        .filter(|(lines, _)| *lines > 400)
        .map(|(lines, path)| format!("{path}: {lines} lines"))
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}
