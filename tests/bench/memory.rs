//! Peak memory of each process that a verb has, and of the agent's that stay; the programs' sizes. Peaks are the kernel's (VmHWM), looked at
//! every millisecond until the process is gone: what it took in its very last millisecond may be missing.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::Result;
use lab::error::Context;
use lab::lab::built;
use lab::process::{start, until};

use crate::Bench;
use crate::desk::desk;
use crate::measure::{Table, verb};

/// Peaks in KiB by role: a program's name and its first word.
type Peaks = BTreeMap<String, u64>;

/// Notes the peaks of every process of ours that there is now.
fn look(peaks: &mut Peaks) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let program = words.next().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
        if program != "pve-verb" && program != "breakglass" {
            continue;
        }
        let role = format!("{program} {}", words.next().unwrap_or_default());
        let Some(peak) = fs::read_to_string(path.join("status")).ok().as_deref().and_then(high_water) else { continue };
        let known = peaks.entry(role.trim().to_owned()).or_default();
        *known = peak.max(*known);
    }
}

fn high_water(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
}

/// Looks until the child has ended.
fn attend(mut child: Child, peaks: &mut Peaks) -> Result<()> {
    while child.try_wait().context("wait for a program")?.is_none() {
        look(peaks);
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("start a program")
}

/// What `log verify` takes on the log that is there.
pub(crate) fn of_verify() -> Result<String> {
    let mut peaks = Peaks::new();
    attend(spawn(&mut verb("log verify"))?, &mut peaks)?;
    Ok(peaks.get("pve-verb log").map_or_else(|| "–".to_owned(), |kib| mib(*kib)))
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn mib(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

pub(crate) fn tables(bench: &Bench) -> Result<Vec<Table>> {
    let vm = bench.lab.fresh()?;
    let mut table = Table::new(&["process", "peak"]);
    let mut peaks = Peaks::new();
    for words in ["status --json", "forensics --json"] {
        attend(spawn(&mut verb(words))?, &mut peaks)?;
    }
    if !bench.once {
        attend(spawn(&mut verb("cycle --json"))?, &mut peaks)?;
        vm.wait_for_ssh(lab::vm::BOOT)?;
        let desk = desk(&bench.lab, "[watch]\ninterval_s = 10\n")?;
        let watch = start(&mut desk.command(&["watch"]), &[])?;
        let began = Instant::now();
        until("three looks of the watch", Duration::from_secs(60), || {
            look(&mut peaks);
            (began.elapsed() > Duration::from_secs(25)).then_some(())
        })?;
        watch.kill()?;
        // Nobody signs in: its looks are what it does all day.
        let tokens = "/etc/breakglass/tokens";
        lab::host::write(tokens, &format!("nobody:{}\n", "0".repeat(64)), 0o600)?;
        let web = format!("[web]\nlisten = \"127.0.0.1:8102\"\ntokens_file = \"{tokens}\"\n[watch]\ninterval_s = 10\n");
        lab::agent::configure(&bench.lab.host, crate::keyholder::SOCKET, &web)?;
        let serve = start(&mut desk.command(&["serve"]), &[])?;
        let began = Instant::now();
        until("three looks of the page's", Duration::from_secs(60), || {
            look(&mut peaks);
            (began.elapsed() > Duration::from_secs(25)).then_some(())
        })?;
        serve.kill()?;
    }
    for (role, kib) in &peaks {
        let what = match role.as_str() {
            "pve-verb status" | "pve-verb forensics" => "all stages of a read, in one process",
            "pve-verb forced" => "the same, through sshd",
            "pve-verb cycle" => "the front of a mutation",
            "pve-verb worker" => "the worker of a mutation",
            "pve-verb probe-guest" => "the helper that asks QEMU and the guest",
            "pve-verb probe-host" => "the helper that reads the host",
            "pve-verb writer" => "the helper that writes to disk",
            "breakglass watch" => "the agent, watching",
            "breakglass serve" => "the agent, with its page",
            "breakglass keyholder" => "the agent's keyholder",
            _ => "",
        };
        table.row(&[format!("`{role}` {what}").trim().to_owned(), mib(*kib)]);
    }
    let mut sizes = Table::new(&["program", "size"]);
    for name in if bench.once { &["pve-verb"][..] } else { &["pve-verb", "breakglass"] } {
        let bytes = fs::metadata(built(name)?).context("look at a program")?.len();
        sizes.row(&[format!("`{name}`, static"), mib(bytes >> 10)]);
    }
    Ok(vec![table, sizes])
}
