//! `controller`: simulated switches on our controller, and on Faucet and os-ken where they do the same.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use benches::fleet::{Fleet, PacketOf};
use benches::usage::Usage;
use benches::{CLIENT_CORE, SERVER_CORE, pin};
use clap::Parser;
use comfy_table::{Table, presets};
use hyper::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use xtask::judge::controllers;
use xtask::lab::daemons::free_address;
use xtask::lab::process::{Lifetime, Process};
use xtask::lab::{Daemon, Site, http, wait_for};
use xtask::progress::Progress;

/// Simulated switches on core 1, a controller on core 0: ours, then the others'.
#[derive(Parser)]
struct Options {
    /// Switches
    #[arg(long, default_value_t = 200)]
    switches: u64,
    /// Hosts attached to each switch
    #[arg(long, default_value_t = 50)]
    hosts: u32,
    /// REST calls of each kind
    #[arg(long, default_value_t = 200)]
    calls: usize,
    /// Leave out the controllers by others
    #[arg(long)]
    alone: bool,
    /// Only those by others
    #[arg(long)]
    others: bool,
}

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(240);
/// Networks that the hosts are spread over.
const NETWORKS: u32 = 100;
/// New addresses that each host shows.
const ADDRESSES: u8 = 4;

/// What was measured, what it came to, what is wished for.
type Row = [String; 4];

fn row(who: &str, what: impl Into<String>, seen: impl Into<String>, wish: &str) -> Row {
    [who.into(), what.into(), seen.into(), wish.into()]
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    pin(std::process::id(), CLIENT_CORE)?;
    let dir = tempfile::tempdir()?;
    let mut rows = Vec::new();
    if !options.others {
        rows.extend(ours(&options, dir.path())?);
    }
    if !options.alone {
        let programs = controllers::install(&Progress::new())?;
        rows.extend(os_ken(&options, dir.path(), &programs).context("os-ken")?);
        rows.extend(faucet(&options, dir.path(), &programs).context("Faucet")?);
    }
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(["controller", "what", "figure", "wished for"]);
    table.add_rows(rows);
    println!("{table}");
    Ok(())
}

/// Our controller with its addresses.
struct Ours {
    daemon: Daemon,
    openflow: SocketAddr,
    rest: SocketAddr,
}

impl Ours {
    fn start(dir: &Path) -> anyhow::Result<Ours> {
        let program = benches::release_program()?;
        let site = Site { program, dir: dir.into(), lifetime: Lifetime::Ours, usual_ports: false };
        let (mut daemon, openflow, rest) = site.prepared()?.controller()?;
        pin(daemon.process().id(), SERVER_CORE)?;
        Ok(Ours { daemon, openflow, rest })
    }

    fn put(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        http::call(self.rest, Method::PUT, path, Some(body))
    }

    fn peak_mib(&mut self) -> anyhow::Result<u64> {
        Ok(Usage::of(self.daemon.process().id())?.peak_kib / 1024)
    }

    fn settled(&self, count: u64) -> anyhow::Result<()> {
        wait_for("the switches", LIMIT, || {
            let list = http::call(self.rest, Method::GET, "/v1/switches", None)?;
            let switches = list["switches"].as_array().context("a list of switches")?;
            let settled = switches.iter().filter(|switch| switch["settled"] == true).count();
            Ok((settled as u64 == count).then_some(()))
        })
    }

    /// Hosts that come and go, one call each; medians in milliseconds until a call is answered, which is when the
    /// switch has confirmed its rules.
    fn calls(&self, switches: u64, port: u32, count: usize) -> anyhow::Result<String> {
        let mut times = Vec::new();
        for call in 0..count {
            let dpid = call as u64 % switches + 1;
            let mac = format!("02:00:00:ff:{:02x}:{:02x}", call >> 8, call & 0xff);
            let body = json!({"network": "net0", "dpid": dpid, "port": port, "macs": [mac]});
            let start = Instant::now();
            let answer = self.put(&format!("/v1/attachments/new{dpid}"), &body)?;
            times.push(start.elapsed());
            ensure!(answer["status"] == "applied", "{answer}");
        }
        times.sort_unstable();
        let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
        Ok(format!("p50 {:.2} ms, p99 {:.2} ms", at(50), at(99)))
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn document(options: &Options) -> Value {
    let networks: serde_json::Map<String, Value> =
        (0..NETWORKS).map(|n| (format!("net{n}"), json!({"vlan": 100 + n}))).collect();
    let (mut attachments, mut uplinks) = (serde_json::Map::new(), serde_json::Map::new());
    for dpid in 1..=options.switches {
        for port in 1..=options.hosts {
            let number = (dpid as u32 - 1) * options.hosts + port;
            let network = format!("net{}", number % NETWORKS);
            let mac = [2, 1, 0, 0, (number >> 8) as u8, number as u8].map(|byte| format!("{byte:02x}"));
            let ip = format!("10.{}.{}.{}", number >> 16, number >> 8 & 0xff, number & 0xff);
            let attachment =
                json!({"network": network, "dpid": dpid, "port": port, "macs": [mac.join(":")], "ips": [ip]});
            attachments.insert(format!("host{number}"), attachment);
        }
        uplinks.insert(format!("up{dpid}"), json!({"a": {"dpid": dpid, "port": options.hosts + 2}}));
    }
    json!({"networks": networks, "attachments": attachments, "uplinks": uplinks})
}

fn ours(options: &Options, dir: &Path) -> anyhow::Result<Vec<Row>> {
    const WE: &str = "Sluice";
    let (ports, extra) = (options.hosts + 2, options.hosts + 1);
    let mut rows = Vec::new();
    {
        let ours = Ours::start(&dir.join("one"))?;
        ours.put("/v1/networks/net0", &json!({"vlan": 100}))?;
        let fleet = Fleet::connect(ours.openflow, 1, ports)?;
        fleet.provisioned(0, LIMIT)?;
        rows.push(row(
            WE,
            "REST call to live rule, 1 switch",
            ours.calls(1, extra, options.calls)?,
            "p50 5 ms",
        ));
    }
    let mut ours = Ours::start(&dir.join("many"))?;
    let count = options.switches;
    {
        let fleet = Fleet::connect(ours.openflow, count, ports)?;
        let time = fleet.provisioned(0, LIMIT)?;
        ours.settled(count)?;
        rows.push(row(WE, format!("{count} switches connect at once"), seconds(time), "5 s"));
    }
    let hosts = count * u64::from(options.hosts);
    let begin = Instant::now();
    ours.put("/v1/document", &document(options))?;
    rows.push(row(WE, format!("a document of {hosts} attachments is stored"), seconds(begin.elapsed()), ""));
    ours.daemon.crash()?;
    let begin = Instant::now();
    ours.daemon.restart()?;
    pin(ours.daemon.process().id(), SERVER_CORE)?;
    rows.push(row(WE, "a restart with them", seconds(begin.elapsed()), ""));
    let fleet = Fleet::connect(ours.openflow, count, ports)?;
    let time = fleet.provisioned(hosts, LIMIT)?;
    ours.settled(count)?;
    let what = format!("{count} switches connect, {hosts} attachments: {} flow-mods", fleet.flow_mods());
    rows.push(row(WE, what, seconds(time), "2 s"));
    rows.push(row(WE, "memory at most", format!("{} MiB", ours.peak_mib()?), "200 MiB"));
    let times = ours.calls(count, extra, options.calls)?;
    let what = format!("REST call to live rule, {count} switches, {hosts} attachments");
    rows.push(row(WE, what, times, "p50 50 ms"));
    let before = fleet.flow_mods();
    let packets = show(&fleet, options, count)?;
    let time = fleet.until(LIMIT, |fleet| fleet.flow_mods() >= before + 2 * packets)?;
    let rate = packets as f64 / time.as_secs_f64();
    rows.push(row(
        WE,
        "packets of new addresses, learned (2 rules each)",
        format!("{rate:.0}/s"),
        "20 000/s",
    ));
    let metrics = ours.daemon.metrics()?;
    let count = |metrics: &http::Metrics| {
        metrics
            .sum("sluice_openflow_messages_total", &[("direction", "received"), ("type", "packet_in")])
            .unwrap_or(0.0)
    };
    let before = count(&metrics);
    let begin = Instant::now();
    let packets = show(&fleet, options, options.switches)?;
    wait_for("the packets", LIMIT, || {
        Ok((count(&ours.daemon.metrics()?) >= before + packets as f64).then_some(()))
    })?;
    let rate = packets as f64 / begin.elapsed().as_secs_f64();
    rows.push(row(WE, "packets of known addresses", format!("{rate:.0}/s"), "20 000/s"));
    rows.push(row(WE, "memory at most, at the end", format!("{} MiB", ours.peak_mib()?), ""));
    Ok(rows)
}

/// Every host of the first `switches` switches shows its addresses; how many packets that is.
fn show(fleet: &Fleet, options: &Options, switches: u64) -> anyhow::Result<u64> {
    let mut sent = 0;
    for dpid in 1..=switches {
        let packets: Vec<PacketOf> = (0..ADDRESSES)
            .flat_map(|n| (1..=options.hosts).map(move |port| (n, port)))
            .map(|(n, port)| PacketOf { port, mac: [2, 7, n, (dpid >> 8) as u8, dpid as u8, port as u8] })
            .collect();
        sent += packets.len() as u64;
        fleet.show(dpid, packets)?;
    }
    Ok(sent)
}

/// A controller by others.
fn other(name: &str, dir: &Path, command: &mut Command, address: SocketAddr) -> anyhow::Result<Process> {
    let mut process = Process::start(name, command, &dir.join(format!("{name}.log")), Lifetime::Ours)?;
    wait_for(name, LIMIT, || {
        process.alive()?;
        Ok(std::net::TcpStream::connect(address).ok())
    })?;
    pin(process.id(), SERVER_CORE)?;
    Ok(process)
}

/// Its learning switch: sessions at once, and packets that it answers with a packet-out each.
fn os_ken(options: &Options, dir: &Path, programs: &Path) -> anyhow::Result<Vec<Row>> {
    const WHO: &str = "os-ken 3.1.0, learning switch";
    let app = dir.join("learning_switch.py");
    fs::write(&app, controllers::LEARNING_SWITCH)?;
    let address = free_address(0)?;
    let port = address.port().to_string();
    let mut command = Command::new(programs.join("osken-manager"));
    command.args(["--ofp-listen-host", "127.0.0.1", "--ofp-tcp-listen-port", &port]).arg(&app);
    let process = other("os-ken", dir, &mut command, address)?;
    let fleet = Fleet::connect(address, options.switches, options.hosts + 2)?;
    let time = fleet.provisioned(options.switches, LIMIT)?;
    let mut rows =
        vec![row(WHO, format!("{} switches connect at once", options.switches), seconds(time), "")];
    let packets = show(&fleet, options, (options.switches / 10).max(1))?;
    let time = fleet.until(LIMIT, |fleet| fleet.packet_outs() >= packets)?;
    let rate = packets as f64 / time.as_secs_f64();
    rows.push(row(WHO, "packets of new addresses, flooded", format!("{rate:.0}/s"), ""));
    let memory = Usage::of(process.id())?.peak_kib / 1024;
    rows.push(row(WHO, "memory at most", format!("{memory} MiB"), ""));
    Ok(rows)
}

/// A description of `switches` switches with their hosts; `moved` is one that is in another VLAN than before.
fn faucet_yaml(options: &Options, switches: u64, moved: Option<u64>) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("vlans:\n");
    for n in 0..NETWORKS {
        let _ = writeln!(text, "  net{n}: {{vid: {}}}", 100 + n);
    }
    text.push_str("dps:\n");
    for dpid in 1..=switches {
        let _ = writeln!(text, "  sw{dpid}:\n    dp_id: {dpid}\n    hardware: Open vSwitch\n    interfaces:");
        for port in 1..=options.hosts {
            let number = (dpid as u32 - 1) * options.hosts + port;
            let shift = u32::from(moved == Some(dpid) && port == 1);
            let _ = writeln!(text, "      {port}: {{native_vlan: net{}}}", (number + shift) % NETWORKS);
        }
    }
    text
}

/// The same networks; instead of a REST call the description is edited and read again.
fn faucet(options: &Options, dir: &Path, programs: &Path) -> anyhow::Result<Vec<Row>> {
    const WHO: &str = "Faucet 1.10.12";
    let mut rows = Vec::new();
    for switches in [1, options.switches] {
        let config = dir.join("faucet.yaml");
        fs::write(&config, faucet_yaml(options, switches, None))?;
        let address = free_address(0)?;
        let mut command = Command::new(programs.join("faucet"));
        command.args(["--ryu-ofp-listen-host", "127.0.0.1"]);
        command.args(["--ryu-ofp-tcp-listen-port", &address.port().to_string()]);
        let prometheus = free_address(0)?.port().to_string();
        command.env("FAUCET_PROMETHEUS_PORT", prometheus).env("FAUCET_PROMETHEUS_ADDR", "127.0.0.1");
        let variables: [(&str, PathBuf); 3] = [
            ("FAUCET_CONFIG", config.clone()),
            ("FAUCET_LOG", dir.join("faucet-events.log")),
            ("FAUCET_EXCEPTION_LOG", dir.join("faucet-exceptions.log")),
        ];
        command.envs(variables);
        // It starts another of its programs by name.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(programs.to_path_buf()).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(all)?);
        let process = other("faucet", dir, &mut command, address)?;
        let fleet = Fleet::connect(address, switches, options.hosts + 2)?;
        let least = switches * u64::from(options.hosts);
        let time = fleet.provisioned(least, LIMIT)?;
        let what = format!("{switches} switches connect, {least} ports: {} flow-mods", fleet.flow_mods());
        rows.push(row(WHO, what, seconds(time), ""));
        let before = fleet.flow_mods();
        fs::write(&config, faucet_yaml(options, switches, Some(1)))?;
        process.signal(Signal::SIGHUP)?;
        let time = fleet.until(LIMIT, |fleet| fleet.flow_mods() > before)?;
        let what = format!("one port moved in the description to the first rule, {switches} switches");
        rows.push(row(WHO, what, seconds(time), ""));
        let memory = Usage::of(process.id())?.peak_kib / 1024;
        rows.push(row(WHO, format!("memory at most, {switches} switches"), format!("{memory} MiB"), ""));
    }
    Ok(rows)
}
