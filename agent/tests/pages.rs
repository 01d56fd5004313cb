//! The manual pages and completions are written from the command line's own definitions, and name every command.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::process::Command;

use clap::CommandFactory;

/// The example, which cargo builds with the tests.
fn pages() -> PathBuf {
    let built = std::env::current_exe().unwrap();
    built.parent().unwrap().parent().unwrap().join("examples/pages")
}

#[test]
fn every_command_has_its_page_and_its_completion() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("not there/yet");
    let end = Command::new(pages()).arg(&folder).output().unwrap();
    assert!(end.status.success(), "{end:?}");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let top = read("breakglass.1");
    for command in agent::cli::Cli::command().get_subcommands() {
        let name = command.get_name();
        assert!(top.contains(&name.replace('-', "\\-")), "{name} is not in breakglass.1");
        let page = read(&format!("breakglass-{name}.1"));
        assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}: {page}");
        assert!(page.contains("\\-\\-config"), "{name}: {page}");
        for completion in ["breakglass.bash", "_breakglass", "breakglass.fish"] {
            assert!(read(completion).contains(name), "{name} is not in {completion}");
        }
    }
}

#[test]
fn without_a_folder_it_says_what_it_wants() {
    let end = Command::new(pages()).output().unwrap();
    assert!(!end.status.success() && String::from_utf8_lossy(&end.stderr).contains("pages FOLDER"), "{end:?}");
    let end = Command::new(pages()).arg("/proc/none/of/that").output().unwrap();
    let said = String::from_utf8_lossy(&end.stderr);
    assert!(!end.status.success() && said.contains("/proc/none/of/that: ") && said.contains("Name a folder"), "{said}");
}
