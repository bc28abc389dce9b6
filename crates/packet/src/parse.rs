//! Bytes to [`FlowKey`].

use crate::layout::transport_len;
use crate::{FlowKey, ethertype, field};

/// How much of a frame has to be looked at: what no rule matches on need not be parsed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Depth {
    /// Ingress port.
    Port,
    /// Ingress port, addresses, VLAN tags, EtherType.
    Ethernet,
    /// Everything.
    #[default]
    All,
}

/// The key of a frame that came in on `in_port`. Total: any bytes give a key. Fields that the frame does not
/// have, or that lie beyond the end of `frame`, are zero.
#[inline]
pub fn parse(frame: &[u8], in_port: u32) -> FlowKey {
    parse_to(frame, in_port, Depth::All)
}

/// [`parse`], but only down to `depth`.
#[inline]
pub fn parse_to(frame: &[u8], in_port: u32, depth: Depth) -> FlowKey {
    let mut key = FlowKey::ZERO;
    parse_into(&mut key, frame, in_port, depth);
    key
}

/// [`parse_to`], with the key put where it is wanted. A key that is moved right after it was made, many words at once, has to
/// wait until each of its words has arrived in the cache.
#[inline]
pub fn parse_into(key: &mut FlowKey, frame: &[u8], in_port: u32, depth: Depth) {
    *key = FlowKey::ZERO.with(field::IN_PORT, u64::from(in_port));
    key.set(field::IN_PHY_PORT, u64::from(in_port));
    if depth == Depth::Port {
        return;
    }
    let Some((addresses, rest)) = frame.split_first_chunk::<14>() else {
        return;
    };
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *addresses;
    key.set(field::ETH_DST, u64::from_be_bytes([0, 0, d0, d1, d2, d3, d4, d5]));
    key.set(field::ETH_SRC, u64::from_be_bytes([0, 0, s0, s1, s2, s3, s4, s5]));
    let eth_type = u16::from_be_bytes([t0, t1]);
    if eth_type == ethertype::IPV4 {
        // Nearly all frames.
        key.set(field::ETH_TYPE, u64::from(eth_type));
        if depth == Depth::All {
            ipv4(key, rest);
        }
        return;
    }
    let payload = vlan_stack(key, eth_type, rest);
    if depth == Depth::All {
        network(key, payload);
    }
}

/// Takes up to three VLAN tags off and leaves the EtherType in the key; returns what follows it.
#[inline]
pub(crate) fn vlan_stack<'a>(key: &mut FlowKey, mut eth_type: u16, mut rest: &'a [u8]) -> &'a [u8] {
    for tag in [field::VLAN_TCI, field::VLAN_TCI_2, field::VLAN_TCI_3] {
        if eth_type != ethertype::VLAN && eth_type != ethertype::SERVICE_VLAN {
            break;
        }
        let Some((&[c0, c1, t0, t1], after)) = rest.split_first_chunk::<4>() else {
            break;
        };
        let tci = u16::from_be_bytes([c0, c1]);
        key.set(tag, u64::from((tci & 0xe000) | 0x1000 | (tci & 0xfff)));
        (eth_type, rest) = (u16::from_be_bytes([t0, t1]), after);
    }
    if eth_type < 0x0600 {
        (eth_type, rest) = snap(rest);
    }
    key.set(field::ETH_TYPE, u64::from(eth_type));
    rest
}

/// The type behind an 802.2 LLC/SNAP header with OUI 0 (RFC 1042), or [`ethertype::NONE`].
fn snap(rest: &[u8]) -> (u16, &[u8]) {
    match rest.split_first_chunk::<8>() {
        Some((&[0xaa, 0xaa, 0x03, 0, 0, 0, t0, t1], after)) if t0 >= 0x06 => {
            (u16::from_be_bytes([t0, t1]), after)
        }
        _ => (ethertype::NONE, &[]),
    }
}

fn network(key: &mut FlowKey, payload: &[u8]) {
    match key.eth_type() {
        ethertype::IPV4 => ipv4_behind(key, payload),
        ethertype::IPV6 => ipv6(key, payload),
        ethertype::ARP | ethertype::RARP => arp(key, payload),
        ethertype::MPLS | ethertype::MPLS_MULTICAST => mpls(key, payload),
        _ => {}
    }
}

#[inline]
fn be16(bytes: &[u8], at: usize) -> u64 {
    match bytes.get(at..at + 2) {
        Some(&[a, b]) => u64::from(u16::from_be_bytes([a, b])),
        _ => 0,
    }
}

fn be32(bytes: &[u8; 4]) -> u64 {
    u64::from(u32::from_be_bytes(*bytes))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}

fn mac(bytes: &[u8], at: usize) -> u64 {
    match bytes.get(at..at + 6) {
        Some(&[a, b, c, d, e, f]) => u64::from_be_bytes([0, 0, a, b, c, d, e, f]),
        _ => 0,
    }
}

#[inline(always)]
fn ipv4(key: &mut FlowKey, bytes: &[u8]) {
    let Some(header) = bytes.first_chunk::<20>() else {
        return;
    };
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // The same sanity every router applies (RFC 1812, 5.2.2): a frame that fails has no IPv4 fields.
    if header[0] >> 4 != 4 || header_len < 20 || total_len < header_len || bytes.len() < header_len {
        return;
    }
    key.set(field::IP_DSCP, u64::from(header[1] >> 2));
    key.set(field::IP_ECN, u64::from(header[1]));
    key.set(field::IP_PROTO, u64::from(header[9]));
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    key.set(field::IPV4_SRC, be32(&[s0, s1, s2, s3]));
    key.set(field::IPV4_DST, be32(&[d0, d1, d2, d3]));
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    key.set(field::IP_FRAGMENT, u64::from(fragment & 0x3fff != 0));
    let later_fragment = fragment & 0x1fff != 0;
    if !later_fragment {
        // Ethernet padding is not transport data.
        transport(key, header[9], &bytes[header_len..bytes.len().min(total_len)], false);
    }
}

/// [`ipv4`] behind tags or labels.
#[inline(never)]
fn ipv4_behind(key: &mut FlowKey, bytes: &[u8]) {
    ipv4(key, bytes);
}

/// `OFPIEH_*`: OpenFlow 1.3.5, 7.2.3.8.
mod exthdr {
    pub const NO_NEXT: u64 = 1 << 0;
    pub const ESP: u64 = 1 << 1;
    pub const AUTH: u64 = 1 << 2;
    pub const DEST: u64 = 1 << 3;
    pub const FRAG: u64 = 1 << 4;
    pub const ROUTER: u64 = 1 << 5;
    pub const HOP: u64 = 1 << 6;
    pub const REPEATED: u64 = 1 << 7;
    pub const UNSEQUENCED: u64 = 1 << 8;
}

fn ipv6(key: &mut FlowKey, bytes: &[u8]) {
    let Some((header, rest)) = bytes.split_first_chunk::<40>() else {
        return;
    };
    if header[0] >> 4 != 6 {
        return;
    }
    let class_and_label = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    key.set(field::IP_DSCP, u64::from(class_and_label >> 22));
    key.set(field::IP_ECN, u64::from(class_and_label >> 20));
    key.set(field::IPV6_FLABEL, u64::from(class_and_label));
    key.set(field::IPV6_SRC_HI, be64(header, 8));
    key.set(field::IPV6_SRC_LO, be64(header, 16));
    key.set(field::IPV6_DST_HI, be64(header, 24));
    key.set(field::IPV6_DST_LO, be64(header, 32));
    let payload_len = be16(header, 4) as usize;
    // Payload length 0 is a jumbogram (or a segmentation offload): all that is there.
    let rest = if payload_len == 0 { rest } else { &rest[..rest.len().min(payload_len)] };
    let chain = extension_headers(header[6], rest);
    key.set(field::IP_PROTO, u64::from(chain.proto));
    key.set(field::IPV6_EXTHDR, chain.seen);
    key.set(field::IP_FRAGMENT, u64::from(chain.fragment));
    if !chain.later_fragment {
        transport(key, chain.proto, chain.rest, true);
    }
}

/// What a walk over IPv6 extension headers found.
pub(crate) struct Chain<'a> {
    /// The first next-header value that is not an extension header the walk can skip.
    pub proto: u8,
    /// Where that value stands, if in an extension header, counted from the first one.
    pub proto_at: Option<usize>,
    /// `OFPIEH_*` bits.
    pub seen: u64,
    /// A fragment header that says that there is more than this packet.
    pub fragment: bool,
    /// A fragment other than the first: what follows is not a transport header.
    pub later_fragment: bool,
    /// A routing header that has segments left.
    pub routed: bool,
    /// What follows the extension headers.
    pub rest: &'a [u8],
}

/// Walks the extension headers (RFC 8200, 4.1 gives the order that `UNSEQUENCED` is about).
pub(crate) fn extension_headers(first: u8, rest: &[u8]) -> Chain<'_> {
    let mut chain = Chain {
        proto: first,
        proto_at: None,
        seen: 0,
        fragment: false,
        later_fragment: false,
        routed: false,
        rest,
    };
    let whole = rest.len();
    let mut rank_before = 0;
    let mut destinations = 0;
    loop {
        // (bit, place in the recommended order)
        let (bit, rank) = match chain.proto {
            0 => (exthdr::HOP, 1),
            60 => (exthdr::DEST, if chain.seen & exthdr::ROUTER != 0 || destinations > 0 { 7 } else { 2 }),
            43 => (exthdr::ROUTER, 3),
            44 => (exthdr::FRAG, 4),
            51 => (exthdr::AUTH, 5),
            50 => (exthdr::ESP, 6),
            59 => (exthdr::NO_NEXT, 8),
            _ => return chain,
        };
        if bit == exthdr::DEST {
            destinations += 1;
        }
        let repeated = if bit == exthdr::DEST { destinations > 2 } else { chain.seen & bit != 0 };
        if repeated {
            chain.seen |= exthdr::REPEATED;
        }
        // Destination options that stand alone before the upper layer may follow anything.
        if rank < rank_before && bit != exthdr::DEST {
            chain.seen |= exthdr::UNSEQUENCED;
        }
        rank_before = rank_before.max(if bit == exthdr::DEST && destinations == 1 { 2 } else { rank });
        chain.seen |= bit;
        if bit == exthdr::ESP || bit == exthdr::NO_NEXT {
            return chain;
        }
        let Some(&[next, len]) = chain.rest.first_chunk::<2>() else {
            chain.rest = &[];
            return chain;
        };
        let bytes = match bit {
            exthdr::FRAG => 8,
            exthdr::AUTH => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * 8,
        };
        if bit == exthdr::FRAG {
            chain.fragment |= be16(chain.rest, 2) & 0xfff9 != 0;
            chain.later_fragment |= be16(chain.rest, 2) & 0xfff8 != 0;
        }
        if bit == exthdr::ROUTER && chain.rest.get(3).is_some_and(|left| *left != 0) {
            chain.routed = true;
        }
        let Some(after) = chain.rest.get(bytes..) else {
            chain.rest = &[];
            return chain;
        };
        chain.proto_at = Some(whole - chain.rest.len());
        (chain.proto, chain.rest) = (next, after);
        if chain.later_fragment {
            return chain;
        }
    }
}

#[inline]
fn transport(key: &mut FlowKey, proto: u8, bytes: &[u8], ipv6: bool) {
    let Some(enough) = transport_len(proto, ipv6) else {
        return;
    };
    if bytes.len() < enough {
        return;
    }
    if enough > 4 {
        key.set(field::TP_SRC, be16(bytes, 0));
        key.set(field::TP_DST, be16(bytes, 2));
        return;
    }
    icmp(key, bytes, ipv6);
}

#[inline(never)]
fn icmp(key: &mut FlowKey, bytes: &[u8], ipv6: bool) {
    key.set(field::ICMP_TYPE, u64::from(bytes[0]));
    key.set(field::ICMP_CODE, u64::from(bytes[1]));
    if ipv6 && (bytes[0] == 135 || bytes[0] == 136) && bytes[1] == 0 {
        neighbour_discovery(key, bytes);
    }
}

/// Target and link-layer options of a neighbour solicitation (135) or advertisement (136), RFC 4861.
fn neighbour_discovery(key: &mut FlowKey, bytes: &[u8]) {
    if bytes.len() < 24 {
        return;
    }
    key.set(field::ND_TARGET_HI, be64(bytes, 8));
    key.set(field::ND_TARGET_LO, be64(bytes, 16));
    let address = |kind| nd_option(bytes, kind).map_or(0, |at| mac(bytes, at + 2));
    key.set(field::ND_SLL, address(1));
    key.set(field::ND_TLL, address(2));
}

/// Where the option with a link-layer address of this kind (1 source, 2 target) begins in a neighbour discovery
/// message.
pub(crate) fn nd_option(message: &[u8], kind: u8) -> Option<usize> {
    let mut at = 24;
    while let Some(&[found, len]) = message.get(at..)?.first_chunk::<2>() {
        let bytes = usize::from(len) * 8;
        if bytes == 0 || at + bytes > message.len() {
            return None;
        }
        if found == kind && bytes == 8 {
            return Some(at);
        }
        at += bytes;
    }
    None
}

fn arp(key: &mut FlowKey, bytes: &[u8]) {
    let Some(arp) = bytes.first_chunk::<28>() else {
        return;
    };
    // Ethernet and IPv4 only (RFC 826): other hardware or protocol addresses have other places.
    if arp[..6] != [0, 1, 8, 0, 6, 4] {
        return;
    }
    key.set(field::ARP_OP, be16(arp, 6));
    key.set(field::ARP_SHA, mac(arp, 8));
    key.set(field::ARP_THA, mac(arp, 18));
    let [.., s0, s1, s2, s3, _, _, _, _, _, _, d0, d1, d2, d3] = *arp;
    key.set(field::ARP_SPA, be32(&[s0, s1, s2, s3]));
    key.set(field::ARP_TPA, be32(&[d0, d1, d2, d3]));
}

/// What an MPLS stack carries. The labels do not say; everybody who looks goes by the first bytes (RFC 4928).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MplsPayload {
    Unknown = 0,
    Ipv4 = 1,
    Ipv6 = 2,
    Arp = 3,
}

/// Guesses from the bytes below the bottom of the stack.
pub(crate) fn mpls_payload(bytes: &[u8]) -> MplsPayload {
    match bytes {
        [first, ..] if first >> 4 == 4 => MplsPayload::Ipv4,
        [first, ..] if first >> 4 == 6 => MplsPayload::Ipv6,
        [0, 1, 8, 0, 6, 4, ..] => MplsPayload::Arp,
        _ => MplsPayload::Unknown,
    }
}

/// Two entries, and what is below the bottom if that is one of them: the fields that a pop uncovers. No match reads
/// them before, because their prerequisite is the EtherType.
fn mpls(key: &mut FlowKey, bytes: &[u8]) {
    let mut rest = bytes;
    for entry in [field::MPLS_1, field::MPLS_2] {
        let Some((word, after)) = rest.split_first_chunk::<4>() else {
            return;
        };
        // Label, class and bottom bit; the TTL below them is not matchable.
        let word = u32::from_be_bytes(*word) >> 8;
        key.set(entry, u64::from(word));
        rest = after;
        if word & 1 != 0 {
            let payload = mpls_payload(rest);
            key.set(field::MPLS_PAYLOAD, payload as u64);
            return match payload {
                MplsPayload::Ipv4 => ipv4_behind(key, rest),
                MplsPayload::Ipv6 => ipv6(key, rest),
                MplsPayload::Arp => arp(key, rest),
                MplsPayload::Unknown => {}
            };
        }
    }
}
