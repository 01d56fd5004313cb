//! Which system calls a probe helper may make: a list of what the real ones make, everything else is refused with EPERM. Opening is
//! for reading only; a socket is a unix one (guest) or the kernel's socket diagnosis (host); a clone is a thread.

use libc::{c_int, c_long};
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{BpfProgram, Error, SeccompAction, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter};
use std::collections::BTreeMap;

/// Threads, memory, time, and what is open already.
const BASE: [c_long; 40] = [
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_geteuid,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_dup,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Talking over sockets, and the lock that only one of ours may hold meanwhile.
const GUEST: [c_long; 6] =
    [libc::SYS_connect, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_flock, libc::SYS_pwrite64, libc::SYS_ftruncate];

/// Looking around in `/proc`, `/sys` and `/etc/pve`, and asking the kernel who is on a socket.
const HOST: [c_long; 6] =
    [libc::SYS_getdents64, libc::SYS_readlink, libc::SYS_readlinkat, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_uname];

/// Open flags that write, create or cut.
const WRITES: c_int = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND | libc::O_TMPFILE & !libc::O_DIRECTORY;
const THREAD: c_int = libc::CLONE_VM | libc::CLONE_THREAD;

/// The filter of `probe-guest`.
pub(super) fn guest() -> Result<(), Error> {
    let unix = only(&[(0, Eq, libc::AF_UNIX)])?;
    install(&GUEST, vec![unix])
}

/// The filter of `probe-host`.
pub(super) fn host() -> Result<(), Error> {
    let diagnosis = only(&[(0, Eq, libc::AF_NETLINK), (2, Eq, libc::NETLINK_SOCK_DIAG)])?;
    install(&HOST, vec![diagnosis])
}

fn install(more: &[c_long], sockets: Vec<SeccompRule>) -> Result<(), Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BASE.iter().chain(more).map(|&call| (call, Vec::new())).collect();
    rules.insert(libc::SYS_openat, vec![only(&[(2, MaskedEq(mask(WRITES)), 0)])?]);
    rules.insert(libc::SYS_clone, vec![only(&[(0, MaskedEq(mask(THREAD)), THREAD)])?]);
    rules.insert(libc::SYS_socket, sockets);
    // To read a descriptor's flags and to set them; a lock is `flock`'s.
    let fcntl = [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];
    rules.insert(libc::SYS_fcntl, fcntl.iter().map(|&what| only(&[(1, Eq, what)])).collect::<Result<_, _>>()?);
    // To abort: to itself only.
    let own = c_int::try_from(std::process::id()).unwrap_or(0);
    rules.insert(libc::SYS_tgkill, vec![only(&[(0, Eq, own)])?]);
    // What clone3 makes is said in memory, where no filter can look: the C library falls back to clone, which says it in a register.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    apply(clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()))?;
    // The list last: installing a filter is not in it.
    apply(rules, SeccompAction::Errno(libc::EPERM.unsigned_abs()), SeccompAction::Allow)
}

fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, others: SeccompAction, these: SeccompAction) -> Result<(), Error> {
    let program: BpfProgram = SeccompFilter::new(rules, others, these, TargetArch::x86_64)?.try_into()?;
    apply_filter(&program)
}

/// A rule for a call whose arguments, by their number, compare so.
fn only(conditions: &[(u8, SeccompCmpOp, c_int)]) -> Result<SeccompRule, Error> {
    let conditions = conditions
        .iter()
        .map(|(argument, how, value)| SeccompCondition::new(*argument, Dword, how.clone(), u64::from(value.cast_unsigned())));
    Ok(SeccompRule::new(conditions.collect::<Result<_, _>>()?)?)
}

fn mask(bits: c_int) -> u64 {
    u64::from(bits.cast_unsigned())
}
