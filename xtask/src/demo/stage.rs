//! The daemons and guests of the demo, and how they are connected.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use super::report::LeftRunning;
use super::tiers;
use crate::image::Image;
use crate::lab::qemu::{Accelerator, GuestSpec};
use crate::lab::{Daemon, Guest, Site, guest, http, wait_for};
use crate::progress::Progress;

/// Name and VLAN of the networks.
pub const NETWORKS: [(&str, u16); 2] = [("blue", 10), ("green", 20)];
/// Name of each guest and its network; the guest's number is its place here plus one.
pub const GUESTS: [(&str, usize); 3] = [("alice", 0), ("bob", 0), ("carol", 1)];
/// Size of each guest's disk.
const DISK_SIZE: &str = "256MiB";
/// How long switch and controller may take to find each other.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// Everything that runs.
pub struct Stage {
    /// Where it runs.
    pub site: Site,
    /// How the guests run.
    pub accelerator: Accelerator,
    /// The guests; before the daemons, so that they end first.
    pub guests: Vec<Guest>,
    /// The storage daemon.
    pub blk: Daemon,
    /// The switch.
    pub switch: Daemon,
    /// The controller.
    pub controller: Daemon,
    /// Address of the controller's REST service.
    pub rest: SocketAddr,
    image: Image,
}

impl Stage {
    /// Starts the daemons, makes networks, ports and disks, and boots the guests.
    pub fn set(
        site: Site,
        image: &Image,
        accelerator: Accelerator,
        progress: &Progress,
    ) -> anyhow::Result<Stage> {
        progress.note("starting controller, switch and storage daemon");
        let (controller, openflow, rest) = site.controller()?;
        let switch = site.switch(Some(openflow))?;
        let blk = site.blk()?;
        let mut stage = Stage {
            site,
            accelerator,
            guests: Vec::new(),
            blk,
            switch,
            controller,
            rest,
            image: image.clone(),
        };
        stage.make_ports(progress)?;
        stage.make_networks(progress)?;
        stage.make_disks(progress)?;
        tiers::make(&stage.site, progress)?;
        stage.boot(progress)?;
        Ok(stage)
    }

    fn make_ports(&self, progress: &Progress) -> anyhow::Result<()> {
        for (number, (name, _)) in (1..).zip(GUESTS) {
            progress.note(&format!("adding the port of {name}"));
            let ofport = format!("{number}");
            self.site.sluice(&["port", "add", &port(name), "--vhost-user", "--ofport", &ofport])?;
        }
        let answered = || {
            let ports = http::request(self.rest, Method::GET, "/v1/switches/1/ports", None)?;
            let text = ports.body;
            Ok(GUESTS.iter().all(|(name, _)| text.contains(&port(name))).then_some(()))
        };
        wait_for("the controller sees the ports of the switch", CONNECT_LIMIT, answered)
    }

    fn make_networks(&self, progress: &Progress) -> anyhow::Result<()> {
        for (index, (name, vlan)) in NETWORKS.into_iter().enumerate() {
            progress.note(&format!("PUT /v1/networks/{name}: VLAN {vlan}"));
            http::call(self.rest, Method::PUT, &format!("/v1/networks/{name}"), Some(&network(index, None)))?;
        }
        Ok(())
    }

    fn make_disks(&self, progress: &Progress) -> anyhow::Result<()> {
        for (name, _) in GUESTS {
            progress.note(&format!("creating the disk of {name}"));
            let file = self.site.dir.join(format!("{name}.img")).display().to_string();
            self.site.sluice(&["volume", "create", &volume(name), "--file", &file, "--size", DISK_SIZE])?;
        }
        Ok(())
    }

    fn boot(&mut self, progress: &Progress) -> anyhow::Result<()> {
        progress.note(&format!("booting three guests ({})", self.accelerator.name()));
        for (number, (name, _)) in (1..).zip(GUESTS) {
            let spec = self.spec(number, name);
            self.guests.push(Guest::start(&spec, &self.site.dir, self.site.lifetime)?);
        }
        for guest in &mut self.guests {
            guest.wait_ready(guest::BOOT_LIMIT)?;
        }
        Ok(())
    }

    fn spec(&self, number: u8, name: &str) -> GuestSpec {
        let mac = format!("52:54:00:00:00:{number:02x}");
        let spec = GuestSpec::new(name, &self.image, self.accelerator)
            .disk(&self.site.socket(&volume(name)), 1)
            .nic(&self.site.socket(&port(name)), false, &mac);
        // The first guest has the clone, too.
        if number == 1 { spec.disk(&self.site.socket(tiers::CLONE), 1) } else { spec }
    }

    /// Ends everything in order; an unwilling daemon is an error.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.guests.clear();
        for daemon in [&mut self.switch, &mut self.blk, &mut self.controller] {
            let status = daemon.process().stop()?;
            anyhow::ensure!(status.success(), "a daemon ended with {status}:\n{}", daemon.process().output());
        }
        Ok(())
    }

    /// Leaves everything running and says how to look at it.
    pub fn leave(mut self) -> LeftRunning {
        let command = self.guests[0].process().command().to_owned();
        let mut processes = Vec::new();
        let daemons = [&mut self.controller, &mut self.switch, &mut self.blk].map(Daemon::process);
        for process in daemons.into_iter().chain(self.guests.iter_mut().map(Guest::process)) {
            process.leave();
            processes.push(process.id());
        }
        LeftRunning {
            directory: self.site.dir.clone(),
            run_directory: self.site.run_dir(),
            program: self.site.program.clone(),
            processes,
            guest_command: command,
        }
    }
}

/// Name of a guest's disk.
pub fn volume(guest: &str) -> String {
    format!("{guest}-disk")
}

/// Name of a guest's port.
pub fn port(guest: &str) -> String {
    format!("{guest}-net")
}

/// The body that puts the guests of network `index`, and one more port, into it.
pub fn network(index: usize, more: Option<u32>) -> Value {
    let numbers = (1..).zip(GUESTS).filter(|(_, (_, network))| *network == index).map(|(number, _)| number);
    let ports: Vec<_> = numbers.chain(more).map(|number: u32| json!({ "dpid": 1, "port": number })).collect();
    json!({ "vlan": NETWORKS[index].1, "ports": ports })
}
