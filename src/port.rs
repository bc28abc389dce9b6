//! `sluice port`: the ports of the switch.

use std::path::PathBuf;

use clap::Subcommand;
use hyper::Method;
use serde_json::{Map, Value, json};

use crate::client::{self, Collection, RunDir, SocketFlags};
use crate::output::{self, Look};

const PORTS: Collection = Collection { daemon: "switch", path: "/v1/ports" };

/// Arguments of `sluice port`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Add a port
    Add(Box<Add>),
    /// List the ports
    List {
        #[command(flatten)]
        look: Look,
    },
    /// Show one port
    Show {
        /// Name of the port
        name: String,
        #[command(flatten)]
        look: Look,
    },
    /// Delete a port
    Delete {
        /// Name of the port
        name: String,
        #[command(flatten)]
        daemon: RunDir,
    },
}

// Values are texts here: the daemon checks them, all at once, wherever they come from.
#[derive(clap::Args)]
struct Add {
    /// Name of the port
    name: String,
    /// A guest: its VMM connects to RUN_DIR/NAME.sock
    #[arg(long)]
    vhost_user: bool,
    /// With --vhost-user: the VMM listens at this socket and we connect
    #[arg(long, value_name = "PATH")]
    client: Option<PathBuf>,
    /// A network interface of the host
    #[arg(long, value_name = "INTERFACE")]
    af_packet: Option<String>,
    /// A tap interface; made when it does not exist
    #[arg(long, value_name = "INTERFACE")]
    tap: Option<String>,
    /// OpenFlow port number [default: the lowest free one]
    #[arg(long, value_name = "NUMBER")]
    ofport: Option<String>,
    /// Access port: untagged member of this VLAN
    #[arg(long, value_name = "VID")]
    vlan: Option<String>,
    /// Trunk: tagged member of these VLANs, such as 10,20-29
    #[arg(long, value_name = "VIDS")]
    trunk: Option<String>,
    /// Trunk: VLAN of untagged frames
    #[arg(long, value_name = "VID")]
    native: Option<String>,
    /// Largest IP packet in bytes [default: 1500]
    #[arg(long, value_name = "BYTES")]
    mtu: Option<String>,
    /// Number of queue pairs, 1 to 8 [default: 1]
    #[arg(long, value_name = "COUNT")]
    queue_pairs: Option<String>,
    #[command(flatten)]
    socket: SocketFlags,
    #[command(flatten)]
    daemon: RunDir,
}

impl Add {
    fn body(&self) -> Value {
        let mut body = Map::new();
        body.insert("name".to_string(), json!(self.name));
        if self.vhost_user {
            body.insert("vhost_user".to_string(), json!(true));
        }
        client::put_numbers(
            &mut body,
            [
                ("ofport", &self.ofport),
                ("vlan", &self.vlan),
                ("native", &self.native),
                ("mtu", &self.mtu),
                ("queue_pairs", &self.queue_pairs),
            ],
        );
        client::put_paths(&mut body, [("client", &self.client)]);
        client::put_texts(
            &mut body,
            [("af_packet", &self.af_packet), ("tap", &self.tap), ("trunk", &self.trunk)],
        );
        self.socket.put(&mut body);
        Value::Object(body)
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Add(add) => {
            let made = PORTS.make(&add.daemon, &add.body())?;
            let socket = made["socket_path"].as_str().map(|path| format!(" at {path}")).unwrap_or_default();
            output::line(format_args!("{} is port {}{socket}", add.name, made["ofport"]));
        }
        Verb::List { look } => look.output.print(&PORTS.list(&look.daemon)?, list),
        Verb::Show { name, look } => look.output.print(&PORTS.show(&look.daemon, &name)?, output::fields),
        Verb::Delete { name, daemon } => {
            PORTS.one(&daemon, Method::DELETE, &name, None)?;
            output::line(format_args!("{name} is deleted"));
        }
    }
    Ok(())
}

/// `any`, `access 10`, `trunk 10,20 native 1`.
fn vlans(value: &Value) -> String {
    let Some(trunk) = value.get("trunk") else { return output::text(value) };
    let allowed: Vec<_> = trunk["allowed"].as_array().into_iter().flatten().map(output::text).collect();
    let native = trunk["native"].as_u64().map(|vid| format!("native {vid}"));
    let parts = ["trunk".to_string(), allowed.join(",")].into_iter().chain(native);
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

fn list(ports: &Value) {
    let rows = ports.as_array().into_iter().flatten().map(|port| {
        let link = match (port["failure"].is_string(), port["link_up"] == json!(true)) {
            (true, _) => "failed",
            (false, true) => "up",
            (false, false) => "down",
        };
        [
            output::text(&port["name"]),
            output::text(&port["ofport"]),
            output::text(&port["kind"]),
            vlans(&port["vlans"]),
            link.to_string(),
            output::text(&port["counters"]["rx_packets"]),
            output::text(&port["counters"]["tx_packets"]),
            output::text(&port["socket_path"]),
        ]
    });
    output::table(["NAME", "OFPORT", "KIND", "VLANS", "LINK", "RX", "TX", "SOCKET"], rows);
}
