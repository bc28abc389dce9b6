//! `cargo xtask demo`: three guests with disks and networks of ours, and what they see of them.

mod report;
mod stage;
mod tiers;
mod trials;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};

pub use report::Report;

use crate::image::Image;
use crate::lab::process::Lifetime;
use crate::lab::qemu::Accelerator;
use crate::lab::{Site, interrupted};
use crate::progress::Progress;
use crate::{image, paths, setup, suites};
use stage::Stage;

/// Lines of each log that are shown when something went wrong.
const LOG_LINES: usize = 12;

/// Builds, starts everything, tries it, and ends it again unless `keep` says to leave it running.
pub fn run(keep: bool, progress: &Progress) -> anyhow::Result<Report> {
    setup::run(progress)?;
    let program = build(progress)?;
    let image = image::make(progress)?;
    let accelerator = Accelerator::probe(&image, progress)?;
    perform(&program, &image, accelerator, keep, progress)
}

/// The demo with a program and an image that are there already.
pub fn perform(
    program: &Path,
    image: &Image,
    accelerator: Accelerator,
    keep: bool,
    progress: &Progress,
) -> anyhow::Result<Report> {
    let start = Instant::now();
    // Short: the path of a unix socket has 108 bytes at most.
    let dir = tempfile::Builder::new().prefix("sluice-demo-").tempdir()?;
    let lifetime = if keep { Lifetime::MayStay } else { Lifetime::Ours };
    let site =
        Site { program: program.into(), dir: dir.path().into(), lifetime, usual_ports: true }.prepared()?;
    // The logs go with the directory: show their ends with whatever went wrong.
    let result = stage_and_try(site, image, accelerator, keep, progress);
    let mut report = result.or_else(|error| {
        interrupted()?;
        Err(error.context(ends_of_logs(dir.path())))
    })?;
    report.seconds = start.elapsed().as_secs_f64();
    if report.left_running.is_some() {
        let _kept: PathBuf = dir.keep();
    } else if !report.passed() {
        progress.line(&ends_of_logs(dir.path()));
    }
    progress.finish();
    Ok(report)
}

fn stage_and_try(
    site: Site,
    image: &Image,
    accelerator: Accelerator,
    keep: bool,
    progress: &Progress,
) -> anyhow::Result<Report> {
    let mut stage = Stage::set(site, image, accelerator, progress)?;
    let mut report = trials::run(&mut stage, progress)?;
    if keep {
        report.left_running = Some(stage.leave());
    } else {
        progress.note("ending everything");
        stage.end()?;
    }
    Ok(report)
}

/// The last lines of every log in `dir`.
fn ends_of_logs(dir: &Path) -> String {
    let files = std::fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut logs: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|ext| ext == "log" || ext == "console")).collect();
    logs.sort();
    let mut text = String::from("the logs end with");
    for log in logs {
        let lines = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<_> = lines.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n  ");
        text += &format!("\n{}:\n  {tail}", log.display());
    }
    text
}

/// Builds the release; returns the program.
fn build(progress: &Progress) -> anyhow::Result<PathBuf> {
    progress.note("building the release (minutes when it is the first time)");
    let log = paths::target().join("demo-build.log");
    std::fs::create_dir_all(paths::target())?;
    std::fs::write(&log, "")?;
    let good = suites::run_logged(
        paths::cargo().args(["build", "--release", "--locked", "--package", "sluice"]),
        &log,
    )?;
    ensure!(good, "the release does not build:\n{}", read(&log)?);
    Ok(paths::target().join("release/sluice"))
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}
