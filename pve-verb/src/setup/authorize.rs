//! `authorize`: the one line of `authorized_keys` that gives a key its verbs. Printed, never installed: who may break the glass is
//! decided by whoever places the line.

use proto::{KeyName, Message, VerbSet, Vmid};
use std::io::Write;
use std::path::Path;

use super::public_key::PublicKey;

/// What the key may do. What is not said is left to the defaults of `forced`.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its name in every record.
    pub key_name: KeyName,
    /// The VM.
    pub vmid: Option<Vmid>,
    /// The verbs.
    pub allow: Option<VerbSet>,
    /// The verbs for which a grant is needed as well.
    pub require_grant: Option<VerbSet>,
    /// sshd's `from=` pattern.
    pub from: Option<String>,
}

/// Prints the line for this public key to `out`, and where to put it to `hints`.
///
/// # Errors
/// What is wrong with the key or the policy, and what to use instead.
pub fn authorize(key: &Path, policy: &Policy, out: &mut dyn Write, hints: &mut dyn Write) -> Result<(), Message> {
    let text = std::fs::read_to_string(key)
        .map_err(|e| Message::new(format!("{} could not be read: {e}.", key.display()), "Name the file that ends in .pub."))?;
    let line = line(&text, policy)?;
    let printed = writeln!(out, "{line}").and_then(|()| {
        writeln!(
            hints,
            "Append this line to /etc/pve-verb/authorized_keys (root, mode 0600); sshd reads that file for the account breakglass."
        )?;
        match policy.vmid {
            None => writeln!(hints, "This key is for VM {}; --vmid VMID makes it one for another.", Vmid::DEVVM)?,
            Some(vmid) => writeln!(hints, "This key is for VM {vmid}.")?,
        }
        match &policy.from {
            None => writeln!(hints, "Without --from the key works from every address.")?,
            Some(from) if from.split(',').any(is_a_name) => {
                writeln!(
                    hints,
                    "There is a name in --from: sshd knows addresses only, unless its UseDNS is yes and the name service works."
                )?;
            }
            Some(_) => {}
        }
        Ok(())
    });
    printed.map_err(|e| Message::new(format!("The line could not be printed: {e}."), "Run this again."))
}

/// Whether a pattern of `from=` can only be a name's.
pub(super) fn is_a_name(pattern: &str) -> bool {
    pattern.bytes().any(|b| b.is_ascii_alphabetic()) && !pattern.contains(':')
}

fn line(text: &str, policy: &Policy) -> Result<String, Message> {
    if text.contains("PRIVATE KEY") {
        return Err(Message::new("This is a private key.", "Name the public one (it ends in .pub), and keep this one where it was made."));
    }
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let (Some(one), None) = (lines.next(), lines.next()) else {
        return Err(Message::new("The file does not hold exactly one key.", "Give a file with one public key in it."));
    };
    let key = PublicKey::read(one)
        .map_err(|why| Message::new(format!("This key can't be authorised: {why}."), "Use an ed25519 key: ssh-keygen -t ed25519."))?;
    if policy.key_name.is_console() {
        return Err(Message::new("A key can't have the name of a person at the console.", "Choose a name of A-Z a-z 0-9 . _ - for it."));
    }
    let mut command = format!("/usr/sbin/pve-verb forced --key-name {} --key-fp {}", policy.key_name, key.fingerprint());
    let verbs = |set: VerbSet| if set == VerbSet::READ { "read".to_owned() } else { set.to_string() };
    for (option, value) in [
        ("vmid", policy.vmid.map(|v| v.to_string())),
        ("allow", policy.allow.map(verbs)),
        ("require-grant", policy.require_grant.map(|s| s.to_string())),
    ] {
        if let Some(value) = value {
            command.push_str(&format!(" --{option} {value}"));
        }
    }
    let mut options = "restrict".to_owned();
    if let Some(from) = &policy.from {
        // Between quotes: whatever could end them, or be read as an escape, is not a pattern.
        let plain = !from.is_empty()
            && from.len() <= 500
            && from.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'/' | b'*' | b'?' | b'!' | b',' | b'-' | b'_'));
        if !plain {
            return Err(Message::new(
                "The --from pattern has a character that no address or host name has.",
                "Write addresses or networks (192.0.2.0/24) with commas between them.",
            ));
        }
        options.push_str(&format!(",from=\"{from}\""));
    }
    Ok(format!("{options},command=\"{command}\" {} {}", key.line(), policy.key_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The RFC 8032 test key's public half, as OpenSSH writes it.
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea";

    fn policy() -> Policy {
        Policy { key_name: "agent".parse().unwrap(), vmid: None, allow: None, require_grant: None, from: None }
    }

    #[test]
    fn the_line_restricts_and_forces_and_carries_the_policy() {
        let plain = line(&format!("{KEY} somebody@laptop\n"), &policy()).unwrap();
        assert_eq!(
            plain,
            format!("restrict,command=\"/usr/sbin/pve-verb forced --key-name agent --key-fp SHA256:{}\" {KEY} agent", fingerprint())
        );
        let full = Policy {
            vmid: Some(Vmid::DEVVM),
            allow: Some(VerbSet::READ),
            require_grant: Some("stop,cycle".parse().unwrap()),
            from: Some("192.0.2.0/24,!192.0.2.1".to_owned()),
            ..policy()
        };
        let full = line(KEY, &full).unwrap();
        assert!(full.starts_with("restrict,from=\"192.0.2.0/24,!192.0.2.1\",command=\"/usr/sbin/pve-verb forced"), "{full}");
        assert!(full.contains(" --vmid 102 --allow read --require-grant stop,cycle\" ssh-ed25519 "), "{full}");
    }

    fn fingerprint() -> String {
        let key: ssh_key::PublicKey = KEY.parse().unwrap();
        key.fingerprint(ssh_key::HashAlg::Sha256).to_string().trim_start_matches("SHA256:").to_owned()
    }

    #[test]
    fn what_is_not_one_good_public_key_is_refused_with_what_to_do() {
        let cut = &KEY[..KEY.len() - 4];
        let cert = KEY.replace("ssh-ed25519 ", "ssh-ed25519-cert-v01@openssh.com ");
        let relabelled = KEY.replace("ssh-ed25519 ", "ssh-rsa ");
        let two = format!("{KEY}\n{KEY}");
        let with_options = format!("command=\"x\" {KEY}");
        for (bad, word) in [
            ("", "one key"),
            (cut, "bytes"),
            (&cert, "certificate"),
            (&relabelled, "bytes"),
            (&two, "one key"),
            (&with_options, "type"),
            ("ssh-dss AAAA", "DSA"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----", "private"),
        ] {
            let message = line(bad, &policy()).unwrap_err();
            assert!(message.what.contains(word) && message.next.ends_with('.'), "{bad}: {message}");
        }
    }

    #[test]
    fn a_short_rsa_key_is_refused_and_a_long_one_is_not() {
        for (bits, good) in [(2048, false), (3071, false), (3072, true), (4096, true)] {
            let mut modulus = vec![0_u8];
            modulus.extend(vec![0xff; bits / 8 + usize::from(bits % 8 > 0)]);
            if bits % 8 > 0 {
                modulus[1] = 0x7f;
                modulus.remove(0);
            }
            let mut blob = Vec::new();
            for field in [b"ssh-rsa".as_slice(), &[1, 0, 1], &modulus] {
                blob.extend(u32::try_from(field.len()).unwrap().to_be_bytes());
                blob.extend(field);
            }
            use base64ct::{Base64, Encoding};
            let key = format!("ssh-rsa {}", Base64::encode_string(&blob));
            assert_eq!(line(&key, &policy()).is_ok(), good, "{bits}");
        }
    }

    #[test]
    fn every_key_type_of_the_installed_ssh_keygen_is_read_with_its_fingerprint() {
        for (kind, bits) in [("ed25519", "256"), ("ecdsa", "256"), ("ecdsa", "384"), ("ecdsa", "521"), ("rsa", "3072")] {
            let folder = tempfile::tempdir().unwrap();
            let key = folder.path().join("k");
            let made = std::process::Command::new("ssh-keygen").args(["-q", "-N", "", "-t", kind, "-b", bits, "-f"]).arg(&key).output();
            assert!(made.is_ok_and(|made| made.status.success()), "{kind} {bits}");
            let listed = std::process::Command::new("ssh-keygen").args(["-l", "-f"]).arg(&key).output().unwrap();
            let line = line(&std::fs::read_to_string(key.with_extension("pub")).unwrap(), &policy()).unwrap();
            let fingerprint = String::from_utf8(listed.stdout).unwrap().split(' ').nth(1).unwrap().to_owned();
            assert!(line.contains(&format!("--key-fp {fingerprint}\"")), "{kind} {bits}: {line}");
        }
    }

    #[test]
    fn nothing_gets_out_of_the_quotes() {
        for bad in ["", "a\"", "a b", "a\\", "a\n", "a\",command=\"sh", "ä"] {
            assert!(line(KEY, &Policy { from: Some(bad.to_owned()), ..policy() }).is_err(), "{bad:?}");
        }
        assert!(line(KEY, &Policy { key_name: KeyName::console("root"), ..policy() }).is_err());
    }
}
