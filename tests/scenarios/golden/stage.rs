//! How each recorded situation is made again: a shell script for each recording, run in a fresh host before the recorded command.
//!
//! No guest is booted: VM 102 sits in its firmware, or runs a boot sector of a few bytes that switches it off or fills its disk.
//! Where the recorder's earlier steps had changed the state (a lock that a start had removed), the script makes the state in which
//! the recorded command really ran.

/// Words that the scripts use.
pub(crate) const WORDS: &str = r#"
conf=/etc/pve/qemu-server/102.conf; run=/run/qemu-server; image=/var/lib/vz/images/102/vm-102-disk-0.qcow2
must() { "$@" >/dev/null || { echo "staging: $* gave $?" >&2; exit 90; }; }
running() { must qm start 102; }
paused() { running; must qm suspend 102; }
prelaunch() { paused; must qm reset 102; }
pid() { cat $run/102.pid; }
lock() { sed -i '/^lock:/d' $conf; echo "lock: $1" >> $conf; }
until_ok() { for _ in $(seq 300); do "$@" 2>/dev/null && return; sleep .05; done; echo "staging: never: $*" >&2; exit 91; }
# A thread may still be on its way to the stop when `kill` returns, and take one more connection.
stopped() { ! grep -L '^State:.T' /proc/$(pid)/task/*/status | grep -q .; }
hung() { running; kill -STOP $(pid); until_ok stopped; }
backlog() { for _ in 1 2 3 4 5; do golden --poke $run/102.qmp || break; done; }
killed() { running; local p=$(pid); kill -KILL $p; until_ok test ! -e /proc/$p; }
held() { running; golden --hold $run/102.qmp >/dev/null 2>&1 & until_ok test -e /tmp/held; }
flocked() { running; flock /var/lock/qemu-server/lock-102.conf sleep 100 >/dev/null 2>&1 & until_ok sh -c '! flock -n /var/lock/qemu-server/lock-102.conf true'; }
othernode() { cp $conf /etc/pve/nodes/other/qemu-server/103.conf; }
pending() { running; must qm set 102 --memory 320; }
pending2() { pending; must qm set 102 --delete vga; }
garbage() { printf 'foo bar baz\nunknownkey: 1\ncores: abc\n' >> $conf; }
down() { rm /etc/pve/.version; }
down_again() { down; touch /run/lab/qm-saw-pmxcfs-down; }
ha() { printf 'vm: 102\n\tstate %s\n' $1 > /etc/pve/ha/resources.cfg; }
noquorum() { chmod a-w /etc/pve/local/; }
state() { until_ok sh -c "qm status 102 | grep -qx 'status: $1'"; }
sector() { printf "$1" > /tmp/boot; truncate -s 510 /tmp/boot; printf '\x55\xaa' >> /tmp/boot; truncate -s 1G /tmp/boot; qemu-img convert -O qcow2 /tmp/boot $image; }
# mov dx,604h; mov ax,2000h; out dx,ax; hlt: ACPI power-off.
off() { sector '\xba\x04\x06\xb8\x00\x20\xef\xf4\xeb\xfd'; running; state shutdown; }
# Writes 32 KiB of the BIOS every 512 KiB (int 13h, ah=43h) until the image's file system is full.
full() {
  mount -t tmpfs -o size=3M images /var/lib/vz/images/102
  sector '\x31\xc0\x8e\xd8\x8e\xd0\xbc\x00\x7c\xbe\x40\x7c\xb4\x43\xb0\x00\xcd\x13\x66\x81\x06\x48\x7c\x00\x04\x00\x00\xeb\xec\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\x00\x40\x00\x00\x00\x00\xf0\x00\x08\x00\x00\x00\x00\x00\x00'
  running; state io-error
}
full_plain() { sed -i 's/,iothread=1//' $conf; full; }
free() { mount -o remount,size=800M /var/lib/vz/images/102; }
hung_pve() { golden --hang-pve >/dev/null 2>&1 & until_ok grep -q ' /etc/pve fuse' /proc/mounts; }
"#;

/// The script for a recording. `None`: it must stand in `NOT-STAGED`.
pub(crate) fn script(name: &str, text: &str) -> Option<String> {
    let (group, case) = name.split_once('-')?;
    let script = match group {
        "A" => running(case),
        "B" => ":",
        "C" => ":",
        "D" => return locked(case, text),
        "E" => hung(case),
        "F" => held(case),
        "G" => "flocked",
        "H" => "othernode; running",
        "J1" | "J2" | "J3" => return stuck(case),
        "K" => states(case),
        "L" => pending(case),
        "Lm" | "Lp" | "Ls" | "Lt" | "Lx" => broken(group, case),
        "M" => second(case),
        "N" => guest(case),
        "O" => {
            if case.ends_with("status_102") {
                "down"
            } else {
                "down_again"
            }
        }
        "O2" => "down_again",
        "O3" => "hung_pve",
        "P" => managed(case),
        "Q" => odd(case),
        "Q5" => "off",
        "Q6" => full(case),
        "R" => quorum(case),
        _ => return None,
    };
    (!script.is_empty()).then(|| script.to_owned())
}

fn running(case: &str) -> &'static str {
    match case {
        "running-nextid" | "running-pvesh-status" | "running-terminal-nontty" => "",
        "running-status-suspended" | "running-status-suspended-verbose" => "paused",
        _ => "running",
    }
}

fn locked(case: &str, text: &str) -> Option<String> {
    let (word, case) = case.strip_prefix("locked-")?.split_once('-')?;
    let word = if word == "invalid" { "frobnicate" } else { word };
    // The recorder's VM had been paused in some of these.
    let state = if text.contains("paused") { "paused" } else { "running" };
    Some(match (word, case) {
        // The start before had removed this one lock.
        ("suspended", "stopped-start-skiplock") => ":".to_owned(),
        ("suspended", "stopped-status" | "stopped-stop" | "suspend") => "running".to_owned(),
        (_, case) if case.starts_with("stopped-") => format!("lock {word}"),
        _ => format!("{state}; lock {word}"),
    })
}

fn hung(case: &str) -> &'static str {
    match case {
        "sigstop-after-stop" | "sigstop-journal" => "",
        "sigstop-start-after-stop" => "killed; rm -f $run/102.{qmp,pid,vnc,qga}",
        "sigstop-reset" | "sigstop-suspend" | "sigstop-monitor" | "sigstop-shutdown-t5" => "hung; backlog",
        _ => "hung",
    }
}

fn held(case: &str) -> &'static str {
    match case {
        "qmp-held-after" => "running; must qm stop 102",
        "qmp-held-reset" | "qmp-held-monitor" | "qmp-held-stop" => "held; backlog",
        _ => "held",
    }
}

/// Storage that hangs in the kernel looks to `qm` like a stopped QEMU, and an unkillable QEMU like one without a pid file.
fn stuck(case: &str) -> Option<String> {
    let case = ["dstate-iouring-", "dstate-threads-", "rerun-"].into_iter().find_map(|how| case.strip_prefix(how))?;
    let script = match case {
        "1-status" | "1-verbose" => "running",
        "2-reset" | "3-reset-again" | "3-ping" | "3-status-after-reset" | "4-stop" => "hung",
        "6-start" | "6-status" => "running; rm $run/102.pid",
        "7-thawed" => "killed; rm -f $run/102.{qmp,pid,vnc,qga}; rmdir /sys/fs/cgroup/qemu.slice/102.scope || :",
        "8-start" => ":",
        _ => return None,
    };
    Some(script.to_owned())
}

fn states(case: &str) -> &'static str {
    match case {
        "state-nmi" => "running",
        "state-status-after-resume" => "prelaunch; must qm resume 102",
        _ => "prelaunch",
    }
}

fn pending(case: &str) -> &'static str {
    match case {
        "pending-set" => "running",
        "pending-set-delete" => "pending",
        _ => "pending2",
    }
}

fn broken(group: &str, case: &str) -> &'static str {
    match (group, case) {
        ("Lp", "journal") | ("Ls", "killed-files") => "",
        ("Lm", _) => "rm $image",
        ("Lp", _) => "running; rm $run/102.pid",
        ("Ls", _) => "killed",
        ("Lt", _) => "echo 'template: 1' >> $conf",
        ("Lx", "garbage-reset") => "running; garbage",
        _ => "garbage",
    }
}

fn second(case: &str) -> &'static str {
    if case == "double-after" { "" } else { "running; rm $run/102.pid" }
}

/// What needs a guest with an agent can't be staged; a guest whose agent is dead is like none.
fn guest(case: &str) -> &'static str {
    match case {
        "guest-agent-badcmd" | "guest-panic-agent" | "guest-panic-reset" | "guest-panic-status" => "running",
        "guest-reset" | "guest-shutdown-status" | "guest-verbose" => "running",
        _ => "",
    }
}

fn managed(case: &str) -> &'static str {
    match case {
        "ha-manager-config" | "ha-manager-status" => "",
        "ha-ignored-start" | "ha-ignored-after-stop" => "ha ignored",
        case if case.starts_with("ha-ignored-") => "ha ignored; running",
        "ha-started-after-stop" => "running; ha started; must qm stop 102",
        "ha-started-after-start" => "running; ha started; must qm stop 102; must qm start 102",
        _ => "running; ha started",
    }
}

fn odd(case: &str) -> &'static str {
    if case == "stdout-closed" { "" } else { "running" }
}

fn full(case: &str) -> &'static str {
    match case {
        "ioerror-iothread-threads-after-reset" | "ioerror-threads-after-reset" => "",
        // Only in the recorded QEMU does a reset with an I/O thread hang QMP for good; a stopped QEMU is as silent.
        "ioerror-iothread-reset" | "ioerror-iothread-status-after-reset" | "ioerror-iothread-resume-after-free" | "resume" => "hung",
        "monitor-block" => "hung; backlog",
        "ioerror-iothread-status" | "ioerror-iothread-resume-still-full" => "full",
        "ioerror-status-after-reset" => "full_plain; must qm reset 102",
        "ioerror-resume-after-free" => "full_plain; free",
        _ => "full_plain",
    }
}

fn quorum(case: &str) -> &'static str {
    match case {
        "noquorum-journal" => "",
        "noquorum-config_102" => {
            "echo 'args: -kernel LAB/guest/vmlinuz -initrd LAB/guest/initrd.gz -append \"console=ttyS0 console=tty0 quiet\"' >> $conf; noquorum"
        }
        "noquorum-start_102" | "noquorum-status_102" => "noquorum",
        _ => "running; noquorum",
    }
}
