//! Parsed → Authorised: may this key say this? Pure: it looks at the key's line and the request, at nothing else.
//!
//! Rates are not here: they count what reached intent, so they are asked under the lock (rate.rs).

use proto::{RequestId, Verb, Vmid};

use crate::door::{Caller, Parsed};
use crate::run::Stop;
use crate::text::say;

/// A request that its key may make. Made by [`authorise`] only.
#[derive(Debug)]
pub struct Authorised {
    parsed: Parsed,
}

/// Checks the key's policy.
///
/// # Errors
/// Refused-policy: what the key may say. And, said plainly, what the contract has and this version does not.
pub fn authorise(parsed: Parsed) -> Result<Authorised, Stop> {
    let verb = parsed.request().verb();
    let caller = parsed.caller();
    let options = parsed.request().options();
    if !caller.allow.0.contains(verb) {
        return Err(Stop::policy(say::not_allowed(verb, caller.allow.0)));
    }
    // A grant that nobody checks would be worse than none (issue "grants").
    if caller.require_grant.0.contains(verb) {
        return Err(Stop::policy(say::not_built("grants, which this key's line asks for")));
    }
    if options.grant.is_some() {
        return Err(Stop::policy(say::not_built("grants")));
    }
    for (asked, option) in [(options.tar, "--tar"), (options.bundle.is_some(), "--bundle=")] {
        if asked {
            return Err(Stop::request(say::not_built(option)));
        }
    }
    Ok(Authorised { parsed })
}

impl Authorised {
    /// The verb.
    pub const fn verb(&self) -> Verb {
        self.parsed.request().verb()
    }

    /// The VM of this key.
    pub const fn vmid(&self) -> Vmid {
        self.parsed.caller().vmid
    }

    /// The request's id.
    pub fn id(&self) -> &RequestId {
        self.parsed.id()
    }

    /// Who calls.
    pub const fn caller(&self) -> &Caller {
        self.parsed.caller()
    }

    /// What was asked, and by whom.
    pub const fn parsed(&self) -> &Parsed {
        &self.parsed
    }

    /// Whether nothing is to be changed.
    pub const fn dry_run(&self) -> bool {
        self.parsed.request().options().dry_run
    }
}
