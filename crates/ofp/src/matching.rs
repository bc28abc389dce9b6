//! `ofp_match` (7.2.3): an ordered list of match fields.

use std::fmt;

use crate::error::{DecodeError, ErrorCode};
use crate::oxm::{Field, OxmField, VID_PRESENT};
use crate::wire::{Reader, Wire, Writer, padding8};

const TYPE_OXM: u16 = 1;
const HEADER: usize = 4;

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
        for (index, oxm) in self.fields.iter().enumerate() {
            let refuse = |code, problem| Err(MatchError { code, field: oxm.name(), problem });
            let before = &self.fields[..index];
            let Some(field) = oxm.field() else {
                return refuse(ErrorCode::MATCH_BAD_FIELD, "is not supported");
            };
            if before.iter().any(|f| f.field() == Some(field)) {
                return refuse(ErrorCode::MATCH_DUP_FIELD, "is given twice");
            }
            if let Some(missing) = missing_prerequisite(field, before) {
                return refuse(ErrorCode::MATCH_BAD_PREREQ, missing);
            }
        }
        Ok(())
    }

    /// Checks that a set-field action on `field` makes sense for packets of this match (prerequisites as in
    /// 7.2.5: `OFPBAC_MATCH_INCONSISTENT` otherwise).
    pub fn allows_set(&self, field: Field) -> bool {
        missing_prerequisite(field, &self.fields).is_none()
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

const ETH_IPV4: u128 = 0x0800;
const ETH_ARP: u128 = 0x0806;
const ETH_IPV6: u128 = 0x86dd;
const ETH_MPLS: [u128; 2] = [0x8847, 0x8848];

/// What `field` needs and `given` does not have, in words.
fn missing_prerequisite(field: Field, given: &[OxmField]) -> Option<&'static str> {
    let is = |wanted: Field, values: &[u128]| {
        given.iter().any(|f| {
            f.field() == Some(wanted)
                && f.numbers().is_some_and(|(value, mask)| {
                    mask.is_none_or(|m| m == wanted.full_mask()) && values.contains(&value)
                })
        })
    };
    let (met, what) = match field {
        Field::InPhyPort => {
            (given.iter().any(|f| f.field() == Some(Field::InPort)), "needs in_port before it")
        }
        Field::VlanPcp => (vlan_present(given), "needs vlan_vid with the present bit (0x1000) before it"),
        Field::IpDscp | Field::IpEcn | Field::IpProto => {
            (is(Field::EthType, &[ETH_IPV4, ETH_IPV6]), "needs eth_type 0x0800 or 0x86dd before it")
        }
        Field::Ipv4Src | Field::Ipv4Dst => {
            (is(Field::EthType, &[ETH_IPV4]), "needs eth_type 0x0800 before it")
        }
        Field::TcpSrc | Field::TcpDst => (is(Field::IpProto, &[6]), "needs ip_proto 6 before it"),
        Field::UdpSrc | Field::UdpDst => (is(Field::IpProto, &[17]), "needs ip_proto 17 before it"),
        Field::SctpSrc | Field::SctpDst => (is(Field::IpProto, &[132]), "needs ip_proto 132 before it"),
        Field::Icmpv4Type | Field::Icmpv4Code => (is(Field::IpProto, &[1]), "needs ip_proto 1 before it"),
        Field::ArpOp | Field::ArpSpa | Field::ArpTpa | Field::ArpSha | Field::ArpTha => {
            (is(Field::EthType, &[ETH_ARP]), "needs eth_type 0x0806 before it")
        }
        Field::Ipv6Src | Field::Ipv6Dst | Field::Ipv6Flabel | Field::Ipv6Exthdr => {
            (is(Field::EthType, &[ETH_IPV6]), "needs eth_type 0x86dd before it")
        }
        Field::Icmpv6Type | Field::Icmpv6Code => (is(Field::IpProto, &[58]), "needs ip_proto 58 before it"),
        Field::Ipv6NdTarget => (is(Field::Icmpv6Type, &[135, 136]), "needs icmpv6_type 135 or 136 before it"),
        Field::Ipv6NdSll => (is(Field::Icmpv6Type, &[135]), "needs icmpv6_type 135 before it"),
        Field::Ipv6NdTll => (is(Field::Icmpv6Type, &[136]), "needs icmpv6_type 136 before it"),
        Field::MplsLabel | Field::MplsTc | Field::MplsBos => {
            (is(Field::EthType, &ETH_MPLS), "needs eth_type 0x8847 or 0x8848 before it")
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

/// Whether `given` says that there is a VLAN tag.
fn vlan_present(given: &[OxmField]) -> bool {
    given.iter().any(|f| match f {
        OxmField::VlanVid(vid) => vid.value & vid.mask.unwrap_or(VID_PRESENT) & VID_PRESENT != 0,
        _ => false,
    })
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
