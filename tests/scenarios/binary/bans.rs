//! `deny.toml`'s bans without the network: who depends on what, by cargo's own word. The advisories need `cargo deny check`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{metadata, read};

/// Each banned crate, with those that may depend on it.
fn bans() -> BTreeMap<String, BTreeSet<String>> {
    let text = read("deny.toml");
    let list = text.split("\ndeny = [").nth(1).expect("bans").split("\n]").next().unwrap();
    let entries = list.split("{ name = \"").skip(1);
    let strings = |text: &str| text.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    let one = |entry: &str| {
        let (name, rest) = entry.split_once('"').unwrap();
        let wrappers = rest.split_once("wrappers = [").map(|(_, list)| strings(list.split(']').next().unwrap())).unwrap_or_default();
        (name.to_owned(), wrappers)
    };
    entries.map(one).collect()
}

/// Every edge from a crate to one that is banned and that it is no wrapper of.
fn broken(bans: &BTreeMap<String, BTreeSet<String>>, metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeMap<&str, &str> =
        packages.iter().map(|package| (package["id"].as_str().unwrap(), package["name"].as_str().unwrap())).collect();
    let mut wrong = Vec::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let by = names[node["id"].as_str().unwrap()];
        for dependency in node["deps"].as_array().unwrap() {
            let on = names[dependency["pkg"].as_str().unwrap()];
            if bans.get(on).is_some_and(|wrappers| !wrappers.contains(by)) {
                wrong.push(format!("{by} depends on {on}"));
            }
        }
    }
    wrong
}

pub(crate) fn kept() {
    let (mut bans, metadata) = (bans(), metadata());
    assert!(bans.len() >= 5 && bans["tokio"].contains("agent") && bans["native-tls"].is_empty(), "{bans:?}");
    assert_eq!(broken(&bans, &metadata), Vec::<String>::new());
    // It sees what it looks for.
    bans.get_mut("tokio").unwrap().remove("agent");
    assert_eq!(broken(&bans, &metadata), ["agent depends on tokio"]);
}

/// The toolchain is stated once, and every crate takes it.
pub(crate) fn rust_version() {
    let root = read("Cargo.toml");
    let stated = root.lines().find_map(|line| line.strip_prefix("rust-version = \"")).unwrap().split('"').next().unwrap();
    let metadata = metadata();
    let own = |package: &&Value| package["source"].is_null();
    let ours: Vec<&Value> = metadata["packages"].as_array().unwrap().iter().filter(own).collect();
    assert!(ours.len() >= 4);
    for package in ours {
        assert_eq!(package["rust_version"].as_str().map(|version| version.starts_with(stated)), Some(true), "{}", package["name"]);
        assert_eq!(package["license"], "Apache-2.0 OR MIT", "{}", package["name"]);
    }
    for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
        assert!(read(licence).len() > 500, "{licence}");
    }
    // What is to be tagged is told of.
    let version = root.lines().find_map(|line| line.strip_prefix("version = \"")).unwrap().split('"').next().unwrap();
    assert!(read("CHANGELOG.md").lines().any(|line| line.starts_with("## [") && line.contains(version)), "CHANGELOG.md has no {version}");
}
