//! Captured → Preserved: the bundle is written, hashed, signed and sealed outside the VM. Only after this may the VM change.
//!
//! On tmpfs first, because the disk may hang with the VM's; then the writer child carries it to disk. If that is late or fails the
//! bundle stays on tmpfs. Where tmpfs does not take it, it goes straight to disk; where neither does, to a caller who can take it and
//! acknowledges it. Each step down is told to everybody; where there is none left the request is refused.

use proto::{Body, BundleName, Sha256Hex, Vmid, Where};
use sha2::{Digest, Sha256};
use std::time::Instant;

use crate::answer::Unkept;
use crate::capture::{Captured, Seen};
use crate::deadline;
use crate::lock::Locked;
use crate::policy::Authorised;
use crate::promise::Event;
use crate::run::{Run, Stop};
use crate::text::say;
use crate::writer::{ArtifactPath, Op};

mod pack;
mod tmpfs;

use pack::Pack;

/// Proof that the evidence of this request is durable. Whatever changes the VM asks for it. Made by [`preserve`] only.
#[derive(Debug)]
pub struct Preserved {
    // Before the lock, as in `Captured`.
    seen: Seen,
    locked: Locked,
    name: BundleName,
}

impl Preserved {
    /// The request.
    pub const fn authorised(&self) -> &Authorised {
        self.locked.authorised()
    }

    /// What was seen before.
    pub const fn seen(&self) -> &Seen {
        &self.seen
    }

    /// The bundle.
    pub const fn name(&self) -> &BundleName {
        &self.name
    }

    /// The verb that it was captured for.
    pub const fn verb(&self) -> proto::Verb {
        self.authorised().verb()
    }
}

/// Seals the bundle on the best rung there is.
///
/// # Errors
/// Refused-evidence where no rung takes it.
pub fn preserve(run: &mut Run, captured: Captured) -> Result<Preserved, Stop> {
    let authorised = captured.locked().authorised();
    let name = BundleName::new(run.started(), authorised.verb(), authorised.id());
    let vmid = authorised.vmid();
    let mut pack = Pack::of(run, &captured, &[]);
    let place = match tmpfs::seal(vmid, &name, &pack) {
        Ok(()) => carry(run, vmid, &name),
        Err(no_tmpfs) => {
            run.degrade(format!("the bundle is not on tmpfs: {no_tmpfs}"));
            pack = Pack::of(run, &captured, &[]);
            match straight_to_disk(run, vmid, &name, &pack) {
                Ok(()) => Where::Disk,
                Err(no_disk) => {
                    let nowhere = format!("tmpfs: {no_tmpfs}; disk: {no_disk}");
                    run.degrade(format!("the bundle is not on disk either: {no_disk}"));
                    pack = to_the_caller(run, &captured, &name).map_err(|unkept| match unkept {
                        Unkept::NotAsked => Stop::evidence(say::evidence_nowhere(&nowhere)),
                        Unkept::Silent(why) => Stop::evidence(say::not_acknowledged(why)),
                    })?;
                    Where::Caller
                }
            }
        }
    };
    let said = proto::Preserved { bundle: name.clone(), place, manifest_sha256: pack.sha256.clone(), degraded: run.degraded().to_vec() };
    run.preserved(&said);
    run.answer.say(Body::Preserved(said));
    run.answer.before_the_receipt(&name, || pack.files.iter().map(|(path, bytes)| (path.clone(), bytes.to_vec())).collect());
    if captured.verb().mutates() {
        run.reach(Event::Preserved)?;
    }
    let (locked, seen) = captured.open();
    Ok(Preserved { locked, seen, name })
}

/// From tmpfs to disk. What stays on tmpfs is carried by a later call.
fn carry(run: &mut Run, vmid: Vmid, name: &BundleName) -> Where {
    match run.disk.call(&Op::CarryBundle { vmid, name: name.clone() }, &[], deadline::CARRY) {
        Ok(_) => {
            tmpfs::remove(vmid, name);
            Where::Disk
        }
        Err(e) => {
            run.degrade(format!("the bundle is on tmpfs only: {e}"));
            Where::Tmpfs
        }
    }
}

/// File by file through the writer, and its name last. A half of it is nobody's bundle, and is taken away where the disk lets us.
fn straight_to_disk(run: &Run, vmid: Vmid, name: &BundleName, pack: &Pack<'_>) -> Result<(), String> {
    let until = Instant::now() + deadline::CARRY;
    let ask = |op: &Op, bytes: &[u8]| {
        run.disk.call(op, bytes, until.saturating_duration_since(Instant::now())).map(drop).map_err(|e| e.to_string())
    };
    let put = |(path, bytes): &(String, std::borrow::Cow<'_, [u8]>)| {
        ask(&Op::BundlePut { vmid, name: name.clone(), path: ArtifactPath::try_from(path.clone())? }, bytes)
    };
    let sealed = pack.files.iter().try_for_each(put).and_then(|()| ask(&Op::BundleSeal { vmid, name: name.clone() }, &[]));
    sealed.inspect_err(|_| {
        let _ = run.disk.call(&Op::BundleAbandon { vmid, name: name.clone() }, &[], deadline::WRITE);
    })
}

/// Everything that fits, to the caller who asked for artifacts inside events; its acknowledgement makes it the bundle's keeper.
fn to_the_caller<'a>(run: &mut Run, captured: &'a Captured, name: &BundleName) -> Result<Pack<'a>, Unkept> {
    let options = captured.locked().authorised().parsed().request().options();
    if !(options.json && options.inline) {
        return Err(Unkept::NotAsked);
    }
    run.degrade("the bundle is with the caller only".to_owned());
    let (pack, left_out) = Pack::for_the_caller(run, captured);
    run.answer.offer(pack.events(), &pack.offered(name, left_out))?;
    Ok(pack)
}

/// SHA-256 of these bytes.
pub(crate) fn hash(bytes: &[u8]) -> Sha256Hex {
    Sha256Hex::from_bytes(Sha256::digest(bytes).into())
}
