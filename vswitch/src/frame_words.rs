//! Frames in words, as people type them: `tcp 10.0.0.1:1->10.0.0.2:80 vlan 10`.
//!
//! The same words make a frame (what is not said is filled in) and a filter (what is not said does not count):
//!
//! ```text
//! [tcp|udp|sctp|icmp|arp|ip] [ADDRESS[:PORT]->ADDRESS[:PORT]] [vlan VID|none] [pcp N] [from MAC] [to MAC]
//!                            [type ETHERTYPE] [proto N] [ttl N]
//! ```
//!
//! An address is IPv4, IPv6 (in brackets before a port) or `*` for any.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ofp::{Masked, Match, OxmField, VID_NONE, VID_PRESENT};
use packet::{MacAddr, checksum, ethertype, ip_proto};
use telemetry::check::Errors;

/// Shortest frame that is made, bytes without FCS.
const FRAME_BYTES_MIN: usize = 60;
/// Addresses of frames that say none.
const FROM_DEFAULT: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const TO_DEFAULT: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const TTL_DEFAULT: u8 = 64;

/// One end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct End {
    address: Option<IpAddr>,
    port: Option<u16>,
}

/// What the words say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FrameWords {
    arp: bool,
    ip: bool,
    proto: Option<u8>,
    source: End,
    destination: End,
    /// `Some(None)`: without a tag.
    vlan: Option<Option<u16>>,
    pcp: Option<u8>,
    from: Option<MacAddr>,
    to: Option<MacAddr>,
    eth_type: Option<u16>,
    ttl: Option<u8>,
}

impl FrameWords {
    /// Reads the words. Everything wrong is added to `errors` as being of `field`; `None` then.
    pub fn parse(text: &str, field: &str, errors: &mut Errors) -> Option<FrameWords> {
        let mut words = FrameWords::default();
        let before = errors.list().len();
        // Spaces around the arrow are a matter of taste.
        let text = text.replace(" -> ", "->");
        let mut rest = text.split_whitespace();
        while let Some(word) = rest.next() {
            if let Err(detail) = words.word(word, &mut rest) {
                let remedy = "write it like `tcp 10.0.0.1:1->10.0.0.2:80 vlan 10`";
                errors.add(field, word, detail, remedy);
            }
        }
        if let Err(detail) = words.check() {
            errors.add(field, &text, detail, "say what belongs together");
        }
        (errors.list().len() == before).then_some(words)
    }

    fn word<'a>(&mut self, word: &str, rest: &mut impl Iterator<Item = &'a str>) -> Result<(), String> {
        let mut value = || rest.next().ok_or("needs a value".to_string());
        match word {
            "tcp" => self.proto = Some(ip_proto::TCP),
            "udp" => self.proto = Some(ip_proto::UDP),
            "sctp" => self.proto = Some(ip_proto::SCTP),
            "icmp" => self.proto = Some(ip_proto::ICMP),
            "arp" => self.arp = true,
            "ip" => self.ip = true,
            "vlan" => {
                self.vlan = match value()? {
                    "none" => Some(None),
                    vid => Some(Some(number(vid, 4095)? as u16)),
                }
            }
            "pcp" => self.pcp = Some(number(value()?, 7)? as u8),
            "proto" => self.proto = Some(number(value()?, 255)? as u8),
            "ttl" => self.ttl = Some(number(value()?, 255)? as u8),
            "type" => self.eth_type = Some(number(value()?, 0xffff)? as u16),
            "from" => self.from = Some(mac(value()?)?),
            "to" => self.to = Some(mac(value()?)?),
            ends => {
                let (source, destination) = ends.split_once("->").ok_or("is not known".to_string())?;
                (self.source, self.destination) = (end(source)?, end(destination)?);
            }
        }
        Ok(())
    }

    /// What does not fit together, and what follows from what was said.
    fn check(&mut self) -> Result<(), String> {
        let ends = [self.source, self.destination];
        let v6 = ends.iter().any(|end| matches!(end.address, Some(IpAddr::V6(_))));
        let v4 = ends.iter().any(|end| matches!(end.address, Some(IpAddr::V4(_))));
        let ports = ends.iter().any(|end| end.port.is_some());
        if v4 && v6 {
            return Err("has addresses of IPv4 and of IPv6".to_string());
        }
        if self.arp && (v6 || ports || self.proto.is_some() || self.ip) {
            return Err("is ARP, which has IPv4 addresses and nothing else".to_string());
        }
        if ports && !matches!(self.proto, Some(ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP)) {
            return Err("has ports, which only tcp, udp and sctp have".to_string());
        }
        if self.vlan == Some(None) && self.pcp.is_some() {
            return Err("has a priority without a tag".to_string());
        }
        if v6 && self.proto == Some(ip_proto::ICMP) {
            self.proto = Some(ip_proto::ICMPV6);
        }
        let implied = if self.arp {
            Some(ethertype::ARP)
        } else if v6 {
            Some(ethertype::IPV6)
        } else if v4 || self.ip || self.proto.is_some() {
            Some(ethertype::IPV4)
        } else {
            None
        };
        if implied.is_some() && self.eth_type.is_some_and(|given| Some(given) != implied) {
            return Err("has an Ethernet type that is not that of its addresses".to_string());
        }
        self.eth_type = implied.or(self.eth_type);
        Ok(())
    }

    /// What a frame has to be for the words to be true of it. The TTL is no match field and does not count.
    pub fn matching(&self) -> Match {
        let mut fields = Vec::new();
        let mac = |address: MacAddr| Masked::exact(ofp::MacAddr(address.0));
        fields.extend(self.to.map(|to| OxmField::EthDst(mac(to))));
        fields.extend(self.from.map(|from| OxmField::EthSrc(mac(from))));
        fields.extend(self.eth_type.map(OxmField::EthType));
        let vid = |vid: Option<u16>| Masked::exact(vid.map_or(VID_NONE, |vid| vid | VID_PRESENT));
        fields.extend(self.vlan.map(|vlan| OxmField::VlanVid(vid(vlan))));
        if let Some(pcp) = self.pcp {
            if self.vlan.is_none() {
                fields.push(OxmField::VlanVid(Masked::with_mask(VID_PRESENT, VID_PRESENT)));
            }
            fields.push(OxmField::VlanPcp(pcp));
        }
        fields.extend(self.proto.map(OxmField::IpProto));
        for (end, source) in [(self.source, true), (self.destination, false)] {
            fields.extend(end.address.map(|address| address_field(address, source, self.arp)));
            fields.extend(end.port.and_then(|port| port_field(self.proto?, port, source)));
        }
        Match { fields }
    }

    /// A frame of which the words are true.
    pub fn frame(&self) -> Vec<u8> {
        let (from, to) = (self.from.unwrap_or(FROM_DEFAULT), self.to.unwrap_or(TO_DEFAULT));
        let to = if self.arp { self.to.unwrap_or(MacAddr::BROADCAST) } else { to };
        let mut frame = [to.0, from.0].concat();
        let tag = self.vlan.flatten().or(self.pcp.map(|_| 0));
        if let Some(vid) = tag {
            frame.extend(ethertype::VLAN.to_be_bytes());
            frame.extend((u16::from(self.pcp.unwrap_or(0)) << 13 | vid & 0xfff).to_be_bytes());
        }
        // Nothing is said of the payload: the number that IEEE left for experiments.
        let eth_type = self.eth_type.unwrap_or(0x88b5);
        frame.extend(eth_type.to_be_bytes());
        match eth_type {
            ethertype::ARP => frame.extend(self.arp_request(from)),
            ethertype::IPV4 => frame.extend(self.ipv4()),
            ethertype::IPV6 => frame.extend(self.ipv6()),
            _ => {}
        }
        frame.resize(frame.len().max(FRAME_BYTES_MIN), 0);
        frame
    }

    fn arp_request(&self, from: MacAddr) -> Vec<u8> {
        // Ethernet, IPv4, their lengths, request (RFC 826).
        let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1];
        bytes.extend(from.0);
        bytes.extend(v4(self.source).octets());
        bytes.extend([0; 6]);
        bytes.extend(v4(self.destination).octets());
        bytes
    }

    fn ipv4(&self) -> Vec<u8> {
        let (source, destination) = (v4(self.source).octets(), v4(self.destination).octets());
        let proto = self.proto.unwrap_or(0);
        let pseudo = [&source[..], &destination, &[0, proto]].concat();
        let payload = self.transport(proto, &pseudo);
        let length = (20 + payload.len()) as u16;
        let mut bytes = vec![0x45, 0];
        bytes.extend(length.to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, self.ttl.unwrap_or(TTL_DEFAULT), proto, 0, 0]);
        bytes.extend(source);
        bytes.extend(destination);
        let sum = checksum::checksum(&bytes).to_be_bytes();
        bytes[10..12].copy_from_slice(&sum);
        bytes.extend(payload);
        bytes
    }

    fn ipv6(&self) -> Vec<u8> {
        let (source, destination) = (v6(self.source).octets(), v6(self.destination).octets());
        // 59: nothing follows (RFC 8200, 4.7).
        let proto = self.proto.unwrap_or(59);
        let pseudo = [&source[..], &destination, &[0, proto]].concat();
        let payload = self.transport(proto, &pseudo);
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend((payload.len() as u16).to_be_bytes());
        bytes.extend([proto, self.ttl.unwrap_or(TTL_DEFAULT)]);
        bytes.extend(source);
        bytes.extend(destination);
        bytes.extend(payload);
        bytes
    }

    /// The transport header; `pseudo` is what its checksum covers besides, without the length.
    fn transport(&self, proto: u8, pseudo: &[u8]) -> Vec<u8> {
        let port = |end: End| end.port.unwrap_or(0).to_be_bytes();
        let ports = [port(self.source), port(self.destination)].concat();
        let (mut bytes, checksum_at) = match proto {
            // No sequence numbers, five words, SYN.
            ip_proto::TCP => ([&ports[..], &[0; 8], &[0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]].concat(), 16),
            ip_proto::UDP => ([&ports[..], &[0, 8, 0, 0]].concat(), 6),
            // The checksum is a CRC32c, which no switch looks at.
            ip_proto::SCTP => return [&ports[..], &[0; 8]].concat(),
            ip_proto::ICMP => (vec![8, 0, 0, 0, 0, 0, 0, 0], 2),
            ip_proto::ICMPV6 => (vec![128, 0, 0, 0, 0, 0, 0, 0], 2),
            _ => return Vec::new(),
        };
        let start = if proto == ip_proto::ICMP { 0 } else { checksum::sum(pseudo, bytes.len() as u32) };
        let sum = fold(checksum::sum(&bytes, start));
        bytes[checksum_at..checksum_at + 2].copy_from_slice(&(!sum).to_be_bytes());
        bytes
    }
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

fn v4(end: End) -> Ipv4Addr {
    match end.address {
        Some(IpAddr::V4(address)) => address,
        _ => Ipv4Addr::UNSPECIFIED,
    }
}

fn v6(end: End) -> Ipv6Addr {
    match end.address {
        Some(IpAddr::V6(address)) => address,
        _ => Ipv6Addr::UNSPECIFIED,
    }
}

fn address_field(address: IpAddr, source: bool, arp: bool) -> OxmField {
    match (address, source, arp) {
        (IpAddr::V4(address), true, true) => OxmField::ArpSpa(Masked::exact(address)),
        (IpAddr::V4(address), false, true) => OxmField::ArpTpa(Masked::exact(address)),
        (IpAddr::V4(address), true, false) => OxmField::Ipv4Src(Masked::exact(address)),
        (IpAddr::V4(address), false, false) => OxmField::Ipv4Dst(Masked::exact(address)),
        (IpAddr::V6(address), true, _) => OxmField::Ipv6Src(Masked::exact(address)),
        (IpAddr::V6(address), false, _) => OxmField::Ipv6Dst(Masked::exact(address)),
    }
}

fn port_field(proto: u8, port: u16, source: bool) -> Option<OxmField> {
    let port = Masked::exact(port);
    Some(match (proto, source) {
        (ip_proto::TCP, true) => OxmField::TcpSrc(port),
        (ip_proto::TCP, false) => OxmField::TcpDst(port),
        (ip_proto::UDP, true) => OxmField::UdpSrc(port),
        (ip_proto::UDP, false) => OxmField::UdpDst(port),
        (ip_proto::SCTP, true) => OxmField::SctpSrc(port),
        (ip_proto::SCTP, false) => OxmField::SctpDst(port),
        _ => return None,
    })
}

/// A number up to `max`, decimal or hexadecimal with 0x.
fn number(text: &str, max: u32) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.ok().filter(|number| *number <= max).ok_or(format!("needs a number up to {max}, not `{text}`"))
}

fn mac(text: &str) -> Result<MacAddr, String> {
    let parsed: Result<ofp::MacAddr, _> = text.parse();
    parsed.map(|address| MacAddr(address.0)).map_err(|_| format!("needs an Ethernet address, not `{text}`"))
}

/// `ADDRESS`, `ADDRESS:PORT`, `[ADDRESS]:PORT`, each with `*` for any address.
fn end(text: &str) -> Result<End, String> {
    let port = |text: &str| number(text, 0xffff).map(|port| Some(port as u16));
    if let Ok(address) = text.parse() {
        return Ok(End { address: Some(address), port: None });
    }
    let (address, port) = match text.rsplit_once(':') {
        Some((address, text)) => (address, port(text)?),
        None => (text, None),
    };
    let address = match address.trim_start_matches('[').trim_end_matches(']') {
        "*" | "" => None,
        address => Some(address.parse().map_err(|_| format!("has no IP address in `{text}`"))?),
    };
    Ok(End { address, port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openflow::convert::key_and_mask;

    fn parse(text: &str) -> Result<FrameWords, String> {
        let mut errors = Errors::new();
        let words = FrameWords::parse(text, "frame", &mut errors);
        match errors.into_result("not understood", ()) {
            Ok(()) => Ok(words.expect("no error")),
            Err(problem) => Err(problem.to_string()),
        }
    }

    /// What is said is what the frame is: the filter of the words takes it.
    #[test]
    fn a_frame_is_as_it_was_described() {
        for text in [
            "tcp 10.0.0.1:1->10.0.0.2:80 vlan 10",
            "udp 10.0.0.1:53 -> 10.0.0.2:53 pcp 5",
            "sctp 10.0.0.1:1->10.0.0.2:2",
            "icmp 10.0.0.1->10.0.0.2 ttl 1",
            "icmp 2001:db8::1->2001:db8::2",
            "tcp [2001:db8::1]:5->[2001:db8::2]:443 vlan 0xfff from 02:00:00:00:00:07",
            "arp 10.0.0.1->10.0.0.2",
            "arp 10.0.0.1->10.0.0.2 to 02:00:00:00:00:09",
            "ip *->10.0.0.2 proto 47",
            "udp *:68->*:67",
            "type 0x88cc to 01:80:c2:00:00:0e vlan none",
            "",
        ] {
            let words = parse(text).expect(text);
            let (key, mask) = key_and_mask(&words.matching()).expect(text);
            let frame = words.frame();
            let found = packet::parse(&frame, 1);
            assert!(found.matches(&key, &mask), "{text}: {found:?}\n{frame:02x?}");
            assert!(frame.len() >= 60, "{text}");
        }
    }

    /// What is summed up with its checksum gives ones (RFC 1071).
    #[test]
    fn checksums_are_right() {
        let sum = |bytes: &[u8]| fold(checksum::sum(bytes, 0));
        let frame = parse("udp 10.0.0.1:1->10.0.0.2:2").expect("good").frame();
        assert_eq!(sum(&frame[14..34]), 0xffff);
        let pseudo = [&frame[26..34], &[0, 17, 0, 8], &frame[34..42]].concat();
        assert_eq!(sum(&pseudo), 0xffff);
        let frame = parse("tcp [2001:db8::1]:5->[2001:db8::2]:6").expect("good").frame();
        let pseudo = [&frame[22..54], &[0, 6, 0, 20], &frame[54..74]].concat();
        assert_eq!(sum(&pseudo), 0xffff);
    }

    #[test]
    fn everything_wrong_is_told() {
        for (text, parts) in [
            ("tpc 10.0.0.1->10.0.0.2", &["tpc", "is not known"][..]),
            ("tcp 10.0.0.1:99999->10.0.0.2 vlan 5000", &["up to 65535", "up to 4095"]),
            ("vlan", &["needs a value"]),
            ("icmp 10.0.0.1:1->10.0.0.2:2", &["only tcp, udp and sctp"]),
            ("tcp 10.0.0.1->2001:db8::1", &["of IPv4 and of IPv6"]),
            ("arp tcp", &["is ARP"]),
            ("to 02:00", &["an Ethernet address"]),
            ("vlan none pcp 3", &["without a tag"]),
            ("type 0x86dd 10.0.0.1->10.0.0.2", &["not that of its addresses"]),
        ] {
            let problem = parse(text).expect_err(text);
            for part in parts {
                assert!(problem.contains(part), "{text}: {part} is not in {problem}");
            }
        }
    }
}
