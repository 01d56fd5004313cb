//! The small state on disk: the operation in progress, finished receipts, spent grants.

use proto::RequestId;
use rustix::fs::OFlags;
use serde::Deserialize;
use std::io::{self, Write};
use std::time::SystemTime;

use super::{Nonce, Reply, Root, durable};
use crate::host::path;

/// The longest of these files.
const MOST: u64 = 4 << 20;

impl Root {
    pub(super) fn operation_set(&self, id: &RequestId, payload: &[u8]) -> io::Result<Reply> {
        if self.others_operation(id)? {
            return Err(io::Error::other("another request's operation.json stands"));
        }
        durable::replace(&self.path(path::OPERATION), payload)?;
        Ok(Reply::Done {})
    }

    pub(super) fn operation_clear(&self, id: &RequestId) -> io::Result<Reply> {
        if !self.others_operation(id)? {
            durable::remove(&self.path(path::OPERATION))?;
        }
        Ok(Reply::Done {})
    }

    /// Whether operation.json stands and names another request. What can't be read names nobody.
    fn others_operation(&self, id: &RequestId) -> io::Result<bool> {
        #[derive(Deserialize)]
        struct Named {
            request_id: RequestId,
        }
        let stands = durable::read(&self.path(path::OPERATION), MOST)?;
        let named = stands.and_then(|bytes| serde_json::from_slice::<Named>(&bytes).ok());
        Ok(named.is_some_and(|named| named.request_id != *id))
    }

    pub(super) fn operation_get(&self) -> io::Result<Reply> {
        Ok(bytes(durable::read(&self.path(path::OPERATION), MOST)?))
    }

    pub(super) fn request_store(&self, id: &RequestId, payload: &[u8]) -> io::Result<Reply> {
        /// What is told where nobody saw the end.
        #[derive(Deserialize)]
        struct Unseen {
            #[serde(rename = "receipt")]
            _receipt: (),
        }
        let file = self.path(path::REQUESTS).join(format!("{id}.json"));
        // Whoever could not read what is stored knows less than that, and may come late.
        if serde_json::from_slice::<Unseen>(payload).is_ok() && durable::read(&file, MOST)?.is_some() {
            return Ok(Reply::Done {});
        }
        durable::replace(&file, payload)?;
        Ok(Reply::Done {})
    }

    pub(super) fn request_load(&self, id: &RequestId) -> io::Result<Reply> {
        Ok(bytes(durable::read(&self.path(path::REQUESTS).join(format!("{id}.json")), MOST)?))
    }

    /// By the time of writing, as these files have no seq in their name. What is lost by a wrong clock is a replay, not a record.
    pub(super) fn requests_prune(&self, keep: u32) -> io::Result<Reply> {
        let folder = self.path(path::REQUESTS);
        for litter in [&folder, &self.path(path::VAR), &self.path(path::LOG)] {
            durable::sweep(litter)?;
        }
        let mut all: Vec<(SystemTime, std::path::PathBuf)> = Vec::new();
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Reply::Done {}),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let ours = name.to_str().and_then(|n| n.strip_suffix(".json")).is_some_and(|id| id.parse::<RequestId>().is_ok());
            if ours {
                all.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        all.sort_unstable();
        let gone = all.len().saturating_sub(keep as usize);
        for (_, file) in all.into_iter().take(gone) {
            std::fs::remove_file(file)?;
        }
        Ok(Reply::Done {})
    }

    pub(super) fn grant_spend(&self, nonce: &Nonce, note: &[u8]) -> io::Result<Reply> {
        let folder = self.path(path::GRANTS);
        durable::folder(&folder)?;
        // EXCL is the spending: of two callers with one grant, one gets the file.
        let path = folder.join(nonce.as_str());
        match durable::file(&path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL) {
            Ok(mut file) => {
                file.write_all(note)?;
                file.sync_all()?;
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let by = durable::read(&path, 4096).ok().flatten().and_then(|note| spender(&note));
                return Ok(Reply::Spent { by });
            }
            Err(e) => return Err(e),
        }
        durable::sync_folder(&folder)?;
        Ok(Reply::Done {})
    }
}

fn spender(note: &[u8]) -> Option<RequestId> {
    let note: serde_json::Value = serde_json::from_slice(note).ok()?;
    serde_json::from_value(note.get("request_id")?.clone()).ok()
}

pub(super) fn bytes(found: Option<Vec<u8>>) -> Reply {
    found.map_or(Reply::Absent {}, |bytes| Reply::Bytes { bytes })
}
