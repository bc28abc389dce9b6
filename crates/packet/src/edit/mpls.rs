//! Edits of the MPLS label stack (RFC 3032), and the TTLs that are copied between it and what it carries.
//!
//! Labels stand behind the VLAN tags, where the tables of every other switch and the kernel look for them.

use super::{Edit, Outcome};
use crate::parse::{MplsPayload, mpls_payload, vlan_stack};
use crate::{FlowKey, Header, checksum, ethertype, field};

/// Bytes of one entry: label (20 bits), traffic class (3), bottom of stack (1), TTL (8).
const ENTRY_BYTES: usize = 4;
const BOTTOM: u32 = 1 << 8;

fn is_mpls(eth_type: u16) -> bool {
    matches!(eth_type, ethertype::MPLS | ethertype::MPLS_MULTICAST)
}

/// Where the EtherType's payload begins, and the EtherType.
fn payload(frame: &[u8]) -> Option<(usize, u16)> {
    let (&[.., t0, t1], rest) = frame.split_first_chunk::<14>()?;
    let mut key = FlowKey::ZERO;
    let payload = vlan_stack(&mut key, u16::from_be_bytes([t0, t1]), rest);
    Some((frame.len() - payload.len(), key.eth_type())).filter(|(_, eth_type)| *eth_type != ethertype::NONE)
}

/// Where the outer entry is, and the entry.
fn outer(frame: &[u8]) -> Option<(usize, u32)> {
    let (at, eth_type) = payload(frame)?;
    is_mpls(eth_type).then_some(())?;
    entry(frame, at).map(|entry| (at, entry))
}

fn entry(frame: &[u8], at: usize) -> Option<u32> {
    frame.get(at..)?.first_chunk::<ENTRY_BYTES>().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Where the TTL of the header below the entry at `at` is, and whether that header is IPv4.
fn inner_ttl(frame: &[u8], at: usize, outer: u32) -> Option<(usize, bool)> {
    let below = at + ENTRY_BYTES;
    let (place, ipv4) = if outer & BOTTOM == 0 {
        (below + 3, false)
    } else {
        match mpls_payload(frame.get(below..)?) {
            MplsPayload::Ipv4 => (below + 8, true),
            MplsPayload::Ipv6 => (below + 7, false),
            MplsPayload::Arp | MplsPayload::Unknown => return None,
        }
    };
    frame.get(place).map(|_| (place, ipv4))
}

/// Sets the EtherType behind the VLAN tags.
fn set_eth_type(header: &mut Header, eth_type: u16) -> Outcome {
    match payload(header.bytes()) {
        Some((at, _)) => Outcome::of(super::set(header, at - 2, &eth_type.to_be_bytes())),
        None => Outcome::Absent,
    }
}

fn push(header: &mut Header, eth_type: u16) -> Outcome {
    let Some((at, below)) = payload(header.bytes()) else {
        return Outcome::Absent;
    };
    // OpenFlow 1.3.5, 5.12.1: fields come from the outer entry, else the TTL from IP and the rest is zero.
    let new = match entry(header.bytes(), at).filter(|_| is_mpls(below)) {
        Some(outer) => outer & !BOTTOM,
        None => BOTTOM | u32::from(ip_ttl(header.bytes(), at, below).unwrap_or(0)),
    };
    if !header.insert(at, ENTRY_BYTES) {
        return Outcome::NoRoom;
    }
    let bytes = header.bytes_mut();
    bytes[at - 2..at].copy_from_slice(&eth_type.to_be_bytes());
    bytes[at..at + ENTRY_BYTES].copy_from_slice(&new.to_be_bytes());
    Outcome::Done
}

fn ip_ttl(frame: &[u8], at: usize, eth_type: u16) -> Option<u8> {
    match eth_type {
        ethertype::IPV4 => frame.get(at + 8).copied(),
        ethertype::IPV6 => frame.get(at + 7).copied(),
        _ => None,
    }
}

fn pop(header: &mut Header, eth_type: u16) -> Outcome {
    let Some((at, _)) = outer(header.bytes()) else {
        return Outcome::Absent;
    };
    header.bytes_mut()[at - 2..at].copy_from_slice(&eth_type.to_be_bytes());
    Outcome::of(header.remove(at, ENTRY_BYTES))
}

fn change_outer(header: &mut Header, change: impl FnOnce(u32) -> u32) -> Outcome {
    match outer(header.bytes()) {
        Some((at, entry)) => Outcome::of(super::set(header, at, &change(entry).to_be_bytes())),
        None => Outcome::Absent,
    }
}

fn copy_ttl_out(header: &mut Header) -> Outcome {
    let bytes = header.bytes();
    let found = outer(bytes).and_then(|(at, entry)| Some((entry, inner_ttl(bytes, at, entry)?)));
    match found {
        Some((entry, (place, _))) => {
            let ttl = u32::from(bytes[place]);
            change_outer(header, |_| (entry & !0xff) | ttl)
        }
        None => Outcome::Absent,
    }
}

fn copy_ttl_in(header: &mut Header) -> Outcome {
    let bytes = header.bytes_mut();
    let found = outer(bytes).and_then(|(at, entry)| Some((entry, inner_ttl(bytes, at, entry)?)));
    let Some((entry, (place, ipv4))) = found else {
        return Outcome::Absent;
    };
    let old = bytes[place];
    bytes[place] = entry as u8;
    if ipv4 && let Some(&[ttl, proto, s0, s1]) = bytes.get(place..place + 4) {
        let sum = checksum::update(u16::from_be_bytes([s0, s1]), &[old, proto], &[ttl, proto]);
        bytes[place + 2..place + 4].copy_from_slice(&sum.to_be_bytes());
    }
    Outcome::Done
}

/// Applies an edit of the label stack or of the EtherType; `None`: it is another one.
pub(super) fn apply(edit: Edit, header: &mut Header) -> Option<Outcome> {
    Some(match edit {
        Edit::PushMpls(eth_type) => push(header, eth_type),
        Edit::PopMpls(eth_type) => pop(header, eth_type),
        Edit::SetMplsLabel(label) => change_outer(header, |entry| (entry & 0xfff) | (label << 12)),
        Edit::SetMplsTc(tc) => change_outer(header, |entry| (entry & !0xe00) | (u32::from(tc & 7) << 9)),
        Edit::SetMplsBos(bottom) => {
            change_outer(header, |entry| (entry & !BOTTOM) | (u32::from(bottom) * BOTTOM))
        }
        Edit::SetMplsTtl(ttl) => change_outer(header, |entry| (entry & !0xff) | u32::from(ttl)),
        Edit::DecMplsTtl => match outer(header.bytes()) {
            Some((_, entry)) if entry & 0xff <= 1 => Outcome::Expired,
            _ => change_outer(header, |entry| entry - 1),
        },
        Edit::CopyTtlOut => copy_ttl_out(header),
        Edit::CopyTtlIn => copy_ttl_in(header),
        Edit::SetEthType(eth_type) => set_eth_type(header, eth_type),
        _ => return None,
    })
}

/// The EtherType of what [`field::MPLS_PAYLOAD`] says is below the stack; 0 = not known.
fn payload_type(key: &FlowKey) -> u16 {
    match key.get(field::MPLS_PAYLOAD) {
        1 => ethertype::IPV4,
        2 => ethertype::IPV6,
        3 => ethertype::ARP,
        _ => 0,
    }
}

/// Clears every field above the EtherType.
fn clear_network(key: &mut FlowKey) {
    for place in [
        field::IP_PROTO,
        field::IP_DSCP,
        field::IP_ECN,
        field::IPV6_EXTHDR,
        field::IPV4_SRC,
        field::IPV4_DST,
        field::TP_SRC,
        field::TP_DST,
        field::MPLS_1,
        field::MPLS_2,
        field::MPLS_PAYLOAD,
        field::IPV6_SRC_HI,
        field::IPV6_SRC_LO,
        field::IPV6_DST_HI,
        field::IPV6_DST_LO,
        field::ARP_SHA,
        field::ARP_THA,
        field::ND_TARGET_HI,
        field::ND_TARGET_LO,
        field::IPV6_FLABEL,
    ] {
        key.set(place, 0);
    }
}

/// Applies such an edit to the key; `false`: it is another one.
pub(super) fn apply_to_key(edit: Edit, key: &mut FlowKey) -> bool {
    let below = key.eth_type();
    let mpls = is_mpls(below);
    match edit {
        Edit::PushMpls(eth_type) if below != ethertype::NONE => {
            let outer = key.get(field::MPLS_1);
            key.set(field::ETH_TYPE, eth_type.into());
            if mpls {
                if outer & 1 == 0 {
                    // Three entries: what is below them is out of the key's sight.
                    clear_network(key);
                }
                key.set(field::MPLS_2, outer);
                key.set(field::MPLS_1, outer & !1);
            } else {
                let kind = match below {
                    ethertype::IPV4 => 1,
                    ethertype::IPV6 => 2,
                    ethertype::ARP => 3,
                    _ => 0,
                };
                key.set(field::MPLS_PAYLOAD, kind);
                key.set(field::MPLS_1, 1);
            }
        }
        Edit::PopMpls(eth_type) if mpls => {
            let (outer, second) = (key.get(field::MPLS_1), key.get(field::MPLS_2));
            key.set(field::ETH_TYPE, eth_type.into());
            if outer & 1 == 0 && is_mpls(eth_type) {
                key.set(field::MPLS_1, second);
                key.set(field::MPLS_2, 0);
            } else if outer & 1 != 0 && payload_type(key) == eth_type {
                for place in [field::MPLS_1, field::MPLS_2, field::MPLS_PAYLOAD] {
                    key.set(place, 0);
                }
            } else {
                clear_network(key);
            }
        }
        Edit::SetMplsLabel(label) if mpls => key.set(field::MPLS_LABEL, label.into()),
        Edit::SetMplsTc(tc) if mpls => key.set(field::MPLS_TC, tc.into()),
        Edit::SetMplsBos(bottom) if mpls => {
            let outer = key.get(field::MPLS_1);
            if outer & 1 != u64::from(bottom) {
                // The bytes below are something else now.
                clear_network(key);
                key.set(field::MPLS_1, outer ^ 1);
            }
        }
        Edit::SetEthType(eth_type) if below != ethertype::NONE && below != eth_type => {
            clear_network(key);
            key.set(field::ETH_TYPE, eth_type.into());
        }
        // TTLs are not in the key; or the packet does not have the field.
        Edit::PushMpls(_)
        | Edit::PopMpls(_)
        | Edit::SetMplsLabel(_)
        | Edit::SetMplsTc(_)
        | Edit::SetMplsBos(_)
        | Edit::SetMplsTtl(_)
        | Edit::DecMplsTtl
        | Edit::CopyTtlOut
        | Edit::CopyTtlIn
        | Edit::SetEthType(_) => {}
        _ => return false,
    }
    true
}
