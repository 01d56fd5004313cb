//! Locked → Captured: every probe is tried, and its result kept, whatever it is. Nothing here can change the VM.
//!
//! The probes run in two helper processes and a few external tools, side by side, until one common deadline. What has not
//! answered then is `timed_out`; who asked it is abandoned, never waited for.

use proto::{Assessment, Body, Code, ProbeOutcome, QemuProcess, RunState, Sha256Hex, Verb, VmState};
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

use crate::assess::{self, Sample};
use crate::config::Autopsy;
use crate::helper::Job;
use crate::lock::Locked;
use crate::probe::observe::{Observation, observe};
use crate::probe::{self, Answer, Set};
use crate::procfs::MainThread;
use crate::promise::Event;
use crate::qmp::Claim;
use crate::run::{Run, Stop};
use crate::{deadline, facts, host, operation, preflight, sample, screens};

/// Proof that QEMU does not answer and will not (PROTOCOL.md, section 8). Made by [`capture`] only.
#[derive(Clone, Debug)]
pub struct Unresponsive {
    /// The very process.
    pub qemu: QemuProcess,
    /// What proves it.
    pub why: String,
    /// Its main thread at the last look of the proof. Right before a kill it must still be as it is here.
    pub main_thread: MainThread,
}

/// What was seen before anything was changed.
#[derive(Debug)]
pub struct Seen {
    /// The first look.
    pub before: Observation,
    /// Every probe's answer.
    pub answers: Vec<Answer>,
    /// The judgement.
    pub assessment: Assessment,
    /// The VM's state, as receipts say it.
    pub state: VmState,
    /// The proof that QEMU will not answer, where there is one.
    pub unresponsive: Option<Unresponsive>,
    // Held, never read: from here to the receipt no read of ours is in this mutation's way.
    _claim: Option<Claim>,
}

/// All that was asked and answered. Made by [`capture`] only.
#[derive(Debug)]
pub struct Captured {
    // Before the lock: what is dropped first is let go first, and whoever gets the lock next is to find QEMU's sockets unclaimed.
    seen: Seen,
    locked: Locked,
}

/// Looks, refuses what is already proved impossible, and captures.
///
/// # Errors
/// The quick checks' refusals: they come before the capture, which would only delay a sure no.
pub fn capture(run: &mut Run, locked: Locked) -> Result<Captured, Stop> {
    let (verb, vmid) = (locked.authorised().verb(), locked.authorised().vmid());
    let before = observe(vmid, deadline::OBSERVE);
    run.saw_before(&before);
    preflight::quick(run, &locked, &before)?;

    let claim = claim(run, &locked);
    let set = if verb == Verb::Status { Set::Status } else { Set::Full };
    let began = Instant::now();
    let mut answers = ask(run, vmid, set, &before);
    let left = deadline::CAPTURE.saturating_sub(began.elapsed());
    let proved = facts::prove_unresponsive(vmid, &before, || observe(vmid, deadline::OBSERVE), &answers);
    let unresponsive = proved.map(|(main_thread, why)| Unresponsive { qemu: main_thread.process, why, main_thread });
    let assessment = judge(run, vmid, set, &before, &answers, unresponsive.as_ref());
    let state = state_of(&before, &answers, unresponsive.as_ref());
    run.judged(state, &assessment);
    if let Some(qemu) = facts::qemu(&before).filter(|_| set == Set::Full) {
        let answer = autopsy(run, &locked, qemu, &answers, &assessment, left);
        run.probed(&answer);
        answers.push(answer);
    }
    run.answer.say(Body::Assessment(assessment.clone()));
    if verb.mutates() {
        run.reach(Event::Captured)?;
    }
    Ok(Captured { locked, seen: Seen { before, answers, assessment, state, unresponsive, _claim: claim } })
}

/// A mutation claims QEMU's sockets: a read that is at them gives way, others stay away. A dry run is no more than a read itself.
fn claim(run: &mut Run, locked: &Locked) -> Option<Claim> {
    let authorised = locked.authorised();
    if !authorised.verb().mutates() || authorised.dry_run() {
        return None;
    }
    let claimed = Claim::take(authorised.vmid(), &run.id().to_string());
    claimed.map_err(|e| run.degrade(format!("reads could not be told to leave QEMU's sockets to this mutation: in use by {}", e.by))).ok()
}

/// Asks everything that is planned for this set, side by side, until one common deadline.
fn ask(run: &mut Run, vmid: proto::Vmid, set: Set, before: &Observation) -> Vec<Answer> {
    let within = if set == Set::Status { deadline::CAPTURE_STATUS } else { deadline::CAPTURE };
    let screens = (set == Set::Full).then(screens::Folder::make).and_then(Result::ok);
    let job =
        Job { vmid, set, qemu: facts::qemu(before), screens: screens.as_ref().map(|s| s.path().to_owned()), request: run.id().to_string() };
    let mut answers = Vec::new();
    let degraded = probe::gather(&job, Instant::now() + within, &mut |answer| {
        run.probed(&answer);
        answers.push(answer);
    });
    degraded.into_iter().for_each(|sentence| run.degrade(sentence));
    answers
}

/// Where QEMU's threads stand, before a verb that ends this QEMU or resets its guest, as the configuration has it. After the proof
/// that QEMU does not answer, of which a halted QEMU would be a false one.
fn autopsy(run: &mut Run, locked: &Locked, qemu: QemuProcess, answers: &[Answer], assessment: &Assessment, left: Duration) -> Answer {
    let silent = matches!(facts::qmp(answers), Some(assess::Qmp::NoAnswer));
    let halted = qmp_run_state(answers).is_some_and(|state| state != RunState::Running);
    let wedged = silent || halted || assessment.findings.iter().any(|f| matches!(f.code, Code::BlockStalled | Code::QemuUnresponsive));
    let destroys = matches!(locked.authorised().verb(), Verb::Reset | Verb::Stop | Verb::Cycle) && !locked.authorised().dry_run();
    let asked = match run.host.config.evidence.autopsy {
        _ if !destroys => Err("it is taken only before reset, stop and cycle"),
        Autopsy::Never => Err("the host's configuration says evidence.autopsy = \"never\""),
        Autopsy::Wedged if !wedged => Err("QEMU does not look wedged, and the host's configuration asks for it only then"),
        Autopsy::Wedged | Autopsy::Always => Ok(()),
    };
    match asked {
        Err(why) => probe::autopsy::not_asked(why),
        Ok(()) => {
            let (answer, trouble) = probe::autopsy::ask(locked.authorised().vmid(), qemu, left);
            trouble.into_iter().for_each(|sentence| run.degrade(sentence));
            answer
        }
    }
}

fn judge(
    run: &mut Run,
    vmid: proto::Vmid,
    set: Set,
    before: &Observation,
    answers: &[Answer],
    unresponsive: Option<&Unresponsive>,
) -> Assessment {
    let artifact = |path: &str| whole(answers, path);
    let outcome = |name: &str| answers.iter().find(|a| a.name == name).map(|a| (a.outcome, a.detail.as_deref()));
    let interrupted = operation::interrupted_now(run);
    let mut facts = facts::gather(vmid, before, answers, unresponsive.map(|u| u.why.clone()), interrupted);
    if set == Set::Status {
        let previous = sample::last(vmid);
        facts.window_ms = previous.as_ref().map(|(_, ago)| *ago);
        facts.previous = previous.map(|(sample, _)| sample);
        if let Some(mut now) = Sample::take(&artifact, 1) {
            now.qemu = facts.qemu;
            now.at_ms = Some(host::awake_ms());
            sample::leave(vmid, &now);
        }
    }
    assess::assess(&assess::Evidence { artifact: &artifact, outcome: &outcome, facts })
}

/// An artifact that came to its end. Half an answer is for a person: nothing is judged by it.
fn whole<'a>(answers: &'a [Answer], path: &str) -> Option<&'a [u8]> {
    let captured = answers.iter().filter(|a| a.outcome == ProbeOutcome::Captured);
    captured.filter_map(|a| a.artifact.as_ref()).find(|a| a.path == path).map(|a| a.bytes.as_bytes())
}

/// The state as receipts say it.
fn state_of(before: &Observation, answers: &[Answer], unresponsive: Option<&Unresponsive>) -> VmState {
    let host = facts::state_without_qmp(before);
    if host != VmState::Unknown {
        return host;
    }
    if unresponsive.is_some() {
        return VmState::Unresponsive;
    }
    qmp_run_state(answers).map_or(VmState::Unknown, VmState::Qmp)
}

/// QEMU's own word.
fn qmp_run_state(answers: &[Answer]) -> Option<RunState> {
    let artifact = answers.iter().find(|a| a.name == "qmp/query-status")?.artifact.as_ref()?;
    RunState::from_qmp(assess::returned(artifact.bytes.as_bytes())?.get("status")?.as_str()?)
}

/// An answer as the events and the manifest say it.
pub fn event(answer: &Answer) -> proto::Probe {
    let artifact = answer.artifact.as_ref().map(|a| proto::ArtifactRef {
        path: a.path.clone(),
        media_type: a.media_type.to_owned(),
        bytes: u64::try_from(a.bytes.as_bytes().len()).unwrap_or(u64::MAX),
        sha256: Sha256Hex::from_bytes(Sha256::digest(a.bytes.as_bytes()).into()),
    });
    proto::Probe { name: answer.name.clone(), outcome: answer.outcome, ms: answer.ms, detail: answer.detail.clone(), artifact, data: None }
}

impl Captured {
    /// The verb that it was captured for.
    pub const fn verb(&self) -> Verb {
        self.locked.authorised().verb()
    }

    /// What was seen.
    pub const fn seen(&self) -> &Seen {
        &self.seen
    }

    /// The request, which may go on.
    pub const fn locked(&self) -> &Locked {
        &self.locked
    }

    /// Its parts, for the next stage.
    pub(crate) fn open(self) -> (Locked, Seen) {
        (self.locked, self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Raw, plan};

    #[test]
    fn half_an_answer_is_in_the_bundle_and_not_in_the_judgement() {
        let plan = plan(Set::Full, proto::Vmid::DEVVM);
        let of = |name: &str| plan.iter().find(|p| p.name == name).unwrap();
        let answers = [
            Answer::partial(of("pve/storage"), ProbeOutcome::TimedOut, 1, "late", Raw::new(b"local dir act".to_vec())),
            Answer::captured(of("host/df"), 1, Raw::new(b"all of it".to_vec())),
        ];
        assert_eq!(whole(&answers, "pve/storage.txt"), None);
        assert_eq!(whole(&answers, "host/df.txt"), Some(b"all of it".as_slice()));
        let said = event(&answers[0]);
        assert_eq!((said.outcome, said.artifact.unwrap().path.as_str()), (ProbeOutcome::TimedOut, "pve/storage.txt"));
    }
}
