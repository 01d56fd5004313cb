//! Closing the record is the only way to a receipt.
use pve_verb::{audit::Record, receipt, sign::Signer};

fn attempt(record: Record, body: &mut proto::ReceiptBody, signer: Result<&Signer, &String>) {
    let _ = receipt::make(record, body, signer);
}

fn main() {}
