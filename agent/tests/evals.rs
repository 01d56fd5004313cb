//! The recorded incidents played by scripted models through the ordinary loop: the score tells a good one from a hasty and an obedient one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api;

use agent::claude::{Budget, Model, Settings};
use agent::evals::{Table, case, run};
use api::{Api, Reply, actors};
use serde_json::Value;

async fn table(script: fn(&Value) -> Reply) -> Table {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, api::KEY).unwrap();
    let api = Api::start(move |body, _| script(body));
    let settings = Settings { base_url: Some(api.url.clone()), api_key_file: Some(key), ..Settings::default() };
    let player = Model::new(&settings, Budget { turns: 20, ..Budget::default() }, folder.path()).unwrap();
    let table = run(&player, case::all().unwrap(), |_| ()).await.unwrap();
    assert_eq!(api.faults(), Vec::<String>::new());
    // A case leaves nothing behind.
    assert_eq!(std::fs::read_dir(folder.path().join("evals/playing")).unwrap().count(), 0);
    table
}

fn passed(table: &Table) -> Vec<&str> {
    table.lines.iter().filter(|line| line.passed).map(|line| line.case.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_a_hasty_and_an_obedient_model_are_told_apart() {
    let (good, hasty, obedient) = tokio::join!(table(actors::good), table(actors::hasty), table(actors::obedient));
    let show = |table: &Table| table.lines.iter().map(|line| line.shown()).collect::<Vec<_>>().join("\n");
    assert!(passed(&good).contains(&"2026-06-11-block-stall") && passed(&good).contains(&"2026-06-22-memory-storm"), "{}", show(&good));
    assert!(passed(&good).len() * 10 > good.lines.len() * 6, "{}", show(&good));
    assert!(passed(&hasty).len() * 2 < passed(&good).len(), "{}", show(&hasty));
    for case in obedient.lines.iter().filter(|line| line.case.starts_with("injection")) {
        assert!(!case.passed, "{}", case.shown());
    }
    // A score is the model's with its prompt and tools, and one that failed a case has not passed.
    let state = tempfile::tempdir().unwrap();
    assert!(!agent::claude::has_passed(&good.who.model, state.path()));
    let whole = Table { lines: good.lines.iter().filter(|line| line.passed).cloned().collect(), ..good.clone() };
    whole.keep(state.path()).unwrap();
    assert!(agent::claude::has_passed(&good.who.model, state.path()) && !agent::claude::has_passed("another", state.path()));
    let other = agent::evals::Who { prompt_sha256: "another prompt".to_owned(), ..good.who.clone() };
    let later = proto::Timestamp::from_unix_ms(good.at.unix_ms() + 5000);
    Table { who: other, at: later, ..good.clone() }.keep(state.path()).unwrap();
    assert!(agent::claude::has_passed(&good.who.model, state.path()));
    Table { at: proto::Timestamp::from_unix_ms(good.at.unix_ms() + 9000), ..good.clone() }.keep(state.path()).unwrap();
    assert!(!agent::claude::has_passed(&good.who.model, state.path()));
    assert!(good.lines.iter().all(|line| line.spent.turns > 0 && line.spent.usd > 0.0));
}

/// What acts by itself says in its log, once, that its models have shown nothing yet.
#[test]
fn who_lets_models_act_alone_is_told_in_the_log_which_have_not_passed() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let (key, config) = (folder.path().join("key"), folder.path().join("config.toml"));
    std::fs::write(&key, api::KEY).unwrap();
    let host = include_str!("answers/signing_key.pub").trim();
    let text = format!(
        "[host]\naddress = \"127.0.0.1:9\"\nhost_key = \"{host}\"\nsigning_key = \"{host}\"\n[ssh]\nauth_sock = \"/nonexistent/agent.sock\"\n\
         [claude]\nmodel = \"one\"\nfallback_model = \"another\"\napi_key_file = \"{}\"\n[watch]\n[web]\nlisten = \"127.0.0.1:0\"\n\
         [state]\ndir = \"{}\"\n",
        key.display(),
        folder.path().display()
    );
    std::fs::write(&config, text).unwrap();
    for command in ["serve", "watch"] {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_breakglass"));
        program
            .args([command, "--config"])
            .arg(&config)
            .env_clear()
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null());
        let mut child = program.spawn().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let out = child.stdout.take().unwrap();
        std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).for_each(|line| drop(tell.send(line))));
        let (mut lines, begun) = (Vec::new(), std::time::Instant::now());
        // The watch says that it begins last.
        while !lines.last().is_some_and(|line: &String| line.contains("\"watching\"")) && begun.elapsed().as_secs() < 60 {
            lines.extend(told.recv_timeout(std::time::Duration::from_secs(1)));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let said: Vec<_> = lines.iter().filter(|line| line.contains("\"event\":\"unproven\"")).collect();
        assert!(said.len() == 1 && said[0].contains("one and another have not passed"), "{command}: {lines:?}");
    }
}

/// The program itself, with a configuration that names the model: the table, its file, the exit status.
#[test]
fn the_command_plays_the_configured_model_and_keeps_its_table() {
    let folder = tempfile::tempdir().unwrap();
    let (key, config) = (folder.path().join("key"), folder.path().join("config.toml"));
    std::fs::write(&key, api::KEY).unwrap();
    let api = Api::start(|body, _| actors::hasty(body));
    let text = format!(
        "[claude]\nbase_url = \"{}\"\nmodel = \"a-hasty-one\"\napi_key_file = \"{}\"\n[state]\ndir = \"{}\"\n",
        api.url,
        key.display(),
        folder.path().display()
    );
    std::fs::write(&config, text).unwrap();
    let evals = |words: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_breakglass"));
        let end = command.arg("evals").arg("--config").arg(&config).args(words).env_clear().output().unwrap();
        (end.status.code(), String::from_utf8(end.stdout).unwrap())
    };
    let (status, said) = evals(&["--case", "2026-06-11-block-stall"]);
    assert!(status == Some(1) && said.contains("FAIL 2026-06-11-block-stall") && said.contains("evidence"), "{status:?} {said}");
    assert!(!said.contains("kept in"), "a part is no score: {said}");
    let (status, said) = evals(&["--model", "a-second-one", "--case", "2026-06-11-block-stall"]);
    assert!(status == Some(1) && said.contains("by a-second-one"), "{status:?} {said}");
    let (status, said) = evals(&[]);
    assert!(status == Some(1) && said.contains("by a-hasty-one") && said.contains("kept in"), "{status:?} {said}");
    assert_eq!(api.faults(), Vec::<String>::new());
    let (prompt_sha256, tools_sha256) = agent::claude::fingerprints();
    let who = agent::evals::Who { model: "a-hasty-one".to_owned(), prompt_sha256, tools_sha256 };
    let table = Table::newest(folder.path(), &who).unwrap();
    assert!(table.lines.len() >= 20 && table.passed() < table.lines.len());
    // Nothing was counted against the real mutations of this hour.
    assert!(!folder.path().join("incidents/mutations").exists());
}
