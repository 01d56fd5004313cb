//! The way of a request. Each line of [`work`] is a stage, made by the file of that name and consumed by the next:
//!
//! ```text
//! SSH_ORIGINAL_COMMAND ─parse→ Parsed ─authorise→ Authorised ─acquire→ Locked ─capture→ Captured
//!     ─preserve→ Preserved ─apply→ Mutated ─confirm→ Verified ─finish→ receipt ─→ caller
//! ```
//!
//! A read ends after its evidence; one of an existing bundle captures none (shown.rs). A mutating request is handed to a worker after `authorise`, and the worker begins again at
//! `parse`: it believes nobody. Any stage may end the request with a [`Stop`]: a refusal, sealed and recorded like every other end.

use proto::Verb;

use crate::answer::{Answer, Form};
use crate::door::{self, Arrival};
use crate::policy::{self, Authorised};
use crate::run::{Run, Stop};
use crate::verify::{self, Verified};
use crate::{bundle, capture, front, lock, mutate, operation, shown};

/// Serves one request from its bytes to its receipt; gives the exit status.
pub fn serve(arrival: Arrival) -> u8 {
    let mut run = Run::begin(&arrival, before_parsing(&arrival));
    let parsed = match door::parse(arrival) {
        Ok(parsed) => parsed,
        Err(rejection) => return run.reject(&rejection.0, rejection.1),
    };
    run.understood(&parsed);
    if parsed.request().verb().mutates() {
        return match policy::allow(parsed) {
            Err(stop) => run.refuse(stop),
            Ok(allowed) => front::serve(run, allowed),
        };
    }
    match policy::authorise(&run.host.node, parsed) {
        Err(stop) => run.refuse(stop),
        Ok(authorised) => {
            let existing = authorised.parsed().request().options().bundle.clone();
            let end = Stop::where_it_panics(|| match existing {
                Some(name) => shown::show(&mut run, &authorised, &name),
                None => work(&mut run, authorised),
            });
            run.finish(end)
        }
    }
}

/// The end of a call that is refused before its request is looked at.
pub fn refuse(arrival: Arrival, stop: Stop) -> u8 {
    Run::begin(&arrival, before_parsing(&arrival)).refuse(stop)
}

/// How a request is answered that was not parsed, or not yet. A program that says `--json` reads NDJSON, also where the rest of what it
/// says is not in the grammar of this host's version.
fn before_parsing(arrival: &Arrival) -> Answer {
    let form = if arrival.says_json() { Form::Json } else { Form::Text };
    Answer::to_caller(arrival.fresh_id.clone(), form)
}

/// The stages from the lock to the verdict.
///
/// # Errors
/// The refusal of whichever stage refused.
pub fn work(run: &mut Run, authorised: Authorised) -> Result<Verified, Stop> {
    run.accepted(&authorised);
    let locked = lock::acquire(run, authorised)?;
    operation::settle(run, &locked)?;
    operation::not_yet_run(run, &locked)?;
    let captured = capture::capture(run, locked)?;
    if captured.verb() == Verb::Status {
        return Ok(verify::status(captured));
    }
    let preserved = bundle::preserve(run, captured)?;
    if preserved.verb() == Verb::Forensics {
        return Ok(verify::forensics(preserved));
    }
    let mutated = mutate::apply(run, preserved)?;
    Ok(verify::confirm(run, mutated))
}
