//! `bundle …`: the evidence that is kept.

use clap::{Args, Subcommand};
use proto::{BundleName, Vmid};
use std::path::PathBuf;

/// `bundle …`.
#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// Which bundles there are, newest last
    List {
        /// The VM
        #[arg(long, default_value = "102")]
        vmid: Vmid,
    },
    /// Show a bundle's summary, and where each artifact is
    Show {
        /// The bundle
        #[arg(value_name = "NAME")]
        name: BundleName,
        /// The VM
        #[arg(long, default_value = "102")]
        vmid: Vmid,
    },
    /// Is it what this host sealed, all of it and nothing else?
    Verify(VerifyBundle),
    /// Write it as a tar, to stdout or to a new file
    Export(Export),
}

/// `bundle verify`.
#[derive(Debug, Args)]
pub struct VerifyBundle {
    /// The bundle
    #[arg(value_name = "NAME")]
    pub name: BundleName,
    /// The VM
    #[arg(long, default_value = "102")]
    pub vmid: Vmid,
    /// Answers or receipts that callers kept
    #[arg(long, value_name = "FILE")]
    pub receipts: Option<PathBuf>,
    /// Public keys or allowed_signers lines, instead of this host's own key
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
}

/// `bundle export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The bundle
    #[arg(value_name = "NAME")]
    pub name: BundleName,
    /// The VM
    #[arg(long, default_value = "102")]
    pub vmid: Vmid,
    /// The file; it must not exist yet
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}
