//! Asking again: a finished request gives the same answer, one whose worker was killed is told as interrupted. Neither acts.

use proto::{RequestId, Verb, VmState};

use crate::operation;
use crate::policy::Authorised;
use crate::probe::observe::observe;
use crate::run::{Run, Stop};
use crate::spool::Binding;
use crate::text::say;
use crate::{deadline, facts};

/// Replays the stored answer: the same body with `replayed`, signed anew; its `audit` is the original's.
pub fn finished(run: Run, stored: operation::Finished, wanted: &Binding) -> u8 {
    let id = run.id().clone();
    if stored.binding != *wanted {
        return run.finish(Err(Stop::request(say::id_of_another_request(&id))));
    }
    match proto::decode_body(&stored.receipt.body) {
        Ok((body, _)) => run.replay(body),
        Err(_) => run.finish(Err(Stop::internal(say::internal(Some(false), "the stored answer of this id is damaged")))),
    }
}

/// Tells that the worker of this id was killed, with the state that is seen now.
pub fn interrupted(mut run: Run, authorised: &Authorised) -> u8 {
    let now = observe(authorised.vmid(), deadline::OBSERVE);
    let state = facts::state_without_qmp(&now);
    run.saw_before(&now);
    let begun = operation::interrupted(&run.disk).filter(|o| o.request_id == *authorised.id());
    let message = say::interrupted(authorised.verb(), authorised.vmid(), None, completes(authorised.verb(), state));
    run.tell_interrupted(state, begun.and_then(|o| o.bundle), message)
}

/// The verb that brings the VM to where the killed one was going; none where it is there.
fn completes(verb: Verb, state: VmState) -> Option<Verb> {
    match (verb, state) {
        (Verb::Stop, VmState::Stopped) => None,
        (Verb::Start | Verb::Cycle, VmState::Stopped) => Some(Verb::Start),
        (verb, _) => Some(verb),
    }
}

/// Whether this id has an intent that never came to its end.
pub fn was_begun(run: &Run, id: &RequestId) -> bool {
    operation::interrupted(&run.disk).is_some_and(|o| o.request_id == *id)
}
