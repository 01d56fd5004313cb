//! The incident that is left for the person who watches: the disk has stalled, the page is open, and nobody cures it but they.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::thread::{sleep, spawn};
use std::time::Duration;

use super::{Act, Demo, incident, install};
use crate::agent::configure;
use crate::error::{Context, Error, Result};
use crate::process::{Running, must, start, until};

pub(super) const ACTS: [(&str, Act); 6] = [
    ("A laboratory", install::laboratory),
    ("Install, as README.md says", install::install),
    ("The agent", agent),
    ("The VM's disk stalls", incident::stall),
    ("The page", serve),
    ("Your turn", watch),
];

/// The ssh-agent with the agent's two keys.
const AGENT: &str = "/run/lab/agent.sock";

/// Takes this port of the machine for the laboratory that is entered next, which has a network of its own: it is handed in as standard
/// input, which nothing in it reads.
///
/// # Errors
/// Where that is no port, or somebody has it.
pub fn take(port: &str) -> Result<()> {
    let number: u16 = port.parse().map_err(|_| Error::new(format!("{port} is no port"), "Give a number from 1 to 65535"))?;
    let door = TcpListener::bind((Ipv4Addr::LOCALHOST, number)).map_err(|error| {
        Error::new(format!("Port {port} of 127.0.0.1 can't be had: {error}"), "Give another one: install/demo page PORT")
    })?;
    rustix::stdio::dup2_stdin(&door).context("hand the port in")
}

/// Where the machine's port is, on both sides of the door.
pub(super) fn door() -> Result<TcpListener> {
    let handed = std::io::stdin().as_fd().try_clone_to_owned().context("take the machine's port")?;
    Ok(TcpListener::from(handed))
}

/// What README.md says of the agent, without a person to fill in the configuration.
fn agent(demo: &mut Demo) -> Result<()> {
    let port = door()?.local_addr().context("read the machine's port")?.port();
    configure(&demo.lab.host, AGENT, &format!("[web]\nlisten = \"127.0.0.1:{port}\"\n"))?;
    must("ssh-agent", ["-a", AGENT])?;
    for key in [demo.lab.host.key("agent")?, demo.lab.host.inside.image.key()] {
        must("env", [format!("SSH_AUTH_SOCK={AGENT}").as_ref(), "ssh-add".as_ref(), "-q".as_ref(), key.as_os_str()])?;
    }
    demo.screen.say("/etc/breakglass/config.toml says where the host and the devvm are; an ssh-agent has the two keys.");
    let said = demo.types("breakglass doctor")?;
    demo.holds(!said.is_empty(), "the agent reaches the host and the devvm")
}

/// The page, and a way to it from the machine's own browser.
fn serve(demo: &mut Demo) -> Result<()> {
    let page = start(Command::new("sh").args(["-c", "exec /usr/bin/breakglass serve 2>&1"]).env_clear().current_dir("/"), &[])?;
    let link = until("the page", Duration::from_secs(20), || link(&page));
    let Ok(link) = link else {
        let end = page.kill()?;
        return Err(Error::new("The page did not come up", format!("Look at what it said: {}", end.text())));
    };
    let door = door()?;
    let inside = door.local_addr().context("read the machine's port")?;
    spawn(move || door.incoming().flatten().for_each(|outer| drop(TcpStream::connect(inside).map(|inner| relay(outer, inner)))));
    demo.page = Some(page);
    demo.screen.say("Open this in a browser on this machine, in a window as narrow as a phone. The link counts once:");
    demo.screen.say(&link);
    demo.screen.say(&format!(
        "From another machine, first: ssh -L {0}:127.0.0.1:{0} THIS-MACHINE. It has no key for Claude: the six buttons work without one.",
        inside.port()
    ));
    Ok(())
}

/// Until the VM is cured, and then until the person has seen enough.
fn watch(demo: &mut Demo) -> Result<()> {
    let pid = demo.lab.vm.pid();
    demo.screen.say("Nobody else cures it. The page says what is wrong and which button helps; it asks once before it acts.");
    while demo.lab.vm.pid() == pid || demo.lab.vm.uptime().is_err() {
        sleep(Duration::from_secs(1));
    }
    demo.holds(demo.lab.vm.pid() != pid, "you cured it: QEMU is another process, and the guest is back")?;
    demo.screen
        .say("The page goes on: look at the evidence, the receipts, the incident. Ctrl-C ends the laboratory and all that is in it.");
    loop {
        sleep(Duration::from_secs(3600));
    }
}

/// The link that `serve` prints beside its log.
fn link(page: &Running) -> Option<String> {
    let said = String::from_utf8_lossy(&page.output_so_far()).into_owned();
    said.lines().find_map(|line| line.strip_prefix("Open this once: ")).map(str::to_owned)
}

/// Carries bytes both ways until both have ended.
fn relay(outer: TcpStream, inner: TcpStream) {
    let (Ok(outer_too), Ok(inner_too)) = (outer.try_clone(), inner.try_clone()) else { return };
    spawn(move || carry(outer, inner));
    spawn(move || carry(inner_too, outer_too));
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut block = [0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut block) {
        if to.write_all(&block[..n]).is_err() {
            break;
        }
    }
    let _gone = to.shutdown(Shutdown::Write);
}
