//! The runbook in worlds of recorded incidents, with time that passes by itself.

use super::*;
use crate::evals::case::Case;
use crate::evals::world::{Act, World};
use crate::hands::{Doing, ExecAsk, ExecEnd, ExecNews, VerbAsk, VerbEnd, VerbNews};

#[derive(Default)]
struct Kept(Vec<String>);

impl Journal for Kept {
    fn asks(&mut self, ask: &VerbAsk) -> Result<(), proto::Message> {
        self.0.push(format!("ask {}", ask.verb));
        Ok(())
    }
    fn news(&mut self, _: &VerbAsk, _: &VerbNews) {}
    fn ended(&mut self, ask: &VerbAsk, end: &VerbEnd) {
        self.0.push(format!("end {} {}", ask.verb, end.status));
    }
    fn runs(&mut self, command: &str) -> Result<(), proto::Message> {
        self.0.push(format!("run {command}"));
        Ok(())
    }
    fn ran(&mut self, _: &str, _: &[u8], _: &ExecEnd) {}
    fn said(&mut self, text: &str) {
        self.0.push(format!("say {text}"));
    }
}

const WELL: &str = "100.5 90.1\nMemTotal: 1000 kB\nMemAvailable: 500 kB\n";

/// A world of these states (TOML), with a healthy one beside them.
fn world(start: &str, states: &str) -> World {
    let text = format!(
        "about = \"a test\"\nsays = \"help\"\nstart = \"{start}\"\n{states}\n\
         [state.well]\nvm = \"running\"\ncode = \"healthy\"\nsentence = \"VM 102 looks healthy.\"\nwhy = \"Nothing.\"\n\
         answers = [{{ when = [\"meminfo\"], prints = \"\"\"{WELL}\"\"\" }}]\n[expect]\nends = [\"well\"]\n"
    );
    World::new(Case::parse("test", &text).unwrap()).unwrap()
}

fn state(name: &str, code: &str, verb: &str, more: &str) -> String {
    let recommend = if verb.is_empty() { String::new() } else { format!("recommend = \"{verb}\"\n") };
    format!("[state.{name}]\nvm = \"running\"\ncode = \"{code}\"\nsentence = \"It is {code}.\"\n{recommend}why = \"Because.\"\n{more}\n")
}

/// A world whose devvm nobody can ask: every command ends like this.
struct Unasked<'a>(&'a World, ExecEnd);

impl Hands for Unasked<'_> {
    fn vmid(&self) -> proto::Vmid {
        self.0.vmid()
    }

    fn verb(&self, ask: VerbAsk, news: tokio::sync::mpsc::Sender<VerbNews>) -> Doing<'_, VerbEnd> {
        self.0.verb(ask, news)
    }
    fn exec(&self, _: ExecAsk, _: tokio::sync::mpsc::Sender<ExecNews>) -> Doing<'_, ExecEnd> {
        Box::pin(async { self.1.clone() })
    }
}

/// Every way in which a devvm can't be asked, but that there is none.
fn shut() -> [ExecEnd; 3] {
    let (pinned, shown) = ("SHA256:old".to_owned(), "SHA256:new".to_owned());
    [ExecEnd::HostKeyChanged { pinned, shown }, ExecEnd::Refused("no key of the ssh-agent".to_owned()), ExecEnd::Exited(1)]
}

fn run_in(world: &dyn Hands, unattended: bool) -> (Ended, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let mut kept = Kept::default();
    let ended = runtime.block_on(run(world, &mut kept, Patience::default(), unattended));
    (ended, kept.0)
}

fn verbs(world: &World) -> Vec<Verb> {
    world.acts().iter().filter_map(|act| if let Act::Verb { verb, .. } = act { Some(*verb) } else { None }).collect()
}

#[test]
fn the_report_names_the_vm_that_it_is_about() {
    let text = format!(
        "about = \"a test\"\nsays = \"help\"\nstart = \"well\"\n[state.well]\nvm = \"running\"\ncode = \"healthy\"\nsentence = \"Well.\"\n\
         why = \"Nothing.\"\nanswers = [{{ when = [\"meminfo\"], prints = \"\"\"{WELL}\"\"\" }}]\n[expect]\nends = [\"well\"]\n"
    );
    let world = World::of(Case::parse("test", &text).unwrap(), "105".parse().unwrap()).unwrap();
    assert!(run_in(&world, false).0.said.what.starts_with("VM 105 looks healthy"));
}

#[test]
fn a_healthy_vm_is_left_alone() {
    let world = world("well", "");
    let (ended, _) = run_in(&world, false);
    assert!(ended.healthy, "{ended:?}");
    assert_eq!(verbs(&world), [Verb::Status, Verb::Forensics]);
}

#[test]
fn a_newer_hosts_word_is_handed_to_a_person_whatever_it_advises() {
    let world = world("bad", &state("bad", "guest-dreaming", "cycle", "on.cycle = { to = \"well\" }"));
    let (ended, kept) = run_in(&world, true);
    assert_eq!(verbs(&world), [Verb::Status, Verb::Forensics], "{kept:#?}");
    assert!(!ended.healthy && ended.said.to_string().contains("It is guest-dreaming."), "{ended:?}");
}

#[test]
fn a_block_stall_is_cycled_after_evidence_and_the_guest_is_asked() {
    let world = world("bad", &state("bad", "block-stalled", "cycle", "reachable = false\non.cycle = { to = \"well\" }"));
    let (ended, kept) = run_in(&world, true);
    assert!(ended.healthy, "{ended:?} {kept:#?}");
    assert_eq!(verbs(&world), [Verb::Status, Verb::Forensics, Verb::Cycle, Verb::Status, Verb::Status]);
    assert!(kept.last().unwrap().contains("answers over SSH again, up for 100 s"), "{kept:#?}");
}

#[test]
fn after_an_unknown_mutation_there_is_no_second_one() {
    for (outcome, status) in [("unknown", 11), ("internal", 70)] {
        let world =
            world("bad", &state("bad", "block-stalled", "cycle", &format!("reachable = false\non.cycle = {{ outcome = \"{outcome}\" }}")));
        let (ended, kept) = run_in(&world, false);
        assert!(!ended.healthy && ended.said.what.contains("UNKNOWN"), "{ended:?}");
        assert!(kept.contains(&format!("end cycle {status}")), "{kept:#?}");
        assert_eq!(verbs(&world), [Verb::Status, Verb::Forensics, Verb::Cycle, Verb::Status]);
    }
}

#[test]
fn a_mutation_that_never_left_is_not_called_unknown() {
    let bad = state("bad", "block-stalled", "cycle", "reachable = false\non.forensics = { to = \"gone\" }");
    let world = world("bad", &format!("{bad}{}", state("gone", "block-stalled", "cycle", "away = true")));
    let (ended, kept) = run_in(&world, true);
    assert!(ended.said.what.starts_with("cycle did not reach the host, so it did nothing there"), "{ended:?} {kept:#?}");
    assert!(!ended.healthy && !ended.said.to_string().contains("UNKNOWN"), "{ended:?}");
    assert_eq!(verbs(&world), [Verb::Status, Verb::Forensics]);
}

#[test]
fn a_reset_that_does_not_bring_the_guest_back_is_followed_by_one_cycle() {
    let cured = world("bad", &state("bad", "guest-unresponsive", "reset", "reachable = false\non.cycle = { to = \"well\" }"));
    assert!(run_in(&cured, false).0.healthy);
    // Between the two there is evidence, in which the host too says that it is unwell.
    assert_eq!(verbs(&cured), [Verb::Status, Verb::Forensics, Verb::Reset, Verb::Forensics, Verb::Cycle, Verb::Status, Verb::Status]);
    let never = world("bad", &state("bad", "guest-unresponsive", "reset", "reachable = false"));
    assert!(!run_in(&never, false).0.healthy);
    assert_eq!(verbs(&never), [Verb::Status, Verb::Forensics, Verb::Reset, Verb::Forensics, Verb::Cycle, Verb::Forensics]);
}

/// VMs that one verb cures.
fn curable() -> [(Verb, String); 3] {
    let paused = state("bad", "paused", "start", "reachable = false\non.start = { to = \"well\" }").replacen("running", "paused", 1);
    let panicked = state("bad", "guest-panicked", "reset", "reachable = false\non.reset = { to = \"well\" }");
    let stalled = state("bad", "block-stalled", "cycle", "reachable = false\non.cycle = { to = \"well\" }");
    [(Verb::Start, paused), (Verb::Reset, panicked), (Verb::Cycle, stalled)]
}

#[test]
fn without_a_devvm_two_looks_from_the_host_are_the_verdict_and_a_cured_vm_is_not_touched_again() {
    for (cure, bad) in curable() {
        let world = world("bad", &bad);
        let (ended, kept) = run_in(&Unasked(&world, ExecEnd::Absent), false);
        assert!(ended.healthy && ended.said.what.contains("nobody asked the guest"), "{ended:?} {kept:#?}");
        assert_eq!(verbs(&world), [Verb::Status, Verb::Forensics, cure, Verb::Status, Verb::Forensics], "{kept:#?}");
    }
    let well = world("well", "");
    let (ended, kept) = run_in(&Unasked(&well, ExecEnd::Absent), true);
    assert!(ended.healthy && ended.said.what.contains("nobody asked the guest"), "{ended:?} {kept:#?}");
    assert_eq!(verbs(&well), [Verb::Status, Verb::Forensics, Verb::Forensics]);
    // The kernel's own choice of a process was enough: what nobody can repair over SSH is not reset for the minutes that are over.
    let oom = world("bad", &state("bad", "guest-oom", "", "on.forensics = { to = \"well\" }"));
    assert!(run_in(&Unasked(&oom, ExecEnd::Absent), true).0.healthy);
    assert!(verbs(&oom).iter().all(|verb| !verb.mutates()), "{:?}", verbs(&oom));
    // What does not get well is not called so.
    let never = world("bad", &state("bad", "guest-panicked", "reset", "on.cycle = { to = \"bad\" }"));
    assert!(!run_in(&Unasked(&never, ExecEnd::Absent), false).0.healthy);
    assert_eq!(verbs(&never).iter().filter(|verb| verb.mutates()).count(), 2);
}

#[test]
fn a_devvm_that_lets_nobody_in_is_for_a_person_and_no_reason_for_a_second_verb() {
    for end in shut() {
        for (cure, bad) in curable() {
            let world = world("bad", &bad);
            let (ended, kept) = run_in(&Unasked(&world, end.clone()), false);
            assert!(!ended.healthy && ended.said.what.contains("From the host VM 102 looks healthy"), "{ended:?} {kept:#?}");
            assert_eq!(verbs(&world).into_iter().filter(|verb| verb.mutates()).collect::<Vec<_>>(), [cure], "{end:?} {kept:#?}");
        }
    }
    let world = world("bad", &curable()[1].1);
    let (ended, _) = run_in(&Unasked(&world, shut()[0].clone()), true);
    assert!(ended.said.what.contains("SHA256:new") && ended.said.next.contains("devvm accept"), "{ended:?}");
}

#[test]
fn a_boot_that_takes_longer_than_the_wait_is_waited_for_and_not_cut_off() {
    let boots = |then: &str| state("boots", "healthy", "", &format!("reachable = false\non.forensics = {{ to = \"{then}\" }}"));
    let bad = state("bad", "guest-unresponsive", "reset", "reachable = false\non.reset = { to = \"boots\" }");
    let slow = world("bad", &format!("{bad}{}", boots("well")));
    let (ended, kept) = run_in(&slow, true);
    assert!(ended.healthy, "{ended:?} {kept:#?}");
    assert_eq!(verbs(&slow), [Verb::Status, Verb::Forensics, Verb::Reset, Verb::Forensics, Verb::Status, Verb::Status]);
    // Longer still: a person looks. Dead after all, as the host sees then: now it may be cycled.
    let longer = world("bad", &format!("{bad}{}", boots("boots")));
    let (ended, kept) = run_in(&longer, true);
    assert!(!ended.healthy && ended.said.next.contains("may still be booting"), "{ended:?} {kept:#?}");
    assert_eq!(verbs(&longer), [Verb::Status, Verb::Forensics, Verb::Reset, Verb::Forensics, Verb::Forensics]);
    let dead = state("dead", "guest-unresponsive", "reset", "reachable = false\non.cycle = { to = \"well\" }");
    let dies = world("bad", &format!("{bad}{}{dead}", boots("dead")));
    assert!(run_in(&dies, true).0.healthy);
    assert_eq!(verbs(&dies).into_iter().filter(|verb| verb.mutates()).collect::<Vec<_>>(), [Verb::Reset, Verb::Cycle]);
}

#[test]
fn after_a_verb_the_host_s_new_word_decides_on_a_second_one() {
    // A guest that was paused and hangs: the milder verb. One that somebody stopped meanwhile stays off where nobody asked.
    let hangs = state("hangs", "guest-unresponsive", "reset", "reachable = false\non.reset = { to = \"well\" }");
    let paused = state("bad", "paused", "start", "reachable = false\non.start = { to = \"hangs\" }");
    let milder = world("bad", &format!("{paused}{hangs}"));
    assert!(run_in(&milder, false).0.healthy);
    assert_eq!(verbs(&milder).into_iter().filter(|verb| verb.mutates()).collect::<Vec<_>>(), [Verb::Start, Verb::Reset]);
    for (code, verb) in [("stopped", "start"), ("locked", ""), ("qmp-unavailable", ""), ("guest-oom", ""), ("survivor", "")] {
        let after = state("after", code, verb, "reachable = false");
        let bad = state("bad", "guest-panicked", "reset", "reachable = false\non.reset = { to = \"after\" }");
        let world = world("bad", &format!("{bad}{after}"));
        let (ended, kept) = run_in(&world, true);
        assert!(!ended.healthy, "{code}: {ended:?}");
        assert_eq!(verbs(&world).iter().filter(|verb| verb.mutates()).count(), 1, "{code}: {kept:#?}");
    }
}

#[test]
fn what_could_not_be_recorded_is_not_sent() {
    /// Its disk is full after so many verbs.
    struct Full(usize);
    impl Journal for Full {
        fn asks(&mut self, _: &VerbAsk) -> Result<(), proto::Message> {
            self.0 =
                self.0.checked_sub(1).ok_or_else(|| proto::Message::new("The log can't be written: it is full.", "Make room there."))?;
            Ok(())
        }
        fn news(&mut self, _: &VerbAsk, _: &VerbNews) {}
        fn ended(&mut self, _: &VerbAsk, _: &VerbEnd) {}
        fn runs(&mut self, _: &str) -> Result<(), proto::Message> {
            if self.0 == 0 { Err(proto::Message::new("The log can't be written: it is full.", "Make room there.")) } else { Ok(()) }
        }
        fn ran(&mut self, _: &str, _: &[u8], _: &ExecEnd) {}
        fn said(&mut self, _: &str) {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let stalled = &curable()[2].1;
    for room in 0..3 {
        let world = world("bad", stalled);
        let ended = runtime.block_on(run(&world, &mut Full(room), Patience::default(), true));
        assert!(!ended.healthy && ended.said.to_string().contains("it is full. Make room there."), "{room}: {ended:?}");
        assert_eq!(verbs(&world), [Verb::Status, Verb::Forensics][..room], "{room}");
    }
    // Neither is a process ended in the guest.
    let hog = "[{ when = [\"sysrq\"], to = \"well\" }, { when = [\"meminfo\"], prints = \"9.5 1\\nMemTotal: 1000 kB\\nMemAvailable: 10 kB\\n\" }]";
    let starved = world("bad", &state("bad", "guest-oom", "", &format!("answers = {hog}")));
    runtime.block_on(run(&starved, &mut Full(2), Patience::default(), true));
    assert!(starved.acts().iter().all(|act| !matches!(act, Act::Exec { .. })), "{:?}", starved.acts());
}

#[test]
fn a_failed_cycle_that_left_the_vm_stopped_is_started_once() {
    let off = "[state.off]\nvm = \"stopped\"\ncode = \"stopped\"\nsentence = \"It is off.\"\nrecommend = \"start\"\nwhy = \"Start it.\"\nreachable = false\non.start = { to = \"well\" }\n";
    let bad = state("bad", "block-stalled", "cycle", "reachable = false\non.cycle = { to = \"off\", outcome = \"failed\" }");
    let world = world("bad", &format!("{bad}{off}"));
    assert!(run_in(&world, false).0.healthy);
    assert_eq!(verbs(&world), [Verb::Status, Verb::Forensics, Verb::Cycle, Verb::Start, Verb::Status, Verb::Status]);
}

#[test]
fn a_starved_guest_is_repaired_over_ssh_and_reset_only_when_that_fails() {
    let hog = "[{ when = [\"sysrq\"], to = \"well\" }, { when = [\"meminfo\"], prints = \"9.5 1\\nMemTotal: 1000 kB\\nMemAvailable: 10 kB\\n\" }]";
    let soft = world("bad", &state("bad", "guest-oom", "", &format!("answers = {hog}")));
    let (ended, kept) = run_in(&soft, false);
    assert!(ended.healthy && ended.said.what.contains("no power verb"), "{ended:?} {kept:#?}");
    assert_eq!(verbs(&soft), [Verb::Status, Verb::Forensics]);
    assert!(
        kept.iter().position(|line| line.contains("--sort=-rss")).unwrap() < kept.iter().position(|line| line.contains("sysrq")).unwrap()
    );
    let hard = world("bad", &state("bad", "guest-oom", "", "reachable = false\non.reset = { to = \"well\" }"));
    assert!(run_in(&hard, false).0.healthy);
    assert_eq!(verbs(&hard), [Verb::Status, Verb::Forensics, Verb::Forensics, Verb::Reset, Verb::Status, Verb::Status]);
    // Healthy for the host, and starving: the same repair.
    let unseen = world("bad", &state("bad", "healthy", "", &format!("answers = {hog}")));
    assert!(run_in(&unseen, false).0.healthy);
    assert_eq!(verbs(&unseen), [Verb::Status, Verb::Forensics]);
}

#[test]
fn a_guest_too_starved_to_say_so_loses_no_second_process_and_the_first_is_told() {
    let hangs = |to: &str| {
        let sysrq = format!("{{ when = [\"sysrq\"], hangs = true, to = \"{to}\" }}");
        let starved = "{ when = [\"meminfo\"], prints = \"9.5 1\\nMemTotal: 1000 kB\\nMemAvailable: 10 kB\\n\" }";
        state("bad", "guest-oom", "", &format!("answers = [{sysrq}, {starved}]\non.reset = {{ to = \"well\" }}"))
    };
    let ends = |kept: &[String]| kept.iter().filter(|line| line.contains("sysrq")).count();
    let told = "largest process may have been ended over SSH";
    // It goes on starving: one word to its kernel in all that time, then a reset.
    let starving = world("bad", &hangs("bad"));
    let (_, kept) = run_in(&starving, true);
    assert_eq!((ends(&kept), verbs(&starving)[2]), (1, Verb::Reset), "{kept:#?}");
    // It recovers, or falls silent: what may have been done to it is in the report.
    for (to, mute) in [("well", String::new()), ("mute", state("mute", "healthy", "", "reachable = false"))] {
        let world = world("bad", &format!("{}{mute}", hangs(to)));
        let (ended, kept) = run_in(&world, true);
        assert!(ended.said.what.contains(told) && ends(&kept) == 1, "{ended:?} {kept:#?}");
        assert!(verbs(&world).iter().all(|verb| !verb.mutates()), "{kept:#?}");
    }
}

#[test]
fn what_somebody_did_is_undone_only_when_somebody_asks() {
    let off = state("off", "stopped", "start", "reachable = false\non.start = { to = \"well\" }");
    let alone = world("off", &off);
    assert!(!run_in(&alone, true).0.healthy);
    assert_eq!(verbs(&alone), [Verb::Status, Verb::Forensics]);
    let asked = world("off", &off);
    assert!(run_in(&asked, false).0.healthy);
}

#[test]
fn a_refusal_and_advice_without_a_verb_end_it() {
    let refused = world(
        "bad",
        &state(
            "bad",
            "qemu-unresponsive",
            "cycle",
            "reachable = false\non.cycle = { outcome = \"refused-busy\", says = \"Another mutation runs.\" }",
        ),
    );
    let (ended, _) = run_in(&refused, false);
    assert!(!ended.healthy && ended.said.what.contains("Another mutation"), "{ended:?}");
    assert_eq!(verbs(&refused), [Verb::Status, Verb::Forensics, Verb::Cycle]);
    for code in ["survivor", "locked", "pve-unresponsive", "elsewhere", "guest-disk-full", "qmp-unavailable"] {
        let world = world("bad", &state("bad", code, "", "reachable = false"));
        let (ended, kept) = run_in(&world, false);
        assert!(!ended.healthy, "{code}");
        let report = format!("say {}", ended.said);
        assert_eq!(kept.iter().filter(|line| **line == report).count(), 1, "{code}: {kept:#?}");
        assert!(verbs(&world).iter().all(|verb| !verb.mutates()), "{code}: {:?}", verbs(&world));
    }
    let stop = world("bad", &state("bad", "interrupted", "stop", "reachable = false"));
    assert!(!run_in(&stop, false).0.healthy);
    assert!(!verbs(&stop).contains(&Verb::Stop));
}

#[test]
fn a_guest_that_died_just_now_is_seen_in_the_second_evidence() {
    let seen = state("seen", "guest-unresponsive", "reset", "reachable = false\non.reset = { to = \"well\" }");
    let dying = state("dying", "healthy", "", "reachable = false\non.forensics = { to = \"seen\" }");
    let world = world("dying", &format!("{dying}{seen}"));
    let (ended, kept) = run_in(&world, true);
    assert!(ended.healthy, "{ended:?} {kept:#?}");
    assert_eq!(verbs(&world), [Verb::Status, Verb::Forensics, Verb::Forensics, Verb::Reset, Verb::Status, Verb::Status]);
}
