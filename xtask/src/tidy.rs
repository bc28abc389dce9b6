//! Rules about the tree that no compiler checks: who may import whom, where `unsafe` may stand, how long a file may be.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::paths;

/// Longest Rust file, in lines.
pub const FILE_LINES_MAX: usize = 800;

/// Which workspace crates a crate may import. A crate that is not listed here is an error: decide where it belongs.
const IMPORTS: &[(&str, &[&str])] = &[
    ("ofp", &[]),
    ("packet", &[]),
    ("reactor", &["virtq", "telemetry"]),
    ("sdn-controller", &["ofp", "telemetry"]),
    ("simkit", &[]),
    ("sluice", &["sdn-controller", "telemetry", "vhost-blk", "vswitch"]),
    ("telemetry", &[]),
    ("tiering", &["telemetry"]),
    ("vhost-blk", &["reactor", "telemetry", "tiering", "vhost-session", "virtq"]),
    ("vhost-session", &["telemetry", "virtq"]),
    ("virtq", &[]),
    ("vswitch", &["ofp", "packet", "reactor", "telemetry", "vhost-session", "virtq"]),
];

/// Crates that judge or drive the others: they may import anything and nobody but one of them imports them.
const DRIVERS: &[&str] = &["benches", "tests", "xtask"];

/// Crates that know no operating system, and what they therefore never name.
const PURE: &[&str] = &["ofp", "packet", "tiering"];
const IMPURE: &[&str] = &["io-uring", "libc", "nix", "tokio", "vhost"];

/// Crates that may contain `unsafe`; every other one forbids it in its root.
const UNSAFE: &[&str] = &["benches", "reactor", "tests", "virtq"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    src_path: String,
}

/// One rule with what breaks it.
pub struct Finding {
    /// The rule, as a sentence.
    pub rule: &'static str,
    /// One line per breach; empty when the rule holds.
    pub breaches: Vec<String>,
}

/// Checks the whole tree against every rule.
pub fn check() -> anyhow::Result<Vec<Finding>> {
    let output =
        paths::cargo().args(["metadata", "--no-deps", "--format-version", "1", "--locked"]).output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("the output of cargo metadata")?;
    let files = tracked_files()?;
    Ok(vec![
        Finding { rule: "crates import only what ARCHITECTURE.md allows", breaches: imports(&metadata) },
        Finding { rule: "pure crates name no operating system", breaches: purity(&metadata) },
        Finding { rule: "unsafe only where it is allowed", breaches: forbids_unsafe(&metadata) },
        Finding { rule: "files stay readable", breaches: lengths(&files) },
        Finding { rule: "no unfinished work is left behind", breaches: banned_words(&files) },
    ])
}

fn imports(metadata: &Metadata) -> Vec<String> {
    let allowed: BTreeMap<_, _> = IMPORTS.iter().copied().collect();
    let mut breaches = Vec::new();
    for package in &metadata.packages {
        if DRIVERS.contains(&package.name.as_str()) {
            continue;
        }
        let Some(allowed) = allowed.get(package.name.as_str()) else {
            breaches.push(format!("{} is not in the list of crates", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            let dev = dependency.kind.as_deref() == Some("dev");
            let fine = allowed.contains(&dependency.name.as_str()) || (dev && dependency.name == "simkit");
            if !fine {
                breaches.push(format!("{} imports {}", package.name, dependency.name));
            }
        }
    }
    breaches
}

fn purity(metadata: &Metadata) -> Vec<String> {
    let mut breaches = Vec::new();
    for package in metadata.packages.iter().filter(|package| PURE.contains(&package.name.as_str())) {
        for dependency in &package.dependencies {
            let dev = dependency.kind.as_deref() == Some("dev");
            if !dev && IMPURE.contains(&dependency.name.as_str()) {
                breaches.push(format!("{} imports {}", package.name, dependency.name));
            }
        }
    }
    breaches
}

fn forbids_unsafe(metadata: &Metadata) -> Vec<String> {
    let mut breaches = Vec::new();
    for package in metadata.packages.iter().filter(|package| !UNSAFE.contains(&package.name.as_str())) {
        let roots = package
            .targets
            .iter()
            .filter(|target| target.kind.iter().any(|kind| kind == "lib" || kind == "bin"));
        for root in roots {
            match fs::read_to_string(&root.src_path) {
                Ok(text) if text.contains("#![forbid(unsafe_code)]") => {}
                Ok(_) => breaches.push(format!("{} lacks #![forbid(unsafe_code)]", root.src_path)),
                Err(error) => breaches.push(format!("{}: {error}", root.src_path)),
            }
        }
    }
    breaches
}

/// Text files under version control, with their contents. Before the first commit of a file it is not looked at.
fn tracked_files() -> anyhow::Result<Vec<(String, String)>> {
    let output = paths::command("git").args(["ls-files", "-z"]).output().context("git ls-files")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).context("file names are UTF-8")?;
    let names = names.split('\0').filter(|name| !name.is_empty());
    // A file that is deleted in the work tree or holds no text is nothing to read.
    Ok(names
        .filter_map(|name| Some((name.to_owned(), fs::read_to_string(paths::root().join(name)).ok()?)))
        .collect())
}

fn lengths(files: &[(String, String)]) -> Vec<String> {
    let rust = files.iter().filter(|(name, _)| name.ends_with(".rs"));
    rust.map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(name, lines)| {
            format!("{name} has {lines} lines, more than {FILE_LINES_MAX}: split it by stage")
        })
        .collect()
}

fn banned_words(files: &[(String, String)]) -> Vec<String> {
    // Written so that this file does not contain them.
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
    let mut breaches = Vec::new();
    for (name, text) in files.iter().filter(|(name, _)| !name.ends_with(".lock")) {
        for (number, line) in text.lines().enumerate() {
            let tokens = line.split(|c: char| !c.is_ascii_alphanumeric());
            for word in tokens.filter(|token| words.contains(token)) {
                breaches.push(format!("{name}:{}: {word}", number + 1));
            }
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, kind, and whether it is one of the workspace's own.
    type Edge<'a> = (&'a str, Option<&'a str>, bool);

    fn metadata(packages: &[(&str, &[Edge<'_>])]) -> Metadata {
        let dependency = |(name, kind, ours): &Edge<'_>| Dependency {
            name: (*name).into(),
            kind: kind.map(str::to_owned),
            path: ours.then(|| "/somewhere".into()),
        };
        let package = |(name, dependencies): &(&str, &[Edge<'_>])| Package {
            name: (*name).into(),
            dependencies: dependencies.iter().map(dependency).collect(),
            targets: Vec::new(),
        };
        Metadata { packages: packages.iter().map(package).collect() }
    }

    #[test]
    fn imports_outside_the_list_are_found() {
        let good = metadata(&[(
            "vhost-blk",
            &[("virtq", None, true), ("simkit", Some("dev"), true), ("serde", None, false)],
        )]);
        assert_eq!(imports(&good), Vec::<String>::new());
        let bad = metadata(&[
            ("sdn-controller", &[("vswitch", None, true)]),
            ("virtq", &[("simkit", None, true), ("reactor", Some("dev"), true)]),
            ("stranger", &[]),
        ]);
        let expected = [
            "sdn-controller imports vswitch",
            "virtq imports simkit",
            "virtq imports reactor",
            "stranger is not in the list of crates",
        ];
        assert_eq!(imports(&bad), expected);
    }

    #[test]
    fn pure_crates_may_test_with_anything() {
        let crates = metadata(&[
            ("ofp", &[("tokio", None, false), ("libc", Some("dev"), false)]),
            ("vswitch", &[("tokio", None, false)]),
        ]);
        assert_eq!(purity(&crates), ["ofp imports tokio"]);
    }

    #[test]
    fn long_files_and_banned_words_are_found() {
        let file = |name: &str, text: String| (name.to_owned(), text);
        let files = [
            file("full.rs", "x\n".repeat(FILE_LINES_MAX)),
            file("over.rs", "x\n".repeat(FILE_LINES_MAX + 1)),
            file("words.md", format!("a todo list\n// {}: later\n", concat!("FIX", "ME"))),
            file("Cargo.lock", concat!("TO", "DO").into()),
        ];
        assert_eq!(lengths(&files).len(), 1);
        assert!(lengths(&files)[0].starts_with("over.rs has 801 lines"));
        assert_eq!(banned_words(&files), [format!("words.md:2: {}", concat!("FIX", "ME"))]);
    }
}
