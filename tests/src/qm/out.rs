//! What the stand-in prints, and what happens when nobody reads it.
//!
//! A worker dies at its first message after its client is gone, as the real one dies of SIGPIPE; a client notes that its stdout is
//! broken and goes on, as the real one does. Nothing here is buffered: a killed client must have written what it had.

use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

static WORKER: AtomicBool = AtomicBool::new(false);
static TROUBLE: Mutex<Option<String>> = Mutex::new(None);

/// From now on this process is a worker: a message that nobody reads ends it.
pub fn i_am_a_worker() {
    WORKER.store(true, Ordering::SeqCst);
}

/// Whether this process is a worker.
pub fn is_worker() -> bool {
    WORKER.load(Ordering::SeqCst)
}

fn put(mut to: impl Write, bytes: &[u8], is_stdout: bool) {
    let Err(why) = to.write_all(bytes).and_then(|()| to.flush()) else {
        return;
    };
    if is_worker() {
        std::process::exit(141);
    }
    if is_stdout && let Ok(mut trouble) = TROUBLE.lock() {
        let text = io::Error::from(why.kind()).to_string();
        trouble.get_or_insert(text);
    }
}

/// Writes bytes to stdout as they are.
pub fn raw(bytes: &[u8]) {
    put(io::stdout().lock(), bytes, true);
}

/// Writes one line to stdout.
pub fn say(line: &str) {
    raw(format!("{line}\n").as_bytes());
}

/// Writes bytes to stderr as they are.
pub fn warn_raw(text: &str) {
    put(io::stderr().lock(), text.as_bytes(), false);
}

/// Writes one line to stderr; in a worker that is the task's output.
pub fn warn(line: &str) {
    warn_raw(&format!("{line}\n"));
}

/// Why stdout could not be written, if it could not.
pub fn stdout_trouble() -> Option<String> {
    TROUBLE.lock().ok().and_then(|trouble| trouble.clone())
}

/// Perl complains about a locale that the machine does not have; a Proxmox host has few.
pub fn locale_warnings() {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let known = |value: &str| matches!(value, "C" | "POSIX" | "C.UTF-8" | "C.utf8" | "en_US.UTF-8" | "en_US.utf8");
    let (all, lang) = (set("LC_ALL"), set("LANG"));
    if [&all, &lang].into_iter().flatten().all(|value| known(value)) {
        return;
    }
    let shown = |value: &Option<String>| value.as_ref().map_or_else(|| "(unset)".to_owned(), |value| format!("\"{value}\""));
    warn(&format!(
        "perl: warning: Setting locale failed.\nperl: warning: Please check that your locale settings:\n\tLANGUAGE = {},\n\tLC_ALL = {},\n\tLANG = {}\n    \
         are supported and installed on your system.\nperl: warning: Falling back to the standard locale (\"C\").",
        shown(&set("LANGUAGE")),
        shown(&all),
        shown(&lang)
    ));
}
