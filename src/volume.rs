//! `sluice volume`: the volumes of the storage daemon.

use std::path::PathBuf;

use clap::Subcommand;
use hyper::Method;
use serde_json::{Map, Value, json};
use telemetry::check::show_size;

use crate::client::{self, RunDir};
use crate::output::{self, Format};

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
        daemon: RunDir,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Show one volume
    Show {
        /// Name of the volume
        name: String,
        #[command(flatten)]
        daemon: RunDir,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
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
    /// Stop serving a volume and forget it; its file or device is left alone, its data in a pool are deleted
    Delete {
        /// Name of the volume
        name: String,
        #[command(flatten)]
        daemon: RunDir,
    },
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
        let path = format!("{}/copies", client::path("/v1/volumes", &self.from));
        let socket = self.daemon.admin_socket("blk");
        let made = client::request(&socket, Method::POST, &path, Some(&Value::Object(body)))?;
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
    /// Where the pool keeps the data: auto, hot or cold [default: auto]
    #[arg(long, value_name = "TIER", requires = "pool")]
    pin: Option<String>,
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
    /// Owner of the socket, a name or id
    #[arg(long, value_name = "USER")]
    socket_owner: Option<String>,
    /// Group of the socket, a name or id
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// Mode of the socket in octal, such as 0660
    #[arg(long, value_name = "MODE")]
    socket_mode: Option<String>,
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
        client::put_numbers(&mut body, [("queues", &self.queues), ("block_size", &self.block_size)]);
        client::put_paths(&mut body, [("file", &self.file), ("device", &self.device)]);
        client::put_texts(
            &mut body,
            [
                ("size_bytes", &self.size),
                ("pool", &self.pool),
                ("pin", &self.pin),
                ("serial", &self.serial),
                ("socket_owner", &self.socket_owner),
                ("socket_group", &self.socket_group),
                ("socket_mode", &self.socket_mode),
            ],
        );
        Value::Object(body)
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Create(create) => {
            let made = ask(&create.daemon, Method::POST, "", Some(&create.body()))?;
            output::line(format_args!("{} is served at {}", create.name, output::text(&made["socket_path"])));
        }
        Verb::List { daemon, output } => {
            let volumes = ask(&daemon, Method::GET, "", None)?;
            match output {
                Format::Json => output::json(&volumes),
                Format::Table => list(&volumes),
            }
        }
        Verb::Show { name, daemon, output } => {
            let volume = ask(&daemon, Method::GET, &name, None)?;
            match output {
                Format::Json => output::json(&volume),
                Format::Table => output::fields(&volume),
            }
        }
        Verb::Resize { name, size, daemon } => {
            let volume = ask(&daemon, Method::PATCH, &name, Some(&json!({ "size_bytes": size })))?;
            output::line(format_args!("{name} has {}", bytes(&volume["size_bytes"])));
        }
        Verb::Reopen { name, daemon } => {
            let path = format!("{}/reopen", client::path("/v1/volumes", &name));
            client::request(&daemon.admin_socket("blk"), Method::POST, &path, None)?;
            output::line(format_args!("{name} is served again"));
        }
        Verb::Clone(fork) => fork.make(true)?,
        Verb::Snapshot(fork) => fork.make(false)?,
        Verb::Delete { name, daemon } => {
            let volume = ask(&daemon, Method::GET, &name, None)?;
            ask(&daemon, Method::DELETE, &name, None)?;
            let data = if volume["backing"]["pool"].is_null() { "left alone" } else { "deleted" };
            output::line(format_args!("{name} is no longer served; its data are {data}"));
        }
    }
    Ok(())
}

fn ask(daemon: &RunDir, method: Method, name: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    let path = if name.is_empty() { "/v1/volumes".to_string() } else { client::path("/v1/volumes", name) };
    client::request(&daemon.admin_socket("blk"), method, &path, body)
}

fn list(volumes: &Value) {
    let rows = volumes.as_array().into_iter().flatten().map(|volume| {
        let state = match &volume["state"] {
            Value::Object(state) => state.keys().next().cloned().unwrap_or_default(),
            state => output::text(state),
        };
        [
            output::text(&volume["name"]),
            bytes(&volume["size_bytes"]),
            match &volume["backing"]["pool"] {
                Value::Null => output::tagged(&volume["backing"]),
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

fn bytes(value: &Value) -> String {
    value.as_u64().map_or_else(|| output::text(value), show_size)
}
