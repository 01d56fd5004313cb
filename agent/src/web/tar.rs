//! A tar of files in memory (POSIX ustar), for the download of evidence. Names are ours or checked: plain, relative, short.

/// A tar that grows.
#[derive(Debug)]
pub(super) struct Tar {
    bytes: Vec<u8>,
    seconds: u64,
}

const BLOCK: usize = 512;

impl Tar {
    /// An empty one; its files are of this time, in seconds since 1970.
    pub(super) const fn new(seconds: u64) -> Self {
        Self { bytes: Vec::new(), seconds }
    }

    /// Adds a file. A name that no ustar header takes is left out.
    pub(super) fn put(&mut self, name: &str, bytes: &[u8]) {
        let Some((prefix, name)) = split(name) else { return };
        let mut head = [0_u8; BLOCK];
        let mut field = |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
        field(0, name);
        field(100, "0000644\0");
        field(108, "0000000\0");
        field(116, "0000000\0");
        field(124, &format!("{:011o}\0", bytes.len()));
        field(136, &format!("{:011o}\0", self.seconds));
        field(148, "        ");
        field(156, "0");
        field(257, "ustar\x0000");
        field(345, prefix);
        let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
        head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&head);
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }

    /// The whole tar.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
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
        let mut tar = Tar::new(1_790_000_000);
        tar.put("bundle/empty", b"");
        tar.put("bundle/qmp/query-status.json", &[b'x'; 513]);
        tar.put(&long, b"y");
        tar.put(&"z".repeat(400), b"left out");
        let mut child = Command::new("tar").args(["-tvf", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&tar.end()).unwrap();
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success() && text.lines().count() == 3, "{text}");
        assert!(text.contains("513 2026-") && text.contains(&long), "{text}");
    }
}
