//! `/etc/pve-verb/config.toml`: a reason fit for a person, or a configuration whose parts are what they are called.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match pve_verb::fuzz::config(text) {
        Ok(config) => {
            assert!(config.host.qm.path().is_absolute());
            assert!((1..=63).contains(&config.host.node.as_str().len()));
            assert!(config.evidence.keep_bytes.bytes() > 0 && config.audit.keep_bytes.bytes() > 0);
        }
        Err(why) => pve_verb_fuzz::shown(&why),
    }
});
