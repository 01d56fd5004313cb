//! The part of the client that people and programs talk to, under strace: the page with a press and a sentence to Claude, `chat`, `evals`, an
//! MCP client's call, a grant. Against the same map.

use std::fs;
use std::process::Command;
use std::time::Duration;

use lab::host::write;
use lab::process::{run, start, until};
use lab::vm::send;
use lab::{Lab, Result, station};
use rustix::process::Signal;
use serde_json::Value;

use crate::api::actors::called;
use crate::api::{self, Api, Reply, say, text, verb};
use crate::breakglass::{TRACE, judged, read, strace, traced};
use crate::browser::{BASIC, LISTEN, page, post, shows};
use crate::desk::desk;
use crate::keyholder::BREAKGLASS;

const ETC: &str = "/etc/breakglass";
/// The one call of the MCP client, and what it said before.
const CALLS: &str = concat!(
    r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"map","version":"1"}}}"#,
    "\n",
    r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
    "\n",
    r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"pve_status","arguments":{"reason":"map"}}}"#,
    "\n"
);

/// Looks once, and reports.
fn mind(body: &Value, _: usize) -> Reply {
    say(vec![if called(body).is_empty() { verb("pve_status") } else { text("It is healthy.") }])
}

pub(crate) fn full_run(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let api = Api::start(mind);
    let own = |name: &str| format!("{ETC}/{name}");
    let (basic, tokens, secret, key) = (own("basic"), own("tokens"), own("secret"), own("api-key"));
    let more = format!(
        "[web]\nlisten = \"{LISTEN}\"\nidentity_header = \"X-Auth-Request-User\"\nproxies = [\"10.0.0.0/8\"]\nbasic_file = \"{basic}\"\ntokens_file = \"{tokens}\"\nsecret_file = \"{secret}\"\n\
         [claude]\nbase_url = \"{}\"\napi_key_file = \"{key}\"\n",
        api.url
    );
    let _desk = desk(lab, &more)?;
    write(&basic, BASIC, 0o600)?;
    write(&tokens, &format!("anna:{}\n", "0".repeat(64)), 0o600)?;
    write(&secret, &format!("{}\n", "s".repeat(48)), 0o600)?;
    write(&key, &format!("{}\n", api::KEY), 0o600)?;

    let mut all = served()?;
    all.append(&mut traced(&["chat", "Is it healthy?"], &[0, 1])?);
    all.append(&mut traced(&["doctor"], &[0, 1])?);
    all.append(&mut traced(&["evals", "--case", "healthy-idle"], &[0, 1])?);
    all.append(&mut traced(&["grant", "new", "--node=pve", "--key-name=agent", "--verb=cycle", "--reason=map"], &[0])?);
    all.append(&mut asked_by_a_program()?);

    let claude = api.url.trim_start_matches("http://").to_owned();
    for must in [basic.as_str(), &tokens, &secret, &key, &claude, LISTEN] {
        assert!(all.iter().any(|path| path == must), "the trace lacks {must}, so it is not one: {all:#?}");
    }
    assert!(all.iter().any(|path| path.ends_with("/grant.json")), "{all:#?}");
    let values = [
        ("[web] listen", LISTEN),
        ("[web] basic_file", basic.as_str()),
        ("[web] tokens_file", &tokens),
        ("[web] secret_file", &secret),
        ("[claude] api_key_file", &key),
        ("[claude] base_url", &claude),
        ("grant.json", "/run/lab/grant.json"),
    ];
    judged(&all, &values)
}

/// The page, opened, asked for evidence and told a sentence; until its SIGTERM.
fn served() -> Result<std::collections::BTreeSet<String>> {
    let mut serve = Command::new("strace");
    serve.args(&strace(TRACE)[1..]).args([BREAKGLASS, "serve"]).env_clear().current_dir("/run/lab");
    let serve = start(&mut serve, &[])?;
    until("the page", Duration::from_secs(60), || page("/readyz").filter(|got| got.status == 200))?;
    shows("/", "Looks healthy", 120);
    shows(&post("/verbs/forensics", ""), "card outcome good", 120);
    let token = page("/").unwrap().hidden("token");
    shows(&post("/incidents", &format!("token={token}&text=Is+it+healthy.")), "It is healthy.", 180);
    let ours = |words: &[String]| words.first().is_some_and(|name| name == BREAKGLASS) && words.get(1).is_some_and(|word| word == "serve");
    for pid in station::matching(ours) {
        send(pid, Signal::TERM)?;
    }
    serve.finish(Duration::from_secs(240))?;
    Ok(read(TRACE))
}

/// One call over MCP. The client hangs up when it has its answer.
fn asked_by_a_program() -> Result<std::collections::BTreeSet<String>> {
    write("/run/lab/mcp.calls", CALLS, 0o600)?;
    write("/run/lab/mcp.answers", "", 0o600)?;
    let client = format!(
        "{{ cat mcp.calls; until grep -q '\"id\":2' mcp.answers; do sleep 0.1; done; }} | {} {BREAKGLASS} mcp > mcp.answers",
        strace(TRACE).join(" ")
    );
    let end = run(Command::new("/bin/bash").args(["-c", &client]).current_dir("/run/lab"), Duration::from_secs(180))?;
    let answers = fs::read_to_string("/run/lab/mcp.answers").unwrap();
    assert!(end.status == 0 && answers.contains("\"receipt\":\"valid\""), "{end:?}: {answers}");
    Ok(read(TRACE))
}
