//! Where something is: switches, ports, addresses.

use std::fmt;
use std::str::FromStr;

use ofp::MacAddr;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use telemetry::check::{Errors, Fields};
use utoipa::ToSchema;

/// Port numbers of OpenFlow end here (`OFPP_MAX`).
const PORT_MAX: u64 = 0xffff_ff00;

/// The number of a switch (datapath id).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = u64, example = 1)]
pub struct Dpid(pub u64);

impl fmt::Display for Dpid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A text that is no switch number.
#[derive(Debug, thiserror::Error)]
#[error("not the number of a switch; give it in decimal, with 0x, or as 16 hexadecimal digits")]
pub struct ParseDpidError;

impl FromStr for Dpid {
    type Err = ParseDpidError;

    fn from_str(text: &str) -> Result<Dpid, ParseDpidError> {
        let hexadecimal = |digits: &str| {
            let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
            u64::from_str_radix(digits, 16).ok().filter(|_| plain)
        };
        let number = if let Some(digits) = text.strip_prefix("0x") {
            hexadecimal(digits)
        } else if text.len() == 16 {
            hexadecimal(text)
        } else {
            text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
        };
        number.map(Dpid).ok_or(ParseDpidError)
    }
}

impl<'de> Deserialize<'de> for Dpid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Dpid, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer).map_err(|_| serde::de::Error::custom(ParseDpidError))? {
            Either::Number(number) => Ok(Dpid(number)),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// A port of a switch: its OpenFlow number or its name there.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum PortRef {
    /// The OpenFlow number.
    Number(u32),
    /// The name the switch tells.
    Name(String),
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortRef::Number(number) => write!(f, "{number}"),
            PortRef::Name(name) => f.write_str(name),
        }
    }
}

/// How a port takes part in a network.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum PortMode {
    /// Untagged, and in no other network.
    #[default]
    Access,
    /// Tagged; may be in other networks too.
    Trunk,
    /// Untagged; may be a trunk in other networks.
    Native,
}

/// Whether a port in mode `a` in one network can be in mode `b` in another.
pub fn modes_agree(a: PortMode, b: PortMode) -> bool {
    a == PortMode::Trunk && b != PortMode::Access || b == PortMode::Trunk && a != PortMode::Access
}

/// An Ethernet address as JSON has it: a text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, ToSchema)]
#[schema(value_type = String, example = "02:00:00:00:00:01")]
pub struct Mac(pub MacAddr);

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        String::deserialize(deserializer)?.parse().map(Mac).map_err(serde::de::Error::custom)
    }
}

/// A port of a switch.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, ToSchema)]
pub struct Place {
    /// The switch.
    pub dpid: Dpid,
    /// The port on it.
    pub port: PortRef,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {} of switch {}", self.port, self.dpid)
    }
}

impl Place {
    /// Takes `dpid` and `port` from a table.
    pub fn take(fields: &mut Fields<'_>) -> Option<Place> {
        let dpid = fields.required::<Dpid>("dpid", "the number of a switch");
        let port = fields.required::<Value>("port", "the number or the name of a port")?;
        let field = fields.field("port");
        let port = match port {
            Value::Number(number) if number.as_u64().is_some_and(|n| (1..=PORT_MAX).contains(&n)) => {
                PortRef::Number(number.as_u64().and_then(|n| u32::try_from(n).ok())?)
            }
            Value::String(name) if (1..=15).contains(&name.len()) => PortRef::Name(name),
            other => {
                let remedy = "give a port number from 1, or a name of 1 to 15 bytes as the switch tells it";
                fields.errors().add(field, other, "is neither the number nor the name of a port", remedy);
                return None;
            }
        };
        Some(Place { dpid: dpid?, port })
    }

    /// Reads `{dpid, port}`, which stands at `path`.
    pub fn from_json(path: &str, value: Value, errors: &mut Errors) -> Option<Place> {
        let mut fields = Fields::new(path, value, errors);
        let place = Place::take(&mut fields);
        fields.finish();
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switch_numbers() {
        for (text, number) in
            [("1", 1), ("0x1f", 31), ("00000000000000ff", 255), ("18446744073709551615", u64::MAX)]
        {
            assert_eq!(text.parse::<Dpid>().unwrap(), Dpid(number), "{text}");
        }
        for text in ["", "0x", "-1", "+1", "x", "18446744073709551616", "+00000000000000f", "1 "] {
            assert!(text.parse::<Dpid>().is_err(), "{text}");
        }
    }
}
