//! What calls leave behind, put where it belongs behind an answer.

use proto::{BundleName, RequestId};

use super::{RUN_REQUESTS, run_request};
use crate::deadline;
use crate::host::path;
use crate::run::Run;
use crate::writer::Op;

/// How many finished requests can be replayed: on disk, and those of this boot on tmpfs as well.
const KEPT_REQUESTS: u32 = 1_000;

/// What calls leave behind: bundles that had to stay on tmpfs go to disk, old requests go away. After the answer, and
/// all of it may fail: the next call tries again.
pub fn tidy(run: &Run) {
    if run.disk.is_late() {
        return;
    }
    let vmid = run.vmid();
    let shelf = format!("{}/{vmid}", path::RUN_EVIDENCE);
    for entry in std::fs::read_dir(&shelf).into_iter().flatten().flatten() {
        let Some(name) = entry.file_name().to_str().and_then(|n| n.parse::<BundleName>().ok()) else { continue };
        if run.disk.call(&Op::CarryBundle { vmid, name: name.clone() }, &[], deadline::CARRY).is_err() {
            return;
        }
        let _ = std::fs::remove_dir_all(format!("{shelf}/{name}"));
    }
    let mut stored = Vec::new();
    for entry in std::fs::read_dir(RUN_REQUESTS).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let id = |ending| name.to_str().and_then(|n| n.strip_suffix(ending)?.parse::<RequestId>().ok());
        if let Some(id) = id(".late") {
            let Ok(bytes) = std::fs::read(run_request(&id)) else { continue };
            if run.disk.call(&Op::RequestStore { id }, &bytes, deadline::WRITE).is_err() {
                return;
            }
            let _ = std::fs::remove_file(entry.path());
        } else if id(".json").is_some()
            && let Ok(made) = entry.metadata().and_then(|m| m.modified())
        {
            stored.push((made, entry.path()));
        }
    }
    stored.sort_unstable();
    let too_many = stored.len().saturating_sub(KEPT_REQUESTS as usize);
    for (_, path) in stored.into_iter().take(too_many).filter(|(_, path)| !path.with_extension("late").exists()) {
        let _ = std::fs::remove_file(path);
    }
    let _ = run.disk.call(&Op::RequestsPrune { keep: KEPT_REQUESTS }, &[], deadline::WRITE);
}
