//! Benchmarks against peers: shared parts of the programs in `src/bin`.
//!
//! Every program runs the peer and Sluice in turn, round by round, because only a ratio of one run says anything on a
//! machine that others use too; it prints the medians and the median of the ratios.

pub mod blk_load;
pub mod controller;
pub mod distance;
pub mod fleet;
pub mod frames;
pub mod net_load;
pub mod ovs;
pub mod pairs;
pub mod qsd;
pub mod rounds;
pub mod slow;
pub mod sluice;
pub mod testpmd;
pub mod turns;
pub mod usage;
pub mod volumes;

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xtask::paths;

/// Processor of the program under test.
pub const SERVER_CORE: usize = 0;
/// Processor of the client that loads it.
pub const CLIENT_CORE: usize = 1;

/// Builds `sluice` as it is shipped and returns its path.
pub fn release_program() -> anyhow::Result<PathBuf> {
    let status = paths::cargo().args(["build", "--release", "--quiet", "--package", "sluice"]).status()?;
    ensure!(status.success(), "cargo build --release --package sluice: {status}");
    Ok(paths::target().join("release/sluice"))
}

/// Fails, naming the package, unless the program `name` is installed.
pub fn need(name: &str, package: &str) -> anyhow::Result<()> {
    let found = paths::find_program(name).is_some();
    ensure!(found, "{name} is not installed; on Debian or Ubuntu: apt-get install {package}");
    Ok(())
}

/// Sends a signal to a process that we started.
pub(crate) fn send_signal(process: u32, signal: Signal) -> anyhow::Result<()> {
    kill(Pid::from_raw(process as i32), signal)
        .with_context(|| format!("sending {signal} to process {process}"))
}

/// Binds the calling thread to one processor.
pub(crate) fn pin_self(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("binding a thread to processor {core}"))
}

/// Binds all threads of a process, and those they will make, to one processor.
///
/// # Errors
/// When there is no such process or processor.
pub fn pin(process: u32, core: usize) -> anyhow::Result<()> {
    pin_threads(process, |_| core)
}

/// Binds each thread of a process to the processor that `core` says for its name.
///
/// # Errors
/// When there is no such process or processor.
pub fn pin_threads(process: u32, core: impl Fn(&str) -> usize) -> anyhow::Result<()> {
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let path = thread?.path();
        let id: i32 = path.file_name().unwrap_or_default().to_string_lossy().parse()?;
        // A thread may end while we look.
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        let core = core(name.trim());
        let mut set = CpuSet::new();
        set.set(core)?;
        match sched_setaffinity(Pid::from_raw(id), &set) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => bail!("binding thread {id} to processor {core}: {error}"),
        }
    }
    Ok(())
}
