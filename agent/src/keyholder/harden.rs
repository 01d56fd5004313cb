//! Closes the process itself: no core dump, no debugger of the same user, no page of it in swap.

use proto::Message;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// What the process may come to need, its libraries' mappings included. Where less may be locked, locking what is mapped later would
/// end in a failed allocation, which ends the process: worse than a page in swap.
const AMPLE: u64 = 256 * 1024 * 1024;

/// Refuses `ptrace`, `/proc/PID/mem` and core dumps to everyone but root.
///
/// # Errors
/// The kernel refuses: then no key is read.
pub(super) fn close() -> Result<(), Message> {
    let zero = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, zero).and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable)).map_err(|error| {
        Message::new(
            format!("The keyholder can't close its memory to debuggers ({error}), and holds no key."),
            "Allow prctl and setrlimit to it: see the seccomp profile.",
        )
    })
}

/// Locks all memory, now and later.
///
/// # Errors
/// Why it is not locked, in two sentences. The keyholder works all the same: break-glass is not refused for a limit.
pub(super) fn lock() -> Result<(), Message> {
    let why = match roomy().and_then(|()| Ok(mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?)) {
        Ok(()) => return Ok(()),
        Err(why) => why,
    };
    Err(Message::new(
        format!("The keyholder's memory is not locked ({why}): a key could reach swap."),
        "Raise its memlock limit (LimitMEMLOCK=infinity), or use no swap on this machine.",
    ))
}

/// Raises the limit of locked memory as far as it goes; the error says why that is not far enough.
fn roomy() -> std::io::Result<()> {
    if setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).is_ok() {
        return Ok(());
    }
    let most = getrlimit(Resource::Memlock).maximum;
    if let Some(most) = most.filter(|most| *most < AMPLE) {
        return Err(std::io::Error::other(format!("the limit is {} KiB", most / 1024)));
    }
    Ok(setrlimit(Resource::Memlock, Rlimit { current: most, maximum: most })?)
}
