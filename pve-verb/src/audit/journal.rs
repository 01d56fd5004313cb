//! A copy of every record for journald, best effort: it never waits, and a host without a journal is no worse.

use std::os::unix::net::UnixDatagram;

/// Sends a line as one native datagram: its whole text is the message, and its members are fields.
pub(super) fn send(socket: Option<&str>, line: &[u8]) {
    let Some(socket) = socket else { return };
    let Ok(ours) = UnixDatagram::unbound() else { return };
    if ours.set_nonblocking(true).is_ok() {
        let _ = ours.send_to(&datagram(line), socket);
    }
}

/// Every field as name, newline, length, bytes, newline: the form in which a value may hold anything.
fn datagram(line: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut field = |name: &str, value: &[u8]| {
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
        out.extend_from_slice(value);
        out.push(b'\n');
    };
    field("MESSAGE", line);
    field("PRIORITY", b"5");
    field("SYSLOG_IDENTIFIER", b"pve-verb");
    if let Ok(serde_json::Value::Object(members)) = serde_json::from_slice(line) {
        for (name, value) in members {
            // journald drops a whole datagram for one bad field name.
            if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') || name.len() > 50 {
                continue;
            }
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            field(&format!("PVE_VERB_{}", name.to_ascii_uppercase()), text.as_bytes());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_datagram_whose_values_cannot_forge_a_field() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        send(path.to_str(), b"{\"seq\":1,\"reason\":\"a\\nPRIORITY=0\",\"Bad-Name\":2}");
        let mut buffer = [0; 2000];
        let n = journal.recv(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
        assert!(text.starts_with("MESSAGE\n"), "{text}");
        assert!(text.contains("PVE_VERB_REASON\n\u{c}\0\0\0\0\0\0\0a\nPRIORITY=0\n"), "{text:?}");
        assert!(text.contains("PVE_VERB_SEQ\n") && !text.contains("PVE_VERB_BAD"), "{text:?}");
        send(Some("/nonexistent/socket"), b"{}");
    }
}
