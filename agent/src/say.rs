//! What a checked answer proves, in two sentences for a person: what is known, and what to do. Decides nothing.

use proto::{Message, Outcome, RequestId, Verb, Vmid};

use crate::answer::{Broken, MAX_LINE};
use crate::receipt::{Proved, Unproved};

/// Text of the host's without what could steer a terminal: it is signed, and still told of a guest. Escaped once by the host, its
/// backslashes stay as they are.
fn plain(text: &str) -> String {
    text.split('\\').map(|part| proto::escape(part.as_bytes())).collect::<Vec<_>>().join("\\")
}

/// How to ask again without doing anything twice.
fn again(id: Option<&RequestId>) -> String {
    id.map_or_else(
        || "Ask the host with status what state the VM is in; had the request an id, ask with it and --attach.".to_owned(),
        |id| format!("Ask again, which does nothing twice: VERB --json --attach --request-id={id}; or ask with status."),
    )
}

/// A receipt that was proved.
pub fn proved(proved: &Proved) -> Message {
    let body = proved.body();
    let verb = body.verb.map_or_else(|| "a request that is not in the grammar".to_owned(), |verb| verb.to_string());
    let mut notes = String::new();
    for (so, note) in [
        (body.dry_run, ", as a dry run that changed nothing"),
        (body.already, ", as the VM was in that state already"),
        (body.replayed, ", told again"),
        (body.interrupted, ", after its worker was killed"),
    ] {
        if so {
            notes.push_str(note);
        }
    }
    let how = match body.outcome {
        Outcome::Done => "was done and observed",
        Outcome::Failed => "FAILED",
        Outcome::Unknown => "ended with an UNKNOWN result",
        Outcome::Internal => "met a bug",
        _ => "was refused, and nothing was sent to the VM",
    };
    let evidence = body.bundle.as_ref().map(|bundle| format!(", its evidence is {bundle}")).unwrap_or_default();
    Message::new(
        format!(
            "{} signed with {} that {verb} of VM {} {how}{notes} (request {}, state now {}{evidence}).",
            plain(&body.node),
            proved.by(),
            body.vmid,
            body.request_id,
            body.state_after
        ),
        format!("It adds: {} {}", plain(&body.message.what), plain(&body.message.next)),
    )
}

/// The key's line on the host names another VM than the configuration; `began`: what may have been done to that one.
pub fn other_vm(configured: Vmid, keys: Vmid, began: Option<Verb>) -> Message {
    let done = began.map_or_else(String::new, |verb| format!(": what {verb} did, it did to VM {keys}"));
    let look = if began.is_some() { format!("Look at VM {keys}. ") } else { String::new() };
    Message::new(
        format!("The key is for VM {keys}, and [host] vmid says {configured}{done}."),
        format!("{look}Write vmid = {keys} there if that one is meant, or authorize the key on the host with --vmid {configured}."),
    )
}

/// An answer that proves nothing; `id` is what the request's seems to be.
pub fn unproved(why: &Unproved, id: Option<&RequestId>) -> Message {
    let (what, next) = match why {
        Unproved::Answer(Broken::Empty) => ("there is no answer".to_owned(), again(id)),
        Unproved::Answer(Broken::CutOff) => ("the answer was cut off in the middle of a line".to_owned(), again(id)),
        Unproved::Answer(Broken::NoReceipt) => ("the answer ends without a receipt".to_owned(), again(id)),
        Unproved::Answer(Broken::NotAnEvent(line)) => {
            (format!("line {line} of the answer is not an event"), "Ask with --json: only such an answer carries a signature.".to_owned())
        }
        Unproved::Answer(Broken::TooLong(line)) => (format!("line {line} of the answer is longer than {MAX_LINE} bytes"), again(id)),
        Unproved::Answer(Broken::Version(v)) => {
            (format!("the answer speaks version {v} of the protocol, and this program version 1"), "Use the host's breakglass.".to_owned())
        }
        Unproved::Answer(Broken::AfterTheReceipt) => ("something follows the receipt, which is always last".to_owned(), again(id)),
        Unproved::NoKey => (
            "no key was given to check the receipt with".to_owned(),
            "Give --signing-key: the file with what `pve-verb init` printed on the host.".to_owned(),
        ),
        Unproved::Unsigned => (
            "the receipt is not signed".to_owned(),
            "Run `pve-verb check` on the host, which says why its signing key can't be used.".to_owned(),
        ),
        Unproved::BadSignature => (
            "the receipt's signature is not the pinned key's".to_owned(),
            "Compare the key with `pve-verb init` on the host's console; until then treat the answer as forged.".to_owned(),
        ),
        Unproved::Body(kind) => (
            format!("the receipt is signed and can't be read ({})", plain(&format!("{kind:?}"))),
            "Use the breakglass of the host's version.".to_owned(),
        ),
        Unproved::NotUnderstood(said) => (
            format!("the host signed that it could not read a request, and it can't say whose: {}", plain(said.what.trim_end_matches('.'))),
            "Its pve-verb may be older than this breakglass: upgrade the host, or leave the option away. Look with status.".to_owned(),
        ),
        Unproved::OtherVm { wanted, got } => (format!("the receipt is about VM {got}, and VM {wanted} was asked for"), again(id)),
        Unproved::Foreign { what, wanted, got } => {
            (format!("the receipt is about another {what}: {} was wanted, it is about {}", plain(wanted), plain(got)), again(id))
        }
    };
    Message::new(format!("The result is UNKNOWN: {what}."), next)
}
