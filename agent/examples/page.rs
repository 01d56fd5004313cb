//! Serves the page with a recorded incident behind it, to look at, to draw, and for the tests in a browser (tests/browser):
//!
//! `cargo run -p agent --example page -- [case=NAME|FILE.toml] [listen=IP:PORT] [pace=MS] [node=NAME] [door=every|password|link] [claude=none|gone|asks]`
//!
//! It prints one line once it listens. On its standard input `silent` makes the host say nothing any more, `speaks` ends that; it ends
//! with its standard input.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/api/mod.rs"]
mod api;
#[path = "../tests/support/page.rs"]
mod page;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agent::claude::{Autonomy, Settings};
use agent::evals::case::Case;
use agent::web::auth;
use api::{Api, KEY, Reply, exec, say, text, verb};
use page::{How, Page, recorded};
use serde_json::Value;

/// A model that looks, asks for what is advised, and tells in the devvm's own words what it has seen there.
fn script(request: &Value, n: usize) -> Reply {
    match n {
        0 => say(vec![text("I keep the evidence first."), verb("pve_forensics")]),
        1 => say(vec![text("The block layer is stalled: only a **fresh QEMU process** has a working one again."), verb("pve_cycle")]),
        2 => say(vec![exec("uptime; free -m")]),
        // What it was told last, as it came: where that is markup, it says markup.
        _ => {
            let told = request["messages"].as_array().and_then(|all| all.last()).map(|last| last["content"].to_string());
            say(vec![text(&format!("It is well again. What I was told:\n{}", told.unwrap_or_default()))])
        }
    }
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().unwrap();
    let mut how = How { pace: Duration::from_millis(400), ..How::stalled(folder.path()) };
    how.listen.set_port(8103);
    for word in std::env::args().skip(1) {
        let (key, value) = word.split_once('=').expect("KEY=VALUE");
        match (key, value) {
            ("case", file) if file.ends_with(".toml") => how.case = Case::parse(file, &std::fs::read_to_string(file).unwrap()).unwrap(),
            ("case", name) => how.case = recorded(name),
            ("listen", at) => how.listen = at.parse().unwrap(),
            ("pace", ms) => how.pace = Duration::from_millis(ms.parse().unwrap()),
            ("node", name) => name.clone_into(&mut how.node),
            ("door", "every") | ("claude", "none") => {}
            ("door", "password") => how.door = auth::Settings { identity_header: None, secret_file: None, tokens_file: None, ..how.door },
            ("door", "link") => how.door = auth::Settings::default(),
            ("claude", "gone" | "asks") => {
                let key = folder.path().join("key");
                std::fs::write(&key, format!("{KEY}\n")).unwrap();
                let autonomy = if value == "asks" { Autonomy::Approve } else { Autonomy::Full };
                how.claude = Settings { api_key_file: Some(key), autonomy, ..Settings::default() };
            }
            _ => panic!("{word} is none of its words"),
        }
    }
    let asks = how.claude.autonomy == Autonomy::Approve;
    let api = asks.then(|| Api::start(script));
    // Where there is no script, nobody listens.
    how.claude.base_url = Some(api.as_ref().map_or_else(|| "http://127.0.0.1:9".to_owned(), |api| api.url.clone()));
    let served = Page::serve(folder.path(), how).await;
    match served.app.link() {
        Some(link) => println!("{}", served.url(&format!("/link/{link}"))),
        None => println!("{} as anna with the password \"{}\"", served.url("/"), page::PASSWORD),
    }
    let hands = Arc::clone(&served.hands);
    let told = tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            hands.silent.store(line == "silent", Ordering::Relaxed);
        }
    });
    told.await.unwrap();
}
