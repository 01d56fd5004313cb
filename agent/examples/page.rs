//! Serves the page with a recorded incident behind it, to look at and to draw: `cargo run -p agent --example page -- CASE [PORT]`.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/support/page.rs"]
mod page;

use std::time::Duration;

use page::{How, Page, recorded};

#[tokio::main]
async fn main() {
    let mut words = std::env::args().skip(1);
    let folder = tempfile::tempdir().unwrap();
    let mut how = How::stalled(folder.path());
    if let Some(case) = words.next() {
        how.case = recorded(&case);
    }
    how.listen.set_port(words.next().and_then(|port| port.parse().ok()).unwrap_or(8103));
    how.pace = Duration::from_millis(400);
    how.claude.api_key_file = words.next().map(std::path::PathBuf::from);
    how.door = agent::web::auth::Settings { identity_header: None, secret_file: None, tokens_file: None, ..how.door };
    let served = Page::serve(folder.path(), how).await;
    println!("{} as anna with the password \"{}\"", served.url("/"), page::PASSWORD);
    tokio::signal::ctrl_c().await.unwrap();
}
