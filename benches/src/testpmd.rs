//! DPDK's testpmd as the client of a switch: two vhost-user frontends, and either a closed loop between them or frames of
//! a file that go in by the first and are taken from the second.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use crate::distance::Distance;
use crate::{CLIENT_CORE, send_signal};

/// Frames in flight in each direction, in bursts of 32.
const BURSTS_IN_FLIGHT: u32 = 8;
/// See [`Testpmd::warm_up`].
const WARM_UP: Duration = Duration::from_millis(1500);
/// How long testpmd may take for its start or for a command.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const PROMPT: &str = "testpmd> ";
/// Frames that it has room for.
const FRAMES_HELD: usize = 32_768;
/// Room for a frame of a file, with the head room and the headers that DPDK wants.
const REPLAY_BUFFER_BYTES: usize = 512;
/// Longest frame of a file.
pub const REPLAY_BYTES_MAX: usize = REPLAY_BUFFER_BYTES - 256;
/// Number of the second frontend among the devices of an open loop.
const SECOND_FRONTEND: usize = 2;

/// A running testpmd.
pub struct Testpmd {
    child: Child,
    input: ChildStdin,
    output: Receiver<String>,
    kind: Loop,
    /// Time until caches are warm and rings are full.
    pub warm_up: Duration,
}

/// Where frames come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loop {
    /// The same frames circulate.
    Closed,
    /// A file, and they end at the second frontend.
    Open,
}

/// What came back in one window.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Frames received: by both frontends of a closed loop, by the second one of an open one.
    pub frames: u64,
    /// Length of the window.
    pub seconds: f64,
    /// How far client and switch were from each other; `None` if that changed meanwhile.
    pub distance: Option<Distance>,
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
        let mut command = command(256);
        let mut forwarding = Vec::new();
        for (index, socket) in sockets.iter().enumerate() {
            command.push(frontend(index, socket));
            forwarding.push(format!("--eth-peer={index},{}", mac(index ^ 1)));
        }
        forwarding.push(format!("--txpkts={frame_bytes}"));
        Testpmd::run(&command, FRAMES_HELD, &forwarding, Loop::Closed)
    }

    /// Starts testpmd with a frontend on both server sockets, to send the `frames` frames of a file in pcap format, none
    /// longer than [`REPLAY_BYTES_MAX`], again and again by the first and to take what comes out of the second. The frames
    /// of `answers` are sent by the second, once.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn replay(
        sockets: [&Path; 2],
        file: &Path,
        answers: &Path,
        frames: usize,
    ) -> anyhow::Result<Testpmd> {
        let held = FRAMES_HELD + frames;
        // With what a buffer of this size takes of memory.
        let mut command = command(128 + held * 768 / (1 << 20));
        // Frames go between neighbours: file and first frontend, second frontend and nowhere.
        command.push(format!("--vdev=net_pcap0,rx_pcap={},infinite_rx=1", file.display()));
        command.extend([frontend(0, sockets[0]), frontend(1, sockets[1])]);
        command.push(format!("--vdev=net_pcap1,rx_pcap={}", answers.display()));
        let small =
            [format!("--max-pkt-len={REPLAY_BYTES_MAX}"), format!("--mbuf-size={REPLAY_BUFFER_BYTES}")];
        Testpmd::run(&command, held, &small, Loop::Open)
    }

    fn run(program: &[String], held: usize, forwarding: &[String], kind: Loop) -> anyhow::Result<Testpmd> {
        crate::need("dpdk-testpmd", "dpdk-dev")?;
        // On a pipe its figures would come when it ends.
        let mut command = Command::new("stdbuf");
        command.arg("--output=L").args(program);
        command.args(["--", "-i", "--nb-cores=1", "--rxd=1024", "--txd=1024", "--forward-mode=io"]);
        command.args(["--no-lsc-interrupt", "--no-flush-rx"]).arg(format!("--total-num-mbufs={held}"));
        command.args(forwarding);
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
        let mut testpmd = Testpmd { child, input, output: receiver, kind, warm_up: WARM_UP };
        testpmd.answer()?;
        Ok(testpmd)
    }

    /// Loads the switch from now on, and waits until that is warm.
    ///
    /// # Errors
    /// When testpmd does not answer.
    pub fn load(&mut self) -> anyhow::Result<()> {
        match self.kind {
            Loop::Closed => self.command(&format!("start tx_first {BURSTS_IN_FLIGHT}"))?,
            Loop::Open => self.command("start")?,
        };
        thread::sleep(self.warm_up);
        Ok(())
    }

    /// Measures the load for `seconds` seconds; calls `at` at the start and at the end.
    ///
    /// # Errors
    /// When testpmd does not answer, or `at` fails.
    pub fn measure(
        &mut self,
        seconds: f64,
        mut at: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Window> {
        let before = Distance::now()?;
        self.command("clear port stats all")?;
        let start = Instant::now();
        at()?;
        thread::sleep(Duration::from_secs_f64(seconds));
        at()?;
        let seconds = start.elapsed().as_secs_f64();
        let stats = self.command("show port stats all")?;
        let distance = Some(before).filter(|before| Distance::now().is_ok_and(|after| after == *before));
        let received = stats.split("RX-packets:").skip(1);
        let received = received.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        let frames = match self.kind {
            Loop::Closed => received.sum(),
            Loop::Open => received.skip(SECOND_FRONTEND).take(1).sum(),
        };
        Ok(Window { frames, seconds, distance })
    }

    /// Stands still until [`Testpmd::resume`]: the processor is another's meanwhile.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> anyhow::Result<()> {
        send_signal(self.child.id(), Signal::SIGSTOP)
    }

    /// Goes on after [`Testpmd::pause`].
    ///
    /// # Errors
    /// When it has ended.
    pub fn resume(&self) -> anyhow::Result<()> {
        send_signal(self.child.id(), Signal::SIGCONT)
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
        let _ = self.resume();
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

/// The command up to its devices.
fn command(memory_mib: usize) -> Vec<String> {
    let words = ["dpdk-testpmd", "--no-pci", "--in-memory", "--single-file-segments", "--no-telemetry"];
    let mut command: Vec<String> = words.map(str::to_owned).to_vec();
    command.extend(["--log-level=error".into(), format!("--lcores=0@{CLIENT_CORE},1@{CLIENT_CORE}")]);
    command.extend(["-m".into(), memory_mib.to_string()]);
    command
}

fn frontend(index: usize, socket: &Path) -> String {
    let (path, mac) = (socket.display(), mac(index));
    format!("--vdev=net_virtio_user{index},path={path},queues=1,server=0,queue_size=1024,mac={mac}")
}

fn mac(index: usize) -> String {
    format!("02:00:00:00:00:{:02x}", 10 + index)
}
