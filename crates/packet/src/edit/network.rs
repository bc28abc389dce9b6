//! Edits above Ethernet, with the checksums that depend on them.

use super::{Edit, Outcome};
use crate::layout::{Layout, Network};
use crate::parse::nd_option;
use crate::{FlowKey, Header, checksum, ethertype, field, ip_proto};

/// Which checksums a change of some bytes goes into.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Covered {
    /// None.
    Nothing,
    /// The IPv4 header's own.
    Ipv4Header,
    /// The IPv4 header's and, by the pseudo header, the transport's.
    Ipv4Address,
    /// By the pseudo header, the transport's.
    Ipv6Address,
    /// The transport's.
    Transport,
}

/// Applies an edit of a network or transport field.
pub(super) fn apply(edit: Edit, header: &mut Header) -> Outcome {
    let Some(layout) = Layout::of(header.bytes()) else {
        return Outcome::Absent;
    };
    match layout.network {
        Network::Arp => arp(edit, header, layout.l3),
        Network::Ipv4 => ipv4(edit, header, &layout),
        Network::Ipv6 => ipv6(edit, header, &layout),
    }
}

fn arp(edit: Edit, header: &mut Header, l3: usize) -> Outcome {
    let (offset, value): (usize, &[u8]) = match &edit {
        Edit::SetArpOp(op) => (6, &op.to_be_bytes()),
        Edit::SetArpSha(address) => (8, &address.0),
        Edit::SetArpSpa(address) => (14, address),
        Edit::SetArpTha(address) => (18, &address.0),
        Edit::SetArpTpa(address) => (24, address),
        _ => return Outcome::Absent,
    };
    Outcome::of(super::set(header, l3 + offset, value))
}

fn ipv4(edit: Edit, header: &mut Header, layout: &Layout) -> Outcome {
    let at = |offset: usize| header.bytes().get(layout.l3 + offset).copied().unwrap_or(0);
    let l3 = layout.l3;
    match edit {
        Edit::SetIpDscp(dscp) => {
            let bytes = [at(0), (dscp << 2) | (at(1) & 0x03)];
            change(header, layout, l3, &bytes, Covered::Ipv4Header)
        }
        Edit::SetIpEcn(ecn) => {
            let bytes = [at(0), (at(1) & 0xfc) | (ecn & 0x03)];
            change(header, layout, l3, &bytes, Covered::Ipv4Header)
        }
        Edit::SetIpProto(proto) => {
            // The pseudo header has the protocol behind a zero, the header behind the TTL: the same to a sum.
            let bytes = [at(8), proto];
            change(header, layout, l3 + 8, &bytes, Covered::Ipv4Address)
        }
        Edit::DecTtl if at(8) <= 1 => Outcome::Expired,
        Edit::SetTtl(_) | Edit::DecTtl => {
            let ttl = if let Edit::SetTtl(ttl) = edit { ttl } else { at(8) - 1 };
            let bytes = [ttl, at(9)];
            change(header, layout, l3 + 8, &bytes, Covered::Ipv4Header)
        }
        Edit::SetIpv4Src(address) => change(header, layout, l3 + 12, &address, Covered::Ipv4Address),
        Edit::SetIpv4Dst(address) => change(header, layout, l3 + 16, &address, Covered::Ipv4Address),
        other => transport(other, header, layout),
    }
}

fn ipv6(edit: Edit, header: &mut Header, layout: &Layout) -> Outcome {
    let at = |offset: usize| header.bytes().get(layout.l3 + offset).copied().unwrap_or(0);
    let l3 = layout.l3;
    let word = u32::from_be_bytes([at(0), at(1), at(2), at(3)]);
    let first = |word: u32| word.to_be_bytes();
    match edit {
        Edit::SetIpDscp(dscp) => {
            let word = (word & !0x0fc0_0000) | (u32::from(dscp & 0x3f) << 22);
            change(header, layout, l3, &first(word), Covered::Nothing)
        }
        Edit::SetIpEcn(ecn) => {
            let word = (word & !0x0030_0000) | (u32::from(ecn & 0x03) << 20);
            change(header, layout, l3, &first(word), Covered::Nothing)
        }
        Edit::SetIpv6Flabel(label) => {
            let word = (word & !0x000f_ffff) | (label & 0x000f_ffff);
            change(header, layout, l3, &first(word), Covered::Nothing)
        }
        Edit::DecTtl if at(7) <= 1 => Outcome::Expired,
        Edit::SetTtl(_) | Edit::DecTtl => {
            let limit = if let Edit::SetTtl(limit) = edit { limit } else { at(7) - 1 };
            change(header, layout, l3 + 7, &[limit], Covered::Nothing)
        }
        Edit::SetIpProto(proto) => ipv6_proto(header, layout, proto),
        Edit::SetIpv6Src(address) => change(header, layout, l3 + 8, &address, Covered::Ipv6Address),
        Edit::SetIpv6Dst(address) => {
            // With segments left the last destination, in the routing header, is the one that was summed.
            let covered = if layout.routed { Covered::Nothing } else { Covered::Ipv6Address };
            change(header, layout, l3 + 24, &address, covered)
        }
        other => transport(other, header, layout),
    }
}

fn transport(edit: Edit, header: &mut Header, layout: &Layout) -> Outcome {
    let Some(l4) = layout.l4 else {
        return Outcome::Absent;
    };
    let set = |header: &mut Header, proto: u8, offset: usize, value: &[u8]| {
        if proto == layout.proto {
            change(header, layout, l4 + offset, value, Covered::Transport)
        } else {
            Outcome::Absent
        }
    };
    match edit {
        Edit::SetTpSrc(ip_proto::SCTP, port) if layout.proto == ip_proto::SCTP => {
            sctp_port(header, layout, l4, 0, port)
        }
        Edit::SetTpDst(ip_proto::SCTP, port) if layout.proto == ip_proto::SCTP => {
            sctp_port(header, layout, l4, 2, port)
        }
        Edit::SetTpSrc(proto, port) => set(header, proto, 0, &port.to_be_bytes()),
        Edit::SetTpDst(proto, port) => set(header, proto, 2, &port.to_be_bytes()),
        Edit::SetIcmpType(proto, kind) => {
            let code = header.bytes()[l4 + 1];
            set(header, proto, 0, &[kind, code])
        }
        Edit::SetIcmpCode(proto, code) => {
            let kind = header.bytes()[l4];
            set(header, proto, 0, &[kind, code])
        }
        Edit::SetNdTarget(target) => {
            neighbour(header, layout, l4, &[135, 136], |_| Some((8, target.to_vec())))
        }
        Edit::SetNdSll(address) => {
            neighbour(header, layout, l4, &[135], |nd| Some((nd_option(nd, 1)? + 2, address.0.to_vec())))
        }
        Edit::SetNdTll(address) => {
            neighbour(header, layout, l4, &[136], |nd| Some((nd_option(nd, 2)? + 2, address.0.to_vec())))
        }
        _ => Outcome::Absent,
    }
}

/// Sets the last next-header value of IPv6, which the pseudo header has at another place than the packet.
fn ipv6_proto(header: &mut Header, layout: &Layout, proto: u8) -> Outcome {
    let partial = header.partial_checksum();
    let bytes = header.bytes_mut();
    let Some(place) = bytes.get_mut(layout.proto_at) else {
        return Outcome::Absent;
    };
    let old = [0, std::mem::replace(place, proto)];
    if let Some(at) = layout.checksum_at() {
        rewrite_transport(bytes, at, layout.proto, partial, &old, &[0, proto]);
    }
    Outcome::Done
}

/// Sets a port of SCTP. Its CRC-32C covers the payload, most of which is not here; but a CRC is linear, so what the
/// change does to it depends on the changed bytes and on how many follow them.
fn sctp_port(header: &mut Header, layout: &Layout, l4: usize, offset: usize, port: u16) -> Outcome {
    let partial = header.partial_checksum();
    let Some(after) = layout.l4_bytes.checked_sub(offset + 2) else {
        return Outcome::Absent;
    };
    let Some(sctp) = header.bytes_mut().get_mut(l4..l4 + 12) else {
        return Outcome::Absent;
    };
    let new = port.to_be_bytes();
    let change = crc32c::crc32c(&sctp[offset..offset + 2]) ^ crc32c::crc32c(&new);
    sctp[offset..offset + 2].copy_from_slice(&new);
    if !partial {
        let old = u32::from_le_bytes([sctp[8], sctp[9], sctp[10], sctp[11]]);
        let sum = old ^ crc32c::crc32c_combine(change, 0, after);
        sctp[8..12].copy_from_slice(&sum.to_le_bytes());
    }
    Outcome::Done
}

/// Changes a part of a neighbour discovery message of one of these types; `find` says where and to what.
fn neighbour(
    header: &mut Header,
    layout: &Layout,
    l4: usize,
    kinds: &[u8],
    find: impl FnOnce(&[u8]) -> Option<(usize, Vec<u8>)>,
) -> Outcome {
    let message = &header.bytes()[l4..layout.end];
    let known = layout.network == Network::Ipv6
        && layout.proto == ip_proto::ICMPV6
        && message.len() >= 24
        && kinds.contains(&message[0])
        && message[1] == 0;
    match find(message).filter(|_| known) {
        Some((offset, value)) => change(header, layout, l4 + offset, &value, Covered::Transport),
        None => Outcome::Absent,
    }
}

/// Writes `value` at `at` and updates the checksums that cover the place. Places that a checksum covers begin at
/// an even offset of what it sums.
fn change(header: &mut Header, layout: &Layout, at: usize, value: &[u8], covered: Covered) -> Outcome {
    let partial = header.partial_checksum();
    let bytes = header.bytes_mut();
    let Some(place) = bytes.get_mut(at..at + value.len()) else {
        return Outcome::Absent;
    };
    // The longest field is an IPv6 address.
    let mut old = [0; 16];
    let old = &mut old[..value.len()];
    old.copy_from_slice(place);
    place.copy_from_slice(value);
    if matches!(covered, Covered::Ipv4Header | Covered::Ipv4Address) {
        rewrite(bytes, layout.l3 + 10, |sum| checksum::update(sum, old, value));
    }
    let icmp4 = layout.network == Network::Ipv4 && layout.proto == ip_proto::ICMP;
    let pseudo = matches!(covered, Covered::Ipv4Address | Covered::Ipv6Address) && !icmp4;
    if let Some(at) = layout.checksum_at()
        && (pseudo || (covered == Covered::Transport && !partial))
    {
        rewrite_transport(bytes, at, layout.proto, partial, old, value);
    }
    Outcome::Done
}

/// Updates the checksum at `at` of this protocol; a partial one is the sum of the pseudo header alone.
fn rewrite_transport(bytes: &mut [u8], at: usize, proto: u8, partial: bool, old: &[u8], new: &[u8]) {
    let udp = proto == ip_proto::UDP;
    rewrite(bytes, at, |sum| match sum {
        _ if partial => checksum::replace(sum, old, new),
        // No checksum stays none, and a sum of zero is written as all ones (RFC 768).
        0 if udp => 0,
        sum => match checksum::update(sum, old, new) {
            0 if udp => 0xffff,
            new => new,
        },
    });
}

fn rewrite(bytes: &mut [u8], at: usize, new: impl FnOnce(u16) -> u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        let sum = u16::from_be_bytes([place[0], place[1]]);
        place.copy_from_slice(&new(sum).to_be_bytes());
    }
}

/// Applies an edit of a network or transport field to a key.
pub(super) fn apply_to_key(edit: Edit, key: &mut FlowKey) {
    let eth_type = key.eth_type();
    let (ipv4, ipv6) = (eth_type == ethertype::IPV4, eth_type == ethertype::IPV6);
    let proto = key.get(field::IP_PROTO) as u8;
    let halves = |address: [u8; 16]| {
        let number = u128::from_be_bytes(address);
        ((number >> 64) as u64, number as u64)
    };
    let number = |address: [u8; 4]| u64::from(u32::from_be_bytes(address));
    let arp = eth_type == ethertype::ARP;
    let nd = ipv6 && proto == ip_proto::ICMPV6;
    let kind = key.get(field::ICMP_TYPE);
    match edit {
        Edit::SetIpDscp(dscp) if ipv4 || ipv6 => key.set(field::IP_DSCP, dscp.into()),
        Edit::SetIpEcn(ecn) if ipv4 || ipv6 => key.set(field::IP_ECN, ecn.into()),
        Edit::SetIpProto(proto) if ipv4 || ipv6 => key.set(field::IP_PROTO, proto.into()),
        Edit::SetIpv4Src(address) if ipv4 => key.set(field::IPV4_SRC, number(address)),
        Edit::SetIpv4Dst(address) if ipv4 => key.set(field::IPV4_DST, number(address)),
        Edit::SetArpSpa(address) if arp => key.set(field::ARP_SPA, number(address)),
        Edit::SetArpTpa(address) if arp => key.set(field::ARP_TPA, number(address)),
        Edit::SetArpOp(op) if arp => key.set(field::ARP_OP, op.into()),
        Edit::SetArpSha(address) if arp => key.set(field::ARP_SHA, address.to_u64()),
        Edit::SetArpTha(address) if arp => key.set(field::ARP_THA, address.to_u64()),
        Edit::SetIpv6Src(address) if ipv6 => {
            let (high, low) = halves(address);
            key.set(field::IPV6_SRC_HI, high);
            key.set(field::IPV6_SRC_LO, low);
        }
        Edit::SetIpv6Dst(address) if ipv6 => {
            let (high, low) = halves(address);
            key.set(field::IPV6_DST_HI, high);
            key.set(field::IPV6_DST_LO, low);
        }
        Edit::SetIpv6Flabel(label) if ipv6 => key.set(field::IPV6_FLABEL, label.into()),
        Edit::SetTpSrc(of, port) if (ipv4 || ipv6) && of == proto => key.set(field::TP_SRC, port.into()),
        Edit::SetTpDst(of, port) if (ipv4 || ipv6) && of == proto => key.set(field::TP_DST, port.into()),
        Edit::SetIcmpType(of, kind) if (ipv4 || ipv6) && of == proto => {
            key.set(field::ICMP_TYPE, kind.into())
        }
        Edit::SetIcmpCode(of, code) if (ipv4 || ipv6) && of == proto => {
            key.set(field::ICMP_CODE, code.into())
        }
        Edit::SetNdTarget(target) if nd && (kind == 135 || kind == 136) => {
            let (high, low) = halves(target);
            key.set(field::ND_TARGET_HI, high);
            key.set(field::ND_TARGET_LO, low);
        }
        Edit::SetNdSll(address) if nd && kind == 135 => key.set(field::ND_SLL, address.to_u64()),
        Edit::SetNdTll(address) if nd && kind == 136 => key.set(field::ND_TLL, address.to_u64()),
        // TTLs are not in the key; or the packet does not have the field.
        _ => {}
    }
}
