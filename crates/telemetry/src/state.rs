//! A daemon's state directory: held by one daemon at a time, its files replaced as a whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The state directory of a running daemon. The lock ends with the process, however it ends.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another live daemon has it.
    #[error(
        "the state directory {0} belongs to another running daemon; stop that one or choose another directory"
    )]
    Held(PathBuf),
    /// The host refused.
    #[error("cannot {attempt} {path}")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

impl StateError {
    fn io(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
        move |source| StateError::Io { attempt, path: path.to_path_buf(), source }
    }
}

impl StateDir {
    /// Creates the directory where needed and locks it.
    pub fn open(path: &Path) -> Result<StateDir, StateError> {
        fs::create_dir_all(path).map_err(StateError::io("create", path))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(StateError::io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(StateDir { path: path.to_path_buf(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateError::Held(path.to_path_buf())),
            Err(TryLockError::Error(source)) => Err(StateError::io("lock", &lock_path)(source)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The contents of file `name`, or `None` when there is no such file.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StateError::io("read", &path)(error)),
        }
    }

    /// Replaces file `name`: after a crash or power cut it holds either the old or the new contents. Durable on return.
    pub fn replace(&self, name: &str, contents: &[u8]) -> Result<(), StateError> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("{name}.new"));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(contents)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(StateError::io("write", &path))
    }

    /// Removes file `name`, durably; one that is not there is no error.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path.join(name);
        let remove = || match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => File::open(&self.path)?.sync_all(),
        };
        remove().map_err(StateError::io("remove", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_holds_it_and_files_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/blk");
        let state = StateDir::open(&path).unwrap();
        assert!(matches!(StateDir::open(&path), Err(StateError::Held(_))));
        assert_eq!(state.read("volumes.json").unwrap(), None);
        state.replace("volumes.json", b"one").unwrap();
        state.replace("volumes.json", b"two").unwrap();
        assert_eq!(state.read("volumes.json").unwrap().unwrap(), b"two");
        state.replace("note", b"three").unwrap();
        for _ in 0..2 {
            state.remove("note").unwrap();
            assert_eq!(state.read("note").unwrap(), None);
        }
        drop(state);
        assert_eq!(StateDir::open(&path).unwrap().read("volumes.json").unwrap().unwrap(), b"two");
    }

    #[test]
    fn a_failure_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        let error = StateDir::open(&dir.path().join("file/blk")).unwrap_err();
        assert!(error.to_string().contains("file/blk"), "{error}");
    }
}
