use proptest::prelude::*;

use super::*;

/// Ethernet, `tags` VLAN tags, IP, TCP with 12 bytes of options, payload; checksums left to do.
fn tcp_frame(v6: bool, tags: usize, payload: &[u8]) -> (Vec<u8>, Offload) {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for tag in 0..tags {
        frame.extend([0x81, 0, 0x20, tag as u8 + 1]);
    }
    let tcp_bytes = 32 + payload.len();
    frame.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    let ip = frame.len();
    if v6 {
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(((tcp_bytes) as u16).to_be_bytes());
        frame.extend([6, 64]);
        frame.extend([0xfd; 16]);
        frame.extend([0xfc; 16]);
    } else {
        frame.extend([0x45, 0]);
        frame.extend(((20 + tcp_bytes) as u16).to_be_bytes());
        frame.extend([0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = checksum::checksum(&frame[ip..ip + 20]);
        frame[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
    }
    let tcp = frame.len();
    // Ports, sequence number close to its end, acknowledgement, 32 bytes of header, CWR|ACK|PSH|FIN, window.
    frame.extend([0x1f, 0x90, 0, 80, 0xff, 0xff, 0xff, 0x00, 1, 2, 3, 4, 0x80, 0x99, 0x20, 0]);
    frame.extend([0; 4]);
    frame.extend([1; 12]);
    frame.extend(payload);
    let start = pseudo_sum(&frame, ip, v6, tcp_bytes);
    frame[tcp + 16..tcp + 18].copy_from_slice(&start.to_be_bytes());
    let partial = Partial { start: tcp as u16, offset: 16 };
    let gso = Gso { v6, ecn: true, size: 100, header_bytes: tcp as u16 + 32 };
    (frame, Offload { partial: Some(partial), gso: Some(gso), verified: false })
}

fn pseudo_sum(frame: &[u8], ip: usize, v6: bool, tcp_bytes: usize) -> u16 {
    let addresses = if v6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
    checksum::sum(&frame[addresses], 6 + tcp_bytes as u32) as u16
}

/// Panics unless IP length, IP checksum and TCP checksum of the frame are right.
fn check_tcp(frame: &[u8]) {
    let layout = TcpLayout::of(frame).expect("TCP");
    let ip_bytes = frame.len() - layout.ip;
    if layout.v6 {
        assert_eq!(be16(frame, layout.ip + 4), Some(ip_bytes as u16 - 40));
    } else {
        assert_eq!(be16(frame, layout.ip + 2), Some(ip_bytes as u16));
        assert_eq!(checksum::checksum(&frame[layout.ip..layout.tcp]), 0, "IP checksum");
    }
    let tcp_bytes = frame.len() - layout.tcp;
    let pseudo = pseudo_sum(frame, layout.ip, layout.v6, tcp_bytes);
    assert_eq!(checksum::sum(&frame[layout.tcp..], u32::from(pseudo)) as u16, 0xffff, "TCP checksum");
}

fn net_header(offload: &Offload) -> [u8; NET_HEADER_BYTES_LEGACY] {
    *offload.emit(Accepts::ALL, 1).first_chunk().expect("12 bytes")
}

#[test]
fn a_header_goes_through_unchanged_when_it_is_true() {
    for (v6, tags) in [(false, 0), (false, 2), (true, 0), (true, 3)] {
        let (frame, offload) = tcp_frame(v6, tags, &[7; 1000]);
        let copy = &frame[..frame.len().min(HEADER_BYTES_MAX)];
        assert_eq!(
            Offload::parse(&net_header(&offload), Accepts::ALL, copy, frame.len()),
            Ok(offload),
            "v6 {v6}, {tags} tags"
        );
    }
}

#[test]
fn every_lie_is_a_bad_header() {
    let (frame, good) = tcp_frame(false, 0, &[7; 1000]);
    let copy = &frame[..HEADER_BYTES_MAX];
    let parse = |bytes: [u8; 10], allowed| Offload::parse(&bytes, allowed, copy, frame.len());
    let refused = |name: &str, change: &dyn Fn(&mut [u8; 10])| {
        let mut bytes = net_header(&good);
        change(&mut bytes);
        assert_eq!(parse(bytes, Accepts::ALL), Err(DropReason::BadHeader), "{name}");
    };
    refused("segmentation without checksum", &|b| b[0] = 0);
    refused("UDP fragmentation", &|b| b[1] = 3);
    refused("unknown segmentation", &|b| b[1] = 9);
    refused("ECN alone", &|b| b[1] = 0x80);
    refused("IPv6 that is IPv4", &|b| b[1] = 4);
    refused("segments of nothing", &|b| b[4..6].fill(0));
    refused("checksum of something else", &|b| b[6] += 2);
    refused("checksum elsewhere", &|b| b[8] = 6);
    refused("checksum in the Ethernet header", &|b| (b[1], b[6]) = (0, 0));
    refused("checksum beyond the copy", &|b| {
        b[1] = 0;
        b[6..8].copy_from_slice(&255u16.to_le_bytes());
    });
    let off = |change: &dyn Fn(&mut Accepts)| {
        let mut accepts = Accepts::ALL;
        change(&mut accepts);
        assert_eq!(parse(net_header(&good), accepts), Err(DropReason::BadHeader), "{accepts:?}");
    };
    off(&|a| a.csum = false);
    off(&|a| a.tso4 = false);
    off(&|a| a.ecn = false);
    assert_eq!(parse([0; 10], Accepts::default()), Ok(Offload::NONE));
}

#[test]
fn segments_are_whole_frames_with_right_checksums() {
    for (v6, tags, bytes) in
        [(false, 0, 1usize), (false, 1, 100), (false, 0, 4095), (true, 0, 101), (true, 2, 60_000)]
    {
        let payload: Vec<u8> = (0..bytes).map(|i| (i * 7) as u8).collect();
        let (frame, offload) = tcp_frame(v6, tags, &payload);
        let mut segments: Vec<Vec<u8>> = Vec::new();
        assert!(segment(&frame, offload.gso.unwrap(), |header, part| segments.push([header, part].concat())));
        assert_eq!(segments.len(), bytes.div_ceil(100));
        let layout = TcpLayout::of(&frame).unwrap();
        let mut whole = Vec::new();
        for (number, segment) in segments.iter().enumerate() {
            check_tcp(segment);
            let sequence = be32(segment, layout.tcp + 4);
            assert_eq!(sequence, 0xffff_ff00_u32.wrapping_add(number as u32 * 100));
            let flags = segment[layout.tcp + 13];
            let last = number + 1 == segments.len();
            assert_eq!(flags & 0x09 != 0, last, "FIN and PSH on the last one");
            assert_eq!(flags & 0x80 != 0, number == 0, "CWR on the first one");
            if !v6 {
                assert_eq!(be16(segment, layout.ip + 4), Some(0x1234 + number as u16));
            }
            whole.extend_from_slice(&segment[layout.payload..]);
        }
        assert_eq!(whole, payload);
    }
}

#[test]
fn a_completed_checksum_is_right() {
    for v6 in [false, true] {
        let (mut frame, offload) = tcp_frame(v6, 1, &[0x5a; 333]);
        complete_checksum(&mut frame, offload.partial.unwrap());
        check_tcp(&frame);
    }
}

#[test]
fn offsets_move_with_the_header() {
    let (_, offload) = tcp_frame(false, 0, &[]);
    let moved = offload.moved(4);
    assert_eq!(moved.partial.unwrap().start, offload.partial.unwrap().start + 4);
    assert_eq!(moved.gso.unwrap().header_bytes, offload.gso.unwrap().header_bytes + 4);
    assert_eq!(moved.moved(-4), offload);
}

proptest! {
    #[test]
    fn nothing_accepted_points_outside_the_copy(
        bytes in any::<[u8; 10]>(),
        kind in prop::sample::select(vec![0u8, 1, 4, 0x81, 0x84, 3]),
        frame in prop::collection::vec(any::<u8>(), 14..300),
        real in any::<bool>(),
    ) {
        let mut bytes = bytes;
        bytes[1] = kind;
        let (tcp, good) = tcp_frame(kind & 4 != 0, 0, &frame);
        let frame = if real { bytes[6..].copy_from_slice(&net_header(&good)[6..]); tcp } else { frame };
        let copy = &frame[..frame.len().min(HEADER_BYTES_MAX)];
        if let Ok(offload) = Offload::parse(&bytes, Accepts::ALL, copy, frame.len()) {
            if let Some(partial) = offload.partial {
                prop_assert!(usize::from(partial.start) + usize::from(partial.offset) + 2 <= copy.len());
            }
            if let Some(gso) = offload.gso {
                let mut total = 0;
                prop_assert!(segment(&frame, gso, |header, part| total += header.len().min(1) * part.len()));
                prop_assert_eq!(total + usize::from(gso.header_bytes), frame.len());
            }
        }
    }
}
