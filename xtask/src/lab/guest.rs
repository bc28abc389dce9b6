//! A running guest, and the agent in it that runs commands (see `deploy/guest/init`).

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::process::{Lifetime, Process};
use super::qemu::GuestSpec;
use super::qmp::{Lines, Qmp};
use super::wait::wait_for;

/// How long a boot may take: 5 s under TCG on an idle machine, much more on a loaded one.
pub const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// How long a command in the guest may take unless told otherwise.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// What a command in the guest did.
#[derive(Debug)]
pub struct Done {
    /// Its exit status.
    pub status: i32,
    /// Its output, errors included.
    pub output: String,
}

/// A booting or running guest. Dropping it ends QEMU.
pub struct Guest {
    process: Process,
    name: String,
    console: PathBuf,
    qmp_socket: PathBuf,
    agent: Lines,
    commands: u64,
}

impl Guest {
    /// Starts QEMU; the guest's files lie in `dir`.
    pub fn start(spec: &GuestSpec, dir: &Path, lifetime: Lifetime) -> anyhow::Result<Guest> {
        let file = |suffix: &str| dir.join(format!("{}.{suffix}", spec.name));
        let mut process = Process::start(&spec.name, &spec.command(dir)?, &file("log"), lifetime)?;
        // The agent's line must be taken before the guest speaks on it: nobody keeps what it says to nobody.
        let agent = wait_for(&format!("QEMU of {}", spec.name), Duration::from_secs(30), || {
            process.alive()?;
            Ok(UnixStream::connect(file("agent")).ok())
        })?;
        Ok(Guest {
            process,
            name: spec.name.clone(),
            console: file("console"),
            qmp_socket: file("qmp"),
            agent: Lines::new(agent)?,
            commands: 0,
        })
    }

    /// Starts QEMU and waits until the guest takes commands.
    pub fn boot(spec: &GuestSpec, dir: &Path, lifetime: Lifetime) -> anyhow::Result<Guest> {
        let mut guest = Guest::start(spec, dir, lifetime)?;
        guest.wait_ready(BOOT_LIMIT)?;
        Ok(guest)
    }

    /// Waits until the guest takes commands.
    pub fn wait_ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        let found = self.skip_to(limit, |line| line == "@ready");
        found
            .map(drop)
            .with_context(|| format!("boot of {}; its console:\n{}", self.name, tail(&self.console())))
    }

    /// Runs a shell command in the guest and returns what it printed; a failing one is an error.
    pub fn run(&mut self, command: &str) -> anyhow::Result<String> {
        let done = self.run_within(command, COMMAND_LIMIT)?;
        ensure!(done.status == 0, "{}: `{command}` failed ({}):\n{}", self.name, done.status, done.output);
        Ok(done.output)
    }

    /// Runs a shell command in the guest that may fail.
    pub fn run_within(&mut self, command: &str, limit: Duration) -> anyhow::Result<Done> {
        let id = self.send(command)?;
        self.finish(id, limit).with_context(|| format!("{}: `{command}`", self.name))
    }

    /// Starts a shell command; [`Guest::finish`] waits for it. The agent does one after the other.
    pub fn send(&mut self, command: &str) -> anyhow::Result<u64> {
        self.commands += 1;
        self.agent.send(&format!("{} {command}", self.commands))?;
        Ok(self.commands)
    }

    /// Waits for a command that was sent.
    pub fn finish(&mut self, id: u64, limit: Duration) -> anyhow::Result<Done> {
        let marker = format!("@{id} ");
        let (last, mut lines) = self.skip_to(limit, |line| line.starts_with(&marker))?;
        // The agent ends the output with an empty line when it did not end by itself.
        if lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        let status = last[marker.len()..].parse().with_context(|| format!("the agent said {last:?}"))?;
        Ok(Done { status, output: lines.join("\n") })
    }

    fn skip_to(
        &mut self,
        limit: Duration,
        last: impl Fn(&str) -> bool,
    ) -> anyhow::Result<(String, Vec<String>)> {
        let deadline = std::time::Instant::now() + limit;
        let mut lines = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let line = match self.agent.next(left) {
                Ok(line) => line,
                Err(error) => {
                    self.process.alive()?;
                    return Err(error);
                }
            };
            if last(&line) {
                return Ok((line, lines));
            }
            lines.push(line);
        }
    }

    /// What the guest's kernel said so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// A connection to QEMU itself; there can be one at a time.
    pub fn qmp(&self) -> anyhow::Result<Qmp> {
        Qmp::connect(&self.qmp_socket)
    }

    /// The QEMU process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Name of the guest.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}
