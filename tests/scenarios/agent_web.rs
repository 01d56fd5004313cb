//! The page on the lab's host: real QEMU, both real sshds, the binary as shipped, a person with a browser, and no Claude.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking
#![allow(clippy::print_stderr)] // the figures are worth a line

#[path = "agent/browser.rs"]
mod browser;
#[path = "agent/desk.rs"]
#[allow(dead_code)] // its webhook is the watch's
mod desk;
#[path = "agent/keyholder.rs"]
mod keyholder;

use std::time::{Duration, Instant};

use browser::{BASIC, LISTEN, page, post, shows};
use desk::{Desk, desk, newest};
use lab::installed::prepare;
use lab::lab::{Scenario, run_scenarios};
use lab::process::{Running, start, until};
use lab::{Lab, Result, wedge};

const SCENARIOS: &[Scenario] = &[
    ("when_the_block_layer_stalls_then_the_page_says_so_and_two_actions_recover_it_over_a_killed_server", stall),
    ("when_claude_can_not_be_reached_then_the_page_says_so_and_the_runbook_answers", no_claude),
];

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

/// A desk whose page lets anna in, with Claude's API at an address where nobody listens.
fn with_a_page(lab: &Lab) -> Result<Desk> {
    let more = format!(
        "[web]\nlisten = \"{LISTEN}\"\nbasic_file = \"/etc/breakglass/basic\"\n\
         [claude]\nbase_url = \"http://127.0.0.1:9\"\napi_key_file = \"/etc/breakglass/api-key\"\n"
    );
    let desk = desk(lab, &more)?;
    std::fs::write("/etc/breakglass/basic", BASIC).unwrap();
    std::fs::write("/etc/breakglass/api-key", "sk-ant-nobody\n").unwrap();
    Ok(desk)
}

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
    let desk = with_a_page(lab)?;
    let server = serve(&desk)?;
    shows("/", "Looks healthy", 40);
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
    let live = shows(&run, "Cycle of VM 102", 5);
    assert!(live.contains("asked after") || live.contains("card outcome"), "{live}");
    let end = shows(&run, "card outcome", 260);
    stalled.forget();
    assert!(end.contains("card outcome good") && end.contains("valid, signed by"), "{end}");
    eprintln!("recovered {:.0} s after the stall, the server killed and started again in between", begun.elapsed().as_secs_f32());
    assert_ne!(vm.pid(), before, "a fresh QEMU process");
    shows("/", "Looks healthy", 60);

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
    let desk = with_a_page(lab)?;
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
