//! Secrets that stand in a VM's configuration or in its command line, taken out before they can get into a bundle: bundles leave the
//! host. The list is by name. What is not on it stays: evidence that was blacked out by guess is none.
//!
//! Where a value ends is said by whoever reads it: QEMU takes an argument apart at its commas, two of which are one of the value's; PVE
//! takes `args:` apart as a shell does (`redact/words.rs`); JSON has its strings. Where that is in doubt, the longer value goes.

mod words;

/// What stands where a secret stood.
const REDACTED: &str = "(redacted)";

/// Configuration keys whose whole value is a secret.
const KEYS: [&str; 1] = ["cipassword"];

/// `name=value` members whose value is one, wherever they stand: QEMU's, curl's and librbd's.
const MEMBERS: [&str; 8] = ["password", "passwd", "data", "key", "keydata", "token", "string", "cookie"];

/// Members of that name that carry no secret: whether there is a password, or which object has it.
const HARMLESS: [&str; 4] = ["on", "off", "yes", "no"];

/// In a string of the SMBIOS, what follows is a credential for systemd: `value=io.systemd.credential:NAME=SECRET`.
const CREDENTIAL: &str = "io.systemd.credential";

/// How often a line is looked at again at most. What any program takes is done after the first.
const LOOKS: usize = 8;

/// How a text is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// An argument as QEMU gets it: blanks and quotes are the value's.
    Argument,
    /// A line of a configuration, or a note in it: blanks end a value, and a quote begins one that may hold some.
    Line,
}

/// A configuration without its secrets, line by line, in every section.
pub fn redact_config(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (body, end) = line.strip_suffix('\n').map_or((line, ""), |b| (b, "\n"));
        let mut shown = redact_line(body);
        // What is taken out may have opened or closed a quote around what follows: so once more, until there is nothing to do.
        for _ in 0..LOOKS {
            let again = redact_line(&shown);
            if again == shown {
                break;
            }
            shown = again;
        }
        out.push_str(&shown);
        out.push_str(end);
    }
    out
}

fn redact_line(line: &str) -> String {
    match line.split_once(':') {
        Some((key, _)) if KEYS.contains(&key.trim()) => format!("{key}: {REDACTED}"),
        Some((key, args)) if key.trim() == "args" => {
            format!("{key}:{}", words::each(&redact_json(args), |word| redact_values(word, Style::Argument)))
        }
        _ => redact_values(line, Style::Line),
    }
}

/// A command line without its secrets, an argument a line.
pub fn redact_cmdline(bytes: &[u8]) -> String {
    let args = bytes.strip_suffix(b"\0").unwrap_or(bytes).split(|&b| b == 0);
    args.map(|a| redact_values(&String::from_utf8_lossy(a), Style::Argument).replace('\n', "\\n") + "\n").collect()
}

fn redact_values(text: &str, style: Style) -> String {
    redact_members(&redact_urls(&redact_json(text), style), style)
}

/// `{"password": "x"}`, also inside another string: `{\"password\": \"x\"}`.
fn redact_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for (quote, _) in text.match_indices('"') {
        let Some(colon) = text[quote + 1..].find(|c: char| !c.is_ascii_whitespace()).map(|at| quote + 1 + at) else { break };
        let named = text[..quote].trim_end_matches('\\');
        if quote < from || !text[colon..].starts_with(':') || !MEMBERS.contains(&last_name(named)) {
            continue;
        }
        let value = &text[colon + 1..];
        let value = colon + 1 + (value.len() - value.trim_ascii_start().len());
        let depth = text[value..].find(|c| c != '\\').filter(|&at| text[value + at..].starts_with('"'));
        let bare = |c: char| c.is_ascii_whitespace() || ",}]'\"\\".contains(c);
        let end = match depth {
            Some(depth) => string_end(text, value + depth + 1, depth),
            None => text[value..].find(bare).map_or(text.len(), |at| value + at),
        };
        let done = depth.is_none() && text[value..].starts_with(REDACTED);
        if done || HARMLESS.contains(&text[value..end].trim_matches(['"', '\\'])) {
            continue;
        }
        let open = depth.map_or("", |depth| &text[value..=value + depth]);
        out.push_str(&format!("{}{open}{REDACTED}{open}", &text[from..value]));
        from = end;
    }
    out + &text[from..]
}

/// Behind the quote that ends a string, of whose own quotes so many backslashes stand before each.
fn string_end(text: &str, from: usize, depth: usize) -> usize {
    let mut run = 0;
    for (at, c) in text[from..].char_indices() {
        match c {
            '\\' => run += 1,
            '"' if run % (2 * (depth + 1)) <= depth => return from + at + 1,
            _ => run = 0,
        }
    }
    text.len()
}

/// `scheme://user:password@host`, `iscsi://user%password@host`; in notes PVE writes `%3A` for a colon.
fn redact_urls(text: &str, style: Style) -> String {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for (slashes, _) in text.match_indices("//") {
        let start = slashes + 2;
        if start < from || !(text[..slashes].ends_with(':') || text[..slashes].ends_with("%3A")) {
            continue;
        }
        let path = text[start..].find('/').map_or(text.len(), |at| start + at);
        let authority = &text[start..value_end(&text[..path], start, start, style, false)];
        if let Some(at) = authority.rfind('@')
            && let Some(user) = authority[..at].find([':', '%'])
        {
            out.push_str(&text[from..=start + user]);
            out.push_str(REDACTED);
            from = start + at;
        }
    }
    out + &text[from..]
}

/// `…,password=x,…`.
fn redact_members(text: &str, style: Style) -> String {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    let credentials = text.contains(CREDENTIAL);
    for (equals, _) in text.match_indices('=') {
        let name = last_name(text[..equals].trim_ascii_end());
        if equals < from || !(MEMBERS.contains(&name) || credentials) {
            continue;
        }
        let part = &text[part_start(text, equals)..equals];
        if !(MEMBERS.contains(&name) || part.contains(CREDENTIAL)) {
            continue;
        }
        // `name = value` is nobody's command line, but a person's note.
        let blank = if text[..equals].ends_with(' ') { text[equals + 1..].chars().take_while(|&c| c == ' ').count() } else { 0 };
        let start = equals + 1 + blank;
        let quote = text[start..].chars().next().filter(|&c| style == Style::Line && matches!(c, '"' | '\''));
        let quoted = quote.map_or(start, |q| words::quoted_end(text, start + 1, q).unwrap_or(text.len()));
        let end = value_end(text, quoted, equals, style, name == "key" && part.contains("rbd:"));
        let bare = quote.map_or(&text[start..end], |q| text[start..end].trim_matches(q));
        if HARMLESS.contains(&bare) {
            continue;
        }
        let quote = quote.map(String::from).unwrap_or_default();
        out.push_str(&format!("{}{quote}{REDACTED}{quote}", &text[from..start]));
        from = end;
    }
    out + &text[from..]
}

/// The end of a value, or of what is left of it, `from` here. `within` is where its own part of the text is.
fn value_end(text: &str, from: usize, within: usize, style: Style, rbd: bool) -> usize {
    let json = in_json_string(text, within);
    let mut rest = text[from..].char_indices().peekable();
    let mut backslashes = 0;
    while let Some((at, c)) = rest.next() {
        let ends = match c {
            ',' if json => false,
            ',' => rest.next_if(|(_, next)| *next == ',').is_none(),
            '"' if json => backslashes % 2 == 0,
            // In JSON each backslash of librbd's stands twice.
            ':' => rbd && (backslashes == 0 || !json && backslashes % 2 == 0),
            c => style == Style::Line && c.is_ascii_whitespace(),
        };
        if ends {
            return from + at;
        }
        backslashes = if c == '\\' { backslashes + 1 } else { 0 };
    }
    text.len()
}

/// Where the part of the text begins in which this is: behind a single comma, a blank or a quote.
fn part_start(text: &str, at: usize) -> usize {
    let mut commas = 0;
    for (i, c) in text[..at].char_indices().rev() {
        match c {
            ',' => commas += 1,
            _ if commas % 2 == 1 => return i + c.len_utf8() + commas,
            _ if matches!(c, ' ' | '"') => return i + 1,
            _ => commas = 0,
        }
    }
    commas * (commas % 2)
}

/// Whether this is inside a string of JSON, which is the text or what follows `json:` in it.
fn in_json_string(text: &str, at: usize) -> bool {
    let from = if text.trim_ascii_start().starts_with('{') { Some(0) } else { text[..at].find("json:{") };
    let Some(mut next) = from else { return false };
    while let Some(open) = text[next..at].find('"').map(|i| next + i) {
        next = string_end(text, open + 1, 0);
        if next > at || next == text.len() {
            return true;
        }
    }
    false
}

/// The name that a text ends with.
fn last_name(text: &str) -> &str {
    text.rsplit(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))).next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
