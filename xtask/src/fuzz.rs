//! The fuzz targets of the package `fuzz`, which stands outside the workspace: it is built with its own flags.

use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use serde::Deserialize;

use crate::paths;

/// How long a target runs in `cargo xtask test`.
pub const SHORT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Cargo in the package: its own configuration asks the compiler for coverage, which RUSTFLAGS would override.
fn cargo() -> Command {
    let mut command = paths::cargo();
    command.current_dir(paths::root().join("fuzz")).env_remove("RUSTFLAGS");
    command
}

/// Builds every target.
pub fn build() -> Command {
    let mut command = cargo();
    command.args(["build", "--release", "--locked", "--bins"]);
    command
}

/// Runs a target for `time` from an empty corpus. What makes it fail is left below the target directory.
pub fn run(target: &str, time: Duration) -> anyhow::Result<Command> {
    let artifacts = paths::target().join("fuzz-artifacts");
    std::fs::create_dir_all(&artifacts)?;
    let mut command = cargo();
    command.args(["run", "--release", "--locked", "--bin", target, "--"]);
    command.arg(format!("-max_total_time={}", time.as_secs()));
    command.arg(format!("-artifact_prefix={}/{target}-", artifacts.display()));
    Ok(command)
}

/// Names of all targets.
pub fn targets() -> anyhow::Result<Vec<String>> {
    let output = cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output()?;
    ensure!(output.status.success(), "cargo metadata of fuzz: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
    let targets = metadata.packages.into_iter().flat_map(|package| package.targets);
    Ok(targets
        .filter(|target| target.kind.iter().any(|kind| kind == "bin"))
        .map(|target| target.name)
        .collect())
}
