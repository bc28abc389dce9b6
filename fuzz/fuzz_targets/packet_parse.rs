//! Frames: any bytes give a key, and an edit of the bytes and the same edit of the key agree.

#![no_main]

use libfuzzer_sys::fuzz_target;
use packet::{Edit, Header, MacAddr, Outcome, parse};

const IN_PORT: u32 = 7;
/// Beginnings of frames that the parser goes deep into; the input goes on from one of them.
const STARTS: &[&[u8]] = &[
    b"",
    b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\0\x45",
    b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x81\0\0\x0a\x08\0\x45",
    b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x88\xa8\0\x0a\x81\0\0\x14\x08\0\x45",
    b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x86\xdd\x60",
    b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\x06\0\x01\x08\0\x06\x04",
];

fn edit(kind: u8, value: u16) -> Edit {
    let address = MacAddr([2, 0, 0, 0, (value >> 8) as u8, value as u8]);
    let [high, low] = value.to_be_bytes();
    match kind % 20 {
        0 => Edit::PushVlan(if value % 2 == 0 { 0x8100 } else { 0x88a8 }),
        1 => Edit::PopVlan,
        2 => Edit::SetVlanVid(value & 0xfff),
        3 => Edit::SetVlanPcp((value & 7) as u8),
        4 => Edit::SetEthDst(address),
        5 => Edit::SetEthSrc(address),
        6 => Edit::SetIpDscp(low & 0x3f),
        7 => Edit::SetTtl(low),
        8 => Edit::DecTtl,
        9 => Edit::SetIpv4Src([10, 0, high, low]),
        10 => Edit::SetIpv6Dst([low; 16]),
        11 => Edit::SetTpSrc(if high % 2 == 0 { 6 } else { 17 }, value),
        12 => Edit::SetTpDst(if high % 2 == 0 { 6 } else { 17 }, value),
        13 => Edit::SetIcmpType(if high % 2 == 0 { 1 } else { 58 }, low),
        14 => Edit::SetArpOp(value),
        15 => Edit::SetArpTha(address),
        16 => Edit::SetNdTarget([low; 16]),
        17 => Edit::SetNdSll(address),
        18 => Edit::SetNdTll(address),
        _ => Edit::SetIpv6Flabel(u32::from(value)),
    }
}

fuzz_target!(|data: &[u8]| {
    let [start, kinds @ .., _] = data else { return };
    let Some((edits, rest)) = kinds.split_at_checked(6) else { return };
    let mut frame = STARTS[usize::from(*start) % STARTS.len()].to_vec();
    frame.extend_from_slice(rest);
    let mut header = Header::of(&frame);
    assert_eq!(parse(header.bytes(), IN_PORT), parse(&frame[..header.consumed()], IN_PORT));
    parse(&frame, IN_PORT);
    for pair in edits.chunks_exact(3) {
        let edit = edit(pair[0], u16::from_be_bytes([pair[1], pair[2]]));
        let before = header.len();
        let outcome = edit.apply(&mut header);
        assert!(outcome == Outcome::Done || header.len() == before, "{edit:?} failed and changed the length");
        parse(header.bytes(), IN_PORT);
    }
    assert_eq!(header.len() as isize - header.consumed() as isize, header.grown());
});
