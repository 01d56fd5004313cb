//! What is wrong inside the guest, as far as it can be told from outside: panic, memory, full file system, a guest that hangs.
//!
//! Everything here needs a QEMU that works; the rows of a broken one stand above these. All quoted text is the guest's.

use proto::{Code, Verb};
use serde_json::Value;

use super::serial::Console;
use super::{Evidence, Likeness, Row, block, show};

const PANIC: [&str; 2] = ["Kernel panic - not syncing", "kernel panic - not syncing"];
const OOM: [&str; 3] = ["Out of memory: Killed process", "invoked oom-killer", "oom-kill:"];
const FULL: [&str; 1] = ["No space left on device"];
/// File systems that are full by nature, or whose filling harms nobody.
const ALWAYS_FULL: [&str; 8] = ["squashfs", "iso9660", "udf", "erofs", "cramfs", "romfs", "vfat", "tmpfs"];

pub(super) fn guest_panicked(e: &Evidence<'_>) -> Option<Row> {
    let vm = e.vm();
    let why = "The guest's kernel is dead and keeps the reason on its console, which is captured: reset.";
    let row = |text: String, path: &str| Some(Row::new(Code::GuestPanicked, text, &[path], Some(Verb::Reset), why));
    if e.status().as_deref() == Some("guest-panicked") {
        return row(format!("{vm}'s guest kernel panicked: QEMU says guest-panicked."), "qmp/query-status.json");
    }
    // A panicked kernel runs no agent, and its screen stands still.
    if e.status().as_deref() != Some("running") || e.agent_answers() || screens_alike(e) == Some(false) {
        return None;
    }
    let console = Console::read(e)?;
    if console.went_on(&PANIC) {
        return None;
    }
    let line = console.last(&PANIC)?;
    row(format!("{vm}'s guest kernel panicked; its console ends with \"{}\".", show(line.trim())), console.path)
}

pub(super) fn guest_oom(e: &Evidence<'_>) -> Option<Row> {
    let vm = e.vm();
    let why = "QEMU is fine, so repair over SSH first: stop what uses the memory. If SSH gives nothing within two minutes: reset.";
    let row = |text: String, path: &str| Some(Row::new(Code::GuestOom, text, &[path], None, why));
    if e.status().as_deref() == Some("running")
        && let Some(console) = Console::read(e)
        && let Some(line) = console.last_recent(&OOM).or_else(|| console.last(&OOM).filter(|_| e.timed_out("guest/ping")))
    {
        return row(format!("{vm}'s guest ran out of memory; its console says \"{}\".", show(line.trim())), console.path);
    }
    let (path, events) = ["cgroup/memory.events.txt", "cgroup/memory.events"].into_iter().find_map(|p| Some((p, e.text(p)?)))?;
    let killed = oom_kills(&events).filter(|n| *n > 0)?;
    let text =
        format!("The host's kernel killed {killed} of {vm}'s processes because their memory limit or the host's memory was used up.");
    let why = "Make room on the host first (host/meminfo.txt says who has its memory), then look again.";
    Some(Row::new(Code::GuestOom, text, &[path], None, why))
}

fn oom_kills(events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

pub(super) fn guest_disk_full(e: &Evidence<'_>) -> Option<Row> {
    let vm = e.vm();
    let why = "QEMU is fine, so repair over SSH first: delete or move files there. A reset frees nothing.";
    let row = |text: String, path: &str| Some(Row::new(Code::GuestDiskFull, text, &[path], None, why));
    let full = e.json("guest/fsinfo.json").as_ref().map(full_file_systems).unwrap_or_default();
    if !full.is_empty() {
        return row(format!("{vm}'s guest has no room left on {}.", full.join(", ")), "guest/fsinfo.json");
    }
    if e.status().as_deref() != Some("running") {
        return None;
    }
    let console = Console::read(e)?;
    let line = console.last_recent(&FULL)?;
    row(format!("{vm}'s guest has no room left on a file system; its console says \"{}\".", show(line.trim())), console.path)
}

/// 99 % used *and* less than 1 GiB free: 1 % of a large disk is room enough, and small ones fill early. `/boot` may be full.
fn full_file_systems(fsinfo: &Value) -> Vec<String> {
    let full = fsinfo.as_array().into_iter().flatten().filter_map(|fs| {
        let mountpoint = fs.get("mountpoint")?.as_str()?;
        let kind = fs.get("type").and_then(Value::as_str).unwrap_or_default();
        let (used, total) = (fs.get("used-bytes")?.as_u64()?, fs.get("total-bytes")?.as_u64()?);
        let free = total.checked_sub(used)?;
        let matters = !ALWAYS_FULL.contains(&kind.to_ascii_lowercase().as_str()) && !mountpoint.starts_with("/boot") && total > 0;
        (matters && free < 1 << 30 && free <= total / 100)
            .then(|| format!("{} ({} MiB of {} MiB free)", show(mountpoint), free >> 20, total >> 20))
    });
    full.take(4).collect()
}

pub(super) fn guest_unresponsive(e: &Evidence<'_>) -> Option<Row> {
    let silent = e.timed_out("guest/ping") && agent_port_is_open(e) == Some(true) && screens_alike(e) == Some(true);
    // Without the block layer's word a stall can't be told from a hang, and the advice for the one harms the other.
    if e.status().as_deref() != Some("running") || !silent || !block::is_compared(e) || block::block_stalled(e).is_some() {
        return None;
    }
    let (activity, ..) = block::activity(e);
    let still = if e.facts.screens == Some(Likeness::ButACursor) { "stands still but for its cursor" } else { "stands still" };
    let text =
        format!("{}'s guest does not respond: its agent has its port open and is silent, and the screen {still}; {activity}.", e.vm());
    let paths = ["guest/ping", "qmp/query-chardev.json", "console/screen-1.png", "console/screen-2.png", "qmp/query-blockstats.1.json"];
    let why = "QEMU is fine and the guest is not: reset; if it comes back, cycle.";
    Some(Row::new(Code::GuestUnresponsive, text, &paths, Some(Verb::Reset), why))
}

/// The guest side of the agent's port: open once the agent runs, so a booting guest is not a silent one.
fn agent_port_is_open(e: &Evidence<'_>) -> Option<bool> {
    let chardevs = e.json("qmp/query-chardev.json")?;
    let port = chardevs.as_array()?.iter().find(|c| c.get("label").and_then(Value::as_str).is_some_and(|l| l.starts_with("qga")))?;
    port.get("frontend-open")?.as_bool()
}

/// Whether the screen stands still; a text screen's cursor, which QEMU draws, blinks for a dead guest too.
fn screens_alike(e: &Evidence<'_>) -> Option<bool> {
    if let Some(likeness) = e.facts.screens {
        return Some(likeness != Likeness::Different);
    }
    let screen = |n: u8| ["png", "ppm"].into_iter().find_map(|kind| (e.artifact)(&format!("console/screen-{n}.{kind}")));
    Some(screen(1)? == screen(2)?)
}
