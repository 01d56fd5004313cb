//! What it costs that much is kept: bundles on the host, finished requests, and the agent's receipts and incidents.
//!
//! What is many are copies of a genuine one under other names, made where the program keeps them; the copies of a bundle share its files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::error::{Context, Error};
use lab::installed::{EVIDENCE, GENEROUS, limits};
use lab::{Result, vm::BOOT};

use crate::Bench;
use crate::evidence::preserved;
use crate::measure::{Table, Times, ms, verb, whole};
use crate::warm::Warm;
use lab::agent::STATE;

const REQUESTS: &str = "/var/lib/pve-verb/requests";

pub(crate) fn tables(bench: &Bench) -> Result<Vec<Table>> {
    limits(&format!("{GENEROUS}[evidence]\nkeep = 1000000\nkeep_bytes = \"1TiB\"\n"))?;
    let mut all = vec![bundles(bench)?, requests(bench)?];
    if !bench.once {
        all.extend(agent(bench)?);
    }
    limits(GENEROUS)?;
    Ok(all)
}

fn sizes(bench: &Bench) -> &'static [usize] {
    if bench.once { &[10, 50] } else { &[10, 100, 1_000, 10_000] }
}

/// A folder's copy: folders of its own, the files shared.
fn shared(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).context("make a folder")?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).context("set its mode")?;
    for entry in fs::read_dir(from).context("read a folder")?.flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() { shared(&source, &target)? } else { fs::hard_link(&source, &target).context("share a file")? }
    }
    Ok(())
}

/// A copy with files of its own.
fn copied(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).context("make a folder")?;
    for entry in fs::read_dir(from).context("read a folder")?.flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() { copied(&source, &target)? } else { fs::copy(&source, &target).map(drop).context("copy a file")? }
    }
    Ok(())
}

fn entries(folder: &str) -> Result<Vec<PathBuf>> {
    let mut all: Vec<_> = fs::read_dir(folder).context(format!("read {folder}"))?.flatten().map(|entry| entry.path()).collect();
    all.sort();
    Ok(all)
}

/// The first of a folder for which this is true.
fn first(folder: &str, is: impl Fn(&Path) -> bool) -> Result<PathBuf> {
    let none = || Error::new(format!("{folder} has nothing to copy"), "Look at it");
    entries(folder)?.into_iter().find(|path| is(path)).ok_or_else(none)
}

/// The `n`th id of a copy.
fn id(n: usize) -> String {
    format!("{n:08x}-0000-4000-8000-000000000000")
}

fn bundles(bench: &Bench) -> Result<Table> {
    let vm = bench.lab.fresh()?;
    // A mutation's bundle stays until it is reviewed, so there may be many.
    whole(&mut verb("cycle"))?;
    vm.wait_for_ssh(BOOT)?;
    let genuine = first(EVIDENCE, |path| path.to_string_lossy().contains("-cycle-"))?;
    let mut table = Table::new(&["bundles", "`status`", "`bundle list`", "`forensics` until preserved", "`forensics`, whole"]);
    let mut made = 1;
    for size in sizes(bench) {
        while made < *size {
            let name = format!("20250101T{:02}{:02}{:02}.{:03}Z-cycle-{made:08x}", made / 3600, made / 60 % 60, made % 60, made % 1000);
            shared(&genuine, &Path::new(EVIDENCE).join(name))?;
            made += 1;
        }
        // The first call enters what is new; that is not what a host with many pays.
        whole(&mut verb("forensics"))?;
        let [mut status, mut list, mut kept, mut end] = [const { Times::new() }; 4];
        for _ in 0..bench.rounds(7) {
            status.push(whole(&mut verb("status"))?);
            list.push(whole(&mut verb("bundle list"))?);
            let (at, all) = preserved("forensics --json")?;
            kept.push(at);
            end.push(all);
        }
        table.row(&[size.to_string(), ms(status.median()), ms(list.median()), ms(kept.median()), ms(end.median())]);
    }
    for path in entries(EVIDENCE)?.iter().filter(|path| path.to_string_lossy().contains("/20250101T")) {
        fs::remove_dir_all(path).context("remove a copy")?;
    }
    whole(&mut verb("forensics"))?;
    Ok(table)
}

fn requests(bench: &Bench) -> Result<Table> {
    let genuine = first(REQUESTS, |path| path.extension().is_some_and(|ending| ending == "json"))?;
    let known = genuine.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut table = Table::new(&["finished requests", "`status`", "the stored answer of one"]);
    let replay = format!("cycle --request-id={known}");
    let mut made = 0;
    // A thousand are kept.
    for size in sizes(bench).iter().filter(|size| **size <= 1_000) {
        while made < *size {
            fs::copy(&genuine, format!("{REQUESTS}/{}.json", id(made))).context("copy a request")?;
            made += 1;
        }
        let [mut status, mut again] = [const { Times::new() }; 2];
        for _ in 0..bench.rounds(7) {
            status.push(whole(&mut verb("status"))?);
            again.push(whole(&mut verb(&replay))?);
        }
        table.row(&[size.to_string(), ms(status.median()), ms(again.median())]);
    }
    for n in 0..made {
        let _gone_by_itself = fs::remove_file(format!("{REQUESTS}/{}.json", id(n)));
    }
    Ok(table)
}

fn agent(bench: &Bench) -> Result<Vec<Table>> {
    let mut warm = Warm::start(bench)?;
    Warm::settles(bench);
    warm.takes("status")?;
    warm.takes("open")?;
    let receipt = first(&format!("{STATE}/receipts"), |path| path.extension().is_some_and(|ending| ending == "json"))?;
    let incident = first(&format!("{STATE}/incidents"), Path::is_dir)?;
    let median = |rounds: usize, one: &mut dyn FnMut() -> Result<Duration>| -> Result<String> {
        let mut times = Times::new();
        for _ in 0..rounds {
            times.push(one()?);
        }
        Ok(ms(times.median()))
    };
    let mut receipts = Table::new(&["kept receipts", "a warm `status`"]);
    let mut incidents = Table::new(&["incidents", "listing all", "opening one"]);
    let mut made = 1;
    for size in sizes(bench) {
        while made < *size {
            fs::copy(&receipt, format!("{STATE}/receipts/{:020}-{}.json", 0, id(made))).context("copy a receipt")?;
            copied(&incident, &Path::new(STATE).join("incidents").join(id(made)))?;
            made += 1;
        }
        let verb = median(7, &mut || {
            Warm::settles(bench);
            warm.takes("status")
        })?;
        receipts.row(&[size.to_string(), verb]);
        incidents.row(&[size.to_string(), median(5, &mut || warm.takes("incidents"))?, median(5, &mut || warm.takes("open"))?]);
    }
    incidents.note("The agent keeps 10,000 receipts and a GiB of incidents; an incident of a few lines here.");
    Ok(vec![receipts, incidents])
}
