//! What a person sees while something takes its time.
#![allow(clippy::print_stderr, reason = "this module talks to the person at the terminal")]

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Steps on standard error: a spinner on a terminal, plain lines in a log. Standard output stays for results.
pub struct Progress {
    bar: Option<ProgressBar>,
    start: Instant,
}

impl Default for Progress {
    fn default() -> Progress {
        Progress::new()
    }
}

impl Progress {
    /// Shows nothing until the first step.
    pub fn new() -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(
                ProgressStyle::with_template("{spinner} {msg} ({elapsed})").expect("a valid template"),
            );
            bar
        });
        Progress { bar, start: Instant::now() }
    }

    /// Says what happens now.
    pub fn note(&self, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(what.to_owned());
                bar.enable_steady_tick(Duration::from_millis(120));
            }
            None => eprintln!("{:>4} s  {what}", self.start.elapsed().as_secs()),
        }
    }

    /// A line that stays on the screen.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{:>4} s  {text}", self.start.elapsed().as_secs()),
        }
    }

    /// Ends the spinner.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Time since the start, for people.
    pub fn elapsed(&self) -> String {
        HumanDuration(self.start.elapsed()).to_string()
    }
}
