//! Finds the tools that the demo and the tests run, and installs what is missing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

use crate::paths::{self, find_program};
use crate::progress::Progress;

/// Oldest QEMU whose vhost-user block device reconnects without trouble.
pub const QEMU_MAJOR_MIN: u32 = 8;

/// A tool and the Debian or Ubuntu package that brings it.
struct Tool {
    program: &'static str,
    package: &'static str,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

const QEMU: Tool = tool("qemu-system-x86_64", "qemu-system-x86");
const TOOLS: &[Tool] = &[
    tool("qemu-storage-daemon", "qemu-utils"),
    tool("cpio", "cpio"),
    tool("depmod", "kmod"),
    tool("xz", "xz-utils"),
    tool("zstd", "zstd"),
    tool("mkfs.ext4", "e2fsprogs"),
    tool("ip", "iproute2"),
    tool("setpriv", "util-linux"),
    tool("python3", "python3"),
    tool("ovs-vswitchd", "openvswitch-switch"),
    tool("ovs-ofctl", "openvswitch-common"),
    tool("ovs-pki", "openvswitch-common"),
    tool("ovs-testcontroller", "openvswitch-testcontroller"),
    tool("openssl", "openssl"),
    tool("chromium", "chromium"),
    tool("systemd-analyze", "systemd"),
    tool("git", "git"),
    tool("cc", "gcc"),
    tool("c++", "g++"),
];

/// Components of the Rust toolchain, and how to ask whether they are there.
const COMPONENTS: &[(&str, &str)] = &[("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")];

const BACKPORTS_LIST: &str = "/etc/apt/sources.list.d/sluice-backports.sources";
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// What a machine lacks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Missing {
    packages: Vec<&'static str>,
    /// QEMU itself is missing or too old: it may have to come from another suite.
    qemu: bool,
    components: Vec<&'static str>,
}

impl Missing {
    /// Looks at this machine.
    pub fn look() -> Missing {
        let tools = TOOLS.iter().filter(|tool| find_program(tool.program).is_none());
        let mut packages: Vec<_> = tools.map(|tool| tool.package).collect();
        packages.dedup();
        let components = COMPONENTS.iter().filter(|(program, _)| find_program(program).is_none());
        Missing {
            packages,
            qemu: qemu_version().is_none_or(|(major, _)| major < QEMU_MAJOR_MIN),
            components: components.map(|(_, component)| *component).collect(),
        }
    }

    /// Whether nothing is missing.
    pub fn is_empty(&self) -> bool {
        *self == Missing::default()
    }
}

/// Version of the installed QEMU, (major, minor).
pub fn qemu_version() -> Option<(u32, u32)> {
    let output = Command::new(find_program(QEMU.program)?).arg("--version").output().ok()?;
    parse_qemu_version(&String::from_utf8_lossy(&output.stdout))
}

fn parse_qemu_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split("version ").nth(1)?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Makes sure that every tool is there. Quick when it is; says the command when it may not install.
pub fn run(progress: &Progress) -> anyhow::Result<()> {
    let missing = Missing::look();
    if missing.is_empty() {
        return Ok(());
    }
    let apt = find_program("apt-get").is_some();
    let root = nix::unistd::geteuid().is_root();
    if !apt || !root {
        bail!(advice(&missing, apt));
    }
    install(&missing, progress)?;
    let rest = Missing::look();
    ensure!(rest.is_empty(), "after the installation these are still missing:\n{}", advice(&rest, apt));
    Ok(())
}

/// What a person has to do who may install.
fn advice(missing: &Missing, apt: bool) -> String {
    let mut lines = vec!["tools are missing; please run:".to_owned()];
    let mut packages = missing.packages.clone();
    if apt && missing.qemu && backports_needed() {
        lines.push(format!("  sudo tee {BACKPORTS_LIST} <<'END'\n{}END", backports_source()));
        lines.push("  sudo apt-get update".into());
        lines.push(format!("  sudo apt-get install -t bookworm-backports {} qemu-utils", QEMU.package));
    } else if missing.qemu {
        packages.insert(0, QEMU.package);
    }
    if apt && !packages.is_empty() {
        lines.push(format!("  sudo apt-get install {}", packages.join(" ")));
    } else if !packages.is_empty() {
        lines.push(format!(
            "  (your distribution's installer for what Debian calls) {}, QEMU {QEMU_MAJOR_MIN} or newer",
            packages.join(", ")
        ));
    }
    if !missing.components.is_empty() {
        lines.push(format!("  rustup component add {}", missing.components.join(" ")));
    }
    lines.join("\n")
}

fn install(missing: &Missing, progress: &Progress) -> anyhow::Result<()> {
    let log = paths::target().join("setup.log");
    fs::create_dir_all(paths::target())?;
    fs::write(&log, "")?;
    if !missing.components.is_empty() {
        progress.note(&format!("installing {}", missing.components.join(", ")));
        run_logged(Command::new("rustup").args(["component", "add"]).args(&missing.components), &log)?;
    }
    if !missing.qemu && missing.packages.is_empty() {
        return Ok(());
    }
    progress.note("reading the package lists");
    run_logged(apt_get().arg("update"), &log)?;
    let _quiet = QuietServices::new()?;
    if missing.qemu {
        progress.note("installing QEMU");
        let mut command = apt_get();
        command.args(["install", "--no-install-recommends"]);
        if backports_needed() {
            fs::write(BACKPORTS_LIST, backports_source())
                .with_context(|| format!("writing {BACKPORTS_LIST}"))?;
            run_logged(apt_get().arg("update"), &log)?;
            command.args(["-t", "bookworm-backports"]);
        }
        run_logged(command.args([QEMU.package, "qemu-utils"]), &log)?;
    }
    if !missing.packages.is_empty() {
        progress.note(&format!("installing {}", missing.packages.join(", ")));
        run_logged(apt_get().args(["install", "--no-install-recommends"]).args(&missing.packages), &log)?;
    }
    Ok(())
}

/// apt-get that asks nothing and waits for another one to finish.
pub fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["--yes", "--quiet", "-o", "DPkg::Lock::Timeout=300", "-o", "APT::Sandbox::User=root"]);
    command
}

/// Runs a command with its output appended to `log`; its error ends with what it said.
pub fn run_logged(command: &mut Command, log: &Path) -> anyhow::Result<()> {
    let out = fs::File::options().append(true).open(log)?;
    let errors = out.try_clone()?;
    let status = command.stdin(Stdio::null()).stdout(out).stderr(errors).status();
    let status = status.with_context(|| format!("running {:?}", command.get_program()))?;
    if !status.success() {
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        bail!("{} {} failed:\n{tail}", command.get_program().to_string_lossy(), words.join(" "));
    }
    Ok(())
}

/// Whether the QEMU that this machine's package lists offer is too old. Only Debian 12 is, and it has a backport.
fn backports_needed() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let has = |line: &str| release.lines().any(|l| l == line);
    has("ID=debian") && has("VERSION_CODENAME=bookworm")
}

fn backports_source() -> String {
    "Types: deb\n\
     URIs: http://deb.debian.org/debian\n\
     Suites: bookworm-backports\n\
     Components: main\n\
     Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        .into()
}

/// While it lives, freshly installed packages start no services (a switch of the host's own would fight with ours).
/// A policy that the machine has already is left alone.
struct QuietServices {
    ours: Option<PathBuf>,
}

impl QuietServices {
    fn new() -> anyhow::Result<QuietServices> {
        if Path::new(POLICY).exists() {
            return Ok(QuietServices { ours: None });
        }
        fs::write(POLICY, "#!/bin/sh\n# No service starts while packages are being installed.\nexit 101\n")
            .and_then(|()| fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("writing {POLICY}"))?;
        Ok(QuietServices { ours: Some(POLICY.into()) })
    }
}

impl Drop for QuietServices {
    fn drop(&mut self) {
        if let Some(file) = &self.ours {
            // Leaving it behind would keep later packages from starting; there is nobody to tell in a drop but the log.
            let _ = fs::remove_file(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_qemu_are_understood() {
        let text =
            "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c) 2003-2025";
        assert_eq!(parse_qemu_version(text), Some((10, 0)));
        assert_eq!(
            parse_qemu_version("QEMU emulator version 8.2.2 (Debian 1:8.2.2+ds-0ubuntu1)"),
            Some((8, 2))
        );
        assert_eq!(parse_qemu_version("no such program"), None);
    }

    #[test]
    fn advice_names_every_missing_thing() {
        let missing = Missing { packages: vec!["cpio", "kmod"], qemu: true, components: vec!["clippy"] };
        for text in [advice(&missing, true), advice(&missing, false)] {
            for word in ["cpio", "kmod", "rustup component add clippy", "qemu-system-x86"] {
                assert!(text.contains(word), "{word} is not in:\n{text}");
            }
        }
        assert!(advice(&missing, true).contains("sudo apt-get install"));
    }
}
