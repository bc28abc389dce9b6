//! What the program prints, and its exit codes.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this module is the program's voice")]

use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;
use telemetry::check::about_size;

use crate::client::{Refusal, RunDir};

/// How lists and objects are printed.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

impl Format {
    /// Prints `value`, as a table by `table`.
    pub fn print(self, value: &Value, table: impl FnOnce(&Value)) {
        match self {
            Format::Table => table(value),
            Format::Json => json(value),
        }
    }
}

/// Which daemon is asked, and how its answer is printed.
#[derive(clap::Args)]
pub struct Look {
    #[command(flatten)]
    pub daemon: RunDir,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Format,
}

/// How what the controller says is printed.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Style {
    /// For people
    Table,
    /// For programs
    Json,
    /// For files
    Yaml,
}

impl Style {
    /// Prints `value`, as a table by `table`.
    pub fn print(self, value: &Value, table: impl FnOnce(&Value)) -> anyhow::Result<()> {
        match self {
            Style::Table => table(value),
            Style::Json => json(value),
            Style::Yaml => write(serde_saphyr::to_string(value)?),
        }
        Ok(())
    }
}

/// Input that this program itself found wrong: exit code 2, like a refusal by a daemon.
#[derive(Debug)]
pub struct BadInput(pub String);

impl std::fmt::Display for BadInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

/// Prints `value` as indented JSON.
pub fn json(value: &Value) {
    line(format_args!("{value:#}"));
}

/// Prints rows under `headings`.
pub fn table<const N: usize>(headings: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    line(of_rows(rows).set_header(headings));
}

fn of_rows<const N: usize>(rows: impl IntoIterator<Item = [String; N]>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.add_rows(rows);
    table
}

/// Prints an object as a line for each key that has something to say.
pub fn fields(object: &Value) {
    let rows = object.as_object().into_iter().flatten().filter_map(|(key, value)| {
        let shown = if key.ends_with("_bytes") { bytes(value) } else { text(value) };
        (!shown.is_empty()).then(|| [key.trim_end_matches("_bytes").replace('_', " "), shown])
    });
    line(of_rows(rows));
}

/// A value as a cell of a table: texts without quotes, `{"kind": value}` as `kind value`, lists with commas, nothing for
/// null and what is empty.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| format!("{key} {}", text(value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

/// A number of bytes as a cell of a table.
pub fn bytes(value: &Value) -> String {
    value.as_u64().map_or_else(|| text(value), about_size)
}

/// Seconds since 1970 as RFC 3339 writes them, in UTC.
pub fn time(seconds: u64) -> String {
    let (mut days, rest) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut month) = (1970, 1);
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        (days, month) = (days - length, month + 1);
    }
    let (hours, minutes, seconds) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{:02}T{hours:02}:{minutes:02}:{seconds:02}Z", days + 1)
}

/// What a shell shows of a program that SIGPIPE ended.
const READER_GONE: i32 = 128 + 13;

/// Prints `text`. When nobody reads any more, as behind `| head`, the program ends.
pub fn write(text: impl std::fmt::Display) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let Err(error) = write!(out, "{text}").and_then(|()| out.flush()) else { return };
    if error.kind() != std::io::ErrorKind::BrokenPipe {
        eprintln!("sluice: the output cannot be written: {error}");
        std::process::exit(1);
    }
    std::process::exit(READER_GONE);
}

/// Prints one line.
pub fn line(text: impl std::fmt::Display) {
    write(format_args!("{text}\n"));
}

/// Prints what to look after although the command did what it should.
pub fn warning(text: impl std::fmt::Display) {
    eprintln!("sluice: warning: {text}");
}

/// Turns the outcome of a command into its exit code: 0 done, 2 bad input, 1 anything else.
pub fn exit(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("sluice: {error:#}");
    let invalid = error.downcast_ref::<Refusal>().is_some_and(Refusal::invalid) || error.is::<BadInput>();
    ExitCode::from(if invalid { 2 } else { 1 })
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_as_date_prints_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_795_288_880, "2026-11-21T19:21:20Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }
}
