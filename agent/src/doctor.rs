//! `breakglass doctor`: tries the whole way and says what is broken, each line with what to do about it. Changes nothing anywhere.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use proto::{Body, Message, Origin, Unit64, Verb};
use tokio::sync::mpsc;

use crate::claude::{Found, Settings};
use crate::config::Config;
use crate::hands::{ExecAsk, ExecEnd, Hands, VerbAsk, VerbNews};
use crate::host::Ssh;
use crate::{receipts, verb};

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and is weaker than it could be.
    Warn,
    /// It does not work.
    Bad,
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What was tried.
    pub name: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found, and what to do.
    pub said: Message,
}

/// More than this apart, times in records of both sides can't be compared.
const CLOCKS: Duration = Duration::from_secs(5);
/// Below this the next evidence may not fit.
const FREE: u64 = 256 << 20;

/// Tries all of it: what answers late or never is tried beside the rest, for a minute at most. Each part is told as soon as it is known.
pub async fn examine(ssh: &Ssh, config: &Config, tell: impl Fn(&[Finding])) -> Vec<Finding> {
    let told = |found: Vec<Finding>| {
        tell(&found);
        found
    };
    let here = told(vec![space(config), kept(config)]);
    let (host, devvm, claude) =
        tokio::join!(async { told(host(ssh).await) }, async { told(vec![devvm(ssh).await]) }, async { told(claude(&config.claude).await) });
    [here, host, devvm, claude].concat()
}

fn ok(name: &'static str, what: impl Into<String>) -> Finding {
    Finding { name, level: Level::Ok, said: Message::new(what, "") }
}

fn finding(name: &'static str, level: Level, what: impl Into<String>, next: impl Into<String>) -> Finding {
    Finding { name, level, said: Message::new(what, next) }
}

async fn host(ssh: &Ssh) -> Vec<Finding> {
    let name = "host";
    let request_id = match verb::fresh_id() {
        Ok(id) => id,
        Err(said) => return vec![Finding { name, level: Level::Bad, said }],
    };
    let ask = VerbAsk {
        verb: Verb::Status,
        request_id,
        origin: Origin::Human,
        actor: Unit64::from_free_text("doctor"),
        reason: None,
        dry_run: false,
        attach: false,
        grant: None,
    };
    let (tell, mut news) = mpsc::channel(256);
    let asked = SystemTime::now();
    let (end, (apart, version)) = tokio::join!(ssh.look(ask, tell), async {
        let (mut apart, mut version) = (None, None);
        while let Some(said) = news.recv().await {
            if let VerbNews::Event(event) = said
                && let Body::Accepted(accepted) = &event.body
            {
                version = Some(accepted.binary.version.clone());
                let now = SystemTime::now();
                let theirs = SystemTime::UNIX_EPOCH + Duration::from_millis(event.at.unix_ms());
                // Between asking and hearing the host's clock said this.
                let early = asked.duration_since(theirs).unwrap_or_default();
                let late = theirs.duration_since(now).unwrap_or_default();
                apart = Some(early.max(late));
            }
        }
        (apart, version)
    });
    let mut all = Vec::new();
    let Ok(proved) = &end.checked else {
        return vec![finding(name, Level::Bad, end.said.what.clone(), end.said.next.clone())];
    };
    let body = proved.body();
    all.push(ok(name, format!("{} answers with a valid receipt; VM {} is {}.", body.node, body.vmid, body.state_after)));
    if body.outcome != proto::Outcome::Done {
        all.push(finding(name, Level::Bad, body.message.what.clone(), body.message.next.clone()));
    }
    all.extend(version.map(|host| versions(&host)));
    for degraded in &body.degraded {
        all.push(finding("host", Level::Warn, format!("Weaker than it should be: {degraded}."), "Run pve-verb check on the host."));
    }
    if body.unreviewed.is_some_and(|n| n > 0) {
        let n = body.unreviewed.unwrap_or_default();
        all.push(finding("review", Level::Warn, format!("{n} uses are not reviewed."), "Look at pve-verb log show, then pve-verb review."));
    }
    match &body.witness {
        Some(witness) if !witness.ok.unwrap_or(true) => all.push(finding(
            "record",
            Level::Bad,
            "The host's log does not contain the newest record that this machine holds a receipt of.",
            "It was rolled back or replaced: run breakglass receipts verify, and keep the state folder.",
        )),
        Some(_) => all.push(ok("record", "The host's log contains the newest record that is held here.")),
        None => {}
    }
    all.push(match apart {
        Some(apart) if apart > CLOCKS => finding(
            "clock",
            Level::Warn,
            format!("The host's clock and this one are {:.0} s apart.", apart.as_secs_f32()),
            "Let both be kept by chrony or systemd-timesyncd.",
        ),
        Some(_) => ok("clock", "The host's clock and this one agree."),
        None => finding("clock", Level::Warn, "The host's clock could not be read.", "Look at it with date -u on both."),
    });
    all
}

/// Both programs' versions. The protocol is the same, or there would be no receipt; what differs is what each knows beyond it.
fn versions(host: &str) -> Finding {
    let (name, own) = ("version", env!("CARGO_PKG_VERSION"));
    let host = proto::escape_cut(host.as_bytes(), 40);
    if host == own {
        return ok(name, format!("pve-verb and breakglass are {own}."));
    }
    let what = format!("The host's pve-verb is {host}, this breakglass {own}. Both speak version {} of the protocol.", proto::VERSION);
    finding(name, Level::Warn, what, "It works; bring both to the newer one when you can, the host first.")
}

async fn devvm(ssh: &Ssh) -> Finding {
    let name = "devvm";
    let (tell, mut news) = mpsc::channel(64);
    let ask = ExecAsk { command: "id -u".to_owned(), timeout: Duration::from_secs(15) };
    let (end, output) = tokio::join!(ssh.exec(ask, tell), async {
        let mut output = Vec::new();
        while let Some(said) = news.recv().await {
            output.extend(said.bytes.into_iter().take(200));
        }
        output
    });
    let said = proto::escape(output.trim_ascii());
    match end {
        ExecEnd::Exited(0) if said == "0" => ok(name, "Its sshd answers, and sudo works."),
        ExecEnd::Exited(0) => {
            finding(name, Level::Warn, format!("Its sshd answers as uid {said}."), "Set [devvm] sudo = true, and let its user sudo.")
        }
        ExecEnd::Exited(status) => finding(
            name,
            Level::Bad,
            format!("Its sshd answers, and sudo ended with {status}: {said}."),
            "Let the user run everything without a password: sudo -n true has to work there.",
        ),
        ExecEnd::HostKeyChanged { pinned, shown } => finding(
            name,
            Level::Bad,
            format!("It shows the host key {shown}, and {pinned} is pinned."),
            "If it was rebuilt, compare on its console and accept the key: breakglass devvm accept FINGERPRINT.",
        ),
        ExecEnd::Absent => finding(name, Level::Warn, "No devvm is configured, so nothing can be repaired inside it.", "Add [devvm]."),
        ExecEnd::Unreachable(why) | ExecEnd::Refused(why) | ExecEnd::Lost(why) => {
            finding(name, Level::Bad, format!("It can't be used: {why}."), "Look with breakglass verb status whether it runs.")
        }
        ExecEnd::TimedOut => {
            finding(name, Level::Bad, "Its sshd answers, and a command hangs.", "Look with breakglass verb status whether it is well.")
        }
        ExecEnd::Signalled(signal) => finding(
            name,
            Level::Bad,
            format!("Its sshd answers, and sudo was ended by {signal}."),
            "Look at its log; sudo -n true has to work there.",
        ),
    }
}

/// Whether Claude can be had: the key, the address, each configured model.
pub async fn claude(settings: &Settings) -> Vec<Finding> {
    let name = "claude";
    let models = match crate::claude::probe(settings).await {
        Ok(Some(models)) => models,
        Ok(None) => return vec![ok(name, "There is no key for its API, so incidents go by the runbook.")],
        Err(said) => return vec![Finding { name, level: Level::Bad, said }],
    };
    let instead = "Until then incidents go by the runbook.";
    let told = models.into_iter().map(|(model, found)| {
        let model = proto::escape_cut(model.as_bytes(), 80);
        match found {
            Found::There => ok(name, format!("{model} can be had.")),
            Found::Refused(status) => finding(
                name,
                Level::Bad,
                format!("The API does not take the key for {model} ({status})."),
                format!("Put a valid one into [claude] api_key_file. {instead}"),
            ),
            Found::Unknown => {
                finding(name, Level::Bad, format!("The API has no model {model}."), "Correct model and fallback_model in [claude].")
            }
            Found::Odd(status) => finding(
                name,
                Level::Warn,
                format!("The API answered {status} when it was asked for {model}."),
                format!("Try again in some minutes. {instead}"),
            ),
            Found::Gone(why) => finding(
                name,
                Level::Warn,
                format!("The API can't be reached for {model}: {why}."),
                format!("Look at the network. {instead}"),
            ),
        }
    });
    told.collect()
}

fn kept(config: &Config) -> Finding {
    let name = "receipts";
    let Some(host) = &config.host else { return finding(name, Level::Bad, "There is no [host].", "Add it.") };
    let files = crate::host::keep::Keep::open(&config.state.dir, config.state.keep_bytes).map(|keep| keep.all());
    match files.map(|files| receipts::verify(&files, &host.signing_key)) {
        Ok(found) if found.wrong.is_empty() => ok(name, format!("{} kept receipts fit together.", found.receipts)),
        Ok(found) => finding(
            name,
            Level::Bad,
            format!("{} of the kept receipts do not fit.", found.wrong.len()),
            "Run breakglass receipts verify, which names them.",
        ),
        Err(said) => Finding { name, level: Level::Bad, said },
    }
}

fn space(config: &Config) -> Finding {
    let dir = &config.state.dir;
    match rustix::fs::statvfs(dir) {
        Ok(found) if found.f_bavail.saturating_mul(found.f_frsize) < FREE => finding(
            "space",
            Level::Warn,
            format!("{} has {} MiB left.", dir.display(), found.f_bavail.saturating_mul(found.f_frsize) >> 20),
            "Make room: an answer's evidence takes up to 64 MiB.",
        ),
        Ok(_) => ok("space", format!("{} has room.", dir.display())),
        Err(error) => finding("space", Level::Bad, format!("{} can't be used: {error}.", dir.display()), "Correct [state] dir."),
    }
}

/// Prints all of it as it comes; true where nothing is bad.
///
/// # Errors
/// The configuration can't be used.
pub fn doctor(config: &Config) -> Result<bool, Message> {
    let ssh = Ssh::open(config)?;
    let _nobody_reads = writeln!(io::stderr(), "Trying the whole way. What does not answer takes up to a minute.");
    let all = verb::runtime()?.block_on(examine(&ssh, config, |found| found.iter().for_each(print)));
    Ok(all.iter().all(|one| one.level != Level::Bad))
}

fn print(one: &Finding) {
    let level = match one.level {
        Level::Ok => "ok  ",
        Level::Warn => "warn",
        Level::Bad => "BAD ",
    };
    let next = if one.said.next.is_empty() { String::new() } else { format!(" {}", one.said.next) };
    // Flushed by itself at each line's end.
    let _nobody_reads = writeln!(io::stdout(), "{level}  {}: {}{next}", one.name, one.said.what);
}
