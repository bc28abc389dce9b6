//! Frames: bytes to [`FlowKey`], header edits on a private copy, checksums.
//!
//! Nothing here does I/O, allocates on the data path or can panic on any bytes: a field that a frame does not
//! have, or that lies beyond the bytes given, reads as zero in the key.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod edit;
mod header;
mod key;
mod layout;
mod parse;

pub use edit::{Edit, Outcome};
pub use header::{HEADER_BYTES_MAX, HEADER_BYTES_SHORT, HEADROOM_BYTES, Header};
pub use key::{Field, FlowKey, MacAddr, WORDS, field};
pub use parse::{Depth, parse, parse_into, parse_to};

/// EtherTypes the parser knows (IEEE 802 numbers).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// Reverse ARP, announced by a guest that moved.
    pub const RARP: u16 = 0x8035;
    /// Customer VLAN tag, 802.1Q.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// MPLS unicast.
    pub const MPLS: u16 = 0x8847;
    /// MPLS multicast.
    pub const MPLS_MULTICAST: u16 = 0x8848;
    /// Service VLAN tag, 802.1ad.
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// Backbone service instance tag, 802.1ah.
    pub const PBB: u16 = 0x88e7;
    /// What the key holds for an 802.3 frame with a length instead of a type and no SNAP header.
    pub const NONE: u16 = 0x05ff;
}

/// IP protocol numbers the parser knows.
pub mod ip_proto {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}
