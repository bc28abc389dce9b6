//! Attachments: a port in a network, with all that is to hold for it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use telemetry::check::{Errors, Fields};
use utoipa::ToSchema;

use super::{Mac, Place, PortMode};

/// Addresses of one attachment at most, of either kind.
pub const ADDRESSES_PER_ATTACHMENT_MAX: usize = 64;
/// KiB/s that a meter can hold as kbit/s.
const RATE_MAX: u32 = 400_000_000;

/// A rate limit in libvirt's units.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// KiB a second in the long run.
    #[schema(minimum = 1, maximum = 400_000_000, example = 1024)]
    pub average: u32,
    /// KiB a second at most while the burst lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak: Option<u32>,
    /// KiB that may pass beyond the average at once; a tenth of a second's worth, and 32 at least, when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// The rate limits of an attachment. They need a switch with meters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// To the attached host. Flooded frames are not counted here; see the flooding of the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<Rate>,
    /// From the attached host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<Rate>,
}

/// A port in a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Attachment {
    /// The network.
    pub network: String,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// How it takes part.
    #[schema(required = false)]
    pub mode: PortMode,
    /// Ethernet addresses it may send from; none = any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub macs: Vec<Mac>,
    /// IP addresses, or prefixes, it may send from; none = any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false, value_type = Vec<String>, example = json!(["10.0.0.5", "fd00::/64"]))]
    pub ips: Vec<IpNet>,
    /// Rate limits.
    #[serde(skip_serializing_if = "no_rates")]
    #[schema(required = false)]
    pub rates: Rates,
    /// ACLs, after those of the network.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub acls: Vec<String>,
    /// Whether DHCP servers and routers may be here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false, default = false)]
    pub trusted: bool,
}

fn no_rates(rates: &Rates) -> bool {
    *rates == Rates::default()
}

impl Attachment {
    /// Reads an attachment from JSON; everything wrong with it goes to `errors`.
    pub fn from_json(value: Value, errors: &mut Errors) -> Option<Attachment> {
        let mut fields = Fields::new("", value, errors);
        let network = fields.required::<String>("network", "the name of a network");
        let place = Place::take(&mut fields);
        let mode = fields.optional::<PortMode>("mode", "`access`, `trunk` or `native`");
        let macs = fields.optional::<Vec<Mac>>("macs", "a list of Ethernet addresses").unwrap_or_default();
        let ips = fields.optional::<Vec<String>>("ips", "a list of IP addresses or prefixes");
        let rates = fields.optional::<Rates>("rates", "{inbound, outbound: {average, peak, burst}} in KiB/s");
        let acls = fields.optional::<Vec<String>>("acls", "a list of names of ACLs");
        let trusted = fields.optional::<bool>("trusted", "true or false");
        fields.finish();
        let ips = read_ips(ips.unwrap_or_default(), errors);
        for mac in macs.iter().filter(|mac| mac.0.is_group()) {
            errors.add("macs", mac.0, "a group address sends nothing", "give the address of a host");
        }
        for (field, count) in [("macs", macs.len()), ("ips", ips.len())] {
            if count > ADDRESSES_PER_ATTACHMENT_MAX {
                let remedy = format!("give {ADDRESSES_PER_ATTACHMENT_MAX} at most");
                errors.add(field, count, "too many addresses", remedy);
            }
        }
        let rates = rates.unwrap_or_default();
        for (side, rate) in [("inbound", rates.inbound), ("outbound", rates.outbound)] {
            rate.into_iter().for_each(|rate| check_rate(side, rate, errors));
        }
        Some(Attachment {
            network: network?,
            place: place?,
            mode: mode.unwrap_or_default(),
            macs,
            ips,
            rates,
            acls: acls.unwrap_or_default(),
            trusted: trusted.unwrap_or(false),
        })
        .filter(|_| errors.is_empty())
    }
}

/// An IP address, or a prefix, of which the bits of the host are ignored.
pub(super) fn read_net(text: &str) -> Option<IpNet> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.ok().or_else(|| text.parse::<IpNet>().ok()).map(|net| net.trunc())
}

fn read_ips(texts: Vec<String>, errors: &mut Errors) -> Vec<IpNet> {
    let mut ips = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match read_net(text) {
            Some(net) => ips.push(net),
            None => {
                let remedy = "give 10.0.0.5, 10.0.0.0/24, fd00::5 or fd00::/64";
                errors.add(format!("ips[{index}]"), text, "neither an address nor a prefix", remedy);
            }
        }
    }
    ips
}

fn check_rate(side: &str, rate: Rate, errors: &mut Errors) {
    let field = |key: &str| format!("rates.{side}.{key}");
    errors.range(&field("average"), rate.average, 1..=RATE_MAX);
    if let Some(peak) = rate.peak {
        errors.range(&field("peak"), peak, rate.average.min(RATE_MAX)..=RATE_MAX);
    }
    if let Some(burst) = rate.burst {
        errors.range(&field("burst"), burst, 1..=RATE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_is_read_again() {
        let full = json!({
            "network": "red", "dpid": 1, "port": "tap0", "mode": "trunk", "macs": ["02:00:00:00:00:01"],
            "ips": ["10.0.0.5/32", "fd00::/64"], "acls": ["web"], "trusted": true,
            "rates": {"inbound": {"average": 100, "peak": 200, "burst": 64}, "outbound": {"average": 1}},
        });
        for value in [json!({"network": "red", "dpid": 1, "port": 2, "mode": "access"}), full] {
            let attachment = Attachment::from_json(value.clone(), &mut Errors::new()).unwrap();
            assert_eq!(serde_json::to_value(&attachment).unwrap(), value);
        }
    }

    #[test]
    fn everything_wrong_is_told() {
        let wrong = json!({
            "dpid": 1, "port": 2, "macs": ["03:00:00:00:00:01"], "ips": ["10.0.0.300", "10.0.0.0/33", "::1"],
            "rates": {"inbound": {"average": 0}, "outbound": {"average": 10, "peak": 5, "burst": 0}}, "speed": 1,
        });
        let mut errors = Errors::new();
        assert_eq!(Attachment::from_json(wrong, &mut errors), None);
        let fields: Vec<_> = errors.list().iter().map(|error| error.field.as_str()).collect();
        let expected = [
            "network",
            "speed",
            "ips[0]",
            "ips[1]",
            "macs",
            "rates.inbound.average",
            "rates.outbound.peak",
            "rates.outbound.burst",
        ];
        assert_eq!(fields, expected);
    }
}
