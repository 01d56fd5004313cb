//! A second key's yes, made with stock ssh-keygen: it serves one mutation, and the log verifies with it.

use lab::host::write;
use lab::installed::{ask, log};
use lab::lab::Scenario;
use lab::{Lab, Result};
use std::process::Command;

pub(crate) const SCENARIOS: &[Scenario] = &[("when_a_grant_is_good_then_it_serves_one_mutation_and_the_log_is_intact", one_mutation)];

const MAKE: &str = r#"
set -e
cd "$(mktemp -d)"
ssh-keygen -q -t ed25519 -N '' -f key
printf 'alice namespaces="pve-verb-grant" %s\n' "$(cut -d' ' -f1,2 key.pub)" > allowed
b64() { basenc --base64url -w0 | tr -d =; }
printf '{"vmid":102,"node":"%s","verbs":["stop","start"],"key_name":"careful","not_before":"%s","not_after":"%s","nonce":"%s","reason":"lab"}' \
    "$(hostname | cut -d. -f1)" "$(date -u +%FT%TZ -d '-1 min')" "$(date -u +%FT%TZ -d '+1 hour')" "$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')" > grant.json
ssh-keygen -q -Y sign -n pve-verb-grant -f key grant.json
echo "$(b64 < grant.json).$(sed '/^---/d' grant.json.sig | base64 -d | b64)"
cat allowed
"#;

fn one_mutation(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let careful = lab.host.authorize("careful", "--require-grant stop,start")?;
    let made = Command::new("bash").args(["-c", MAKE]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made = String::from_utf8(made.stdout).unwrap();
    let (grant, signers) = made.split_once('\n').unwrap();
    let refused = |line: String, words: &str| -> Result<()> {
        let told = ask(&careful, &line)?;
        assert_eq!(told.answer.status, 3, "{line}: {:#}", told.body);
        assert!(told.message().contains(words), "{line}: {}", told.message());
        Ok(())
    };
    refused(format!("stop --grant={grant}"), "allowed_signers does not exist")?;
    write("/etc/pve-verb/allowed_signers", signers, 0o600)?;
    ask(&careful, &format!("stop --dry-run --grant={grant}"))?.done();
    let told = ask(&careful, &format!("stop --grant={grant}"))?;
    let told = told.done();
    let intent = log()?.into_iter().rfind(|record| record["kind"] == "intent").unwrap();
    assert_eq!((&intent["request_id"], &intent["grant"]["signer"]), (&told.body["request_id"], &serde_json::json!("alice")));
    refused(format!("start --grant={grant}"), &format!("was spent by request {}", told.body["request_id"].as_str().unwrap()))?;
    refused(format!("cycle --grant={grant}"), "not for cycle")?;
    // An answer that was earned once can be had again, also when nothing of the grant counts any more.
    let id = told.body["request_id"].as_str().unwrap();
    write("/etc/pve-verb/allowed_signers", "", 0o600)?;
    for words in [format!("--grant={grant}"), format!("--attach --grant={grant}"), "--attach".to_owned(), String::new()] {
        let again = ask(&careful, format!("stop --request-id={id} {words}").trim_end())?.done();
        assert_eq!((&again.body["replayed"], &again.body["bundle"]), (&true.into(), &told.body["bundle"]), "{words}");
    }
    // Nobody begins anything so.
    refused("stop --request-id=1f0c9a2e-0000-4000-8000-00000000d001".to_owned(), "needs a grant")?;
    std::fs::remove_file("/etc/pve-verb/allowed_signers").unwrap();
    let verified = Command::new("/usr/sbin/pve-verb").args(["log", "verify", "--all"]).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    lab.fresh()?;
    Ok(())
}
