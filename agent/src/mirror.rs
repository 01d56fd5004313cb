//! Every line of every incident once more on standard output, and every proved receipt as it came, for the cluster's log shipper: what an
//! evicted pod loses, the shipper has.
//! Nobody waits for a slow reader of it: what it can't take is counted and said.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

/// Lines that wait for the reader.
const WAITING: usize = 4096;

/// Where lines are told; by default nowhere.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mirror(Option<Arc<Told>>);

#[derive(Debug)]
struct Told {
    tell: SyncSender<String>,
    lost: AtomicU64,
}

impl Mirror {
    /// One that writes to standard output, on a thread of its own.
    pub(crate) fn stdout() -> Self {
        let (tell, told) = sync_channel::<String>(WAITING);
        let spawned = std::thread::Builder::new().name("mirror".to_owned()).spawn(move || {
            for line in told {
                let _nobody_reads = writeln!(std::io::stdout().lock(), "{line}");
            }
        });
        if spawned.is_err() {
            return Self(None);
        }
        Self(Some(Arc::new(Told { tell, lost: AtomicU64::new(0) })))
    }

    /// Tells a line.
    pub(crate) fn tell(&self, line: &str) {
        let Some(told) = &self.0 else { return };
        let lost = told.lost.load(Ordering::Relaxed);
        if lost > 0 && told.tell.try_send(format!("{{\"event\":\"log_lost\",\"lines\":{lost}}}")).is_ok() {
            told.lost.fetch_sub(lost, Ordering::Relaxed);
        }
        if let Err(TrySendError::Full(_)) = told.tell.try_send(line.to_owned()) {
            told.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}
