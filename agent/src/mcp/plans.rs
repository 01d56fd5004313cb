//! Plans and their tokens: each bound to the state of the VM that its plan saw, and spent by one use, whatever comes of it.
//!
//! They live in memory: a server that was started again knows none, and its client plans anew.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64ct::{Base64UrlUnpadded, Encoding};
use proto::{QemuProcess, ReceiptBody, Verb, VmState};

/// A plan is forgotten after this long.
const LIFE: Duration = Duration::from_secs(600);
/// No client has more plans open; beyond, the oldest goes.
const MOST: usize = 64;

/// The VM as a signed receipt says that it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its state.
    pub(super) state: VmState,
    /// Its process.
    pub(super) qemu: Option<QemuProcess>,
}

impl Seen {
    /// At the end of this request.
    pub(super) const fn by(body: &ReceiptBody) -> Self {
        Self { state: body.state_after, qemu: body.qemu_after }
    }

    /// Whether that is the VM that was planned for. A short look can't prove what a long one can: that a process does not answer is
    /// `unresponsive` to the one and `unknown` to the other.
    pub(super) fn is_still(&self, planned: &Self) -> bool {
        let silent = |state| matches!(state, VmState::Unknown | VmState::Unresponsive);
        self.qemu == planned.qemu && (self.state == planned.state || (silent(self.state) && silent(planned.state) && self.qemu.is_some()))
    }
}

/// A plan.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// What is to be done.
    pub(super) verb: Verb,
    /// Why.
    pub(super) reason: String,
    /// What it was planned for.
    pub(super) seen: Seen,
    /// In the host's words, escaped.
    pub(super) would: String,
    made: Instant,
}

impl Plan {
    /// A plan of now.
    pub(super) fn new(verb: Verb, reason: String, seen: Seen, would: String) -> Self {
        Self { verb, reason, seen, would, made: Instant::now() }
    }
}

/// The open plans.
#[derive(Debug, Default)]
pub(super) struct Plans {
    open: Mutex<HashMap<String, Plan>>,
}

impl Plans {
    fn open(&self) -> MutexGuard<'_, HashMap<String, Plan>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, plan| plan.made.elapsed() < LIFE);
        open
    }

    /// Keeps a plan; gives its token, none where the kernel gave no random bytes.
    pub(super) fn keep(&self, plan: Plan) -> Option<String> {
        let mut bytes = [0; 16];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).ok()?;
        let token = Base64UrlUnpadded::encode_string(&bytes);
        let mut open = self.open();
        if open.len() >= MOST
            && let Some(oldest) = open.iter().min_by_key(|(_, plan)| plan.made).map(|(token, _)| token.clone())
        {
            open.remove(&oldest);
        }
        open.insert(token.clone(), plan);
        Some(token)
    }

    /// Spends a token, whatever comes of it.
    pub(super) fn spend(&self, token: &str) -> Option<Plan> {
        self.open().remove(token)
    }

    /// What a token's plan would do, without spending it.
    pub(super) fn look(&self, token: &str) -> Option<Plan> {
        self.open().get(token).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(state: VmState, pid: Option<u32>) -> Seen {
        Seen { state, qemu: pid.map(|pid| QemuProcess { pid, started: 7 }) }
    }

    #[test]
    fn a_token_is_spent_by_one_use() {
        let plans = Plans::default();
        let plan = || Plan::new(Verb::Cycle, "r".to_owned(), seen(VmState::Running, Some(1)), "w".to_owned());
        let token = plans.keep(plan()).unwrap();
        assert!(plans.look(&token).is_some() && plans.spend(&token).is_some());
        assert!(plans.spend(&token).is_none() && plans.look(&token).is_none());
        let first = plans.keep(plan()).unwrap();
        for _ in 0..MOST {
            plans.keep(plan()).unwrap();
        }
        assert!(plans.spend(&first).is_none(), "the oldest goes");
    }

    #[test]
    fn only_the_vm_that_was_planned_for_is_still_the_same() {
        let planned = seen(VmState::Unresponsive, Some(1));
        assert!(seen(VmState::Unknown, Some(1)).is_still(&planned));
        assert!(!seen(VmState::Unknown, Some(2)).is_still(&planned), "another process");
        assert!(!seen(VmState::Running, Some(1)).is_still(&planned), "it answers again");
        assert!(!seen(VmState::Unknown, None).is_still(&seen(VmState::Unresponsive, None)));
        assert!(seen(VmState::Stopped, None).is_still(&seen(VmState::Stopped, None)));
    }
}
