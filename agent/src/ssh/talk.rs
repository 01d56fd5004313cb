//! What a session's thread does: log in, wait for the command, run it, end. Everything here may block; nobody waits for it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use ssh_key::HashAlg;
use ssh2::{Channel, ErrorCode, MethodType};

use super::{Failure, Job, Plug, Said, Target, pull};

/// Each of connecting, the handshake and the login.
const STEP: Duration = Duration::from_secs(8);
/// A spare session asks this often whether it is still one.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How often a session with a running command asks.
const ALIVE: Duration = Duration::from_secs(5);
/// What was sent and is not acknowledged for so long was sent on a dead line.
const DEAD: Duration = Duration::from_secs(30);
/// A spare session that could not log in is soon forgotten: the next call tries anew.
const FAILED: Duration = Duration::from_secs(1);
/// libssh2's word for a server that said no to a command.
const DENIED: i32 = -22;
/// Its words for a key that the server does not take, and for one that libssh2 can't use: only these are a refusal. A connection that is
/// lost in the middle of a login has another.
const NOT_TAKEN: [i32; 3] = [-18, -33, -51];
/// Between two looks at what else there is to do.
const LOOK: Duration = Duration::from_millis(20);
/// How many of the agent's keys are tried: sshd counts each that it does not know.
const MOST_KEYS: usize = 4;

pub(super) struct Session {
    pub(super) target: Target,
    pub(super) auth_sock: PathBuf,
    pub(super) plug: Plug,
}

impl Session {
    /// Logs in, waits for the one command, runs it.
    pub(super) fn serve(self, jobs: &Receiver<Job>) {
        let plug = Arc::clone(&self.plug);
        let login = self.log_in();
        loop {
            match jobs.recv_timeout(if login.is_ok() { KEEPALIVE } else { FAILED }) {
                Ok(job) => {
                    let end = match login {
                        Ok((session, stream)) => run(&session, &stream, &job),
                        Err(failure) => Said::Failed(failure),
                    };
                    let _nobody_listens = job.said.blocking_send(end);
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let alive = login.as_ref().is_ok_and(|(session, stream)| session.keepalive_send().is_ok() && !is_closed(stream));
                    // A spare that is none is better gone: the next call makes a new one.
                    if !alive {
                        break;
                    }
                }
            }
        }
        pull(&plug);
    }

    /// Connected, and the keys exchanged; the server is not checked yet.
    fn connect(&self) -> Result<(ssh2::Session, TcpStream), Failure> {
        let unreachable = |what: &str, why: String| Failure::Unreachable(format!("{} {what}: {why}", self.target.address));
        let stream = TcpStream::connect_timeout(&self.target.address, STEP).map_err(|e| unreachable("can't be reached", e.to_string()))?;
        let _slower_only = stream.set_nodelay(true);
        // A line on which nothing comes back is found dead by this and the keepalive, long before the verb's own deadline.
        let _found_later = rustix::net::sockopt::set_tcp_user_timeout(&stream, u32::try_from(DEAD.as_millis()).unwrap_or(u32::MAX));
        let clone = || stream.try_clone().map_err(|e| unreachable("can't be used", e.to_string()));
        {
            let mut plugged = self.plug.lock().unwrap_or_else(PoisonError::into_inner);
            if plugged.pulled {
                return Err(Failure::Unreachable("nobody waits any more".to_owned()));
            }
            plugged.stream = Some(clone()?);
        }
        let mut session = ssh2::Session::new().map_err(|e| unreachable("can't be used", e.to_string()))?;
        session.set_tcp_stream(clone()?);
        session.set_timeout(u32::try_from(STEP.as_millis()).unwrap_or(u32::MAX));
        // The server may have several host keys: it is to show the one that is pinned.
        session
            .method_pref(MethodType::HostKey, self.target.host_key.algorithm().as_str())
            .map_err(|e| unreachable("has a host key of a kind that can't be checked", e.to_string()))?;
        session.handshake().map_err(|e| unreachable("did not finish the SSH handshake", e.to_string()))?;
        Ok((session, stream))
    }

    /// The host key that the server shows.
    pub(super) fn shown(&self) -> Result<ssh_key::PublicKey, String> {
        match self.connect() {
            Ok((session, _)) => host_key(&session).ok_or_else(|| "its key can't be read".to_owned()),
            Err(Failure::Unreachable(why)) => Err(why),
            Err(other) => Err(format!("{other:?}")),
        }
    }

    fn log_in(&self) -> Result<(ssh2::Session, TcpStream), Failure> {
        let (session, stream) = self.connect()?;
        let (pinned, shown) = (&self.target.host_key, host_key(&session));
        if shown.as_ref().map(ssh_key::PublicKey::key_data) != Some(pinned.key_data()) {
            let fingerprint = |key: &ssh_key::PublicKey| key.fingerprint(HashAlg::Sha256).to_string();
            let shown = shown.as_ref().map_or_else(|| "a key that can't be read".to_owned(), fingerprint);
            return Err(Failure::HostKey { pinned: fingerprint(pinned), shown });
        }
        self.authenticate(&session)?;
        session.set_keepalive(true, u32::try_from(ALIVE.as_secs()).unwrap_or(u32::MAX));
        Ok((session, stream))
    }

    fn authenticate(&self, session: &ssh2::Session) -> Result<(), Failure> {
        let (address, user) = (self.target.address, &self.target.user);
        let no_key = |why: &str| Failure::NoKey(format!("the ssh-agent at {} {why}", self.auth_sock.display()));
        let broken = |e: ssh2::Error| Failure::Unreachable(format!("{address} did not let us in: {e}"));
        let mut agent = session.agent().map_err(broken)?;
        agent.set_identity_path(&self.auth_sock).map_err(broken)?;
        agent.connect().map_err(|e| no_key(&format!("does not answer ({e})")))?;
        agent.list_identities().map_err(|e| no_key(&format!("lists no keys ({e})")))?;
        let mut keys = agent.identities().map_err(broken)?;
        if keys.is_empty() {
            return Err(no_key("has no key"));
        }
        keys.sort_by_key(|key| !key.comment().contains(self.target.key_hint));
        let mut lost = None;
        for key in keys.iter().take(MOST_KEYS) {
            match agent.userauth(user, key) {
                Ok(()) if session.authenticated() => return Ok(()),
                Ok(()) => return Err(Failure::Refused(format!("one key is not enough for sshd on {address}"))),
                Err(error) if matches!(error.code(), ErrorCode::Session(code) if NOT_TAKEN.contains(&code)) => {}
                Err(error) => lost = Some(error),
            }
        }
        Err(lost.map_or_else(|| Failure::Refused(format!("sshd on {address} accepts no key of the ssh-agent for {user}")), broken))
    }
}

fn host_key(session: &ssh2::Session) -> Option<ssh_key::PublicKey> {
    session.host_key().and_then(|(bytes, _)| ssh_key::PublicKey::from_bytes(bytes).ok())
}

/// Whether the peer has closed the connection.
fn is_closed(stream: &TcpStream) -> bool {
    // As libssh2 has it: it waits by itself where it is to wait.
    let _stays_so = stream.set_nonblocking(true);
    let peeked = stream.peek(&mut [0]);
    matches!(&peeked, Ok(0)) || peeked.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock)
}

/// Runs the command on a session of its own; gives the last word.
fn run(session: &ssh2::Session, stream: &TcpStream, job: &Job) -> Said {
    let nothing_ran = |error: ssh2::Error| Said::Failed(Failure::Unreachable(format!("the connection takes no command: {error}")));
    let mut channel = match session.channel_session() {
        Ok(channel) => channel,
        Err(error) => return nothing_ran(error),
    };
    job.sent.store(true, Ordering::SeqCst);
    match channel.exec(&job.command) {
        Ok(()) => {}
        Err(error) if error.code() == ErrorCode::Session(DENIED) => return nothing_ran(error),
        // The command was sent, and whether it was taken is not known.
        Err(error) => return Said::Failed(Failure::Lost(format!("no word came whether the command was taken ({error})"))),
    }
    let _nobody_listens = job.said.blocking_send(Said::Started);
    session.set_blocking(false);
    let (mut block, mut pending, mut asked) = (vec![0; 64 * 1024], Vec::new(), Instant::now());
    loop {
        let mut idle = true;
        for stderr in [false, true] {
            match channel.stream(i32::from(stderr)).read(&mut block) {
                Ok(0) => {}
                Ok(n) => {
                    idle = false;
                    let bytes = block.get(..n).unwrap_or_default().to_vec();
                    if job.said.blocking_send(Said::Output { stderr, bytes }).is_err() {
                        // Nobody listens any more: the command is left to itself.
                        return Said::Failed(Failure::Lost("nobody listened".to_owned()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Said::Failed(Failure::Lost(error.to_string())),
            }
        }
        if idle && channel.eof() {
            return last_word(session, &mut channel);
        }
        match job.input.try_recv() {
            Ok(bytes) => pending.extend(bytes),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        if !pending.is_empty() {
            match channel.write(&pending) {
                Ok(n) => _ = pending.drain(..n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Said::Failed(Failure::Lost(error.to_string())),
            }
        }
        if Instant::now() >= job.until {
            return Said::Failed(Failure::TimedOut);
        }
        if asked.elapsed() >= ALIVE {
            asked = Instant::now();
            let _a_broken_line_shows_at_the_next_read = session.keepalive_send();
        }
        if idle {
            wait(stream);
        }
    }
}

/// Waits for something to read, or a moment.
fn wait(stream: &TcpStream) {
    let moment = Timespec { tv_sec: 0, tv_nsec: i64::try_from(LOOK.as_nanos()).unwrap_or(0) };
    let _interrupted_is_as_good = poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&moment));
}

/// After the end of the output: how it ended. libssh2 gives 0 where no status came, so one is believed only of a channel that was closed.
fn last_word(session: &ssh2::Session, channel: &mut Channel) -> Said {
    let lost = |error: ssh2::Error| Said::Failed(Failure::Lost(format!("how it ended was not told ({error})")));
    session.set_blocking(true);
    session.set_timeout(2000);
    if let Err(error) = channel.wait_close() {
        return lost(error);
    }
    match channel.exit_signal() {
        Ok(signal) if signal.exit_signal.is_some() => Said::Signalled(signal.exit_signal.unwrap_or_default()),
        _ => channel.exit_status().map_or_else(lost, Said::Exited),
    }
}
