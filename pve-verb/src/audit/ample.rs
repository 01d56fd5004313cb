//! What a log under test stands on, where its limits are not what is tested: a disk whose fsync is quick, and all the time that a busy
//! machine may take.

use super::*;

pub(crate) const AMPLE: Duration = Duration::from_secs(120);

/// A host's folder, in memory where the machine has such: there an fsync does not take a log's second.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

impl Log {
    /// Appends a record that a disk which can take it has taken when this is back.
    pub(crate) fn put(&mut self, kind: Kind, facts: Map<String, Value>) -> Position {
        self.append_within(kind, facts, AMPLE).unwrap()
    }
}
