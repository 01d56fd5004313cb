//! Holds tests/SKIPPED to what is really ignored: nothing is left out without standing there, and nothing stands there that runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use libtest_mimic::Failed;

/// Compares the ignored trials of this program with the list, and shows that no other program of ours ignores any.
pub(crate) fn are_listed(ignored: &BTreeSet<String>) -> Result<(), Failed> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = std::fs::read_to_string(tests.join("SKIPPED"))?;
    let mut listed = BTreeSet::new();
    for line in list.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, reason) = line.split_once("  ").ok_or_else(|| format!("no reason: {line}"))?;
        if reason.trim().len() < 10 {
            return Err(format!("no reason: {line}").into());
        }
        // What has no `::` is a part of a test that runs, or what no test here can do.
        if name.contains("::") && !listed.insert(name.to_owned()) {
            return Err(format!("listed twice: {line}").into());
        }
    }
    let wrong: Vec<_> = listed.symmetric_difference(ignored).map(String::as_str).collect();
    if !wrong.is_empty() {
        return Err(format!("ignored and not listed, or listed and not ignored: {}", wrong.join(", ")).into());
    }
    elsewhere(tests)
}

/// Only golden.rs ignores trials; another file that does needs a comparison of its own.
fn elsewhere(tests: &Path) -> Result<(), Failed> {
    // In two parts, so that this file does not hold what it looks for.
    let marks = [["with_ignored", "_flag"].concat(), ["#[", "ignore"].concat()];
    let mut folders: Vec<PathBuf> = ["src", "scenarios", "../proto", "../pve-verb", "../agent"].map(|name| tests.join(name)).into();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(&folder)?.flatten().map(|entry| entry.path()) {
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("scenarios/golden.rs") {
                let text = std::fs::read_to_string(&path)?;
                if marks.iter().any(|mark| text.contains(mark)) {
                    return Err(format!("{} ignores tests that nothing compares with tests/SKIPPED", path.display()).into());
                }
            }
        }
    }
    Ok(())
}
