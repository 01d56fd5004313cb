//! The incident without a model: `status`, `forensics`, what the assessment recommends, is the guest back, a report.
//!
//! It runs where no API key is set, when the API is down, and when the watch opens an incident. It decides by what is signed or
//! measured: the receipt's code, the exit of a command. Bounded in time and in mutations: a second one only after a first whose
//! result is known, and never a third.

use std::time::Duration;

use proto::{Code, Outcome, RunState, Verb, VmState};

use crate::hands::Hands;

mod aloud;
pub mod command;
mod guest;
mod look;
#[cfg(test)]
mod tests;

use look::{Acting, Verdict};
pub use look::{Journal, Looked, Nowhere};

/// How long it waits, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the devvm's sshd after a mutation.
    pub boot: Duration,
    /// For a repair over SSH.
    pub soft: Duration,
    /// Between two tries.
    pub pause: Duration,
    /// Before the evidence is taken again, where it said too little.
    pub again: Duration,
    /// Altogether.
    pub all: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { boot: s(240), soft: s(120), pause: s(5), again: s(20), all: s(1500) }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The VM runs, looks healthy, and the devvm answers.
    pub healthy: bool,
    /// The report's last sentences: what is so, and what to do.
    pub said: proto::Message,
}

impl Ended {
    fn well(what: impl Into<String>) -> Self {
        Self { healthy: true, said: proto::Message::new(what, "Read the evidence when you are awake.") }
    }

    fn badly(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { healthy: false, said: proto::Message::new(what, next) }
    }
}

/// Runs it to its end; everything it does is in the journal. `unattended`: nobody asked, so a VM that somebody stopped or paused
/// stays as it is.
pub async fn run(hands: &dyn Hands, journal: &mut dyn Journal, patience: Patience, unattended: bool) -> Ended {
    let mut acting = Acting { hands, journal, patience, mutations: 0, said: String::new() };
    let ended = match tokio::time::timeout(patience.all, steps(&mut acting, unattended)).await {
        Ok(ended) => ended,
        Err(_) => Ended::badly(
            format!("The runbook's {} minutes are over, and a verb that it started goes on to its own end.", patience.all.as_secs() / 60),
            "Ask with status; with the request id in the log, --attach shows that verb.",
        ),
    };
    acting.say(&ended.said.to_string());
    ended
}

async fn steps(a: &mut Acting<'_>, unattended: bool) -> Ended {
    a.verb(Verb::Status, "runbook: what state is the VM in?").await;
    // Also where status finds nothing: it has one sample, and a stalled guest's sshd answers out of its cache. And the bundle has to be
    // there before the devvm is touched.
    let mut evidence = a.verb(Verb::Forensics, "runbook: evidence before anything else").await;
    if matches!(&evidence, Verdict::Known(looked) if looked.code == Some(Code::QmpUnavailable)) {
        tokio::time::sleep(a.patience.again).await;
        evidence = a.verb(Verb::Forensics, "runbook: once more, as too little could be seen").await;
    }
    let looked = match evidence {
        Verdict::Known(looked) if looked.outcome == Outcome::Done => looked,
        Verdict::Known(looked) => {
            return Ended::badly(format!("The host took no evidence: {}", looked.said.what), looked.said.next);
        }
        Verdict::Unknown(said) | Verdict::Unsent(said) => {
            let guest =
                if a.guest().await.is_some() { "The devvm answers over SSH." } else { "The devvm does not answer over SSH either." };
            return Ended::badly(format!("{} {guest}", said.what), said.next);
        }
    };
    a.say(&format!("{} {}", looked.sentence, looked.why));
    let Some(code) = looked.code else {
        return Ended::badly("The host signed no assessment.", "Read the bundle, or act by hand with the six verbs.");
    };
    if unattended && somebody_did_it(code, looked.state) {
        return Ended::badly(looked.sentence.clone(), format!("Nobody asked, so nothing was changed. {}", looked.why));
    }
    match code {
        Code::Healthy => settled(a, unattended).await,
        _ => advised(a, code, &looked).await,
    }
}

/// What an assessment leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The guest's largest process is ended over SSH; a reset where that does not help.
    Soften,
    /// What is advised.
    Verb(Verb),
    /// Nothing: it is for a person.
    Person,
}

/// What the assessment of something wrong leads to. The page shows it before it is asked for.
pub fn next(code: Code, state: VmState, advised: Option<Verb>) -> Next {
    match (code, advised) {
        (Code::GuestOom, _) => Next::Soften,
        // A newer host's word: what it advises was not written with this runbook in mind.
        (Code::Newer, _) => Next::Person,
        // The host's storage is to be repaired first: resumed or cycled before, it stops again.
        (Code::Paused, _) if state == VmState::Qmp(RunState::IoError) => Next::Person,
        // An interrupted stop is completed by a stop, and that is for a person: the runbook never leaves a VM off.
        (_, Some(verb)) if verb.mutates() && verb != Verb::Stop => Next::Verb(verb),
        _ => Next::Person,
    }
}

async fn advised(a: &mut Acting<'_>, code: Code, looked: &Looked) -> Ended {
    match next(code, looked.state, looked.recommend) {
        Next::Soften => soften(a, None).await,
        Next::Verb(verb) => mutate(a, verb, looked).await,
        Next::Person if code == Code::Newer => {
            Ended::badly(looked.sentence.clone(), format!("This version does not know that trouble. {}", looked.why))
        }
        Next::Person => Ended::badly(looked.sentence.clone(), looked.why.clone()),
    }
}

/// States that a person brings about as well as a fault does. KVM's own fault is nobody's wish.
fn somebody_did_it(code: Code, state: VmState) -> bool {
    let paused = code == Code::Paused && state != VmState::Qmp(RunState::InternalError);
    paused || matches!(code, Code::Stopped | Code::Interrupted | Code::Locked)
}

/// The host finds nothing wrong: then it is the guest's own word that counts. Where it gives none for minutes, the evidence is taken
/// once more: a guest that has just died still looked alive in the first.
async fn settled(a: &mut Acting<'_>, unattended: bool) -> Ended {
    let why = match a.back(a.patience.soft).await {
        Ok(guest) if guest.starved() => return soften(a, Some(guest)).await,
        Ok(_) => return Ended::well(format!("VM {} looks healthy and the devvm answers: nothing was changed.", a.hands.vmid())),
        Err(why) => why,
    };
    if let Verdict::Known(again) = a.verb(Verb::Forensics, "runbook: once more, as the devvm does not answer").await
        && let Some(code) = again.code.filter(|code| *code != Code::Healthy)
        && !(unattended && somebody_did_it(code, again.state))
    {
        return advised(a, code, &again).await;
    }
    Ended::badly(
        format!("From the host VM {} looks healthy, and the devvm can't be used: {why}.", a.hands.vmid()),
        "Look at its console in the bundle; reset boots the guest anew.",
    )
}

/// Memory pressure: the guest's kernel is told to end its largest process, and gets a bounded time; then it is reset.
async fn soften(a: &mut Acting<'_>, mut guest: Option<guest::Guest>) -> Ended {
    let begun = tokio::time::Instant::now();
    let mut told = false;
    if guest.is_none() {
        guest = a.guest().await;
    }
    while begun.elapsed() < a.patience.soft {
        match &guest {
            Some(guest) if !guest.starved() => {
                let how = if told { "after its largest process was ended over SSH" } else { "by now" };
                return Ended::well(format!(
                    "The devvm answers and has {} % of its memory free {how}; no power verb was used.",
                    guest.free_percent
                ));
            }
            // Once: a second would end the next process, which may be the one that matters.
            Some(_) if !told => told = a.end_largest().await,
            _ => {}
        }
        tokio::time::sleep(a.patience.pause).await;
        guest = a.guest().await;
    }
    let looked = Looked { why: "The devvm could not be repaired over SSH in its time.".to_owned(), ..Looked::default() };
    mutate(a, Verb::Reset, &looked).await
}

/// One mutation, and what follows from how it ended.
async fn mutate(a: &mut Acting<'_>, verb: Verb, looked: &Looked) -> Ended {
    let mut next = (verb, format!("runbook: {} {}", looked.code.map_or_else(String::new, |code| code.to_string()), looked.why));
    loop {
        let (verb, reason) = next;
        a.mutations += 1;
        let done = match a.verb(verb, reason.trim()).await {
            Verdict::Known(done) => done,
            Verdict::Unknown(said) => return unknown(a, verb, said).await,
            Verdict::Unsent(said) => {
                return Ended::badly(format!("{verb} did not reach the host, so it did nothing there: {}", said.what), said.next);
            }
        };
        next = match done.outcome {
            Outcome::Done => match returned(a, verb).await {
                Ok(ended) => return ended,
                Err(why) if a.mutations > 1 || verb == Verb::Cycle => {
                    return Ended::badly(
                        format!("{verb} was done, and the devvm is not back: {why}."),
                        "Look at its console, in the bundle and live; a person has to go on.",
                    );
                }
                // What a reset or a start did not cure, a fresh QEMU process may.
                Err(why) => (Verb::Cycle, format!("runbook: {verb} was done and the devvm is not back: {why}")),
            },
            Outcome::Failed if done.state == VmState::Stopped && a.mutations == 1 => {
                (Verb::Start, format!("runbook: {verb} failed and left the VM stopped"))
            }
            // Refused with the words "use cycle", as of a VM whose block layer stalled meanwhile.
            Outcome::RefusedPrecondition if verb == Verb::Reset && done.code == Some(Code::BlockStalled) && a.mutations == 1 => {
                (Verb::Cycle, "runbook: reset was refused, as the block layer stalled".to_owned())
            }
            Outcome::Unknown | Outcome::Internal => return unknown(a, verb, done.said).await,
            _ => return Ended::badly(done.said.what, done.said.next),
        };
    }
}

/// Whether the guest came back after a verb that was done; the error is why not.
async fn returned(a: &mut Acting<'_>, verb: Verb) -> Result<Ended, String> {
    let guest = a.back(a.patience.boot).await?;
    // Two: the second compares its counters with the first one's.
    a.verb(Verb::Status, "runbook: a first look after it").await;
    tokio::time::sleep(a.patience.pause).await;
    let now = a.verb(Verb::Status, "runbook: is it healthy now?").await;
    let Verdict::Known(now) = now else { return Ok(Ended::badly("The devvm answers again, and the host does not.", "Ask with status.")) };
    if now.code == Some(Code::Healthy) {
        return Ok(Ended::well(format!(
            "{verb} was done and observed; the devvm answers over SSH again, up for {} s, and VM {} looks healthy.",
            guest.up_s,
            a.hands.vmid()
        )));
    }
    Ok(Ended::badly(format!("{verb} was done and the devvm answers, but: {}", now.sentence), now.why))
}

/// Nobody knows what became of a mutation: looked at, told, and nothing more is done.
async fn unknown(a: &mut Acting<'_>, verb: Verb, said: proto::Message) -> Ended {
    let now = match a.verb(Verb::Status, "runbook: what became of it?").await {
        Verdict::Known(now) => format!("The VM is {} now.", now.state),
        Verdict::Unknown(_) | Verdict::Unsent(_) => "The host does not say what the VM is now.".to_owned(),
    };
    Ended::badly(format!("The result of {verb} is UNKNOWN, so the runbook does nothing more: {} {now}", said.what), said.next)
}
