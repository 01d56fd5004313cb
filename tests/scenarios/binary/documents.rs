//! What the program says of itself, and what the documents say of it: commands, options, and the table of tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use lab::lab::built;

use crate::{output, pve_verb, read, root};

/// `--option`s in a text.
fn options(text: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (at, _) in text.match_indices("--") {
        let before = text[..at].chars().next_back();
        let name: String = text[at + 2..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
        if name.len() > 1 && !name.starts_with('-') && !name.ends_with('-') && before.is_none_or(|c| !c.is_alphanumeric() && c != '-') {
            all.insert(format!("--{name}"));
        }
    }
    all
}

fn help(words: &[&str]) -> String {
    help_of(&pve_verb(), words)
}

fn help_of(program: &Path, words: &[&str]) -> String {
    let end = Command::new(program).args(words).arg("--help").output().unwrap();
    assert!(end.status.success(), "{words:?}");
    String::from_utf8(end.stdout).unwrap()
}

/// The commands that a help lists.
fn commands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1).take_while(|line| !line.is_empty());
    listed.filter_map(|line| Some(line.strip_prefix("  ")?.split(' ').next()?.to_owned())).filter(|word| !word.is_empty()).collect()
}

/// Every command of the program with its options.
fn program() -> BTreeMap<String, BTreeSet<String>> {
    let own = |text: &str| options(text).into_iter().filter(|name| name != "--help" && name != "--version").collect::<BTreeSet<_>>();
    let mut all = BTreeMap::new();
    for command in commands(&help(&[])) {
        let text = help(&[&command]);
        let below = commands(&text);
        if below.is_empty() {
            all.insert(command, own(&text));
        } else {
            for sub in below {
                let text = help(&[&command, &sub]);
                all.insert(format!("{command} {sub}"), own(&text));
            }
        }
    }
    assert!(all.len() >= 10, "{all:#?}");
    all
}

fn manual() -> String {
    read("pve-verb/pve-verb.8.md").replace("**", "").replace('*', "")
}

pub(crate) fn help_and_manual() {
    let (program, manual) = (program(), manual());
    let synopsis = &manual[..manual.find("# DESCRIPTION").unwrap()];
    let all: BTreeSet<String> = program.values().flatten().cloned().collect();
    for (command, options) in &program {
        let last = command.rsplit(' ').next().unwrap();
        assert!(synopsis.contains(&format!("pve-verb {command}")) || synopsis.contains(last), "{command} is not in the manual's synopsis");
        for option in options {
            assert!(manual.contains(option.as_str()), "{command} {option} is not in the manual");
        }
    }
    // Each entry of the manual is there, or says that it is not yet.
    let not_yet = |at: usize| manual[at..].split("\n\n").next().is_some_and(|entry| entry.contains("(not yet"));
    for (at, line) in manual.match_indices("\n--").map(|(at, _)| (at, manual[at + 1..].lines().next().unwrap())) {
        for option in options(line) {
            assert!(all.contains(&option) || not_yet(at), "the manual has {option}, the program does not");
        }
    }
    let verbs: Vec<&str> = program.keys().map(|command| command.split(' ').next().unwrap()).collect();
    let section = &manual[manual.find("# ADMIN'S COMMANDS").unwrap()..manual.find("# ADMIN'S OPTIONS").unwrap()];
    for entry in section.split("\n\n").filter(|entry| entry.contains("\n:   ")) {
        let command = entry.split([' ', '\n']).next().unwrap();
        assert!(verbs.contains(&command) || entry.contains("(not yet)"), "the manual has {command}, the program does not");
        assert!(
            !entry.contains("(not yet)") || !program.contains_key(entry.lines().next().unwrap()),
            "{command} is there, and the manual says not yet"
        );
    }
}

pub(crate) fn readme() {
    let (readme, program, manual) = (read("README.md"), program(), manual());
    let known: BTreeSet<String> = program.values().flatten().cloned().collect();
    let shown = &readme[..readme.find("## Not there yet").unwrap()];
    for line in shown.lines().filter(|line| line.contains("pve-verb ") || line.contains("ssh breakglass@HOST") || line.starts_with("| `--"))
    {
        if line.contains("cargo") || line.contains("scp ") || line.contains("ssh-keygen") {
            continue;
        }
        for option in options(line) {
            assert!(known.contains(&option), "the README shows {option}: {line}");
        }
        if let Some(rest) = line.trim_start().strip_prefix("pve-verb ") {
            let command = rest.split([' ', '\n']).next().unwrap();
            assert!(program.keys().any(|known| known.split(' ').next() == Some(command)), "the README shows pve-verb {command}");
        }
    }
    // The six verbs with the same bounds in both.
    for (verb, bound) in [("status", 3), ("forensics", 15), ("reset", 30), ("stop", 120), ("start", 135), ("cycle", 245)] {
        assert!(
            readme.lines().any(|line| line.starts_with(&format!("| `{verb}` |")) && line.ends_with(&format!("| {bound} s |"))),
            "{verb}"
        );
        let entry = manual.split("\n\n").find(|entry| entry.starts_with(&format!("{verb}\n:"))).unwrap();
        assert!(entry.contains(&format!("At most {bound} s")), "{entry}");
    }
}

/// README.md's lines that start `breakglass`, and the commands that it names in between.
pub(crate) fn readme_of_the_agent() {
    let (readme, program) = (read("README.md"), built("breakglass").unwrap());
    let known = commands(&help_of(&program, &[]));
    assert!(known.len() >= 10, "{known:?}");
    let mut shown = 0;
    for line in readme.lines() {
        let typed =
            line.strip_prefix("    ").into_iter().flat_map(|line| line.split(" -- ")).filter_map(|said| said.strip_prefix("breakglass "));
        for said in typed.chain(line.split('`').skip(1).step_by(2).filter_map(|said| said.strip_prefix("breakglass "))) {
            let command = said.split([' ', '`']).next().unwrap();
            assert!(known.iter().any(|known| known == command), "the README shows breakglass {command}: {line}");
            let mut help = help_of(&program, &[command]);
            for below in commands(&help) {
                help.push_str(&help_of(&program, &[command, &below]));
            }
            for option in options(said.split('#').next().unwrap()) {
                assert!(help.contains(&option), "the README shows breakglass {command} {option}");
            }
            shown += 1;
        }
    }
    assert!(shown > 10, "{shown} commands shown");
}

pub(crate) fn usage() {
    let printed = read("pve-verb/tests/text/usage.txt");
    let manual = manual();
    for option in options(&printed) {
        assert!(manual.contains(&option), "{option}");
    }
}

pub(crate) fn coverage() {
    let table = read("tests/COVERAGE.md");
    let list = output("git", &["ls-files", "--cached", "--others", "--exclude-standard", "*.rs", "*.py"]);
    let sources: String = list.lines().map(read).collect::<Vec<_>>().join("\n");
    let mut named = 0;
    for row in table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---") && !line.ends_with("| shown by |")) {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let names: Vec<&str> = last.split('`').skip(1).step_by(2).filter(|name| name.contains('_')).collect();
        assert!(!names.is_empty() || last.contains("gap:"), "neither a test nor a gap with its reason: {row}");
        for name in names {
            let there = sources.contains(&format!("\"{name}\""))
                || sources.contains(&format!("fn {name}("))
                || sources.contains(&format!("def {name}("));
            assert!(there, "{name} is no test: {row}");
            named += 1;
        }
    }
    assert!(named > 40, "{named} tests named");
}

/// The words of a text that look like a file of the repository.
fn files_named(text: &str) -> BTreeSet<String> {
    let of_a_path = |c: char| c.is_ascii_alphanumeric() || "/._-*".contains(c);
    let words = text.split(|c: char| !of_a_path(c)).map(|word| word.trim_start_matches('*').trim_end_matches(['.', '-', '*']));
    let folders = ["agent/", "docs/", "install/", "proto/", "pve-verb/", "tests/"];
    words.filter(|word| folders.iter().any(|folder| word.len() > folder.len() && word.starts_with(folder))).map(str::to_owned).collect()
}

pub(crate) fn files() {
    let all = output("git", &["ls-files", "--cached", "--others", "--exclude-standard"]);
    let all: Vec<&str> = all.lines().filter(|path| root().join(path).exists()).collect();
    // An ADR may be named by its number.
    let there = |named: &str| {
        let folder = format!("{}/", named.trim_end_matches('/'));
        let adr = |path: &&str| named.starts_with("docs/adr/") && path.starts_with(&format!("{named}-"));
        let (before, after) = named.split_once('*').unwrap_or((named, "\n"));
        all.iter().any(|path| *path == named || path.starts_with(&folder) || adr(path) || path.starts_with(before) && path.ends_with(after))
    };
    let told = |path: &&&str| (path.ends_with(".md") || path.starts_with("install/")) && !path.starts_with("tests/golden/");
    let (mut named, mut missing) = (0, Vec::new());
    for path in all.iter().filter(told) {
        for file in files_named(&read(path)) {
            named += 1;
            if !there(&file) {
                missing.push(format!("{path} names {file}, which is not there"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(named > 150, "{named} files named");
}

/// What of a Markdown text looks like a row of a table and is drawn as raw pipes, or loses cells: an empty line ends a table.
fn torn_rows(text: &str) -> Vec<usize> {
    let cells = |line: &str| line.replace("\\|", "").matches('|').count();
    let separates = |line: &str| line.contains("---") && line.chars().all(|c| "|-: ".contains(c));
    let lines: Vec<&str> = text.lines().collect();
    let line = |at: usize| lines.get(at).copied().unwrap_or_default();
    let (mut fenced, mut head, mut torn) = (false, 0, Vec::new());
    for (at, row) in lines.iter().enumerate() {
        fenced ^= row.starts_with("```");
        if fenced || !row.starts_with('|') {
            continue;
        }
        if at == 0 || !line(at - 1).starts_with('|') {
            head = cells(row);
            if at > 0 && !line(at - 1).is_empty() || !separates(line(at + 1)) {
                torn.push(at + 1);
            }
        }
        if cells(row) != head {
            torn.push(at + 1);
        }
    }
    torn
}

pub(crate) fn tables() {
    assert_eq!(torn_rows("| a | b |\n| --- | --- |\n| `c\\|d` | e |\n"), [0; 0]);
    assert_eq!(torn_rows("| a |\n| --- |\n| b |\n\n| c |\n| d |\n"), [5]);
    assert_eq!(torn_rows("text\n| a |\n| --- |\n| b | c |\n"), [2, 4]);
    let all = output("git", &["ls-files", "--cached", "--others", "--exclude-standard", "*.md"]);
    let torn: Vec<String> =
        all.lines().flat_map(|path| torn_rows(&read(path)).into_iter().map(move |line| format!("{path}:{line}"))).collect();
    assert!(torn.is_empty(), "rows that are drawn as raw pipes, or lose a cell: {torn:#?}");
    assert!(all.lines().count() > 30, "{all}");
}
