//! What a sender left undone of a packet - checksum, segmentation - and doing it where the receiver will not.
//!
//! [`Offload`] is the sanitised form of a `virtio_net_hdr` (VIRTIO 1.2, 5.1.6): every offset in it was compared
//! with the private copy of the frame's header, so it can be passed on to another guest or to the host's kernel.

use packet::{HEADER_BYTES_MAX, checksum, ethertype, ip_proto};

use crate::model::DropReason;

/// Bytes of the header with `num_buffers`: VERSION_1 or MRG_RXBUF.
pub const NET_HEADER_BYTES: usize = 12;
/// Bytes of the header of a legacy driver.
pub const NET_HEADER_BYTES_LEGACY: usize = 10;
/// Longest frame that is taken: the largest IP packet behind an Ethernet header and two VLAN tags.
pub const FRAME_BYTES_MAX: usize = 65_535 + 14 + 8;
/// Shortest frame that is taken: the Ethernet header.
pub const FRAME_BYTES_MIN: usize = 14;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;
/// Where the checksum is in a TCP header.
const TCP_CSUM_OFFSET: u16 = 16;

/// What one side of a port lets the other leave undone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Accepts {
    /// Transport checksums.
    pub csum: bool,
    /// Segmentation of TCP over IPv4.
    pub tso4: bool,
    /// Segmentation of TCP over IPv6.
    pub tso6: bool,
    /// Segmentation of TCP segments with CWR set.
    pub ecn: bool,
}

impl Accepts {
    /// Everything: the host's kernel.
    pub const ALL: Accepts = Accepts { csum: true, tso4: true, tso6: true, ecn: true };

    /// Whether a packet in this state can be handed over as it is.
    #[inline]
    pub fn takes(&self, offload: &Offload) -> bool {
        let Some(gso) = offload.gso else { return self.csum || offload.partial.is_none() };
        self.csum && (if gso.v6 { self.tso6 } else { self.tso4 }) && (self.ecn || !gso.ecn)
    }
}

/// A transport checksum that holds only the sum of the pseudo header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Partial {
    /// First byte to be summed, from the start of the frame.
    pub start: u16,
    /// Where the sum goes, from `start` on.
    pub offset: u16,
}

/// A TCP packet to be cut into segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gso {
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// CWR is set and belongs to the first segment only.
    pub ecn: bool,
    /// Payload bytes of each segment; not 0.
    pub size: u16,
    /// Bytes of the Ethernet, IP and TCP headers.
    pub header_bytes: u16,
}

/// What is left to do for a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// The checksum to be completed.
    pub partial: Option<Partial>,
    /// The segmentation to be done. Never without `partial`.
    pub gso: Option<Gso>,
    /// The checksum was verified by whoever sent it.
    pub verified: bool,
}

fn le16(bytes: &[u8; NET_HEADER_BYTES_LEGACY], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

impl Offload {
    /// Nothing left to do.
    pub const NONE: Offload = Offload { partial: None, gso: None, verified: false };

    /// Whether the sender says that it left anything undone.
    #[inline]
    pub(crate) fn claimed(bytes: &[u8; NET_HEADER_BYTES_LEGACY]) -> bool {
        bytes[0] & F_NEEDS_CSUM != 0 || bytes[1] != GSO_NONE
    }

    /// Reads and checks what a sender that may leave `allowed` undone said about a frame of `frame_bytes` bytes that
    /// begins with `header`.
    ///
    /// # Errors
    /// [`DropReason::BadHeader`]: it claims what was not negotiated, or what the frame does not bear out.
    #[inline]
    pub fn parse(
        bytes: &[u8; NET_HEADER_BYTES_LEGACY],
        allowed: Accepts,
        header: &[u8],
        frame_bytes: usize,
    ) -> Result<Offload, DropReason> {
        let mut offload = Offload::NONE;
        offload.parse_into(bytes, allowed, header, frame_bytes)?;
        Ok(offload)
    }

    /// [`Offload::parse`], put where it is wanted: nothing is moved right after it was written in pieces.
    #[inline]
    pub(crate) fn parse_into(
        &mut self,
        bytes: &[u8; NET_HEADER_BYTES_LEGACY],
        allowed: Accepts,
        header: &[u8],
        frame_bytes: usize,
    ) -> Result<(), DropReason> {
        *self = Offload::NONE;
        if !Offload::claimed(bytes) {
            self.verified = bytes[0] & F_DATA_VALID != 0;
        } else {
            let claims = Self::parse_claims(bytes, allowed, header, frame_bytes);
            *self = claims.ok_or(DropReason::BadHeader)?;
        }
        Ok(())
    }

    fn parse_claims(
        bytes: &[u8; NET_HEADER_BYTES_LEGACY],
        allowed: Accepts,
        header: &[u8],
        frame_bytes: usize,
    ) -> Option<Offload> {
        let partial = Partial { start: le16(bytes, 6), offset: le16(bytes, 8) };
        let field = usize::from(partial.start) + usize::from(partial.offset);
        // The field must be in the private copy, where edits and completion can reach it.
        let in_place = usize::from(partial.start) >= FRAME_BYTES_MIN && field + 2 <= header.len();
        if bytes[0] & F_NEEDS_CSUM == 0 || !allowed.csum || !in_place {
            return None;
        }
        let mut offload = Offload { partial: Some(partial), gso: None, verified: false };
        let kind = bytes[1] & !GSO_ECN;
        if bytes[1] != GSO_NONE {
            let v6 = match kind {
                GSO_TCPV4 => false,
                GSO_TCPV6 => true,
                _ => return None,
            };
            let tcp = TcpLayout::of(header)?;
            let gso = Gso {
                v6,
                ecn: bytes[1] & GSO_ECN != 0,
                size: le16(bytes, 4),
                header_bytes: tcp.payload as u16,
            };
            let agrees = tcp.v6 == v6
                && tcp.tcp == usize::from(partial.start)
                && partial.offset == TCP_CSUM_OFFSET
                && gso.size > 0
                && tcp.payload <= frame_bytes;
            offload.gso = Some(gso);
            if !agrees || !allowed.takes(&offload) {
                return None;
            }
        }
        Some(offload)
    }

    /// The same after edits made the frame's header `grown` bytes longer (or shorter).
    #[inline]
    #[must_use]
    pub fn moved(self, grown: isize) -> Offload {
        let shift = |value: u16| value.saturating_add_signed(grown as i16);
        Offload {
            partial: self.partial.map(|partial| Partial { start: shift(partial.start), ..partial }),
            gso: self.gso.map(|gso| Gso { header_bytes: shift(gso.header_bytes), ..gso }),
            verified: self.verified,
        }
    }

    /// The header for a receiver that takes it ([`Accepts::takes`]) in `buffers` buffers. The first 10 bytes are
    /// those of a legacy driver.
    #[inline]
    pub fn emit(&self, accepts: Accepts, buffers: u16) -> [u8; NET_HEADER_BYTES] {
        let mut bytes = [0; NET_HEADER_BYTES];
        // With the two bytes in front of it: the four are loaded together when they are compared.
        bytes[8..12].copy_from_slice(&(u32::from(buffers) << 16).to_le_bytes());
        if self.partial.is_none() && !self.verified {
            return bytes;
        }
        if self.verified && accepts.csum {
            bytes[0] = F_DATA_VALID;
        }
        if let Some(partial) = self.partial {
            bytes[0] = F_NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&partial.start.to_le_bytes());
            bytes[8..10].copy_from_slice(&partial.offset.to_le_bytes());
        }
        if let Some(gso) = self.gso {
            bytes[1] = if gso.v6 { GSO_TCPV6 } else { GSO_TCPV4 } | if gso.ecn { GSO_ECN } else { 0 };
            bytes[2..4].copy_from_slice(&gso.header_bytes.to_le_bytes());
            bytes[4..6].copy_from_slice(&gso.size.to_le_bytes());
        }
        bytes
    }
}

/// Where the headers of a TCP packet are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct TcpLayout {
    v6: bool,
    /// Start of the IP header.
    ip: usize,
    /// Start of the TCP header.
    tcp: usize,
    /// Start of the payload.
    payload: usize,
}

impl TcpLayout {
    /// `None` unless the frame is TCP over IP, unfragmented, behind at most three VLAN tags, with all headers in
    /// `frame`.
    fn of(frame: &[u8]) -> Option<TcpLayout> {
        let mut at = 12;
        let mut kind = be16(frame, at)?;
        for _ in 0..3 {
            if kind == ethertype::VLAN || kind == ethertype::SERVICE_VLAN {
                at += 4;
                kind = be16(frame, at)?;
            }
        }
        let ip = at + 2;
        let (v6, tcp) = match kind {
            ethertype::IPV4 => (false, Self::behind_ipv4(frame, ip)?),
            ethertype::IPV6 => (true, Self::behind_ipv6(frame, ip)?),
            _ => return None,
        };
        let header_bytes = usize::from(*frame.get(tcp + 12)? >> 4) * 4;
        let payload = tcp + header_bytes;
        (header_bytes >= 20 && payload <= frame.len()).then_some(TcpLayout { v6, ip, tcp, payload })
    }

    fn behind_ipv4(frame: &[u8], ip: usize) -> Option<usize> {
        let header_bytes = usize::from(*frame.get(ip)? & 0xf) * 4;
        let fragment = be16(frame, ip + 6)? & 0x3fff;
        let good = frame[ip] >> 4 == 4 && header_bytes >= 20 && fragment == 0;
        (good && *frame.get(ip + 9)? == ip_proto::TCP).then_some(ip + header_bytes)
    }

    fn behind_ipv6(frame: &[u8], ip: usize) -> Option<usize> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const DESTINATION: u8 = 60;
        if frame.get(ip)? >> 4 != 6 {
            return None;
        }
        let (mut next, mut at) = (*frame.get(ip + 6)?, ip + 40);
        while matches!(next, HOP_BY_HOP | ROUTING | DESTINATION) {
            next = *frame.get(at)?;
            at += usize::from(*frame.get(at + 1)?) * 8 + 8;
        }
        (next == ip_proto::TCP).then_some(at)
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Completes the checksum of a whole frame. Nothing is done if the field is not in it.
pub fn complete_checksum(frame: &mut [u8], partial: Partial) {
    let start = usize::from(partial.start);
    let field = start + usize::from(partial.offset);
    if field + 2 > frame.len() {
        return;
    }
    let sum = checksum::checksum(&frame[start..]);
    // A UDP checksum of zero means "none" (RFC 768); 0xffff is the other zero and right for every protocol.
    let sum = if sum == 0 { 0xffff } else { sum };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Cuts a whole TCP frame into segments with complete checksums; each is given to `emit` as header and payload.
/// `false`, and nothing emitted, if the frame is not what `gso` says.
pub fn segment(frame: &[u8], gso: Gso, mut emit: impl FnMut(&[u8], &[u8])) -> bool {
    let headers = frame.len().min(HEADER_BYTES_MAX);
    let Some(layout) = TcpLayout::of(&frame[..headers]).filter(|layout| layout.v6 == gso.v6) else {
        return false;
    };
    let mut header = [0; HEADER_BYTES_MAX];
    let header = &mut header[..layout.payload];
    let payload = &frame[layout.payload..];
    let count = payload.len().div_ceil(usize::from(gso.size)).max(1);
    for number in 0..count {
        let begin = number * usize::from(gso.size);
        let part = &payload[begin..payload.len().min(begin + usize::from(gso.size))];
        header.copy_from_slice(&frame[..layout.payload]);
        segment_header(header, &layout, number, number + 1 == count, begin, part);
        emit(header, part);
    }
    true
}

/// Makes the header of segment `number`, whose payload `part` begins `begin` bytes into the packet's.
fn segment_header(
    header: &mut [u8],
    layout: &TcpLayout,
    number: usize,
    last: bool,
    begin: usize,
    part: &[u8],
) {
    const FIN_PSH: u8 = 0x09;
    const CWR: u8 = 0x80;
    let TcpLayout { v6, ip, tcp, payload } = *layout;
    let tcp_bytes = (payload - tcp + part.len()) as u16;
    let addresses = if v6 {
        let ip_bytes = (payload - ip - 40 + part.len()) as u16;
        header[ip + 4..ip + 6].copy_from_slice(&ip_bytes.to_be_bytes());
        ip + 8..ip + 40
    } else {
        let ip_bytes = (payload - ip + part.len()) as u16;
        let id = be16(header, ip + 4).unwrap_or(0).wrapping_add(number as u16);
        header[ip + 2..ip + 4].copy_from_slice(&ip_bytes.to_be_bytes());
        header[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
        header[ip + 10..ip + 12].fill(0);
        let sum = checksum::checksum(&header[ip..tcp]);
        header[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
        ip + 12..ip + 20
    };
    let sequence = be32(header, tcp + 4).wrapping_add(begin as u32);
    header[tcp + 4..tcp + 8].copy_from_slice(&sequence.to_be_bytes());
    if !last {
        header[tcp + 13] &= !FIN_PSH;
    }
    if number > 0 {
        header[tcp + 13] &= !CWR;
    }
    header[tcp + 16..tcp + 18].fill(0);
    let pseudo = checksum::sum(&header[addresses], u32::from(ip_proto::TCP) + u32::from(tcp_bytes));
    // The header has an even length, so the payload's sum can be added.
    let sum = checksum::sum(part, checksum::sum(&header[tcp..], pseudo));
    header[tcp + 16..tcp + 18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// Bytes of VLAN tags in front of the EtherType: what a frame may be longer than its port's MTU.
pub fn vlan_bytes(frame: &[u8]) -> usize {
    let mut at = 12;
    while at < 24 && matches!(be16(frame, at), Some(ethertype::VLAN | ethertype::SERVICE_VLAN)) {
        at += 4;
    }
    at - 12
}

#[cfg(test)]
#[path = "offload_tests.rs"]
mod tests;
