//! The page on the lab's host: real QEMU, both real sshds, the binary as shipped, a person with a browser, no Claude or a scripted one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking
#![allow(clippy::print_stderr)] // the figures are worth a line

#[path = "../../agent/tests/api/mod.rs"]
mod api;
#[path = "agent/browser.rs"]
mod browser;
#[path = "agent/desk.rs"]
#[allow(dead_code)] // its webhook is the watch's
mod desk;
#[path = "agent/keyholder.rs"]
mod keyholder;

use std::time::{Duration, Instant};

use api::actors::called;
use api::{Answer, Api, Reply, say, text, verb};
use browser::{BASIC, LISTEN, Stream, page, post, shows};
use desk::{Desk, desk, newest};
use lab::agent::STATE;
use lab::installed::prepare;
use lab::lab::{Scenario, run_scenarios};
use lab::process::{Running, run, start, until};
use lab::station::{bare_vm, slow_stop};
use lab::{Lab, Result, wedge};
use serde_json::Value;

const SCENARIOS: &[Scenario] = &[
    ("when_the_block_layer_stalls_then_the_page_says_so_and_two_actions_recover_it_over_a_killed_server", stall),
    ("when_claude_can_not_be_reached_then_the_page_says_so_and_the_runbook_answers", no_claude),
    ("when_ten_incidents_and_twenty_watchers_are_open_then_it_is_small_and_a_kill_in_mid_cycle_loses_nothing", many),
];

/// What the process that talks to Claude and serves the page may have resident.
const RESIDENT_KIB: u64 = 40 * 1024;

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

/// A desk whose page lets anna in, with Claude's API at this address.
fn with_a_page(lab: &Lab, api: &str) -> Result<Desk> {
    let more = format!(
        "[web]\nlisten = \"{LISTEN}\"\nbasic_file = \"/etc/breakglass/basic\"\n\
         [claude]\nbase_url = \"{api}\"\napi_key_file = \"/etc/breakglass/api-key\"\n"
    );
    let desk = desk(lab, &more)?;
    std::fs::write("/etc/breakglass/basic", BASIC).unwrap();
    std::fs::write("/etc/breakglass/api-key", format!("{}\n", api::KEY)).unwrap();
    Ok(desk)
}

/// An address where nobody listens.
const NOBODY: &str = "http://127.0.0.1:9";

/// A running server; killed with its owner, so that a scenario that fails leaves none to the next one.
struct Server(Option<Running>);

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            let _ended = running.kill();
        }
    }
}

fn serve(desk: &Desk) -> Result<Server> {
    assert!(page("/healthz").is_none(), "nobody else listens there");
    let server = Server(Some(start(&mut desk.command(&["serve"]), &[])?));
    until("the page", Duration::from_secs(20), || page("/readyz").filter(|got| got.status == 200))?;
    Ok(server)
}

fn stall(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = vm.pid();
    let desk = with_a_page(lab, NOBODY)?;
    let server = serve(&desk)?;
    shows("/", "Looks healthy", 40);
    // A look's receipt too is a line of the log as it was signed: whoever has the log alone can check it.
    let signed = until("a look's receipt in the log", Duration::from_secs(10), || {
        let log = String::from_utf8_lossy(&server.0.as_ref()?.output_so_far()).into_owned();
        let mut receipts = log.split_inclusive('\n').filter(|line| line.contains("\"event\":\"receipt\"") && line.ends_with('\n'));
        receipts.next_back().map(str::to_owned)
    })?;
    std::fs::write("/run/lab/look", signed).unwrap();
    let checked =
        run(&mut desk.command(&["receipt", "--signing-key", "/etc/pve-verb/signing_key.pub", "/run/lab/look"]), Duration::from_secs(20))?;
    assert!(checked.status == 0 && checked.text().contains("status of VM 102 was done"), "{}", checked.text());
    let stalled = wedge::block_stall(vm)?;
    let begun = Instant::now();
    let seen = shows("/", "Block stalled", 90);
    eprintln!("the page said it after {:.0} s", begun.elapsed().as_secs_f32());
    assert!(seen.contains("Advice: cycle") && !seen.contains("card state good"), "{seen}");

    // Two actions: the button, and yes.
    let question = page("/verbs/cycle/confirm").unwrap();
    assert!(question.text().contains("Block stalled") && question.text().contains("The host advises this"), "{}", question.text());
    let run = post("/verbs/cycle", &format!("token={}&reason=block-stalled", question.hidden("token")));
    shows(&run, "pieces captured", 30);
    shows(&run, "Safe on", 30);
    drop(server);
    assert!(page("/").is_none());
    let _server = serve(&desk)?;
    let live = shows(&run, "Cycle of VM 102", 30);
    assert!(live.contains("asked after") || live.contains("card outcome"), "{live}");
    let end = shows(&run, "card outcome", 260);
    stalled.forget();
    assert!(end.contains("card outcome good") && end.contains("valid, signed by"), "{end}");
    eprintln!("recovered {:.0} s after the stall, the server killed and started again in between", begun.elapsed().as_secs_f32());
    assert_ne!(vm.pid(), before, "a fresh QEMU process");
    shows("/", "Looks healthy", 120);

    // Done once, on the host too.
    let id = run.rsplit('/').next().unwrap().to_owned();
    let log = lab::chain::Chain::read()?;
    assert_eq!((log.count(&id, "intent"), log.count(&id, "outcome")), (1, 1));
    let (_, lines) = newest();
    let asked: Vec<_> = lines.iter().filter(|line| line["event"] == "verb_asked" && line["verb"] == "cycle").collect();
    assert!(asked.iter().all(|line| line["request_id"] == id.as_str() && line["origin"] == "human"), "{asked:?}");
    assert_eq!(asked[0]["actor"], "anna (password)");
    let booted = || vm.guest_within("true", Duration::from_secs(20)).ok().filter(|end| end.status == 0);
    until("the guest's sshd", Duration::from_secs(240), booted)?;
    assert_eq!(vm.guest("dd if=/dev/zero of=/data/proof bs=4k count=4 conv=fsync")?.status, 0, "its disk works");

    // The evidence of before, and its way out.
    let evidence = page(&format!("/evidence/{id}")).unwrap().text();
    assert!(evidence.contains("block-stalled") && evidence.contains("The receipt is valid"), "{evidence}");
    if evidence.contains("console/screen-1.png") {
        assert!(page(&format!("/artifacts/{id}/console/screen-1.png")).unwrap().body.starts_with(b"\x89PNG"));
    }
    assert!(page(&format!("/evidence/{id}/tar")).unwrap().body.len() > 10_000);
    let receipts = page("/receipts").unwrap().text();
    assert!(receipts.contains("fit") && receipts.contains(&id), "{receipts}");
    Ok(())
}

fn no_claude(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = vm.pid();
    let desk = with_a_page(lab, NOBODY)?;
    let _server = serve(&desk)?;
    let home = shows("/", "Looks healthy", 40);
    assert!(home.contains("Ask Claude"), "{home}");
    let token = page("/").unwrap().hidden("token");
    let began = Instant::now();
    let incident = post("/incidents", &format!("token={token}&text=The+devvm+feels+slow."));
    shows(&incident, "The runbook goes on.", 60);
    eprintln!("the runbook went on after {:.0} s", began.elapsed().as_secs_f32());
    let end = shows(&incident, "Ended, healthy", 200);
    assert!(end.contains("could not be had") && end.contains("anna (password)"), "{end}");
    assert_eq!(vm.pid(), before, "nothing was changed");
    // A button needs neither.
    let run = post("/verbs/forensics", "");
    shows(&run, "card outcome good", 40);
    let metrics = page("/metrics").unwrap().text();
    assert!(
        metrics.contains("breakglass_verbs_total{verb=\"forensics\",outcome=\"done\"}")
            && !metrics.contains("breakglass_claude_errors_total 0"),
        "{metrics}"
    );
    Ok(())
}

/// The first takes evidence and cycles; the others look, half of them with all the evidence, and then think for longer than the scenario takes.
fn many_minds(body: &Value, _: usize) -> Reply {
    let asked = body["messages"][0]["content"][0]["text"].as_str().unwrap_or_default().to_owned();
    let first = asked.starts_with("Number 0 ");
    match called(body).last().map(String::as_str) {
        None if first => say(vec![verb("pve_cycle")]),
        None if ["Number 1 ", "Number 2 ", "Number 3 ", "Number 4 "].iter().any(|name| asked.starts_with(name)) => {
            say(vec![verb("pve_forensics")])
        }
        None => say(vec![verb("pve_status")]),
        Some(_) if first => say(vec![text("The cycle is done; I have its receipt.")]),
        Some(_) => {
            let answer = Answer { content: vec![text("I think. ")], stop: "end_turn", usage: (1000, 50) }.stream();
            let pieces = answer.as_bytes().chunks(answer.len() / 60).map(<[u8]>::to_vec).collect();
            Reply::Stream { pieces, cut: false, pause: Duration::from_secs(5) }
        }
    }
}

/// The lines of an incident.
fn lines(id: &str) -> Vec<Value> {
    // A line that is being written is none yet, and may end within a character.
    let text = String::from_utf8_lossy(&std::fs::read(format!("{STATE}/incidents/{id}/events.jsonl")).unwrap()).into_owned();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn has(id: &str, event: &str, what: &str) -> bool {
    lines(id).iter().any(|line| line["event"] == event && line.to_string().contains(what))
}

fn small(server: &Server, when: &str) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.0.as_ref().unwrap().pid())).unwrap();
    let kib = |name: &str| -> u64 {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    };
    eprintln!("{when}: {} KiB resident, {} KiB at most", kib("VmRSS:"), kib("VmHWM:"));
    assert!(kib("VmRSS:") < RESIDENT_KIB, "{when}: {} KiB", kib("VmRSS:"));
}

fn many(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let before = vm.pid();
    let api = Api::start(many_minds);
    let desk = with_a_page(lab, &api.url)?;
    let server = serve(&desk)?;
    let open = |n: usize| {
        let token = page("/").unwrap().hidden("token");
        post("/incidents", &format!("token={token}&text=Number+{n}+hangs.")).rsplit('/').next().unwrap().to_owned()
    };
    let others: Vec<String> = (1..10).map(open).collect();
    for id in &others {
        until("an incident's look", Duration::from_secs(120), || has(id, "result", "Signed receipt").then_some(()))?;
    }
    until("all of them think", Duration::from_secs(30), || (api.requests().len() == 18).then_some(()))?;
    slow_stop()?;
    let first = open(0);
    let watched: Vec<Stream> = (0..20).map(|n| Stream::of(if n % 2 == 0 { &first } else { &others[0] }, "resumed")).collect();
    until("the cycle's evidence", Duration::from_secs(60), || has(&first, "verb_news", "\"preserved\"").then_some(()))?;
    small(&server, "ten incidents and twenty watchers, one in mid-cycle");
    assert!(lines(&first).iter().all(|line| line["event"] != "verb_ended"), "still in the middle of it");
    drop(server);
    let again = serve(&desk)?;
    until("the receipt, fetched", Duration::from_secs(120), || has(&first, "text", "I have its receipt").then_some(()))?;
    until("the others go on", Duration::from_secs(30), || (api.requests().len() > 18 + 1 + 9).then_some(()))?;
    until("all watchers are back", Duration::from_secs(60), || watched.iter().all(Stream::saw).then_some(()))?;
    small(&again, "the same after a kill");
    assert_eq!(api.faults(), Vec::<String>::new());
    assert_ne!(vm.pid(), before, "a fresh QEMU process");
    let asked: Vec<Value> = lines(&first).into_iter().filter(|line| line["event"] == "verb_asked" && line["verb"] == "cycle").collect();
    let attach: Vec<bool> = asked.iter().map(|line| line["attach"] == true).collect();
    assert!(attach == [false, true] && asked[0]["request_id"] == asked[1]["request_id"], "{asked:?}");
    let id = asked[0]["request_id"].as_str().unwrap();
    let log = lab::chain::Chain::read()?;
    assert_eq!((log.count(id, "intent"), log.count(id, "outcome")), (1, 1), "done once");
    for one in others.iter().chain([&first]) {
        assert!(has(one, "resumed", ""), "{one} was taken up");
        assert!(lines(one).iter().all(|line| line["incident"] == **one), "no line of another's");
    }
    // Each watcher came back by the number it knew: every line once, in order, of its own incident.
    watched.iter().for_each(Stream::stop);
    for (n, stream) in watched.into_iter().enumerate() {
        let one = if n % 2 == 0 { &first } else { &others[0] };
        let seen = stream.end();
        assert!(seen.len() > 5 && seen.iter().any(|line| line["event"] == "resumed"), "{} lines", seen.len());
        assert!(seen.iter().zip(lines(one)).all(|(seen, logged)| *seen == logged), "watcher {n}");
        assert!(seen.len() <= lines(one).len());
    }
    Ok(())
}
