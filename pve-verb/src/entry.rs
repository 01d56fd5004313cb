//! From a command line to the function that serves it. Everything that is read from outside the request is read here: argv, two
//! environment variables, the user id.

use clap::Parser;
use proto::{Message, Outcome, Request, Verb};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::audit::{Kind, Log};
use crate::cli::{BundleCommand, Cli, Command, GrantCommand, LogCommand};
use crate::config::Config;
use crate::disk::Disk;
use crate::door::{Arrival, Caller};
use crate::run::Stop;
use crate::sign::Signer;
use crate::text::say;
use crate::{auditor, grant, helper, host, pipeline, recover, review, setup, shelf, spawn, text, worker, writer};

/// Serves this process's command line; gives its exit status.
pub fn run() -> u8 {
    spawn::close_inherited();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return bad_arguments(&e),
    };
    match cli.command {
        Command::Forced(args) => forced(&args),
        Command::Status(args) => by_hand(Verb::Status, &args),
        Command::Forensics(args) => by_hand(Verb::Forensics, &args),
        Command::Reset(args) => by_hand(Verb::Reset, &args),
        Command::Stop(args) => by_hand(Verb::Stop, &args),
        Command::Start(args) => by_hand(Verb::Start, &args),
        Command::Cycle(args) => by_hand(Verb::Cycle, &args),
        Command::Init => admin(setup::init),
        Command::Authorize(args) => {
            let policy = setup::Policy {
                key_name: args.key_name,
                vmid: Some(args.vmid),
                allow: Some(args.allow),
                require_grant: args.require_grant,
                from: args.from,
            };
            admin(|out| setup::authorize(&args.key, &policy, out, &mut std::io::stderr()))
        }
        Command::Check => check(),
        Command::Review { note } => admin(|out| review::review(&note, out)),
        Command::Rotate => admin(setup::rotate),
        Command::Recover => admin(recover::recover),
        Command::Log(LogCommand::Head) => admin(log_head),
        Command::Log(LogCommand::Verify(args)) => log_verify(args),
        Command::Log(LogCommand::Show(args)) => log_show(args),
        Command::Bundle(BundleCommand::List { vmid }) => admin(|out| shelf::list(vmid, out)),
        Command::Bundle(BundleCommand::Show { name, vmid }) => admin(|out| shelf::show(vmid, &name, out)),
        Command::Bundle(BundleCommand::Verify(args)) => {
            let asked = shelf::Asked { vmid: args.vmid, name: args.name, receipts: args.receipts, key: args.key };
            shelf::verify(&asked, &mut std::io::stdout())
        }
        Command::Bundle(BundleCommand::Export(args)) => {
            admin(|out| shelf::export(args.vmid, &args.name, args.output.as_deref(), out, &mut std::io::stderr()))
        }
        Command::Grant(GrantCommand::Inspect { text }) => admin(|out| grant::inspect(&text, out)),
        Command::Worker => quiet(worker::main()),
        Command::Writer => quiet(writer::run().map_err(|e| e.to_string())),
        Command::ProbeGuest => helper::serve(helper::Kind::Guest),
        Command::ProbeHost => helper::serve(helper::Kind::Host),
        Command::Begin { words } => spawn::begin(&words),
    }
}

/// clap's own answer: to stderr with status 2 by hand, and as refused-host from sshd, whose line only the admin can mend.
fn bad_arguments(e: &clap::Error) -> u8 {
    let asked_for = !e.use_stderr();
    let _ = e.print();
    match (asked_for, std::env::args_os().nth(1)) {
        (true, _) => 0,
        (false, Some(word)) if word == "forced" => {
            let message = say::bad_forced_arguments(e.kind().as_str().unwrap_or("see stderr"));
            let connection = std::env::var_os("SSH_CONNECTION");
            // Recorded where this host can record: somebody has a key whose line nobody meant.
            match (host::ready(), host::fresh_request_id(), Caller::unreadable(connection.as_deref())) {
                (Ok(()), Ok(id), Some(caller)) => {
                    let refuse = |arrival| pipeline::refuse(arrival, Stop::host(message));
                    answered(Arrival::new(caller, original_command(), id), refuse, panicked)
                }
                _ => unrecorded(&message, Outcome::RefusedHost),
            }
        }
        (false, _) => 2,
    }
}

fn forced(args: &crate::cli::Forced) -> u8 {
    let connection = std::env::var_os("SSH_CONNECTION");
    let caller = Caller::forced(args, connection.as_deref());
    serve(caller, original_command())
}

fn original_command() -> Vec<u8> {
    std::env::var_os("SSH_ORIGINAL_COMMAND").map(|l| l.as_bytes().to_vec()).unwrap_or_default()
}

fn by_hand(verb: Verb, args: &crate::cli::ByHand) -> u8 {
    serve(Caller::console(args.vmid), args.line(verb))
}

fn serve(caller: Caller, line: Vec<u8>) -> u8 {
    if let Err(message) = host::ready() {
        return unrecorded(&message, Outcome::RefusedHost);
    }
    match host::fresh_request_id() {
        Ok(fresh_id) => answered(Arrival::new(caller, line, fresh_id), pipeline::serve, panicked),
        Err(why) => unrecorded(
            &Message::new(format!("The kernel gave no random bytes ({why})."), "Use the host's console and look at the kernel's log."),
            Outcome::Internal,
        ),
    }
}

/// Answers, also where that panics: it is a bug, and no reason to be silent. What a worker does goes on.
fn answered(arrival: Arrival, serve: impl FnOnce(Arrival) -> u8, panicked: impl FnOnce(&Message, Map<String, Value>) -> u8) -> u8 {
    let asked = arrival.clone();
    catch_unwind(AssertUnwindSafe(|| serve(arrival))).unwrap_or_else(|_| {
        let caller = &asked.caller;
        let request = Request::parse(&asked.line).ok();
        let id = request.as_ref().and_then(|request| request.options().request_id.clone()).unwrap_or(asked.fresh_id);
        let mutates = request.is_some_and(|request| request.verb().mutates());
        let message = say::panicked(if mutates { None } else { Some(false) });
        let facts = json!({
            "what": message.what, "request_id": id, "key_name": caller.key_name, "key_fingerprint": caller.key_fp, "vmid": caller.vmid,
            "line_sha256": asked.whole.sha256, "outcome": Outcome::Internal, "exit_code": Outcome::Internal.exit_code(),
        });
        let Value::Object(facts) = facts else { return Outcome::Internal.exit_code() };
        panicked(&message, facts)
    })
}

/// Says it, and then tries to record it, on tmpfs.
fn panicked(message: &Message, facts: Map<String, Value>) -> u8 {
    let status = unrecorded(message, Outcome::Internal);
    let _ = catch_unwind(|| {
        let (config, _) = Config::load();
        let mut log = Log::open(Disk::spawn(), Signer::load().ok(), config.audit.keep_bytes.bytes());
        log.leave_on_tmpfs();
        log.append(Kind::Degraded, facts)
    });
    status
}

/// An answer that has no record, because the host has no place for one or the program failed. It still ends as every answer does.
fn unrecorded(message: &Message, outcome: Outcome) -> u8 {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{}\nreceipt - - {outcome}", text::refusal_text(message).trim_end());
    outcome.exit_code()
}

/// 0 where nothing is bad.
fn check() -> u8 {
    match setup::check(&mut std::io::stdout()) {
        Ok(good) => u8::from(!good),
        Err(_) => 1,
    }
}

/// `log head`: head.json as it would be now.
fn log_head(out: &mut dyn Write) -> Result<(), Message> {
    let (config, _) = Config::load();
    let head = Log::open(Disk::spawn(), Signer::load().ok(), config.audit.keep_bytes.bytes()).head();
    let head = head.map_err(|why| {
        Message::new(format!("The log's head is not known: {why}."), "Look at the disk of /var/log/pve-verb, then ask again.")
    })?;
    writeln!(out, "{}", head.trim_end()).map_err(|e| Message::new(format!("The head could not be printed: {e}."), "Ask again."))
}

fn log_verify(args: crate::cli::Verify) -> u8 {
    auditor::verify(&auditor::Asked { receipts: args.receipts, all: args.all, key: args.key }, &mut std::io::stdout())
}

fn log_show(args: crate::cli::Show) -> u8 {
    let crate::cli::Show { request, verb, key, since, until, json } = args;
    admin(|out| auditor::show(&auditor::Wanted { request, verb, key, since, until, json }, &mut std::io::BufWriter::new(out)))
}

fn admin(command: impl FnOnce(&mut dyn Write) -> Result<(), Message>) -> u8 {
    let mut out = std::io::stdout();
    match command(&mut out) {
        Ok(()) => 0,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "{message}");
            1
        }
    }
}

/// The hidden commands have nobody to tell: whoever started them sees that the pipe ended.
fn quiet(ended: Result<(), String>) -> u8 {
    u8::from(ended.is_err())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{RequestId, Vmid};

    #[test]
    fn a_panic_is_answered_with_70_and_says_whether_the_vm_was_touched() {
        let id = RequestId::from_random([7; 16]);
        let ends = |line: &str, serve: fn(Arrival) -> u8| {
            let mut told = None;
            let arrival = Arrival::new(Caller::console(Vmid::DEVVM), line.as_bytes().to_vec(), id.clone());
            let status = answered(arrival, serve, |message, facts| {
                told = Some((message.what.clone(), facts));
                Outcome::Internal.exit_code()
            });
            (status, told)
        };
        assert_eq!(ends("status", |_| 0), (0, None));
        for (line, touched) in [
            ("status --json", "nothing was sent to the VM"),
            ("no request", "nothing was sent to the VM"),
            ("cycle", "whether anything was sent to the VM is not known"),
        ] {
            let (status, told) = ends(line, |_| panic!("a bug"));
            let (what, facts) = told.unwrap();
            assert!(status == 70 && what.contains(touched), "{line}: {what}");
            assert_eq!((&facts["request_id"], &facts["vmid"]), (&json!(id), &json!(102)));
        }
        let other = RequestId::from_random([8; 16]);
        let (_, told) = ends(&format!("reset --request-id={other}"), |_| panic!("a bug"));
        assert_eq!(told.unwrap().1["request_id"], json!(other), "the caller's own id");
    }
}
