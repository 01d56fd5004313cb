//! What a caller of `pve-verb` may believe. So far it reads an answer and checks the receipt at its end; it calls nobody.
//!
//! ```text
//! bytes ──Reader──> Unchecked ──check(pinned key, what was asked)──> Proved ──> the host's exit status
//!    answer.rs           └───────────────┴── receipt.rs ──> Unproved ──> 20: unknown, never success
//! ```

pub mod answer;
pub mod cli;
pub mod receipt;
pub mod say;
pub mod signers;

/// The exit status where there was no valid receipt: nothing is known, whatever ssh said.
pub const UNKNOWN: u8 = 20;
