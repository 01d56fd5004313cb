//! A flock that ends with its holder. The kernel frees one with the last copy of its descriptor, and a child that hangs before its exec
//! may have a copy.

use rustix::fs::{FlockOperation, flock};
use std::os::fd::AsFd;

/// A locked file; dropping it unlocks it, whoever has a copy of its descriptor.
#[derive(Debug)]
pub(crate) struct Flocked<F: AsFd>(F);

impl<F: AsFd> Flocked<F> {
    /// Takes over the end of this file's lock.
    pub(crate) const fn new(locked: F) -> Self {
        Self(locked)
    }
}

impl<F: AsFd> Drop for Flocked<F> {
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_copy_of_the_descriptor_does_not_keep_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let file = File::create(&path).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        let (_copy, other) = (file.try_clone().unwrap(), File::open(&path).unwrap());
        let locked = Flocked::new(file);
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(locked);
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
}
