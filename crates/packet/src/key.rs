//! The flow key: every OpenFlow 1.3 match field of a frame in sixteen words, so that a mask is sixteen words
//! too and "masked and compared" is plain word arithmetic.

use std::fmt;

/// Words of a key.
pub const WORDS: usize = 16;

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// The address as the low 48 bits of a number, first byte on the wire most significant.
    pub const fn to_u64(self) -> u64 {
        let b = self.0;
        u64::from_be_bytes([0, 0, b[0], b[1], b[2], b[3], b[4], b[5]])
    }

    /// Inverse of [`MacAddr::to_u64`]; the high 16 bits are ignored.
    pub const fn from_u64(value: u64) -> MacAddr {
        let b = value.to_be_bytes();
        MacAddr([b[2], b[3], b[4], b[5], b[6], b[7]])
    }

    /// The group bit: multicast or broadcast.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = self.0;
        write!(f, "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[0], b[1], b[2], b[3], b[4], b[5])
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a field of at most 64 bits lives in a [`FlowKey`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    word: u8,
    shift: u8,
    bits: u8,
}

impl Field {
    const fn new(word: u8, shift: u8, bits: u8) -> Field {
        assert!((word as usize) < WORDS && shift as u32 + bits as u32 <= 64 && bits > 0);
        Field { word, shift, bits }
    }

    /// Width in bits.
    pub const fn bits(self) -> u8 {
        self.bits
    }

    /// The largest value, which is also the exact mask.
    pub const fn max(self) -> u64 {
        u64::MAX >> (64 - self.bits as u32)
    }
}

/// The fields, by their OpenFlow names. Fields whose prerequisites exclude each other share their place: a
/// match is only valid with its prerequisites (OpenFlow 1.3.5, 7.2.3.8), so what is in the place is then known.
pub mod field {
    use super::Field;

    /// Ingress port.
    pub const IN_PORT: Field = Field::new(0, 32, 32);
    /// EtherType after the VLAN tags.
    pub const ETH_TYPE: Field = Field::new(0, 16, 16);
    /// Outer VLAN tag: PCP (3 bits), present bit 0x1000 (`OFPVID_PRESENT`), VID (12 bits); 0 = untagged.
    pub const VLAN_TCI: Field = Field::new(0, 0, 16);
    /// The present bit and the VID of [`VLAN_TCI`]: `OXM_OF_VLAN_VID`.
    pub const VLAN_VID: Field = Field::new(0, 0, 13);
    /// PCP of [`VLAN_TCI`].
    pub const VLAN_PCP: Field = Field::new(0, 13, 3);
    /// Destination address.
    pub const ETH_DST: Field = Field::new(1, 16, 48);
    /// IP protocol or IPv6 upper-layer next header.
    pub const IP_PROTO: Field = Field::new(1, 8, 8);
    /// DSCP.
    pub const IP_DSCP: Field = Field::new(1, 2, 6);
    /// ECN.
    pub const IP_ECN: Field = Field::new(1, 0, 2);
    /// Source address.
    pub const ETH_SRC: Field = Field::new(2, 16, 48);
    /// IPv6 extension header bits (`OFPIEH_*`).
    pub const IPV6_EXTHDR: Field = Field::new(2, 0, 9);
    /// 1: a fragment of an IP packet. Not matchable; switches may be told to drop them (`OFPC_FRAG_DROP`).
    pub const IP_FRAGMENT: Field = Field::new(2, 9, 1);
    /// IPv4 source.
    pub const IPV4_SRC: Field = Field::new(3, 32, 32);
    /// IPv4 destination.
    pub const IPV4_DST: Field = Field::new(3, 0, 32);
    /// ARP sender protocol address.
    pub const ARP_SPA: Field = IPV4_SRC;
    /// ARP target protocol address.
    pub const ARP_TPA: Field = IPV4_DST;
    /// Source port of TCP, UDP or SCTP.
    pub const TP_SRC: Field = Field::new(4, 48, 16);
    /// Destination port of TCP, UDP or SCTP.
    pub const TP_DST: Field = Field::new(4, 32, 16);
    /// ICMP or ICMPv6 type (8 bits).
    pub const ICMP_TYPE: Field = TP_SRC;
    /// ICMP or ICMPv6 code (8 bits).
    pub const ICMP_CODE: Field = TP_DST;
    /// ARP opcode.
    pub const ARP_OP: Field = TP_SRC;
    /// Label of the outer MPLS entry.
    pub const MPLS_LABEL: Field = Field::new(4, 12, 20);
    /// Traffic class of the outer MPLS entry.
    pub const MPLS_TC: Field = Field::new(4, 9, 3);
    /// Bottom of stack bit of the outer MPLS entry.
    pub const MPLS_BOS: Field = Field::new(4, 8, 1);
    /// What is below the MPLS stack, seen through at most two entries: 0 unknown, 1 IPv4, 2 IPv6, 3 ARP. Not
    /// matchable; says what a pop uncovers.
    pub const MPLS_PAYLOAD: Field = Field::new(4, 0, 2);
    /// Table metadata; zero at the start of the pipeline.
    pub const METADATA: Field = Field::new(5, 0, 64);
    /// Logical port metadata.
    pub const TUNNEL_ID: Field = Field::new(6, 0, 64);
    /// First half of the IPv6 source.
    pub const IPV6_SRC_HI: Field = Field::new(7, 0, 64);
    /// Second half of the IPv6 source.
    pub const IPV6_SRC_LO: Field = Field::new(8, 0, 64);
    /// First half of the IPv6 destination.
    pub const IPV6_DST_HI: Field = Field::new(9, 0, 64);
    /// Second half of the IPv6 destination.
    pub const IPV6_DST_LO: Field = Field::new(10, 0, 64);
    /// ARP sender hardware address.
    pub const ARP_SHA: Field = Field::new(11, 16, 48);
    /// Source link-layer option of a neighbour solicitation.
    pub const ND_SLL: Field = ARP_SHA;
    /// ARP target hardware address.
    pub const ARP_THA: Field = Field::new(12, 16, 48);
    /// Target link-layer option of a neighbour advertisement.
    pub const ND_TLL: Field = ARP_THA;
    /// Second VLAN tag, as [`VLAN_TCI`]; not matchable, becomes the outer one after a pop.
    pub const VLAN_TCI_2: Field = Field::new(11, 0, 16);
    /// Third VLAN tag.
    pub const VLAN_TCI_3: Field = Field::new(12, 0, 16);
    /// First half of the target of a neighbour solicitation or advertisement.
    pub const ND_TARGET_HI: Field = Field::new(13, 0, 64);
    /// Second half of that target.
    pub const ND_TARGET_LO: Field = Field::new(14, 0, 64);
    /// IPv6 flow label.
    pub const IPV6_FLABEL: Field = Field::new(15, 44, 20);
    /// Second MPLS entry: label, traffic class, bottom bit as in word 4; becomes the outer one after a pop.
    pub const MPLS_2: Field = Field::new(15, 20, 24);
    /// Physical port below the ingress port: the same port.
    pub const IN_PHY_PORT: Field = Field::new(15, 0, 20);
    /// The outer MPLS entry as one number: label, traffic class, bottom bit.
    pub const MPLS_1: Field = Field::new(4, 8, 24);
}

/// The match fields of one frame, or a mask over them. See [`field`] for the places.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FlowKey {
    words: [u64; WORDS],
}

impl FlowKey {
    /// All fields zero; as a mask: matches everything.
    pub const ZERO: FlowKey = FlowKey { words: [0; WORDS] };

    /// The words themselves.
    #[inline]
    pub const fn words(&self) -> &[u64; WORDS] {
        &self.words
    }

    /// A key made of words.
    #[inline]
    pub const fn from_words(words: [u64; WORDS]) -> FlowKey {
        FlowKey { words }
    }

    /// The value of a field, right-aligned.
    #[inline]
    pub const fn get(&self, field: Field) -> u64 {
        (self.words[field.word as usize] >> field.shift) & field.max()
    }

    /// Sets a field; bits of `value` beyond its width are ignored.
    #[inline]
    pub const fn set(&mut self, field: Field, value: u64) {
        let word = &mut self.words[field.word as usize];
        *word = (*word & !(field.max() << field.shift)) | ((value & field.max()) << field.shift);
    }

    /// `self` with a field set: for building keys and masks in one expression.
    #[must_use]
    pub const fn with(mut self, field: Field, value: u64) -> FlowKey {
        self.set(field, value);
        self
    }

    /// The fields that `mask` selects, all others zero.
    #[inline]
    #[must_use]
    pub fn masked(&self, mask: &FlowKey) -> FlowKey {
        FlowKey { words: std::array::from_fn(|i| self.words[i] & mask.words[i]) }
    }

    /// The bits set in either: the union of two masks.
    #[inline]
    #[must_use]
    pub fn union(&self, other: &FlowKey) -> FlowKey {
        FlowKey { words: std::array::from_fn(|i| self.words[i] | other.words[i]) }
    }

    /// Whether `self`, a mask, has every bit of `other`.
    pub fn covers(&self, other: &FlowKey) -> bool {
        self.words.iter().zip(&other.words).all(|(a, b)| a & b == *b)
    }

    /// Whether the frame key `self` agrees with `key` under `mask`.
    #[inline]
    pub fn matches(&self, key: &FlowKey, mask: &FlowKey) -> bool {
        (0..WORDS).all(|i| (self.words[i] ^ key.words[i]) & mask.words[i] == 0)
    }

    /// Ingress port.
    #[inline]
    pub const fn in_port(&self) -> u32 {
        self.get(field::IN_PORT) as u32
    }

    /// EtherType after the VLAN tags.
    #[inline]
    pub const fn eth_type(&self) -> u16 {
        self.get(field::ETH_TYPE) as u16
    }

    /// Destination address.
    #[inline]
    pub const fn eth_dst(&self) -> MacAddr {
        MacAddr::from_u64(self.get(field::ETH_DST))
    }

    /// Source address.
    #[inline]
    pub const fn eth_src(&self) -> MacAddr {
        MacAddr::from_u64(self.get(field::ETH_SRC))
    }

    /// VID of the outer tag; `None` = untagged.
    #[inline]
    pub const fn vlan_vid(&self) -> Option<u16> {
        let tci = self.get(field::VLAN_TCI) as u16;
        if tci & 0x1000 != 0 { Some(tci & 0xfff) } else { None }
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (i, word) in self.words.iter().enumerate().filter(|(_, w)| **w != 0) {
            map.entry(&i, &format_args!("{word:#018x}"));
        }
        map.finish()
    }
}
