//! Rows about QEMU and its disk: what a bundle must hold so that somebody who sees only it can say what hung.

use std::fs;
use std::process::Command;
use std::time::Duration;

use lab::bundle::{Bundle, judged_with};
use lab::installed::{agent, look};
use lab::lab::Scenario;
use lab::process::{must, run, until};
use lab::vm::send;
use lab::{Host, Lab, Result, Vm, wedge};
use rustix::process::Signal;
use serde_json::Value;

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("when_the_disk_is_throttled_to_nothing_then_the_bundle_alone_says_what_hung", throttled),
    ("when_looks_follow_each_other_at_once_then_none_calls_a_stalled_vm_healthy", looked_at_often),
    ("when_qemu_is_stopped_then_the_bundle_says_which_thread_and_how", stopped_by_a_signal),
    ("when_an_nbd_backend_stops_then_the_bundle_tells_it_from_a_throttle", nbd_stopped),
    ("when_the_file_system_under_the_image_freezes_then_the_survivor_and_its_wait_are_in_the_bundle", frozen),
];

/// What somebody concludes from the files of a bundle and nothing else.
#[derive(Debug, PartialEq, Eq)]
struct Conclusion {
    /// Operations that completed between the two samples.
    completed: u64,
    /// Requests that the guest waits for, in both samples.
    waiting: (u64, u64),
    /// The limit that holds the disk, where one does.
    limit: Option<u64>,
    /// The backend's driver and the word of QEMU on its health.
    backend: (String, String),
    /// I/O workers in state D.
    workers_in_d: usize,
    /// The iothread that serves the disk is among the threads, with a stack.
    iothread_seen: bool,
}

/// What a conclusion is drawn from.
const CONCLUSIVE: [&str; 7] = [
    "qmp/query-blockstats.1.json",
    "qmp/query-blockstats.2.json",
    "qmp/virtqueues.1.json",
    "qmp/virtqueues.2.json",
    "qmp/query-block.json",
    "qmp/query-iothreads.json",
    "process/threads.2.json",
];

fn conclude(bundle: &Bundle) -> Conclusion {
    let operations = |n: u8| -> u64 {
        let stats = bundle.json(&format!("qmp/query-blockstats.{n}.json"));
        let disk = stats.as_array().unwrap().iter().find(|one| one["device"] == "drive-scsi0").unwrap()["stats"].clone();
        ["rd_operations", "wr_operations", "flush_operations"].iter().map(|name| disk[*name].as_u64().unwrap()).sum()
    };
    let waiting = |n: u8| -> u64 {
        let devices = bundle.json(&format!("qmp/virtqueues.{n}.json"));
        let scsi = devices["virtio"].as_array().unwrap().iter().find(|device| device["name"] == "virtio-scsi").unwrap();
        scsi["queues"].as_array().unwrap().iter().skip(2).map(|queue| queue["inuse"].as_u64().unwrap()).sum()
    };
    let block = bundle.json("qmp/query-block.json");
    let disk = block.as_array().unwrap().iter().find(|one| one["device"] == "drive-scsi0").unwrap();
    let threads = bundle.json("process/threads.2.json");
    let threads = threads["threads"].as_array().unwrap();
    let named = |thread: &Value, starts: &[&str]| starts.iter().any(|start| thread["name"].as_str().unwrap().starts_with(start));
    let iothread = bundle.json("qmp/query-iothreads.json")[0]["thread-id"].as_u64().unwrap();
    assert!(threads.len() >= 4, "main thread, iothread, vCPU and workers: {threads:#?}");
    for thread in threads {
        for member in ["tid", "name", "state", "wchan", "stack", "syscall", "utime", "stime", "switches"] {
            assert!(thread.get(member).is_some(), "{member} of {thread}");
        }
    }
    Conclusion {
        completed: operations(2) - operations(1),
        waiting: (waiting(1), waiting(2)),
        limit: disk["inserted"]["bps"].as_u64().filter(|limit| *limit > 0),
        backend: (disk["inserted"]["drv"].as_str().unwrap().to_owned(), disk["io-status"].as_str().unwrap().to_owned()),
        workers_in_d: threads.iter().filter(|t| named(t, &["iou-wrk", "worker"]) && t["state"] == "D").count(),
        iothread_seen: threads.iter().any(|t| t["tid"] == iothread && t["stack"].as_array().is_some_and(|stack| !stack.is_empty())),
    }
}

fn throttled(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let stall = wedge::block_stall(vm)?;
    let bundle = judged_with(lab, "block-stalled", Some("cycle"), &[&CONCLUSIVE[..], &["guest/diskstats.json"]].concat());
    stall.now();
    let bundle = bundle?;
    let seen = conclude(&bundle);
    assert!(seen.waiting.0 > 0 && seen.waiting.1 > 0, "{seen:?}");
    let expected = Conclusion {
        completed: 0,
        waiting: seen.waiting,
        limit: Some(1),
        backend: ("qcow2".into(), "ok".into()),
        workers_in_d: 0,
        iothread_seen: true,
    };
    assert_eq!(seen, expected, "a limit of 1 byte/s holds it; nothing below QEMU was asked");
    assert!(bundle.json("guest/diskstats.json")[0]["stats"]["ios-pgr"].as_u64().unwrap() > 0, "the guest counts the same");
    let said = bundle.finding("block-stalled");
    for part in ["0 block operations completed", "scsi0: throttle bps=1", "backend qcow2", "iothread-virtioscsi0", "request queue"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(bundle.advice().contains("A reset keeps this process"), "{}", bundle.advice());
    Ok(())
}

/// As a page and a person do who ask at the same time: a sample that is too near to compare with must not hide the one before it.
fn looked_at_often(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let stall = wedge::block_stall(vm)?;
    let ssh = agent(lab)?;
    let _to_compare_with = look(&ssh, "status")?;
    std::thread::sleep(Duration::from_millis(2_500));
    let codes: Result<Vec<String>> = (0..8).map(|_| Ok(look(&ssh, "status")?.code())).collect();
    stall.now();
    assert!(codes.as_ref().is_ok_and(|codes| codes.iter().all(|code| code == "block-stalled")), "{codes:?}");
    Ok(())
}

fn stopped_by_a_signal(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let stopped = wedge::qemu_stopped(vm)?;
    let bundle = judged_with(lab, "qemu-unresponsive", Some("cycle"), &["process/status.txt", "process/threads.1.json"]);
    stopped.now();
    let bundle = bundle?;
    assert!(bundle.finding("qemu-unresponsive").contains("its main thread is stopped (T)"), "{}", bundle.finding("qemu-unresponsive"));
    assert!(bundle.text("process/status.txt").contains("State:\tT (stopped)"));
    let threads = bundle.json("process/threads.1.json");
    let threads = threads["threads"].as_array().unwrap();
    assert!(threads.len() >= 3 && threads.iter().all(|thread| thread["state"] == "T"), "{threads:#?}");
    assert!(bundle.why_not("qmp/greeting").unwrap().contains("no greeting came"));
    assert!(bundle.why_not("guest/ping").unwrap().contains("dead entry"), "what would leave one was not asked");
    Ok(())
}

/// The guest has to wait for its disk in both samples of the bundle, and nothing of before may still complete between them.
fn flat(vm: &Vm) -> Result<()> {
    let flat = || {
        let (before, waiting) = (vm.completed().ok()?, vm.waiting().ok()?);
        std::thread::sleep(Duration::from_secs(1));
        (waiting > 0 && vm.completed().ok()? == before).then_some(())
    };
    until("flat operations", Duration::from_secs(60), flat)
}

fn nbd_stopped(lab: &Lab) -> Result<()> {
    let vm = lab.stopped()?;
    let backend = wedge::nbd_backend(&lab.host)?;
    vm.boot()?;
    backend.stop()?;
    vm.guest_background("dd if=/dev/zero of=/data/x bs=4k count=64 oflag=direct")?;
    flat(vm)?;
    let needed = [&CONCLUSIVE[..], &["qmp/query-named-block-nodes.json"]].concat();
    let bundle = judged_with(lab, "block-stalled", Some("cycle"), &needed);
    backend.go_on()?;
    let bundle = bundle?;
    let seen = conclude(&bundle);
    assert_eq!((seen.completed, seen.limit, seen.iothread_seen), (0, None, true), "no limit holds it: {seen:?}");
    assert!(seen.waiting.0 > 0 && seen.waiting.1 > 0, "{seen:?}");
    let said = bundle.finding("block-stalled");
    assert!(said.contains("no throttle limit") && said.contains("nbd"), "the backend is named: {said}");
    assert!(bundle.json("qmp/query-named-block-nodes.json").to_string().contains("\"drv\":\"nbd\""));
    vm.kill()
}

/// A file system of the lab's own, with the VM's disk in it, that can be frozen as `fsfreeze` freezes one.
struct Freezable(String);

impl Freezable {
    fn mount(host: &Host) -> Result<Self> {
        let (image, folder) = ("/run/lab/freezable.img", "/var/lib/vz/images/102");
        let disk = fs::read(lab::host::DISK).unwrap();
        must("truncate", ["-s", "300M", image])?;
        must("mkfs.ext4", ["-q", "-F", image])?;
        must("mount", ["-o", "loop", image, folder])?;
        let mounted = Self(folder.to_owned());
        fs::write(lab::host::DISK, disk).unwrap();
        // The workers of io_uring and of a thread pool wait alike; the pool's are the ones whose wait is named.
        host.set_conf(|conf| conf.current.set("scsi0", "local:102/vm-102-disk-0.qcow2,iothread=1,aio=threads,cache=writeback,size=64M"))?;
        Ok(mounted)
    }

    fn freeze(&self) -> Result<()> {
        must("fsfreeze", ["--freeze", &self.0]).map(drop)
    }

    fn thaw(&self) {
        let _thawed_already = run(Command::new("fsfreeze").args(["--unfreeze", &self.0]), Duration::from_secs(10));
    }
}

impl Drop for Freezable {
    fn drop(&mut self) {
        self.thaw();
        let _busy = run(Command::new("umount").args(["-l", &self.0]), Duration::from_secs(10));
    }
}

fn frozen(lab: &Lab) -> Result<()> {
    let vm = lab.stopped()?;
    let under = Freezable::mount(&lab.host)?;
    vm.boot()?;
    under.freeze()?;
    vm.guest_background("dd if=/dev/zero of=/data/x bs=4k count=2000 oflag=direct")?;
    let pid = vm.pid().unwrap();
    let in_d = || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        threads.filter(|thread| fs::read_to_string(thread.path().join("stat")).is_ok_and(|stat| stat.contains(") D "))).count()
    };
    until("a thread in D", Duration::from_secs(40), || (in_d() > 0).then_some(()))?;
    flat(vm)?;

    let stalled = judged_with(lab, "block-stalled", Some("cycle"), &CONCLUSIVE)?;
    let seen = conclude(&stalled);
    assert!(seen.completed == 0 && seen.limit.is_none() && seen.workers_in_d > 0, "{seen:?}");

    send(pid, Signal::KILL)?;
    until("PVE to take it for stopped", Duration::from_secs(30), || vm.pid().is_none().then_some(()))?;
    let bundle = judged_with(lab, "survivor", None, &["host/survivor.json"]);
    under.thaw();
    let bundle = bundle?;
    assert_eq!(bundle.told.body["state_after"], "survivor");
    let left = bundle.json("host/survivor.json");
    let waits = left["threads"].as_array().unwrap().iter().find(|thread| thread["state"] == "D").unwrap_or_else(|| panic!("{left:#}"));
    assert!(left["pid"] == pid && !waits["stack"].as_array().unwrap().is_empty(), "{left:#}");
    assert!(bundle.finding("survivor").contains("hold the disk"), "{}", bundle.finding("survivor"));
    assert!(bundle.advice().starts_with("Do not start it"), "{}", bundle.advice());
    until("the survivor's end", Duration::from_secs(30), || vm.scope().is_empty().then_some(()))?;
    vm.kill()
}
