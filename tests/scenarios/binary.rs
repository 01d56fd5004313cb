//! The shipped binary and the sources it comes from: static, small, of few packages with known licences, without `unsafe`; its help,
//! manual page and README agree; and `tests/COVERAGE.md` names only tests that exist. Needs no VM and no root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

#[path = "binary/bans.rs"]
mod bans;
#[path = "binary/documents.rs"]
mod documents;
#[path = "binary/sources.rs"]
mod sources;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use lab::lab::built;
use libtest_mimic::{Arguments, Trial};

type Check = (&'static str, fn());

const CHECKS: &[Check] = &[
    ("when_the_binary_is_looked_at_then_it_is_static_and_small", static_and_small),
    ("when_the_binary_is_searched_then_it_names_neither_the_builder_s_host_nor_the_sources_folder", no_leaks),
    ("when_pve_verb_s_packages_are_counted_then_there_are_at_most_75", few_packages),
    ("when_licences_are_listed_then_each_is_allowed", licences),
    ("when_dependencies_are_listed_then_none_that_is_banned_came_in", bans::kept),
    ("when_a_release_is_made_then_its_version_toolchain_and_licences_are_stated", bans::rust_version),
    ("when_a_dependency_stands_in_the_workspace_then_its_reason_stands_above_it", sources::reasons),
    ("when_the_sources_are_searched_then_unsafe_is_forbidden_everywhere", sources::no_unsafe),
    ("when_a_source_file_is_measured_then_it_has_at_most_400_lines", sources::short_files),
    ("when_help_and_manual_are_compared_then_they_agree", documents::help_and_manual),
    ("when_the_readme_names_a_command_or_an_option_then_it_is_there", documents::readme),
    ("when_the_readme_shows_a_command_of_breakglass_then_it_is_there", documents::readme_of_the_agent),
    ("when_the_usage_names_an_option_then_the_manual_has_it", documents::usage),
    ("when_a_document_names_a_file_of_the_repository_then_it_is_there", documents::files),
    ("when_a_document_has_a_table_then_every_row_of_it_is_one", documents::tables),
    ("when_the_coverage_table_names_a_test_then_it_exists", documents::coverage),
];

fn main() {
    let trials = CHECKS.iter().map(|&(name, check)| {
        Trial::test(name, move || {
            check();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit()
}

/// The workspace's folder.
fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn output(program: &str, arguments: &[&str]) -> String {
    let end = Command::new(program).args(arguments).current_dir(root()).output().unwrap();
    assert!(end.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&end.stderr));
    String::from_utf8(end.stdout).unwrap()
}

fn pve_verb() -> PathBuf {
    let path = built("pve-verb").unwrap();
    assert!(
        path.to_string_lossy().contains("/release/") || std::env::var_os("BREAKGLASS_BIN").is_some(),
        "{} is not the shipped build",
        path.display()
    );
    path
}

fn word(bytes: &[u8], at: usize, size: usize) -> u64 {
    bytes[at..at + size].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

fn number(bytes: &[u8], at: usize, size: usize) -> usize {
    usize::try_from(word(bytes, at, size)).unwrap()
}

fn static_and_small() {
    let bytes = fs::read(pve_verb()).unwrap();
    // What grows it is our own code: the packages are counted below. A jump shows here.
    assert!(bytes.len() <= 9 << 19, "{} bytes", bytes.len());
    assert_eq!(&bytes[..5], b"\x7fELF\x02", "a 64-bit ELF file");
    let (headers, size, count) = (number(&bytes, 32, 8), number(&bytes, 54, 2), number(&bytes, 56, 2));
    for n in 0..count {
        let at = headers + n * size;
        match word(&bytes, at, 4) {
            3 => panic!("it has an interpreter (PT_INTERP)"),
            2 => {
                let (from, long) = (number(&bytes, at + 8, 8), number(&bytes, at + 32, 8));
                let needed = (0..long / 16).filter(|entry| word(&bytes, from + entry * 16, 8) == 1).count();
                assert_eq!(needed, 0, "it needs shared libraries (DT_NEEDED)");
            }
            // A stack that can be executed.
            0x6474_e551 => assert_eq!(word(&bytes, at + 4, 4) & 1, 0, "its stack is executable"),
            _ => {}
        }
    }
    let sections = (number(&bytes, 40, 8), number(&bytes, 58, 2), number(&bytes, 60, 2));
    let symbols = (0..sections.2).any(|n| word(&bytes, sections.0 + n * sections.1 + 4, 4) == 2);
    assert!(!symbols, "it is not stripped (SHT_SYMTAB)");
}

fn no_leaks() {
    let bytes = fs::read(pve_verb()).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    let folder = root().canonicalize().unwrap().to_string_lossy().into_owned();
    // A short or common name may be there by chance.
    assert!(host.len() < 6 || !has(&host), "the host's name {host} is in it");
    assert!(!has(&format!("{folder}/")), "the sources' folder {folder} is in it");
    for word in ["BREAKGLASS_LAB", "BREAKGLASS_BIN", "/run/lab", "test_hook"] {
        assert!(!has(word), "{word} is in it");
    }
}

fn few_packages() {
    let tree = output("cargo", &["tree", "--locked", "--offline", "-p", "pve-verb", "-e", "normal", "--prefix", "none", "--no-dedupe"]);
    let packages: BTreeSet<String> = tree.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert!((20..=75).contains(&packages.len()), "{} packages: {packages:#?}", packages.len());
    for banned in ["tokio", "reqwest", "rustls", "openssl-sys", "native-tls", "libssh2-sys", "async-std", "hyper"] {
        assert!(!packages.iter().any(|package| package.starts_with(&format!("{banned} "))), "{banned} came in");
    }
}

/// What cargo says about every package that is built in, without the network.
fn metadata() -> serde_json::Value {
    let text =
        output("cargo", &["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"]);
    serde_json::from_str(&text).unwrap()
}

fn licences() {
    let deny: toml_lines::Lines = toml_lines::array(&read("deny.toml"), "allow");
    assert!(deny.contains("MIT") && deny.contains("Apache-2.0"), "{deny:?}");
    let metadata = metadata();
    let used: BTreeSet<&str> = metadata["resolve"]["nodes"].as_array().unwrap().iter().filter_map(|node| node["id"].as_str()).collect();
    let packages =
        metadata["packages"].as_array().unwrap().iter().filter(|package| package["id"].as_str().is_some_and(|id| used.contains(id)));
    for package in packages {
        let (name, licence) = (package["name"].as_str().unwrap(), package["license"].as_str().unwrap_or_default());
        assert!(allowed(licence, &deny), "{name}: {licence:?} is not among {deny:?}");
    }
}

/// Whether an SPDX expression can be met with these licences. OR binds weaker than AND; `/` is an old OR.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    any(&words, &mut at, allow) && at == words.len()
}

fn any(words: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> bool {
    let mut good = all(words, at, allow);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        good |= all(words, at, allow);
    }
    good
}

fn all(words: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> bool {
    let mut good = one(words, at, allow);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        good &= one(words, at, allow);
    }
    good
}

fn one(words: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let good = any(words, at, allow);
        *at += 1;
        return good;
    }
    if words.get(*at) == Some(&"WITH") {
        *at += 2; // an exception only adds permissions
    }
    allow.contains(*word)
}

/// As much of TOML as `deny.toml` needs: the strings of one array, comments left out.
mod toml_lines {
    use std::collections::BTreeSet;

    pub(crate) type Lines = BTreeSet<String>;

    pub(crate) fn array(text: &str, name: &str) -> Lines {
        let start = text.find(&format!("\n{name} = [")).expect("no such array");
        let body = &text[start..][..text[start..].find("\n]").expect("no end")];
        body.lines().skip(1).filter_map(|line| Some(line.trim().strip_prefix('"')?.split_once('"')?.0.to_owned())).collect()
    }
}
