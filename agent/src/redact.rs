//! Takes secrets out of text before anything is sent, logged or shown: what went into the history once can't be taken out again.
//!
//! It knows shapes, not meanings: key blocks, tokens with a known beginning, values after words such as `password=`. It is a net under
//! the tightrope, not the rope: what a model may read on the devvm is decided by who lets it run there.

use std::borrow::Cow;

/// What stands for a secret.
const GONE: &str = "[redacted]";

/// Beginnings of tokens, and how many of a token's characters have to follow.
const TOKENS: [(&str, usize); 14] = [
    ("sk-ant-", 16),
    ("sk-", 20),
    ("ghp_", 20),
    ("gho_", 20),
    ("ghs_", 20),
    ("github_pat_", 20),
    ("glpat-", 16),
    ("xoxb-", 16),
    ("xoxp-", 16),
    ("hvs.", 16),
    ("hvb.", 16),
    ("AKIA", 16),
    ("ASIA", 16),
    ("eyJ", 40),
];

/// Words whose value is a secret.
const NAMES: [&str; 9] = ["password", "passwd", "secret", "token", "api_key", "apikey", "api-key", "private_key", "bearer"];

const BEGIN: &str = "-----BEGIN ";
const KEY: &str = "PRIVATE KEY-----";
const END: &str = "-----END ";

/// The text without what looks like a secret.
pub fn redact(text: &str) -> Cow<'_, str> {
    let blocks = key_blocks(text);
    let mut out = String::new();
    let mut kept = 0;
    let mut at = 0;
    let source: &str = &blocks;
    let mut word = Word::default();
    while at < source.len() {
        let Some(length) = secret_at(source, at, &mut word) else {
            at += source[at..].chars().next().map_or(1, char::len_utf8);
            continue;
        };
        out.push_str(&source[kept..at]);
        out.push_str(GONE);
        at += length;
        kept = at;
    }
    if kept == 0 {
        return blocks;
    }
    out.push_str(&source[kept..]);
    Cow::Owned(out)
}

/// Without private keys, whole or cut off at either end.
fn key_blocks(text: &str) -> Cow<'_, str> {
    if !text.contains(KEY) {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    let mut rest = text;
    loop {
        let begin = rest.match_indices(BEGIN).find(|(at, _)| is_key(&rest[at + BEGIN.len()..]));
        let Some((at, _)) = begin else { break };
        out.push_str(&rest[..at]);
        out.push_str("[redacted: a private key]");
        let block = &rest[at..];
        let end = block.find(END).and_then(|end| Some(end + block[end..].find(KEY)? + KEY.len()));
        rest = &block[end.unwrap_or(block.len())..];
    }
    // An end without its beginning: what stands before it is the key, as far back as it looks like one.
    if let Some(end) = rest.find(END).filter(|end| is_key(&rest[end + END.len()..])) {
        let start = rest[..end]
            .rfind(|c: char| !(is_token(c) || c.is_ascii_whitespace() || c == '\\'))
            .map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
        out.push_str(&rest[..start]);
        out.push_str("[redacted: a private key]");
        rest = rest[end..].find(KEY).map_or("", |key| &rest[end + key + KEY.len()..]);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Whether a key's name and mark stand here. No name is long: a line that is, is not looked through from each of its places.
fn is_key(after: &str) -> bool {
    let line = &after[..after.floor_char_boundary(80)];
    line.lines().next().is_some_and(|line| line.contains(KEY))
}

/// How much of this can be shown while more is still to come: up to the end of its last line, and to the beginning of a key block that has
/// not ended. What is cut within a secret can't be told from other text.
pub(crate) fn settled(text: &[u8]) -> usize {
    let end = text.iter().rposition(|b| matches!(b, b'\n' | b'\r')).map_or(0, |at| at + 1);
    let find = |from: usize, what: &str| text[from..end].windows(what.len()).rposition(|some| some == what.as_bytes()).map(|at| from + at);
    match find(0, BEGIN) {
        Some(begin) if find(begin, END).is_none() && is_key(&String::from_utf8_lossy(&text[begin + BEGIN.len()..end])) => begin,
        _ => end,
    }
}

const fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '/' | '=' | '~')
}

/// The word of token characters that a place is in: found once for each, as looking for its end from each of its places would take the
/// square of its length.
#[derive(Default)]
struct Word {
    end: usize,
    /// Behind its last digit.
    digit: usize,
}

impl Word {
    fn is_at(&mut self, text: &str, at: usize) -> &Self {
        if at >= self.end {
            let length: usize = text[at..].chars().take_while(|c| is_token(*c)).map(char::len_utf8).sum();
            self.end = at + length;
            self.digit = text[at..self.end].bytes().rposition(|b| b.is_ascii_digit()).map_or(0, |digit| at + digit + 1);
        }
        self
    }
}

/// The length of the secret that begins here.
fn secret_at(text: &str, at: usize, word: &mut Word) -> Option<usize> {
    let (before, rest) = text.split_at(at);
    let starts_word = !before.chars().next_back().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    if starts_word {
        for (begin, least) in TOKENS {
            if rest.starts_with(begin) {
                let word = word.is_at(text, at);
                // A word that merely begins alike has no digit, or is short.
                if word.end >= at + begin.len() + least && word.digit > at {
                    return Some(word.end - at);
                }
            }
        }
    }
    // The value after a name: the name and its sign were passed over already.
    value_at(before, rest)
}

/// The value that begins here, where the text before ends in `NAME=`, `NAME: ` or `Bearer `.
fn value_at(before: &str, rest: &str) -> Option<usize> {
    if !rest.starts_with(|c: char| is_token(c) || c.is_ascii_punctuation()) || rest.starts_with(['"', '\'', ' ', '=', ':', '[']) {
        return None;
    }
    if !before.ends_with(['"', '\'', ' ', '=', ':']) {
        return None;
    }
    let name = before.trim_end_matches(['"', '\'', ' ']);
    let signed = name.strip_suffix(['=', ':']);
    let word = signed.unwrap_or(name).trim_end_matches(['"', '\'', ' ']);
    let tail: String = word.chars().rev().take(12).collect::<Vec<_>>().into_iter().rev().collect::<String>().to_ascii_lowercase();
    let hit = NAMES.iter().any(|name| tail.ends_with(name) && (signed.is_some() || *name == "bearer"));
    if !hit || (signed.is_none() && !before.ends_with(' ')) {
        return None;
    }
    let length: usize =
        rest.chars().take_while(|c| !c.is_whitespace() && !matches!(c, '"' | '\'' | ',' | ';' | '&')).map(char::len_utf8).sum();
    (length >= 4).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::redact;
    use proptest::prelude::*;

    #[test]
    fn what_looks_like_a_secret_is_gone() {
        for (text, secret) in [
            ("key sk-ant-api03-AbC123456789012345 end", "AbC123"),
            ("ANTHROPIC_API_KEY=abcd1234efgh", "abcd1234"),
            ("Authorization: Bearer abc.def-123", "abc.def"),
            ("{\"password\": \"hunter22\", \"user\": \"x\"}", "hunter22"),
            ("db_password: s3cr3t!x", "s3cr3t"),
            ("t eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abcdefghij1 x", "eyJhb"),
            ("VAULT hvs.CAESIJ1234567890abcdefgh", "CAESIJ"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----\nafter", "b3Blb"),
            ("-----BEGIN RSA PRIVATE KEY-----\nMIIEabc", "MIIE"),
            ("tail of it\n!\nb3BlbnNzaC1rZXk\nabc=\n-----END OPENSSH PRIVATE KEY-----\nafter", "b3Blb"),
        ] {
            let clean = redact(text);
            assert!(!clean.contains(secret) && clean.contains("[redacted"), "{text}: {clean}");
        }
        assert!(redact("-----BEGIN RSA PRIVATE KEY-----\nx\n-----END RSA PRIVATE KEY-----\nafter").ends_with("\nafter"));
    }

    #[test]
    fn ordinary_text_stays() {
        for text in [
            "the token bucket is empty",
            "secret: no",
            "sk-1",
            "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----",
            "eyJ",
            "passwords are bad",
        ] {
            assert_eq!(redact(text), text);
        }
    }

    /// What others write must not cost more than its length: it is looked through on threads that have other work.
    #[test]
    fn text_made_to_be_slow_is_not() {
        // Of this thread's own time: the machine may be busy.
        let used = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime).tv_sec;
        let begun = used();
        for text in [
            "sk-".repeat(100_000),
            "eyJ-".repeat(100_000),
            format!("PRIVATE KEY-----\n{}", "-----BEGIN ".repeat(50_000)),
            "password=\"'".repeat(30_000),
            "a ".repeat(100_000),
        ] {
            let _clean = redact(&text);
        }
        assert!(used() - begun < 10, "{} s", used() - begun);
        // And nothing is missed for that.
        let long = format!("{} sk-{}7{} end", "sk-".repeat(1000), "abc-".repeat(50), "def".repeat(10));
        assert!(!redact(&long).contains("7def"), "{}", redact(&long));
        let run = format!("x/sk-aaa/{}1 and sk-ant-{}", "a".repeat(40), "b1".repeat(20));
        assert!(!redact(&run).contains("aaaaaa") && !redact(&run).contains("b1b1"), "{}", redact(&run));
    }

    proptest! {
        #[test]
        fn it_is_total_and_stable(text: String) {
            let once = redact(&text).into_owned();
            let _again = redact(&once);
        }
    }
}
