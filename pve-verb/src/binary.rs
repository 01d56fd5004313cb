//! Which binary answers: its version, and the SHA-256 of its file. Hashing at each call would cost 4 ms, so the hash is kept in
//! /run under the file's device, inode, size, mtime and ctime.

use proto::{Binary, Sha256Hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

const CACHE: &str = "/run/pve-verb/binary.json";

#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Key(u64, u64, u64, i64, i64, i64, i64);

/// This process's own binary.
pub fn this() -> Binary {
    Binary { version: env!("CARGO_PKG_VERSION").to_owned(), sha256: hash() }
}

fn hash() -> Option<Sha256Hex> {
    // The open file is the one that runs, whatever stands at its path meanwhile.
    let mut file = File::open("/proc/self/exe").ok()?;
    let m = file.metadata().ok()?;
    let key = Key(m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    let cached = std::fs::read(CACHE).ok().and_then(|bytes| serde_json::from_slice::<(Key, Sha256Hex)>(&bytes).ok());
    if let Some((_, hash)) = cached.filter(|(cached, _)| *cached == key) {
        return Some(hash);
    }
    let mut hasher = Sha256::new();
    let mut buffer = [0; 64 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hasher.update(buffer.get(..n)?),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    let hash = Sha256Hex::from_bytes(hasher.finalize().into());
    let hidden = format!("{CACHE}.{}", std::process::id());
    if let Ok(bytes) = serde_json::to_vec(&(key, &hash)) {
        // Only a cache: without it the next call hashes again.
        let _ = std::fs::write(&hidden, bytes).and_then(|()| std::fs::rename(&hidden, CACHE));
    }
    Some(hash)
}
