//! DPDK's testpmd as the client of a switch: two vhost-user frontends and a closed loop between them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::CLIENT_CORE;

/// Frames in flight in each direction, in bursts of 32.
const BURSTS_IN_FLIGHT: u32 = 8;
/// Time until caches are warm and rings are full.
const WARM_UP: Duration = Duration::from_millis(1500);
/// How long testpmd may take for its start or for a command.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const PROMPT: &str = "testpmd> ";

/// A running testpmd.
pub struct Testpmd {
    child: Child,
    input: ChildStdin,
    output: Receiver<String>,
}

/// What came back in one window.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Frames received by both ports.
    pub frames: u64,
    /// Length of the window.
    pub seconds: f64,
}

impl Window {
    /// Millions of frames a second.
    pub fn mpps(&self) -> f64 {
        self.frames as f64 / self.seconds / 1e6
    }
}

impl Testpmd {
    /// Starts testpmd with a frontend on each of the server sockets, and frames of `frame_bytes` bytes without FCS.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(sockets: &[&Path], frame_bytes: u32) -> anyhow::Result<Testpmd> {
        crate::need("dpdk-testpmd", "dpdk-dev")?;
        // On a pipe its figures would come when it ends.
        let mut command = Command::new("stdbuf");
        command.args(["--output=L", "dpdk-testpmd"]);
        command.arg("--lcores").arg(format!("0@{CLIENT_CORE},1@{CLIENT_CORE}"));
        command.args([
            "--no-pci",
            "--in-memory",
            "--single-file-segments",
            "--no-telemetry",
            "--log-level=error",
        ]);
        command.args(["-m", "256"]);
        for (index, socket) in sockets.iter().enumerate() {
            let path = socket.display();
            command.arg(format!(
                "--vdev=net_virtio_user{index},path={path},queues=1,server=0,queue_size=1024,mac={}",
                mac(index)
            ));
        }
        command.args(["--", "-i", "--nb-cores=1", "--rxd=1024", "--txd=1024", "--total-num-mbufs=32768"]);
        command.args(["--no-lsc-interrupt", "--no-flush-rx", "--forward-mode=io"]);
        for index in 0..sockets.len() {
            command.arg(format!("--eth-peer={index},{}", mac(index ^ 1)));
        }
        command.arg(format!("--txpkts={frame_bytes}"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("starting dpdk-testpmd")?;
        let input = child.stdin.take().context("testpmd's input")?;
        let output = child.stdout.take().context("testpmd's output")?;
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut text = Vec::new();
            // The prompt ends in a blank, and nothing else that matters does.
            while let Ok(1..) = output.read_until(b' ', &mut text) {
                if text.ends_with(PROMPT.as_bytes()) {
                    let answer = String::from_utf8_lossy(&text).into_owned();
                    if sender.send(answer).is_err() {
                        return;
                    }
                    text.clear();
                }
            }
            let _ = output.read_to_end(&mut text);
        });
        let mut testpmd = Testpmd { child, input, output: receiver };
        testpmd.answer()?;
        Ok(testpmd)
    }

    /// Loads the switch with frames that circulate between the two ports; calls `at` at the start and at the end of a
    /// window of `seconds` seconds.
    ///
    /// # Errors
    /// When testpmd does not answer, or `at` fails.
    pub fn measure(
        &mut self,
        seconds: f64,
        mut at: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Window> {
        self.command(&format!("start tx_first {BURSTS_IN_FLIGHT}"))?;
        thread::sleep(WARM_UP);
        self.command("clear port stats all")?;
        let start = Instant::now();
        at()?;
        thread::sleep(Duration::from_secs_f64(seconds));
        at()?;
        let seconds = start.elapsed().as_secs_f64();
        let stats = self.command("show port stats all")?;
        self.command("stop")?;
        let received = stats.split("RX-packets:").skip(1);
        let frames = received.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok()).sum();
        Ok(Window { frames, seconds })
    }

    fn command(&mut self, text: &str) -> anyhow::Result<String> {
        writeln!(self.input, "{text}").context("telling testpmd what to do")?;
        self.answer()
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        match self.output.recv_timeout(ANSWER_LIMIT) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => {
                bail!("testpmd did not answer within {} s", ANSWER_LIMIT.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => bail!("testpmd ended: {:?}", self.child.try_wait()?),
        }
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = writeln!(self.input, "quit");
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn mac(index: usize) -> String {
    format!("02:00:00:00:00:{:02x}", 10 + index)
}
