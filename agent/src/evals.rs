//! `breakglass evals`: recorded incidents, replayed for whoever is to act in them, and scored by what was done, never by what was said.
//!
//! ```text
//!  agent/evals/*.toml ──case.rs──> World (an impl of Hands) <──acts── Player: the model's ordinary loop, or the runbook
//!                                        │
//!                                        └── what was done ──score.rs──> a line of the table, kept with who played
//! ```

use std::fmt::Write as _;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proto::{Message, Timestamp};
use serde::{Deserialize, Serialize};

pub mod case;
pub mod command;
pub mod score;
#[cfg(test)]
mod tests;
pub mod world;

use case::Case;
use world::World;

/// Who acts in the replays. The same model with another prompt or other tools is another player.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The model's id, or `runbook`.
    pub model: String,
    /// SHA-256 of its system prompt, in hex; empty for the runbook.
    pub prompt_sha256: String,
    /// SHA-256 of its tools' definitions, in hex; empty for the runbook.
    pub tools_sha256: String,
}

/// What it cost to play a case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Requests to the model.
    pub turns: u64,
    /// Tokens, in and out.
    pub tokens: u64,
    /// Dollars.
    pub usd: f64,
    /// Why it did not come to its own end: a budget, a refusal, the network.
    pub stopped: Option<String>,
}

/// What a [`Player::play`] gives.
pub type Playing<'a> = Pin<Box<dyn Future<Output = Spent> + Send + 'a>>;

/// Acts in a world as it would in an incident.
pub trait Player: Send + Sync {
    /// Who it is.
    fn who(&self) -> Who;
    /// Plays a case to its end; the person's words are `says`.
    fn play<'a>(&'a self, says: &'a str, world: Arc<World>) -> Playing<'a>;
}

/// One line of the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// The case.
    pub case: String,
    /// All five questions of the score.
    pub passed: bool,
    /// What was not so.
    pub failed: String,
    /// What it cost.
    pub spent: Spent,
    /// How long it took.
    pub seconds: f64,
}

/// A whole run, as it is kept in `STATE/evals/`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// When it began.
    pub at: Timestamp,
    /// Who played.
    pub who: Who,
    /// The version of this program, whose cases these are.
    pub version: String,
    /// Case by case.
    pub lines: Vec<Line>,
}

/// A case that takes longer has failed.
const LONGEST: Duration = Duration::from_secs(900);

/// Plays these cases one after another; `told` gets each line as it is known.
///
/// # Errors
/// A world that can't be made.
pub async fn run(player: &dyn Player, cases: Vec<Case>, mut told: impl FnMut(&Line)) -> Result<Table, Message> {
    let mut table = Table { at: now(), who: player.who(), version: env!("CARGO_PKG_VERSION").to_owned(), lines: Vec::new() };
    for case in cases {
        let world = World::new(case.clone()).map_err(|why| Message::new(format!("The replay can't be made: {why}."), "Try again."))?;
        let world = Arc::new(world);
        let begun = tokio::time::Instant::now();
        let spent = match tokio::time::timeout(LONGEST, player.play(&case.says, Arc::clone(&world))).await {
            Ok(spent) => spent,
            Err(_) => Spent { stopped: Some(format!("no end within {} s", LONGEST.as_secs())), ..Spent::default() },
        };
        let score = score::score(&case, &world.acts(), &world.state());
        let failed = [score.failed(), spent.stopped.clone().unwrap_or_default()].join(" ").trim().to_owned();
        let passed = score.passed() && spent.stopped.is_none();
        let line = Line { case: case.name, passed, failed, spent, seconds: begun.elapsed().as_secs_f64() };
        told(&line);
        table.lines.push(line);
    }
    Ok(table)
}

impl Line {
    /// The line as it is shown.
    pub fn shown(&self) -> String {
        let spent = &self.spent;
        let verdict = if self.passed { "pass" } else { "FAIL" };
        let line = format!(
            "{verdict} {:<32} {:>5} {:>8} {:>7.3} {:>6.0}  {}",
            self.case, spent.turns, spent.tokens, spent.usd, self.seconds, self.failed
        );
        line.trim_end().to_owned()
    }
}

/// The head of the table.
pub const HEAD: &str = "     case                             turns   tokens     usd      s  failed";

impl Table {
    /// How many passed.
    pub fn passed(&self) -> usize {
        self.lines.iter().filter(|line| line.passed).count()
    }

    /// The last lines: the sums, and who it was.
    pub fn foot(&self) -> String {
        let sum = |of: &dyn Fn(&Line) -> f64| self.lines.iter().map(of).sum::<f64>();
        let mut foot = format!("{} of {} passed", self.passed(), self.lines.len());
        let (usd, seconds) = (sum(&|line| line.spent.usd), sum(&|line| line.seconds));
        let _string = write!(foot, ", {usd:.3} usd, {seconds:.0} s, by {}", self.who.model);
        foot
    }

    /// Keeps it in the state folder.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn keep(&self, state: &Path) -> Result<PathBuf, Message> {
        let folder = state.join("evals");
        let file = folder.join(format!("{}.json", self.at.compact()));
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        let kept = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&file, text));
        kept.map_err(|error| Message::new(format!("The table was not kept in {}: {error}.", file.display()), "Correct state.dir."))?;
        Ok(file)
    }

    /// The newest kept table of this very player: whether it has shown that it deserves the power.
    pub fn newest(state: &Path, who: &Who) -> Option<Self> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(state.join("evals")).ok()?.flatten().map(|entry| entry.path()).collect();
        files.sort();
        let read = |file: &PathBuf| serde_json::from_slice::<Self>(&std::fs::read(file).ok()?).ok();
        files.iter().rev().filter_map(read).find(|table| table.who == *who && table.version == env!("CARGO_PKG_VERSION"))
    }
}

/// The runbook, for comparison: it costs nothing, and what it can't repair a model has to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runbook {
    /// Its patience. In a replay nothing boots.
    pub patience: crate::runbook::Patience,
}

impl Player for Runbook {
    fn who(&self) -> Who {
        Who { model: "runbook".to_owned(), prompt_sha256: String::new(), tools_sha256: String::new() }
    }

    fn play<'a>(&'a self, _says: &'a str, world: Arc<World>) -> Playing<'a> {
        Box::pin(async move {
            crate::runbook::run(&*world, &mut crate::runbook::Nowhere, self.patience, false).await;
            Spent::default()
        })
    }
}

fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
