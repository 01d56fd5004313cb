//! The floor of `status`: asks QEMU for its state, appends one line to a log, syncs it, says the state. Nothing else, and no less: what a
//! recorded answer costs at least.
//!
//!     bench-floor LOG

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Error, Result, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn main() -> Result<()> {
    let log = std::env::args().nth(1).ok_or_else(|| Error::other("bench-floor LOG"))?;
    let stream = UnixStream::connect("/run/qemu-server/102.qmp")?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut answers = BufReader::new(stream.try_clone()?).lines();
    let mut say = &stream;
    let mut next = || answers.next().unwrap_or_else(|| Err(Error::other("QEMU left")));
    let _greeting = next()?;
    say.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
    let _accepted = next()?;
    say.write_all(b"{\"execute\":\"query-status\"}\n")?;
    let answer = loop {
        let line = next()?;
        if line.contains("\"return\"") {
            break line;
        }
    };
    let state = answer.split("\"status\": \"").nth(1).and_then(|rest| rest.split('"').next()).ok_or_else(|| Error::other("no state"))?;
    let at = SystemTime::now().duration_since(UNIX_EPOCH).map_err(Error::other)?.as_millis();
    let mut file = OpenOptions::new().append(true).create(true).open(log)?;
    file.write_all(format!("{at} status of VM 102: {state}\n").as_bytes())?;
    file.sync_data()?;
    std::io::stdout().write_all(format!("{state}\n").as_bytes())
}
