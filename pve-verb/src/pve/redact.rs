//! Secrets that stand in a VM's configuration or in its command line, taken out before they can get into a bundle: bundles leave the
//! host. The list is by name. What is not on it stays: evidence that was blacked out by guess is none.

/// What stands where a secret stood.
const REDACTED: &str = "(redacted)";

/// Configuration keys whose whole value is a secret.
const KEYS: [&str; 1] = ["cipassword"];

/// `name=value` members whose value is one, wherever they stand: QEMU's and librbd's.
const MEMBERS: [&str; 7] = ["password", "passwd", "data", "key", "keydata", "token", "string"];

/// Members of that name that carry no secret: whether there is a password, or which object has it.
const HARMLESS: [&str; 4] = ["on", "off", "yes", "no"];

/// A configuration without its secrets, line by line, in every section.
pub fn redact_config(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (body, end) = line.strip_suffix('\n').map_or((line, ""), |b| (b, "\n"));
        match body.split_once(':') {
            Some((key, _)) if KEYS.contains(&key.trim()) => out.push_str(&format!("{key}: {REDACTED}")),
            _ => out.push_str(&redact_values(body)),
        }
        out.push_str(end);
    }
    out
}

/// A command line without its secrets, an argument a line.
pub fn redact_cmdline(bytes: &[u8]) -> String {
    let args = bytes.strip_suffix(b"\0").unwrap_or(bytes).split(|&b| b == 0);
    args.map(|a| redact_values(&String::from_utf8_lossy(a)).replace('\n', "\\n") + "\n").collect()
}

fn redact_values(text: &str) -> String {
    redact_url(&redact_members(text))
}

/// `…,password=x,…` and `{"password": "x"}`.
fn redact_members(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('=').into_iter().chain(rest.find("\":")).min() {
        let json = rest[at..].starts_with("\":");
        let (before, after) = rest.split_at(at + if json { 2 } else { 1 });
        out.push_str(before);
        let name = before[..at].rsplit(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))).next().unwrap_or_default();
        if !MEMBERS.contains(&name) {
            rest = after;
            continue;
        }
        let value = if json { json_value(after) } else { &after[..after.find([',', ' ', ':', '"']).unwrap_or(after.len())] };
        if HARMLESS.contains(&value.trim_matches(['"', ' '])) {
            out.push_str(value);
        } else if value.contains('"') {
            // A string stays one: the JSON can still be read, and what follows is not taken for a part of the value.
            out.push_str(&format!("\"{REDACTED}\""));
        } else {
            out.push_str(REDACTED);
        }
        rest = &after[value.len()..];
    }
    out + rest
}

/// The string (or bare word) at the start of the text, quotes and escapes with it.
fn json_value(text: &str) -> &str {
    let Some(open) = text.find('"').filter(|&at| text[..at].trim().is_empty()) else {
        return &text[..text.find([',', '}']).unwrap_or(text.len())];
    };
    let mut escaped = false;
    for (at, c) in text.char_indices().skip_while(|(at, _)| *at <= open) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return &text[..=at],
            _ => {}
        }
    }
    text
}

/// `scheme://user:password@host`, `iscsi://user%password@host`.
fn redact_url(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let authority = &after[..after.find(['/', ',', ' ', '"']).unwrap_or(after.len())];
        let secret = authority.rfind('@').and_then(|at| Some((authority[..at].find([':', '%'])?, at)));
        rest = match secret {
            Some((from, to)) => {
                out.push_str(&authority[..=from]);
                out.push_str(REDACTED);
                &after[to..]
            }
            None => after,
        };
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_of_a_configuration_are_taken_out_in_every_section() {
        let text = "ciuser: joe\ncipassword: $5$hunter2\nargs: -object secret,id=s0,data=hunter2 -spice password=hunter2 -vnc :1,password=on\n[PENDING]\ncipassword: hunter2\n[snap]\nscsi0: iscsi://joe%hunter2@10.0.0.1/x,size=1G\nnet0: virtio=AA:BB,bridge=vmbr0\n";
        let out = redact_config(text);
        assert!(!out.contains("hunter2"), "{out}");
        for kept in [
            "ciuser: joe\n",
            "id=s0",
            "password=on",
            "[PENDING]\n",
            "iscsi://joe%(redacted)@10.0.0.1/x,size=1G",
            "net0: virtio=AA:BB,bridge=vmbr0\n",
        ] {
            assert!(out.contains(kept), "{kept} in {out}");
        }
    }

    #[test]
    fn secrets_of_a_command_line_are_taken_out_and_its_arguments_stay_apart() {
        let line = b"/usr/bin/kvm\0-id\x00102\0-object\0{\"qom-type\":\"secret\",\"data\": \"hun\\\"ter2\",\"id\":\"s\"}\0-drive\0file=rbd:p/d:id=a:key=hunter2:mon=x,password-secret=s0\0-blockdev\0{\"url\":\"https://a:hunter2@h/x\"}\0-fw_cfg\0name=opt/x,string=hunter2\0";
        let out = redact_cmdline(line);
        assert!(!out.contains("hunter2") && !out.contains("ter2"), "{out}");
        assert_eq!(out.lines().count(), 11);
        for kept in ["\"id\":\"s\"}", "mon=x,password-secret=s0", "name=opt/x"] {
            assert!(out.contains(kept), "{kept} in {out}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_redacted_twice_nor_lost_without_a_name(text in "[ -~äß\n]{0,200}") {
            let once = redact_config(&text);
            prop_assert_eq!(once.lines().count(), text.lines().count());
            prop_assert_eq!(redact_config(&once), once);
        }
    }
}
