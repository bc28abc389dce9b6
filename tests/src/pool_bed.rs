//! The storage daemon with a tiered pool, as an operator runs it.

use std::path::PathBuf;

use serde_json::Value;
use xtask::lab::Site;

use crate::binary;
use crate::daemon::Daemon;

/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;

/// A daemon and `pool0`, whose devices are the files `hot.img` and `cold.img` of the site.
pub struct Bed {
    /// The daemon.
    pub daemon: Daemon,
    /// Its directory and commands.
    pub site: Site,
    /// Last, so that it goes last.
    _dir: tempfile::TempDir,
}

impl Bed {
    /// A daemon with a pool of a hot and a cold device of these sizes.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn new(hot: &str, cold: &str) -> Self {
        let bed = Self::without_pool();
        bed.make_pool(hot, cold, &[]);
        bed
    }

    /// A daemon alone.
    ///
    /// # Panics
    /// It does not start.
    pub fn without_pool() -> Self {
        let dir = tempfile::Builder::new().prefix("sluice-").tempdir().expect("a directory can be made");
        let site = binary::site(dir.path());
        Self { daemon: Daemon::blk(&site), site, _dir: dir }
    }

    /// Makes the pool.
    ///
    /// # Panics
    /// The daemon refuses.
    pub fn make_pool(&self, hot: &str, cold: &str, options: &[&str]) {
        let (hot, cold) = (self.device("hot", hot), self.device("cold", cold));
        self.run(&[&["pool", "create", "pool0", "--hot", &hot, "--cold", &cold], options].concat());
    }

    /// `PATH:SIZE` of a file of the site.
    pub fn device(&self, name: &str, size: &str) -> String {
        format!("{}:{size}", self.site.dir.join(format!("{name}.img")).display())
    }

    /// Runs a command; what it printed.
    ///
    /// # Panics
    /// It fails.
    pub fn run(&self, args: &[&str]) -> String {
        self.site.sluice(args).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs a command that has to fail; what it said.
    ///
    /// # Panics
    /// It does not.
    pub fn refused(&self, args: &[&str]) -> String {
        match self.site.sluice(args) {
            Err(error) => error.to_string(),
            Ok(text) => panic!("{args:?} did not fail: {text}"),
        }
    }

    /// Runs a command with `-o json`; what it printed.
    ///
    /// # Panics
    /// It fails.
    pub fn json(&self, args: &[&str]) -> Value {
        self.site.sluice_json(args).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Makes a volume in the pool; its socket.
    ///
    /// # Panics
    /// The daemon refuses.
    pub fn volume(&self, name: &str, bytes: u64, options: &[&str]) -> PathBuf {
        let size = bytes.to_string();
        let args = [&["volume", "create", name, "--pool", "pool0", "--size", &size], options].concat();
        self.run(&args);
        self.site.socket(name)
    }

    /// The pool as it is shown.
    ///
    /// # Panics
    /// It is not.
    pub fn pool(&self) -> Value {
        self.json(&["pool", "show", "pool0"])
    }
}
