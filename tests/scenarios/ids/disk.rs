//! Ids while the disk that remembers them hangs.

use super::*;

fn hang_the_disk() -> Vec<lab::fuse::Served> {
    ["/var/lib/pve-verb", "/var/log/pve-verb"].map(|folder| wedge::disk_hung(folder).unwrap()).into()
}

pub(crate) fn hangs_later(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let ssh = anna(lab)?;
    for spool_stays in [true, false] {
        let id = fresh_id()?;
        let request = format!("cycle --json --request-id={id}");
        let first = body(&ssh.call(&request)?)?;
        let after = (vm.pid(), vm.start_ticks());
        station::quiet(AMPLE)?;
        let hung = hang_the_disk();
        if spool_stays {
            // The worst: the copy on tmpfs is gone as well, and only the spool tells.
            fs::remove_file(format!("/run/pve-verb/requests/{id}.json")).unwrap();
        } else {
            fs::remove_file(format!("/run/pve-verb/spool/{id}.jsonl")).unwrap();
        }
        for request in [request.clone(), format!("cycle --json --attach --request-id={id}")] {
            let again = body(&ssh.call(&request)?)?;
            assert_eq!((&again["replayed"], &again["exit_code"]), (&json!(true), &json!(0)), "{again:#}");
            assert_eq!(again["bundle"], first["bundle"]);
        }
        assert_eq!((vm.pid(), vm.start_ticks()), after, "a finished id ran again");
        drop(hung);
    }
    Ok(())
}

pub(crate) fn not_looked_up(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let (ssh, id) = (anna(lab)?, fresh_id()?);
    let before = (vm.pid(), vm.start_ticks());
    let hung = hang_the_disk();
    let told = body(&ssh.call(format!("cycle --json --attach --request-id={id}"))?)?;
    assert_eq!((told["outcome"].as_str(), &told["exit_code"]), (Some("unknown"), &json!(11)), "{told:#}");
    assert_eq!((vm.pid(), vm.start_ticks()), before);
    // In the incident in which the disk hangs, an id of one's own must not keep anybody from acting.
    let told = body(&ssh.call(format!("cycle --json --request-id={id}"))?)?;
    assert_eq!(told["exit_code"], 0, "{told:#}");
    assert!(told["degraded"].to_string().contains("could not be looked up"), "{told:#}");
    drop(hung);
    Ok(())
}

pub(crate) fn damaged(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let (ssh, id) = (anna(lab)?, fresh_id()?);
    let request = format!("cycle --json --request-id={id}");
    assert_eq!(ssh.call(&request)?.status, 0);
    // Another one, so that the log's newest intent is not what remembers it.
    assert_eq!(ssh.call("cycle")?.status, 0);
    station::quiet(AMPLE)?;
    for path in [format!("/run/pve-verb/spool/{id}.jsonl"), format!("/run/pve-verb/requests/{id}.json")] {
        fs::remove_file(path).unwrap();
    }
    fs::write(format!("/var/lib/pve-verb/requests/{id}.json"), "{\"binding\":").unwrap();
    let after = (vm.pid(), vm.start_ticks());
    for request in [request.clone(), format!("cycle --json --attach --request-id={id}")] {
        let told = body(&ssh.call(&request)?)?;
        assert_eq!(told["exit_code"], 11, "{told:#}");
        assert!(told["message"]["what"].as_str().unwrap().contains("can't be read"), "{told:#}");
    }
    assert_eq!((vm.pid(), vm.start_ticks()), after, "an id that ended ran again");
    Ok(())
}

/// Workers go to a cgroup of their own before they make their spool; this one is frozen, as a host out of memory would be.
pub(crate) fn slow_worker(lab: &Lab) -> Result<()> {
    const OWN: &str = "/sys/fs/cgroup/pve-verb";
    let vm = bare_vm(lab)?;
    let (ssh, id) = (anna(lab)?, fresh_id()?);
    let before = (vm.pid(), vm.start_ticks());
    // Whoever tidies there behind an earlier answer is not meant.
    station::quiet(AMPLE)?;
    fs::create_dir_all(OWN).unwrap();
    fs::write(format!("{OWN}/cgroup.freeze"), "1").unwrap();
    let answer = ssh.call(format!("cycle --json --request-id={id}"));
    let left = processes("worker");
    fs::write(format!("{OWN}/cgroup.freeze"), "0").unwrap();
    let told = body(&answer?)?;
    assert_eq!((&told["outcome"], &told["exit_code"]), (&json!("internal"), &json!(70)), "{told:#}");
    assert_eq!(left, Vec::<u32>::new(), "it says that nothing was done while its worker is there");
    // What was frozen would go on now, and take longer for its first record than this.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((vm.pid(), vm.start_ticks()), before, "a worker came to life");
    let left = Traces::of(&id)?;
    assert!(left.none(), "{left:?}");
    // Nothing was begun, so the id is free.
    assert_eq!(ssh.call(format!("cycle --json --attach --request-id={id}"))?.status, 6);
    assert_eq!(ssh.call(format!("cycle --json --request-id={id}"))?.status, 0);
    Ok(())
}
