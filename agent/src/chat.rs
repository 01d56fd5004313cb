//! `breakglass chat`: a conversation in the terminal. It watches the incident as any watcher does; the turn runs beside it.
//!
//! Ctrl-C stops the turn and says what goes on running; a second one leaves. Where no model can be had the runbook does it.

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use proto::Message;
use tokio::sync::mpsc;

mod alone;
mod screen;

use crate::claude::{Autonomy, Mind, Session, Turned, verdict};
use crate::config::Config;
use crate::hands::Hands;
use crate::incident::{By, Decision, Incident, IncidentId, Store};
pub use alone::alone;
use alone::without_a_model;
use screen::Screen;

/// `chat`.
#[derive(Debug, Args)]
pub struct Chat {
    /// Take up this incident instead of opening one
    #[arg(long, value_name = "UUID")]
    pub incident: Option<IncidentId>,
    /// What is wrong, in a sentence; absent: a conversation, ended with Ctrl-D
    pub text: Option<String>,
}

/// What the one who talks hears from the turns.
enum Heard {
    /// A turn ended.
    Turned(Turned),
    /// The runbook ended.
    Ran(bool, Message),
}

/// What the turns are asked.
enum Ask {
    /// A person's words.
    Prompt(String),
    /// Go on with what a restart cut off.
    Resume,
    /// The incident without a model.
    Runbook,
}

/// Talks; whether the incident ended healthy.
///
/// # Errors
/// It could not begin: nothing was asked.
pub fn chat(args: &Chat, config: &Config) -> Result<bool, Message> {
    let fault = |error: io::Error| Message::new(format!("The conversation could not begin: {error}."), "Try again.");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(fault)?;
    let talked = runtime.block_on(async {
        let hands: Arc<dyn Hands> = Arc::new(crate::host::Ssh::open(config)?);
        let store = Store::open(&config.state.dir, config.state.keep_bytes, false)?;
        let mind = Mind::new(&config.claude, config.budget, &store, &hands)?;
        let incident = match &args.incident {
            Some(id) => {
                let incident = store.resume(id)?;
                replay(&store, id, io::stdout())?;
                incident
            }
            None => store.create(args.text.as_deref().unwrap_or("a conversation"), By::Human, None)?,
        };
        if let Some(said) = crate::claude::unproven(mind.as_ref(), &config.state.dir) {
            let _nobody_reads = writeln!(io::stdout(), "{said}");
        }
        Talk::new(mind, hands, incident, args.text.clone(), args.incident.is_some()).run().await
    });
    // A reader of standard input can't be stopped, and needn't be waited for.
    runtime.shutdown_background();
    talked
}

/// Shows an incident as far as it is, as the terminal does.
///
/// # Errors
/// There is no such incident, or it can't be read.
pub fn replay(store: &Store, id: &IncidentId, out: impl Write) -> Result<(), Message> {
    let mut screen = Screen::new(out, false);
    store.lines(id, 1, |line, _| screen.what(&line.what))
}

/// A conversation.
struct Talk {
    mind: Option<Arc<Mind>>,
    hands: Arc<dyn Hands>,
    incident: Arc<Incident>,
    text: Option<String>,
    resumes: bool,
    /// Whether somebody can be asked.
    person: bool,
    busy: bool,
    /// What is said after a restart's turn was gone on with.
    next: Option<String>,
    /// The runbook's verdict is its own.
    judged: Option<(bool, Message)>,
    /// A person is asked whether the runbook may.
    offered: bool,
    interrupts: u32,
}

impl Talk {
    fn new(mind: Option<Arc<Mind>>, hands: Arc<dyn Hands>, incident: Arc<Incident>, text: Option<String>, resumes: bool) -> Self {
        let person = io::stdin().is_terminal() || text.is_none() && !resumes;
        let next = text.clone().filter(|_| resumes);
        Self { mind, hands, incident, text, resumes, person, busy: false, next, judged: None, offered: false, interrupts: 0 }
    }

    async fn run(mut self) -> Result<bool, Message> {
        let mut screen = Screen::new(io::stdout(), io::stdout().is_terminal());
        let (ask, asked) = mpsc::channel(4);
        let (tell, mut heard) = mpsc::channel(4);
        tokio::spawn(turns(self.mind.clone(), Arc::clone(&self.hands), Arc::clone(&self.incident), asked, tell));
        let mut typed = if self.person { typed() } else { mpsc::channel(1).1 };
        let mut watcher = self.incident.watch(self.incident.facts().lines);
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        if self.mind.is_none() {
            screen.line("There is no API key: the runbook does it, without a model.");
        }
        if self.resumes {
            self.busy = ask.send(Ask::Resume).await.is_ok();
        } else if let Some(text) = self.text.clone() {
            self.busy = ask.send(Ask::Prompt(text)).await.is_ok();
        }
        let mut open = self.person;
        loop {
            tokio::select! {
                biased;
                seen = watcher.next() => {
                    screen.seen(&seen);
                    self.nobody_decides();
                }
                Some(heard) = heard.recv() => {
                    self.busy = false;
                    let over = self.heard(heard, &ask, &mut screen).await;
                    if let Some(text) = self.next.take_if(|_| over) {
                        self.busy = ask.send(Ask::Prompt(text)).await.is_ok();
                    } else if over && (self.text.is_some() || !self.person) {
                        break;
                    }
                }
                _ = tokio::signal::ctrl_c() => {
                    self.interrupts += 1;
                    if !self.busy || self.interrupts > 1 {
                        break;
                    }
                    self.incident.cancel();
                }
                line = typed.recv(), if open => match line {
                    Some(line) => self.typed(line, &ask, &mut screen).await,
                    // Ctrl-D ends the conversation; a sentence that was given goes on to its end.
                    None if self.text.is_none() && !self.busy => break,
                    None => open = false,
                },
                _ = tick.tick() => {
                    screen.tick();
                    if !open && !self.busy && self.person {
                        break;
                    }
                }
            }
        }
        drop(ask);
        self.end(&mut screen, watcher).await
    }

    /// Where nobody can be asked, nobody allows it.
    fn nobody_decides(&self) {
        if !self.person {
            self.incident.deny_all("nobody at the terminal");
        }
    }

    /// What a turn came to; whether nothing more follows by itself.
    async fn heard(&mut self, heard: Heard, ask: &mpsc::Sender<Ask>, screen: &mut Screen<io::Stdout>) -> bool {
        match heard {
            Heard::Ran(healthy, said) => {
                self.judged = Some((healthy, said));
                // The next Ctrl-C stops the next turn, and does not leave.
                self.interrupts = 0;
                true
            }
            Heard::Turned(Turned::Unavailable(said)) => {
                if self.mind.as_ref().is_none_or(|mind| mind.autonomy() == Autonomy::Full) {
                    screen.line("The runbook goes on.");
                    self.busy = ask.send(Ask::Runbook).await.is_ok();
                    return false;
                }
                if self.person {
                    self.offered = true;
                    screen.line("Run the runbook now? It may reset or cycle the VM. [y/N]");
                    return false;
                }
                screen.line(&crate::shown::lines(&said.next));
                true
            }
            Heard::Turned(Turned::Cancelled(_)) => {
                self.judged = Some((false, Message::new("The turn was stopped.", "Look with status.")));
                self.interrupts = 0;
                true
            }
            Heard::Turned(_) => {
                self.judged = None;
                true
            }
        }
    }

    /// A line that somebody typed: a decision where one is asked for, otherwise words.
    async fn typed(&mut self, line: String, ask: &mpsc::Sender<Ask>, screen: &mut Screen<io::Stdout>) {
        let yes = matches!(line.trim(), "y" | "Y" | "yes");
        if let Some(call) = self.incident.facts().awaiting.into_keys().next() {
            self.incident.decide(&call, Decision { allowed: yes, actor: Some("terminal".to_owned()) });
        } else if std::mem::take(&mut self.offered) {
            if yes {
                self.busy = ask.send(Ask::Runbook).await.is_ok();
            } else {
                screen.line("Not run. The six verbs are there: breakglass verb.");
            }
        } else if self.busy {
            screen.line("Claude is at work; Ctrl-C stops it.");
        } else if !line.trim().is_empty() {
            self.busy = ask.send(Ask::Prompt(line)).await.is_ok();
        }
    }

    /// The verdict, and the folder last.
    async fn end(self, screen: &mut Screen<io::Stdout>, mut watcher: crate::incident::Watcher) -> Result<bool, Message> {
        let task = self.incident.task();
        let left = self.busy || self.interrupts > 0;
        let (healthy, said) = match self.judged {
            _ if left => {
                let running = self.incident.facts().running_said();
                (
                    false,
                    Message::new(
                        format!("You left. {running}"),
                        format!("Come back with: breakglass chat --incident {}.", self.incident.id()),
                    ),
                )
            }
            Some(judged) => judged,
            None => {
                let mut looking = Box::pin(verdict(&self.hands, &self.incident, task));
                loop {
                    tokio::select! {
                        seen = watcher.next() => screen.seen(&seen),
                        judged = &mut looking => break judged,
                    }
                }
            }
        };
        while let Some(seen) = watcher.ready() {
            screen.seen(&seen);
        }
        if !left {
            self.incident.end(task, healthy, &said);
        }
        let word = if healthy { "healthy" } else { "NOT healthy" };
        screen.verdict(&said);
        screen.line(&format!("{word}\n{}", self.incident.folder().display()));
        let _nobody_reads = io::stdout().flush();
        Ok(healthy)
    }
}

/// The lines that somebody types, from a thread that nobody waits for.
fn typed() -> mpsc::Receiver<String> {
    let (tell, typed) = mpsc::channel(4);
    let _without_one_nobody_types = std::thread::Builder::new().name("typed".to_owned()).spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if tell.blocking_send(line).is_err() {
                return;
            }
        }
    });
    typed
}

/// Turn after turn, as they are asked for.
async fn turns(
    mind: Option<Arc<Mind>>,
    hands: Arc<dyn Hands>,
    incident: Arc<Incident>,
    mut asked: mpsc::Receiver<Ask>,
    tell: mpsc::Sender<Heard>,
) {
    let mut session = None;
    while let Some(ask) = asked.recv().await {
        if matches!(ask, Ask::Resume)
            && let Some(why) = incident.catch_up(&hands, incident.task(), mind.is_none()).await
        {
            if tell.send(Heard::Ran(false, why)).await.is_err() {
                return;
            }
            continue;
        }
        let heard = match (&mind, ask) {
            (Some(mind), ask @ (Ask::Prompt(_) | Ask::Resume)) => {
                let opened = match session.take() {
                    Some(open) => Ok(open),
                    None => Session::open(mind, &incident),
                };
                match opened {
                    Err(why) => Heard::Turned(Turned::Unavailable(why)),
                    Ok(mut open) => {
                        let turned = match ask {
                            Ask::Prompt(text) => open.prompt(&text, None).await,
                            _ => open.resume().await.unwrap_or(Turned::Said),
                        };
                        session = Some(open);
                        Heard::Turned(turned)
                    }
                }
            }
            (_, Ask::Runbook | Ask::Prompt(_) | Ask::Resume) => {
                let (healthy, said) = without_a_model(&hands, &incident, false).await;
                Heard::Ran(healthy, said)
            }
        };
        if tell.send(heard).await.is_err() {
            return;
        }
    }
}
