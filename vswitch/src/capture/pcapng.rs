//! The capture file format pcapng (draft-ietf-opsawg-pcapng): one section, one interface, a block for each frame.

use super::{Direction, Seen};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;
/// Resolution of times: 10 to the power of minus this, seconds.
const NANOSECONDS: u8 = 9;

const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
const OPTION_PACKET_FLAGS: u16 = 2;
const OPTION_INTERFACE_NAME: u16 = 2;
const OPTION_TIME_RESOLUTION: u16 = 9;
const OPTION_APPLICATION: u16 = 4;

/// A block is its type, its length, its body and its length again.
fn block(kind: u32, body: &[u8], into: &mut Vec<u8>) {
    let length = (12 + body.len()) as u32;
    into.extend(kind.to_le_bytes());
    into.extend(length.to_le_bytes());
    into.extend(body);
    into.extend(length.to_le_bytes());
}

fn pad(into: &mut Vec<u8>) {
    into.resize(into.len().next_multiple_of(4), 0);
}

fn option(code: u16, value: &[u8], into: &mut Vec<u8>) {
    into.extend(code.to_le_bytes());
    into.extend((value.len() as u16).to_le_bytes());
    into.extend(value);
    pad(into);
}

/// What a file begins with: `port` is the interface that was captured on.
pub(super) fn head(port: &str, frame_bytes_max: u32) -> Vec<u8> {
    let mut file = Vec::new();
    // The magic number that tells the order of bytes, version 1.0, a section of unknown length.
    let mut section = 0x1a2b_3c4du32.to_le_bytes().to_vec();
    section.extend([1, 0, 0, 0]);
    section.extend(u64::MAX.to_le_bytes());
    option(OPTION_APPLICATION, concat!("sluice ", env!("CARGO_PKG_VERSION")).as_bytes(), &mut section);
    option(OPTION_END, &[], &mut section);
    block(SECTION, &section, &mut file);
    let mut interface = ETHERNET.to_le_bytes().to_vec();
    interface.extend([0, 0]);
    interface.extend(frame_bytes_max.to_le_bytes());
    option(OPTION_INTERFACE_NAME, port.as_bytes(), &mut interface);
    option(OPTION_TIME_RESOLUTION, &[NANOSECONDS], &mut interface);
    option(OPTION_END, &[], &mut interface);
    block(INTERFACE, &interface, &mut file);
    file
}

/// Appends a frame.
pub(super) fn frame(seen: &Seen, into: &mut Vec<u8>) {
    let mut packet = 0u32.to_le_bytes().to_vec();
    let at = seen.at.as_nanos() as u64;
    packet.extend(((at >> 32) as u32).to_le_bytes());
    packet.extend((at as u32).to_le_bytes());
    packet.extend((seen.bytes.len() as u32).to_le_bytes());
    packet.extend(seen.total.to_le_bytes());
    packet.extend(&seen.bytes);
    pad(&mut packet);
    let flags: u32 = match seen.direction {
        Direction::Rx => 1,
        Direction::Tx => 2,
    };
    option(OPTION_PACKET_FLAGS, &flags.to_le_bytes(), &mut packet);
    for drop in &seen.drops {
        option(OPTION_COMMENT, format!("dropped: {}", drop.name()).as_bytes(), &mut packet);
    }
    if seen.lost > 0 {
        let comment = format!("{} frames before this one were not captured", seen.lost);
        option(OPTION_COMMENT, comment.as_bytes(), &mut packet);
    }
    option(OPTION_END, &[], &mut packet);
    block(PACKET, &packet, into);
}
