//! A tar of files (POSIX ustar), for the download of evidence: heads and paddings, between which the files go. Names are ours or checked:
//! plain, relative, short.

const BLOCK: usize = 512;
const BLOCK_U64: u64 = BLOCK as u64;

/// The head of a file of this length; `seconds` is its time, since 1970. None for a name or a length that no ustar header takes.
pub(super) fn head(name: &str, bytes: u64, seconds: u64) -> Option<Vec<u8>> {
    let (prefix, name) = split(name)?;
    let mut head = vec![0_u8; BLOCK];
    let mut field = |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
    field(0, name);
    field(100, "0000644\0");
    field(108, "0000000\0");
    field(116, "0000000\0");
    field(124, &format!("{:011o}\0", Some(bytes).filter(|bytes| *bytes < 1 << 33)?));
    field(136, &format!("{:011o}\0", seconds));
    field(148, "        ");
    field(156, "0");
    field(257, "ustar\x0000");
    field(345, prefix);
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Some(head)
}

/// What follows a file of this length.
pub(super) fn padding(bytes: u64) -> Vec<u8> {
    vec![0; usize::try_from(bytes.next_multiple_of(BLOCK_U64) - bytes).unwrap_or_default()]
}

/// What follows the last.
pub(super) fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

/// The header has 155 bytes for the folder and 100 for the rest.
fn split(name: &str) -> Option<(&str, &str)> {
    if name.len() <= 100 {
        return Some(("", name));
    }
    let cut = name.char_indices().filter(|(at, c)| *c == '/' && *at <= 155 && name.len() - at - 1 <= 100).map(|(at, _)| at).next()?;
    Some((&name[..cut], &name[cut + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn stock_tar_reads_it() {
        let long = format!("{}/{}/x.txt", "a".repeat(90), "b".repeat(60));
        let mut tar = Vec::new();
        let mut put = |name: &str, bytes: &[u8]| {
            let length = bytes.len() as u64;
            if let Some(head) = head(name, length, 1_790_000_000) {
                tar.extend([head, bytes.to_vec(), padding(length)].concat());
            }
        };
        put("bundle/empty", b"");
        put("bundle/qmp/query-status.json", &[b'x'; 513]);
        put("bundle/whole", &[b'x'; 512]);
        put(&long, b"y");
        put(&"z".repeat(400), b"left out");
        assert!(head("too-long", 1 << 33, 0).is_none());
        tar.extend(end());
        let mut child = Command::new("tar").args(["-tvf", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&tar).unwrap();
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success() && text.lines().count() == 4, "{text}");
        assert!(text.contains("513 2026-") && text.contains(&long), "{text}");
    }
}
