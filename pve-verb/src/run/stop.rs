//! A request that ends before it is done: the refusals, by what they refuse for.

use proto::{Message, Outcome, VmState};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::bundle::Preserved;
use crate::text::say;

/// A request that ends before it is done: a refusal, or a bug.
#[derive(Debug)]
pub struct Stop {
    pub(super) outcome: Outcome,
    pub(super) message: Message,
    pub(super) state: Option<VmState>,
    /// The lock of a mutation that may have an intent, until the end of that is stored.
    pub(super) held: Option<Box<Preserved>>,
}

impl Stop {
    /// A read, which sends nothing to the VM: where it panics, that is a bug and an end like the others, with a record and a receipt.
    ///
    /// # Errors
    /// The read's, or internal.
    pub fn where_it_panics<T>(read: impl FnOnce() -> Result<T, Self>) -> Result<T, Self> {
        catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(Self::internal(say::panicked(Some(false)))))
    }

    const fn new(outcome: Outcome, message: Message) -> Self {
        Self { outcome, message, state: None, held: None }
    }

    /// Not in the grammar, or an id that belongs to another request.
    pub const fn request(message: Message) -> Self {
        Self::new(Outcome::RefusedRequest, message)
    }

    /// The key may not.
    pub const fn policy(message: Message) -> Self {
        Self::new(Outcome::RefusedPolicy, message)
    }

    /// Another mutation of ours is in progress.
    pub const fn busy(message: Message) -> Self {
        Self::new(Outcome::RefusedBusy, message)
    }

    /// PVE holds a lock.
    pub const fn busy_pve(message: Message, state: VmState) -> Self {
        Self { outcome: Outcome::RefusedBusy, message, state: Some(state), held: None }
    }

    /// Evidence or intent could not be made durable.
    pub const fn evidence(message: Message) -> Self {
        Self::new(Outcome::RefusedEvidence, message)
    }

    /// The host is not fit.
    pub const fn host(message: Message) -> Self {
        Self::new(Outcome::RefusedHost, message)
    }

    /// Proved impossible or harmful.
    pub const fn precondition(message: Message, state: VmState) -> Self {
        Self { outcome: Outcome::RefusedPrecondition, message, state: Some(state), held: None }
    }

    /// The same, with the lock.
    #[must_use]
    pub(crate) fn holding(mut self, preserved: Preserved) -> Self {
        self.held = Some(Box::new(preserved));
        self
    }

    /// The same, with the state as the evidence has it.
    #[must_use]
    pub const fn seen(mut self, state: VmState) -> Self {
        self.state = Some(state);
        self
    }

    /// `--attach` to an id that nobody knows.
    pub const fn unknown_id(message: Message) -> Self {
        Self::new(Outcome::RefusedPrecondition, message)
    }

    /// Whether anything was done could not be told.
    pub const fn unknown(message: Message) -> Self {
        Self::new(Outcome::Unknown, message)
    }

    /// A bug, or a host on which nothing can be started.
    pub const fn internal(message: Message) -> Self {
        Self::new(Outcome::Internal, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_panics_ends_as_internal_and_says_that_nothing_was_sent() {
        let ended: Result<(), Stop> = Stop::where_it_panics(|| panic!("a bug"));
        let stop = ended.unwrap_err();
        assert_eq!(stop.outcome, Outcome::Internal);
        assert!(stop.message.what.contains("nothing was sent to the VM"), "{}", stop.message);
        assert_eq!(Stop::where_it_panics(|| Ok(7)).unwrap(), 7);
    }
}
