//! `cargo xtask judge`: what others say of our switch.
//!
//! ```text
//! os-ken's tester (controller of both) --- Open vSwitch, userspace, dpid 2:  o1   o2   o3
//!                                     \                                      |    |    |   veth pairs
//!                                      --- our switch, dpid 1:               t1   t2   t3
//! ```
//!
//! Everything runs in a network namespace of its own that ends with it.

pub mod controllers;
mod python;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use serde::Deserialize;

use crate::lab::hugepages::Hugepages;
use crate::lab::ovs::{Datapath, Ovs};
use crate::lab::{Process, Site, netns, process::Lifetime, wait_for};
use crate::progress::Progress;
use crate::{paths, setup};

/// The tester, as its package index knows it. Later ones have no program that runs it.
const PACKAGE: &str = "os-ken==3.1.0";
/// Where the tester listens in our namespace.
const CONTROLLER: &str = "127.0.0.1:6633";
/// Memory of Open vSwitch with DPDK, in pages of 2 MiB.
const PAGES: u64 = 576;
/// How long one directory of cases may take.
const PART_LIMIT: Duration = Duration::from_secs(45 * 60);

/// Parts of the tester's cases, by the names of their directories.
pub const PARTS: [&str; 4] = ["match", "action", "group", "meter"];

/// What to run.
#[derive(Clone, Debug)]
pub struct Order {
    /// Directories of cases.
    pub parts: Vec<String>,
    /// How often.
    pub runs: u32,
    /// Seconds that each throughput case takes instead of those it was written for.
    pub seconds: Option<u32>,
    /// Only each so manieth case of a file.
    pub every: Option<u32>,
    /// No throughput case that sends more packets a second: a busy machine may not keep up with the tester itself.
    pub rate_max: Option<u32>,
    /// Ports of ours are vhost-user, and the tester's the frontends of DPDK.
    pub vhost_user: bool,
}

/// The verdict on one case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, Debug)]
struct Verdict {
    file: String,
    case: String,
    result: String,
}

/// What a run came to.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Report {
    /// By directory: cases that passed, cases.
    parts: BTreeMap<String, (u64, u64)>,
    /// Cases that did not pass.
    failed: Vec<Verdict>,
}

impl Report {
    /// Cases that passed and all.
    pub fn total(&self) -> (u64, u64) {
        self.parts.values().fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1))
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for Verdict { file, case, result } in &self.failed {
            writeln!(f, "{file}: {case}: {result}")?;
        }
        let parts = self.parts.iter().map(|(part, (passed, all))| format!("{part} {passed} of {all}"));
        write!(f, "{}", parts.collect::<Vec<_>>().join(", "))
    }
}

/// Has the tester judge our switch; outside of the namespace.
///
/// # Errors
/// A tool is missing and cannot be installed, or the runs differ from each other.
pub fn ryu(order: &Order, progress: &Progress) -> anyhow::Result<Vec<Report>> {
    let unknown = order.parts.iter().find(|part| !PARTS.contains(&part.as_str()));
    ensure!(unknown.is_none(), "there is no part {unknown:?}; there are {}", PARTS.join(", "));
    ensure!(nix::unistd::geteuid().is_root(), "only root may make a network namespace");
    setup::run(progress)?;
    let python = install(progress)?;
    ensure!(paths::cargo().args(["build", "--quiet", "--package", "sluice"]).status()?.success(), "no build");
    let mut reports = Vec::new();
    for run in 1..=order.runs {
        progress.note(&format!("judge: run {run} of {}", order.runs));
        // A thread of its own: what it starts has its priority and ends with it.
        let judged = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    // A polling thread of DPDK would leave the others nothing.
                    if !order.vhost_user && !go_first() {
                        progress
                            .note("judge: no real-time scheduling here: other programs can disturb rates");
                    }
                    in_namespace(order, &python)
                })
                .join()
        });
        reports.push(judged.map_err(|_| anyhow!("the judge's thread panicked"))??);
    }
    Ok(reports)
}

/// Installs the tester where our other products are, if it is not there yet; returns its Python.
///
/// # Errors
/// The package index or the distribution's packages cannot be reached.
pub fn install(progress: &Progress) -> anyhow::Result<PathBuf> {
    Ok(python::environment("tester", &[PACKAGE], progress)?.join("python"))
}

/// One run, in the namespace of a new Open vSwitch; everything ends with it.
fn in_namespace(order: &Order, python: &Path) -> anyhow::Result<Report> {
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    let datapath = if order.vhost_user { Datapath::Dpdk { core: 0 } } else { Datapath::Userspace };
    let _pages = order.vhost_user.then(|| Hugepages::reserve(PAGES)).transpose()?;
    let ovs = Ovs::start(datapath)?;
    // What is started inside ends with the thread that this runs on.
    let judged = ovs.namespace().enter(|| inside(order, &ovs, directory, python))?;
    judged.with_context(|| {
        let log = fs::read_to_string(directory.join("tester.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!("the judge did not come to an end:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    })?;
    let mut report = Report::default();
    for part in &order.parts {
        let text = fs::read_to_string(directory.join(format!("{part}.json")))?;
        let verdicts = text.lines().map(serde_json::from_str).collect::<Result<Vec<Verdict>, _>>()?;
        let passed = verdicts.iter().filter(|verdict| verdict.result == "OK").count();
        report.parts.insert(part.clone(), (passed as u64, verdicts.len() as u64));
        report.failed.extend(verdicts.into_iter().filter(|verdict| verdict.result != "OK"));
    }
    Ok(report)
}

/// What takes part goes before the other programs of the machine: rates are judged by the clock, and the tester's switch
/// has room for some 5 ms of frames at the highest of them.
fn go_first() -> bool {
    let thread = nix::unistd::gettid().to_string();
    let first = Command::new("chrt").args(["--rr", "--pid", "1", &thread]).output();
    first.is_ok_and(|output| output.status.success())
}

/// The part that runs inside the namespace; verdicts go to `directory`.
fn inside(order: &Order, ovs: &Ovs, directory: &Path, python: &Path) -> anyhow::Result<()> {
    let program = paths::target().join("debug/sluice");
    let (dir, lifetime) = (directory.join("site"), Lifetime::Ours);
    let site = Site { program, dir, lifetime, usual_ports: false }.prepared()?;
    let _switch = site.switch(Some(CONTROLLER.parse()?))?;
    ovs.add_bridge("judge", 2, Some(CONTROLLER))?;
    for number in 1..=3 {
        let (ours, theirs, ofport) = (format!("t{number}"), format!("o{number}"), number.to_string());
        if order.vhost_user {
            site.sluice(&["port", "add", &ours, "--vhost-user", "--ofport", &ofport])?;
            let device = format!("net_virtio_user{number},path={},queues=1", site.socket(&ours).display());
            let device = format!("options:dpdk-devargs={device}");
            ovs.add_port("judge", &theirs, number, &["type=dpdk", &device])?;
        } else {
            netns::cable(None, [&ours, &theirs], 1500)?;
            site.sluice(&["port", "add", &ours, "--af-packet", &ours, "--ofport", &ofport])?;
            ovs.add_port("judge", &theirs, number, &[])?;
        }
    }
    for part in &order.parts {
        judge(order, part, python, directory)?;
    }
    Ok(())
}

/// Runs the cases of one directory.
fn judge(order: &Order, part: &str, python: &Path, directory: &Path) -> anyhow::Result<()> {
    let script = directory.join("judge_tester.py");
    fs::write(&script, include_str!("tester.py"))?;
    let find = "import os, os_ken.tests.switch as cases; print(os.path.dirname(cases.__file__))";
    let found = Command::new(python).args(["-c", find]).output()?;
    ensure!(
        found.status.success(),
        "the tester is not installed: {}",
        String::from_utf8_lossy(&found.stderr)
    );
    let cases = PathBuf::from(String::from_utf8(found.stdout)?.trim()).join("of13").join(part);
    let (address, port) = CONTROLLER.split_once(':').context("an address")?;
    let verdicts = directory.join(format!("{part}.json"));
    let mut command = Command::new(python.with_file_name("osken-manager"));
    command.args(["--ofp-listen-host", address, "--ofp-tcp-listen-port", port]);
    command.args(["--test-switch-target", "0000000000000001", "--test-switch-tester", "0000000000000002"]);
    command.arg("--test-switch-dir").arg(cases).arg(&script);
    command.env("JUDGE_OUT", &verdicts).env("PYTHONPATH", directory);
    if let Some(seconds) = order.seconds {
        command.env("JUDGE_SECONDS", seconds.to_string());
    }
    if let Some(every) = order.every {
        command.env("JUDGE_CASES", format!("[0, {every}]"));
    }
    if let Some(rate_max) = order.rate_max {
        command.env("JUDGE_RATE_MAX", rate_max.to_string());
    }
    if order.vhost_user {
        command.env("JUDGE_VHOST_USER", "1");
    }
    let mut process = Process::start("tester", &command, &directory.join("tester.log"), Lifetime::Ours)?;
    wait_for(&format!("verdicts on {part}"), PART_LIMIT, || {
        if verdicts.with_extension("json.done").exists() {
            return Ok(Some(()));
        }
        process.alive().map(|()| None)
    })
}
