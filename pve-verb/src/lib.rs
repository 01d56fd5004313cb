//! `pve-verb`: the forced command on a Proxmox VE host. Six verbs on one VM, evidence before any mutation, never a shell.
//!
//! Start reading at `pipeline`: each of its lines is a stage, and each stage is the file of that name.
//! The crate is a library only so that tests can show which misuses do not compile; nobody else should depend on it.

#![forbid(unsafe_code)]

pub mod audit;
pub mod config;
pub mod disk;
pub mod host;
pub mod receipt;
pub mod setup;
pub mod sign;
pub mod spawn;
pub mod trusted;
pub mod writer;
