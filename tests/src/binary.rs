//! The program under test: built once, from the same tree, with the same profile as the test that asks.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use xtask::lab::Site;
use xtask::lab::process::Lifetime;
use xtask::paths;

/// The program `sluice`: what the environment variable `SLUICE_BIN` names, else a fresh build.
///
/// # Panics
/// It does not build.
pub fn sluice() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("SLUICE_BIN") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    // A test is TARGET/PROFILE/deps/NAME.
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.ancestors().nth(2).expect("tests lie two levels below the profile's directory");
    let target = profile.parent().expect("the profile lies in the target directory");
    let mut cargo = paths::cargo();
    // All of the workspace, so that dependencies have the features they have in every other build.
    cargo
        .args(["build", "--quiet", "--locked", "--workspace", "--bin", "sluice"])
        .arg("--target-dir")
        .arg(target);
    if profile.file_name().is_some_and(|name| name == "release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "the program does not build");
    profile.join("sluice")
}

/// Directories for one set of daemons in `dir`; their processes end with the test.
///
/// # Panics
/// The program does not build, or `dir` can't be written.
pub fn site(dir: &Path) -> Site {
    let site = Site {
        program: sluice().to_owned(),
        dir: dir.to_owned(),
        lifetime: Lifetime::Ours,
        usual_ports: false,
    };
    site.prepared().expect("directories can be made")
}
