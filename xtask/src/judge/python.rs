//! Python environments of their own for what judges bring with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::paths::{self, find_program};
use crate::progress::Progress;
use crate::setup;

/// The environment `name` with these packages, made when it is not there: its directory of programs.
pub fn environment(name: &str, packages: &[&str], progress: &Progress) -> anyhow::Result<PathBuf> {
    let directory = paths::target().join("judge");
    let environment = directory.join(format!("python-{name}"));
    let (programs, made) = (environment.join("bin"), environment.join("packages"));
    let wanted = packages.join("\n");
    if fs::read_to_string(&made).is_ok_and(|packages| packages == wanted) {
        return Ok(programs);
    }
    progress.note(&format!("installing {} under {}", packages.join(", "), environment.display()));
    fs::create_dir_all(&directory)?;
    let log = directory.join(format!("python-{name}.log"));
    fs::write(&log, "")?;
    let venv = || {
        // The one of the distribution: its package brings what environments are made of.
        let python = Path::new("/usr/bin/python3");
        let python =
            if python.is_file() { python.into() } else { find_program("python3").unwrap_or_default() };
        let mut command = Command::new(python);
        command.args(["-m", "venv", "--clear"]).arg(&environment);
        command
    };
    if setup::run_logged(&mut venv(), &log).is_err() {
        // Debian's Python leaves this part of it out.
        setup::run_logged(
            setup::apt_get().args(["install", "--no-install-recommends", "python3-venv"]),
            &log,
        )?;
        setup::run_logged(&mut venv(), &log)?;
    }
    let pip = |arguments: &[&str]| {
        let mut command = Command::new(programs.join("pip"));
        command.args(["install", "--quiet", "--disable-pip-version-check"]).args(arguments);
        setup::run_logged(&mut command, &log)
    };
    // What some of them are built with, in versions that still have what their builds ask for.
    pip(&["setuptools<81", "wheel", "pbr"])?;
    pip(&[&["--no-build-isolation"][..], packages].concat())?;
    fs::write(&made, wanted)?;
    Ok(programs)
}
