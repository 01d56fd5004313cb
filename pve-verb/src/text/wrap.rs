//! Lines that fit a phone: at most 60 columns, broken between words, continued under the text and not under its label.
//!
//! A word that is longer (a path, a hash) stays whole: it is there to be copied. Columns are counted in characters.

const COLUMNS: usize = 60;

/// Foreign text on one printable line, however long it was; backslashes of an earlier escaping stay as they are.
pub(super) fn escaped(text: &str) -> String {
    // `proto::escape` doubles backslashes; text here is mostly escaped already, and `\\x1b` is harder to read than `\x1b`.
    text.split('\\').map(|part| proto::escape_cut(part.as_bytes(), 1500)).collect::<Vec<_>>().join("\\")
}

/// The text in lines, the first after `label`, the others as far in as the label is long (two columns for long ones).
pub(crate) fn paragraph(label: &str, text: &str) -> String {
    let indent = " ".repeat(match label.chars().count() {
        0 => 0,
        n if n <= 2 => n,
        _ => 2,
    });
    let mut out = label.to_owned();
    let mut width = label.chars().count();
    let mut fresh = true;
    for word in text.split(' ').filter(|w| !w.is_empty()) {
        let length = word.chars().count();
        if !fresh && width + 1 + length > COLUMNS {
            out.push('\n');
            out.push_str(&indent);
            width = indent.len();
            fresh = true;
        }
        // Only the last line of an answer may begin as a receipt does; foreign words could be wrapped to.
        if !fresh || (width == 0 && word.starts_with("receipt")) {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += length;
        fresh = false;
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_word_stays_whole_and_others_wrap() {
        let path = "/var/lib/pve-verb/evidence/102/20261121T003000.123Z-cycle-1f0c9a2e";
        assert_eq!(paragraph("Evidence: ", path), format!("Evidence: {path}\n"));
        let text = paragraph("- ", &"word ".repeat(30));
        assert!(text.lines().all(|l| l.len() <= COLUMNS && (l.starts_with("- ") || l.starts_with("  "))));
    }

    #[test]
    fn no_wrapped_line_looks_like_a_receipt() {
        for n in 0..70 {
            let text = paragraph("", &format!("{} receipt 1 00 done", "x".repeat(n)));
            assert!(text.lines().all(|l| !l.starts_with("receipt")), "{text}");
        }
    }

    proptest! {
        #[test]
        fn foreign_text_never_breaks_a_line_or_moves_a_cursor(text: String) {
            prop_assert!(!escaped(&text).chars().any(char::is_control));
            prop_assert!(paragraph("", &escaped(&text)).lines().all(|l| l.chars().count() <= COLUMNS || !l.trim().contains(' ')));
        }
    }
}
