//! `qm config`, `pending`, `set` and `unlock`: the configuration file from the outside.
//!
//! `set` knows no hot-plug: what the real one changes in a running VM at once (a name, `onboot`, ...) is changed at once, everything
//! else waits in `[PENDING]`, as memory and display do on a real host.

use std::collections::BTreeSet;

use super::cli::Request;
use super::conf;
use super::{Fail, Run, lock, out, process};

/// Keys that take effect at once although the VM runs.
const FAST: [&str; 12] = [
    "lock",
    "name",
    "onboot",
    "shares",
    "startup",
    "description",
    "protection",
    "vmstatestorage",
    "hookscript",
    "tags",
    "ciupgrade",
    "hotplug",
];

/// `qm config VM [--current]`.
pub fn config(request: &Request) -> Run {
    let conf = conf::load(request.vmid)?;
    let values = if request.flag("current") { conf.now.clone() } else { conf.wanted() };
    let text: String = values.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
    out::raw(text.as_bytes());
    Ok(())
}

/// `qm pending VM`.
pub fn pending(request: &Request) -> Run {
    let conf = conf::load(request.vmid)?;
    let keys: BTreeSet<&String> = conf.now.keys().chain(conf.pending.keys()).collect();
    let mut text = String::new();
    for key in keys {
        match (conf.now.get(key), conf.pending.get(key)) {
            (Some(now), _) if conf.delete.contains(key) => text.push_str(&format!("del {key}: {now}\n")),
            (Some(now), Some(new)) => text.push_str(&format!("cur {key}: {now}\nnew {key}: {new}\n")),
            (Some(now), None) => text.push_str(&format!("cur {key}: {now}\n")),
            (None, Some(new)) => text.push_str(&format!("new {key}: {new}\n")),
            (None, None) => {}
        }
    }
    out::raw(text.as_bytes());
    Ok(())
}

/// `qm set VM --KEY VALUE ... [--delete KEYS]`.
pub fn set(request: &Request) -> Run {
    let vmid = request.vmid;
    let changes: Vec<_> = request.options.iter().filter(|(key, _)| *key != "skiplock").collect();
    if changes.is_empty() {
        return Err(Fail::die("no options specified"));
    }
    let _lock = lock::take(vmid)?;
    let mut conf = conf::load(vmid)?;
    if !request.flag("skiplock") {
        conf.check_lock()?;
    }
    let shown: Vec<String> = changes.iter().map(|(key, value)| format!("-{key} {value}")).collect();
    out::say(&format!("update VM {vmid}: {}", shown.join(" ")));
    let at_once = |key: &str| process::running(vmid).is_none() || FAST.contains(&key);
    for (key, value) in changes {
        if key == "delete" {
            for gone in value.split(',') {
                conf.pending.remove(gone);
                if at_once(gone) {
                    conf.now.remove(gone);
                } else if conf.now.contains_key(gone) && !conf.delete.iter().any(|key| key == gone) {
                    conf.delete.push(gone.to_owned());
                }
            }
            continue;
        }
        conf.delete.retain(|gone| gone != key);
        if at_once(key) || conf.now.get(key) == Some(value) {
            conf.pending.remove(key);
            conf.now.insert(key.clone(), value.clone());
        } else {
            conf.pending.insert(key.clone(), value.clone());
        }
    }
    conf.write(vmid)
}

/// `qm unlock VM`: only deletes the key.
pub fn unlock(request: &Request) -> Run {
    let vmid = request.vmid;
    // The complaint about a missing file comes before the lock.
    conf::load(vmid)?;
    let _lock = lock::take(vmid)?;
    let mut conf = conf::load(vmid)?;
    conf.now.remove("lock");
    conf.write(vmid)
}
