//! The words of `args:`, as PVE has them from Perl's `shellwords`: blanks part them, quotes hold blanks, a backslash takes the next
//! character as it is (in single quotes it stays, and still keeps a quote from ending them).

/// The text with each of its words changed so. A word that is not changed stays as it was written; one that is stands in quotes where
/// it has to.
pub(super) fn each(text: &str, change: impl Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        let (blanks, words) = rest.split_at(rest.len() - rest.trim_ascii_start().len());
        out.push_str(blanks);
        if words.is_empty() {
            return out;
        }
        let (length, word) = first(words);
        let changed = change(&word);
        if changed == word {
            out.push_str(&words[..length]);
        } else if changed.contains(|c: char| c.is_ascii_whitespace() || matches!(c, '"' | '\'' | '\\')) {
            out.push_str(&format!("\"{}\"", changed.replace('\\', "\\\\").replace('"', "\\\"")));
        } else {
            out.push_str(&changed);
        }
        rest = &words[length..];
    }
}

/// The first word: how long it is as it stands, and what it says. A quote that nothing closes holds all that follows, and so is
/// `=` between blanks, which no program takes for one word, but a person may.
fn first(text: &str) -> (usize, String) {
    let mut word = String::new();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let next = at + c.len_utf8();
        match c {
            c if c.is_ascii_whitespace() => {
                let Some(value) = text[at..].trim_ascii_start().strip_prefix('=') else { break };
                let end = text.len() - value.trim_ascii_start().len();
                word.push_str(&text[at..end]);
                at = end;
                continue;
            }
            '"' | '\'' => match quoted_end(text, next, c) {
                Some(end) if c == '"' => word.push_str(&unescaped(&text[next..end - 1])),
                Some(end) => word.push_str(&text[next..end - 1]),
                None => word.push_str(&text[at..]),
            },
            '\\' => word.extend(text[next..].chars().next()),
            c => word.push(c),
        }
        at = match c {
            '"' | '\'' => quoted_end(text, next, c).unwrap_or(text.len()),
            '\\' => next + text[next..].chars().next().map_or(0, char::len_utf8),
            _ => next,
        };
    }
    (at, word)
}

/// Behind the quote that ends what began before `from`.
pub(super) fn quoted_end(text: &str, from: usize, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text[from..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(from + at + 1),
            _ => {}
        }
    }
    None
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}
