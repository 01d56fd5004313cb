//! A grant, after the `allowed_signers` that it is checked against (an empty line between them). A refusal is two clean sentences.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proto::{KeyName, Timestamp, Verb, Vmid};
use pve_verb::grant::{Need, check};
use pve_verb::text::say;
use pve_verb_fuzz::shown;

fuzz_target!(|text: &str| {
    let (signers, grant) = text.split_once("\n\n").unwrap_or(("", text));
    let signers = pve_verb::fuzz::signers(signers);
    let key_name: KeyName = "agent".parse().expect("a key's name");
    let now = Timestamp::parse("2026-11-21T00:30:00.000Z").expect("a time");
    let need = Need { vmid: Vmid::DEVVM, node: "pve1", verb: Verb::Cycle, key_name: &key_name };
    match check(grant.trim(), &need, &signers, now) {
        Ok(granted) => {
            assert!(check(grant.trim(), &Need { verb: Verb::Reset, ..need }, &signers, now).is_err() || granted.facts().is_object());
            let other = Vmid::try_from(103).expect("a VM's number");
            assert!(check(grant.trim(), &Need { vmid: other, ..need }, &signers, now).is_err());
        }
        Err(why) => {
            let message = say::grant(Verb::Cycle, &why);
            shown(&message.what);
            shown(&message.next);
        }
    }
});
