//! `breakglass grant new`: writes what a person's second key signs, and packs it with the signature into what `--grant` takes (PROTOCOL.md, section 6).
//!
//! It signs nothing: `ssh-keygen -Y sign` does, with a key that no part of breakglass can reach.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64ct::{Base64, Base64UrlUnpadded, Encoding};
use clap::Args;
use proto::{Grant, KeyName, Message, Timestamp, Verb, Vmid, namespace};
use serde::{Deserialize, Serialize};
use ssh_key::{PublicKey, SshSig};

/// No grant is good for longer.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// A grant and its signature are far shorter.
const MAX_FILE: u64 = 64 * 1024;
/// What the host keeps of a reason.
const MAX_REASON: usize = 200;

/// `grant new`.
#[derive(Debug, Args)]
pub struct New {
    /// The host's node name, as `pve-verb` calls it
    #[arg(long, required_unless_present = "signed")]
    pub node: Option<String>,
    /// The name of the key that may use it
    #[arg(long, value_name = "NAME", required_unless_present = "signed")]
    pub key_name: Option<KeyName>,
    /// What it is for; the first of them to be used spends it
    #[arg(long, value_delimiter = ',', value_parser = crate::cli::verb, required_unless_present = "signed")]
    pub verb: Vec<Verb>,
    /// Why
    #[arg(long, required_unless_present = "signed")]
    pub reason: Option<String>,
    /// How long from now: 30m, 2h; at most 24h
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = span)]
    pub lasts: Duration,
    /// The VM
    #[arg(long, default_value = "102")]
    pub vmid: Vmid,
    /// Pack FILE and FILE.sig, which ssh-keygen has written by now
    #[arg(long, conflicts_with_all = ["node", "key_name", "verb", "reason"])]
    pub signed: bool,
    /// Where it is written, or stands
    #[arg(default_value = "grant.json")]
    pub file: PathBuf,
}

/// What a grant says: these members, all of them and nothing else.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    vmid: Vmid,
    node: String,
    verbs: Vec<Verb>,
    key_name: KeyName,
    not_before: String,
    not_after: String,
    nonce: String,
    reason: String,
}

/// A time span such as `90s`, `30m`, `2h`.
fn span(text: &str) -> Result<Duration, String> {
    let bad = || "a time such as 30m or 2h, at most 24h".to_owned();
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        _ => return Err(bad()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| bad())?;
    let span = Duration::from_secs(count.checked_mul(unit).ok_or_else(bad)?);
    if span.is_zero() || span > LONGEST { Err(bad()) } else { Ok(span) }
}

/// Writes the grant to sign, or packs the signed one; gives what to print.
///
/// # Errors
/// Why neither could be done, in two sentences.
pub fn new(args: &New) -> Result<String, Message> {
    if args.signed { packed(&args.file) } else { written(args) }
}

fn written(args: &New) -> Result<String, Message> {
    let bad = |what: &str, next: &str| Message::new(format!("The grant was not written: {what}."), next);
    let (Some(node), Some(key_name), Some(reason)) = (&args.node, &args.key_name, &args.reason) else {
        return Err(bad("node, key name or reason is missing", "Give --node, --key-name and --reason."));
    };
    if let Some(verb) = args.verb.iter().find(|verb| !verb.mutates()) {
        return Err(bad(&format!("{verb} changes nothing and needs none"), "Name stop, start, reset or cycle."));
    }
    if reason.is_empty() || reason.len() > MAX_REASON || reason.chars().any(char::is_control) {
        return Err(bad(&format!("its reason is not one line of at most {MAX_REASON} bytes"), "Say why in one sentence."));
    }
    let mut nonce = [0; 16];
    rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| bad(&format!("no random bytes ({error})"), "Try again."))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let at = |time: Duration| Timestamp::from_unix_ms(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).to_string();
    let said = Said {
        vmid: args.vmid,
        node: node.clone(),
        verbs: args.verb.clone(),
        key_name: key_name.clone(),
        // A host whose clock is a little behind takes it all the same; the whole of it stays within what a grant may last.
        not_before: at(now.saturating_sub(Duration::from_secs(60)).max((now + args.lasts).saturating_sub(LONGEST))),
        not_after: at(now + args.lasts),
        nonce: Base64UrlUnpadded::encode_string(&nonce),
        reason: reason.clone(),
    };
    let text = serde_json::to_string_pretty(&said).map_err(|error| bad(&error.to_string(), "Report it: this is a bug."))?;
    let file = File::options().write(true).create_new(true).mode(0o600).open(&args.file);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| bad(&format!("{}: {error}", args.file.display()), "Name another file; what is there is never replaced."))?;
    let file = args.file.display();
    Ok(format!(
        "{file} is written: {} of VM {} on {node} by key {key_name}, once, until {}.\nSign it and pack it:\n  ssh-keygen -Y sign -n {} -f YOUR_KEY {file}\n  breakglass grant new --signed {file}",
        said.verbs.iter().map(Verb::to_string).collect::<Vec<_>>().join(" or "),
        said.vmid,
        said.not_after,
        namespace::GRANT
    ))
}

fn packed(file: &Path) -> Result<String, Message> {
    let bad = |what: String, next: &str| Message::new(format!("The grant can't be packed: {what}."), next);
    let read = |path: &Path| {
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
        read.map_err(|error| bad(format!("{}: {error}", path.display()), "Write it with grant new and sign it with ssh-keygen -Y sign."))
            .map(|_| text)
    };
    let mut sig = file.as_os_str().to_owned();
    sig.push(".sig");
    let (body, armour) = (read(file)?, read(Path::new(&sig))?);
    let _shape: Said = serde_json::from_str(&body)
        .map_err(|error| bad(format!("{} is no grant ({error})", file.display()), "Write it with grant new."))?;
    let again = format!("Sign it again: ssh-keygen -Y sign -n {} -f YOUR_KEY {}", namespace::GRANT, file.display());
    let unsound = |what: &str| bad(what.to_owned(), &again);
    let signature = SshSig::from_pem(&armour).map_err(|_| unsound("what stands in its .sig file is no signature of ssh-keygen's"))?;
    if signature.namespace() != namespace::GRANT {
        return Err(unsound("it was signed for another purpose"));
    }
    if !matches!(signature.algorithm(), ssh_key::Algorithm::Ed25519 | ssh_key::Algorithm::SkEd25519) {
        return Err(bad("hosts take no grant of such a key".to_owned(), "Sign with an ed25519 or ed25519-sk key."));
    }
    let sound = PublicKey::from(signature.public_key().clone()).verify(namespace::GRANT, body.as_bytes(), &signature).is_ok();
    if !sound {
        return Err(unsound("the signature is not over this file as it is now"));
    }
    let blob: String = armour.lines().filter(|line| !line.starts_with("-----")).collect();
    let blob = Base64::decode_vec(&blob).map_err(|_| unsound("what stands in its .sig file is damaged"))?;
    let grant = format!("{}.{}", Base64UrlUnpadded::encode_string(body.as_bytes()), Base64UrlUnpadded::encode_string(&blob));
    let grant: Grant = grant.parse().map_err(|()| bad("it is longer than a request may be".to_owned(), "Give a shorter reason."))?;
    Ok(grant.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::process::Command;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        new: New,
    }

    fn line(words: &[&str]) -> Result<New, clap::Error> {
        Line::try_parse_from([&["new"], words].concat()).map(|line| line.new)
    }

    fn keygen(arguments: &[&str]) {
        let end = Command::new("ssh-keygen").arg("-q").args(arguments).output().unwrap();
        assert!(end.status.success(), "{end:?}");
    }

    #[test]
    fn stock_ssh_keygen_signs_it_and_it_packs() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (file, key) = (at("g.json"), at("key"));
        keygen(&["-t", "ed25519", "-N", "", "-f", &key]);
        let words = ["--node", "pve", "--key-name", "agent", "--verb", "stop,cycle", "--reason", "disk \"stalled\"", "--for", "24h", &file];
        let said = new(&line(&words).unwrap()).unwrap();
        assert!(said.contains("stop or cycle of VM 102 on pve by key agent, once, until 2"), "{said}");
        assert!(new(&line(&words).unwrap()).unwrap_err().to_string().contains("never replaced"));
        let signed = line(&["--signed", &file]).unwrap();
        assert!(new(&signed).unwrap_err().to_string().contains(".sig"));
        keygen(&["-Y", "sign", "-n", "file", "-f", &key, &file]);
        assert!(new(&signed).unwrap_err().to_string().contains("another purpose"));
        std::fs::remove_file(at("g.json.sig")).unwrap();
        keygen(&["-Y", "sign", "-n", "pve-verb-grant", "-f", &key, &file]);
        let grant = new(&signed).unwrap();
        let (body, _) = grant.split_once('.').unwrap();
        assert_eq!(Base64UrlUnpadded::decode_vec(body).unwrap(), std::fs::read(&file).unwrap());
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("cycle", "reset")).unwrap();
        assert!(new(&signed).unwrap_err().to_string().contains("not over this file as it is now"));
    }

    #[test]
    fn what_the_host_would_refuse_is_not_written() {
        let base = ["--node", "pve", "--key-name", "agent", "--reason", "x"];
        for more in [["--verb", "halt"], ["--for", "25h"], ["--for", "0s"], ["--for", "2d"], ["--for", "ü"]] {
            assert!(line(&[&base[..], &["--verb", "stop"], &more].concat()).is_err(), "{more:?}");
        }
        assert!(line(&["--node", "pve"]).is_err());
        let read = line(&[&base[..], &["--verb", "status", "/nonexistent/x"]].concat()).unwrap();
        assert!(new(&read).unwrap_err().to_string().contains("needs none"));
    }
}
