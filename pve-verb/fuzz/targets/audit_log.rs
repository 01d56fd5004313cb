//! A whole log, as `log verify` reads it: segment, head, what is on tmpfs and the host's key, with an empty line between them. Whatever lies
//! there, it ends with one of its statuses and says why; and a log that nobody signed is never intact.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::LazyCell;
use std::path::Path;
use tempfile::TempDir;

thread_local! {
    static ROOT: LazyCell<TempDir> = LazyCell::new(|| {
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        for folder in ["var/log/pve-verb", "run/pve-verb", "etc/pve-verb"] {
            std::fs::create_dir_all(root.path().join(folder)).expect("a folder");
        }
        root
    });
}

const FILES: [&str; 4] = [
    "var/log/pve-verb/audit-00000000000000000001.jsonl",
    "var/log/pve-verb/head.json",
    "run/pve-verb/audit-overflow.jsonl",
    "etc/pve-verb/signing_key.pub",
];

fn verify(root: &Path, text: &[u8]) -> u8 {
    let mut rest = Some(text);
    for file in FILES {
        let part = rest.take().unwrap_or_default();
        let cut = part.windows(2).position(|two| two == b"\n\n");
        rest = cut.and_then(|at| part.get(at + 2..));
        std::fs::write(root.join(file), cut.and_then(|at| part.get(..=at)).unwrap_or(part)).expect("a file");
    }
    pve_verb::fuzz::verify_log(root)
}

fuzz_target!(|text: &[u8]| {
    let status = ROOT.with(|root| verify(root.path(), text));
    assert!(status == 0 || (30..=36).contains(&status), "{status}");
});
