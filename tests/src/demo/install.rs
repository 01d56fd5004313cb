//! The first acts: what this is, and the installation as README.md has it.

use super::Demo;
use crate::error::{Context, Result};
use crate::lab::built;
use crate::readme;

/// Says what is real and what is not, and boots the VM.
pub(super) fn laboratory(demo: &mut Demo) -> Result<()> {
    demo.screen.say(
        "This is a LABORATORY in namespaces of its own on this machine. It is not a Proxmox VE host, and nothing of the machine is changed.",
    );
    demo.screen.say("Real: VM 102 (QEMU with a Linux guest), sshd, pve-verb as it ships. STAND-INS: `qm`, which answers as Proxmox's was recorded to answer, and `systemctl`.");
    demo.lab.host.install_program(&built("qm")?, "/usr/sbin/qm")?;
    let took = demo.lab.vm.boot()?;
    demo.holds(true, &format!("VM 102 booted to its login in {:.0} s", took.as_secs_f32()))
}

/// What an admin types on the host. The first block of README.md (build, copy) is done here, without scp.
pub(super) fn install(demo: &mut Demo) -> Result<()> {
    demo.lab.host.install_program(&built("pve-verb")?, "/usr/sbin/pve-verb")?;
    // The client's program; on no real host is it on the host.
    demo.lab.host.install_program(&built("breakglass")?, "/usr/bin/breakglass")?;
    for client in ["agent", "phone"] {
        let public = demo.lab.host.key(client)?.with_extension("pub");
        std::fs::copy(public, demo.desk.join(format!("{client}.pub"))).context("put the clients' keys on the admin's desk")?;
    }
    demo.screen.say("pve-verb is copied to the host; agent.pub and phone.pub lie there.");
    // The others name another machine: they are typed there.
    for block in readme::blocks("Install on a PVE host").iter().filter(|block| !block.contains("HOST")) {
        demo.types(block)?;
    }
    let signers = std::fs::read_to_string(demo.desk.join("allowed_signers")).unwrap_or_default();
    demo.holds(
        signers.starts_with("pve-verb@pve namespaces="),
        "pve-verb check found nothing bad, and others can check what this host signs",
    )
}
