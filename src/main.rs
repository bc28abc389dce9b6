//! `sluice`: disks and network for QEMU/KVM guests in one program. This package is glue: command line, config files, wiring.
#![forbid(unsafe_code)]

mod acl;
mod blk;
mod capture;
mod client;
mod controller;
mod controller_settings;
mod fdb;
mod flow;
mod image;
mod job;
mod net;
mod output;
mod pool;
mod port;
mod remote;
mod settings;
mod switch;
mod tenant;
mod tier;
mod topology;
mod trace;
mod volume;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

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
    /// Golden images in tiered pools
    Image(image::Args),
    /// Where the data of a volume in a pool are, and why
    Tier(tier::Args),
    /// Long work of the storage daemon, such as drains
    Job(job::Args),
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
    /// Networks of the controller, and what is attached to them
    Net(net::Args),
    /// ACLs (security groups) of the controller
    Acl(acl::Args),
    /// Tenants of the controller, and the ports that are given to them
    Tenant(tenant::Args),
    /// The controller's switches and what connects them
    Topology(controller::Look),
    /// Print completions for a shell, to be read by it
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().noun {
        Noun::Blk(args) => blk::run(args),
        Noun::Switch(args) => switch::run(args),
        Noun::Controller(args) => controller::run(args),
        Noun::Volume(args) => volume::run(args),
        Noun::Pool(args) => pool::run(args),
        Noun::Image(args) => image::run(args),
        Noun::Tier(args) => tier::run(args),
        Noun::Job(args) => job::run(args),
        Noun::Port(args) => port::run(args),
        Noun::Fdb(args) => fdb::run(args),
        Noun::Flow(args) => flow::run(args),
        Noun::Trace(args) => trace::run(args),
        Noun::Capture(args) => capture::run(args),
        Noun::Net(args) => net::run(args),
        Noun::Acl(args) => acl::run(args),
        Noun::Tenant(args) => tenant::run(args),
        Noun::Topology(args) => topology::run(&args),
        Noun::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sluice", &mut script);
            output::write(String::from_utf8_lossy(&script));
            Ok(())
        }
    };
    output::exit(result)
}
