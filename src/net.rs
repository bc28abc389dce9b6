//! `sluice net`: networks of the controller, and what is attached to them.

use clap::Subcommand;
use hyper::Method;
use serde_json::{Map, Value, json};

use crate::client::{self, number};
use crate::controller::{DryRun, Look};
use crate::output;
use crate::remote::ControllerAt;

/// Arguments of `sluice net`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a network, or make it another
    Create(Box<Create>),
    /// List the networks
    List {
        #[command(flatten)]
        look: Look,
    },
    /// Show one network and what is attached to it
    Show {
        /// Name of the network
        name: String,
        #[command(flatten)]
        look: Look,
    },
    /// Delete a network
    Delete {
        /// Name of the network
        name: String,
        #[command(flatten)]
        dry: DryRun,
        #[command(flatten)]
        at: ControllerAt,
    },
    /// Attach a port of a switch to a network
    Attach(Box<Attach>),
    /// Take an attachment away
    Detach {
        /// Name of the attachment
        name: String,
        #[command(flatten)]
        dry: DryRun,
        #[command(flatten)]
        at: ControllerAt,
    },
}

// Values are texts here: the daemon checks them, all at once, wherever they come from.
#[derive(clap::Args)]
struct Create {
    /// Name of the network
    name: String,
    /// VLAN id [default: one that the controller chooses]
    #[arg(long, value_name = "VID")]
    vlan: Option<String>,
    /// Tenant that it belongs to
    #[arg(long)]
    tenant: Option<String>,
    /// Bytes of a packet at most, for those who set up its hosts
    #[arg(long, value_name = "BYTES")]
    mtu: Option<String>,
    /// ACL of every attachment; may be given again
    #[arg(long, value_name = "NAME")]
    acl: Vec<String>,
    /// Flooded frames a second at most
    #[arg(long, value_name = "PACKETS")]
    flood_limit: Option<String>,
    /// Let DHCP answers and router advertisements pass from access ports
    #[arg(long)]
    no_guard: bool,
    /// Send ARP and neighbour discovery for known hosts to them alone
    #[arg(long)]
    suppress: bool,
    #[command(flatten)]
    dry: DryRun,
    #[command(flatten)]
    at: ControllerAt,
}

#[derive(clap::Args)]
struct Attach {
    /// Name of the network
    network: String,
    /// Name of the attachment
    name: String,
    /// The switch
    #[arg(long, value_name = "DPID")]
    dpid: String,
    /// Number or name of the port
    #[arg(long)]
    port: String,
    /// How the port takes part: access (default), trunk or native
    #[arg(long)]
    mode: Option<String>,
    /// Ethernet address it may send from; may be given again
    #[arg(long, value_name = "ADDRESS")]
    mac: Vec<String>,
    /// IP address or prefix it may send from; may be given again
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<String>,
    /// Limit to the host in KiB/s, with peak (KiB/s) and burst (KiB) if wanted
    #[arg(long, value_name = "AVERAGE[,PEAK[,BURST]]")]
    inbound: Option<String>,
    /// Limit from the host in KiB/s
    #[arg(long, value_name = "AVERAGE[,PEAK[,BURST]]")]
    outbound: Option<String>,
    /// ACL; may be given again
    #[arg(long, value_name = "NAME")]
    acl: Vec<String>,
    /// DHCP servers and routers may be there
    #[arg(long)]
    trusted: bool,
    #[command(flatten)]
    dry: DryRun,
    #[command(flatten)]
    at: ControllerAt,
}

fn rate(text: &str) -> Value {
    let keys = ["average", "peak", "burst"];
    let parts = text.split(',').zip(keys).filter(|(part, _)| !part.is_empty());
    parts.map(|(part, key)| (key.to_owned(), number(part))).collect::<Map<_, _>>().into()
}

impl Create {
    fn body(&self) -> Value {
        let mut body = Map::new();
        client::put_numbers(&mut body, [("vlan", &self.vlan), ("mtu", &self.mtu)]);
        client::put_texts(&mut body, [("tenant", &self.tenant)]);
        if let Some(limit) = &self.flood_limit {
            body.insert("flooding".into(), json!({"limit_pps": number(limit)}));
        }
        body.insert("acls".into(), json!(self.acl));
        body.insert("guard".into(), json!(!self.no_guard));
        body.insert("suppress".into(), json!(self.suppress));
        body.into()
    }
}

impl Attach {
    fn body(&self) -> Value {
        let mut body = json!({
            "network": self.network, "dpid": self.dpid, "port": number(&self.port), "macs": self.mac, "ips": self.ip,
            "acls": self.acl, "trusted": self.trusted,
        });
        if let Some(mode) = &self.mode {
            body["mode"] = json!(mode);
        }
        for (key, text) in [("inbound", &self.inbound), ("outbound", &self.outbound)] {
            if let Some(text) = text {
                body["rates"][key] = rate(text);
            }
        }
        body
    }
}

/// Sends a change of one thing and says how far it is.
pub fn change(
    at: &ControllerAt,
    dry: &DryRun,
    method: Method,
    (collection, name): (&str, &str),
    body: Option<&Value>,
) -> anyhow::Result<()> {
    let path = format!("{}?{}", client::path(collection, name), dry.query());
    let done = if method == Method::DELETE { "deleted" } else { "set" };
    let answer = at.request(method, &path, body)?;
    if dry.print(&answer) {
        return Ok(());
    }
    let waits = answer["switches"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|switch| switch["reasons"].as_array().cloned().unwrap_or_default());
    let waits: Vec<String> = waits.map(|reason| output::text(&reason)).collect();
    let rest = if waits.is_empty() { String::new() } else { format!("; pending: {}", waits.join("; ")) };
    output::line(format_args!("{name} is {done}{rest}"));
    Ok(())
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Create(create) => {
            let to = ("/v1/networks", create.name.as_str());
            change(&create.at, &create.dry, Method::PUT, to, Some(&create.body()))
        }
        Verb::Attach(attach) => {
            let to = ("/v1/attachments", attach.name.as_str());
            change(&attach.at, &attach.dry, Method::PUT, to, Some(&attach.body()))
        }
        Verb::Delete { name, dry, at } => change(&at, &dry, Method::DELETE, ("/v1/networks", &name), None),
        Verb::Detach { name, dry, at } => change(&at, &dry, Method::DELETE, ("/v1/attachments", &name), None),
        Verb::List { look: Look { at, output } } => {
            let networks = at.request(Method::GET, "/v1/networks", None)?;
            output.print(&networks["networks"], list)
        }
        Verb::Show { name, look: Look { at, output } } => {
            let mut network = at.request(Method::GET, &client::path("/v1/networks", &name), None)?;
            let query = client::path("/v1/attachments?network=", &name).replacen("=/", "=", 1);
            let attachments = at.request(Method::GET, &query, None)?;
            network["attachments"] = attachments["attachments"].clone();
            output.print(&network, show)
        }
    }
}

fn list(networks: &Value) {
    let rows = networks.as_array().into_iter().flatten().map(|network| {
        let count = |key: &str| network[key].as_array().map_or(0, Vec::len).to_string();
        [
            output::text(&network["name"]),
            output::text(&network["vlan"]),
            output::text(&network["tenant"]),
            count("switches"),
            output::text(&network["status"]),
        ]
    });
    output::table(["NAME", "VLAN", "TENANT", "SWITCHES", "STATUS"], rows);
}

fn show(network: &Value) {
    let mut plain = network.clone();
    let object = plain.as_object_mut();
    let lists = object.map(|object| ["ports", "attachments", "switches"].map(|key| object.remove(key)));
    output::fields(&plain);
    let [ports, attachments, switches] = lists.unwrap_or_default().map(|list| list.unwrap_or_default());
    let places = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let rows = places(&ports).into_iter().chain(places(&attachments)).map(|port| {
        let words = |key: &str| {
            port[key].as_array().into_iter().flatten().map(output::text).collect::<Vec<_>>().join(" ")
        };
        [
            output::text(&port["name"]),
            output::text(&port["dpid"]),
            output::text(&port["port"]),
            output::text(&port["mode"]),
            words("macs"),
            words("ips"),
            words("acls"),
        ]
    });
    output::table(["ATTACHMENT", "SWITCH", "PORT", "MODE", "MAC", "IP", "ACLS"], rows);
    let rows = places(&switches).into_iter().map(|switch| {
        let reasons = switch["reasons"].as_array().into_iter().flatten().map(output::text);
        [
            output::text(&switch["dpid"]),
            output::text(&switch["status"]),
            reasons.collect::<Vec<_>>().join("; "),
        ]
    });
    output::table(["SWITCH", "STATUS", "WAITS FOR"], rows);
}
