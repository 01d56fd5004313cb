//! Parsed → Authorised: may this key say this? Pure: it looks at the key's line and the request, and at who may sign grants.
//!
//! Rates are not here: they count what reached intent, so they are asked under the lock (rate.rs).

use proto::{RequestId, Verb, Vmid};

use crate::door::{Caller, Parsed};
use crate::grant::{self, Granted, Need, Signers};
use crate::run::Stop;
use crate::text::say::{self, BadGrant};
use crate::{deadline, host};

/// A request that its key may make. Made by [`authorise`] only.
#[derive(Debug)]
pub struct Authorised {
    parsed: Parsed,
    granted: Option<Granted>,
}

/// Checks the key's policy, its grant included.
///
/// # Errors
/// Refused-policy: what the key may say.
pub fn authorise(node: &str, parsed: Parsed) -> Result<Authorised, Stop> {
    let allowed = allow(parsed)?;
    let granted = allowed.granted_now(node)?;
    Ok(Authorised { granted, ..allowed })
}

/// Checks the verb alone, for whoever starts nothing yet: the front looks its request's id up first, because an answer that was earned
/// once can be had again when its grant is long spent.
///
/// # Errors
/// Refused-policy: what the key may say.
pub fn allow(parsed: Parsed) -> Result<Authorised, Stop> {
    let (verb, allow) = (parsed.request().verb(), parsed.caller().allow.0);
    if allow.contains(verb) { Ok(Authorised { parsed, granted: None }) } else { Err(Stop::policy(say::not_allowed(verb, allow))) }
}

impl Authorised {
    /// The request's grant, checked against what it would be spent for.
    ///
    /// # Errors
    /// Refused-policy: it is missing, or why it does not count.
    pub fn granted_now(&self, node: &str) -> Result<Option<Granted>, Stop> {
        let (verb, caller) = (self.verb(), self.caller());
        let need = Need { vmid: caller.vmid, node, verb, key_name: &caller.key_name };
        let options = self.parsed.request().options();
        let granted = match &options.grant {
            // Whoever only watches starts nothing, whatever it sends along.
            _ if options.attach => Ok(None),
            // One that was not asked for is checked and spent all the same: nothing is accepted and then ignored.
            Some(grant) => grant::check(grant.as_str(), &need, &Signers::load(), host::now()).map(Some),
            None if caller.require_grant.0.contains(verb) => Err(BadGrant::Missing),
            None => Ok(None),
        };
        granted.map_err(|why| Stop::policy(say::grant(verb, &why)))
    }

    /// The verb.
    pub const fn verb(&self) -> Verb {
        self.parsed.request().verb()
    }

    /// The bound on the whole request, in milliseconds: longer where the caller may have to take the evidence.
    pub fn deadline_ms(&self) -> u64 {
        let options = self.parsed.request().options();
        let may_offer = options.json && options.inline && self.verb() != Verb::Status;
        self.verb().deadline_ms() + if may_offer { u64::try_from(deadline::FOR_THE_CALLER.as_millis()).unwrap_or(0) } else { 0 }
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

    /// The grant that it came with, checked and not spent yet.
    pub const fn granted(&self) -> Option<&Granted> {
        self.granted.as_ref()
    }

    /// Whether nothing is to be changed.
    pub const fn dry_run(&self) -> bool {
        self.parsed.request().options().dry_run
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::{self, Arrival, Verbs};
    use proto::VerbSet;

    #[test]
    fn whoever_only_watches_needs_no_grant_and_whoever_begins_needs_one() {
        let asked = |line: &str| {
            let caller =
                Caller { require_grant: Verbs(VerbSet::ALL), key_name: "careful".parse().unwrap(), ..Caller::console(Vmid::DEVVM) };
            let fresh_id = RequestId::from_random([1; 16]);
            allow(door::parse(Arrival::new(caller, line.as_bytes().to_vec(), fresh_id)).unwrap()).unwrap().granted_now("pve1")
        };
        let id = "--request-id=1f0c9a2e-0000-4000-8000-00000000c001";
        assert!(asked(&format!("cycle --attach {id}")).unwrap().is_none());
        assert!(asked(&format!("cycle --attach {id} --grant=expired.or-nonsense")).unwrap().is_none());
        assert!(asked(&format!("cycle {id}")).is_err());
        assert!(asked(&format!("cycle {id} --grant=expired.or-nonsense")).is_err());
    }
}
