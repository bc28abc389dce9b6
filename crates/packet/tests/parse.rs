//! The parser against smoltcp's wire views, and on anything.

mod frames;

use frames::{Kind, Parts, parts};
use packet::{Depth, FlowKey, field, parse, parse_to};
use proptest::prelude::*;

fn mac(address: [u8; 6]) -> u64 {
    packet::MacAddr(address).to_u64()
}

fn halves(address: [u8; 16]) -> (u64, u64) {
    let number = u128::from_be_bytes(address);
    ((number >> 64) as u64, number as u64)
}

fn tci(parts: &Parts, index: usize) -> u64 {
    parts.tags.get(index).map_or(0, |(_, tci)| u64::from(tci & 0xefff | 0x1000))
}

/// The key that the parts of a frame must have.
fn expected(parts: &Parts, in_port: u32) -> FlowKey {
    let mut key = FlowKey::ZERO
        .with(field::IN_PORT, in_port.into())
        .with(field::IN_PHY_PORT, in_port.into())
        .with(field::ETH_DST, mac(parts.dst))
        .with(field::ETH_SRC, mac(parts.src))
        .with(field::ETH_TYPE, parts.eth_type().into())
        .with(field::VLAN_TCI, tci(parts, 0))
        .with(field::VLAN_TCI_2, tci(parts, 1))
        .with(field::VLAN_TCI_3, tci(parts, 2));
    let ip4 = (u32::from_be_bytes(parts.ip4.0), u32::from_be_bytes(parts.ip4.1));
    let (src6, dst6) = (halves(parts.ip6.0), halves(parts.ip6.1));
    if matches!(parts.eth_type(), 0x0800 | 0x86dd) {
        key.set(field::IP_DSCP, (parts.tos >> 2).into());
        key.set(field::IP_ECN, (parts.tos & 3).into());
    }
    if matches!(parts.eth_type(), 0x0800 | 0x0806) {
        key.set(field::IPV4_SRC, ip4.0.into());
        key.set(field::IPV4_DST, ip4.1.into());
    }
    if parts.eth_type() == 0x86dd {
        key.set(field::IPV6_SRC_HI, src6.0);
        key.set(field::IPV6_SRC_LO, src6.1);
        key.set(field::IPV6_DST_HI, dst6.0);
        key.set(field::IPV6_DST_LO, dst6.1);
        key.set(field::IPV6_FLABEL, parts.label.into());
    }
    let proto = match parts.kind {
        Kind::Tcp4 | Kind::Tcp6 => 6,
        Kind::Udp4 | Kind::UdpWithoutChecksum4 | Kind::Udp6 => 17,
        Kind::Icmp4 => 1,
        Kind::Solicitation | Kind::Advertisement => 58,
        Kind::Arp | Kind::Other => 0,
    };
    key.set(field::IP_PROTO, proto);
    let (first, second) = match parts.kind {
        Kind::Icmp4 => (parts.ports.0 & 0xff, parts.ports.1 & 0xff),
        Kind::Solicitation => (135, 0),
        Kind::Advertisement => (136, 0),
        Kind::Arp => (parts.ports.0, 0),
        Kind::Other => (0, 0),
        _ => parts.ports,
    };
    key.set(field::TP_SRC, first.into());
    key.set(field::TP_DST, second.into());
    match parts.kind {
        Kind::Arp => {
            key.set(field::ARP_SHA, mac(parts.src));
            key.set(field::ARP_THA, mac(parts.dst));
        }
        Kind::Solicitation => key.set(field::ND_SLL, mac(parts.src)),
        Kind::Advertisement => key.set(field::ND_TLL, mac(parts.src)),
        _ => {}
    }
    if matches!(parts.kind, Kind::Solicitation | Kind::Advertisement) {
        key.set(field::ND_TARGET_HI, dst6.0);
        key.set(field::ND_TARGET_LO, dst6.1);
    }
    key
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_field_is_where_smoltcp_put_it(parts in parts(), in_port in 1..0xff00u32) {
        prop_assert_eq!(parse(&parts.frame(), in_port), expected(&parts, in_port));
    }

    /// A shorter frame has the same fields or none: what is cut off is never taken from elsewhere.
    #[test]
    fn truncated_frames_lose_fields_and_gain_none(parts in parts()) {
        let frame = parts.frame();
        let whole = parse(&frame, 1);
        for len in 0..frame.len().min(140) {
            let key = parse(&frame[..len], 1);
            let places = [
                field::ETH_DST, field::ETH_SRC, field::VLAN_TCI, field::VLAN_TCI_2, field::VLAN_TCI_3,
                field::IP_DSCP, field::IP_ECN, field::IP_PROTO, field::IPV4_SRC, field::IPV4_DST,
                field::TP_SRC, field::TP_DST, field::IPV6_SRC_LO, field::IPV6_DST_HI, field::IPV6_FLABEL,
                field::ARP_SHA, field::ARP_THA, field::ND_TARGET_LO,
            ];
            for place in places {
                let value = key.get(place);
                prop_assert!(value == 0 || value == whole.get(place), "{:?} at {}: {:#x}", place, len, value);
            }
        }
    }

    #[test]
    fn anything_parses(bytes in proptest::collection::vec(any::<u8>(), 0..300), in_port in any::<u32>()) {
        let all = parse(&bytes, in_port);
        let shallow = parse_to(&bytes, in_port, Depth::Ethernet);
        let ethernet = FlowKey::ZERO
            .with(field::IN_PORT, u64::MAX)
            .with(field::IN_PHY_PORT, u64::MAX)
            .with(field::ETH_DST, u64::MAX)
            .with(field::ETH_SRC, u64::MAX)
            .with(field::ETH_TYPE, u64::MAX)
            .with(field::VLAN_TCI, u64::MAX)
            .with(field::VLAN_TCI_2, u64::MAX)
            .with(field::VLAN_TCI_3, u64::MAX);
        prop_assert_eq!(shallow, all.masked(&ethernet));
        let port = FlowKey::ZERO.with(field::IN_PORT, u64::MAX).with(field::IN_PHY_PORT, u64::MAX);
        prop_assert_eq!(parse_to(&bytes, in_port, Depth::Port), all.masked(&port));
    }

    /// Garbage behind a known EtherType: deeper than random bytes get.
    #[test]
    fn anything_above_a_known_type_parses(
        eth_type in proptest::sample::select(vec![0x0800u16, 0x86dd, 0x0806, 0x8847, 0x8100, 0x88a8]),
        version in proptest::sample::select(vec![0x45u8, 0x4f, 0x60]),
        next in proptest::sample::select(vec![0u8, 1, 6, 17, 43, 44, 50, 51, 58, 59, 60, 132]),
        mut bytes in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        for (at, value) in [(0, version), (6, next), (9, next), (40, next)] {
            if let Some(place) = bytes.get_mut(at) {
                *place = value;
            }
        }
        let frame = [&[2; 12], &eth_type.to_be_bytes()[..], &bytes].concat();
        for len in 0..=frame.len() {
            parse(&frame[..len], 1);
        }
    }
}

/// IPv6 with these headers: (type, bytes after the next-header byte).
fn ipv6(headers: &[(u8, &[u8])], last: u8, above: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    let mut payload = Vec::new();
    for (index, (_, body)) in headers.iter().enumerate() {
        payload.push(headers.get(index + 1).map_or(last, |(kind, _)| *kind));
        payload.extend_from_slice(body);
    }
    payload.extend_from_slice(above);
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([headers.first().map_or(last, |(kind, _)| *kind), 64]);
    frame.extend([0xfd; 32]);
    frame.extend(payload);
    frame
}

#[test]
fn ipv6_extension_headers_are_walked_and_reported() {
    const UDP: [u8; 8] = [0x10, 0, 0x20, 0, 0, 8, 0, 0];
    let eight = [0u8; 7];
    let first_fragment = [0, 0, 1, 0, 0, 0, 1];
    let later_fragment = [0, 0, 9, 0, 0, 0, 1];
    let check = |headers: &[(u8, &[u8])], last: u8, bits: u64, port: u64| {
        let key = parse(&ipv6(headers, last, &UDP), 1);
        assert_eq!(key.get(field::IPV6_EXTHDR), bits, "{headers:?}");
        assert_eq!(key.get(field::IP_PROTO), u64::from(last), "{headers:?}");
        assert_eq!(key.get(field::TP_SRC), port, "{headers:?}");
    };
    check(&[], 17, 0, 0x1000);
    check(&[(0, &eight)], 17, 1 << 6, 0x1000);
    check(&[(0, &eight), (60, &eight), (43, &eight), (44, &first_fragment)], 17, 0b111_1000, 0x1000);
    check(&[(44, &later_fragment)], 17, 1 << 4, 0);
    // Twice the same, and the wrong order.
    check(&[(43, &eight), (43, &eight)], 17, 1 << 5 | 1 << 7, 0x1000);
    check(&[(43, &eight), (0, &eight)], 17, 1 << 5 | 1 << 6 | 1 << 8, 0x1000);
    // Nothing next.
    check(&[], 59, 1, 0);
    check(&[], 50, 2, 0);
    // Authentication counts its length in words of four bytes.
    let auth = [[4u8, 0, 0, 0, 0, 0, 0].as_slice(), &[0; 16]].concat();
    check(&[(51, &auth)], 17, 1 << 2, 0x1000);
}

#[test]
fn later_ipv4_fragments_have_no_ports_and_padding_is_no_transport() {
    let mut frame = vec![2; 12];
    frame.extend([0x08, 0]);
    frame.extend([0x45, 0, 0, 28, 0, 0, 0x20, 0, 64, 17, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    frame.extend([0x10, 0, 0x20, 0, 0, 8, 0, 0]);
    frame.resize(60, 0);
    assert_eq!(parse(&frame, 1).get(field::TP_SRC), 0x1000);
    frame[21] = 1;
    let key = parse(&frame, 1);
    assert_eq!((key.get(field::TP_SRC), key.get(field::IP_PROTO)), (0, 17));
    frame[21] = 0;
    // The datagram ends before its UDP header does: the rest is padding.
    frame[17] = 24;
    assert_eq!(parse(&frame, 1).get(field::TP_SRC), 0);
}

#[test]
fn llc_snap_and_mpls() {
    let ethernet = |eth_type: u16| [&[2u8; 12][..], &eth_type.to_be_bytes()].concat();
    let mut frame = ethernet(50);
    frame.extend([0xaa, 0xaa, 3, 0, 0, 0, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2]);
    frame.resize(60, 1);
    let key = parse(&frame, 1);
    assert_eq!((key.eth_type(), key.get(field::ARP_OP)), (0x0806, 2));
    frame[14] = 0x42;
    assert_eq!(parse(&frame, 1).eth_type(), packet::ethertype::NONE);
    let mut frame = ethernet(0x8847);
    frame.extend([0x12, 0x34, 0x5a, 64, 0x00, 0x01, 0x01, 64]);
    let key = parse(&frame, 1);
    assert_eq!(key.get(field::MPLS_LABEL), 0x12345);
    assert_eq!((key.get(field::MPLS_TC), key.get(field::MPLS_BOS)), (5, 0));
    assert_eq!(key.get(field::MPLS_2), 0x000101);
}
