//! The tokens of forms: each for one person, one purpose and the state of the VM that the person saw; spent by one use.
//!
//! They live in memory: after a restart every form that is still open somewhere is stale, and its next use shows the state anew.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64ct::{Base64UrlUnpadded, Encoding};

/// A form that stays open for longer asks again.
const LIFE: Duration = Duration::from_secs(600);
/// How many forms may be open at once; beyond, the oldest is stale.
const MOST: usize = 2000;

/// 256 random bits, for URLs and cookies.
pub fn random() -> String {
    let mut bytes = [0; 32];
    let mut at = 0;
    while at < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[at..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => at += n,
            Err(rustix::io::Errno::INTR) => {}
            // Without randomness nothing here is safe, and the kernel has had it since it booted.
            Err(_) => std::process::abort(),
        }
    }
    Base64UrlUnpadded::encode_string(&bytes)
}

/// What a form is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Who was shown it.
    pub who: String,
    /// What it does: `cycle`, `chat`, …
    pub purpose: String,
    /// The state that was shown, where it matters: a change makes the form stale.
    pub state: Option<String>,
}

/// Why a token is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// Unknown, spent, or too old: whichever, the form has to be shown again.
    Gone,
    /// Somebody else's, or another form's. It is spent by the try.
    Other,
    /// The state is another by now.
    Changed,
}

impl Stale {
    /// What the person is told, beside the form anew.
    pub const fn said(self) -> &'static str {
        match self {
            Self::Changed => "What the VM looks like has changed since you were asked. Nothing was done: look, and confirm again.",
            Self::Gone | Self::Other => "This question was answered already, or is too old. Nothing was done now: look, and confirm again.",
        }
    }
}

/// The open forms.
#[derive(Debug, Default)]
pub struct Tokens {
    open: Mutex<HashMap<String, (About, Instant)>>,
}

impl Tokens {
    /// A token for a form. Who is shown the same question again gets the same token: a page that is loaded a thousand times is one form,
    /// and of two devices that both answer it, one does.
    pub fn issue(&self, about: About) -> String {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((token, _)) = open.iter().find(|(_, (known, made))| *known == about && now.duration_since(*made) < LIFE / 2) {
            return token.clone();
        }
        let token = random();
        if open.len() >= MOST {
            open.retain(|_, (_, made)| now.duration_since(*made) < LIFE);
        }
        if open.len() >= MOST
            && let Some(oldest) = open.iter().min_by_key(|(_, (_, made))| *made).map(|(token, _)| token.clone())
        {
            open.remove(&oldest);
        }
        open.insert(token.clone(), (about, now));
        token
    }

    /// Spends it, whatever comes of it.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn spend(&self, token: &str, about: &About) -> Result<(), Stale> {
        let (issued, made) = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(token).ok_or(Stale::Gone)?;
        if made.elapsed() >= LIFE {
            return Err(Stale::Gone);
        }
        if issued.who != about.who || issued.purpose != about.purpose {
            return Err(Stale::Other);
        }
        if issued.state != about.state { Err(Stale::Changed) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(who: &str, purpose: &str, state: &str) -> About {
        About { who: who.to_owned(), purpose: purpose.to_owned(), state: Some(state.to_owned()) }
    }

    #[test]
    fn a_token_counts_once_for_its_person_its_purpose_and_its_state() {
        let tokens = Tokens::default();
        let seen = about("anna", "cycle", "running");
        let token = tokens.issue(seen.clone());
        assert_eq!(tokens.spend(&token, &seen), Ok(()));
        assert_eq!(tokens.spend(&token, &seen), Err(Stale::Gone));
        assert_eq!(tokens.spend("", &seen), Err(Stale::Gone));
        for (other, why) in [
            (about("bert", "cycle", "running"), Stale::Other),
            (about("anna", "stop", "running"), Stale::Other),
            (about("anna", "cycle", "stopped"), Stale::Changed),
        ] {
            let token = tokens.issue(seen.clone());
            assert_eq!(tokens.spend(&token, &other), Err(why));
            assert_eq!(tokens.spend(&token, &seen), Err(Stale::Gone), "a try spends it");
        }
    }

    #[test]
    fn open_forms_are_bounded_and_the_newest_count() {
        let tokens = Tokens::default();
        let state = |n: usize| about("anna", "cycle", &n.to_string());
        let all: Vec<String> = (0..MOST + 10).map(|n| tokens.issue(state(n))).collect();
        assert_eq!(tokens.open.lock().unwrap().len(), MOST);
        assert_eq!(tokens.spend(all.last().unwrap(), &state(MOST + 9)), Ok(()));
        assert_eq!(tokens.spend(&all[0], &state(0)), Err(Stale::Gone));
    }

    #[test]
    fn the_same_question_is_one_form_however_often_it_is_shown() {
        let tokens = Tokens::default();
        let asked = about("anna", "cycle", "running");
        let (phone, laptop) = (tokens.issue(asked.clone()), tokens.issue(asked.clone()));
        assert_eq!((phone == laptop, tokens.spend(&phone, &asked)), (true, Ok(())));
        assert_eq!(tokens.spend(&laptop, &asked), Err(Stale::Gone), "two devices, one cycle");
        assert_ne!(tokens.issue(asked.clone()), phone, "a spent one is not given again");
        assert_ne!(tokens.issue(about("bert", "cycle", "running")), tokens.issue(asked));
    }
}
