//! Match fields (OXM TLVs, 7.2.3).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::error::{DecodeError, EncodeError, ErrorCode};
use crate::types::{MacAddr, PortNo};
use crate::wire::{Reader, Wire, Writer};

/// `OFPVID_PRESENT`: in VLAN_VID this bit says that there is a VLAN tag.
pub const VID_PRESENT: u16 = 0x1000;
/// `OFPVID_NONE`: VLAN_VID of a frame without tag.
pub const VID_NONE: u16 = 0x0000;

const CLASS_BASIC: u16 = 0x8000;
const CLASS_EXPERIMENTER: u16 = 0xffff;

/// A value with an optional bit mask; without mask all bits are compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Masked<T> {
    /// The bits to find; zero where the mask is zero.
    pub value: T,
    /// The bits that are compared.
    pub mask: Option<T>,
}

impl<T> Masked<T> {
    /// All bits must be those of `value`.
    pub const fn exact(value: T) -> Masked<T> {
        Masked { value, mask: None }
    }

    /// The bits set in `mask` must be those of `value`.
    pub const fn with_mask(value: T, mask: T) -> Masked<T> {
        Masked { value, mask: Some(mask) }
    }
}

/// A type that the value of a match field can have.
pub trait OxmValue: Copy + Eq {
    /// Bytes on the wire.
    const BYTES: usize;
    /// The value as a number, most significant byte first on the wire.
    fn to_number(self) -> u128;
    /// The value of this number; higher bits than the type has are cut off.
    fn from_number(number: u128) -> Self;
}

macro_rules! integer_values {
    ($($t:ty: $bytes:literal,)*) => {$(
        impl OxmValue for $t {
            const BYTES: usize = $bytes;
            fn to_number(self) -> u128 {
                self.into()
            }
            fn from_number(number: u128) -> $t {
                number as $t
            }
        }
    )*};
}
integer_values! { u8: 1, u16: 2, u32: 4, u64: 8, }

impl OxmValue for PortNo {
    const BYTES: usize = 4;
    fn to_number(self) -> u128 {
        self.0.into()
    }
    fn from_number(number: u128) -> PortNo {
        PortNo(number as u32)
    }
}

impl OxmValue for MacAddr {
    const BYTES: usize = 6;
    fn to_number(self) -> u128 {
        self.0.iter().fold(0, |number, &byte| number << 8 | u128::from(byte))
    }
    fn from_number(number: u128) -> MacAddr {
        let [.., a, b, c, d, e, f] = number.to_be_bytes();
        MacAddr([a, b, c, d, e, f])
    }
}

impl OxmValue for Ipv4Addr {
    const BYTES: usize = 4;
    fn to_number(self) -> u128 {
        self.to_bits().into()
    }
    fn from_number(number: u128) -> Ipv4Addr {
        Ipv4Addr::from_bits(number as u32)
    }
}

impl OxmValue for Ipv6Addr {
    const BYTES: usize = 16;
    fn to_number(self) -> u128 {
        self.to_bits()
    }
    fn from_number(number: u128) -> Ipv6Addr {
        Ipv6Addr::from_bits(number)
    }
}

/// What a match field carries: a plain value, or a value with an optional mask.
pub trait OxmPayload: Copy {
    /// The type of the value and of the mask.
    type Value: OxmValue;
    /// Whether the field can have a mask.
    const MASKABLE: bool;
    /// Value and mask.
    fn parts(self) -> (Self::Value, Option<Self::Value>);
    /// The reverse; a mask is dropped where none is possible, so check [`OxmPayload::MASKABLE`] before.
    fn from_parts(value: Self::Value, mask: Option<Self::Value>) -> Self;
}

impl<T: OxmValue> OxmPayload for T {
    type Value = T;
    const MASKABLE: bool = false;
    fn parts(self) -> (T, Option<T>) {
        (self, None)
    }
    fn from_parts(value: T, _mask: Option<T>) -> T {
        value
    }
}

impl<T: OxmValue> OxmPayload for Masked<T> {
    type Value = T;
    const MASKABLE: bool = true;
    fn parts(self) -> (T, Option<T>) {
        (self.value, self.mask)
    }
    fn from_parts(value: T, mask: Option<T>) -> Masked<T> {
        Masked { value, mask }
    }
}

macro_rules! fields {
    ($($(#[$meta:meta])* $variant:ident($payload:ty) = $number:literal, $bits:literal, $name:literal;)*) => {
        /// The match fields of the basic class, without their values.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum Field { $($(#[$meta])* $variant,)* }

        impl Field {
            /// All fields, in the order of their numbers.
            pub const ALL: &[Field] = &[$(Field::$variant,)*];

            /// The number of the field in the basic class (`OFPXMT_OFB_*`).
            pub const fn number(self) -> u8 {
                match self { $(Field::$variant => $number,)* }
            }

            /// The field with this number.
            pub const fn from_number(number: u8) -> Option<Field> {
                match number { $($number => Some(Field::$variant),)* _ => None }
            }

            /// The name in the specification, in lower case.
            pub const fn name(self) -> &'static str {
                match self { $(Field::$variant => $name,)* }
            }

            /// The field of this name.
            pub fn from_name(name: &str) -> Option<Field> {
                match name { $($name => Some(Field::$variant),)* _ => None }
            }

            /// Bits of the value that have a meaning.
            pub const fn bits(self) -> u32 {
                match self { $(Field::$variant => $bits,)* }
            }

            /// Bytes of the value on the wire.
            pub const fn bytes(self) -> usize {
                match self { $(Field::$variant => <<$payload as OxmPayload>::Value as OxmValue>::BYTES,)* }
            }

            /// Whether a mask is allowed.
            pub const fn maskable(self) -> bool {
                match self { $(Field::$variant => <$payload as OxmPayload>::MASKABLE,)* }
            }

            /// This field with a value and a mask given as numbers. `None` when a bit lies beyond the field's width,
            /// a mask is not allowed, or the value has bits outside of the mask.
            pub fn with(self, value: u128, mask: Option<u128>) -> Option<OxmField> {
                let wide = |n: u128| n.checked_shr(self.bits()).unwrap_or(0) != 0;
                if wide(value) || mask.is_some_and(|m| wide(m) || value & !m != 0 || !self.maskable()) {
                    return None;
                }
                Some(self.with_checked(value, mask))
            }

            /// This field with a value and a mask that it can have.
            fn with_checked(self, value: u128, mask: Option<u128>) -> OxmField {
                match self {
                    $(Field::$variant => OxmField::$variant(<$payload as OxmPayload>::from_parts(
                        OxmValue::from_number(value),
                        mask.map(OxmValue::from_number),
                    )),)*
                }
            }
        }

        /// One match field with its value.
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum OxmField {
            $($(#[$meta])* $variant($payload),)*
            /// A field this codec does not know, as it came.
            Raw(RawOxm),
        }

        impl OxmField {
            /// Which field of the basic class this is; `None` for a raw one.
            pub const fn field(&self) -> Option<Field> {
                match self { $(OxmField::$variant(_) => Some(Field::$variant),)* OxmField::Raw(_) => None }
            }

            /// Value and mask as numbers; `None` for a raw field.
            pub fn numbers(&self) -> Option<(u128, Option<u128>)> {
                match *self {
                    $(OxmField::$variant(payload) => {
                        let (value, mask) = payload.parts();
                        Some((value.to_number(), mask.map(OxmValue::to_number)))
                    })*
                    OxmField::Raw(_) => None,
                }
            }
        }
    };
}

fields! {
    /// Ingress port.
    InPort(PortNo) = 0, 32, "in_port";
    /// Physical port below a logical ingress port.
    InPhyPort(PortNo) = 1, 32, "in_phy_port";
    /// Metadata passed between tables.
    Metadata(Masked<u64>) = 2, 64, "metadata";
    /// Ethernet destination.
    EthDst(Masked<MacAddr>) = 3, 48, "eth_dst";
    /// Ethernet source.
    EthSrc(Masked<MacAddr>) = 4, 48, "eth_src";
    /// Ethernet type after VLAN tags.
    EthType(u16) = 5, 16, "eth_type";
    /// VLAN id of the outermost tag, with [`VID_PRESENT`].
    VlanVid(Masked<u16>) = 6, 13, "vlan_vid";
    /// VLAN priority.
    VlanPcp(u8) = 7, 3, "vlan_pcp";
    /// Upper six bits of the IP ToS.
    IpDscp(u8) = 8, 6, "ip_dscp";
    /// Lower two bits of the IP ToS.
    IpEcn(u8) = 9, 2, "ip_ecn";
    /// IP protocol, after extension headers.
    IpProto(u8) = 10, 8, "ip_proto";
    /// IPv4 source.
    Ipv4Src(Masked<Ipv4Addr>) = 11, 32, "ipv4_src";
    /// IPv4 destination.
    Ipv4Dst(Masked<Ipv4Addr>) = 12, 32, "ipv4_dst";
    /// TCP source port. Masks on transport ports go beyond the specification, as in Open vSwitch.
    TcpSrc(Masked<u16>) = 13, 16, "tcp_src";
    /// TCP destination port.
    TcpDst(Masked<u16>) = 14, 16, "tcp_dst";
    /// UDP source port.
    UdpSrc(Masked<u16>) = 15, 16, "udp_src";
    /// UDP destination port.
    UdpDst(Masked<u16>) = 16, 16, "udp_dst";
    /// SCTP source port.
    SctpSrc(Masked<u16>) = 17, 16, "sctp_src";
    /// SCTP destination port.
    SctpDst(Masked<u16>) = 18, 16, "sctp_dst";
    /// ICMP type.
    Icmpv4Type(u8) = 19, 8, "icmpv4_type";
    /// ICMP code.
    Icmpv4Code(u8) = 20, 8, "icmpv4_code";
    /// ARP opcode.
    ArpOp(u16) = 21, 16, "arp_op";
    /// ARP source IPv4 address.
    ArpSpa(Masked<Ipv4Addr>) = 22, 32, "arp_spa";
    /// ARP target IPv4 address.
    ArpTpa(Masked<Ipv4Addr>) = 23, 32, "arp_tpa";
    /// ARP source hardware address.
    ArpSha(Masked<MacAddr>) = 24, 48, "arp_sha";
    /// ARP target hardware address.
    ArpTha(Masked<MacAddr>) = 25, 48, "arp_tha";
    /// IPv6 source.
    Ipv6Src(Masked<Ipv6Addr>) = 26, 128, "ipv6_src";
    /// IPv6 destination.
    Ipv6Dst(Masked<Ipv6Addr>) = 27, 128, "ipv6_dst";
    /// IPv6 flow label.
    Ipv6Flabel(Masked<u32>) = 28, 20, "ipv6_flabel";
    /// ICMPv6 type.
    Icmpv6Type(u8) = 29, 8, "icmpv6_type";
    /// ICMPv6 code.
    Icmpv6Code(u8) = 30, 8, "icmpv6_code";
    /// Target address of neighbour discovery.
    Ipv6NdTarget(Masked<Ipv6Addr>) = 31, 128, "ipv6_nd_target";
    /// Source link-layer address of a neighbour solicitation.
    Ipv6NdSll(MacAddr) = 32, 48, "ipv6_nd_sll";
    /// Target link-layer address of a neighbour advertisement.
    Ipv6NdTll(MacAddr) = 33, 48, "ipv6_nd_tll";
    /// MPLS label of the outermost entry.
    MplsLabel(u32) = 34, 20, "mpls_label";
    /// MPLS traffic class.
    MplsTc(u8) = 35, 3, "mpls_tc";
    /// MPLS bottom of stack.
    MplsBos(u8) = 36, 1, "mpls_bos";
    /// Metadata of a logical port, e.g. a tunnel id.
    TunnelId(Masked<u64>) = 38, 64, "tunnel_id";
    /// Presence bits of IPv6 extension headers.
    Ipv6Exthdr(Masked<u16>) = 39, 9, "ipv6_exthdr";
}

/// A match field that this codec does not know: PBB, another class, an experimenter's.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RawOxm {
    /// The class; 0x8000 is the basic one, 0xffff means that `payload` begins with the experimenter's number.
    pub class: u16,
    /// The field's number, 7 bits.
    pub field: u8,
    /// Whether the second half of the payload is a mask.
    pub has_mask: bool,
    /// What follows the four bytes of header, at most 255 bytes.
    pub payload: Vec<u8>,
}

impl Field {
    /// The field with all its bits compared, without mask if it has all of its bits.
    pub(crate) fn full_mask(self) -> u128 {
        u128::MAX >> (128 - self.bits())
    }

    /// Whether a set-field action may write it (7.2.5).
    pub const fn settable(self) -> bool {
        !matches!(self, Field::InPort | Field::InPhyPort | Field::Metadata | Field::Ipv6Exthdr)
    }

    fn header(self, has_mask: bool) -> u32 {
        let len = self.bytes() * if has_mask { 2 } else { 1 };
        oxm_header(CLASS_BASIC, self.number(), has_mask, len as u8)
    }
}

fn oxm_header(class: u16, field: u8, has_mask: bool, len: u8) -> u32 {
    u32::from(class) << 16 | u32::from(field & 0x7f) << 9 | u32::from(has_mask) << 8 | u32::from(len)
}

impl OxmField {
    /// The name in the specification, or `experimenter` / `unknown` for a raw field.
    pub fn name(&self) -> &'static str {
        match (self.field(), self) {
            (Some(field), _) => field.name(),
            (None, OxmField::Raw(raw)) if raw.class == CLASS_EXPERIMENTER => "experimenter",
            _ => "unknown",
        }
    }

    /// Whether a mask is given.
    pub fn has_mask(&self) -> bool {
        match self {
            OxmField::Raw(raw) => raw.has_mask,
            _ => self.numbers().is_some_and(|(_, mask)| mask.is_some()),
        }
    }
}

/// A big-endian number of as many bytes as a field can have.
#[inline]
fn number(bytes: &[u8]) -> u128 {
    let mut all = [0; 16];
    // Each length by itself is a load; any length is a loop.
    match bytes.len() {
        1 => return bytes[0].into(),
        2 => all[14..].copy_from_slice(&bytes[..2]),
        4 => all[12..].copy_from_slice(&bytes[..4]),
        6 => all[10..].copy_from_slice(&bytes[..6]),
        8 => all[8..].copy_from_slice(&bytes[..8]),
        _ => return bytes.iter().fold(0, |number, &byte| number << 8 | u128::from(byte)),
    }
    u128::from_be_bytes(all)
}

impl Field {
    /// The value and the mask that a payload on the wire says, or the code to answer with.
    #[inline]
    pub(crate) fn read(self, payload: &[u8], has_mask: bool) -> Result<(u128, Option<u128>), ErrorCode> {
        if has_mask && !self.maskable() {
            return Err(ErrorCode::MATCH_BAD_MASK);
        }
        let bytes = self.bytes();
        if payload.len() != bytes << u32::from(has_mask) {
            return Err(ErrorCode::MATCH_BAD_LEN);
        }
        let value = number(&payload[..bytes]);
        // A mask may have bits beyond a 13-, 20- or 9-bit value; they say nothing.
        let mask = has_mask.then(|| number(&payload[bytes..]) & self.full_mask());
        if mask.is_some_and(|mask| value & !mask != 0) {
            return Err(ErrorCode::MATCH_BAD_WILDCARDS);
        }
        if value & !self.full_mask() != 0 {
            return Err(ErrorCode::MATCH_BAD_VALUE);
        }
        Ok((value, mask))
    }

    /// The field that the first bytes of a header on the wire name, if this codec knows it.
    #[inline]
    pub(crate) fn of(class: u16, number: u8) -> Option<Field> {
        if class == CLASS_BASIC { Field::from_number(number) } else { None }
    }
}

impl Wire for OxmField {
    fn put(&self, w: &mut Writer<'_>) {
        if let OxmField::Raw(raw) = self {
            let Ok(len) = u8::try_from(raw.payload.len()) else {
                return w.fail(EncodeError::BadField { field: "unknown" });
            };
            let known = raw.class == CLASS_BASIC && Field::from_number(raw.field).is_some();
            if known || raw.field > 0x7f {
                return w.fail(EncodeError::BadField { field: "unknown" });
            }
            w.u32(oxm_header(raw.class, raw.field, raw.has_mask, len));
            return w.bytes(&raw.payload);
        }
        let (Some(field), Some((value, mask))) = (self.field(), self.numbers()) else { return };
        if field.with(value, mask).is_none() {
            return w.fail(EncodeError::BadField { field: field.name() });
        }
        w.u32(field.header(mask.is_some()));
        let skip = 16 - field.bytes();
        w.bytes(&value.to_be_bytes()[skip..]);
        if let Some(mask) = mask {
            w.bytes(&mask.to_be_bytes()[skip..]);
        }
    }

    fn get(r: &mut Reader<'_>) -> Result<OxmField, DecodeError> {
        let (class, second, len) = (r.u16()?, r.u8()?, r.u8()?);
        let (number_of_field, has_mask) = (second >> 1, second & 1 != 0);
        let payload = r.take(len.into())?;
        let Some(field) = Field::of(class, number_of_field) else {
            let payload = payload.to_vec();
            return Ok(OxmField::Raw(RawOxm { class, field: number_of_field, has_mask, payload }));
        };
        let numbers = field.read(payload, has_mask);
        let (value, mask) = numbers.map_err(|code| DecodeError::new(code, field.name()))?;
        Ok(field.with_checked(value, mask))
    }
}

/// The header of a match field without its value, as table features list them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct OxmId {
    /// The class.
    pub class: u16,
    /// The field's number, 7 bits.
    pub field: u8,
    /// Whether the field can have (or has) a mask.
    pub has_mask: bool,
    /// Bytes of payload.
    pub len: u8,
    /// The experimenter, for class 0xffff.
    pub experimenter: u32,
}

impl OxmId {
    /// The id of a field of the basic class. `len` counts the value, and the mask too when there is one.
    pub fn new(field: Field, has_mask: bool) -> OxmId {
        let len = (field.bytes() * if has_mask { 2 } else { 1 }) as u8;
        OxmId { class: CLASS_BASIC, field: field.number(), has_mask, len, experimenter: 0 }
    }

    /// The field, if this codec knows it.
    pub fn known(&self) -> Option<Field> {
        Field::of(self.class, self.field)
    }
}

impl Wire for OxmId {
    fn put(&self, w: &mut Writer<'_>) {
        w.u32(oxm_header(self.class, self.field, self.has_mask, self.len));
        if self.class == CLASS_EXPERIMENTER {
            w.u32(self.experimenter);
        }
    }

    fn get(r: &mut Reader<'_>) -> Result<OxmId, DecodeError> {
        let (class, second, len) = (r.u16()?, r.u8()?, r.u8()?);
        let experimenter = if class == CLASS_EXPERIMENTER { r.u32()? } else { 0 };
        Ok(OxmId { class, field: second >> 1, has_mask: second & 1 != 0, len, experimenter })
    }
}

impl fmt::Display for OxmField {
    /// `name=value` or `name=value/mask`, addresses in their usual form, other numbers decimal without mask and
    /// hexadecimal with.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let OxmField::Raw(raw) = self {
            write!(f, "oxm(class={:#x},field={},mask={}", raw.class, raw.field, u8::from(raw.has_mask))?;
            f.write_str(",payload=")?;
            raw.payload.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
            return f.write_str(")");
        }
        let (Some(field), Some((value, mask))) = (self.field(), self.numbers()) else { return Ok(()) };
        write!(f, "{}=", field.name())?;
        field.write_number(f, value, mask.is_some())?;
        let Some(mask) = mask else { return Ok(()) };
        f.write_str("/")?;
        field.write_number(f, mask, true)
    }
}

impl Field {
    fn write_number(self, f: &mut fmt::Formatter<'_>, number: u128, hexadecimal: bool) -> fmt::Result {
        match (self, self.bits()) {
            (_, 48) => write!(f, "{}", MacAddr::from_number(number)),
            (_, 128) => write!(f, "{}", Ipv6Addr::from_bits(number)),
            (Field::Ipv4Src | Field::Ipv4Dst | Field::ArpSpa | Field::ArpTpa, _) => {
                write!(f, "{}", Ipv4Addr::from_number(number))
            }
            (Field::InPort | Field::InPhyPort, _) => write!(f, "{}", PortNo::from_number(number)),
            (Field::EthType | Field::VlanVid | Field::Metadata | Field::TunnelId, _) => {
                write!(f, "{number:#x}")
            }
            _ if hexadecimal => write!(f, "{number:#x}"),
            _ => write!(f, "{number}"),
        }
    }
}
