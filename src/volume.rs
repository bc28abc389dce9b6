//! `sluice volume`: the volumes of the storage daemon.

use std::path::PathBuf;

use clap::Subcommand;
use hyper::Method;
use serde_json::{Map, Value, json};

use crate::client::{self, RunDir, SocketFlags, VOLUMES};
use crate::job::Wait;
use crate::output::{self, BadInput, Look};
use crate::tier::offset_of;

/// Arguments of `sluice volume`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a volume and serve it at RUN_DIR/NAME.sock
    Create(Box<Create>),
    /// List the volumes
    List {
        #[command(flatten)]
        look: Look,
    },
    /// Show one volume
    Show {
        /// Name of the volume
        name: String,
        #[command(flatten)]
        look: Look,
    },
    /// Grow a volume; its guests see the new size at once
    Resize {
        /// Name of the volume
        name: String,
        /// New size, such as 8GiB
        size: String,
        #[command(flatten)]
        daemon: RunDir,
    },
    /// Open the file or device of a volume again: one that failed, or that refuses writes since a flush failed
    ///
    /// What a failed flush lost stays lost: check the data first. Guests are disconnected for a moment.
    Reopen {
        /// Name of the volume
        name: String,
        #[command(flatten)]
        daemon: RunDir,
    },
    /// Make a writable copy of a volume in a pool, at once and without space of its own
    Clone(Fork),
    /// Make a read-only copy of a volume in a pool, as it is now
    Snapshot(Fork),
    /// Write a volume in a pool, as it is now, to a raw or qcow2 file; its guests go on meanwhile
    ///
    /// The daemon writes the file. Zeroes take no space in it; qcow2 needs QEMU's tools (qemu-img, qemu-nbd).
    Export(Export),
    /// Say where the data of a volume in a pool are to be: auto (by heat), hot or cold
    Pin {
        /// Name of the volume
        name: String,
        /// auto, hot or cold
        tier: String,
        /// Only this part, in bytes or such as 1GiB:64MiB; whole units of 64KiB that it touches
        #[arg(long, value_name = "OFFSET:LENGTH")]
        range: Option<String>,
        #[command(flatten)]
        daemon: RunDir,
    },
    /// Change what a volume in a pool may use; what is not given stays as it is
    Limit {
        /// Name of the volume
        name: String,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        daemon: RunDir,
    },
    /// List the ranges in which two volumes of a pool, such as two snapshots, do not share their data
    Diff {
        /// Name of the volume
        name: String,
        /// Name of the other one
        other: String,
        #[command(flatten)]
        look: Look,
    },
    /// Stop serving a volume and forget it; its file or device is left alone, its data in a pool are deleted
    ///
    /// A file or device that was adopted for it is left as the volume was: drain its pool and delete its copies first. It
    /// belongs to the pool until that is deleted.
    Delete {
        /// Name of the volume
        name: String,
        /// Although the file or device that was adopted for it does not hold all of it
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        daemon: RunDir,
    },
}

#[derive(clap::Args)]
struct Export {
    /// Name of the volume
    name: String,
    /// The file to make
    #[arg(long, value_name = "PATH")]
    to: PathBuf,
    /// raw or qcow2 [default: what the file's name says]
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Replace a file of that name
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: Wait,
}

impl Export {
    fn body(&self) -> Value {
        let mut body = Map::new();
        client::put_paths(&mut body, [("to", &Some(self.to.clone()))]);
        client::put_texts(&mut body, [("format", &self.format)]);
        if self.force {
            body.insert("force".to_string(), json!(true));
        }
        Value::Object(body)
    }
}

#[derive(clap::Args)]
struct Limits {
    /// Most bytes of the fast tier that it may have, such as 512MiB, or none
    #[arg(long, value_name = "SIZE")]
    hot_max: Option<String>,
    /// Bytes of the fast tier that others do not take from it, or none
    #[arg(long, value_name = "SIZE")]
    hot_min: Option<String>,
    /// Most bytes that it may have written, or none; more fail
    #[arg(long, value_name = "SIZE")]
    quota: Option<String>,
    /// Who pays for it, or none; see `sluice pool quota`
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
}

impl Limits {
    fn put(&self, body: &mut Map<String, Value>) {
        let Limits { hot_max, hot_min, quota, tenant } = self;
        client::put_texts(
            body,
            [("hot_max", hot_max), ("hot_min", hot_min), ("quota", quota), ("tenant", tenant)],
        );
    }
}

#[derive(clap::Args)]
struct Fork {
    /// Name of the volume
    from: String,
    /// Name of the copy
    name: String,
    /// Serial that guests see, at most 20 characters [default: the name]
    #[arg(long)]
    serial: Option<String>,
    #[command(flatten)]
    daemon: RunDir,
}

impl Fork {
    fn make(&self, writable: bool) -> anyhow::Result<()> {
        let mut body = Map::new();
        body.insert("name".to_string(), json!(self.name));
        body.insert("writable".to_string(), json!(writable));
        client::put_texts(&mut body, [("serial", &self.serial)]);
        let made = VOLUMES.act(&self.daemon, &self.from, "copies", Some(&Value::Object(body)))?;
        output::line(format_args!("{} is served at {}", self.name, output::text(&made["socket_path"])));
        Ok(())
    }
}

// Values are texts here: the daemon checks them, all at once, wherever they come from.
#[derive(clap::Args)]
struct Create {
    /// Name of the volume
    name: String,
    /// Keep the data in this file; it is made, sparse, when it does not exist
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Keep the data on this block device
    #[arg(long, value_name = "PATH")]
    device: Option<PathBuf>,
    /// Keep the data in this tiered pool
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Take over the data of this file or block device where they are, as cold data of the pool: nothing is copied
    ///
    /// What the pool keeps there for itself goes behind the data: a file becomes a little longer, a device must
    /// have the room (--size says how much of it are data).
    #[arg(long, value_name = "PATH", requires = "pool")]
    adopt: Option<PathBuf>,
    /// Give the name to a volume that the pool has without one, as `sluice pool show` lists them
    #[arg(long, value_name = "NUMBER", requires = "pool")]
    unnamed: Option<String>,
    /// Where the pool keeps the data: auto, hot or cold [default: auto]
    #[arg(long, value_name = "TIER", requires = "pool")]
    pin: Option<String>,
    #[command(flatten)]
    limits: Limits,
    /// Keep no data at all, for benchmarks: requests complete at once
    #[arg(long)]
    null: bool,
    /// Size, such as 4GiB; by default that of the existing file or device
    #[arg(long)]
    size: Option<String>,
    /// Number of virtqueues, 1 to 16 [default: 1]
    #[arg(long)]
    queues: Option<String>,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
    /// Serial that guests see, at most 20 characters [default: the name]
    #[arg(long)]
    serial: Option<String>,
    /// Logical block size, 512 or 4096 [default: 512]
    #[arg(long)]
    block_size: Option<String>,
    #[command(flatten)]
    socket: SocketFlags,
    #[command(flatten)]
    daemon: RunDir,
}

impl Create {
    fn body(&self) -> Value {
        let mut body = Map::new();
        body.insert("name".to_string(), json!(self.name));
        for (key, value) in [("null", self.null), ("read_only", self.read_only)] {
            if value {
                body.insert(key.to_string(), json!(true));
            }
        }
        client::put_numbers(
            &mut body,
            [("queues", &self.queues), ("block_size", &self.block_size), ("unnamed", &self.unnamed)],
        );
        client::put_paths(
            &mut body,
            [("file", &self.file), ("device", &self.device), ("adopt", &self.adopt)],
        );
        client::put_texts(
            &mut body,
            [("size_bytes", &self.size), ("pool", &self.pool), ("pin", &self.pin), ("serial", &self.serial)],
        );
        self.limits.put(&mut body);
        self.socket.put(&mut body);
        Value::Object(body)
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Create(create) => {
            let made = VOLUMES.make(&create.daemon, &create.body())?;
            output::line(format_args!("{} is served at {}", create.name, output::text(&made["socket_path"])));
        }
        Verb::List { look } => look.output.print(&VOLUMES.list(&look.daemon)?, list),
        Verb::Show { name, look } => look.output.print(&VOLUMES.show(&look.daemon, &name)?, show),
        Verb::Resize { name, size, daemon } => {
            let volume = VOLUMES.one(&daemon, Method::PATCH, &name, Some(&json!({ "size_bytes": size })))?;
            output::line(format_args!("{name} has {}", output::bytes(&volume["size_bytes"])));
        }
        Verb::Reopen { name, daemon } => {
            VOLUMES.act(&daemon, &name, "reopen", None)?;
            output::line(format_args!("{name} is served again"));
        }
        Verb::Pin { name, tier, range, daemon } => {
            let mut body = Map::new();
            body.insert("pin".to_string(), json!(tier));
            if let Some(range) = range {
                let (offset, length) = range.split_once(':').ok_or_else(|| {
                    BadInput(format!("the range `{range}` is not OFFSET:LENGTH, such as 1GiB:64MiB"))
                })?;
                body.insert("offset".to_string(), json!(offset_of(offset)?));
                body.insert("bytes".to_string(), json!(offset_of(length)?));
            }
            VOLUMES.act(&daemon, &name, "pin", Some(&Value::Object(body)))?;
            output::line(format_args!("{name} is pinned: {tier}"));
        }
        Verb::Limit { name, limits, daemon } => {
            let mut body = Map::new();
            limits.put(&mut body);
            let volume = VOLUMES.act(&daemon, &name, "limits", Some(&Value::Object(body)))?;
            show(&volume);
        }
        Verb::Clone(fork) => fork.make(true)?,
        Verb::Snapshot(fork) => fork.make(false)?,
        Verb::Export(export) => {
            let job = VOLUMES.act(export.wait.daemon(), &export.name, "export", Some(&export.body()))?;
            export.wait.follow(&job)?;
        }
        Verb::Diff { name, other, look } => {
            let below = format!("differences?with={}", client::escape(&other));
            look.output.print(&VOLUMES.below(&look.daemon, Method::GET, &name, &below, None)?, diff);
        }
        Verb::Delete { name, force, daemon } => {
            let volume = VOLUMES.show(&daemon, &name)?;
            let query = if force { "?force=true" } else { "" };
            let path = format!("{}{query}", client::path(VOLUMES.path, &name));
            client::request(&daemon.admin_socket(VOLUMES.daemon), Method::DELETE, &path, None)?;
            let place = &volume["backing"]["pool"];
            let gone = !place.is_null() && place["adopted"].is_null();
            let data = if gone { "deleted" } else { "left alone" };
            output::line(format_args!("{name} is no longer served; its data are {data}"));
        }
    }
    Ok(())
}

fn show(volume: &Value) {
    let mut flat = volume.as_object().cloned().unwrap_or_default();
    // What the pool knows stands beside the rest.
    let tier = flat.remove("tier");
    flat.extend(tier.as_ref().and_then(Value::as_object).cloned().into_iter().flatten());
    output::fields(&Value::Object(flat));
}

fn diff(ranges: &Value) {
    let rows = ranges.as_array().into_iter().flatten().map(|range| {
        [format!("{:#x}", range["offset"].as_u64().unwrap_or_default()), output::bytes(&range["bytes"])]
    });
    output::table(["OFFSET", "SIZE"], rows);
}

fn list(volumes: &Value) {
    let rows = volumes.as_array().into_iter().flatten().map(|volume| {
        let state = match &volume["state"] {
            Value::Object(state) => state.keys().next().cloned().unwrap_or_default(),
            state => output::text(state),
        };
        [
            output::text(&volume["name"]),
            output::bytes(&volume["size_bytes"]),
            match &volume["backing"]["pool"] {
                Value::Null => output::text(&volume["backing"]),
                place => format!("pool {}", output::text(&place["name"])),
            },
            output::text(&volume["queues"]),
            if volume["read_only"] == json!(true) { "ro" } else { "rw" }.to_string(),
            state,
            output::text(&volume["frontends"]),
            output::text(&volume["socket_path"]),
        ]
    });
    output::table(["NAME", "SIZE", "DATA", "QUEUES", "MODE", "STATE", "FRONTENDS", "SOCKET"], rows);
}
