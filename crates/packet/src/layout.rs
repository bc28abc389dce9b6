//! Where the layers of a frame begin: the same walk as the parser's, for edits that must find a field's bytes.

use crate::parse::{extension_headers, vlan_stack};
use crate::{FlowKey, ethertype, field, ip_proto};

/// The network layer of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Network {
    /// IPv4 with a sane header.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// ARP for Ethernet and IPv4.
    Arp,
}

/// Offsets into a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    pub network: Network,
    /// Where the network header begins.
    pub l3: usize,
    /// Protocol above IP; 0 for ARP.
    pub proto: u8,
    /// Where the protocol's number stands.
    pub proto_at: usize,
    /// Where a complete transport header begins; `None` in later fragments and where it is cut off.
    pub l4: Option<usize>,
    /// The end of what belongs to the packet within the header copy.
    pub end: usize,
    /// Bytes from `l4` to the end of the packet by its network header, however much of it is in the copy; 0 where
    /// that is not known: fragments and jumbograms.
    pub l4_bytes: usize,
    /// An IPv6 routing header with segments left: the destination is not the one in the transport checksum.
    pub routed: bool,
}

impl Layout {
    /// The layout of a frame; `None` if it is neither IP nor ARP, or broken.
    pub fn of(frame: &[u8]) -> Option<Layout> {
        let (&[.., t0, t1], rest) = frame.split_first_chunk::<14>()?;
        let mut key = FlowKey::ZERO;
        let payload = vlan_stack(&mut key, u16::from_be_bytes([t0, t1]), rest);
        let l3 = frame.len() - payload.len();
        match key.get(field::ETH_TYPE) as u16 {
            ethertype::IPV4 => ipv4(frame, l3),
            ethertype::IPV6 => ipv6(frame, l3),
            ethertype::ARP if payload.get(..6) == Some(&[0, 1, 8, 0, 6, 4]) && payload.len() >= 28 => {
                let end = l3 + 28;
                let (proto, proto_at, l4, l4_bytes) = (0, l3, None, 0);
                Some(Layout { network: Network::Arp, l3, proto, proto_at, l4, end, l4_bytes, routed: false })
            }
            _ => None,
        }
    }

    /// Where the transport checksum is, if the protocol has one that can be updated.
    pub fn checksum_at(&self) -> Option<usize> {
        let offset = match (self.proto, self.network) {
            (ip_proto::TCP, _) => 16,
            (ip_proto::UDP, _) => 6,
            (ip_proto::ICMP, Network::Ipv4) | (ip_proto::ICMPV6, Network::Ipv6) => 2,
            _ => return None,
        };
        self.l4.map(|l4| l4 + offset)
    }
}

/// Bytes that a transport header must have to be one.
#[inline]
pub(crate) fn transport_len(proto: u8, ipv6: bool) -> Option<usize> {
    match proto {
        ip_proto::TCP => Some(20),
        ip_proto::UDP => Some(8),
        ip_proto::SCTP => Some(12),
        ip_proto::ICMP if !ipv6 => Some(4),
        ip_proto::ICMPV6 if ipv6 => Some(4),
        _ => None,
    }
}

fn ipv4(frame: &[u8], l3: usize) -> Option<Layout> {
    let header = frame[l3..].first_chunk::<20>()?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header_len < 20 || total_len < header_len || frame.len() < l3 + header_len {
        return None;
    }
    let proto = header[9];
    let end = frame.len().min(l3 + total_len);
    let l4 = l3 + header_len;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let first = fragment & 0x1fff == 0;
    let whole = transport_len(proto, false).is_some_and(|len| end - l4 >= len);
    let l4 = (first && whole).then_some(l4);
    let l4_bytes = if fragment & 0x3fff == 0 { total_len - header_len } else { 0 };
    let (network, proto_at, routed) = (Network::Ipv4, l3 + 9, false);
    Some(Layout { network, l3, proto, proto_at, l4, end, l4_bytes, routed })
}

fn ipv6(frame: &[u8], l3: usize) -> Option<Layout> {
    let (header, rest) = frame[l3..].split_first_chunk::<40>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let rest = if payload_len == 0 { rest } else { &rest[..rest.len().min(payload_len)] };
    let end = l3 + 40 + rest.len();
    let chain = extension_headers(header[6], rest);
    let extensions = rest.len() - chain.rest.len();
    let proto_at = chain.proto_at.map_or(l3 + 6, |at| l3 + 40 + at);
    let l4_bytes = if chain.fragment { 0 } else { payload_len.saturating_sub(extensions) };
    let whole = transport_len(chain.proto, true).is_some_and(|len| chain.rest.len() >= len);
    let l4 = (!chain.later_fragment && whole).then(|| end - chain.rest.len());
    let (network, proto, routed) = (Network::Ipv6, chain.proto, chain.routed);
    Some(Layout { network, l3, proto, proto_at, l4, end, l4_bytes, routed })
}
