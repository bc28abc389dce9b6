//! QEMU's machine protocol: one JSON object a line.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use super::wait::interrupted;

/// How long QEMU may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A connection to one QEMU.
pub struct Qmp {
    lines: Lines,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects and leaves the greeting behind.
    pub fn connect(socket: &Path) -> anyhow::Result<Qmp> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        let mut qmp = Qmp { lines: Lines::new(stream)?, events: VecDeque::new() };
        qmp.receive(ANSWER_LIMIT)?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns its result.
    pub fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.lines.send(&request.to_string())?;
        loop {
            let answer = self.receive(ANSWER_LIMIT).with_context(|| format!("QMP {command}"))?;
            if answer.get("event").is_some() {
                self.events.push_back(answer);
                continue;
            }
            ensure!(answer.get("error").is_none(), "QMP {command}: {}", answer["error"]["desc"]);
            return Ok(answer["return"].clone());
        }
    }

    /// Waits for an event `name` whose data are `accept`ed (events that came since the start count too) and returns them.
    pub fn event(
        &mut self,
        name: &str,
        accept: impl Fn(&Value) -> bool,
        limit: Duration,
    ) -> anyhow::Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            while let Some(event) = self.events.pop_front() {
                if event["event"] == name && accept(&event["data"]) {
                    return Ok(event["data"].clone());
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.receive(left).with_context(|| format!("waiting for the QMP event {name}"))?;
            self.events.push_back(event);
        }
    }

    fn receive(&mut self, limit: Duration) -> anyhow::Result<Value> {
        let line = self.lines.next(limit)?;
        serde_json::from_str(&line).with_context(|| format!("QEMU said {line:?}"))
    }
}

/// Text lines over a socket, each read with a limit.
pub struct Lines {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Lines {
    /// Takes over the stream.
    pub fn new(stream: UnixStream) -> anyhow::Result<Lines> {
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Lines { stream, buffer: Vec::new() })
    }

    /// Sends one line.
    pub fn send(&mut self, line: &str) -> anyhow::Result<()> {
        assert!(!line.contains('\n'), "one line only: {line:?}");
        Ok(self.stream.write_all(format!("{line}\n").as_bytes())?)
    }

    /// The next line, without its end.
    pub fn next(&mut self, limit: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned());
            }
            interrupted()?;
            if Instant::now() > deadline {
                bail!(
                    "no answer within {} s; so far: {:?}",
                    limit.as_secs_f32(),
                    String::from_utf8_lossy(&self.buffer)
                );
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the other side closed the connection"),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
