//! The laboratory: a real VM 102 under a real QEMU, a host that looks like Proxmox VE, and a real sshd.
//!
//! Everything here is a laboratory with a stand-in `qm`; nothing in it runs on a PVE host.

pub mod qemu_cmd;
pub mod qm;
pub mod vm_conf;
