//! Addresses, port numbers and fixed-length texts.

use std::fmt;
use std::str::FromStr;

use crate::error::DecodeError;
use crate::wire::{Reader, Wire, Writer};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// Whether the group bit is set (multicast and broadcast).
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an Ethernet address is six two-digit hexadecimal numbers with colons, e.g. 02:00:00:00:00:01")]
pub struct ParseMacError;

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<MacAddr, ParseMacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(ParseMacError)?;
            let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits).ok_or(ParseMacError)?;
        }
        if parts.next().is_some() { Err(ParseMacError) } else { Ok(MacAddr(bytes)) }
    }
}

impl Wire for MacAddr {
    fn put(&self, w: &mut Writer<'_>) {
        w.bytes(&self.0);
    }

    fn get(r: &mut Reader<'_>) -> Result<MacAddr, DecodeError> {
        r.array().map(MacAddr)
    }
}

/// A port number (7.2.1). Numbers above [`PortNo::MAX`] are reserved.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortNo(pub u32);

impl PortNo {
    /// The highest number a physical or logical port may have.
    pub const MAX: PortNo = PortNo(0xffff_ff00);
    /// Out of the port the packet came in by.
    pub const IN_PORT: PortNo = PortNo(0xffff_fff8);
    /// Into the first flow table (packet-out only).
    pub const TABLE: PortNo = PortNo(0xffff_fff9);
    /// Forwarded as a non-OpenFlow switch would.
    pub const NORMAL: PortNo = PortNo(0xffff_fffa);
    /// Flooded as a non-OpenFlow switch would.
    pub const FLOOD: PortNo = PortNo(0xffff_fffb);
    /// All ports except the one it came in by.
    pub const ALL: PortNo = PortNo(0xffff_fffc);
    /// To the controllers.
    pub const CONTROLLER: PortNo = PortNo(0xffff_fffd);
    /// The switch's own port.
    pub const LOCAL: PortNo = PortNo(0xffff_fffe);
    /// No port: wildcard in requests.
    pub const ANY: PortNo = PortNo(0xffff_ffff);

    const NAMES: [(PortNo, &'static str); 8] = [
        (PortNo::IN_PORT, "IN_PORT"),
        (PortNo::TABLE, "TABLE"),
        (PortNo::NORMAL, "NORMAL"),
        (PortNo::FLOOD, "FLOOD"),
        (PortNo::ALL, "ALL"),
        (PortNo::CONTROLLER, "CONTROLLER"),
        (PortNo::LOCAL, "LOCAL"),
        (PortNo::ANY, "ANY"),
    ];

    /// The name of a reserved port as in the specification, without `OFPP_`.
    pub fn reserved_name(self) -> Option<&'static str> {
        PortNo::NAMES.iter().find(|(port, _)| *port == self).map(|&(_, name)| name)
    }

    /// The reserved port of this name (without `OFPP_`, any case).
    pub fn from_reserved_name(name: &str) -> Option<PortNo> {
        PortNo::NAMES.iter().find(|(_, n)| n.eq_ignore_ascii_case(name)).map(|&(port, _)| port)
    }

    /// Whether this is the number of a physical or logical port: 1 ..= MAX.
    pub const fn is_ordinary(self) -> bool {
        self.0 >= 1 && self.0 <= PortNo::MAX.0
    }
}

impl fmt::Display for PortNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reserved_name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Debug for PortNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Wire for PortNo {
    fn put(&self, w: &mut Writer<'_>) {
        w.u32(self.0);
    }

    fn get(r: &mut Reader<'_>) -> Result<PortNo, DecodeError> {
        r.u32().map(PortNo)
    }
}

/// A text in a field of `N` bytes that ends with a zero byte. Kept as bytes: nothing promises UTF-8.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text<const N: usize>([u8; N]);

impl<const N: usize> Text<N> {
    /// `text` cut to `N - 1` bytes, at a character's border, and at its first zero byte.
    pub fn new(text: &str) -> Text<N> {
        let mut end = text.find('\0').unwrap_or(text.len()).min(N - 1);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; N];
        bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
        Text(bytes)
    }

    /// The bytes before the first zero.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.split(|&b| b == 0).next().unwrap_or_default()
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Text<N> {
        Text([0; N])
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(self.as_bytes()), f)
    }
}

impl<const N: usize> Wire for Text<N> {
    fn put(&self, w: &mut Writer<'_>) {
        w.bytes(&self.0);
    }

    /// What follows the first zero byte, and a missing one, are ironed out.
    fn get(r: &mut Reader<'_>) -> Result<Text<N>, DecodeError> {
        let mut bytes = r.array::<N>()?;
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(N - 1);
        bytes[end..].fill(0);
        Ok(Text(bytes))
    }
}
