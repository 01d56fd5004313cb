//! Closing the record is the only way to a receipt.
use pve_verb::{audit::Record, receipt, receipt::Facts, sign::Signer};

fn attempt(record: Record, facts: Facts, signer: Result<&Signer, &str>) {
    let _ = receipt::make(record, facts, signer);
}

fn main() {}
