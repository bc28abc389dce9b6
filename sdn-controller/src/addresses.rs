//! The Ethernet addresses a switch has shown, and limits on how fast and how many.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ofp::{MacAddr, PortNo};

/// Seconds after which the source rule goes and the address is shown again, if it still sends.
pub const SOURCE_TIMEOUT_S: u16 = 150;
/// Seconds after which the destination rule goes. Longer than twice the source's, so that traffic to a host that still
/// sends is never flooded again.
pub const DESTINATION_TIMEOUT_S: u16 = 400;
/// Addresses of one port at most; one host cannot fill the table.
pub const ADDRESSES_PER_PORT_MAX: usize = 1024;
/// Addresses of one switch at most.
pub const ADDRESSES_MAX: usize = 65_536;
/// An address is not learned again at its port within this time: its packets on the way do not count.
const SETTLE: Duration = Duration::from_secs(1);
/// Packet-ins a second that are looked at, for each port.
const RATE_PER_PORT: f64 = 1000.0;
/// Packet-ins in a burst that are looked at, for each port.
const BURST_PER_PORT: f64 = 2000.0;

/// What to do about a packet from an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lesson {
    /// New, or due again: write its rules.
    Learn,
    /// It was at this other port.
    Moved(PortNo),
    /// Nothing.
    Known,
    /// Its port sends too many, or has too many addresses.
    Refused,
}

/// The addresses of one switch.
#[derive(Debug, Default)]
pub struct Addresses {
    places: HashMap<(u16, MacAddr), Place>,
    ports: HashMap<PortNo, PortUse>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    port: PortNo,
    learned: Instant,
}

#[derive(Debug)]
struct PortUse {
    addresses: usize,
    tokens: f64,
    filled: Instant,
}

impl Addresses {
    /// Addresses known.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// A packet of VLAN `vlan` from `mac` came in by `port`.
    pub fn seen(&mut self, now: Instant, vlan: u16, mac: MacAddr, port: PortNo) -> Lesson {
        if !self.take_token(now, port) {
            return Lesson::Refused;
        }
        let earlier = self.places.get(&(vlan, mac)).copied();
        match earlier {
            Some(place) if place.port == port && now.saturating_duration_since(place.learned) < SETTLE => {
                return Lesson::Known;
            }
            Some(place) if place.port == port => {}
            _ if self.is_full(port) => return Lesson::Refused,
            _ => {}
        }
        self.insert(vlan, mac, port, now);
        match earlier {
            Some(place) if place.port != port => Lesson::Moved(place.port),
            _ => Lesson::Learn,
        }
    }

    /// Remembers an address without a packet: it was read back from the switch.
    pub fn insert(&mut self, vlan: u16, mac: MacAddr, port: PortNo, learned: Instant) {
        self.forget(vlan, mac);
        self.places.insert((vlan, mac), Place { port, learned });
        self.port(port, learned).addresses += 1;
    }

    /// Where an address is.
    pub fn port_of(&self, vlan: u16, mac: MacAddr) -> Option<PortNo> {
        self.places.get(&(vlan, mac)).map(|place| place.port)
    }

    /// The addresses at one port of a VLAN.
    pub fn at(&self, vlan: u16, port: PortNo) -> Vec<MacAddr> {
        let here = |((of, mac), place): (&(u16, MacAddr), &Place)| {
            (*of == vlan && place.port == port).then_some(*mac)
        };
        self.places.iter().filter_map(here).collect()
    }

    /// Every address with its VLAN, its port, and how long ago it was learned.
    pub fn list(&self, now: Instant) -> Vec<(u16, MacAddr, PortNo, Duration)> {
        let age = |place: &Place| now.saturating_duration_since(place.learned);
        self.places.iter().map(|((vlan, mac), place)| (*vlan, *mac, place.port, age(place))).collect()
    }

    /// Forgets one address.
    pub fn forget(&mut self, vlan: u16, mac: MacAddr) {
        if let Some(place) = self.places.remove(&(vlan, mac)) {
            self.released(place.port);
        }
    }

    /// Forgets every address that `keep` does not want.
    pub fn retain(&mut self, mut keep: impl FnMut(u16, PortNo) -> bool) {
        let gone: Vec<_> = self
            .places
            .iter()
            .filter(|((vlan, _), place)| !keep(*vlan, place.port))
            .map(|(&(vlan, mac), _)| (vlan, mac))
            .collect();
        gone.into_iter().for_each(|(vlan, mac)| self.forget(vlan, mac));
    }

    /// Forgets addresses whose rules have timed out, and ports that nothing is known of any more.
    pub fn expire(&mut self, now: Instant) {
        let lifetime = Duration::from_secs(DESTINATION_TIMEOUT_S.into());
        let old = |place: &Place| now.saturating_duration_since(place.learned) >= lifetime;
        let gone: Vec<_> =
            self.places.iter().filter(|(_, place)| old(place)).map(|(&(vlan, mac), _)| (vlan, mac)).collect();
        gone.into_iter().for_each(|(vlan, mac)| self.forget(vlan, mac));
        self.ports
            .retain(|_, port| port.addresses > 0 || now.saturating_duration_since(port.filled) < lifetime);
    }

    fn is_full(&self, port: PortNo) -> bool {
        let on_port = self.ports.get(&port).map_or(0, |port| port.addresses);
        on_port >= ADDRESSES_PER_PORT_MAX || self.places.len() >= ADDRESSES_MAX
    }

    fn port(&mut self, port: PortNo, now: Instant) -> &mut PortUse {
        self.ports.entry(port).or_insert(PortUse { addresses: 0, tokens: BURST_PER_PORT, filled: now })
    }

    fn released(&mut self, port: PortNo) {
        if let Some(port) = self.ports.get_mut(&port) {
            port.addresses -= 1;
        }
    }

    fn take_token(&mut self, now: Instant, port: PortNo) -> bool {
        let port = self.port(port, now);
        let elapsed = now.saturating_duration_since(port.filled).as_secs_f64();
        port.tokens = (port.tokens + elapsed * RATE_PER_PORT).min(BURST_PER_PORT);
        port.filled = now;
        let enough = port.tokens >= 1.0;
        if enough {
            port.tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: u32) -> MacAddr {
        let [a, b, c, d] = number.to_be_bytes();
        MacAddr([2, 0, a, b, c, d])
    }

    const P1: PortNo = PortNo(1);
    const P2: PortNo = PortNo(2);

    #[test]
    fn learned_once_moved_and_learned_again() {
        let (start, mut addresses) = (Instant::now(), Addresses::default());
        assert_eq!(addresses.seen(start, 10, mac(1), P1), Lesson::Learn);
        assert_eq!(addresses.seen(start, 10, mac(1), P1), Lesson::Known);
        assert_eq!(addresses.seen(start, 20, mac(1), P2), Lesson::Learn, "each VLAN has its own addresses");
        assert_eq!(addresses.seen(start, 10, mac(1), P2), Lesson::Moved(P1));
        assert_eq!(addresses.port_of(10, mac(1)), Some(P2));
        let later = start + Duration::from_secs(SOURCE_TIMEOUT_S.into());
        assert_eq!(addresses.seen(later, 10, mac(1), P2), Lesson::Learn);
        addresses.expire(start + Duration::from_secs(DESTINATION_TIMEOUT_S.into()));
        assert_eq!(addresses.len(), 1, "the one that was learned again is still known");
    }

    #[test]
    fn one_port_cannot_fill_the_table() {
        let (start, mut addresses) = (Instant::now(), Addresses::default());
        for number in 0..ADDRESSES_PER_PORT_MAX as u32 {
            assert_eq!(addresses.seen(start, 10, mac(number), P1), Lesson::Learn);
        }
        assert_eq!(addresses.seen(start, 10, mac(9999), P1), Lesson::Refused);
        assert_eq!(addresses.seen(start, 10, mac(9999), P2), Lesson::Learn);
        addresses.retain(|_, port| port != P1);
        assert_eq!(addresses.len(), 1);
        assert_eq!(addresses.seen(start, 10, mac(5), P1), Lesson::Learn);
    }

    #[test]
    fn one_port_cannot_take_all_the_time() {
        let (start, mut addresses) = (Instant::now(), Addresses::default());
        let looked_at = |addresses: &mut Addresses, now| {
            (0..10_000).filter(|_| addresses.seen(now, 10, mac(1), P1) != Lesson::Refused).count()
        };
        assert_eq!(looked_at(&mut addresses, start), 2000);
        assert_eq!(looked_at(&mut addresses, start + Duration::from_millis(500)), 500);
        assert_eq!(addresses.seen(start, 10, mac(1), P2), Lesson::Moved(P1));
    }
}
