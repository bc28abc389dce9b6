//! ACLs, also called security groups: ordered rules without state.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use telemetry::check::{Errors, Fields};
use utoipa::ToSchema;

use super::Mac;
use super::attachment::read_net;

/// Rules of one ACL at most.
pub const RULES_MAX: usize = 512;

/// Which way a packet goes, as the attached host sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the host.
    Ingress,
    /// From the host.
    Egress,
}

/// What happens to a packet.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passes.
    #[default]
    Allow,
    /// It is dropped.
    Deny,
}

/// A protocol above Ethernet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ether {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// ARP.
    Arp,
    /// An EtherType.
    #[serde(untagged)]
    Number(u16),
}

/// A protocol above IP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP of IPv4.
    Icmp,
    /// ICMP of IPv6.
    Icmpv6,
    /// A protocol number.
    #[serde(untagged)]
    Number(u8),
}

impl Protocol {
    /// Its number in IP.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Icmp => 1,
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Icmpv6 => 58,
            Protocol::Sctp => 132,
            Protocol::Number(number) => number,
        }
    }
}

/// A port or a range of ports, `80` or `"8000-8999"`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl Serialize for PortRange {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.first == self.last {
            true => serializer.serialize_u16(self.first),
            false => serializer.collect_str(&format_args!("{}-{}", self.first, self.last)),
        }
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<PortRange, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u16),
            Text(String),
        }
        let wrong = || serde::de::Error::custom("not a port, 0 to 65535, or a range such as 8000-8999");
        let (first, last) = match Either::deserialize(deserializer).map_err(|_| wrong())? {
            Either::Number(number) => (number, number),
            Either::Text(text) => {
                let (first, last) = text.split_once('-').unwrap_or((&text, &text));
                let number = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
                (number(first)?, number(last)?)
            }
        };
        if first <= last { Ok(PortRange { first, last }) } else { Err(wrong()) }
    }
}

/// `10.0.0.5` is as good as `10.0.0.5/32`.
fn address_or_prefix<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpNet>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let wrong = || format!("{text:?} is neither an IP address nor a prefix such as 10.0.0.0/24");
    read_net(&text).map(Some).ok_or_else(|| serde::de::Error::custom(wrong()))
}

/// One rule. What is not given may be anything.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which packets: to or from the attached host.
    pub direction: Direction,
    /// What happens to them.
    pub action: Verdict,
    /// The protocol above Ethernet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ether: Option<Ether>,
    /// The protocol above IP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Sender's IP address or prefix.
    #[serde(default, deserialize_with = "address_or_prefix", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10.0.0.0/24")]
    pub source: Option<IpNet>,
    /// Receiver's IP address or prefix.
    #[serde(default, deserialize_with = "address_or_prefix", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub destination: Option<IpNet>,
    /// Sender's Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_mac: Option<Mac>,
    /// Receiver's Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_mac: Option<Mac>,
    /// Sender's port of TCP, UDP or SCTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "8000-8999")]
    pub source_port: Option<PortRange>,
    /// Receiver's port of TCP, UDP or SCTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "8000-8999")]
    pub destination_port: Option<PortRange>,
    /// Type of ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// Code of ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// What happens to packets that no rule names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// To the host.
    #[serde(default)]
    pub ingress: Verdict,
    /// From the host.
    #[serde(default)]
    pub egress: Verdict,
}

impl Defaults {
    /// The one of a direction.
    pub fn of(self, direction: Direction) -> Verdict {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// An ACL. Its rules have no state: answers need a rule of their own. ARP and neighbour discovery pass unless a rule
/// names them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Acl {
    /// The tenant it belongs to; without one, everybody may use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The rules; the first that fits decides.
    pub rules: Vec<Rule>,
    /// What happens to packets that no rule names. Where several ACLs apply, the strictest counts.
    #[schema(required = false)]
    pub default: Defaults,
}

impl Acl {
    /// Reads an ACL from JSON; everything wrong with it goes to `errors`.
    pub fn from_json(value: Value, errors: &mut Errors) -> Option<Acl> {
        let mut fields = Fields::new("", value, errors);
        let tenant = fields.optional::<String>("tenant", "the name of a tenant");
        let rules = fields.required::<Vec<Value>>("rules", "a list of rules");
        let default = fields.optional::<Defaults>("default", "{ingress, egress}: `allow` or `deny`");
        let stateful = fields.optional::<bool>("stateful", "false");
        fields.finish();
        if stateful == Some(true) {
            let remedy = "leave it out and allow answers by rules of their own";
            errors.add("stateful", true, "rules that remember connections are not available", remedy);
        }
        let given = rules?;
        if given.len() > RULES_MAX {
            errors.add("rules", given.len(), "too many rules", format!("give {RULES_MAX} at most"));
        }
        let mut rules = Vec::with_capacity(given.len());
        for (index, value) in given.into_iter().enumerate() {
            let path = format!("rules[{index}]");
            match Rule::deserialize(&value) {
                Ok(rule) => {
                    rule.check(&path, errors);
                    rules.push(rule);
                }
                Err(error) => errors.add(path, value, error.to_string(), "see the description of ACLs"),
            }
        }
        Some(Acl { tenant, rules, default: default.unwrap_or_default() }).filter(|_| errors.is_empty())
    }
}

impl Rule {
    /// What EtherType its other parts ask for, if they do.
    pub fn implied_ether(&self) -> Option<Ether> {
        let of = |net: &Option<IpNet>| match net {
            Some(IpNet::V4(_)) => Some(Ether::Ipv4),
            Some(IpNet::V6(_)) => Some(Ether::Ipv6),
            None => None,
        };
        let of_protocol = match self.protocol {
            Some(Protocol::Icmp) => Some(Ether::Ipv4),
            Some(Protocol::Icmpv6) => Some(Ether::Ipv6),
            _ => None,
        };
        of(&self.source).or_else(|| of(&self.destination)).or(of_protocol).or(self.ether)
    }

    fn check(&self, path: &str, errors: &mut Errors) {
        let mut refuse = |key: &str, value: String, detail: &str, remedy: &str| {
            errors.add(format!("{path}.{key}"), value, detail, remedy);
        };
        let ports = matches!(self.protocol, Some(Protocol::Tcp | Protocol::Udp | Protocol::Sctp));
        for (key, range) in [("source_port", self.source_port), ("destination_port", self.destination_port)] {
            if let Some(range) = range.filter(|_| !ports) {
                let value = format!("{}-{}", range.first, range.last);
                refuse(key, value, "needs a protocol with ports", "give protocol tcp, udp or sctp");
            }
        }
        let icmp = matches!(self.protocol, Some(Protocol::Icmp | Protocol::Icmpv6));
        for (key, number) in [("icmp_type", self.icmp_type), ("icmp_code", self.icmp_code)] {
            if let Some(number) = number.filter(|_| !icmp) {
                refuse(key, number.to_string(), "needs ICMP", "give protocol icmp or icmpv6");
            }
        }
        let implied = self.implied_ether();
        let family = |net: &IpNet| if net.addr().is_ipv4() { Ether::Ipv4 } else { Ether::Ipv6 };
        let contradicts = |ether: Ether| implied.is_some_and(|implied| implied != ether);
        for (key, net) in [("source", &self.source), ("destination", &self.destination)] {
            if let Some(net) = net.as_ref().filter(|net| contradicts(family(net))) {
                let remedy = "use addresses, protocol and ether of one family";
                refuse(key, net.to_string(), "contradicts the rest of the rule", remedy);
            }
        }
        let ip = |ether| matches!(ether, Ether::Ipv4 | Ether::Ipv6 | Ether::Number(0x0800 | 0x86dd));
        let wrong = |ether| contradicts(ether) || self.protocol.is_some() && !ip(ether);
        if let Some(ether) = self.ether.filter(|ether| wrong(*ether)) {
            let value = serde_json::json!(ether).to_string();
            refuse("ether", value, "contradicts the rest of the rule", "leave it out, or correct the rest");
        }
        let mismatch = match self.protocol {
            Some(Protocol::Icmp) => implied != Some(Ether::Ipv4),
            Some(Protocol::Icmpv6) => implied != Some(Ether::Ipv6),
            _ => false,
        };
        if mismatch {
            let value = serde_json::json!(self.protocol).to_string();
            refuse("protocol", value, "is of the other IP family", "use icmp with IPv4, icmpv6 with IPv6");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Acl, Vec<String>> {
        let mut errors = Errors::new();
        let acl = Acl::from_json(value, &mut errors);
        acl.ok_or_else(|| errors.list().iter().map(|error| error.field.clone()).collect())
    }

    #[test]
    fn what_is_written_is_read_again() {
        let value = json!({"rules": [
            {"direction": "ingress", "action": "allow", "protocol": "tcp", "source": "10.0.0.0/24", "destination_port": 80},
            {"direction": "egress", "action": "deny", "ether": "ipv6", "protocol": 89},
            {"direction": "egress", "action": "deny", "ether": 34984, "source_mac": "02:00:00:00:00:01"},
            {"direction": "ingress", "action": "allow", "protocol": "icmp", "icmp_type": 8, "comment": "ping"},
            {"direction": "ingress", "action": "allow", "protocol": "udp", "source_port": "8000-8999"},
        ], "default": {"ingress": "deny", "egress": "allow"}, "tenant": "t"});
        assert_eq!(serde_json::to_value(read(value.clone()).unwrap()).unwrap(), value);
    }

    #[test]
    fn an_address_is_a_prefix() {
        let acl = read(json!({"rules": [
            {"direction": "ingress", "action": "allow", "source": "10.0.0.5", "destination": "10.0.1.7/24"},
            {"direction": "egress", "action": "allow", "destination": "fd00::5"},
        ]}));
        let written = serde_json::to_value(acl.unwrap()).unwrap();
        assert_eq!(written["rules"][0]["source"], "10.0.0.5/32");
        assert_eq!(written["rules"][0]["destination"], "10.0.1.0/24");
        assert_eq!(written["rules"][1]["destination"], "fd00::5/128");
        let wrong = json!({"rules": [{"direction": "ingress", "action": "allow", "source": "10.0.0.300"}]});
        let mut errors = Errors::new();
        assert_eq!(Acl::from_json(wrong, &mut errors), None);
        assert!(errors.list()[0].detail.contains("\"10.0.0.300\" is neither"), "{}", errors.list()[0].detail);
    }

    #[test]
    fn everything_wrong_is_told() {
        let wrong = json!({"stateful": true, "rules": [
            {"direction": "ingress", "action": "allow", "destination_port": 80},
            {"direction": "sideways", "action": "allow"},
            {"direction": "ingress", "action": "allow", "source": "10.0.0.0/8", "destination": "fd00::1/128"},
            {"direction": "ingress", "action": "allow", "protocol": "icmpv6", "source": "10.0.0.0/8", "icmp_type": 1},
            {"direction": "ingress", "action": "allow", "protocol": "tcp", "icmp_code": 1, "ether": "arp"},
            {"direction": "ingress", "action": "allow", "protocol": "tcp", "source_port": "9-8"},
        ]});
        let expected = [
            "stateful",
            "rules[0].destination_port",
            "rules[1]",
            "rules[2].destination",
            "rules[3].protocol",
            "rules[4].icmp_code",
            "rules[4].ether",
            "rules[5]",
        ];
        assert_eq!(read(wrong).unwrap_err(), expected);
    }
}
