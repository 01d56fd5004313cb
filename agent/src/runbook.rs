//! The incident without a model: `status`, `forensics`, what the assessment recommends, is the guest back, a report.
//!
//! It runs where no API key is set, when the API is down, and when the watch opens an incident. It decides by what is signed or
//! measured: the receipt's code, the exit of a command. Bounded in time and in mutations: a second one only after a first whose
//! result is known, with new evidence in which the host calls the VM unwell, and never a third. A devvm that can't be asked or does not
//! answer is no such evidence: it may have no `[devvm]` here, another host key, or disks to check.

use std::time::Duration;

use proto::{Code, Outcome, RunState, Verb, VmState};

use crate::hands::Hands;
use crate::silence::Silence;

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
    /// Between two looks from the host, where they are all that there is: two that are a minute apart show a stall.
    pub apart: Duration,
    /// Altogether.
    pub all: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { boot: s(240), soft: s(120), pause: s(5), again: s(20), apart: s(60), all: s(1500) }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The VM runs and looks healthy, and the devvm answers, where there is one to ask.
    pub healthy: bool,
    /// The report's last sentences: what is so, and what to do.
    pub said: proto::Message,
}

impl Ended {
    fn well(what: impl Into<String>) -> Self {
        Self { healthy: true, said: proto::Message::new(what, "Read the evidence when you are awake.") }
    }

    /// By a host that calls the VM healthy and a guest that gave no answer.
    fn by(silence: &Silence, did: &str, now: &Looked) -> Self {
        let (healthy, said) = silence.though_healthy(did, now.vmid);
        Self { healthy, said }
    }

    fn badly(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { healthy: false, said: proto::Message::new(what, next) }
    }
}

/// Runs it to its end; everything it does is in the journal. `unattended`: nobody asked, so a VM that somebody stopped or paused
/// stays as it is.
pub async fn run(hands: &dyn Hands, journal: &mut dyn Journal, patience: Patience, unattended: bool) -> Ended {
    let mut acting = Acting { hands, journal, patience, unattended, mutations: 0, said: String::new() };
    let ended = match tokio::time::timeout(patience.all, steps(&mut acting)).await {
        Ok(ended) => ended,
        Err(_) => Ended::badly(
            format!("The runbook's {} minutes are over, and a verb that it started goes on to its own end.", patience.all.as_secs() / 60),
            "Ask with status; with the request id in the log, --attach shows that verb.",
        ),
    };
    acting.say(&ended.said.to_string());
    ended
}

async fn steps(a: &mut Acting<'_>) -> Ended {
    a.verb(Verb::Status, "runbook: what state is the VM in?").await;
    // Also where status finds nothing: it has one sample, and a stalled guest's sshd answers out of its cache. And the bundle has to be
    // there before the devvm is touched.
    let looked = match evidence(a, "runbook: evidence before anything else").await {
        Ok(looked) => looked,
        Err(Blind::NoEvidence(said)) => return Ended::badly(said.what, said.next),
        Err(Blind::NoHost(said)) => {
            let guest = match a.asked().await {
                Ok(_) => "The devvm answers over SSH.".to_owned(),
                Err(Silence::Mute(_)) => "The devvm does not answer over SSH either.".to_owned(),
                Err(silence) => format!("The devvm was not asked: {silence}."),
            };
            return Ended::badly(format!("{} {guest}", said.what), said.next);
        }
    };
    a.say(&format!("{} {}", looked.sentence, looked.why));
    let Some(code) = looked.code else { return unjudged() };
    if a.hands_off(&looked) {
        return Ended::badly(looked.sentence.clone(), format!("Nobody asked, so nothing was changed. {}", looked.why));
    }
    match code {
        Code::Healthy => settled(a).await,
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

/// Why there is no judgement to go by.
enum Blind {
    /// The host answered, and took no evidence.
    NoEvidence(proto::Message),
    /// It gave no receipt, or was not asked.
    NoHost(proto::Message),
}

/// The host's evidence and what it judges by it; once more where too little could be seen.
async fn evidence(a: &mut Acting<'_>, reason: &str) -> Result<Box<Looked>, Blind> {
    let mut taken = a.verb(Verb::Forensics, reason).await;
    if matches!(&taken, Verdict::Known(looked) if looked.code == Some(Code::QmpUnavailable)) {
        tokio::time::sleep(a.patience.again).await;
        taken = a.verb(Verb::Forensics, "runbook: once more, as too little could be seen").await;
    }
    match taken {
        Verdict::Known(looked) if looked.outcome == Outcome::Done => Ok(looked),
        Verdict::Known(looked) => {
            Err(Blind::NoEvidence(proto::Message::new(format!("The host took no evidence: {}", looked.said.what), looked.said.next)))
        }
        Verdict::Unknown(said) | Verdict::Unsent(said) => Err(Blind::NoHost(said)),
    }
}

/// The same after the guest gave no answer, as what may follow has to stand on how it is now.
async fn judged(a: &mut Acting<'_>, did: &str, silence: &Silence) -> Result<Box<Looked>, Ended> {
    let taken = evidence(a, &format!("runbook: no answer from the devvm, how is it now? {silence}")).await;
    taken.map_err(|(Blind::NoEvidence(said) | Blind::NoHost(said))| {
        let what = format!("{did} The devvm gave no answer ({silence}), and the host no judgement: {}", said.what);
        Ended::badly(what.trim_start(), said.next)
    })
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
async fn settled(a: &mut Acting<'_>) -> Ended {
    let silence = match a.back(a.patience.soft).await {
        Ok(guest) if guest.starved() => return soften(a, Some(guest)).await,
        Ok(_) => return Ended::well(format!("VM {} looks healthy and the devvm answers: nothing was changed.", a.hands.vmid())),
        Err(silence) => silence,
    };
    if silence.is_for_good() {
        tokio::time::sleep(a.patience.apart).await;
    }
    match judged(a, "Nothing was changed.", &silence).await {
        Ok(now) if now.code == Some(Code::Healthy) => Ended::by(&silence, "Nothing was changed.", &now),
        Ok(now) => unwell(a, &now).await,
        Err(ended) => ended,
    }
}

/// Something is wrong, seen in a second look, and no verb changed the VM so far.
async fn unwell(a: &mut Acting<'_>, now: &Looked) -> Ended {
    let Some(code) = now.code else { return unjudged() };
    if a.hands_off(now) {
        return Ended::badly(now.sentence.clone(), format!("Nobody asked, so the VM is left as it is. {}", now.why));
    }
    match next(code, now.state, now.recommend) {
        // Its time to be repaired over SSH is over.
        Next::Soften => mutate(a, Verb::Reset, now).await,
        Next::Verb(verb) => mutate(a, verb, now).await,
        Next::Person => Ended::badly(now.sentence.clone(), now.why.clone()),
    }
}

/// Evidence that says nothing of the VM is none to act by.
fn unjudged() -> Ended {
    Ended::badly("The host signed no assessment.", "Read the bundle, or act by hand with the six verbs.")
}

/// Memory pressure: the guest's kernel is told to end its largest process, and gets a bounded time; then it is reset, where it says itself
/// that it is starved, or the host still says so.
async fn soften(a: &mut Acting<'_>, guest: Option<guest::Guest>) -> Ended {
    let begun = tokio::time::Instant::now();
    let mut largest = guest::Killed::No;
    let mut heard = match guest {
        Some(guest) => Ok(guest),
        None => a.asked().await,
    };
    while begun.elapsed() < a.patience.soft {
        match &heard {
            Ok(guest) if !guest.starved() => {
                let how = match largest {
                    guest::Killed::No => "by now",
                    guest::Killed::Perhaps => "after its largest process may have been ended over SSH",
                    guest::Killed::Yes => "after its largest process was ended over SSH",
                };
                return Ended::well(format!(
                    "The devvm answers and has {} % of its memory free {how}; no power verb was used.",
                    guest.free_percent
                ));
            }
            // Once: a second would end the next process, which may be the one that matters.
            Ok(_) if largest == guest::Killed::No => largest = a.end_largest().await,
            // The guest's kernel may have helped itself meanwhile.
            Err(silence) if silence.is_for_good() => {
                tokio::time::sleep(a.patience.soft.saturating_sub(begun.elapsed())).await;
                break;
            }
            _ => {}
        }
        tokio::time::sleep(a.patience.pause).await;
        heard = a.asked().await;
    }
    let Err(silence) = heard else {
        let looked = Looked { why: "The devvm could not be repaired over SSH in its time.".to_owned(), ..Looked::default() };
        return mutate(a, Verb::Reset, &looked).await;
    };
    let did = largest.did();
    match judged(a, did, &silence).await {
        Ok(now) if now.code == Some(Code::Healthy) => Ended::by(&silence, did, &now),
        Ok(now) => unwell(a, &now).await,
        Err(ended) => ended,
    }
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
                Err(now) => match further(a, verb, &now) {
                    Some(second) => (second, format!("runbook: {verb} was done, and: {}", now.sentence)),
                    None => return Ended::badly(format!("{verb} was done, and: {}", now.sentence), now.why),
                },
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

/// The one verb that may follow one that was done, by evidence that was taken since in which the VM is not well.
fn further(a: &Acting<'_>, done: Verb, now: &Looked) -> Option<Verb> {
    if a.mutations > 1 || done == Verb::Cycle || a.hands_off(now) {
        return None;
    }
    match next(now.code?, now.state, now.recommend) {
        Next::Verb(verb) if verb != done => Some(verb),
        // What a reset did not cure, a fresh QEMU process may.
        Next::Verb(Verb::Reset) => Some(Verb::Cycle),
        // What was started and is off or paused again is so by somebody's doing.
        Next::Verb(_) | Next::Soften | Next::Person => None,
    }
}

/// The mutating verbs that may follow this one, for who is asked before it.
pub(crate) const fn second(verb: Verb) -> &'static str {
    match verb {
        Verb::Start => "reset or cycle",
        Verb::Cycle => "start",
        _ => "cycle or start",
    }
}

/// How it ended after a verb that was done; the error is a VM that the host calls unwell, with its evidence.
async fn returned(a: &mut Acting<'_>, verb: Verb) -> Result<Ended, Box<Looked>> {
    let did = format!("{verb} was done and observed.");
    let mut silence = match a.back(a.patience.boot).await {
        Ok(guest) => return Ok(answered(a, verb, guest).await),
        Err(silence) => silence,
    };
    if silence.is_for_good() {
        // Nothing was waited for, so the look that judges has to be the second one.
        a.verb(Verb::Status, "runbook: a first look after it").await;
        tokio::time::sleep(a.patience.apart).await;
    }
    let mut now = match judged(a, &did, &silence).await {
        Ok(now) => now,
        Err(ended) => return Ok(ended),
    };
    // A boot that checks its disks looks like this: waited for as long again, and never cut off.
    if now.code == Some(Code::Healthy) && matches!(silence, Silence::Mute(_)) {
        silence = match a.back(a.patience.boot).await {
            Ok(guest) => return Ok(answered(a, verb, guest).await),
            Err(silence) => silence,
        };
        now = match judged(a, &did, &silence).await {
            Ok(now) => now,
            Err(ended) => return Ok(ended),
        };
    }
    if now.code == Some(Code::Healthy) { Ok(Ended::by(&silence, &did, &now)) } else { Err(now) }
}

/// The guest answers after a verb that was done.
async fn answered(a: &mut Acting<'_>, verb: Verb, guest: guest::Guest) -> Ended {
    // Two: the second compares its counters with the first one's.
    a.verb(Verb::Status, "runbook: a first look after it").await;
    tokio::time::sleep(a.patience.pause).await;
    let now = a.verb(Verb::Status, "runbook: is it healthy now?").await;
    let Verdict::Known(now) = now else { return Ended::badly("The devvm answers again, and the host does not.", "Ask with status.") };
    if now.code == Some(Code::Healthy) {
        return Ended::well(format!(
            "{verb} was done and observed; the devvm answers over SSH again, up for {} s, and VM {} looks healthy.",
            guest.up_s,
            a.hands.vmid()
        ));
    }
    Ended::badly(format!("{verb} was done and the devvm answers, but: {}", now.sentence), now.why)
}

/// Nobody knows what became of a mutation: looked at, told, and nothing more is done.
async fn unknown(a: &mut Acting<'_>, verb: Verb, said: proto::Message) -> Ended {
    let now = match a.verb(Verb::Status, "runbook: what became of it?").await {
        Verdict::Known(now) => format!("The VM is {} now.", now.state),
        Verdict::Unknown(_) | Verdict::Unsent(_) => "The host does not say what the VM is now.".to_owned(),
    };
    Ended::badly(format!("The result of {verb} is UNKNOWN, so the runbook does nothing more: {} {now}", said.what), said.next)
}
