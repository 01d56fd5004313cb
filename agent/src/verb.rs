//! `breakglass verb`: one verb on the host, its events shown as they come, its evidence and receipt kept, its exit status the host's.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use proto::{Body, Event, Grant, Message, Origin, ProbeOutcome, RequestId, StepOutcome, Unit64, Unit200, Verb as VerbName};
use tokio::sync::mpsc;

use crate::UNKNOWN;
use crate::config::Config;
use crate::hands::{Hands, VerbAsk, VerbEnd, VerbNews};
use crate::host::Ssh;

/// `verb`.
#[derive(Debug, Args)]
pub struct Verb {
    /// status, forensics, reset, stop, start or cycle
    #[arg(value_parser = crate::cli::verb)]
    pub verb: VerbName,
    /// Why: it stands in the host's record
    #[arg(long, value_parser = reason)]
    pub reason: Option<Unit200>,
    /// Who: a claim, recorded as one
    #[arg(long, value_parser = actor)]
    pub actor: Option<Unit64>,
    /// The host's events as they come, one JSON object a line; a receipt that proves the result is the last
    #[arg(long)]
    pub json: bool,
    /// The id to ask with: the same id never acts twice
    #[arg(long, value_name = "UUID")]
    pub request_id: Option<RequestId>,
    /// Ask after a request that began; never start one
    #[arg(long, requires = "request_id")]
    pub attach: bool,
    /// Capture, preserve, plan, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The file with a packed grant (grant new --signed)
    #[arg(long, value_name = "FILE")]
    pub grant_file: Option<PathBuf>,
}

fn reason(text: &str) -> Result<Unit200, String> {
    text.to_owned().try_into().map_err(|_| "1 to 200 characters, no control characters".to_owned())
}

fn actor(text: &str) -> Result<Unit64, String> {
    text.to_owned().try_into().map_err(|_| "1 to 64 characters, no control characters".to_owned())
}

/// A fresh id.
///
/// # Errors
/// The kernel gave no random bytes.
pub fn fresh_id() -> Result<RequestId, Message> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Message::new(format!("The kernel gave no random bytes: {error}."), "Look at this machine's kernel log."))?;
    Ok(RequestId::from_random(bytes))
}

/// Runs it; gives the exit status.
///
/// # Errors
/// What kept it from being sent at all.
pub fn verb(args: &Verb, config: &Config) -> Result<u8, Message> {
    let grant = args.grant_file.as_deref().map(grant).transpose()?;
    let request_id = args.request_id.clone().map_or_else(fresh_id, Ok)?;
    let ask = VerbAsk {
        verb: args.verb,
        request_id,
        origin: Origin::Human,
        actor: args.actor.clone(),
        reason: args.reason.clone(),
        dry_run: args.dry_run,
        attach: args.attach,
        grant,
    };
    let ssh = Ssh::open(config)?;
    let end = runtime()?.block_on(async {
        let (tell, mut news) = mpsc::channel(256);
        let mut show = Show::new(args.json, &ask);
        let mut running = ssh.verb(ask.clone(), tell);
        let mut quiet = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                biased;
                _ = tokio::signal::ctrl_c() => return Err(interrupted(&ask)),
                Some(said) = news.recv() => show.news(&said),
                end = &mut running => {
                    while let Ok(said) = news.try_recv() {
                        show.news(&said);
                    }
                    show.done();
                    return Ok(end);
                }
                _ = quiet.tick() => show.time_left(),
            }
        }
    });
    match end {
        Ok(end) => {
            tell_end(&end, args, config);
            Ok(end.status)
        }
        Err(message) => {
            eprint(&message);
            Ok(UNKNOWN)
        }
    }
}

/// One thread drives everything; what blocks has threads of its own.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Message> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Message::new(format!("This process can't wait for anything: {error}."), "Free some file descriptors and try again.")
    })
}

fn grant(file: &std::path::Path) -> Result<Grant, Message> {
    let bad =
        |why: String| Message::new(format!("The grant in {} can't be used: {why}.", file.display()), "Make one with grant new --signed.");
    let text = std::fs::read_to_string(file).map_err(|error| bad(error.to_string()))?;
    text.trim().parse().map_err(|()| bad("it is not in the packed form".to_owned()))
}

fn interrupted(ask: &VerbAsk) -> Message {
    let (verb, id) = (ask.verb, &ask.request_id);
    if verb.mutates() && !ask.dry_run {
        Message::new(
            format!("You left; {verb} (request {id}) goes on without you if it had begun."),
            format!("Come back to it with: breakglass verb {verb} --attach --request-id={id}."),
        )
    } else {
        Message::new(format!("You left; {verb} changes nothing."), "Ask again when you like.")
    }
}

fn eprint(text: &impl std::fmt::Display) {
    let _nobody_reads = writeln!(io::stderr(), "{text}");
}

fn tell_end(end: &VerbEnd, args: &Verb, config: &Config) {
    if args.json {
        eprint(&end.said);
        // The last line, and only where it proves something: whoever reads on can check it once more with breakglass receipt.
        if let Ok(proved) = &end.checked {
            let _nobody_reads = writeln!(io::stdout(), "{}", proved.line());
        }
        return;
    }
    let evidence = config.state.dir.join("evidence").join(end.request_id.as_str());
    let mut text = format!("\n{}\n", end.said);
    if evidence.exists() {
        text.push_str(&format!("Evidence here: {}\n", evidence.display()));
    }
    let _nobody_reads = io::stdout().write_all(text.as_bytes());
}

/// Shows what comes.
struct Show {
    json: bool,
    terminal: bool,
    began: Instant,
    deadline: Option<Duration>,
    waiting: bool,
    captured: usize,
}

impl Show {
    fn new(json: bool, ask: &VerbAsk) -> Self {
        let mut show =
            Self { json, terminal: io::stdout().is_terminal(), began: Instant::now(), deadline: None, waiting: false, captured: 0 };
        if !json {
            show.line(&format!("{} (request {})", ask.verb, ask.request_id));
        }
        show
    }

    fn line(&mut self, text: &str) {
        let mut out = io::stdout();
        let clear = if std::mem::take(&mut self.waiting) { "\r\u{1b}[K" } else { "" };
        let _nobody_reads = writeln!(out, "{clear}{text}").and_then(|()| out.flush());
    }

    fn news(&mut self, news: &VerbNews) {
        match news {
            VerbNews::Event(event) if self.json => {
                if let Ok(line) = serde_json::to_string(event) {
                    self.line(&line);
                }
            }
            VerbNews::Event(event) => self.event(event),
            VerbNews::Artifact { .. } => {}
            VerbNews::Again { why, after } if self.json => eprint(&format!("{why}; again in {} s", after.as_secs())),
            VerbNews::Again { why, after } => self.line(&format!("{why}; again in {} s", after.as_secs())),
        }
    }

    fn event(&mut self, event: &Event) {
        let plain = |text: &str| proto::escape(text.as_bytes());
        match &event.body {
            Body::Accepted(accepted) => {
                self.deadline = Some(Duration::from_millis(accepted.deadline_ms));
                let joined = if accepted.attached { " It runs already: you look on." } else { "" };
                self.line(&format!(
                    "{} takes it for VM {}, for at most {} s.{joined}",
                    plain(&accepted.node),
                    accepted.vmid,
                    accepted.deadline_ms / 1000
                ));
            }
            Body::Probe(probe) => match probe.outcome {
                ProbeOutcome::Captured => self.captured += 1,
                outcome => {
                    let word = serde_json::to_value(outcome).ok().and_then(|word| word.as_str().map(|word| word.replace('_', " ")));
                    let detail = probe.detail.as_deref().map(|detail| format!(": {}", plain(detail))).unwrap_or_default();
                    self.line(&format!("- {} {}{detail}", plain(&probe.name), word.unwrap_or_default()));
                }
            },
            Body::Assessment(judged) => {
                self.line(&format!("{} pieces of evidence.", self.captured));
                self.line(&plain(&judged.sentence));
                for finding in &judged.findings {
                    self.line(&format!("- {}", plain(&finding.text)));
                }
                if let Some(verb) = judged.recommend.verb {
                    self.line(&format!("Advice: {verb}. {}", plain(&judged.recommend.why)));
                }
            }
            Body::Preserved(kept) => {
                let place = serde_json::to_value(kept.place).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default();
                self.line(&format!("Evidence is safe ({place}): {}", kept.bundle));
                for why in &kept.degraded {
                    self.line(&format!("- weaker: {}", plain(why)));
                }
            }
            Body::Step(step) => {
                let name = serde_json::to_value(step.name).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default();
                let detail = step.detail.as_deref().map(|detail| format!(" ({})", plain(detail))).unwrap_or_default();
                let ms = step.ms;
                self.line(&match step.outcome {
                    StepOutcome::Started => format!("{name} …"),
                    StepOutcome::Done => format!("{name} done, {:.1} s{detail}", Duration::from_millis(ms).as_secs_f32()),
                    StepOutcome::Failed => format!("{name} FAILED after {:.1} s{detail}", Duration::from_millis(ms).as_secs_f32()),
                    StepOutcome::TimedOut => format!("{name} took too long, {:.1} s{detail}", Duration::from_millis(ms).as_secs_f32()),
                });
            }
            Body::Artifact(_) | Body::Receipt(_) => {}
            Body::Offered(offered) => self.line(&format!("The host can't keep {}: it is kept here.", offered.bundle)),
        }
    }

    /// On a terminal: what is left of the time, in a line that the next one replaces.
    fn time_left(&mut self) {
        let Some(deadline) = self.deadline.filter(|_| self.terminal && !self.json) else { return };
        self.waiting = true;
        let mut out = io::stdout();
        let left = deadline.saturating_sub(self.began.elapsed()).as_secs();
        let _nobody_reads = write!(out, "\r\u{1b}[K… at most {left} s more").and_then(|()| out.flush());
    }

    fn done(&mut self) {
        if std::mem::take(&mut self.waiting) {
            let mut out = io::stdout();
            let _nobody_reads = write!(out, "\r\u{1b}[K").and_then(|()| out.flush());
        }
    }
}
