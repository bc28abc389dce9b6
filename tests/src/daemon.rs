//! A daemon without a port of its own, so that any number of tests run side by side.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use xtask::lab::Site;
use xtask::lab::process::{Lifetime, Process};

use crate::holds_within;

/// How long a daemon may take until its admin socket answers.
const START: Duration = Duration::from_secs(60);

/// A running daemon; ended with the value.
pub struct Daemon {
    noun: &'static str,
    command: Command,
    log: PathBuf,
    admin: PathBuf,
    process: Process,
}

impl Daemon {
    /// The storage daemon of a site.
    ///
    /// # Panics
    /// It does not start.
    pub fn blk(site: &Site) -> Self {
        Self::start(site, "blk", &[])
    }

    /// The switch of a site, learning by itself.
    ///
    /// # Panics
    /// It does not start.
    pub fn switch(site: &Site) -> Self {
        Self::start(site, "switch", &["--dpid", "1", "--fail-mode", "standalone"])
    }

    /// The same with two workers, which have every other port each.
    ///
    /// # Panics
    /// It does not start.
    pub fn switch_with_two_workers(site: &Site) -> Self {
        Self::start(site, "switch", &["--dpid", "1", "--fail-mode", "standalone", "--cores", "0,1"])
    }

    fn start(site: &Site, noun: &'static str, args: &[&str]) -> Self {
        let mut command = Command::new(&site.program);
        command.args([noun, "run", "--state-dir"]).arg(site.dir.join("state").join(noun));
        command.arg("--run-dir").arg(site.run_dir()).args(args);
        let log = site.dir.join(format!("{noun}.log"));
        let admin = site.run_dir().join(format!("{noun}.admin.sock"));
        let process = Process::start(noun, &command, &log, Lifetime::Ours).expect("the program starts");
        let mut daemon = Self { noun, command, log, admin, process };
        daemon.wait_ready();
        daemon
    }

    fn wait_ready(&mut self) {
        let ready = holds_within(START, || {
            self.process.alive().expect("the daemon starts");
            UnixStream::connect(&self.admin).is_ok()
        });
        assert!(ready, "{} is not ready:\n{}", self.noun, self.process.output());
    }

    /// SIGKILL, as a crash would end it, and a new start.
    ///
    /// # Panics
    /// It does not start again.
    pub fn kill_and_restart(&mut self) {
        self.process.kill().expect("the daemon was running");
        self.process =
            Process::start(self.noun, &self.command, &self.log, Lifetime::Ours).expect("the program starts");
        self.wait_ready();
    }

    /// SIGTERM, and a clean end.
    ///
    /// # Panics
    /// It ends with an error or not at all.
    pub fn stop(mut self) {
        let status = self.process.stop().expect("the daemon ends");
        assert!(status.success(), "{} ended with {status}:\n{}", self.noun, self.process.output());
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it has logged so far, over all its lives.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// It has not ended.
    ///
    /// # Panics
    /// It has.
    pub fn assert_alive(&mut self) {
        self.process.alive().expect("the daemon lives");
    }
}
