//! Open vSwitch with its DPDK data path: the peer of the switch.

use std::path::PathBuf;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use xtask::lab::ovs::{Datapath, Ovs, ofctl};

use crate::sluice::Figures;
use crate::testpmd::Testpmd;
use crate::{SERVER_CORE, send_signal};

/// Open vSwitch with one bridge `br0` and one polling thread.
pub struct OvsDpdk(Ovs);

impl OvsDpdk {
    /// Starts it with `ports` vhost-user ports (server sockets), OpenFlow numbers from 1 on.
    ///
    /// # Errors
    /// When a package is missing or it does not come up.
    pub fn start(ports: u32) -> anyhow::Result<OvsDpdk> {
        let ovs = Ovs::start(Datapath::Dpdk { core: SERVER_CORE })?;
        ovs.add_bridge("br0", 1, None)?;
        for number in 1..=ports {
            ovs.add_port("br0", &format!("p{number}"), number, &["type=dpdkvhostuser"])?;
        }
        Ok(OvsDpdk(ovs))
    }

    /// The socket of the port with OpenFlow number `number`.
    pub fn socket(&self, number: u32) -> PathBuf {
        self.0.path(&format!("p{number}"))
    }

    /// Replaces all flows by these, in the syntax of `ovs-ofctl`.
    ///
    /// # Errors
    /// What `ovs-ofctl` says.
    pub fn set_flows(&self, flows: &[impl AsRef<str>]) -> anyhow::Result<()> {
        set_flows(&self.openflow(), flows)
    }

    /// Where it takes OpenFlow, as `ovs-ofctl` writes it.
    pub fn openflow(&self) -> String {
        self.0.target("br0")
    }

    /// The process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn process_id(&self) -> anyhow::Result<u32> {
        self.0.daemon_id().context("Open vSwitch is not running")
    }

    /// Stands still until [`OvsDpdk::resume`]: the processor is another's meanwhile.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> anyhow::Result<()> {
        send_signal(self.process_id()?, Signal::SIGSTOP)
    }

    /// Goes on after [`OvsDpdk::pause`].
    ///
    /// # Errors
    /// When it has ended.
    pub fn resume(&self) -> anyhow::Result<()> {
        send_signal(self.process_id()?, Signal::SIGCONT)
    }

    /// What it does under the load of `client` that goes on.
    ///
    /// # Errors
    /// When client or switch do not answer.
    pub fn measure(&self, client: &mut Testpmd, seconds: f64) -> anyhow::Result<Figures> {
        let mut cycles = Err(anyhow::anyhow!("the window has not begun"));
        let mut begun = false;
        let window = client.measure(seconds, || {
            if begun {
                cycles = self.cycles_per_packet();
            } else {
                self.clear_figures()?;
            }
            begun = true;
            Ok(())
        })?;
        Ok(Figures { mpps: window.mpps(), cycles: cycles?, distance: window.distance })
    }

    /// Forgets the polling thread's figures.
    fn clear_figures(&self) -> anyhow::Result<()> {
        self.0.appctl(&["dpif-netdev/pmd-stats-clear"]).map(drop)
    }

    /// Cycles a packet that the polling thread spent while it had packets, as it reports them.
    fn cycles_per_packet(&self) -> anyhow::Result<f64> {
        let text = self.0.appctl(&["dpif-netdev/pmd-stats-show"])?;
        let figures = text.lines().filter_map(|line| line.split_once("avg processing cycles per packet:"));
        let figure =
            figures.filter_map(|(_, value)| value.split_whitespace().next()?.parse::<f64>().ok()).next();
        figure.with_context(|| format!("no cycles per packet in:\n{text}"))
    }
}

/// Replaces all flows of the switch at `target` by `flows`, both in the syntax of `ovs-ofctl`.
///
/// # Errors
/// What `ovs-ofctl` says.
pub fn set_flows(target: &str, flows: &[impl AsRef<str>]) -> anyhow::Result<()> {
    ofctl(target, "del-flows", &[])?;
    let file = tempfile::NamedTempFile::new()?;
    let lines: Vec<&str> = flows.iter().map(AsRef::as_ref).collect();
    std::fs::write(&file, lines.join("\n") + "\n")?;
    ofctl(target, "add-flows", &["--bundle", &file.path().display().to_string()]).map(drop)
}
