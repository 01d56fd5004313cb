//! Asking again: a finished request gives the same answer, one whose worker was killed is told as interrupted. Neither acts.

use proto::{RequestId, VmState};

use crate::assess::{self, Interrupted};
use crate::look::look;
use crate::operation::{self, Finished, Operation};
use crate::policy::Authorised;
use crate::qmp::Purpose;
use crate::run::{Run, Stop};
use crate::text::say;
use crate::{deadline, facts};

/// Says the stored answer again: the same body with `replayed`, signed anew; its `audit` is the original's. Where nobody saw the end
/// of it, that is told.
pub fn finished(run: Run, stored: Finished, authorised: &Authorised) -> u8 {
    let id = run.id().clone();
    if stored.binding != authorised.parsed().binding() {
        return run.finish(Err(Stop::request(say::id_of_another_request(&id))));
    }
    let Some(receipt) = stored.receipt else { return interrupted(run, authorised, stored.killed) };
    match proto::decode_body(&receipt.body) {
        Ok((body, _)) => run.replay(body),
        Err(_) => run.finish(Err(Stop::unknown(say::stored_answer_damaged(&id)))),
    }
}

/// Tells that the worker of this id was killed, with the state that is seen now, and what was stored of it where somebody told of it already.
pub fn interrupted(mut run: Run, authorised: &Authorised, stored: Option<Operation>) -> u8 {
    let now = look(authorised.vmid(), &Purpose::Read(run.id().to_string()));
    let operation = stored.or_else(|| begun(&mut run, authorised.id()).0);
    let was = operation.as_ref().map_or_else(|| Interrupted::of(authorised.verb()), |operation| facts::killed(operation, now.qemu));
    let running = if now.state == VmState::Stopped { Some(false) } else { now.qemu.map(|_| true) };
    let message = say::interrupted(authorised.vmid(), &was, assess::completes(&was, running, Some(&now.state.to_string())));
    run.tell_interrupted(now, operation.and_then(|operation| operation.bundle), message)
}

/// The mutation of this id, where it has an intent and no end of it is stored. The log may know its end all the same; nobody can say it
/// again, so that counts as killed. And whether that is sure: a disk that does not say has not said no.
pub fn begun(run: &mut Run, id: &RequestId) -> (Option<Operation>, bool) {
    let last = run.last_intent(deadline::RECORD);
    let ended = last.clone().filter(|last| last.end.is_some()).map(|last| last.operation);
    let told = operation::interrupted(&run.disk, last.as_ref(), deadline::WRITE);
    let sure = operation::settled() || told.whole && run.knows_the_log();
    (told.all.into_iter().chain(ended).find(|operation| operation.request_id == *id), sure)
}
