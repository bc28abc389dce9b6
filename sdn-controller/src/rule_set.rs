//! ACLs as match fields: what a rule of people becomes for a switch.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use ofp::{Field, Masked, OxmField, OxmValue as _};

use crate::entry::Cookie;
use crate::model::{Acl, Direction, Ether, PortRange, Protocol, Rule, Verdict};

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
/// From router solicitation to neighbour advertisement; advertisements of routers have a guard of their own.
const NEIGHBOUR_DISCOVERY: [u8; 4] = [133, 134, 135, 136];

/// A rule as a switch knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clause {
    /// Which packets.
    pub fields: Vec<OxmField>,
    /// Whether they pass.
    pub verdict: Verdict,
    /// Its cookie, by which its packets are counted.
    pub cookie: u64,
}

/// Several ACLs in a row, for both directions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RuleSet {
    ingress: Vec<Clause>,
    egress: Vec<Clause>,
}

impl RuleSet {
    /// The rules of these ACLs, with their numbers, one after the other.
    pub fn new(acls: &[(u32, Arc<Acl>)]) -> RuleSet {
        let side = |direction: Direction| {
            let mut clauses: Vec<Clause> = Vec::new();
            for (number, acl) in acls {
                for (index, rule) in acl.rules.iter().enumerate().filter(|(_, r)| r.direction == direction) {
                    let cookie = Cookie::Acl { acl: *number as u16, rule: index as u16 + 1 }.number();
                    let clause = |fields| Clause { fields, verdict: rule.action, cookie };
                    clauses.extend(fields_of(rule).into_iter().map(clause));
                }
            }
            let deny = acls.iter().find(|(_, acl)| acl.default.of(direction) == Verdict::Deny);
            if clauses.is_empty() && deny.is_none() {
                return clauses;
            }
            let strictest = deny.or(acls.last());
            let cookie = Cookie::Acl { acl: strictest.map_or(0, |(number, _)| *number as u16), rule: 0 };
            if deny.is_some() {
                let pass = |fields| Clause { fields, verdict: Verdict::Allow, cookie: cookie.number() };
                clauses.push(pass(vec![OxmField::EthType(ARP)]));
                clauses.extend(NEIGHBOUR_DISCOVERY.map(|kind| {
                    pass(vec![OxmField::EthType(IPV6), OxmField::IpProto(58), OxmField::Icmpv6Type(kind)])
                }));
            }
            let verdict = if deny.is_some() { Verdict::Deny } else { Verdict::Allow };
            clauses.push(Clause { fields: vec![], verdict, cookie: cookie.number() });
            clauses
        };
        RuleSet { ingress: side(Direction::Ingress), egress: side(Direction::Egress) }
    }

    /// The rules of a direction; the last one takes everything. Empty when everything passes.
    pub fn clauses(&self, direction: Direction) -> &[Clause] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// A match of an IP address or prefix.
pub fn ip_field(net: &IpNet, v4: Field, v6: Field) -> OxmField {
    let (field, value, mask) = match (net.network(), net.netmask()) {
        (IpAddr::V4(value), IpAddr::V4(mask)) => (v4, Ipv4Addr::to_number(value), mask.to_number()),
        (IpAddr::V6(value), IpAddr::V6(mask)) => (v6, Ipv6Addr::to_number(value), mask.to_number()),
        _ => unreachable!("address and mask of a prefix are of one family"),
    };
    let mask = (net.prefix_len() != net.max_prefix_len()).then_some(mask);
    field.with(value, mask).expect("a network address has no bits outside of its mask")
}

/// The field lists of a rule: several when it names ranges of ports, or IP without a family.
fn fields_of(rule: &Rule) -> Vec<Vec<OxmField>> {
    let mut base = Vec::new();
    base.extend(rule.source_mac.map(|mac| OxmField::EthSrc(Masked::exact(mac.0))));
    base.extend(rule.destination_mac.map(|mac| OxmField::EthDst(Masked::exact(mac.0))));
    let number = |ether| match ether {
        Ether::Ipv4 => IPV4,
        Ether::Ipv6 => IPV6,
        Ether::Arp => ARP,
        Ether::Number(number) => number,
    };
    let families = match rule.implied_ether() {
        Some(ether) => vec![Some(number(ether))],
        None if rule.protocol.is_some() => vec![Some(IPV4), Some(IPV6)],
        None => vec![None],
    };
    let mut lists = Vec::new();
    for ether_type in families {
        let mut fields = base.clone();
        fields.extend(ether_type.map(OxmField::EthType));
        fields.extend(rule.source.map(|net| ip_field(&net, Field::Ipv4Src, Field::Ipv6Src)));
        fields.extend(rule.destination.map(|net| ip_field(&net, Field::Ipv4Dst, Field::Ipv6Dst)));
        fields.extend(rule.protocol.map(|protocol| OxmField::IpProto(protocol.number())));
        match rule.protocol {
            Some(Protocol::Icmp) => {
                fields.extend(rule.icmp_type.map(OxmField::Icmpv4Type));
                fields.extend(rule.icmp_code.map(OxmField::Icmpv4Code));
            }
            Some(Protocol::Icmpv6) => {
                fields.extend(rule.icmp_type.map(OxmField::Icmpv6Type));
                fields.extend(rule.icmp_code.map(OxmField::Icmpv6Code));
            }
            _ => {}
        }
        let (source, destination) = match rule.protocol {
            Some(Protocol::Tcp) => (Field::TcpSrc, Field::TcpDst),
            Some(Protocol::Udp) => (Field::UdpSrc, Field::UdpDst),
            _ => (Field::SctpSrc, Field::SctpDst),
        };
        for from in range_fields(source, rule.source_port) {
            for to in range_fields(destination, rule.destination_port) {
                let mut fields = fields.clone();
                fields.extend(from.clone());
                fields.extend(to);
                lists.push(fields);
            }
        }
    }
    lists
}

/// A range of ports as the fewest values with masks.
fn range_fields(field: Field, range: Option<PortRange>) -> Vec<Option<OxmField>> {
    let Some(range) = range else { return vec![None] };
    let (mut first, last) = (u32::from(range.first), u32::from(range.last));
    let mut parts = Vec::new();
    while first <= last {
        let mut size = if first == 0 { 0x1_0000 } else { first & first.wrapping_neg() };
        while size > last - first + 1 {
            size /= 2;
        }
        let mask = 0x1_0000 - size;
        let mask = (size > 1).then_some(u128::from(mask));
        parts.push(match mask {
            // All ports: the protocol alone says it.
            Some(0) => None,
            mask => field.with(u128::from(first), mask),
        });
        first += size;
    }
    parts
}

/// The packets that fit both lists; `None` when there are none.
pub fn both(a: &[OxmField], b: &[OxmField]) -> Option<Vec<OxmField>> {
    let mut merged = a.to_vec();
    for theirs in b {
        let field = theirs.field()?;
        let Some(ours) = merged.iter_mut().find(|ours| ours.field() == Some(field)) else {
            merged.push(theirs.clone());
            continue;
        };
        let full = u128::MAX >> (128 - field.bits());
        let (value_a, mask_a) = ours.numbers()?;
        let (value_b, mask_b) = theirs.numbers()?;
        let (mask_a, mask_b) = (mask_a.unwrap_or(full), mask_b.unwrap_or(full));
        if (value_a ^ value_b) & mask_a & mask_b != 0 {
            return None;
        }
        let mask = mask_a | mask_b;
        *ours = field.with(value_a | value_b, (mask != full).then_some(mask))?;
    }
    Some(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofp::Match;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use telemetry::check::Errors;

    fn set(rules: Value) -> RuleSet {
        let acl = Acl::from_json(rules, &mut Errors::new()).expect("a good ACL");
        RuleSet::new(&[(3, Arc::new(acl))])
    }

    fn texts(clauses: &[Clause]) -> Vec<String> {
        let text = |clause: &Clause| {
            let matching = Match { fields: clause.fields.clone() }.normalized();
            matching.validate().expect("a switch takes it");
            format!("{matching} {:?}", clause.verdict)
        };
        clauses.iter().map(text).collect()
    }

    #[test]
    fn rules_become_matches() {
        let set = set(json!({"default": {"ingress": "deny"}, "rules": [
            {"direction": "ingress", "action": "allow", "protocol": "tcp", "source": "10.0.0.0/24", "destination_port": "80-81"},
            {"direction": "ingress", "action": "allow", "protocol": "udp"},
        ]}));
        let found = texts(set.clauses(Direction::Ingress));
        assert_eq!(found.len(), 3 + 5 + 1, "{found:#?}");
        assert!(found[0].contains("tcp_dst") && found[0].contains("ipv4_src"), "{}", found[0]);
        assert_eq!(found.last().unwrap(), " Deny");
        assert!(set.clauses(Direction::Egress).is_empty(), "everything passes");
    }

    proptest! {
        #[test]
        fn port_ranges_are_exact(a: u16, b: u16, probe: u16) {
            let range = PortRange { first: a.min(b), last: a.max(b) };
            let fits = |port: u16| range_fields(Field::TcpDst, Some(range)).iter().filter(|field| match field {
                Some(field) => {
                    let (value, mask) = field.numbers().expect("a known field");
                    u128::from(port) & mask.unwrap_or(0xffff) == value
                }
                None => true,
            }).count();
            for port in [probe, range.first, range.last, range.first.wrapping_sub(1), range.last.wrapping_add(1)] {
                let inside = (range.first..=range.last).contains(&port);
                prop_assert_eq!(fits(port), usize::from(inside));
            }
        }
    }

    #[test]
    fn intersections() {
        let source = |text: &str| vec![ip_field(&text.parse().unwrap(), Field::Ipv4Src, Field::Ipv6Src)];
        assert_eq!(both(&source("10.0.0.0/8"), &source("10.1.0.0/16")), Some(source("10.1.0.0/16")));
        assert_eq!(both(&source("10.0.0.0/8"), &source("11.0.0.0/8")), None);
        let two = both(&source("10.0.0.0/8"), &[OxmField::EthType(IPV4)]).unwrap();
        assert_eq!(two.len(), 2);
    }
}
