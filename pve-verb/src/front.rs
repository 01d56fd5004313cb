//! The front: finds or starts the worker of a mutating request and relays its events to the caller. It may die at any time.
//!
//! The request's id decides: one that runs is joined, one that ended is replayed, one whose worker was killed is told as
//! interrupted, an unknown one is begun (never with `--attach`).

use proto::{Body, Event, Outcome, RequestId};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::answer::{Answer, Form};
use crate::channel::Worker;
use crate::operation::{self, Finished};
use crate::policy::Authorised;
use crate::promise::{Asked, LastWord, Stored, Traces, asked};
use crate::run::{Run, Stop};
use crate::spool::{self, Binding, Follower, Next};
use crate::text::say;
use crate::{ack, deadline, replay, worker};

/// Serves a mutating request; gives the exit status.
pub fn serve(mut run: Run, authorised: Authorised) -> u8 {
    let wanted = authorised.parsed().binding();
    let parsed = authorised.parsed();
    let options = parsed.request().options();
    let form = if options.json { Form::Json } else { Form::Text };
    let id = parsed.id().clone();
    let named = options.request_id.is_some();
    let disk = run.disk.clone();
    // Whoever only watches starts nothing that has a deadline.
    disk.allow((!options.attach).then_some(deadline::DISK_FRONT));
    let mut look = LookUp { run: &mut run, id: &id, sure: true };
    let found = if named { asked(&mut look) } else { Asked::New };
    let sure = look.sure;
    disk.allow(None);
    match found {
        Asked::Join(follower) | Asked::Again(follower) if follower.binding != wanted => {
            run.finish(Err(Stop::request(say::id_of_another_request(&id))))
        }
        Asked::Join(follower) => relay(run, follower, form, None, &authorised),
        Asked::Replay(stored) => replay::finished(run, *stored, &authorised),
        Asked::Killed(binding) if binding != wanted => run.finish(Err(Stop::request(say::id_of_another_request(&id)))),
        Asked::Killed(_) => replay::interrupted(run, &authorised, None),
        Asked::Damaged => run.finish(Err(Stop::unknown(say::stored_answer_damaged(&id)))),
        Asked::NotLookedUp | Asked::New | Asked::Again(_) if options.attach && !sure => {
            run.finish(Err(Stop::unknown(say::id_not_looked_up(&id))))
        }
        Asked::New | Asked::Again(_) if options.attach => run.finish(Err(Stop::unknown_id(say::unknown_id(&id)))),
        Asked::Again(follower) => {
            follower.discard(&id);
            begin(run, &authorised, form)
        }
        // The worker looks once more, and says that it could not tell (operation.rs).
        Asked::NotLookedUp | Asked::New => begin(run, &authorised, form),
    }
}

/// Starts the worker of this request and follows it.
fn begin(run: Run, authorised: &Authorised, form: Form) -> u8 {
    let (parsed, id) = (authorised.parsed(), authorised.id());
    // The worker asks again; what it would refuse needs no worker.
    if let Err(stop) = authorised.granted_now(&run.host.node) {
        return run.refuse(stop);
    }
    // A worker without a spool could tell nobody anything, and where not even that fits no evidence does.
    if let Err(e) = spool::room() {
        return run.finish(Err(Stop::evidence(say::no_room_for_a_worker(&e.to_string()))));
    }
    let mut worker = match worker::start(parsed.arrival()) {
        Ok(worker) => worker,
        Err(e) => {
            return run.finish(Err(Stop::internal(say::internal(Some(false), &format!("the worker could not be started: {e}")))));
        }
    };
    let mut ended = false;
    let follower = Follower::wait_for(id, deadline::APPEARS).or_else(|| {
        // It must not come to life after we have said that nothing was done; and only the dead make no spool any more.
        worker.kill();
        ended = worker.has_ended();
        Follower::open(id)
    });
    match follower {
        Some(follower) if follower.binding != parsed.binding() => run.finish(Err(Stop::request(say::id_of_another_request(id)))),
        // Another caller's worker had the id first, and ours is gone.
        Some(follower) if follower.worker != worker.id() => relay(run, follower, form, None, authorised),
        Some(follower) => relay(run, follower, form, Some(worker), authorised),
        None if ended => run.finish(Err(Stop::internal(say::internal(Some(false), "the worker did not come up")))),
        None => run.finish(Err(Stop::unknown(say::worker_hangs(id)))),
    }
}

/// Where the traces of an id are on this host.
struct LookUp<'a> {
    run: &'a mut Run,
    id: &'a RequestId,
    /// Whether the disk said all that was asked of it.
    sure: bool,
}

impl Traces for LookUp<'_> {
    type Spool = Follower;
    type End = Box<Finished>;
    type Trace = Binding;

    fn spool(&mut self) -> Option<Follower> {
        Follower::open(self.id)
    }

    fn lives(&mut self, spool: &Follower) -> bool {
        spool.worker_lives()
    }

    fn last_word(&mut self, mut spool: Follower) -> LastWord<Self> {
        let Some(receipt) = spool.receipt() else { return LastWord::None(spool.binding) };
        match proto::decode_body(&receipt.body) {
            Ok((body, _)) if body.outcome.is_refusal() => LastWord::Refused(spool),
            Ok((body, _)) => {
                LastWord::Ended(Box::new(Finished { binding: spool.binding, receipt: Some(receipt), bundle: body.bundle, killed: None }))
            }
            Err(_) => LastWord::None(spool.binding),
        }
    }

    fn stored(&mut self) -> Stored<Box<Finished>> {
        let stored = operation::known(&self.run.disk, self.id, deadline::WRITE);
        self.sure &= !matches!(stored, Stored::NotOfThisBoot);
        stored
    }

    fn begun(&mut self) -> Option<Binding> {
        let (begun, sure) = replay::begun(self.run, self.id);
        self.sure &= sure;
        let begun = begun?;
        Some(Binding { key_name: begun.key_name, verb: begun.verb, vmid: begun.vmid, dry_run: false })
    }
}

/// Passes the worker's events on until the receipt; the exit status is the receipt's. `own` is the worker that this front started.
fn relay(mut run: Run, mut follower: Follower, form: Form, mut own: Option<Worker>, authorised: &Authorised) -> u8 {
    let mut answer = Answer::to_caller(authorised.id().clone(), form);
    if own.is_none() {
        // Whoever joins is a caller of its own: the record says who looked on.
        run.attached();
    }
    // Longer than any verb, shorter than for ever: a worker can't be alive and silent beyond its deadline.
    let until = Instant::now() + Duration::from_millis(authorised.deadline_ms()) + deadline::SILENT_WORKER;
    loop {
        match follower.follow() {
            Next::Event(event) => {
                let event = joined(*event, own.is_none());
                answer.event(&event);
                if let Body::Receipt(receipt) = &event.body {
                    let outcome = proto::decode_body(&receipt.body).map_or(Outcome::Internal, |(body, _)| body.outcome);
                    return run.leave(outcome);
                }
                // Here it may wait: the worker does not.
                answer.flush();
                if answer.nobody_listens() {
                    return run.leave(Outcome::Unknown);
                }
            }
            Next::Nothing if Instant::now() < until => {
                if !own.as_mut().is_some_and(|worker| pass_evidence(worker, &mut answer, std::io::stdin())) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            // Its last words may be missing because /run is full; what it stored says whether it came to its end.
            Next::Nothing | Next::WorkerGone => {
                return match operation::finished(&run.disk, authorised.id()) {
                    Some(stored) => replay::finished(run, stored, authorised),
                    None => replay::interrupted(run, authorised, None),
                };
            }
        }
    }
}

/// Evidence that only the caller can keep, and its word, read `from` it, that it does; false where there was none. Nobody reads the caller's
/// input otherwise. Each file is with the caller before the next is taken: so the worker's clock is the caller's.
fn pass_evidence(worker: &mut Worker, answer: &mut Answer, from: impl AsFd) -> bool {
    let Some(event) = worker.next_event() else { return false };
    answer.event(&event);
    answer.flush();
    if matches!(event.body, Body::Offered(_)) && !answer.nobody_listens() {
        worker.all_is_sent();
        if let Ok(said) = ack::read(from, Instant::now() + deadline::ACK) {
            worker.acknowledge(&said);
        }
    }
    true
}

/// A caller that joins is told so in the `accepted` event.
fn joined(mut event: Event, attached: bool) -> Event {
    if let Body::Accepted(accepted) = &mut event.body {
        accepted.attached = attached;
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::tests::{event, pipes};
    use crate::out::Out;
    use proto::{Ack, Offered, Sha256Hex, Timestamp};
    use std::fs::File;
    use std::io::{BufRead, BufReader, Write};
    use std::os::fd::OwnedFd;

    const AMPLE: Duration = Duration::from_secs(60);

    fn pipe() -> (File, File) {
        let (from, to) = std::io::pipe().unwrap();
        (File::from(OwnedFd::from(from)), File::from(OwnedFd::from(to)))
    }

    /// A file, and that this was all.
    fn evidence(file: &str) -> [Event; 2] {
        let offered = Offered {
            bundle: proto::BundleName::new(Timestamp::from_unix_ms(0), proto::Verb::Cycle, &RequestId::from_random([1; 16])),
            files: 1,
            manifest_sha256: Sha256Hex::zero(),
            left_out: Vec::new(),
            wait_ms: 10_000,
        };
        let file = event(file.to_owned());
        [file.clone(), Event::new(file.at, file.request_id, Body::Offered(offered))]
    }

    #[test]
    fn a_caller_is_sent_all_of_it_before_its_time_to_acknowledge_begins() {
        let evidence = evidence(&"a".repeat(1 << 20));
        let (mut worker, mut there) = pipes();
        let ((callers, ours), (stdin, mut ack)) = (pipe(), pipe());
        let mut answer = Answer::to_program(evidence[0].request_id.clone(), Out::to(Some(ours), AMPLE, AMPLE));
        let caller = std::thread::spawn(move || {
            let said: Vec<_> =
                BufReader::new(callers).lines().take(2).map(|line| serde_json::from_str::<Event>(&line.unwrap()).unwrap()).collect();
            ack.write_all(Ack(Sha256Hex::zero()).to_string().as_bytes()).unwrap();
            said
        });
        let offered = evidence.clone();
        let offering = std::thread::spawn(move || there.offer(offered.into_iter(), &Sha256Hex::zero(), Instant::now() + AMPLE));
        while !offering.is_finished() {
            pass_evidence(&mut worker, &mut answer, &stdin);
        }
        assert_eq!(offering.join().unwrap(), Ok(()));
        assert!(caller.join().unwrap() == evidence);
    }

    #[test]
    fn a_caller_that_does_not_take_it_is_not_waited_for_as_if_it_had_it() {
        let (mut worker, mut there) = pipes();
        let ((_takes_nothing, ours), (stdin, _ack)) = (pipe(), pipe());
        let mut out = Out::to(Some(ours), AMPLE, Duration::ZERO);
        out.write(&[b'x'; 1 << 20]);
        let mut answer = Answer::to_program(evidence("")[0].request_id.clone(), out);
        let late = Err("it was too slow to take it");
        assert_eq!(there.offer(evidence("").into_iter(), &Sha256Hex::zero(), Instant::now()), late);
        assert!(pass_evidence(&mut worker, &mut answer, &stdin));
        assert!(answer.nobody_listens(), "the next file was taken before the caller had this one");
        assert!(pass_evidence(&mut worker, &mut answer, &stdin));
        assert_eq!(there.offer(std::iter::empty(), &Sha256Hex::zero(), Instant::now()), late, "it was said to have it");
    }
}
