//! qemu-storage-daemon, the peer of the block bench.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use xtask::lab::process::{Lifetime, Process};
use xtask::lab::wait_for;

/// How long it may take until its socket is there.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A running qemu-storage-daemon with one export.
pub struct Qsd {
    process: Process,
    socket: PathBuf,
}

impl Qsd {
    /// Starts it in `dir` with the block device that `blockdev` describes (in QEMU's words, without its node's name).
    ///
    /// # Errors
    /// When it is not installed or does not come up.
    pub fn start(dir: &Path, blockdev: &str) -> anyhow::Result<Qsd> {
        crate::need("qemu-storage-daemon", "qemu-utils")?;
        let socket = dir.join("qsd.sock");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new("qemu-storage-daemon");
        // A thread of its own for the disk, which polls a little before it sleeps: faster than the main loop.
        command.args(["--object", "iothread,id=worker"]);
        command.arg("--blockdev").arg(format!("{blockdev},node-name=disk"));
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=export,node-name=disk,iothread=worker,writable=on,addr.type=unix,addr.path={}",
            socket.display()
        ));
        let mut process =
            Process::start("qemu-storage-daemon", &command, &dir.join("qsd.log"), Lifetime::Ours)?;
        wait_for("qemu-storage-daemon's socket", START_LIMIT, || {
            process.alive()?;
            Ok(socket.exists().then_some(()))
        })?;
        Ok(Qsd { process, socket })
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}
