//! `sluice`: disks and network for QEMU/KVM guests in one program. This package is glue: command line, config files, wiring.
#![forbid(unsafe_code)]

mod blk;
mod capture;
mod client;
mod controller;
mod fdb;
mod flow;
mod output;
mod pool;
mod port;
mod settings;
mod switch;
mod trace;
mod volume;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Disks and network for QEMU/KVM guests.
#[derive(Parser)]
#[command(name = "sluice", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Subcommand)]
enum Noun {
    /// The storage daemon
    Blk(blk::Args),
    /// The switch daemon
    Switch(switch::Args),
    /// The network controller daemon
    Controller(controller::Args),
    /// Volumes of the storage daemon
    Volume(volume::Args),
    /// Tiered pools of the storage daemon
    Pool(pool::Args),
    /// Ports of the switch
    Port(port::Args),
    /// Learned MAC addresses of the switch
    Fdb(fdb::Args),
    /// Flow entries of the switch
    Flow(flow::Args),
    /// Tell what the switch would do with a frame, and why
    Trace(trace::Args),
    /// Capture the frames of a port of the switch
    Capture(capture::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().noun {
        Noun::Blk(args) => blk::run(args),
        Noun::Switch(args) => switch::run(args),
        Noun::Controller(args) => controller::run(args),
        Noun::Volume(args) => volume::run(args),
        Noun::Pool(args) => pool::run(args),
        Noun::Port(args) => port::run(args),
        Noun::Fdb(args) => fdb::run(args),
        Noun::Flow(args) => flow::run(args),
        Noun::Trace(args) => trace::run(args),
        Noun::Capture(args) => capture::run(args),
    };
    output::exit(result)
}
