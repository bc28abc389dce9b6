//! What holds for the host behind a port: rate limits, addresses it may send from, ACLs.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use ofp::{Field, Instruction, MacAddr, Masked, Match, OxmField, PortNo};

use super::learned::destination_number;
use super::{
    ACL, ATTACHMENT_METERS, Abilities, DELIVER, FORWARD, GUARD, LEARN, Owner, Plan, SPOOF, SUPPRESS, Seated,
    from_port, has_rules, in_vlan, steps,
};
use crate::entry::{Cookie, FlowBody, FlowKey, MeterBody};
use crate::layout::Segment;
use crate::model::{Direction, PortMode, Rate, Verdict};
use crate::rule_set::{Clause, ip_field};

const PRIORITY_ALLOWED: u16 = 20_000;
const PRIORITY_OTHER_IP: u16 = 15_000;
const PRIORITY_OTHER_PROTOCOLS: u16 = 12_000;
const PRIORITY_SPOOFED: u16 = 10_000;
const PRIORITY_RULES: u16 = 30_000;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// A tenth of a second's worth passes at once when nothing else is asked for: less starves bursty senders, more
/// blurs the limit.
const BURST_PART: u32 = 10;
/// KiB of a burst at least: a segment of the largest size.
const BURST_MIN: u32 = 32;

/// Numbers of the meters of a host, first and second, on both ways.
pub(super) struct HostMeters {
    pub from_host: [Option<u32>; 2],
    pub to_host: [Option<u32>; 2],
}

/// KiB as kilobits.
fn kilobits(kib: u32) -> u32 {
    u32::try_from((u64::from(kib) * 8192).div_ceil(1000)).unwrap_or(u32::MAX)
}

/// The meters of a rate: the long run, or the peak and then the long run.
fn meters_of(rate: Rate) -> (MeterBody, Option<MeterBody>) {
    let usual = |rate: u32| (rate / BURST_PART).max(BURST_MIN);
    let meter =
        |rate: u32, burst: u32| MeterBody { packets: false, rate: kilobits(rate), burst: kilobits(burst) };
    let average = meter(rate.average, rate.burst.unwrap_or(usual(rate.average)));
    match rate.peak {
        Some(peak) => (meter(peak, usual(peak)), Some(average)),
        None => (average, None),
    }
}

impl Plan {
    /// The meters of the host's rates; none where the switch has none.
    pub(super) fn add_meters(
        &mut self,
        owner: &Owner,
        seat: &Seated<'_>,
        abilities: Abilities,
    ) -> HostMeters {
        let mut meters = HostMeters { from_host: [None; 2], to_host: [None; 2] };
        let Some(policy) = seat.policy() else { return meters };
        let first = ATTACHMENT_METERS + policy.number * 4;
        let sides = [
            (policy.rates.outbound, first, &mut meters.from_host),
            (policy.rates.inbound, first + 2, &mut meters.to_host),
        ];
        for (rate, number, place) in sides {
            let Some(rate) = rate else { continue };
            if number + 1 > abilities.meter_max {
                let has = match abilities.meter_max {
                    0 => "no meters".to_owned(),
                    max => format!("meters up to {max} only"),
                };
                self.obstacle(owner, format!("the switch has {has}: rate limits do not hold on it"));
                break;
            }
            let (one, two) = meters_of(rate);
            for (index, meter) in [Some(one), two].into_iter().enumerate() {
                let Some(meter) = meter else { continue };
                let number = number + index as u32;
                self.meters.insert(number, meter);
                self.meter_owners.insert(number, owner.clone());
                place[index] = Some(number);
            }
        }
        meters
    }

    /// The rules between classification and learning; returns the table where they begin.
    pub(super) fn add_checks(
        &mut self,
        segment: &Segment,
        seat: &Seated<'_>,
        second_meter: Option<u32>,
    ) -> u8 {
        let guarded = segment.guard
            && seat.member.mode == PortMode::Access
            && !seat.policy().is_some_and(|policy| policy.trusted);
        let mut next = LEARN;
        if let Some(policy) = seat.policy().filter(|policy| has_rules(Some(*policy), Direction::Egress)) {
            next = ACL;
            let from = from_port(segment.vlan, seat.port);
            let pass = [Instruction::GotoTable(LEARN)];
            self.add_clauses(&seat.owner(), ACL, &from, policy.rules.clauses(Direction::Egress), &pass);
        }
        if guarded {
            next = GUARD;
            self.add_guard();
        }
        let limited = seat.policy().is_some_and(|p| !p.macs.is_empty() || !p.ips.is_empty());
        if limited || second_meter.is_some() {
            self.add_spoof_protection(segment.vlan, seat, &steps(second_meter, vec![], Some(next)));
            next = SPOOF;
        }
        next
    }

    /// Rules of an ACL for one port, the first the highest.
    fn add_clauses(
        &mut self,
        owner: &Owner,
        table: u8,
        of: &Match,
        clauses: &[Clause],
        pass: &[Instruction],
    ) {
        for (clause, priority) in clauses.iter().zip((1..=PRIORITY_RULES).rev()) {
            let mut matching = of.clone();
            matching.fields.extend(clause.fields.iter().cloned());
            let key = FlowKey::new(table, priority, &matching);
            let instructions = if clause.verdict == Verdict::Allow { pass } else { &[] };
            self.add(owner, key, FlowBody::new(clause.cookie, instructions));
        }
    }

    /// DHCP servers and routers are not behind access ports. One set of rules for all of them.
    fn add_guard(&mut self) {
        let udp = |ether_type, port| {
            Match::any()
                .with(OxmField::EthType(ether_type))
                .with(OxmField::IpProto(17))
                .with(OxmField::UdpSrc(Masked::exact(port)))
        };
        let advertisement = Match::any()
            .with(OxmField::EthType(IPV6))
            .with(OxmField::IpProto(58))
            .with(OxmField::Icmpv6Type(134));
        let cookie = Cookie::Shared.number();
        for matching in [udp(IPV4, 67), udp(IPV6, 547), advertisement] {
            let key = FlowKey::new(GUARD, PRIORITY_ALLOWED, &matching);
            self.add(&Owner::Networks, key, FlowBody::new(cookie, &[]));
        }
        for (table, next) in [(GUARD, ACL), (ACL, LEARN)] {
            let body = FlowBody::new(cookie, &[Instruction::GotoTable(next)]);
            self.add(&Owner::Networks, FlowKey::new(table, 0, &Match::any()), body);
        }
    }

    fn add_spoof_protection(&mut self, vlan: u16, seat: &Seated<'_>, pass: &[Instruction]) {
        let Some(policy) = seat.policy() else { return };
        let (owner, cookie) = (seat.owner(), seat.cookie(vlan));
        let from = from_port(vlan, seat.port);
        let spoofed = FlowBody::new(Cookie::Spoof(policy.number).number(), &[]);
        let passes = FlowBody::new(cookie, pass);
        let macs: Vec<Option<MacAddr>> = match policy.macs[..] {
            [] => vec![None],
            ref macs => macs.iter().copied().map(Some).collect(),
        };
        for mac in macs {
            let source = mac.map(|mac| OxmField::EthSrc(Masked::exact(mac)));
            let base = Match { fields: from.fields.iter().cloned().chain(source).collect() };
            if !policy.ips.is_empty() {
                for fields in sources(&policy.ips, mac) {
                    let matching = Match { fields: base.fields.iter().cloned().chain(fields).collect() };
                    self.add(&owner, FlowKey::new(SPOOF, PRIORITY_ALLOWED, &matching), passes.clone());
                }
                for ether_type in [IPV4, ARP, IPV6] {
                    let matching = base.clone().with(OxmField::EthType(ether_type));
                    self.add(&owner, FlowKey::new(SPOOF, PRIORITY_OTHER_IP, &matching), spoofed.clone());
                }
            }
            self.add(&owner, FlowKey::new(SPOOF, PRIORITY_OTHER_PROTOCOLS, &base), passes.clone());
        }
        if !policy.macs.is_empty() {
            self.add(&owner, FlowKey::new(SPOOF, PRIORITY_SPOOFED, &from), spoofed);
        }
    }

    /// The rules that decide about each packet to the host, where there are any; they tell how to get there.
    pub(super) fn add_delivery(&mut self, vlan: u16, seat: &Seated<'_>, [first, second]: [Option<u32>; 2]) {
        let ruled = has_rules(seat.policy(), Direction::Ingress);
        if let Some(way) = self.members.get_mut(&(vlan, seat.port)) {
            way.meter = first;
            way.deliver = ruled || second.is_some();
        }
        let Some(policy) = seat.policy().filter(|_| ruled || second.is_some()) else { return };
        let to = to_port(vlan, seat.port);
        let pass = steps(second, seat.deliver(), None);
        if ruled {
            let clauses = policy.rules.clauses(Direction::Ingress);
            self.add_clauses(&seat.owner(), DELIVER, &to, clauses, &pass);
        } else {
            let body = FlowBody::new(seat.cookie(vlan), &pass);
            self.add(&seat.owner(), FlowKey::new(DELIVER, PRIORITY_RULES, &to), body);
        }
    }

    /// Requests for the address of a known host go to it alone.
    pub(super) fn add_suppression(&mut self, owner: &Owner, segment: &Segment) {
        if segment.hosts.is_empty() {
            return;
        }
        let cookie = Cookie::Network(segment.vlan).number();
        let of_vlan = in_vlan(segment.vlan);
        for &(ip, mac) in segment.hosts.iter() {
            let asked = IpNet::from(ip);
            let matching = match ip {
                std::net::IpAddr::V4(_) => of_vlan
                    .clone()
                    .with(OxmField::EthType(ARP))
                    .with(OxmField::ArpOp(1))
                    .with(ip_field(&asked, Field::ArpTpa, Field::Ipv6NdTarget)),
                std::net::IpAddr::V6(_) => of_vlan
                    .clone()
                    .with(OxmField::EthType(IPV6))
                    .with(OxmField::IpProto(58))
                    .with(OxmField::Icmpv6Type(135))
                    .with(ip_field(&asked, Field::ArpTpa, Field::Ipv6NdTarget)),
            };
            let to_host = ofp::Action::SetField(OxmField::EthDst(Masked::exact(mac)));
            let body = FlowBody::new(cookie, &steps(None, vec![to_host], Some(FORWARD)));
            self.add(owner, FlowKey::new(SUPPRESS, PRIORITY_ALLOWED, &matching), body);
        }
        let body = FlowBody::new(cookie, &[Instruction::GotoTable(FORWARD)]);
        self.add(owner, FlowKey::new(SUPPRESS, PRIORITY_SPOOFED, &of_vlan), body);
    }
}

/// Packets on their way to a port of a segment.
fn to_port(vlan: u16, port: PortNo) -> Match {
    // The VLAN is in the number already, but a switch takes the tag off only where the match says that there is one.
    in_vlan(vlan).with(OxmField::Metadata(Masked::exact(destination_number(vlan, port))))
}

/// What a host with these addresses may send, as far as it is IP.
fn sources(ips: &[IpNet], mac: Option<MacAddr>) -> Vec<Vec<OxmField>> {
    let arp = |address: OxmField| {
        let hardware = mac.map(|mac| OxmField::ArpSha(Masked::exact(mac)));
        [OxmField::EthType(ARP), address].into_iter().chain(hardware).collect::<Vec<_>>()
    };
    let mut lists = Vec::new();
    for ip in ips {
        let ether_type = if ip.addr().is_ipv4() { IPV4 } else { IPV6 };
        lists.push(vec![OxmField::EthType(ether_type), ip_field(ip, Field::Ipv4Src, Field::Ipv6Src)]);
        if ether_type == IPV4 {
            lists.push(arp(ip_field(ip, Field::ArpSpa, Field::Ipv6Src)));
        }
    }
    if ips.iter().any(|ip| ip.addr().is_ipv4()) {
        // Who has no address yet probes for it and asks for one.
        let nowhere = Masked::exact(Ipv4Addr::UNSPECIFIED);
        lists.push(arp(OxmField::ArpSpa(nowhere)));
        lists.push(vec![
            OxmField::EthType(IPV4),
            OxmField::IpProto(17),
            OxmField::Ipv4Src(nowhere),
            OxmField::UdpSrc(Masked::exact(68)),
            OxmField::UdpDst(Masked::exact(67)),
        ]);
    }
    if ips.iter().any(|ip| ip.addr().is_ipv6()) {
        // Neighbour discovery speaks from link-local addresses, and from none.
        let link_local = Masked::with_mask(
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
            Ipv6Addr::new(0xffc0, 0, 0, 0, 0, 0, 0, 0),
        );
        for source in [link_local, Masked::exact(Ipv6Addr::UNSPECIFIED)] {
            lists.push(vec![OxmField::EthType(IPV6), OxmField::Ipv6Src(source)]);
        }
    }
    lists
}
