//! The agent's calls as `tests/bench` times them, in a process that stays: lines on stdin say what to do, lines on stdout how many
//! microseconds it took, or `error …`.
//!
//! ```text
//! status          a verb through the agent's hands, on its warm session: receipt checked and kept
//! command WORD    a command on a warm session of the key behind the socket that is this program's argument, and nothing else
//! incidents       opens the store and lists all of it
//! open            opens an incident and ends it
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr)] // it talks to the benchmark

use std::io::BufRead;
use std::path::Path;
use std::time::{Duration, Instant};

use agent::config::{self, Config};
use agent::hands::{Hands, VerbAsk};
use agent::host::Ssh;
use agent::incident::{By, Store};
use agent::ssh::{Said, Target, Wire};
use proto::{Message, Origin, Outcome, Verb};
use tokio::sync::mpsc;

/// What is measured with.
struct Warm {
    config: Config,
    hands: Ssh,
    wire: Wire,
    other: Target,
}

type Took = Result<Duration, String>;

fn words(message: Message) -> String {
    format!("{} {}", message.what, message.next)
}

impl Warm {
    fn open() -> Result<Self, String> {
        let config = Config::load(Path::new(config::DEFAULT)).map_err(words)?;
        let host = config.host.as_ref().ok_or("the configuration has no [host]")?;
        let other = Target { address: host.address, user: host.user.clone(), host_key: host.host_key.clone(), key_hint: "" };
        let socket = std::env::args().nth(1).ok_or("the argument is an ssh-agent's socket")?;
        let (hands, wire) = (Ssh::open(&config).map_err(words)?, Wire::new(socket.into()));
        hands.warm();
        wire.warm(&other);
        Ok(Self { config, hands, wire, other })
    }

    async fn status(&self) -> Took {
        let (tell, mut news) = mpsc::channel(256);
        let request_id = agent::verb::fresh_id().map_err(words)?;
        let ask = VerbAsk {
            verb: Verb::Status,
            request_id,
            origin: Origin::Human,
            actor: None,
            reason: None,
            dry_run: false,
            attach: false,
            grant: None,
        };
        let began = Instant::now();
        let (end, ()) = tokio::join!(self.hands.verb(ask, tell), async { while news.recv().await.is_some() {} });
        let took = began.elapsed();
        match end.checked {
            Ok(proved) if proved.body().outcome == Outcome::Done => Ok(took),
            _ => Err(words(end.said)),
        }
    }

    async fn command(&self, command: &str) -> Took {
        let began = Instant::now();
        let mut call = self.wire.call(&self.other, command.to_owned(), began + Duration::from_secs(30), true);
        let mut last = None;
        while let Some(said) = call.next().await {
            if said == Said::Started {
                self.wire.warm(&self.other);
            }
            last = Some(said);
        }
        match last {
            Some(Said::Exited(0)) => Ok(began.elapsed()),
            other => Err(format!("{other:?}")),
        }
    }

    fn store(&self) -> Result<std::sync::Arc<Store>, String> {
        Store::open(&self.config.state.dir, self.config.state.keep_bytes, false).map_err(words)
    }

    fn incidents(&self) -> Took {
        let began = Instant::now();
        let store = self.store()?;
        let all = store.list();
        let took = began.elapsed();
        if all.iter().any(|one| one.damaged.is_some()) { Err("an incident is damaged".to_owned()) } else { Ok(took) }
    }

    fn open_one(&self) -> Took {
        let store = self.store()?;
        let began = Instant::now();
        let incident = store.create("a benchmark", By::Watch, None).map_err(words)?;
        let took = began.elapsed();
        incident.end(incident.task(), true, &Message::new("It was made to be timed.", "Nothing."));
        Ok(took)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let warm = match Warm::open() {
        Ok(warm) => warm,
        Err(why) => return println!("error {why}"),
    };
    println!("ready");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let took = match line.split_once(' ') {
            Some(("command", command)) => warm.command(command).await,
            None if line == "status" => warm.status().await,
            None if line == "incidents" => warm.incidents(),
            None if line == "open" => warm.open_one(),
            _ => Err(format!("`{line}` is nothing to do")),
        };
        match took {
            Ok(took) => println!("{}", took.as_micros()),
            Err(why) => println!("error {why}"),
        }
    }
}
