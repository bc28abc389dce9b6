//! `cargo xtask test`: everything that must hold before a change lands, suite by suite.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use comfy_table::{CellAlignment, Table, presets};

use crate::lab::Process;
use crate::lab::process::Lifetime;
use crate::lab::qemu::Accelerator;
use crate::paths::{self, find_program};
use crate::progress::Progress;
use crate::{docs, fuzz, image, judge, setup, tidy};

/// How long one suite may take. The slowest one builds the whole workspace first.
const SUITE_LIMIT: Duration = Duration::from_secs(20 * 60);

/// How long a meter case takes, and how many packets a second it sends at most.
const METER_SECONDS: u32 = 5;
const METER_RATE_MAX: u32 = 2000;

/// Threads for the guests' tests: a guest under TCG keeps a core busy while it boots.
const QEMU_THREADS: &str = "2";

/// What a suite found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Checks that held.
    pub passed: u64,
    /// Checks that did not.
    pub failed: u64,
    /// Checks that were not made.
    pub skipped: u64,
}

struct Suite {
    name: &'static str,
    about: &'static str,
    /// Whether it runs programs that `setup` installs.
    tools: bool,
    run: fn(&Bench<'_>) -> anyhow::Result<Counts>,
}

const SUITES: &[Suite] = &[
    Suite { name: "fmt", about: "the code is formatted", tools: false, run: fmt },
    Suite {
        name: "tidy",
        about: "imports, unsafe, file lengths, left-over markers",
        tools: false,
        run: tidy_rules,
    },
    Suite { name: "clippy", about: "no warning of compiler or clippy", tools: false, run: clippy },
    Suite { name: "unit", about: "unit, table and model tests beside the code", tools: true, run: unit },
    Suite {
        name: "system",
        about: "property and differential tests, in-process frontends, daemons, peers",
        tools: true,
        run: system,
    },
    Suite { name: "doctest", about: "the examples in the documentation", tools: false, run: doctest },
    Suite {
        name: "rustdoc",
        about: "no broken link in the code's documentation",
        tools: false,
        run: rustdoc,
    },
    Suite {
        name: "docs",
        about: "the generated documents and the example files are up to date",
        tools: true,
        run: documents,
    },
    Suite {
        name: "openflow",
        about: "cases of the OpenFlow 1.3 tester of os-ken: every match and action, some groups and meters",
        tools: true,
        run: openflow,
    },
    Suite { name: "fuzz", about: "every fuzz target for a few seconds", tools: true, run: fuzz_targets },
    Suite { name: "qemu", about: "QEMU guests on our daemons", tools: true, run: qemu },
];

/// Where a suite leaves its output.
struct Bench<'a> {
    log: PathBuf,
    progress: &'a Progress,
}

/// Names and purposes of all suites.
pub fn list() -> impl Iterator<Item = (&'static str, &'static str)> {
    SUITES.iter().map(|suite| (suite.name, suite.about))
}

/// Outcome of all suites, for the table at the end.
pub struct Summary {
    rows: Vec<(&'static str, Counts, Duration)>,
}

impl Summary {
    /// The sum over all suites.
    pub fn total(&self) -> Counts {
        let add = |sum: Counts, (_, counts, _): &(_, Counts, _)| Counts {
            passed: sum.passed + counts.passed,
            failed: sum.failed + counts.failed,
            skipped: sum.skipped + counts.skipped,
        };
        self.rows.iter().fold(Counts::default(), add)
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["suite", "passed", "failed", "skipped", "seconds"]);
        for (name, counts, time) in &self.rows {
            let numbers = [counts.passed, counts.failed, counts.skipped, time.as_secs()];
            table
                .add_row(std::iter::once((*name).to_owned()).chain(numbers.map(|number| number.to_string())));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let total = self.total();
        writeln!(f, "{table}\n")?;
        write!(f, "{} passed, {} failed", total.passed, total.failed)
    }
}

/// Runs the suites named in `only`, or all of them. Says how each went as it ends.
pub fn run(only: &[String], progress: &Progress) -> anyhow::Result<Summary> {
    let unknown: Vec<_> =
        only.iter().filter(|name| !SUITES.iter().any(|suite| suite.name == *name)).collect();
    let known: Vec<_> = SUITES.iter().map(|suite| suite.name).collect();
    ensure!(unknown.is_empty(), "no suite is called {unknown:?}; there are {}", known.join(", "));
    let chosen: Vec<_> =
        SUITES.iter().filter(|suite| only.is_empty() || only.iter().any(|name| name == suite.name)).collect();
    if chosen.iter().any(|suite| suite.tools) {
        setup::run(progress)?;
    }
    let logs = paths::target().join("test-logs");
    fs::create_dir_all(&logs)?;
    let mut rows = Vec::new();
    for suite in chosen {
        progress.note(&format!("{}: {}", suite.name, suite.about));
        let bench = Bench { log: logs.join(format!("{}.log", suite.name)), progress };
        fs::write(&bench.log, "")?;
        let start = Instant::now();
        let counts = (suite.run)(&bench).or_else(|error| {
            crate::lab::interrupted()?;
            progress.line(&format!("{}: {error:#}", suite.name));
            anyhow::Ok(Counts { failed: 1, ..Counts::default() })
        })?;
        if counts.failed > 0 {
            progress.line(&fs::read_to_string(&bench.log).unwrap_or_default());
            progress.line(&format!("the above is {}", bench.log.display()));
        }
        let seconds = start.elapsed().as_secs();
        let Counts { passed, failed, skipped } = counts;
        progress.line(&format!(
            "{:<8} {passed} passed, {failed} failed, {skipped} skipped, {seconds} s",
            suite.name
        ));
        rows.push((suite.name, counts, start.elapsed()));
    }
    progress.finish();
    Ok(Summary { rows })
}

impl Bench<'_> {
    /// Runs a command to its end with its output in the log; true when it succeeded.
    fn run(&self, command: &Command) -> anyhow::Result<bool> {
        run_logged(command, &self.log)
    }

    /// Runs a command that is one check.
    fn check(&self, command: &Command) -> anyhow::Result<Counts> {
        let good = self.run(command)?;
        Ok(Counts { passed: good.into(), failed: (!good).into(), skipped: 0 })
    }

    /// Runs a command that runs tests, and counts them.
    fn tests(&self, command: &Command) -> anyhow::Result<Counts> {
        let good = self.run(command)?;
        let output = fs::read_to_string(&self.log)?;
        let mut counts = count_tests(&output);
        if !good && counts.failed == 0 {
            // It did not build, or a test brought the whole program down.
            counts.failed = 1;
        }
        ensure!(counts.passed + counts.failed > 0, "no test was run");
        Ok(counts)
    }
}

/// Runs `command` with its output appended to `log`; true when it succeeded.
pub fn run_logged(command: &Command, log: &Path) -> anyhow::Result<bool> {
    let mut command_in_root = Command::new(command.get_program());
    command_in_root.args(command.get_args()).current_dir(command.get_current_dir().unwrap_or(paths::root()));
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => command_in_root.env(key, value),
            None => command_in_root.env_remove(key),
        };
    }
    let name = command.get_program().to_string_lossy().into_owned();
    let mut process = Process::start(&name, &command_in_root, log, Lifetime::Ours)?;
    Ok(process.wait(SUITE_LIMIT)?.success())
}

fn fmt(bench: &Bench<'_>) -> anyhow::Result<Counts> {
    bench.check(paths::cargo().args(["fmt", "--all", "--check"]))
}

fn tidy_rules(bench: &Bench<'_>) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    let mut log = String::new();
    for finding in tidy::check()? {
        let holds = finding.breaches.is_empty();
        counts.passed += u64::from(holds);
        counts.failed += u64::from(!holds);
        log += &format!("{}: {}\n", finding.rule, if holds { "holds" } else { "broken" });
        for breach in finding.breaches {
            log += &format!("  {breach}\n");
        }
    }
    fs::write(&bench.log, log)?;
    Ok(counts)
}

fn clippy(bench: &Bench<'_>) -> anyhow::Result<Counts> {
    bench.check(paths::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))
}

/// `cargo nextest run` where it is installed, else `cargo test`; both with the same selection of targets.
fn test_command(targets: &[&str]) -> (Command, bool) {
    let mut command = paths::cargo();
    let nextest = find_program("cargo-nextest").is_some();
    if nextest {
        command.args([
            "nextest",
            "run",
            "--cargo-quiet",
            "--color=never",
            "--status-level=fail",
            "--final-status-level=fail",
        ]);
        // A workspace without any such target is found out by counting.
        command.arg("--no-tests=pass");
    } else {
        command.arg("test");
    }
    command.args(["--workspace", "--locked", "--no-fail-fast"]).args(targets);
    // The same cases in every run; `cargo test` by hand tries others, and the fuzz targets do.
    command.env("PROPTEST_RNG_SEED", "1");
    (command, nextest)
}

fn unit(bench: &Bench<'_>) -> anyhow::Result<Counts> {
    // The system tests start the program itself.
    ensure!(
        bench.run(paths::cargo().args(["build", "--quiet", "--workspace", "--locked"]))?,
        "the workspace does not build"
    );
    bench.tests(&test_command(&["--lib", "--bins"]).0)
}

fn system(bench: &Bench<'_>) -> anyhow::Result<Counts> {
    ensure!(
        bench.run(paths::cargo().args(["build", "--quiet", "--workspace", "--locked"]))?,
        "the workspace does not build"
    );
    bench.tests(&test_command(&["--test", "*"]).0)
}

fn doctest(bench: &Bench<'_>) -> anyhow::Result<Counts> {
    bench.tests(paths::cargo().args(["test", "--workspace", "--locked", "--no-fail-fast", "--doc"]))
}

fn rustdoc(bench: &Bench<'_>) -> anyhow::Result<Counts> {
    let mut command = paths::cargo();
    command.args(["doc", "--quiet", "--workspace", "--locked", "--no-deps", "--document-private-items"]);
    // These pages are for who works on the code: they show private items and may link to them.
    bench.check(command.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"))
}

fn documents(bench: &Bench<'_>) -> anyhow::Result<Counts> {
    ensure!(
        bench.run(paths::cargo().args(["build", "--quiet", "--workspace", "--locked"]))?,
        "the workspace does not build"
    );
    let mut counts = Counts::default();
    let mut log = String::new();
    for (what, outcome) in docs::check()? {
        match outcome {
            Ok(()) => counts.passed += 1,
            Err(error) => {
                counts.failed += 1;
                log += &format!("{what}: {error:#}\n");
            }
        }
    }
    fs::write(&bench.log, log)?;
    Ok(counts)
}

fn fuzz_targets(bench: &Bench<'_>) -> anyhow::Result<Counts> {
    ensure!(bench.run(&fuzz::build())?, "the fuzz targets do not build");
    let mut counts = Counts::default();
    // libFuzzer ends its process without any clean-up: what a target leaves behind goes with this directory.
    let scratch = tempfile::tempdir()?;
    for target in fuzz::targets()? {
        bench.progress.note(&format!("fuzz: {target}"));
        let good = bench.run(fuzz::run(&target, fuzz::SHORT)?.env("TMPDIR", scratch.path()))?;
        counts.passed += u64::from(good);
        counts.failed += u64::from(!good);
    }
    ensure!(counts.passed + counts.failed > 0, "there is no fuzz target");
    Ok(counts)
}

fn openflow(bench: &Bench<'_>) -> anyhow::Result<Counts> {
    let parts = |names: [&str; 2]| names.map(str::to_owned).to_vec();
    let order = judge::Order {
        parts: parts(["match", "action"]),
        runs: 1,
        seconds: None,
        every: None,
        rate_max: None,
        vhost_user: false,
    };
    // All meter cases take twenty minutes, and the fast ones a machine that does nothing else.
    let short = judge::Order {
        parts: parts(["group", "meter"]),
        seconds: Some(METER_SECONDS),
        every: Some(3),
        rate_max: Some(METER_RATE_MAX),
        ..order.clone()
    };
    if let Err(error) = judge::install(bench.progress) {
        // It comes from another index than everything else here, which not every machine may reach.
        bench.progress.line(&format!("openflow: {error:#}"));
        return Ok(Counts { skipped: 1, ..Counts::default() });
    }
    let mut counts = Counts::default();
    let mut log = String::new();
    for order in [order, short] {
        for report in judge::ryu(&order, bench.progress)? {
            let (passed, all) = report.total();
            counts.passed += passed;
            counts.failed += all - passed;
            log += &format!("{report}\n");
        }
    }
    fs::write(&bench.log, log)?;
    ensure!(counts.passed + counts.failed > 0, "no case was run");
    Ok(counts)
}

fn qemu(bench: &Bench<'_>) -> anyhow::Result<Counts> {
    ensure!(
        bench.run(paths::cargo().args(["build", "--quiet", "--workspace", "--locked"]))?,
        "the workspace does not build"
    );
    // Once, before tests that run side by side all want to do it.
    let image = image::make(bench.progress).context("the guest's image")?;
    Accelerator::probe(&image, bench.progress)?;
    bench.progress.note("qemu: guests are running");
    let (mut command, nextest) = test_command(&["--test", "qemu"]);
    if nextest {
        command.args(["--run-ignored", "only", "--test-threads", QEMU_THREADS]);
    } else {
        command.args(["--", "--ignored", "--test-threads", QEMU_THREADS]);
    }
    bench.tests(&command)
}

/// Counts the tests in the output of `cargo nextest run` or `cargo test`.
fn count_tests(output: &str) -> Counts {
    let summaries = output.lines().filter_map(|line| line.trim().strip_prefix("Summary ["));
    let mut results: Vec<_> = summaries.filter_map(|line| line.split(" run: ").nth(1)).collect();
    // nextest shows the output of a failed test, which ends with a result of its own.
    if results.is_empty() {
        results = output.lines().filter_map(|line| line.trim().strip_prefix("test result: ")).collect();
    }
    let mut counts = Counts::default();
    for results in results {
        for part in results.split([',', ';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(word)) = (words.next(), words.next()) else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match word {
                "passed" => counts.passed += number,
                "failed" | "timed" | "exec" => counts.failed += number,
                "skipped" | "ignored" => counts.skipped += number,
                _ => {}
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let libtest = "running 3 tests\n\
                       test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.03s\n\
                       test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.03s\n";
        assert_eq!(count_tests(libtest), Counts { passed: 7, failed: 2, skipped: 1 });
        let nextest =
            "     Summary [  12.345s] 345 tests run: 339 passed (2 slow), 5 failed, 1 timed out, 3 skipped\n";
        assert_eq!(count_tests(nextest), Counts { passed: 339, failed: 6, skipped: 3 });
        assert_eq!(
            count_tests("     Summary [   0.1s] 1 test run: 1 passed, 0 skipped"),
            Counts { passed: 1, failed: 0, skipped: 0 }
        );
        assert_eq!(count_tests("error: could not compile"), Counts::default());
    }

    #[test]
    fn the_last_line_is_the_total() {
        let counts = |passed, failed| Counts { passed, failed, skipped: 1 };
        let summary = Summary {
            rows: vec![
                ("fmt", counts(1, 0), Duration::from_secs(1)),
                ("unit", counts(20, 2), Duration::from_secs(80)),
            ],
        };
        assert_eq!(summary.to_string().lines().last(), Some("21 passed, 2 failed"));
    }

    #[test]
    fn a_failing_command_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 1"]);
        assert!(!run_logged(&command, &log).unwrap());
        assert_eq!(fs::read_to_string(&log).unwrap(), "out\nerr\n");
        assert!(run_logged(&Command::new("true"), &log).unwrap());
    }
}
