//! Our switch as a program under test: one worker, vhost-user ports.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use xtask::lab::{Daemon, Lifetime, Site, wait_for};

use crate::distance::Distance;
use crate::ovs::set_flows;
use crate::testpmd::Testpmd;
use crate::{SERVER_CORE, pin};

const HITS: &str = "sluice_switch_flow_cache_hits_total";
const MISSES: &str = "sluice_switch_flow_cache_misses_total";
/// Misses for each hit of a warm flow cache.
const MISSES_MAX: f64 = 1e-3;
/// How long a million flows may take, the growth of the cache included.
const CACHED_LIMIT: Duration = Duration::from_secs(60);

/// What a switch did in one window.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Millions of frames a second that came out.
    pub mpps: f64,
    /// Cycles of the processor's time stamp counter that the switch was busy, for each frame that went in.
    pub cycles: f64,
    /// How far client and switch were from each other; `None` if that changed meanwhile.
    pub distance: Option<Distance>,
}

/// A running switch with ports from 1 on, all of it on one processor.
pub struct Sluice {
    site: Site,
    daemon: Daemon,
    ports: u32,
}

impl Sluice {
    /// Starts it with `ports` ports in the directory `dir`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(program: &Path, dir: &Path, ports: u32) -> anyhow::Result<Sluice> {
        let (program, dir) = (program.to_path_buf(), dir.to_path_buf());
        let site = Site { program, dir, lifetime: Lifetime::Ours, usual_ports: false }.prepared()?;
        let mut daemon = site.switch(None)?;
        pin(daemon.process().id(), SERVER_CORE)?;
        for number in 1..=ports {
            let (name, number) = (format!("p{number}"), number.to_string());
            site.sluice(&["port", "add", &name, "--vhost-user", "--ofport", &number])?;
        }
        let sluice = Sluice { site, daemon, ports };
        wait_for("the ports' sockets", Duration::from_secs(5), || {
            Ok((1..=ports).all(|number| sluice.socket(number).exists()).then_some(()))
        })?;
        Ok(sluice)
    }

    /// The process.
    pub fn process_id(&mut self) -> u32 {
        self.daemon.process().id()
    }

    /// The socket of a port.
    pub fn socket(&self, number: u32) -> PathBuf {
        self.site.socket(&format!("p{number}"))
    }

    /// Where it takes OpenFlow, as `ovs-ofctl` writes it.
    ///
    /// # Errors
    /// When it does not.
    pub fn openflow(&self) -> anyhow::Result<&str> {
        self.daemon.openflow().context("the switch listens for OpenFlow")
    }

    /// Replaces all flows by these, in the syntax of `ovs-ofctl`.
    ///
    /// # Errors
    /// What `ovs-ofctl` says.
    pub fn set_flows(&self, flows: &[impl AsRef<str>]) -> anyhow::Result<()> {
        set_flows(self.openflow()?, flows)
    }

    /// What it does under the load of `client` that goes on.
    ///
    /// # Errors
    /// When client or switch do not answer.
    pub fn measure(&self, client: &mut Testpmd, seconds: f64) -> anyhow::Result<Figures> {
        let mut at = Vec::new();
        let window = client.measure(seconds, || {
            at.push((self.busy_seconds()?, self.packets("rx")?));
            Ok(())
        })?;
        let [(busy_before, packets_before), (busy, packets)] = at[..] else {
            anyhow::bail!("a window has two ends");
        };
        let packets = (packets - packets_before).max(1.0);
        let cycles = (busy - busy_before) * cycles_per_second() / packets;
        Ok(Figures { mpps: window.mpps(), cycles, distance: window.distance })
    }

    /// Waits until the flow cache has seen every flow of a load that goes on: a miss costs a hundred times what a hit does.
    ///
    /// # Errors
    /// When the daemon does not answer, or there are more flows than the cache holds.
    pub fn wait_until_cached(&self) -> anyhow::Result<()> {
        let decided = || anyhow::Ok((self.sum(MISSES, &[])?, self.sum(HITS, &[])?));
        let mut before = decided()?;
        wait_for("flows in the flow cache", CACHED_LIMIT, || {
            std::thread::sleep(Duration::from_secs(1));
            let now = decided()?;
            let (misses, hits) = (now.0 - before.0, now.1 - before.1);
            before = now;
            Ok((misses <= MISSES_MAX * hits).then_some(()))
        })
    }

    /// Time the worker spent with work since it started.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn busy_seconds(&self) -> anyhow::Result<f64> {
        self.sum("sluice_worker_busy_seconds_total", &[])
    }

    /// Frames that came from (`rx`) or went to (`tx`) all ports.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn packets(&self, direction: &str) -> anyhow::Result<f64> {
        self.sum("sluice_port_packets_total", &[("direction", direction)])
    }

    /// Frames that were dropped, for whatever reason.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn drops(&self) -> anyhow::Result<f64> {
        self.sum("sluice_port_drops_total", &[])
    }

    fn sum(&self, metric: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
        self.daemon.metrics()?.sum(metric, labels).with_context(|| format!("no {metric} in /metrics"))
    }
}

impl Drop for Sluice {
    fn drop(&mut self) {
        // So that the next switch in this directory begins without them; it would say so if not.
        for number in 1..=self.ports {
            let _ = self.site.sluice(&["port", "delete", &format!("p{number}")]);
        }
    }
}

/// Rate of the processor's time stamp counter, the unit in which the peer counts.
fn cycles_per_second() -> f64 {
    let start = std::time::Instant::now();
    // SAFETY: reading the time stamp counter has no precondition on x86-64.
    let first = unsafe { std::arch::x86_64::_rdtsc() };
    std::thread::sleep(Duration::from_millis(50));
    // SAFETY: as above.
    let last = unsafe { std::arch::x86_64::_rdtsc() };
    (last - first) as f64 / start.elapsed().as_secs_f64()
}
