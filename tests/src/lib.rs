//! The laboratory.
pub mod qm;
