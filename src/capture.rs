//! `sluice capture`: the frames of a port of the switch, for tcpdump and Wireshark.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::client::{self, RunDir};

/// Arguments of `sluice capture`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the port
    port: String,
    /// Only frames that these words describe, such as: tcp 10.0.0.1->*:80 vlan 10 [default: all]
    filter: Vec<String>,
    /// Only frames that were dropped; the reason is a comment in the file
    #[arg(long)]
    drops: bool,
    /// Write pcapng to this file, or to standard output when it is -
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    write: PathBuf,
    /// Bytes of each frame to keep [default: all]
    #[arg(short, long, value_name = "BYTES")]
    snaplen: Option<String>,
    #[command(flatten)]
    daemon: RunDir,
}

/// Runs the command until it is interrupted.
pub fn run(args: Args) -> anyhow::Result<()> {
    let filter = client::escape(&args.filter.join(" "));
    let base = client::path("/v1/ports", &args.port);
    let mut path = format!("{base}/capture?drops={}&filter={filter}", args.drops);
    if let Some(bytes) = &args.snaplen {
        path += &format!("&frame_bytes={}", client::escape(bytes));
    }
    let mut file: Box<dyn Write> = if args.write == Path::new("-") {
        Box::new(std::io::stdout())
    } else {
        let file = File::create(&args.write);
        Box::new(file.with_context(|| format!("cannot write to {}", args.write.display()))?)
    };
    client::stream(&args.daemon.admin_socket("switch"), &path, &mut *file)
}
