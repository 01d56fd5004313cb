//! `breakglass`: the client of `pve-verb`. It calls the verbs and believes only signed receipts; it can act under Claude's direction,
//! by a runbook, or by a person's buttons, and every one of them acts through the same hands.
//!
//! ```text
//!  a person: verb, chat, serve ─┐                                   ┌─ ssh ──> sshd on the host ──> pve-verb
//!  Claude: its tools ───────────┼─> incident ──> hands ─────────────┤
//!  runbook, watch, mcp ─────────┘   (log, budget)  (hands.rs)       └─ ssh ──> sshd on the devvm, sudo
//!
//!  bytes ──Reader──> Unchecked ──check(pinned key, what was asked)──> Proved ──> the host's exit status
//!     answer.rs           └───────────────┴── receipt.rs ──> Unproved ──> 20: unknown, never success
//! ```

pub mod answer;
pub mod bound;
pub mod chat;
pub mod claude;
pub mod cli;
pub mod config;
pub mod devvm;
pub mod doctor;
pub mod evals;
#[cfg(fuzzing)]
pub mod fuzz;
pub mod grant;
pub mod hands;
pub mod host;
pub mod http;
pub mod incident;
pub mod keyholder;
pub mod mcp;
mod mirror;
pub mod receipt;
pub mod receipts;
pub mod redact;
pub mod runbook;
pub mod say;
mod shown;
pub mod signers;
mod silence;
pub mod ssh;
pub mod untrusted;
pub mod verb;
pub mod watch;
pub mod web;

/// The exit status where there was no valid receipt: nothing is known, whatever ssh said.
pub const UNKNOWN: u8 = 20;
