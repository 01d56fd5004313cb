//! What processes that were killed leave behind on tmpfs: half bundles, folders for screens, files that never got their name. Taken away
//! by whoever comes next. Touches `/run` only, waits for nothing, and whatever fails is tried again by the next call.

use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use crate::host::path;

/// A folder is made first and locked then; what is younger is let alone.
const YOUNG: Duration = Duration::from_secs(60);

/// Takes it away.
pub fn sweep() {
    sweep_at(Path::new(path::RUN));
}

fn sweep_at(run: &Path) {
    for name in names(run) {
        let at = run.join(&name);
        if name.starts_with("screens-") {
            folder(&at);
        } else if ["rates.json.", "operation.json."].iter().any(|file| name.starts_with(file)) {
            file(&at, &name);
        }
    }
    for name in names(&run.join("spool")).into_iter().filter(|n| n.starts_with('.')) {
        file(&run.join("spool").join(&name), &name);
    }
    for name in names(&run.join("requests")).into_iter().filter(|n| n.contains(".json.")) {
        file(&run.join("requests").join(&name), &name);
    }
    let evidence = run.join("evidence");
    for vm in names(&evidence) {
        let shelf = evidence.join(vm);
        for name in names(&shelf).into_iter().filter(|n| n.ends_with(".partial")) {
            folder(&shelf.join(name));
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// A folder whose maker holds its lock for as long as he lives.
fn folder(at: &Path) {
    let Ok(opened) = File::open(at) else { return };
    let old = opened.metadata().and_then(|m| m.modified()).is_ok_and(|m| m.elapsed().is_ok_and(|age| age >= YOUNG));
    if old && flock(&opened, FlockOperation::NonBlockingLockExclusive).is_ok() {
        let _ = std::fs::remove_dir_all(at);
    }
}

/// A file that ends with its maker's pid.
fn file(at: &Path, name: &str) {
    let pid = name.rsplit('.').next().and_then(|word| word.parse::<u32>().ok());
    if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
        let _ = std::fs::remove_file(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn what_the_dead_left_goes_and_what_the_living_need_stays() {
        let run = tempfile::tempdir().unwrap();
        let at = |name: &str| run.path().join(name);
        let live = std::process::id();
        for folder in ["screens-1", "screens-2", "screens-3", "spool", "evidence/102/a.partial/qmp", "evidence/102/b", "requests"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        let files = ["spool/.room.", "spool/.x.", "rates.json.", "operation.json.", "requests/x.json."];
        for file in files {
            std::fs::write(at(&format!("{file}{live}")), "x").unwrap();
            // Larger than any pid.
            std::fs::write(at(&format!("{file}4999999")), "x").unwrap();
        }
        for file in ["spool/x.jsonl", "requests/x.json", "rates.json", "mutation.lock", "evidence/102/a.partial/x"] {
            std::fs::write(at(file), "x").unwrap();
        }
        let held = File::open(at("screens-2")).unwrap();
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        for folder in ["screens-1", "screens-2", "evidence/102/a.partial", "evidence/102/b"] {
            File::open(at(folder)).unwrap().set_modified(SystemTime::now() - YOUNG * 2).unwrap();
        }
        sweep_at(run.path());
        for gone in ["screens-1", "evidence/102/a.partial"] {
            assert!(!at(gone).exists(), "{gone}");
        }
        for kept in ["screens-2", "screens-3", "evidence/102/b", "spool/x.jsonl", "requests/x.json", "rates.json", "mutation.lock"] {
            assert!(at(kept).exists(), "{kept}");
        }
        for file in files {
            assert!(at(&format!("{file}{live}")).exists() && !at(&format!("{file}4999999")).exists(), "{file}");
        }
    }
}
