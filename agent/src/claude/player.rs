//! The configured model as a player of recorded incidents: its ordinary loop, with a world for hands.

use std::path::PathBuf;
use std::sync::Arc;

use proto::Message;

use super::{Autonomy, Budget, Mind, Session, Settings, Turned, fingerprints};
use crate::evals::world::World;
use crate::evals::{Player, Playing, Spent, Who};
use crate::hands::Hands;
use crate::incident::{By, Store, fresh_id};

/// The model that the configuration names. No other: a score is about one.
pub struct Model {
    settings: Settings,
    budget: Budget,
    folder: PathBuf,
}

impl Model {
    /// The player; its incidents are in a folder of their own below the state folder, and gone after each case.
    ///
    /// # Errors
    /// There is no credential.
    pub fn new(settings: &Settings, budget: Budget, state: &std::path::Path) -> Result<Self, Message> {
        if settings.credential()?.is_none() {
            return Err(Message::new(
                "There is no API key, so there is no model to play.",
                "Give one, or let the runbook play: --runbook.",
            ));
        }
        // Alone, and without a person: what it would do by itself is the question.
        let settings = Settings { fallback_model: String::new(), autonomy: Autonomy::Full, ..settings.clone() };
        Ok(Self { settings, budget, folder: state.join("evals").join("playing") })
    }

    async fn played(&self, says: &str, world: Arc<World>) -> Result<Spent, Message> {
        let folder = self.folder.join(fresh_id()?.as_str());
        // A store of its own: simulated mutations don't count among the hour's real ones.
        let store = Store::open(&folder, u64::MAX, false)?;
        let hands: Arc<dyn Hands> = world;
        let played = async {
            let mind = Mind::made(&self.settings, self.budget, &store, &hands, false)?;
            let mind = mind.ok_or_else(|| Message::new("The API key is gone.", "Give it again."))?;
            let incident = store.create("a replay", By::Agent, None)?;
            let turned = Session::open(&mind, &incident)?.prompt(says, None).await;
            let spent = incident.facts().spent;
            let stopped = match turned {
                Turned::Said => None,
                Turned::Stopped(said) | Turned::Cancelled(said) | Turned::Unavailable(said) => Some(said.what),
            };
            Ok(Spent { turns: spent.turns, tokens: spent.tokens, usd: spent.usd, stopped })
        }
        .await;
        drop(store);
        let _what_is_left_is_small = std::fs::remove_dir_all(&folder);
        played
    }
}

impl Player for Model {
    fn who(&self) -> Who {
        let (prompt_sha256, tools_sha256) = fingerprints();
        Who { model: self.settings.model.clone(), prompt_sha256, tools_sha256 }
    }

    fn play<'a>(&'a self, says: &'a str, world: Arc<World>) -> Playing<'a> {
        Box::pin(async move {
            self.played(says, world).await.unwrap_or_else(|why| Spent { stopped: Some(why.to_string()), ..Spent::default() })
        })
    }
}
