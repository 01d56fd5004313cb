//! A VM's configuration, and what else is read of PVE's files. No secret that is named stays, and nothing else is lost.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proto::Vmid;
use pve_verb::pve;
use pve_verb_fuzz::shown;

fuzz_target!(|text: &str| {
    if let Some(lock) = pve::lock_of(text) {
        shown(&lock);
    }
    for (key, _) in pve::volumes(text) {
        assert!(key.ends_with(|c: char| c.is_ascii_digit()));
    }
    let facts = pve::config_facts(text).to_string();
    shown(&facts);
    let redacted = pve::redact_config(text);
    assert_eq!(redacted.lines().count(), text.lines().count());
    assert_eq!(pve::redact_config(&redacted), redacted, "redacted twice");
    let secret = |line: &&str| line.split_once(':').is_some_and(|(key, _)| key.trim() == "cipassword");
    assert!(redacted.lines().filter(secret).all(|line| line.ends_with("(redacted)")));
    assert_eq!(pve::lock_of(&redacted).is_some(), pve::lock_of(text).is_some());
    // Whatever stands before it on its line, a member that is named as a secret does not show.
    for line in text.lines().take(20) {
        for hidden in [",password=S3CR3T", " {\"data\": \"S3CR3T\"}", ",key=S3CR3T,x", "\ncipassword:S3CR3T"] {
            let shown = pve::redact_config(&format!("{line}{hidden}"));
            assert!(line.contains("S3CR3T") || !shown.contains("S3CR3T"), "{shown}");
        }
    }
    let _ = pve::redact_cmdline(text.replace('\n', "\0").as_bytes());
    let _ = pve::parse_ha(text, Vmid::DEVVM);
    let _ = pve::locate(text, "pve", Vmid::DEVVM);
    for task in pve::unfinished(text) {
        shown(&task.upid);
        shown(&task.kind);
    }
});
