//! A process that we started and end.

use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::wait::wait_for;

/// How long a process may take to end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Whether a process outlives the program that started it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lifetime {
    /// The kernel kills it when we are gone, however we went.
    Ours,
    /// It stays after [`Process::leave`].
    MayStay,
}

/// A running program with its output in a file. Dropping it ends it.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    command: String,
    stays: bool,
}

impl Process {
    /// Starts `command`; its output goes to the file `log`.
    pub fn start(name: &str, command: &Command, log: &Path, lifetime: Lifetime) -> anyhow::Result<Process> {
        let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
        let mut wrapped = match lifetime {
            // setpriv replaces itself by the program, so the process id is the program's.
            Lifetime::Ours => {
                let mut wrapped = Command::new("setpriv");
                wrapped.args(["--pdeathsig", "KILL", "--"]).args(&words);
                wrapped
            }
            Lifetime::MayStay => {
                let mut direct = Command::new(words[0]);
                direct.args(&words[1..]);
                direct
            }
        };
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            wrapped.current_dir(dir);
        }
        let out = File::options().create(true).append(true).open(log);
        let out = out.with_context(|| format!("opening {}", log.display()))?;
        // A group of its own: Ctrl-C on the terminal is for us, we end it in order.
        wrapped.process_group(0).stdin(Stdio::null()).stderr(out.try_clone()?).stdout(out);
        let child = wrapped.spawn().with_context(|| format!("starting {name}"))?;
        let command = words.iter().map(|word| quote(&word.to_string_lossy())).collect::<Vec<_>>().join(" ");
        Ok(Process { name: name.into(), child, log: log.into(), command, stays: false })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its command line, quoted for a shell.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// The file that takes its output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Fails, with the end of its output, when it has ended.
    pub fn alive(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let output = self.output();
            let lines: Vec<_> = output.lines().collect();
            let tail = lines[lines.len().saturating_sub(20)..].join("\n");
            bail!("{} ended ({status}):\n{tail}", self.name);
        }
        Ok(())
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let name = self.name.clone();
        wait_for(&format!("end of {name}"), limit, || Ok(self.child.try_wait()?))
    }

    /// Ends it with SIGTERM and says how it ended; an unwilling one is killed, and that is an error.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        let deadline = std::time::Instant::now() + END_LIMIT;
        // Not wait_for: this must work after Ctrl-C too.
        while std::time::Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill()?;
        bail!("{} did not end within {} s of SIGTERM", self.name, END_LIMIT.as_secs());
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL)?;
        let status = self.child.wait()?;
        debug_assert!(status.signal().is_some() || status.code().is_some());
        Ok(())
    }

    /// Sends a signal to it and to what it started.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = i32::try_from(self.child.id()).context("a process id")?;
        killpg(Pid::from_raw(id), signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Leaves it running when this value goes away.
    pub fn leave(&mut self) {
        self.stays = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.stays {
            // An error here has nobody to go to; the process is dead either way.
            let _ = self.stop();
        }
    }
}

/// Runs a command to its end and returns what it printed; its error is what it complained of.
///
/// # Errors
/// It does not start, or ends with a failure.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `word` as a shell needs it.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str, dir: &Path) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start("script", &command, &dir.join("log"), Lifetime::Ours).unwrap()
    }

    #[test]
    fn an_ended_process_tells_why() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = start("echo 'no such disk'; exit 3", dir.path());
        assert_eq!(process.wait(Duration::from_secs(10)).unwrap().code(), Some(3));
        let error = process.alive().unwrap_err().to_string();
        assert!(error.contains("no such disk") && error.contains("3"), "{error}");
    }

    #[test]
    fn dropping_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let process = start("trap 'echo bye; exit' TERM; echo up; while :; do sleep 0.02; done", dir.path());
        wait_for("the script", Duration::from_secs(10), || Ok(process.output().contains("up").then_some(())))
            .unwrap();
        let log = process.log().to_owned();
        drop(process);
        assert!(std::fs::read_to_string(log).unwrap().ends_with("bye\n"));
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quote("-m"), "-m");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }
}
