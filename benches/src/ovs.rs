//! Open vSwitch with its DPDK data path: the peer of the switch.

use std::path::PathBuf;

use anyhow::Context as _;
use xtask::lab::ovs::{Datapath, Ovs, ofctl};

use crate::SERVER_CORE;

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
    pub fn set_flows(&self, flows: &[&str]) -> anyhow::Result<()> {
        set_flows(&self.0.target("br0"), flows)
    }

    /// Forgets the polling thread's figures.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn clear_figures(&self) -> anyhow::Result<()> {
        self.0.appctl(&["dpif-netdev/pmd-stats-clear"]).map(drop)
    }

    /// Cycles a packet that the polling thread spent while it had packets, as it reports them.
    ///
    /// # Errors
    /// When the daemon does not answer or had no packets.
    pub fn cycles_per_packet(&self) -> anyhow::Result<f64> {
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
pub fn set_flows(target: &str, flows: &[&str]) -> anyhow::Result<()> {
    ofctl(target, "del-flows", &[])?;
    for flow in flows {
        ofctl(target, "add-flow", &[flow])?;
    }
    Ok(())
}
