//! A verb over SSH, to its end: the same request id after a lost connection, `--attach` where a gap was long, success by a valid
//! receipt and nothing else. Evidence and receipts are kept in the state folder, and the newest audit head goes back as the witness.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use proto::{Ack, Body, Draft, Event, Message, Request, Verb, Vmid};
use tokio::sync::mpsc::Sender;

use crate::answer::{Broken, Reader};
use crate::bound::Bound;
use crate::config::Config;
use crate::hands::{Doing, ExecAsk, ExecEnd, ExecNews, Hands, VerbAsk, VerbEnd, VerbNews};
use crate::incident::Store;
use crate::mirror::Mirror;
use crate::receipt::{Asked, Proved, Unproved, check};
use crate::ssh::{Failure, Said, Target, Wire};
use crate::{UNKNOWN, devvm, say};

pub mod keep;

use keep::{Evidence, Keep};

/// After the host's own deadline it still gets this long: for a slow link, and for asking again.
const GRACE: Duration = Duration::from_secs(45);
/// Where the caller may have to keep the evidence, the host waits for it (PROTOCOL.md, section 11).
const OFFER: Duration = Duration::from_secs(30);
/// After a gap this long nothing is started any more: the host may have booted meanwhile (PROTOCOL.md, section 7).
const ATTACH_AFTER: Duration = Duration::from_secs(60);
/// Who only looks gets this long, and the last try's own few seconds: a minute in all.
const LOOK: Duration = Duration::from_secs(55);
/// Pauses before asking again; the last one is kept.
const PAUSES: [u64; 5] = [1, 2, 4, 8, 10];

/// The hands, over SSH.
#[derive(Debug)]
pub struct Ssh {
    wire: Wire,
    host: Target,
    vmid: Vmid,
    /// The VM that the key is for, where the host said last that it is another one.
    other: Mutex<Option<Vmid>>,
    signing_key: crate::signers::Pinned,
    devvm: Option<devvm::Devvm>,
    keep: Mutex<Keep>,
    bound: Arc<Bound>,
    mirror: Mirror,
}

impl Ssh {
    /// As the configuration says.
    ///
    /// # Errors
    /// A section or the ssh-agent's socket is missing, or the state folder can't be used.
    pub fn open(config: &Config) -> Result<Self, Message> {
        let host = Config::need(config.host.as_ref(), "host")?;
        let socket = auth_sock(config)?;
        let target = Target { address: host.address, user: host.user.clone(), host_key: host.host_key.clone(), key_hint: "verbs" };
        let devvm = config.devvm.as_ref().map(|devvm| devvm::Devvm::new(devvm, &config.state.dir)).transpose()?;
        let keep = Keep::open(&config.state.dir, config.state.keep_bytes)?;
        Ok(Self {
            wire: Wire::new(socket),
            host: target,
            vmid: host.vmid,
            other: Mutex::default(),
            signing_key: host.signing_key.clone(),
            devvm,
            bound: keep.bound(),
            keep: Mutex::new(keep),
            mirror: Mirror::default(),
        })
    }

    /// Each proved receipt, as it came, is a line where the incidents' lines are told too: for verbs and for looks.
    pub fn told_with(mut self, store: &Store) -> Self {
        self.mirror = store.mirror();
        self
    }

    /// Keeps a session to the host ready from here on.
    pub fn warm(&self) {
        self.wire.warm(&self.host);
    }

    /// The devvm, where there is one.
    pub const fn devvm(&self) -> Option<&devvm::Devvm> {
        self.devvm.as_ref()
    }

    /// Accepts the devvm's new host key: a person has compared this fingerprint on the devvm's own console.
    ///
    /// # Errors
    /// It shows another one, or none.
    pub async fn accept(&self, compared: &str) -> Result<(), Message> {
        let Some(devvm) = &self.devvm else { return Err(Message::new("The configuration has no [devvm].", "Add it.")) };
        let shown = self.wire.shown(&devvm.target()).await;
        let key = shown
            .map_err(|why| Message::new(format!("The devvm shows no host key: {why}."), "Look whether it runs: breakglass verb status."))?;
        devvm.accept(&key, compared)
    }

    /// The way to SSH.
    pub const fn wire(&self) -> &Wire {
        &self.wire
    }

    fn keep(&self) -> std::sync::MutexGuard<'_, Keep> {
        self.keep.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The host's status over a session of its own, for at most a minute. What does not let us in is not tried again: for who looks
    /// whether the way is open, a closed one is the answer.
    pub async fn look(&self, ask: VerbAsk, news: Sender<VerbNews>) -> VerbEnd {
        let now = Instant::now();
        self.to_its_end(ask, news, Waits { unsent: now, until: now + LOOK, spare: false }).await
    }

    async fn to_its_end(&self, mut ask: VerbAsk, news: Sender<VerbNews>, waits: Waits) -> VerbEnd {
        let after_it = ask.attach;
        if ask.verb != Verb::Status {
            self.bound.make(keep::ANSWER);
        }
        let mut heard = Instant::now();
        let mut pauses = PAUSES.into_iter();
        let mut pause = PAUSES[0];
        let mut sent = false;
        loop {
            // Whoever has not heard for a minute must not start anything: it only asks what became of it.
            ask.attach |= ask.verb.mutates() && heard.elapsed() > ATTACH_AFTER;
            let (checked, why) = self.once(&ask, &news, waits, &mut heard).await;
            let again = match (&checked, &why) {
                (Err(Unproved::Answer(Broken::Empty | Broken::CutOff | Broken::NoReceipt)), Some(why)) => why.clone(),
                _ => return self.ended(ask, checked),
            };
            sent |= matches!(again, Lost::By(Failure::Lost(_) | Failure::TimedOut));
            pause = pauses.next().unwrap_or(pause);
            let after = Duration::from_secs(pause);
            if Instant::now() + after >= if sent { waits.until } else { waits.unsent } || again.is_final(sent) {
                return VerbEnd {
                    request_id: ask.request_id.clone(),
                    checked: checked.map(Box::new),
                    sent: sent || after_it,
                    status: UNKNOWN,
                    said: if sent { lost(&again, &ask) } else { unsent(&again, &ask, after_it) },
                };
            }
            let _nobody_listens = news.send(VerbNews::Again { why: again.to_string(), after }).await;
            tokio::time::sleep(after).await;
        }
    }

    /// Remembers what the host says of the key. Unsigned it can only hold a mutation back, and the next answer's word counts.
    fn is_for(&self, vmid: Vmid) {
        *self.other.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(vmid).filter(|vmid| *vmid != self.vmid);
    }

    /// The end of what is not sent: a mutation, where the key is known to be for another VM.
    fn held_back(&self, ask: &VerbAsk) -> Option<VerbEnd> {
        let got = (*self.other.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
            .filter(|_| ask.verb.mutates() && !ask.dry_run && !ask.attach)?;
        let said = say::other_vm(self.vmid, got, None);
        let said = Message::new(format!("Nothing was sent. {}", said.what), format!("{} Then look with status.", said.next));
        let checked = Err(Unproved::OtherVm { wanted: self.vmid, got });
        Some(VerbEnd { request_id: ask.request_id.clone(), checked, sent: false, status: UNKNOWN, said })
    }

    fn ended(&self, ask: VerbAsk, checked: Result<Proved, Unproved>) -> VerbEnd {
        let status = crate::receipt::exit_code(&checked);
        let said = match &checked {
            Ok(proved) => say::proved(proved),
            Err(Unproved::OtherVm { got, .. }) => {
                say::other_vm(self.vmid, *got, Some(ask.verb).filter(|verb| verb.mutates() && !ask.dry_run))
            }
            Err(why) => say::unproved(why, Some(&ask.request_id)),
        };
        VerbEnd { request_id: ask.request_id, checked: checked.map(Box::new), sent: true, status, said }
    }

    /// Asks once, and notes when it last heard something; gives what the answer proves, and why the connection ended where it did not end well.
    async fn once(
        &self,
        ask: &VerbAsk,
        news: &Sender<VerbNews>,
        waits: Waits,
        heard: &mut Instant,
    ) -> (Result<Proved, Unproved>, Option<Lost>) {
        let witness = self.keep().witness();
        let line = match request(ask, witness) {
            Ok(line) => line,
            Err(why) => return (Err(Unproved::Answer(Broken::Empty)), Some(Lost::Never(why))),
        };
        let mut call = self.wire.call(&self.host, line, waits.until, waits.spare);
        let mut reader = Reader::new();
        let mut evidence = self.keep().evidence(&ask.request_id);
        let mut lost = None;
        while let Some(said) = call.next().await {
            match said {
                Said::Started => self.wire.warm(&self.host),
                Said::Output { stderr: false, bytes } => {
                    *heard = Instant::now();
                    let mut events = Vec::new();
                    reader.feed(&bytes, |event| events.push(event));
                    for event in events {
                        if let Body::Accepted(accepted) = &event.body {
                            self.is_for(accepted.vmid);
                        }
                        if let Some(ack) = take(event, &mut evidence, news).await {
                            call.input(ack.to_string().into_bytes());
                        }
                    }
                }
                Said::Output { stderr: true, .. } | Said::Exited(_) | Said::Signalled(_) => {}
                Said::Failed(failure) => lost = Some(Lost::By(failure)),
            }
        }
        let asked = Asked { request_id: Some(ask.request_id.clone()), verb: Some(ask.verb), vmid: Some(self.vmid) };
        let checked = reader.end().map_err(Unproved::Answer).and_then(|unchecked| check(&unchecked, Some(&self.signing_key), &asked));
        match &checked {
            Ok(proved) => {
                self.is_for(proved.body().vmid);
                self.mirror.tell(proved.line());
                self.keep().store(proved);
            }
            Err(Unproved::OtherVm { got, .. }) => self.is_for(*got),
            Err(_) => {}
        }
        (checked, lost.or(Some(Lost::By(Failure::Lost("the answer ended before its receipt".to_owned())))))
    }
}

/// How long somebody waits.
#[derive(Clone, Copy, Debug)]
struct Waits {
    /// While nothing has left.
    unsent: Instant,
    /// From then on.
    until: Instant,
    /// Whether a session that is kept ready will do.
    spare: bool,
}

impl Waits {
    /// As long as the verb may take.
    fn of(ask: &VerbAsk) -> Self {
        let now = Instant::now();
        let until = now + Duration::from_millis(ask.verb.deadline_ms()) + OFFER + GRACE;
        // What began under this id before may be asked after for as long as an answer would take.
        let unsent = if ask.attach { until } else { until.min(now + ATTACH_AFTER) };
        Self { unsent, until, spare: true }
    }
}

/// Why an answer did not come to its end.
#[derive(Clone, Debug)]
enum Lost {
    /// The connection.
    By(Failure),
    /// The request can't be said.
    Never(String),
}

impl Lost {
    /// Whether asking again would be the same again. A login that is refused after the request went out may be one of a host that boots.
    const fn is_final(&self, sent: bool) -> bool {
        match self {
            Self::Never(_) | Self::By(Failure::HostKey { .. } | Failure::TimedOut) => true,
            Self::By(Failure::Refused(_) | Failure::NoKey(_)) => !sent,
            Self::By(Failure::Unreachable(_) | Failure::Lost(_)) => false,
        }
    }
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Never(why) | Self::By(Failure::Unreachable(why) | Failure::Refused(why) | Failure::NoKey(why) | Failure::Lost(why)) => {
                f.write_str(&proto::escape(why.as_bytes()))
            }
            Self::By(Failure::TimedOut) => f.write_str("its time was over"),
            Self::By(Failure::HostKey { pinned, shown }) => {
                write!(f, "the host showed the key {shown}, and {pinned} is pinned")
            }
        }
    }
}

/// It may have reached the host.
fn lost(why: &Lost, ask: &VerbAsk) -> Message {
    let id = &ask.request_id;
    match why {
        Lost::By(Failure::Unreachable(_) | Failure::Refused(_) | Failure::NoKey(_)) => Message::new(
            format!("The host gave no answer to the last try: {why}."),
            format!(
                "Whether {} began is not known. Look with status, or ask after it: breakglass verb {} --attach --request-id={id}.",
                ask.verb, ask.verb
            ),
        ),
        _ => Message::new(
            format!("No receipt came for {} (request {id}): {why}.", ask.verb),
            format!("It may still run there. Ask after it: breakglass verb {} --attach --request-id={id}; or look with status.", ask.verb),
        ),
    }
}

/// It never left this machine. `after_it`: an earlier one under this id may have, and was only asked after.
fn unsent(why: &Lost, ask: &VerbAsk, after_it: bool) -> Message {
    let next = match why {
        Lost::By(Failure::HostKey { .. }) => {
            "Find out why before anything else; if the host was really set up anew, put its new key into [host] host_key."
        }
        Lost::By(Failure::Refused(_)) => "Load the key with ssh-add, or authorize it on the host with pve-verb authorize.",
        Lost::By(Failure::NoKey(_)) => "Load the key with ssh-add, or start breakglass keyholder.",
        Lost::By(_) => "Look whether the host runs and [host] address is right, then ask again.",
        Lost::Never(_) => "Ask without it.",
    };
    let unknown = if after_it { format!(" Until then what became of request {} is not known.", ask.request_id) } else { String::new() };
    Message::new(format!("Nothing was sent: {why}."), format!("{next}{unknown}"))
}

fn request(ask: &VerbAsk, witness: Option<proto::Witness>) -> Result<String, String> {
    let draft = Draft {
        json: true,
        inline: !ask.attach && ask.verb != Verb::Status,
        dry_run: ask.dry_run,
        attach: ask.attach,
        request_id: Some(ask.request_id.clone()),
        origin: ask.origin,
        actor: ask.actor.clone(),
        reason: ask.reason.clone(),
        witness,
        grant: if ask.verb.mutates() { ask.grant.clone() } else { None },
        ..Draft::default()
    };
    let request: Request = draft.finish(ask.verb).map_err(|misplaced| format!("{} {}", misplaced.option, misplaced.rule))?;
    Ok(request.to_string())
}

/// Passes an event on, its artifact taken out and kept; gives the acknowledgement where the host waits for one.
async fn take(mut event: Event, evidence: &mut Evidence, news: &Sender<VerbNews>) -> Option<Ack> {
    let mut artifact = None;
    let mut ack = None;
    match &mut event.body {
        Body::Probe(probe) => {
            if let (Some(reference), Some(data)) = (&probe.artifact, probe.data.take()) {
                artifact = evidence
                    .put(&reference.path, &reference.sha256, Base64::decode_vec(&data).ok())
                    .map(|bytes| (reference.path.clone(), reference.media_type.clone(), bytes));
            }
        }
        Body::Artifact(sent) => {
            let data = std::mem::take(&mut sent.data);
            artifact = evidence
                .put(&sent.path, &sent.sha256, Base64::decode_vec(&data).ok())
                .map(|bytes| (sent.path.clone(), "application/octet-stream".to_owned(), bytes));
        }
        // Only what is really here, whole and as the manifest says, is acknowledged.
        Body::Offered(offered) => ack = evidence.whole(&offered.manifest_sha256).then(|| Ack(offered.manifest_sha256.clone())),
        _ => {}
    }
    if let Some((path, media_type, bytes)) = artifact {
        let _nobody_listens = news.send(VerbNews::Artifact { path, media_type, bytes }).await;
    }
    let _nobody_listens = news.send(VerbNews::Event(Box::new(event))).await;
    ack
}

/// The ssh-agent's socket.
fn auth_sock(config: &Config) -> Result<PathBuf, Message> {
    config.ssh.auth_sock.clone().or_else(|| std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from)).ok_or_else(|| {
        Message::new(
            "There is no ssh-agent: neither ssh.auth_sock nor SSH_AUTH_SOCK is set.",
            "Start one: eval \"$(ssh-agent)\"; ssh-add KEY. Or start breakglass keyholder, and name its socket in [ssh] auth_sock.",
        )
    })
}

impl Hands for Ssh {
    fn vmid(&self) -> Vmid {
        self.vmid
    }

    fn verb(&self, ask: VerbAsk, news: Sender<VerbNews>) -> Doing<'_, VerbEnd> {
        if let Some(end) = self.held_back(&ask) {
            return Box::pin(std::future::ready(end));
        }
        let waits = Waits::of(&ask);
        Box::pin(self.to_its_end(ask, news, waits))
    }

    fn exec(&self, ask: ExecAsk, news: Sender<ExecNews>) -> Doing<'_, ExecEnd> {
        Box::pin(devvm::exec(self, ask, news))
    }
}

#[cfg(test)]
mod tests;
