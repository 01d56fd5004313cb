//! Whether a password fits its argon2 hash, without keeping the memory that this takes.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use subtle::ConstantTimeEq;

/// What is asked for in one piece of this size gets pages of its own from the C library, whatever came before, and they go back to the
/// system at once; pages that are never touched cost nothing. What is smaller each thread keeps for its next hash: twenty browsers that
/// came back together left 230 MiB behind.
const OWN_PAGES: usize = 33 << 20;

/// Whether it fits. A hash that can't be read fits nothing.
pub(super) fn fits(hash: &str, password: &str) -> bool {
    matches(hash, password).unwrap_or(false)
}

fn matches(hash: &str, password: &str) -> Option<bool> {
    let hash = PasswordHash::new(hash).ok()?;
    let algorithm = Algorithm::try_from(hash.algorithm.as_str()).ok()?;
    let version = hash.version.map_or(Ok(Version::default()), Version::try_from).ok()?;
    let params = Params::try_from(&hash).ok()?;
    let (salt, right) = (hash.salt.as_ref()?, hash.hash.as_ref()?);
    let mut memory = Vec::with_capacity(params.block_count().max(OWN_PAGES / Block::SIZE));
    memory.resize_with(params.block_count(), Block::default);
    let mut found = vec![0; right.len()];
    let argon2 = Argon2::new(algorithm, version, params);
    argon2.hash_password_into_with_memory(password.as_bytes(), salt, &mut found, &mut memory[..]).ok()?;
    Some(found.ct_eq(right.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use argon2::password_hash::PasswordHasher;

    fn resident_mib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        kib.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    }

    #[test]
    fn a_password_fits_its_own_hash_and_takes_no_memory_with_it() {
        let cheap = Params::new(19 * 1024, 1, 1, None).unwrap();
        let hash = Argon2::from(cheap).hash_password(b"right horse").unwrap().to_string();
        let before = resident_mib();
        std::thread::scope(|scope| {
            for _ in 0..6 {
                // The second time is the one that a thread would keep.
                scope.spawn(|| assert!(fits(&hash, "right horse") && !fits(&hash, "wrong horse")));
            }
        });
        assert!(resident_mib() < before + 40, "{before} MiB, then {}", resident_mib());
        assert!(!fits("anna:$argon2id$", "right horse") && !fits("", ""));
    }
}
