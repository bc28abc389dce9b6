//! Chores of the project: `cargo xtask demo`, `cargo xtask test`, `cargo xtask judge`.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "results go to standard output, errors to standard error"
)]

use std::process::ExitCode;

use anyhow::ensure;
use clap::{Parser, Subcommand};
use xtask::progress::Progress;
use xtask::{demo, docs, image, judge, lab, setup, suites, tidy};

/// Chores of the project
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Boot three guests on disks and networks of ours and show what they see
    Demo {
        /// Leave everything running and say how to look at it
        #[arg(long)]
        keep: bool,
        /// Print the results as JSON
        #[arg(long)]
        json: bool,
    },
    /// Run everything that must hold before a change lands
    Test {
        /// Run only this suite (may be given several times)
        #[arg(long, value_name = "SUITE")]
        only: Vec<String>,
        /// List the suites
        #[arg(long)]
        list: bool,
    },
    /// Have others judge our switch
    Judge {
        #[command(subcommand)]
        judge: Judges,
    },
    /// Install the tools that the demo and the tests need
    Setup,
    /// Make the guest image of the demo and the tests
    Image,
    /// Write the documents that are made from the program
    Docs,
    /// Check the rules about the tree that no compiler checks
    Tidy,
}

#[derive(Subcommand)]
enum Judges {
    /// The OpenFlow 1.3 switch tester of Ryu (os-ken), over veth pairs
    Ryu {
        /// Run only these cases: match, action, group, meter (may be given several times)
        #[arg(long, value_name = "PART")]
        part: Vec<String>,
        /// Run so often; all runs must come to the same
        #[arg(long, value_name = "COUNT", default_value_t = 1)]
        runs: u32,
        /// Seconds for each throughput case instead of the 30 it was written for
        #[arg(long, value_name = "SECONDS")]
        seconds: Option<u32>,
        /// Of each file, run only every so manieth case
        #[arg(long, value_name = "COUNT")]
        every: Option<u32>,
        /// Leave out the throughput cases that send more packets a second
        #[arg(long, value_name = "PACKETS")]
        rate_max: Option<u32>,
        /// Over vhost-user ports, with Open vSwitch-DPDK as the tester's switch
        #[arg(long)]
        vhost_user: bool,
    },
    /// Controllers by others drive the switch: Faucet and Gauge, os-ken, ovs-testcontroller
    Controllers,
}

fn main() -> ExitCode {
    match run(Cli::parse().chore) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one chore; false when it did its work and found something wrong.
fn run(chore: Chore) -> anyhow::Result<bool> {
    lab::interruptible()?;
    let progress = Progress::new();
    match chore {
        Chore::Demo { keep, json } => {
            let report = demo::run(keep, &progress)?;
            if json {
                println!("{:#}", report.json());
            } else {
                println!("{report}");
            }
            return Ok(report.passed());
        }
        Chore::Test { list: true, .. } => {
            for (name, about) in suites::list() {
                println!("{name:<8} {about}");
            }
        }
        Chore::Test { only, list: false } => {
            let summary = suites::run(&only, &progress)?;
            println!("{summary}");
            return Ok(summary.total().failed == 0);
        }
        Chore::Judge { judge: Judges::Ryu { part, runs, seconds, every, rate_max, vhost_user } } => {
            let all = || judge::PARTS.map(str::to_owned).to_vec();
            let parts = if part.is_empty() { all() } else { part };
            let order = judge::Order { parts, runs, seconds, every, rate_max, vhost_user };
            let reports = judge::ryu(&order, &progress)?;
            progress.finish();
            reports.iter().for_each(|report| println!("{report}"));
            let same = reports.windows(2).all(|pair| pair[0] == pair[1]);
            if !same {
                println!("the runs differ");
            }
            return Ok(same && reports.iter().all(|report| report.total().0 == report.total().1));
        }
        Chore::Judge { judge: Judges::Controllers } => {
            let report = judge::controllers::run(&progress)?;
            progress.finish();
            println!("{report}");
            return Ok(report.passed());
        }
        Chore::Setup => {
            setup::run(&progress)?;
            progress.finish();
            println!("every tool is there");
        }
        Chore::Image => {
            setup::run(&progress)?;
            let image = image::make(&progress)?;
            progress.finish();
            println!("{}\n{}", image.kernel.display(), image.initrd.display());
        }
        Chore::Docs => write_docs()?,
        Chore::Tidy => return check_tidy(),
    }
    Ok(true)
}

fn write_docs() -> anyhow::Result<()> {
    let built = xtask::paths::cargo().args(["build", "--package", "sluice"]).status()?;
    ensure!(built.success(), "the program does not build");
    for name in docs::write()? {
        println!("{name}");
    }
    Ok(())
}

fn check_tidy() -> anyhow::Result<bool> {
    let findings = tidy::check()?;
    let breaches: Vec<_> = findings.iter().flat_map(|finding| &finding.breaches).collect();
    for breach in &breaches {
        println!("{breach}");
    }
    if breaches.is_empty() {
        println!("{} rules hold", findings.len());
    }
    Ok(breaches.is_empty())
}
