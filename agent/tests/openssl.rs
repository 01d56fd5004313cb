//! The OpenSSL under libssh2 has its locks: a static build leaves them out unless it is told not to (`.cargo/config.toml`).

use std::sync::Barrier;

use openssl::hash::{MessageDigest, hash};

#[test]
fn it_is_compiled_for_threads() {
    let flags = openssl::version::c_flags();
    assert!(flags.contains("-DOPENSSL_THREADS"), "compiled without locks: two SSH sessions at once corrupt the heap. {flags}");
}

/// Without locks this ends in half of all runs with a corrupted heap, or never: the first use fills tables that all threads share.
#[test]
fn its_first_use_may_be_by_many_threads_at_once() {
    let all = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                all.wait();
                openssl::rand::rand_bytes(&mut [0; 16]).expect("random bytes");
                hash(MessageDigest::sha256(), b"").expect("a hash");
            });
        }
    });
}
