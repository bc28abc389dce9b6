//! Probes: frames that the controller has a switch send, and that show where its port leads when they come back.
//!
//! A probe is LLDP (IEEE 802.1AB) with a TLV of our own, which says by which port it left, of which VLAN and when, and an
//! HMAC over that: hosts see such frames and could make some. The key is random and of this process. Ports with guests
//! send the same contents in a broadcast frame, because bridges, which may close a loop there, keep LLDP to themselves.

use std::fmt;
use std::time::{Duration, Instant};

use ofp::{MacAddr, PortNo};
use ring::hmac;
use ring::rand::SystemRandom;

use crate::model::Dpid;

/// Of LLDP.
pub const LLDP_ETHERTYPE: u16 = 0x88cc;
/// Of probes that bridges pass on: that of the Broadcast Domain Discovery Protocol, which others use for the same.
pub const BROADCAST_ETHERTYPE: u16 = 0x8942;
/// "Nearest bridge" (IEEE 802.1AB, table 7-1).
pub const NEAREST_BRIDGE: MacAddr = MacAddr([0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e]);
/// Bytes of a frame that have to be seen for the probe in it.
pub const PROBE_BYTES: u16 = 128;

/// How old a probe may be: longer than any link delays, too short to be of use to who recorded it.
const AGE_MAX: Duration = Duration::from_secs(3);
/// An identifier of our own: the bit for "locally administered" is set.
const OUI: [u8; 3] = [0x02, 0x51, 0xce];
/// Bytes of the HMAC-SHA256 that are sent.
const TAG_BYTES: usize = 16;
/// Switch, port, VLAN, milliseconds.
const BODY_BYTES: usize = 8 + 4 + 2 + 8;

/// Where a probe left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// The switch.
    pub dpid: Dpid,
    /// Its port.
    pub port: PortNo,
    /// The VLAN whose frames leave there without a tag, as the probe does; 0: none.
    pub vlan: u16,
    /// Whether bridges pass it on.
    pub broadcast: bool,
}

/// Makes probes and knows them again.
pub struct Probes {
    key: hmac::Key,
    began: Instant,
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes").finish_non_exhaustive()
    }
}

fn tlv(frame: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    // Seven bits of type, nine of length (8.4).
    frame.extend_from_slice(&(u16::from(kind) << 9 | length as u16).to_be_bytes());
    parts.iter().for_each(|part| frame.extend_from_slice(part));
}

impl Probes {
    /// With a key that nobody else has; `None` when the host has no randomness.
    pub fn new(now: Instant) -> Option<Probes> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok()?;
        Some(Probes { key, began: now })
    }

    /// The frame of a probe that says how long it is worth something.
    pub fn frame(&self, now: Instant, probe: Probe, source: MacAddr, worth: Duration) -> Vec<u8> {
        let (destination, ether_type) = match probe.broadcast {
            true => (MacAddr([0xff; 6]), BROADCAST_ETHERTYPE),
            false => (NEAREST_BRIDGE, LLDP_ETHERTYPE),
        };
        let mut frame = Vec::with_capacity(usize::from(PROBE_BYTES));
        frame.extend_from_slice(&destination.0);
        frame.extend_from_slice(&source.0);
        frame.extend_from_slice(&ether_type.to_be_bytes());
        let seconds = u16::try_from(worth.as_secs()).unwrap_or(u16::MAX);
        // Chassis and port in names of our own (subtype 7), and how long that holds.
        tlv(&mut frame, 1, &[&[7], format!("{:016x}", probe.dpid.0).as_bytes()]);
        tlv(&mut frame, 2, &[&[7], probe.port.0.to_string().as_bytes()]);
        tlv(&mut frame, 3, &[&seconds.to_be_bytes()]);
        let millis = now.saturating_duration_since(self.began).as_millis() as u64;
        let mut body = [0; BODY_BYTES];
        body[..8].copy_from_slice(&probe.dpid.0.to_be_bytes());
        body[8..12].copy_from_slice(&probe.port.0.to_be_bytes());
        body[12..14].copy_from_slice(&probe.vlan.to_be_bytes());
        body[14..].copy_from_slice(&millis.to_be_bytes());
        let tag = hmac::sign(&self.key, &signed(&body, probe.broadcast));
        tlv(&mut frame, 127, &[&OUI, &[1], &body, &tag.as_ref()[..TAG_BYTES]]);
        tlv(&mut frame, 0, &[]);
        frame.resize(frame.len().max(60), 0);
        frame
    }

    /// The probe in a frame, if it is one of ours and young, and the VLAN id of the frame's tag; 0: it has none.
    pub fn read(&self, now: Instant, frame: &[u8]) -> Option<(Probe, u16)> {
        let (mut rest, mut tag) = (frame.get(12..)?, 0);
        if let Some(tagged) = rest.strip_prefix(&[0x81, 0x00]) {
            let (control, behind) = tagged.split_first_chunk()?;
            (rest, tag) = (behind, u16::from_be_bytes(*control) & 0xfff);
        }
        let broadcast = match u16::from_be_bytes(*rest.first_chunk()?) {
            LLDP_ETHERTYPE => false,
            BROADCAST_ETHERTYPE => true,
            _ => return None,
        };
        rest = &rest[2..];
        loop {
            let (header, behind) = rest.split_first_chunk::<2>()?;
            let header = u16::from_be_bytes(*header);
            let value = behind.get(..usize::from(header & 0x1ff))?;
            rest = &behind[value.len()..];
            match header >> 9 {
                0 => return None,
                127 if value.starts_with(&OUI) => {
                    return self.check(now, value.get(4..)?, broadcast).map(|probe| (probe, tag));
                }
                _ => {}
            }
        }
    }

    fn check(&self, now: Instant, value: &[u8], broadcast: bool) -> Option<Probe> {
        let (body, tag) = value.split_first_chunk::<BODY_BYTES>()?;
        let expected = hmac::sign(&self.key, &signed(body, broadcast));
        // Digests of equal length, compared whole: where they differ takes no part in the time.
        let same = expected.as_ref()[..TAG_BYTES].iter().zip(tag).fold(0, |or, (a, b)| or | (a ^ b)) == 0;
        if !same || tag.len() != TAG_BYTES {
            return None;
        }
        let sent = self.began + Duration::from_millis(u64::from_be_bytes(*body[14..].first_chunk()?));
        (now.saturating_duration_since(sent) <= AGE_MAX).then_some(Probe {
            dpid: Dpid(u64::from_be_bytes(*body.first_chunk()?)),
            port: PortNo(u32::from_be_bytes(*body[8..].first_chunk()?)),
            vlan: u16::from_be_bytes(*body[12..].first_chunk()?),
            broadcast,
        })
    }
}

fn signed(body: &[u8; BODY_BYTES], broadcast: bool) -> [u8; BODY_BYTES + 1] {
    let mut all = [u8::from(broadcast); BODY_BYTES + 1];
    all[..BODY_BYTES].copy_from_slice(body);
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_probe_is_known_again_and_no_other() {
        let now = Instant::now();
        let (probes, others) = (Probes::new(now).unwrap(), Probes::new(now).unwrap());
        let (source, worth) = (MacAddr([2, 0, 0, 0, 0, 1]), Duration::from_secs(15));
        for broadcast in [false, true] {
            let probe = Probe { dpid: Dpid(7), port: PortNo(3), vlan: 10, broadcast };
            let frame = probes.frame(now, probe, source, worth);
            assert!(frame.len() <= usize::from(PROBE_BYTES));
            assert_eq!(probes.read(now, &frame), Some((probe, 0)));
            let tagged = [&frame[..12], &[0x81, 0, 0xe0, 10], &frame[12..]].concat();
            assert_eq!(probes.read(now, &tagged), Some((probe, 10)));
            assert_eq!(others.read(now, &frame), None, "another key");
            assert_eq!(probes.read(now + Duration::from_secs(10), &frame), None, "an old one sent again");
            for cut in 0..frame.len() - 2 {
                let whole = probes.read(now, &frame[..cut]);
                assert!(whole.is_none() || whole == Some((probe, 0)));
            }
            // One kind cannot be made into the other, nor any bit of what is said be another.
            let mut other = frame.clone();
            let kind = if broadcast { LLDP_ETHERTYPE } else { BROADCAST_ETHERTYPE };
            other[12..14].copy_from_slice(&kind.to_be_bytes());
            assert_eq!(probes.read(now, &other), None);
            let body = frame.windows(3).position(|window| window == OUI).unwrap() + 4;
            for byte in body..body + BODY_BYTES + TAG_BYTES {
                let mut other = frame.clone();
                other[byte] ^= 1;
                assert_eq!(probes.read(now, &other), None, "byte {byte}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(frame in proptest::collection::vec(any::<u8>(), 0..200), lldp: bool) {
            let now = Instant::now();
            let mut frame = frame;
            if lldp && frame.len() > 14 {
                frame[12..14].copy_from_slice(&LLDP_ETHERTYPE.to_be_bytes());
            }
            prop_assert_eq!(Probes::new(now).unwrap().read(now, &frame), None);
        }
    }
}
