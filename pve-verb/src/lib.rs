//! `pve-verb`: the forced command on a Proxmox VE host. Six verbs on one VM, evidence before any mutation, never a shell.
//!
//! Start reading at `pipeline`: each of its lines is a stage, and each stage is the file of that name.
//! The crate is a library only so that tests can show which misuses do not compile; nobody else should depend on it.

#![forbid(unsafe_code)]
// The doors are held in what ships; tests use the outside world as they need.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod ack;
pub mod answer;
pub mod assess;
pub mod attest;
pub mod audit;
pub mod auditor;
pub mod binary;
pub mod bundle;
pub mod capture;
pub mod channel;
pub mod cli;
pub mod config;
pub mod deadline;
pub mod disk;
pub mod door;
pub mod entry;
pub mod facts;
pub(crate) mod flock;
pub mod front;
#[cfg(fuzzing)]
pub mod fuzz;
pub mod grant;
pub mod helper;
pub mod host;
pub mod kill;
pub mod litter;
pub mod lock;
pub mod look;
pub mod mutate;
pub mod operation;
pub mod out;
pub mod pipeline;
pub mod policy;
pub mod preflight;
pub mod probe;
pub mod procfs;
pub mod promise;
pub mod pve;
pub mod qga;
pub mod qm;
pub mod qmp;
pub mod rate;
pub mod receipt;
pub mod recover;
pub mod replay;
pub mod reset;
pub mod resume;
pub mod retention;
pub mod review;
pub mod run;
pub mod sample;
pub mod sandbox;
pub mod screens;
pub mod setup;
pub mod shelf;
pub mod shown;
pub mod sign;
pub mod spawn;
pub mod spool;
pub mod tar;
pub mod text;
pub(crate) mod tree;
pub mod trusted;
pub mod verify;
pub mod worker;
pub mod writer;
