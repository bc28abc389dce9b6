//! Frames for the programs under test, and files of them.

use std::path::Path;

/// A UDP frame of 64 bytes without FCS.
#[derive(Clone, Copy, Debug)]
pub struct Udp {
    /// Destination address.
    pub to: [u8; 6],
    /// Source address.
    pub from: [u8; 6],
    /// IPv4 source and destination.
    pub addresses: [u32; 2],
    /// Ports: source and destination.
    pub ports: [u16; 2],
}

/// Bytes of such a frame.
pub const FRAME_BYTES: usize = 64;

impl Udp {
    /// Its bytes.
    pub fn frame(&self) -> [u8; FRAME_BYTES] {
        let mut frame = [0; FRAME_BYTES];
        frame[..6].copy_from_slice(&self.to);
        frame[6..12].copy_from_slice(&self.from);
        frame[12..24].copy_from_slice(&[0x08, 0, 0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17]);
        frame[26..30].copy_from_slice(&self.addresses[0].to_be_bytes());
        frame[30..34].copy_from_slice(&self.addresses[1].to_be_bytes());
        let words =
            frame[14..34].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame[34..36].copy_from_slice(&self.ports[0].to_be_bytes());
        frame[36..38].copy_from_slice(&self.ports[1].to_be_bytes());
        // Length, and no checksum.
        frame[38..40].copy_from_slice(&30u16.to_be_bytes());
        frame
    }
}

/// Flow number `flow`: its five-tuple is its own.
pub fn flow(flow: u32) -> Udp {
    Udp {
        to: [2, 0, 0, 0, 0, 2],
        from: [2, 0, 0, 0, 0, 1],
        addresses: [0x0a00_0000 + flow, 0x0ac8_0001],
        ports: [1024 + (flow % 50_000) as u16, 53],
    }
}

/// The rule that only this flow matches, as `ovs-ofctl` writes it.
pub fn exact_rule(flow: &Udp, actions: &str) -> String {
    let [src, dst] = flow.addresses.map(std::net::Ipv4Addr::from);
    let [tp_src, tp_dst] = flow.ports;
    format!(
        "priority=100,in_port=1,udp,nw_src={src},nw_dst={dst},tp_src={tp_src},tp_dst={tp_dst},actions={actions}"
    )
}

/// The numbers below `count`, each once, as if shuffled.
pub fn shuffled(count: u32) -> impl Iterator<Item = u32> {
    // A step without a common divisor visits every number; a prime that is larger has none.
    const STEP: u64 = 2_654_435_761;
    (0..u64::from(count)).map(move |at| (at * STEP % u64::from(count)) as u32)
}

/// Writes frames in pcap format.
///
/// # Errors
/// When the file cannot be written.
pub fn write_pcap(path: &Path, frames: impl Iterator<Item = [u8; FRAME_BYTES]>) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    // Magic, version 2.4, no time zone, no accuracy, longest frame, Ethernet.
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1] {
        bytes.extend(word.to_le_bytes());
    }
    for frame in frames {
        for word in [0, 0, FRAME_BYTES as u32, FRAME_BYTES as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(frame);
    }
    std::fs::write(path, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffled_numbers_come_once() {
        for count in [1, 2, 1000, 100_000] {
            let mut numbers: Vec<_> = shuffled(count).collect();
            numbers.sort_unstable();
            assert!(numbers.into_iter().eq(0..count));
        }
    }

    #[test]
    fn headers_sum_to_nothing() {
        let frame = flow(77_777).frame();
        let words =
            frame[14..34].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
