//! What the demo found, for people and for programs.

use std::net::SocketAddr;
use std::path::PathBuf;

use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::{Value, json};

use super::stage::{NETWORKS, network};
use super::tiers::TierResult;
use super::trials::Ping;

/// Port number of the guest that a reader may attach.
const OWN_PORT: u32 = 9;

/// The disk of one guest.
#[derive(Debug, Serialize)]
pub struct DiskResult {
    /// Name of the guest.
    pub guest: String,
    /// Its VLAN.
    pub vlan: u16,
    /// The disk as the guest sees it: driver and serial number.
    pub model: String,
    /// Its size as the guest sees it.
    pub size_bytes: u64,
    /// A file system could be made.
    pub mkfs: bool,
    /// A file could be written.
    pub write: bool,
    /// It had the same bytes when it was read from the disk again, and the file system was sound.
    pub verify: bool,
    /// Flushes that reached the storage daemon meanwhile.
    pub flushes: f64,
}

impl DiskResult {
    fn passed(&self) -> bool {
        self.mkfs && self.write && self.verify && self.flushes > 0.0
    }
}

/// The network between the guests.
#[derive(Debug, Serialize)]
pub struct NetworkResult {
    /// Pings within VLAN 10.
    pub ping: Ping,
    /// TCP throughput within VLAN 10.
    pub megabits_per_second: f64,
    /// Every byte arrived as it was sent.
    pub intact: bool,
    /// Pings that crossed from one VLAN into the other.
    pub crossed: u32,
}

impl NetworkResult {
    fn passed(&self) -> bool {
        self.ping.received == self.ping.sent && self.intact && self.crossed == 0
    }
}

/// What `--keep` left behind.
#[derive(Debug, Serialize)]
pub struct LeftRunning {
    /// Everything lies in here.
    pub directory: PathBuf,
    /// The sockets.
    pub run_directory: PathBuf,
    /// The program.
    pub program: PathBuf,
    /// Process ids of daemons and guests.
    pub processes: Vec<u32>,
    /// The command line of one guest's QEMU.
    pub guest_command: String,
}

/// The result of the demo.
#[derive(Debug)]
pub struct Report {
    /// How the guests ran.
    pub accelerator: &'static str,
    /// One disk a guest.
    pub disks: Vec<DiskResult>,
    /// The tiered volume.
    pub tiers: TierResult,
    /// The network.
    pub network: NetworkResult,
    /// Metrics of storage daemon, switch and controller.
    pub metrics: [SocketAddr; 3],
    /// The controller's REST service.
    pub rest: SocketAddr,
    /// How long everything took after the build.
    pub seconds: f64,
    /// What is still running.
    pub left_running: Option<LeftRunning>,
}

impl Report {
    /// Whether everything was as it should be.
    pub fn passed(&self) -> bool {
        self.disks.iter().all(DiskResult::passed) && self.tiers.passed() && self.network.passed()
    }

    /// The report as one object.
    pub fn json(&self) -> Value {
        let [blk, switch, controller] = self.metrics.map(|address| format!("http://{address}/metrics"));
        json!({
            "passed": self.passed(),
            "accelerator": self.accelerator,
            "seconds": self.seconds,
            "disks": self.disks,
            "tiers": self.tiers,
            "network": self.network,
            "addresses": {
                "blk_metrics": blk,
                "switch_metrics": switch,
                "controller_metrics": controller,
                "rest": format!("http://{}/openapi.json", self.rest),
            },
            "left_running": self.left_running,
        })
    }
}

fn word(good: bool) -> String {
    if good { "ok" } else { "FAILED" }.into()
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut disks = Table::new();
        disks.load_style(presets::UTF8_FULL_CONDENSED);
        disks.set_header(["guest", "vlan", "disk", "size", "mkfs", "write", "verify", "flushes seen"]);
        for disk in &self.disks {
            let flushes = if disk.flushes > 0.0 { disk.flushes.to_string() } else { "0 FAILED".into() };
            let size = format!("{} MiB", disk.size_bytes >> 20);
            let [mkfs, write, verify] = [disk.mkfs, disk.write, disk.verify].map(word);
            disks.add_row([
                disk.guest.clone(),
                disk.vlan.to_string(),
                disk.model.clone(),
                size,
                mkfs,
                write,
                verify,
                flushes,
            ]);
        }
        writeln!(f, "{disks}")?;
        let tiers = &self.tiers;
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["tiered volume", "result", ""]);
        let shares: Vec<_> = tiers.hit_ratios.iter().map(|ratio| format!("{:.0} %", ratio * 100.0)).collect();
        let image = format!("{} MiB, imported from qcow2", tiers.image_mib);
        let promoted = format!("{}, {} units promoted", shares.join(", then "), tiers.promotions);
        table.add_row(["golden image and its clone".into(), image, word(tiers.intact)]);
        table.add_row(["reads from the fast tier".into(), promoted, word(tiers.warmed())]);
        let wrote = "stays as it was when the clone is written".to_string();
        table.add_row(["the golden image".into(), wrote, word(tiers.golden)]);
        writeln!(f, "{table}\nsluice tier show {}\n{}", super::tiers::CLONE, tiers.heat_map.trim_end())?;
        let net = &self.network;
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["network", "result", ""]);
        let mean = net.ping.mean_ms.map(|mean| format!(", mean {mean:.2} ms")).unwrap_or_default();
        let ping = format!("{} of {} answered{mean}", net.ping.received, net.ping.sent);
        let rate = format!("{:.0} Mbit/s", net.megabits_per_second);
        let crossed = format!("{} pings crossed", net.crossed);
        table.add_row(["ping within VLAN 10".into(), ping, word(net.ping.received == net.ping.sent)]);
        table.add_row(["TCP within VLAN 10".into(), rate, word(net.intact)]);
        table.add_row(["VLAN 10 and VLAN 20 apart".into(), crossed, word(net.crossed == 0)]);
        writeln!(f, "{table}")?;
        let [blk, switch, controller] = self.metrics;
        writeln!(f, "metrics  http://{blk}/metrics  http://{switch}/metrics  http://{controller}/metrics")?;
        writeln!(f, "REST     http://{}/v1/networks  (description: /openapi.json)", self.rest)?;
        writeln!(f, "page     http://{}/", self.rest)?;
        write!(
            f,
            "{} in {:.0} s after the build, guests on {}",
            if self.passed() { "all good" } else { "FAILED" },
            self.seconds,
            self.accelerator
        )?;
        self.left_running.as_ref().map_or(Ok(()), |left| left.describe(f, self.rest))
    }
}

impl LeftRunning {
    fn describe(&self, f: &mut std::fmt::Formatter<'_>, rest: SocketAddr) -> std::fmt::Result {
        let program = self.program.display();
        let ids: Vec<_> = self.processes.iter().map(u32::to_string).collect();
        writeln!(f, "\n\nEverything is still running. To look at it:")?;
        writeln!(f, "  export SLUICE_RUN_DIR={}", self.run_directory.display())?;
        for command in [
            "volume list",
            "pool show pool0",
            "tier show alice-data",
            "port list",
            "fdb show",
            "flow show",
            "net list",
            "switch list",
        ] {
            writeln!(f, "  {program} {command}")?;
        }
        writeln!(f, "  curl http://{rest}/v1/switches")?;
        writeln!(f, "  tail -f {0}/*.log {0}/*.console", self.directory.display())?;
        writeln!(f, "A guest of your own, on a disk and a port of its own:")?;
        writeln!(
            f,
            "  {program} volume create mine --file {}/mine.img --size 4GiB",
            self.directory.display()
        )?;
        writeln!(f, "  {program} port add mine-net --vhost-user --ofport {OWN_PORT}")?;
        writeln!(
            f,
            "  curl -X PUT http://{rest}/v1/networks/{} -d '{}'",
            NETWORKS[0].0,
            network(0, Some(OWN_PORT))
        )?;
        writeln!(f, "  {}", own_guest(&self.run_directory))?;
        writeln!(f, "The first guest was started with:\n  {}", self.guest_command)?;
        write!(f, "To end everything:\n  kill {} && rm -r {}", ids.join(" "), self.directory.display())
    }
}

/// How to attach a guest of one's own: boot medium and console are the reader's.
fn own_guest(run_directory: &std::path::Path) -> String {
    let run = run_directory.display();
    let reconnect = crate::lab::qemu::reconnect();
    format!(
        "qemu-system-x86_64 -machine q35,accel=kvm:tcg,memory-backend=mem -m 1G \
         -object memory-backend-memfd,id=mem,size=1G,share=on \
         -chardev socket,id=disk,path={run}/mine.sock{reconnect} -device vhost-user-blk-pci,chardev=disk \
         -chardev socket,id=net,path={run}/mine-net.sock{reconnect} -netdev vhost-user,id=n,chardev=net \
         -device virtio-net-pci,netdev=n -cdrom installer.iso"
    )
}
