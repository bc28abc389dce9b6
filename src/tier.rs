//! `sluice tier`: where the data of a volume are, and why.

use clap::Subcommand;
use hyper::Method;
use serde_json::Value;
use telemetry::check::{about_size, show_size, size};

use crate::client::VOLUMES;
use crate::output::{self, BadInput, Look, bytes};

/// Characters of a line of the heat map.
const LINE_CELLS: usize = 64;
/// From cold to hot.
const SHADES: &[u8] = b".:-=+*#%@";

/// Arguments of `sluice tier`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Tell where a byte of a volume is, since when, why, and what would move it
    Explain {
        /// Name of the volume
        name: String,
        /// Offset of the byte, such as 0x4000000, 64MiB or 67108864
        offset: String,
        #[command(flatten)]
        look: Look,
    },
    /// Show which parts of a volume are hot
    Show {
        /// Name of the volume
        name: String,
        /// Lines of the map, 1 to 64
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=64))]
        lines: u64,
        #[command(flatten)]
        look: Look,
    },
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Explain { name, offset, look } => {
            let at = offset_of(&offset)?;
            let below = format!("explain?offset={at}");
            look.output.print(&VOLUMES.below(&look.daemon, Method::GET, &name, &below, None)?, explain);
        }
        Verb::Show { name, lines, look } => {
            let cells = lines * LINE_CELLS as u64;
            let below = format!("heat?cells={cells}");
            look.output.print(&VOLUMES.below(&look.daemon, Method::GET, &name, &below, None)?, show);
        }
    }
    Ok(())
}

/// An offset as people write it.
pub fn offset_of(text: &str) -> anyhow::Result<u64> {
    let read = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).map_err(|error| error.to_string()),
        None => size(text),
    };
    let remedy = "write bytes, 0x and hexadecimal digits, or a number with KiB, MiB, GiB or TiB";
    Ok(read.map_err(|detail| BadInput(format!("the offset `{text}` cannot be read: {detail}; {remedy}")))?)
}

fn explain(place: &Value) {
    let (volume, offset) = (output::text(&place["volume"]), place["offset"].as_u64().unwrap_or_default());
    let unit = place["unit"][0].as_u64().unwrap_or_default();
    let mut rows = vec![
        ["byte".to_string(), format!("{offset:#x} of {volume}, in the unit of 64KiB at {unit:#x}")],
        ["tier".to_string(), output::text(&place["tier"])],
    ];
    if let Some(since) = place["since_s"].as_f64() {
        rows.push(["since".to_string(), format!("{since:.1} s ago, or longer if the pool was opened then")]);
    }
    for (key, shown) in [("heat", "heat"), ("why", "why"), ("moves_when", "moves when")] {
        if !place[key].is_null() {
            rows.push([shown.to_string(), output::text(&place[key])]);
        }
    }
    for (key, shown) in [("hot_bytes", "hot"), ("dirty_bytes", "only hot"), ("lost_bytes", "lost")] {
        if place[key] != 0 {
            rows.push([shown.to_string(), bytes(&place[key])]);
        }
    }
    output::table(["", ""], rows);
}

fn show(heat: &Value) {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let cell_bytes = number(&heat["cell_bytes"]);
    let cells = heat["cells"].as_array().map_or(&[][..], Vec::as_slice);
    let sum = |key: &str| cells.iter().map(|cell| number(&cell[key])).sum::<u64>();
    let (mapped, hot, dirty) = (sum("mapped_bytes"), sum("hot_bytes"), sum("dirty_bytes"));
    for (line, cells) in cells.chunks(LINE_CELLS).enumerate() {
        let at = line as u64 * LINE_CELLS as u64 * cell_bytes;
        let shades: String = cells.iter().map(shade).collect();
        output::line(format_args!("{at:#14x} |{shades:LINE_CELLS$}|"));
    }
    let (size, cell) = (bytes(&heat["size_bytes"]), show_size(cell_bytes));
    output::line(format_args!("{} has {size}, a character is {cell}", output::text(&heat["volume"])));
    output::line("blank: never written; . cold; : - = + * # % more and more of it hot; @ all hot");
    let (mapped, hot, dirty) = (about_size(mapped), about_size(hot), about_size(dirty));
    output::line(format_args!("written {mapped}, hot {hot}, only hot {dirty}"));
}

fn shade(cell: &Value) -> char {
    let (mapped, hot) =
        (cell["mapped_bytes"].as_u64().unwrap_or_default(), cell["hot_bytes"].as_u64().unwrap_or_default());
    let last = SHADES.len() as u64 - 1;
    let at = match (mapped, hot) {
        (0, _) => return ' ',
        (_, 0) => 0,
        _ if hot >= mapped => last,
        _ => (hot * last / mapped).clamp(1, last - 1),
    };
    char::from(SHADES[at as usize])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shades_tell_nothing_cold_and_hot_apart() {
        let of = |mapped: u64, hot: u64| shade(&json!({"mapped_bytes": mapped, "hot_bytes": hot}));
        assert_eq!([of(0, 0), of(9, 0), of(1000, 1), of(1000, 999), of(9, 9)], [' ', '.', ':', '%', '@']);
    }

    #[test]
    fn offsets_are_read_as_people_write_them() {
        for (text, offset) in [("0x4000000", 64 << 20), ("64MiB", 64 << 20), ("512", 512)] {
            assert_eq!(offset_of(text).expect(text), offset);
        }
        assert!(offset_of("0xg").is_err() && offset_of("1GB").is_err() && offset_of("").is_err());
    }
}
