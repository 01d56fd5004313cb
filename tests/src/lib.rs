//! The laboratory: a real VM 102 under a real QEMU, a host that looks like Proxmox VE, and a real sshd.
//!
//! Everything here is a laboratory with a stand-in `qm`; nothing in it runs on a PVE host.
//!
//! ```text
//! enter()          the namespace: root of a throw-away host           namespace.rs
//! Host::prepare()  /etc/pve, the account, sshd                        host.rs
//! Vm::boot()       QEMU by PVE's command line, a guest with SSH       vm.rs qemu_cmd.rs vm_conf.rs guest.rs qmp.rs
//! wedge::…         faults, most with an undo                          wedge.rs fuse.rs
//! Ssh::call()      a caller, and its answer                           client.rs
//! Bundle           what a verb left of evidence, read by a stranger     bundle.rs
//! Lab::fresh()     all of it, shared by the scenarios of a file       lab.rs
//! demo::run()      all of it, as a person sees it                      demo.rs readme.rs
//! demo::page()     the same, left for the person to cure by the page   demo/page.rs agent.rs
//! ```

pub mod agent;
pub mod bundle;
pub mod chain;
pub mod client;
pub mod demo;
pub mod error;
pub mod fuse;
pub mod guest;
pub mod host;
pub mod installed;
pub mod lab;
pub mod namespace;
pub mod process;
pub mod qemu_cmd;
pub mod qm;
pub mod qmp;
pub mod readme;
pub mod snapshot;
pub mod station;
pub mod sweep;
pub mod vm;
pub mod vm_conf;
pub mod wedge;
pub mod worker;

pub use client::{Answer, Ssh};
pub use error::{Error, Result};
pub use host::Host;
pub use lab::Lab;
pub use namespace::{Inside, enter};
pub use vm::{Observed, Vm};
