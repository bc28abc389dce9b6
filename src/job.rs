//! `sluice job`: what takes long in the storage daemon.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Subcommand;
use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use telemetry::check::about_size;

use crate::client::{Collection, Interrupt, RunDir};
use crate::output::{self, Format, Look};

const JOBS: Collection = Collection { daemon: "blk", path: "/v1/jobs" };
/// How often a job is looked at that somebody waits for.
const LOOK: Duration = Duration::from_millis(200);
/// How often a line tells where it is when there is no terminal for a bar.
const LINE: Duration = Duration::from_secs(5);

/// Arguments of `sluice job`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List the jobs that run, and the last ones that ended
    List {
        #[command(flatten)]
        look: Look,
    },
    /// Show one job
    Show {
        /// Number of the job
        id: u64,
        #[command(flatten)]
        look: Look,
    },
    /// Wait until a job has ended; an interrupt leaves it alone
    Wait {
        /// Number of the job
        id: u64,
        #[command(flatten)]
        look: Look,
    },
    /// End a job early
    Cancel {
        /// Number of the job
        id: u64,
        #[command(flatten)]
        daemon: RunDir,
    },
}

/// How a command deals with the job that it begins.
#[derive(clap::Args)]
pub struct Wait {
    /// Do not wait for the end: `sluice job` shows how far it is
    #[arg(long)]
    background: bool,
    #[command(flatten)]
    look: Look,
}

impl Wait {
    /// Which daemon is asked.
    pub fn daemon(&self) -> &RunDir {
        &self.look.daemon
    }

    /// Shows how far a job is until it ends. An interrupt cancels it.
    pub fn follow(&self, job: &Value) -> anyhow::Result<()> {
        if self.background {
            let id = output::text(&job["id"]);
            self.look.output.print(job, |_| output::line(format_args!("job {id} has begun")));
            return Ok(());
        }
        follow(&self.look, job, true)
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::List { look } => look.output.print(&JOBS.list(&look.daemon)?, list),
        Verb::Show { id, look } => {
            look.output.print(&JOBS.show(&look.daemon, &id.to_string())?, output::fields);
        }
        Verb::Wait { id, look } => {
            let job = JOBS.show(&look.daemon, &id.to_string())?;
            return follow(&look, &job, false);
        }
        Verb::Cancel { id, daemon } => {
            let job = JOBS.one(&daemon, Method::DELETE, &id.to_string(), None)?;
            output::line(format_args!("job {id} is {}", state(&job)));
        }
    }
    Ok(())
}

fn follow(look: &Look, job: &Value, ours: bool) -> anyhow::Result<()> {
    let id = output::text(&job["id"]);
    let mut interrupt = Interrupt::new()?;
    let mut shown = Shown::new(job, look.output);
    let mut job = job.clone();
    while job["state"] == "running" {
        if interrupt.within(LOOK) {
            if !ours {
                bail!("job {id} goes on; `sluice job cancel {id}` ends it");
            }
            JOBS.one(&look.daemon, Method::DELETE, &id, None)?;
            shown.bar.set_message(format!("{} is being cancelled:", title(&job)));
        }
        job = JOBS.show(&look.daemon, &id)?;
        shown.update(&job);
    }
    shown.bar.finish_and_clear();
    if let Some(reason) = job["state"]["failed"]["reason"].as_str() {
        bail!("{}: {reason}", title(&job));
    }
    if job["state"] == "cancelled" {
        bail!("{} (job {id}) was cancelled at {}", title(&job), output::bytes(&job["done_bytes"]));
    }
    look.output.print(&job, |job| output::line(line(job)));
    Ok(())
}

/// A bar on a terminal, else a line now and then.
struct Shown {
    bar: ProgressBar,
    lines: bool,
    last: Instant,
}

impl Shown {
    fn new(job: &Value, format: Format) -> Shown {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::no_length() } else { ProgressBar::hidden() };
        let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
        // The template is a constant.
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(title(job));
        Shown { bar, lines: !terminal && format == Format::Table, last: Instant::now() }
    }

    fn update(&mut self, job: &Value) {
        self.bar.set_length(job["total_bytes"].as_u64().unwrap_or_default());
        self.bar.set_position(job["done_bytes"].as_u64().unwrap_or_default());
        if self.lines && self.last.elapsed() >= LINE && job["state"] == "running" {
            self.last = Instant::now();
            output::line(line(job));
        }
    }
}

fn title(job: &Value) -> String {
    format!("{} {}", output::text(&job["kind"]), output::text(&job["target"]))
}

fn state(job: &Value) -> String {
    output::text(&job["state"])
}

/// `drain pool0: 12MiB of 20MiB, 40MiB/s, 1 s left`
fn line(job: &Value) -> String {
    let number = |key: &str| job[key].as_u64().unwrap_or_default();
    let rate = about_size(number("bytes_per_s"));
    let end = match job["left_s"].as_u64() {
        Some(left) => format!("{left} s left"),
        None => format!("{:.1} s, {}", job["took_s"].as_f64().unwrap_or_default(), state(job)),
    };
    let (done, total) = (about_size(number("done_bytes")), about_size(number("total_bytes")));
    format!("{}: {done} of {total}, {rate}/s, {end}", title(job))
}

fn list(jobs: &Value) {
    let rows = jobs.as_array().into_iter().flatten().map(|job| {
        [
            output::text(&job["id"]),
            output::text(&job["kind"]),
            output::text(&job["target"]),
            state(job),
            output::bytes(&job["done_bytes"]),
            output::bytes(&job["total_bytes"]),
            job["left_s"].as_u64().map_or(String::new(), |left| format!("{left} s")),
        ]
    });
    output::table(["ID", "KIND", "TARGET", "STATE", "DONE", "TOTAL", "LEFT"], rows);
}
