//! Two switches side by side, each with a client of its own, of which one runs at a time.
//!
//! What a machine that others use too does to memory and caches changes from one second to the next, often by more than the
//! switches differ. So their windows are short and take turns, and neither is started again in between.

use std::thread;
use std::time::Duration;

use anyhow::Context as _;

use crate::ovs::OvsDpdk;
use crate::pairs::Pairs;
use crate::sluice::Sluice;
use crate::testpmd::Testpmd;

/// Until caches are warm again, after the other's turn.
const SETTLE: Duration = Duration::from_millis(50);

/// The peer and its client, which stand still except in their turns.
pub struct Peer {
    switch: OvsDpdk,
    client: Testpmd,
}

impl Peer {
    /// Loads `switch` by `client`, until it is warm.
    ///
    /// # Errors
    /// When one of them does not answer.
    pub fn start(switch: OvsDpdk, mut client: Testpmd) -> anyhow::Result<Peer> {
        client.load()?;
        let peer = Peer { switch, client };
        peer.pause()?;
        Ok(peer)
    }

    fn pause(&self) -> anyhow::Result<()> {
        self.client.pause()?;
        self.switch.pause()
    }

    fn resume(&self) -> anyhow::Result<()> {
        self.switch.resume()?;
        self.client.resume()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // What stands still does not end when it is told to.
        let _ = self.resume();
    }
}

/// Measures `count` pairs of windows of `seconds` each.
///
/// # Errors
/// When a switch or a client does not answer.
pub fn take(
    pairs: &mut Pairs,
    mut peer: Option<Peer>,
    (ours, client): (&Sluice, &mut Testpmd),
    count: u32,
    seconds: f64,
) -> anyhow::Result<()> {
    client.load()?;
    ours.wait_until_cached()?;
    client.pause()?;
    for _ in 0..count {
        let theirs = match &mut peer {
            Some(peer) => {
                peer.resume()?;
                thread::sleep(SETTLE);
                let figures = peer.switch.measure(&mut peer.client, seconds).context("Open vSwitch")?;
                peer.pause()?;
                Some(figures)
            }
            None => None,
        };
        // Ours sleeps by itself while its client does.
        client.resume()?;
        thread::sleep(SETTLE);
        let figures = ours.measure(client, seconds).context("sluice switch")?;
        client.pause()?;
        pairs.push(theirs, figures);
    }
    client.resume()
}
