//! Commands over SSH by libssh2, whose calls block: each session lives on a thread of its own and is never joined.
//!
//! A session that hangs is abandoned: its caller stops waiting, its TCP stream is shut down, so whatever the thread waits for fails, and
//! the thread ends when the kernel lets it. One command a session, because a session has one mutex. Host keys are pinned; keys come from an ssh-agent's
//! socket and no other place. A spare session to the host is kept ready, so that a verb costs a channel and no handshake.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::mpsc as news;

mod talk;

/// Sessions that hang may pile up to this; beyond, a call is refused instead.
const MOST_THREADS: usize = 64;
/// Connecting, the handshake and the login together, for the caller: libssh2 bounds its own steps, and nobody bounds an ssh-agent.
const LOGIN: Duration = Duration::from_secs(30);
/// A session's thread knows its deadline and says so itself; one that has not by then hangs.
const LATE: Duration = Duration::from_secs(3);
/// Blocks of output that wait for a slow reader; then the thread waits, and the peer with it.
const WAITING: usize = 64;

/// Where to, as whom, and which key has to be shown.
#[derive(Clone, Debug)]
pub struct Target {
    /// The sshd.
    pub address: SocketAddr,
    /// The account.
    pub user: String,
    /// The pinned host key.
    pub host_key: ssh_key::PublicKey,
    /// A word in the comment of the agent's key that is to be tried first: `verbs` or `devvm`.
    pub key_hint: &'static str,
}

/// Why a command did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing ran: no connection, no login, no channel.
    Unreachable(String),
    /// Nothing ran: sshd takes none of the keys. To ask it again is no use, and feeds its penalties.
    Refused(String),
    /// Nothing ran: the ssh-agent gives no key.
    NoKey(String),
    /// Nothing ran: another host key than the pinned one; both fingerprints.
    HostKey {
        /// The pinned one's.
        pinned: String,
        /// The shown one's.
        shown: String,
    },
    /// The connection was lost while it ran.
    Lost(String),
    /// Its time was over.
    TimedOut,
}

/// What a running command says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It was started.
    Started,
    /// Output.
    Output {
        /// On standard error.
        stderr: bool,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// It ended with this status. libssh2 says 0 where none came: never a proof of anything on the host.
    Exited(i32),
    /// A signal ended it.
    Signalled(String),
    /// It did not come to its end.
    Failed(Failure),
}

/// What a session's thread is to do.
struct Job {
    command: String,
    until: Instant,
    said: news::Sender<Said>,
    input: mpsc::Receiver<Vec<u8>>,
    /// Set before the command goes out.
    sent: Arc<AtomicBool>,
}

/// The stream of a session, to be shut down from outside: also one that is only made after that.
type Plug = Arc<Mutex<Plugged>>;

#[derive(Debug, Default)]
struct Plugged {
    stream: Option<TcpStream>,
    pulled: bool,
}

fn pull(plug: &Plug) {
    let mut plugged = plug.lock().unwrap_or_else(PoisonError::into_inner);
    plugged.pulled = true;
    if let Some(stream) = plugged.stream.take() {
        let _closed_already = stream.shutdown(Shutdown::Both);
    }
}

/// A running command. Dropping it abandons its session; what it started over there may go on.
#[derive(Debug)]
pub struct Call {
    said: news::Receiver<Said>,
    input: mpsc::Sender<Vec<u8>>,
    plug: Plug,
    sent: Arc<AtomicBool>,
    /// When its thread has to have said something else: that it started, then that it ended.
    limit: Instant,
    until: Instant,
    over: bool,
}

impl Call {
    fn new(said: news::Receiver<Said>, input: mpsc::Sender<Vec<u8>>, sent: Arc<AtomicBool>, plug: Plug, until: Instant) -> Self {
        let limit = until.min(Instant::now() + LOGIN) + LATE;
        Self { said, input, plug, sent, limit, until, over: false }
    }

    /// What it says next; none after its last word, which comes at its deadline at the latest, whatever its thread does.
    pub async fn next(&mut self) -> Option<Said> {
        if self.over {
            return None;
        }
        let said = match tokio::time::timeout_at(self.limit.into(), self.said.recv()).await {
            Ok(said) => said.unwrap_or_else(|| Said::Failed(Failure::Lost("its session ended without a word".to_owned()))),
            Err(_) => {
                // First: what was not on its way by now can't get out any more.
                pull(&self.plug);
                Said::Failed(if !self.sent.load(Ordering::SeqCst) {
                    Failure::Unreachable("there was no login in time".to_owned())
                } else if Instant::now() >= self.until {
                    Failure::TimedOut
                } else {
                    Failure::Lost("its session hangs".to_owned())
                })
            }
        };
        match said {
            Said::Started => self.limit = self.until + LATE,
            Said::Output { .. } => {}
            Said::Exited(_) | Said::Signalled(_) | Said::Failed(_) => self.over = true,
        }
        Some(said)
    }

    /// Sends bytes to its standard input. To one that has ended that is nothing.
    pub fn input(&self, bytes: Vec<u8>) {
        let _ended = self.input.send(bytes);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        pull(&self.plug);
    }
}

/// A session whose thread waits for its command.
struct Spare {
    jobs: mpsc::Sender<Job>,
    plug: Plug,
}

impl Drop for Wire {
    /// With its sender gone the spare's thread ends by itself; pulling the plug is for one that hangs.
    fn drop(&mut self) {
        if let Some(spare) = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take() {
            pull(&spare.plug);
        }
    }
}

/// The way to SSH.
pub struct Wire {
    auth_sock: PathBuf,
    threads: Arc<AtomicUsize>,
    spare: Mutex<Option<Spare>>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("auth_sock", &self.auth_sock).finish_non_exhaustive()
    }
}

impl Wire {
    /// With the keys behind this socket.
    pub fn new(auth_sock: PathBuf) -> Self {
        Self { auth_sock, threads: Arc::default(), spare: Mutex::default() }
    }

    /// How many sessions there are, those that hang among them.
    pub fn sessions(&self) -> usize {
        self.threads.load(Ordering::Relaxed)
    }

    /// Keeps a session to this target ready.
    pub fn warm(&self, target: &Target) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.is_none() {
            *spare = self.session(target).ok();
        }
    }

    /// Runs a command, at most until then; on the spare session where there is one that is `warm`.
    pub fn call(&self, target: &Target, command: String, until: Instant, warm: bool) -> Call {
        let (tell, said) = news::channel(WAITING);
        let (input, inputs) = mpsc::channel();
        let sent = Arc::<AtomicBool>::default();
        let mut job = Job { command, until, said: tell, input: inputs, sent: Arc::clone(&sent) };
        if warm {
            let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(Spare { jobs, plug }) = spare {
                match jobs.send(job) {
                    Ok(()) => return Call::new(said, input, sent, plug, until),
                    // It has died since; its job comes back.
                    Err(back) => job = back.0,
                }
            }
        }
        match self.session(target) {
            Ok(Spare { jobs, plug }) => {
                let _a_thread_that_ended_says_so_itself = jobs.send(job);
                Call::new(said, input, sent, plug, until)
            }
            Err(why) => {
                let _there_is_room = job.said.try_send(Said::Failed(Failure::Unreachable(why)));
                Call::new(said, input, sent, Plug::default(), until)
            }
        }
    }

    /// The host key that this address shows now. Nothing is sent to it.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn shown(&self, target: &Target) -> Result<ssh_key::PublicKey, String> {
        let (tell, hear) = tokio::sync::oneshot::channel();
        let plug = Plug::default();
        let session = talk::Session { target: target.clone(), auth_sock: self.auth_sock.clone(), plug: Arc::clone(&plug) };
        let started = std::thread::Builder::new().name("ssh".to_owned()).spawn(move || {
            let _nobody_waits = tell.send(session.shown());
        });
        started.map_err(|error| format!("no thread could be started: {error}"))?;
        let heard = tokio::time::timeout(LOGIN, hear).await;
        pull(&plug);
        heard.map_err(|_| "it did not answer in time".to_owned())?.map_err(|_| "it did not answer".to_owned())?
    }

    /// A new session's thread, which logs in at once and then waits for its command.
    fn session(&self, target: &Target) -> Result<Spare, String> {
        if self.threads.fetch_add(1, Ordering::Relaxed) >= MOST_THREADS {
            self.threads.fetch_sub(1, Ordering::Relaxed);
            return Err(format!("{MOST_THREADS} SSH sessions hang already"));
        }
        let (jobs, todo) = mpsc::channel();
        let plug = Plug::default();
        let session = talk::Session { target: target.clone(), auth_sock: self.auth_sock.clone(), plug: Arc::clone(&plug) };
        let threads = Arc::clone(&self.threads);
        let started = std::thread::Builder::new().name("ssh".to_owned()).spawn(move || {
            session.serve(&todo);
            threads.fetch_sub(1, Ordering::Relaxed);
        });
        match started {
            Ok(_never_joined) => Ok(Spare { jobs, plug }),
            Err(error) => {
                self.threads.fetch_sub(1, Ordering::Relaxed);
                Err(format!("no thread could be started: {error}"))
            }
        }
    }
}
