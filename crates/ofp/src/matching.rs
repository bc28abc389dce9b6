//! `ofp_match` (7.2.3): an ordered list of match fields.

use std::fmt;

use crate::error::{DecodeError, ErrorCode};
use crate::oxm::{Field, OxmField, VID_PRESENT};
use crate::wire::{Reader, Wire, Writer, padding8};

pub(crate) const TYPE_OXM: u16 = 1;
/// Bytes of type and length.
pub(crate) const HEADER: usize = 4;

/// The packets a flow entry is for: those that fit every field. No field means every packet.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
pub struct Match {
    /// The fields in the order of the message.
    pub fields: Vec<OxmField>,
}

/// A rule of 7.2.3 that a match breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("match field {field}: {problem} ({code})")]
pub struct MatchError {
    /// The error to answer with.
    pub code: ErrorCode,
    /// The name of the field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Match {
    /// Every packet.
    pub fn any() -> Match {
        Match::default()
    }

    /// Adds a field.
    #[must_use]
    pub fn with(mut self, field: OxmField) -> Match {
        self.fields.push(field);
        self
    }

    /// The field of this kind, if there is one.
    pub fn field(&self, field: Field) -> Option<&OxmField> {
        self.fields.iter().find(|f| f.field() == Some(field))
    }

    /// Checks what a switch must check before it uses the match: every field known, none twice, the prerequisites
    /// of each before it (7.2.3.6).
    ///
    /// # Errors
    /// The first rule that is broken, with the code to answer.
    pub fn validate(&self) -> Result<(), MatchError> {
        let mut given = Given::default();
        for oxm in &self.fields {
            let refuse = |code, problem| Err(MatchError { code, field: oxm.name(), problem });
            let Some(field) = oxm.field() else {
                return refuse(ErrorCode::MATCH_BAD_FIELD, "is not supported");
            };
            if given.has(field) {
                return refuse(ErrorCode::MATCH_DUP_FIELD, "is given twice");
            }
            if let Some(missing) = given.missing_prerequisite(field) {
                return refuse(ErrorCode::MATCH_BAD_PREREQ, missing);
            }
            given.note(oxm);
        }
        Ok(())
    }

    /// Checks that a set-field action on `field` makes sense for packets of this match (prerequisites as in
    /// 7.2.5: `OFPBAC_MATCH_INCONSISTENT` otherwise).
    pub fn allows_set(&self, field: Field) -> bool {
        let mut given = Given::default();
        self.fields.iter().for_each(|oxm| given.note(oxm));
        given.missing_prerequisite(field).is_none()
    }

    /// The same match in a form that is equal for equal matches: all-zero masks dropped with their field, all-one
    /// masks dropped, ordered by field number. Prerequisites have lower numbers, so the order stays valid.
    #[must_use]
    pub fn normalized(&self) -> Match {
        let mut fields: Vec<OxmField> = self.fields.iter().filter_map(normalized_field).collect();
        fields.sort_by_key(|f| (f.field().map_or(u8::MAX, Field::number), f.clone()));
        Match { fields }
    }
}

fn normalized_field(oxm: &OxmField) -> Option<OxmField> {
    match (oxm.field(), oxm.numbers()) {
        (Some(_), Some((_, Some(0)))) => None,
        (Some(field), Some((value, Some(mask)))) if mask == field.full_mask() => field.with(value, None),
        _ => Some(oxm.clone()),
    }
}

const ETH_IPV4: u16 = 0x0800;
const ETH_ARP: u16 = 0x0806;
const ETH_IPV6: u16 = 0x86dd;
const ETH_MPLS: [u16; 2] = [0x8847, 0x8848];

/// What fields of a match say about those that may follow them.
#[derive(Default)]
pub(crate) struct Given {
    /// One bit for each kind of field.
    kinds: u64,
    eth_type: Option<u16>,
    ip_proto: Option<u8>,
    icmpv6_type: Option<u8>,
    vlan: bool,
}

impl Given {
    fn note(&mut self, oxm: &OxmField) {
        if let (Some(field), Some((value, mask))) = (oxm.field(), oxm.numbers()) {
            self.add(field, value, mask.unwrap_or(field.full_mask()));
        }
    }

    /// Takes note of a field.
    #[inline]
    pub(crate) fn add(&mut self, field: Field, value: u128, mask: u128) {
        self.kinds |= 1 << field as u8;
        match field {
            Field::EthType => self.eth_type = Some(value as u16),
            Field::IpProto => self.ip_proto = Some(value as u8),
            Field::Icmpv6Type => self.icmpv6_type = Some(value as u8),
            // Whether this says that there is a tag.
            Field::VlanVid => self.vlan = value & mask & u128::from(VID_PRESENT) != 0,
            _ => {}
        }
    }

    /// Whether there was one of this kind.
    #[inline]
    pub(crate) fn has(&self, field: Field) -> bool {
        self.kinds & 1 << field as u8 != 0
    }

    /// What `field` needs and is not given, in words.
    #[inline]
    pub(crate) fn missing_prerequisite(&self, field: Field) -> Option<&'static str> {
        let eth = |wanted: &[u16]| self.eth_type.is_some_and(|found| wanted.contains(&found));
        let ip = |wanted: u8| self.ip_proto == Some(wanted);
        let icmpv6 = |wanted: &[u8]| self.icmpv6_type.is_some_and(|found| wanted.contains(&found));
        let (met, what) = match field {
            Field::InPhyPort => (self.has(Field::InPort), "needs in_port before it"),
            Field::VlanPcp => (self.vlan, "needs vlan_vid with the present bit (0x1000) before it"),
            Field::IpDscp | Field::IpEcn | Field::IpProto => {
                (eth(&[ETH_IPV4, ETH_IPV6]), "needs eth_type 0x0800 or 0x86dd before it")
            }
            Field::Ipv4Src | Field::Ipv4Dst => (eth(&[ETH_IPV4]), "needs eth_type 0x0800 before it"),
            Field::TcpSrc | Field::TcpDst => (ip(6), "needs ip_proto 6 before it"),
            Field::UdpSrc | Field::UdpDst => (ip(17), "needs ip_proto 17 before it"),
            Field::SctpSrc | Field::SctpDst => (ip(132), "needs ip_proto 132 before it"),
            Field::Icmpv4Type | Field::Icmpv4Code => (ip(1), "needs ip_proto 1 before it"),
            Field::ArpOp | Field::ArpSpa | Field::ArpTpa | Field::ArpSha | Field::ArpTha => {
                (eth(&[ETH_ARP]), "needs eth_type 0x0806 before it")
            }
            Field::Ipv6Src | Field::Ipv6Dst | Field::Ipv6Flabel | Field::Ipv6Exthdr => {
                (eth(&[ETH_IPV6]), "needs eth_type 0x86dd before it")
            }
            Field::Icmpv6Type | Field::Icmpv6Code => (ip(58), "needs ip_proto 58 before it"),
            Field::Ipv6NdTarget => (icmpv6(&[135, 136]), "needs icmpv6_type 135 or 136 before it"),
            Field::Ipv6NdSll => (icmpv6(&[135]), "needs icmpv6_type 135 before it"),
            Field::Ipv6NdTll => (icmpv6(&[136]), "needs icmpv6_type 136 before it"),
            Field::MplsLabel | Field::MplsTc | Field::MplsBos => {
                (eth(&ETH_MPLS), "needs eth_type 0x8847 or 0x8848 before it")
            }
            Field::InPort
            | Field::Metadata
            | Field::EthDst
            | Field::EthSrc
            | Field::EthType
            | Field::VlanVid
            | Field::TunnelId => (true, ""),
        };
        (!met).then_some(what)
    }
}

impl Wire for Match {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        w.u16(TYPE_OXM);
        w.u16(0);
        w.list(&self.fields);
        w.patch_len(start + 2, start);
        w.pad8(start);
    }

    fn get(r: &mut Reader<'_>) -> Result<Match, DecodeError> {
        let kind = r.u16().map_err(|_| bad_len())?;
        if kind != TYPE_OXM {
            return Err(DecodeError::new(ErrorCode::MATCH_BAD_TYPE, "match type"));
        }
        let len = usize::from(r.u16().map_err(|_| bad_len())?);
        let payload = len.checked_sub(HEADER).ok_or(bad_len())?;
        let fields = r.part(payload, ErrorCode::MATCH_BAD_LEN, "match field")?.list()?;
        r.skip(padding8(len)).map_err(|_| bad_len())?;
        Ok(Match { fields })
    }
}

fn bad_len() -> DecodeError {
    DecodeError::new(ErrorCode::MATCH_BAD_LEN, "match")
}

impl fmt::Display for Match {
    /// The fields with commas between them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, field) in self.fields.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{field}")?;
        }
        Ok(())
    }
}
