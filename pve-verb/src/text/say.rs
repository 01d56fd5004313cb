//! Every message of the contract in one place: two sentences, what happened and what to do about it.
//!
//! Constructors only: nothing here decides which message is due. `tests/say.txt` shows all of them, for a person to review. Words
//! that came from elsewhere are escaped here. Each is one sentence, so causes are given without their own full stop.

use proto::{Message, Rejected, RequestId, Timestamp, Verb, VerbSet, Vmid, Why};

mod after;
mod precondition;

pub use after::*;
pub use precondition::*;

const SIX: &str = "status, forensics, reset, stop, start, cycle";

/// Foreign words, fit to stand in a sentence: one line, at most 160 bytes of it, without a full stop of their own.
fn show(text: &str) -> String {
    proto::escape_cut(text.trim().trim_end_matches('.').as_bytes(), 160)
}

// ---- 2, refused-request

/// Not in the grammar.
pub fn rejected(why: &Rejected) -> Message {
    // Where a reason was typed as people type: over ssh no quotes arrive.
    let space = if matches!(why.why, Why::Word | Why::Space) { "; a space within a value is %20" } else { "" };
    Message::new(
        format!("The request was refused at byte {}: {why}.", why.position),
        format!("Say exactly one of {SIX}, then options with one space before each{space}."),
    )
}

/// The id is bound to another key, verb, VM or dry run.
pub fn id_of_another_request(id: &RequestId) -> Message {
    Message::new(
        format!("The request id {id} belongs to another request (another key, verb, VM or --dry-run)."),
        "Use a fresh id, or leave --request-id out and the host makes one.",
    )
}

/// `--bundle` names none that is here.
pub fn no_such_bundle(bundle: &proto::BundleName) -> Message {
    Message::new(
        format!("There is no bundle {bundle} on this host."),
        "Run `pve-verb bundle list` on the host, or capture a new one with forensics.",
    )
}

// ---- 3, refused-policy

/// The key's `--allow` lacks the verb.
pub fn not_allowed(verb: Verb, allowed: VerbSet) -> Message {
    Message::new(
        format!("This key may not say {verb}; it may say {allowed}."),
        "Use another key, or have the PVE admin change --allow in /etc/pve-verb/authorized_keys.",
    )
}

/// More mutations in the hour than allowed.
pub fn too_many(limit: u32, again_at: Timestamp) -> Message {
    Message::new(
        format!("This key has used its {limit} mutations of this hour."),
        format!("Try again at {again_at}, or act on the host's console, which has no limit."),
    )
}

/// Too soon after the last mutation.
pub fn too_soon(interval_s: u64, again_at: Timestamp) -> Message {
    Message::new(
        format!("This key's last mutation began less than {interval_s} s ago."),
        format!("Look at status first, and try again at {again_at}."),
    )
}

/// Too many forensics in the minute.
pub fn too_many_forensics(limit: u32, again_at: Timestamp) -> Message {
    Message::new(
        format!("This key has captured {limit} bundles within a minute."),
        format!("Read the newest with `forensics --bundle=NAME`, or try again at {again_at}."),
    )
}

/// Too many calls within the minute that took a bundle and changed nothing.
pub fn too_many_idle(limit: u32, again_at: Timestamp) -> Message {
    Message::new(
        format!("This key has asked for this {limit} times within a minute without anything being changed."),
        format!("Look at status, whose next step may be another verb, or try again at {again_at}."),
    )
}

/// Why a grant is no good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadGrant {
    /// There is none.
    Missing,
    /// It ended then.
    Expired(Timestamp),
    /// It begins then.
    NotYet(Timestamp),
    /// It was used by this request, where that is known.
    Spent(Option<RequestId>),
    /// It is for that VM.
    OtherVm(Vmid),
    /// It is for that node.
    OtherNode(String),
    /// It is for these verbs.
    OtherVerb(String),
    /// It is for that key.
    OtherKey(String),
    /// Its validity is longer than 24 h.
    TooLong,
    /// The signature is not over these bytes, or not by a key that is known.
    BadSignature,
    /// A sound signature of nobody in `allowed_signers`.
    UnknownSigner,
    /// Of somebody there who may not sign this, or not now.
    SignerMayNot(String),
    /// Made by a security key that nobody touched.
    NoTouch,
    /// `allowed_signers` can't be used.
    NoSigners(String),
    /// Not `base64url(JSON).base64url(SSHSIG)`, or not the members of a grant.
    Malformed(String),
    /// That it is spent could not be made durable.
    NotRecorded(String),
}

/// A verb that needs a grant did not get a good one.
pub fn grant(verb: Verb, why: &BadGrant) -> Message {
    let fresh = "Have a signer of /etc/pve-verb/allowed_signers make a new one";
    let (what, next) = match why {
        BadGrant::Missing => {
            (format!("This key needs a grant for {verb} and the request has none."), format!("{fresh} and send it with --grant."))
        }
        BadGrant::Expired(at) => (format!("The grant for {verb} expired at {at}."), format!("{fresh}.")),
        BadGrant::NotYet(at) => (
            format!("The grant for {verb} is not valid before {at}."),
            "Wait until then, and compare the clocks of host and signer.".to_owned(),
        ),
        BadGrant::Spent(Some(id)) => (
            format!("The grant for {verb} was spent by request {id}."),
            format!("A grant serves one mutation: see what that one did with --attach, or {}.", lower(fresh)),
        ),
        BadGrant::Spent(None) => {
            (format!("The grant for {verb} is already spent."), format!("A grant serves one mutation: {}.", lower(fresh)))
        }
        BadGrant::OtherVm(vmid) => (format!("The grant is for VM {vmid}, not for this key's VM."), format!("{fresh} for this VM.")),
        BadGrant::OtherNode(node) => {
            (format!("The grant is for node {}, not for this one.", show(node)), format!("{fresh} for this node."))
        }
        BadGrant::OtherVerb(verbs) => (format!("The grant is for {}, not for {verb}.", show(verbs)), format!("{fresh} for {verb}.")),
        BadGrant::OtherKey(key) => (format!("The grant is for key {}, not for this one.", show(key)), format!("{fresh} for this key.")),
        BadGrant::TooLong => ("The grant is valid for more than 24 h, which no grant may be.".to_owned(), format!("{fresh}.")),
        BadGrant::BadSignature => {
            ("The grant's signature is not good.".to_owned(), format!("{fresh} with `ssh-keygen -Y sign -n pve-verb-grant`."))
        }
        BadGrant::UnknownSigner => (
            "The grant is signed by a key that is not in /etc/pve-verb/allowed_signers.".to_owned(),
            "Use a signer that is, or have the PVE admin add this one.".to_owned(),
        ),
        BadGrant::SignerMayNot(how) => (
            format!("The grant's signer may not sign it: {}.", show(how)),
            "Use a signer who may, or have the PVE admin change the line in /etc/pve-verb/allowed_signers.".to_owned(),
        ),
        BadGrant::NoTouch => (
            "The grant was signed by a security key that nobody touched.".to_owned(),
            format!("{fresh} with a key that asks for a touch (not made with -O no-touch-required)."),
        ),
        BadGrant::NoSigners(how) => (
            format!("No grant can be checked: {}.", show(how)),
            "Have the PVE admin put the signers' lines there, or act on the host's console, which needs no grant.".to_owned(),
        ),
        BadGrant::Malformed(how) => {
            (format!("The grant can't be read: {}.", show(how)), format!("{fresh}: base64url(JSON), a dot, base64url(signature)."))
        }
        BadGrant::NotRecorded(how) => (
            format!("That the grant is spent could not be made durable: {}.", show(how)),
            "Act on the host's console, which needs no grant, or repair the host's disk.".to_owned(),
        ),
    };
    Message::new(what, next)
}

/// What is wrong with a grant that nobody has sent yet.
pub fn grant_inspected(why: &BadGrant) -> Message {
    grant(Verb::Cycle, why)
}

fn lower(sentence: &str) -> String {
    let mut chars = sentence.chars();
    chars.next().map(|c| c.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

// ---- 4, refused-busy

/// Another mutation is in progress.
pub fn busy(verb: Verb, id: &RequestId, key: &str, since: Timestamp) -> Message {
    Message::new(
        format!("A {verb} by key {} is in progress since {since}.", show(key)),
        format!("Wait for its end, or watch it with the same key: `{verb} --attach --request-id={id}`."),
    )
}

/// The mutation lock is taken and its owner could not be read.
pub fn busy_unknown(how: &str) -> Message {
    Message::new(
        format!("Another mutation holds the lock, and whose it is could not be read: {}.", show(how)),
        "Try again in a minute; if it stays so, `lslocks` on the host names who has it.",
    )
}

/// PVE's lock, owned by a live task.
pub fn locked_by_task(word: &str, task: &str) -> Message {
    Message::new(
        format!("PVE holds the lock \"{}\" on the VM for a task that still runs: {}.", show(word), show(task)),
        "Wait for that task's end or stop it in PVE, then try again.",
    )
}

/// PVE's lock, left behind.
pub fn locked_by_nobody(vmid: Vmid, word: &str) -> Message {
    Message::new(
        format!("PVE holds the lock \"{}\" on VM {vmid}, and no live task owns it.", show(word)),
        format!("On the host run `qm unlock {vmid}`, then try again."),
    )
}

/// PVE's lock, and whether a task owns it could not be told.
pub fn locked_by_unknown(vmid: Vmid, word: &str) -> Message {
    Message::new(
        format!("PVE holds the lock \"{}\" on VM {vmid}, and whether a live task owns it could not be told.", show(word)),
        format!("Look at the host's task list, and only where no task works on the VM run `qm unlock {vmid}`."),
    )
}

/// PVE's flock on the configuration is held by another process.
pub fn config_busy(vmid: Vmid, by: Option<&str>) -> Message {
    let by = by.map_or_else(String::new, |by| format!(" ({})", show(by)));
    Message::new(
        format!("Another process{by} works on VM {vmid}'s configuration and holds its file lock."),
        "Try again in a minute; `qm unlock` does not release this lock.",
    )
}

/// Another request of ours holds QEMU's sockets and does not give way.
pub fn sockets_busy(vmid: Vmid, by: &str) -> Message {
    Message::new(
        format!("Another request holds VM {vmid}'s QMP socket and did not give way: {}.", show(by)),
        "Try again in a few seconds; nothing was sent to the VM.",
    )
}

// ---- 5, refused-evidence

/// Neither tmpfs nor disk took the evidence, and the caller can't.
pub fn evidence_nowhere(how: &str) -> Message {
    Message::new(
        format!("The evidence could not be made durable anywhere: {}.", show(how)),
        "Make room in /run or /var/lib/pve-verb, or take the evidence yourself: ask again with --json --inline and acknowledge it.",
    )
}

/// Not even the worker of a mutation, which tells what it does in /run, can be begun.
pub fn no_room_for_a_worker(how: &str) -> Message {
    Message::new(
        format!("No mutation can be begun, for /run takes nothing more: {}.", show(how)),
        "Make room in /run on the host, then try again; until then status and forensics still answer.",
    )
}

/// The caller was sent the evidence and did not acknowledge it.
pub fn not_acknowledged(how: &str) -> Message {
    Message::new(
        format!("Only the caller could keep the evidence, and it did not acknowledge it: {}.", show(how)),
        "Ask again with a client that answers `ack MANIFEST_SHA256` within 10 s, or make room in /run on the host.",
    )
}

/// An existing bundle that can't be shown.
pub fn bundle_unreadable(bundle: &proto::BundleName, how: &str) -> Message {
    Message::new(
        format!("The bundle {bundle} can't be read: {}.", show(how)),
        "Run `pve-verb bundle verify` on it on the host, or capture a new one with forensics.",
    )
}

/// The `intent` record could not be written anywhere.
pub fn intent_nowhere(how: &str) -> Message {
    Message::new(
        format!("That this is about to be done could not be recorded durably: {}.", show(how)),
        "Make room in /run and /var/log/pve-verb on the host, then try again.",
    )
}

/// An earlier mutation was killed, and what tells of it could not be made durable: `how` says where it failed.
pub fn killed_nowhere(how: &str) -> Message {
    Message::new(
        format!("An earlier mutation was killed half-way, and that could not be recorded durably: {}.", show(how)),
        "Make room in /run and /var/log/pve-verb on the host, then try again.",
    )
}

/// Whether an earlier mutation was killed is not known: the disk was late, or failed.
pub fn disk_did_not_say() -> Message {
    Message::new(
        "The disk did not say whether a mutation was killed before the host went down: it is late, or fails.",
        "Repair the disk under /var/log/pve-verb and /var/lib/pve-verb, then run `pve-verb recover` again.",
    )
}

// ---- 7, refused-host

/// Not root.
pub fn not_root() -> Message {
    Message::new("pve-verb does not run as root here.", "Use the account `breakglass` with uid 0, or root.")
}

/// `/etc/pve-verb` is there, and others than root could have put their keys into it.
pub fn open_to_others(how: &str) -> Message {
    Message::new(
        format!("This host is not fit to act: /etc/pve-verb {}.", show(how)),
        "On the host run `chown root:root /etc/pve-verb` and `chmod 700 /etc/pve-verb`, then `pve-verb check`.",
    )
}

/// `/etc/pve-verb` is missing.
pub fn not_set_up() -> Message {
    Message::new("This host is not set up: /etc/pve-verb is missing.", "On the host run `pve-verb init`, then `pve-verb check`.")
}

/// The argument list in `authorized_keys` is bad.
pub fn bad_forced_arguments(how: &str) -> Message {
    Message::new(
        format!("This key's arguments in authorized_keys are bad: {}.", show(how)),
        "Have the PVE admin print a good line with `pve-verb authorize KEY.pub --key-name NAME`.",
    )
}

/// Something else of the host's own that is not as it must be.
pub fn host_unfit(how: &str) -> Message {
    Message::new(format!("This host is not fit to act: {}.", show(how)), "On the host run `pve-verb check`, which says what to repair.")
}
