//! Edits: the bytes and the key change alike, checksums stay right, nothing else moves.

mod frames;

use frames::{Kind, Parts, parts};
use packet::{Edit, Header, MacAddr, Outcome, checksum, field, parse};
use proptest::prelude::*;
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

fn edit() -> impl Strategy<Value = Edit> {
    let transport = || proptest::sample::select(vec![6u8, 17]);
    let icmp = || proptest::sample::select(vec![1u8, 58]);
    let mac = || any::<[u8; 6]>().prop_map(MacAddr);
    prop_oneof![
        proptest::sample::select(vec![0x8100u16, 0x88a8]).prop_map(Edit::PushVlan),
        Just(Edit::PopVlan),
        (0..4096u16).prop_map(Edit::SetVlanVid),
        (0..8u8).prop_map(Edit::SetVlanPcp),
        mac().prop_map(Edit::SetEthDst),
        mac().prop_map(Edit::SetEthSrc),
        (0..64u8).prop_map(Edit::SetIpDscp),
        (0..4u8).prop_map(Edit::SetIpEcn),
        any::<u8>().prop_map(Edit::SetTtl),
        Just(Edit::DecTtl),
        any::<[u8; 4]>().prop_map(Edit::SetIpv4Src),
        any::<[u8; 4]>().prop_map(Edit::SetIpv4Dst),
        any::<[u8; 16]>().prop_map(Edit::SetIpv6Src),
        any::<[u8; 16]>().prop_map(Edit::SetIpv6Dst),
        (0..1u32 << 20).prop_map(Edit::SetIpv6Flabel),
        (transport(), any::<u16>()).prop_map(|(proto, port)| Edit::SetTpSrc(proto, port)),
        (transport(), any::<u16>()).prop_map(|(proto, port)| Edit::SetTpDst(proto, port)),
        (icmp(), any::<u8>()).prop_map(|(proto, kind)| Edit::SetIcmpType(proto, kind)),
        (icmp(), any::<u8>()).prop_map(|(proto, code)| Edit::SetIcmpCode(proto, code)),
        any::<u16>().prop_map(Edit::SetArpOp),
        any::<[u8; 4]>().prop_map(Edit::SetArpSpa),
        any::<[u8; 4]>().prop_map(Edit::SetArpTpa),
        mac().prop_map(Edit::SetArpSha),
        mac().prop_map(Edit::SetArpTha),
        any::<[u8; 16]>().prop_map(Edit::SetNdTarget),
        mac().prop_map(Edit::SetNdSll),
        mac().prop_map(Edit::SetNdTll),
        Just(Edit::PushMpls(0x8847)),
        Just(Edit::PushMpls(0x8848)),
        proptest::sample::select(vec![0x0800u16, 0x86dd, 0x0806, 0x8847]).prop_map(Edit::PopMpls),
        (0..1u32 << 20).prop_map(Edit::SetMplsLabel),
        (0..8u8).prop_map(Edit::SetMplsTc),
        any::<u8>().prop_map(Edit::SetMplsTtl),
        Just(Edit::DecMplsTtl),
        Just(Edit::CopyTtlOut),
        Just(Edit::CopyTtlIn),
        any::<u64>().prop_map(Edit::SetTunnelId),
    ]
}

/// The whole frame after edits of its header.
fn whole(header: &Header, frame: &[u8]) -> Vec<u8> {
    [header.bytes(), &frame[header.consumed()..]].concat()
}

/// Where the network layer begins, behind tags and labels.
fn network(frame: &[u8]) -> usize {
    let mut at = 12;
    while matches!(frame[at..at + 2], [0x81, 0x00] | [0x88, 0xa8]) {
        at += 4;
    }
    let labels = labels(frame);
    at + 2 + 4 * labels
}

/// MPLS labels of a frame whose stack ends.
fn labels(frame: &[u8]) -> usize {
    let mut at = 12;
    while matches!(frame[at..at + 2], [0x81, 0x00] | [0x88, 0xa8]) {
        at += 4;
    }
    match frame[at..at + 2] {
        [0x88, 0x47 | 0x48] => 1 + frame[at + 2..].chunks(4).take_while(|entry| entry[2] & 1 == 0).count(),
        _ => 0,
    }
}

/// Whether a pop leaves what the EtherType says, as far as the key can see it.
fn uncovers(edit: Edit, parts: &Parts, frame: &[u8]) -> bool {
    match edit {
        Edit::PopMpls(eth_type) => match labels(frame) {
            0 => true,
            1 => eth_type == parts.eth_type(),
            2 => eth_type == 0x8847,
            _ => false,
        },
        _ => true,
    }
}

fn checksums_are_right(kind: Kind, frame: &[u8]) -> bool {
    let packet = &frame[network(frame)..];
    if matches!(kind, Kind::Tcp4 | Kind::Udp4 | Kind::UdpWithoutChecksum4 | Kind::Icmp4) {
        let packet = Ipv4Packet::new_checked(packet).expect("still IPv4");
        let (src, dst) = (packet.src_addr().into(), packet.dst_addr().into());
        let above = packet.payload();
        return packet.verify_checksum()
            && match kind {
                Kind::Tcp4 => TcpPacket::new_unchecked(above).verify_checksum(&src, &dst),
                Kind::Udp4 => {
                    let udp = UdpPacket::new_unchecked(above);
                    udp.checksum() != 0 && udp.verify_checksum(&src, &dst)
                }
                Kind::UdpWithoutChecksum4 => UdpPacket::new_unchecked(above).checksum() == 0,
                _ => Icmpv4Packet::new_unchecked(above).verify_checksum(),
            };
    }
    if !matches!(kind, Kind::Tcp6 | Kind::Udp6 | Kind::Solicitation | Kind::Advertisement) {
        return true;
    }
    let packet = Ipv6Packet::new_checked(packet).expect("still IPv6");
    let (src, dst) = (packet.src_addr(), packet.dst_addr());
    let above = packet.payload();
    match kind {
        Kind::Tcp6 => TcpPacket::new_unchecked(above).verify_checksum(&src.into(), &dst.into()),
        Kind::Udp6 => UdpPacket::new_unchecked(above).verify_checksum(&src.into(), &dst.into()),
        _ => Icmpv6Packet::new_unchecked(above).verify_checksum(&src, &dst),
    }
}

/// The sum of the pseudo header alone, as a guest leaves it when the checksum is somebody else's work.
fn pseudo_sum(parts: &Parts, frame: &[u8]) -> u16 {
    let packet = &frame[network(frame)..];
    let (addresses, proto, len) = match parts.eth_type() {
        0x0800 => (&packet[12..20], packet[9], packet.len() - 20),
        _ => (&packet[8..40], packet[6], packet.len() - 40),
    };
    let tail = [&[0, proto][..], &(len as u16).to_be_bytes()].concat();
    checksum::sum(&tail, checksum::sum(addresses, 0)) as u16
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn bytes_and_key_agree_and_checksums_stay_right(
        mut parts in parts(),
        edits in proptest::collection::vec(edit(), 1..6),
    ) {
        // Beyond three tags the key does not see.
        let pushed = edits.iter().filter(|edit| matches!(edit, Edit::PushVlan(_))).count();
        parts.tags.truncate(3usize.saturating_sub(pushed));
        prop_assume!(pushed <= 3);
        if parts.kind == Kind::Other {
            // Behind a label it must not look like IP.
            parts.payload.insert(0, 0);
        }
        let frame = parts.frame();
        let mut header = Header::of(&frame);
        let kind = parts.kind;
        for edit in edits {
            if !uncovers(edit, &parts, header.bytes()) {
                continue;
            }
            let before = header.clone();
            let mut key = parse(header.bytes(), 7);
            let outcome = edit.apply(&mut header);
            if outcome == Outcome::Done {
                edit.apply_to_key(&mut key);
            } else {
                prop_assert_eq!(before.bytes(), header.bytes());
                prop_assert!(outcome != Outcome::NoRoom);
            }
            if outcome == Outcome::Absent {
                let mut same = key;
                edit.apply_to_key(&mut same);
                prop_assert_eq!(same, key, "{:?} is absent but changes the key", edit);
            }
            // A message whose type changed is another message: its options are no longer seen.
            let retyped = matches!(edit, Edit::SetIcmpType(..) | Edit::SetIcmpCode(..)) && outcome == Outcome::Done;
            if retyped && matches!(kind, Kind::Solicitation | Kind::Advertisement) {
                break;
            }
            if let Edit::SetTunnelId(id) = edit {
                prop_assert_eq!(key.get(field::TUNNEL_ID), id);
                key.set(field::TUNNEL_ID, 0);
            }
            prop_assert_eq!(parse(header.bytes(), 7), key, "{:?}", edit);
            prop_assert!(checksums_are_right(kind, &whole(&header, &frame)), "{:?}", edit);
        }
    }

    #[test]
    fn a_partial_checksum_stays_the_sum_of_the_pseudo_header(
        parts in parts(),
        edits in proptest::collection::vec(edit(), 1..5),
    ) {
        let at = match parts.kind {
            Kind::Tcp4 | Kind::Tcp6 => 16,
            Kind::Udp4 | Kind::Udp6 => 6,
            _ => return Ok(()),
        };
        let labels = |edit: &Edit| matches!(edit, Edit::PushMpls(_) | Edit::PopMpls(_));
        let edits: Vec<Edit> = edits.into_iter().filter(|edit| !labels(edit)).collect();
        let mut frame = parts.frame();
        let above = network(&frame) + if parts.eth_type() == 0x0800 { 20 } else { 40 };
        let sum = pseudo_sum(&parts, &frame);
        frame[above + at..above + at + 2].copy_from_slice(&sum.to_be_bytes());
        let mut header = Header::of(&frame);
        header.set_partial_checksum(true);
        for edit in edits {
            edit.apply(&mut header);
        }
        let edited = whole(&header, &frame);
        let above = network(&edited) + if parts.eth_type() == 0x0800 { 20 } else { 40 };
        let found = u16::from_be_bytes([edited[above + at], edited[above + at + 1]]);
        // Zero and all ones are the same sum.
        prop_assert_eq!(found % 0xffff, pseudo_sum(&parts, &edited) % 0xffff);
    }

    #[test]
    fn edits_of_anything_leave_a_frame(
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
        eth_type in proptest::sample::select(vec![0x0800u16, 0x86dd, 0x0806, 0x8100]),
        edits in proptest::collection::vec(edit(), 1..40),
    ) {
        let frame = [&[2; 12], &eth_type.to_be_bytes()[..], &bytes].concat();
        for len in [frame.len(), frame.len() / 2, 13, 0] {
            let frame = &frame[..len.min(frame.len())];
            let mut header = Header::of(frame);
            for edit in &edits {
                edit.apply(&mut header);
            }
            prop_assert_eq!(header.len() as isize, frame.len().min(256) as isize + header.grown());
            prop_assert_eq!(whole(&header, frame).len() as isize, frame.len() as isize + header.grown());
        }
    }

    #[test]
    fn an_incremental_checksum_is_the_checksum(
        mut data in proptest::collection::vec(any::<u8>(), 4..60),
        word in any::<[u8; 2]>(),
        at in any::<prop::sample::Index>(),
    ) {
        let at = at.index(data.len() / 2) * 2;
        prop_assume!(at + 2 <= data.len());
        let before = checksum::checksum(&data);
        let old = [data[at], data[at + 1]];
        data[at..at + 2].copy_from_slice(&word);
        let after = checksum::checksum(&data);
        prop_assert_eq!(checksum::update(before, &old, &word) % 0xffff, after % 0xffff);
    }
}

#[test]
fn push_copies_the_outer_tag_and_stops_at_the_headroom() {
    let parts = {
        use proptest::strategy::ValueTree;
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        parts().new_tree(&mut runner).expect("a frame").current()
    };
    let frame = Parts { tags: vec![(0x8100, 0xa064)], ..parts }.frame();
    let mut header = Header::of(&frame);
    assert_eq!(Edit::PushVlan(0x88a8).apply(&mut header), Outcome::Done);
    assert_eq!(header.bytes()[12..20], [0x88, 0xa8, 0xa0, 0x64, 0x81, 0x00, 0xa0, 0x64]);
    assert_eq!(header.grown(), 4);
    let room = packet::HEADROOM_BYTES / 4 - 1;
    for _ in 0..room {
        assert_eq!(Edit::PushVlan(0x8100).apply(&mut header), Outcome::Done);
    }
    let full = header.bytes().to_vec();
    assert_eq!(Edit::PushVlan(0x8100).apply(&mut header), Outcome::NoRoom);
    assert_eq!(header.bytes(), full);
    for _ in 0..=room {
        assert_eq!(Edit::PopVlan.apply(&mut header), Outcome::Done);
    }
    assert_eq!(whole(&header, &frame), frame);
}

/// An IPv4 frame with this protocol and these bytes above it.
fn ipv4(proto: u8, ttl: u8, above: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, ttl, proto, 0, 0];
    packet[2..4].copy_from_slice(&(20 + above.len() as u16).to_be_bytes());
    packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = checksum::checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    [&[2; 12][..], &[0x08, 0], &packet, above].concat()
}

/// The bytes of a frame after edits that all apply.
fn edited(frame: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut header = Header::of(frame);
    for edit in edits {
        assert_eq!(edit.apply(&mut header), Outcome::Done, "{edit:?}");
    }
    whole(&header, frame)
}

#[test]
fn labels_are_pushed_behind_the_tags_with_the_ttl_of_ip_and_popped_again() {
    let plain = ipv4(17, 64, &[0; 30]);
    let pushed = edited(&plain, &[Edit::PushMpls(0x8847)]);
    assert_eq!(pushed[12..18], [0x88, 0x47, 0, 0, 1, 64]);
    let twice = edited(
        &plain,
        &[Edit::PushMpls(0x8847), Edit::SetMplsLabel(100), Edit::SetMplsTc(3), Edit::PushMpls(0x8848)],
    );
    assert_eq!(twice[12..22], [0x88, 0x48, 0, 6, 0x46, 64, 0, 6, 0x47, 64]);
    assert_eq!(edited(&twice, &[Edit::PopMpls(0x8847), Edit::PopMpls(0x0800)]), plain);
    let tagged = edited(&plain, &[Edit::PushVlan(0x8100), Edit::SetVlanVid(10), Edit::PushMpls(0x8847)]);
    assert_eq!(tagged[12..22], [0x81, 0, 0, 10, 0x88, 0x47, 0, 0, 1, 64]);
    let arp = [&[2; 12][..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 20]].concat();
    assert_eq!(edited(&arp, &[Edit::PushMpls(0x8847)])[12..18], [0x88, 0x47, 0, 0, 1, 0]);
    let mut header = Header::of(&plain);
    assert_eq!(Edit::PopMpls(0x0800).apply(&mut header), Outcome::Absent);
}

#[test]
fn ttls_are_copied_in_and_out_and_run_out() {
    let plain = ipv4(17, 32, &[0; 30]);
    let labelled = edited(&plain, &[Edit::PushMpls(0x8847), Edit::SetMplsTtl(64)]);
    assert_eq!(edited(&labelled, &[Edit::CopyTtlOut])[17], 32);
    let copied = edited(&labelled, &[Edit::CopyTtlIn, Edit::PopMpls(0x0800)]);
    assert_eq!(copied, ipv4(17, 64, &[0; 30]));
    let twice = edited(&labelled, &[Edit::PushMpls(0x8847), Edit::DecMplsTtl]);
    assert_eq!(twice[17], 63);
    assert_eq!(edited(&twice, &[Edit::CopyTtlIn])[21], 63);
    assert_eq!(edited(&twice, &[Edit::CopyTtlOut])[17], 64);
    for ttl in [0, 1] {
        let mut header = Header::of(&edited(&labelled, &[Edit::SetMplsTtl(ttl)]));
        let before = header.bytes().to_vec();
        assert_eq!(Edit::DecMplsTtl.apply(&mut header), Outcome::Expired);
        assert_eq!(header.bytes(), before);
    }
}

#[test]
fn the_bottom_of_the_stack_and_the_ethertype_are_settable() {
    let labelled = edited(&ipv4(17, 32, &[0; 30]), &[Edit::PushMpls(0x8847)]);
    assert_eq!(edited(&labelled, &[Edit::SetMplsBos(false)])[12..18], [0x88, 0x47, 0, 0, 0, 32]);
    let mut key = parse(&labelled, 1);
    Edit::SetMplsBos(false).apply_to_key(&mut key);
    assert_eq!(key.get(field::MPLS_BOS), 0);
    let tagged = edited(&ipv4(17, 32, &[0; 30]), &[Edit::PushVlan(0x8100), Edit::SetEthType(0x8848)]);
    assert_eq!(tagged[12..18], [0x81, 0, 0, 0, 0x88, 0x48]);
    let mut key = parse(&ipv4(17, 32, &[0; 30]), 1);
    Edit::SetEthType(0x1234).apply_to_key(&mut key);
    assert_eq!((key.eth_type(), key.get(field::IPV4_SRC)), (0x1234, 0));
}

#[test]
fn a_changed_protocol_changes_the_pseudo_header() {
    let mut tcp = [0; 24];
    tcp[12] = 0x50;
    let sum = |proto: u8, tcp: &[u8]| {
        let pseudo = [10, 0, 0, 1, 10, 0, 0, 2, 0, proto, 0, 24];
        !(checksum::sum(tcp, checksum::sum(&pseudo, 0)) as u16)
    };
    let right = |proto: u8, mut tcp: [u8; 24]| {
        let sum = sum(proto, &tcp).to_be_bytes();
        tcp[16..18].copy_from_slice(&sum);
        ipv4(proto, 9, &tcp)
    };
    assert_eq!(edited(&right(6, tcp), &[Edit::SetIpProto(17)]), right(17, tcp));
    let v6 = |proto: u8| {
        let mut packet = vec![0x60, 0, 0, 0, 0, 24, proto, 9];
        packet.extend((1..=32).collect::<Vec<u8>>());
        let pseudo = [&packet[8..40], &[0, proto, 0, 24][..]].concat();
        let mut tcp = tcp;
        let sum = !(checksum::sum(&tcp, checksum::sum(&pseudo, 0)) as u16);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        [&[2; 12][..], &[0x86, 0xdd], &packet, &tcp].concat()
    };
    assert_eq!(edited(&v6(6), &[Edit::SetIpProto(17)]), v6(17));
}

#[test]
fn sctp_has_the_crc_of_all_its_bytes() {
    let frame = |src: u16, dst: u16, payload: usize| {
        let mut sctp = [&src.to_be_bytes()[..], &dst.to_be_bytes(), &[0; 8], &vec![7; payload]].concat();
        let crc = crc32c::crc32c(&sctp);
        sctp[8..12].copy_from_slice(&crc.to_le_bytes());
        // Padding of the frame is not part of it.
        [ipv4(132, 64, &sctp), vec![0; 9]].concat()
    };
    for payload in [0, 1, 30, 1400] {
        let set = [Edit::SetTpSrc(132, 11111), Edit::SetTpDst(132, 6789)];
        assert_eq!(edited(&frame(1, 2, payload), &set), frame(11111, 6789, payload));
    }
    // The rest of a fragmented message is not here: nothing can be right.
    let mut fragment = frame(1, 2, 30);
    fragment[20] = 0x20;
    let mut header = Header::of(&fragment);
    assert_eq!(Edit::SetTpSrc(132, 5).apply(&mut header), Outcome::Absent);
}
