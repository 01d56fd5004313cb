//! The socket: made closed and then put in place, so that there is no moment at which somebody else could connect.

use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use proto::Message;
use tokio::net::UnixListener;

/// The bound socket; its name goes with it.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Binds it, in place of one that a keyholder left which is gone.
    ///
    /// # Errors
    /// Another process serves it, or the folder can't be used.
    pub(super) fn bind(path: &Path, group: Option<u32>) -> Result<Self, Message> {
        let fault = |why: String, next: &str| Message::new(format!("The socket {} can't be made: {why}.", path.display()), next);
        let (Some(folder), Some(name)) = (path.parent().filter(|_| path.is_absolute()), path.file_name()) else {
            return Err(fault("the path is not absolute".to_owned(), "Set keyholder.socket."));
        };
        match path.symlink_metadata() {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(fault("something else has its name".to_owned(), "Remove it, or set another keyholder.socket."));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(fault("a running process serves it".to_owned(), "Stop the other keyholder first."));
            }
            _ => {}
        }
        let new = folder.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
        let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(&new);
        rustix::process::umask(mask);
        let bound = bound.and_then(|listener| {
            if let Some(group) = group {
                chown(&new, None, Some(group))?;
                std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o660))?;
            }
            std::fs::rename(&new, path)?;
            Ok(listener)
        });
        match bound {
            Ok(listener) => Ok(Self { path: path.to_owned(), listener }),
            Err(error) => {
                let _never_made = std::fs::remove_file(&new);
                Err(fault(error.to_string(), "Make its folder, writable to the keyholder's user alone."))
            }
        }
    }

    /// Where connections come from.
    pub(super) const fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}
