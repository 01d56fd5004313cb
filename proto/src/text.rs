//! Foreign bytes made fit for a person's terminal: one line, printable, nothing that moves a cursor or turns text around.

/// Escapes bytes for display: printable characters stay, everything else becomes `\n`, `\t`, `\\`, `\xHH` or `\u{…}`.
///
/// Also escaped are characters that change how a line is shown although they are no control characters: line and paragraph
/// separators, bidirectional overrides, zero-width and other formatting ones.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\\' => out.push_str("\\\\"),
                c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
                c if c.is_control() || changes_the_line(c) => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
                c => out.push(c),
            }
        }
        for b in chunk.invalid() {
            out.push_str(&format!("\\x{b:02x}"));
        }
    }
    out
}

/// As [`escape`], with every byte beyond ASCII shown as `\xHH`: for a record of bytes that were not to be there at all.
pub fn escape_ascii(bytes: &[u8]) -> String {
    let shown = |b: &u8| match b {
        b'\n' => "\\n".to_owned(),
        b'\r' => "\\r".to_owned(),
        b'\t' => "\\t".to_owned(),
        b'\\' => "\\\\".to_owned(),
        b' '..=b'~' => char::from(*b).to_string(),
        b => format!("\\x{b:02x}"),
    };
    bytes.iter().map(shown).collect()
}

/// As [`escape`], of at most the first `most` bytes; says how much was cut.
pub fn escape_cut(bytes: &[u8], most: usize) -> String {
    match bytes.get(..most) {
        Some(head) if bytes.len() > most => format!("{}… ({} bytes more)", escape(head), bytes.len() - most),
        _ => escape(bytes),
    }
}

const fn changes_the_line(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_could_move_a_cursor_is_shown_instead() {
        assert_eq!(escape(b"a\x1b[2Jb\r\n\0\xff"), "a\\x1b[2Jb\\r\\n\\x00\\xff");
        assert_eq!(escape("\u{202e}\u{9b}ü".as_bytes()), "\\u{202e}\\u{9b}ü");
        assert_eq!(escape_ascii("a\\ü\n".as_bytes()), "a\\\\\\xc3\\xbc\\n");
        assert_eq!(escape_cut(b"abcdef", 3), "abc… (3 bytes more)");
    }

    proptest! {
        #[test]
        fn escaped_text_is_one_printable_line(bytes: Vec<u8>) {
            prop_assert!(!escape(&bytes).chars().any(|c| c.is_control() || changes_the_line(c)));
        }
    }
}
