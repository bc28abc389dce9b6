//! Flow entries as the controller compares them, and the cookies it marks them with.

use std::sync::Arc;

use ofp::{
    Action, FlowMod, FlowModCommand, FlowModFlags, FlowStats, FlowStatsRequest, Instruction, Match,
    MeterBand, MeterConfig, MeterFlags, MeterMod, MeterModCommand, PortNo,
};

/// What tells one flow entry of a switch from another.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FlowKey {
    /// The table.
    pub table: u8,
    /// Higher wins.
    pub priority: u16,
    /// Which packets; normalized, so that equal matches are equal values. Shared, since a switch's rules are held in
    /// several places: as they shall be, as they are, and as they are under way.
    pub matching: Arc<Match>,
}

impl FlowKey {
    /// A key with the match normalized.
    pub fn new(table: u8, priority: u16, matching: &Match) -> FlowKey {
        FlowKey { table, priority, matching: Arc::new(matching.normalized()) }
    }
}

/// The rest of a flow entry.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FlowBody {
    /// Whose it is; see [`Cookie`].
    pub cookie: u64,
    /// What happens to the packets, in a form that is equal for equal effect.
    pub instructions: Arc<[Instruction]>,
}

impl FlowBody {
    /// A body whose instructions compare equal however the switch writes them back.
    pub fn new(cookie: u64, instructions: &[Instruction]) -> FlowBody {
        FlowBody { cookie, instructions: instructions.iter().map(canonical).collect() }
    }
}

/// `max_len` means something for the controller only; switches give back what they like for other ports.
fn canonical(instruction: &Instruction) -> Instruction {
    let actions = |actions: &[Action]| {
        let canonical = |action: &Action| match *action {
            Action::Output { port, .. } if port != PortNo::CONTROLLER => Action::Output { port, max_len: 0 },
            ref other => other.clone(),
        };
        actions.iter().map(canonical).collect()
    };
    match instruction {
        Instruction::ApplyActions(list) => Instruction::ApplyActions(actions(list)),
        Instruction::WriteActions(list) => Instruction::WriteActions(actions(list)),
        other => other.clone(),
    }
}

/// Who a flow entry is for. In every cookie of ours the upper 16 bits are `Cookie::MARK`, the next 8 the kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cookie {
    /// A rule that several networks share.
    Shared,
    /// A rule of the network with this VLAN.
    Network(u16),
    /// A static flow.
    Static,
    /// An address learned in the network with this VLAN.
    Learned(u16),
    /// A rule of the attachment with this number.
    Attachment(u32),
    /// What drops packets that the attachment with this number must not send.
    Spoof(u32),
    /// A rule of the ACL with this number.
    Acl {
        /// The ACL.
        acl: u16,
        /// Its rule, counted from 1; 0 for what it does with packets that no rule names.
        rule: u16,
    },
    /// What shows the controller its own probes of links.
    Discovery,
}

impl Cookie {
    const MARK: u64 = 0x51ce;
    const MARK_SHIFT: u32 = 48;
    const KIND_SHIFT: u32 = 40;
    /// The bits that say that a flow entry is ours.
    pub const OURS_MASK: u64 = 0xffff << Cookie::MARK_SHIFT;
    /// The bits that also say its kind.
    pub const KIND_MASK: u64 = 0xff_ffff << Cookie::KIND_SHIFT;
    /// The value of the bits in [`Cookie::OURS_MASK`].
    pub const OURS: u64 = Cookie::MARK << Cookie::MARK_SHIFT;

    /// The number for the flow entry.
    pub const fn number(self) -> u64 {
        let (kind, low): (u64, u32) = match self {
            Cookie::Shared => (0, 0),
            Cookie::Network(vlan) => (1, vlan as u32),
            Cookie::Static => (2, 0),
            Cookie::Learned(vlan) => (3, vlan as u32),
            Cookie::Attachment(number) => (4, number),
            Cookie::Spoof(number) => (5, number),
            Cookie::Acl { acl, rule } => (6, (acl as u32) << 16 | rule as u32),
            Cookie::Discovery => (7, 0),
        };
        Cookie::OURS | kind << Cookie::KIND_SHIFT | low as u64
    }

    /// The reverse; `None` for a number that is not ours.
    pub const fn from_number(number: u64) -> Option<Cookie> {
        if number & Cookie::OURS_MASK != Cookie::OURS {
            return None;
        }
        let low = number as u32;
        match number >> Cookie::KIND_SHIFT & 0xff {
            0 => Some(Cookie::Shared),
            1 => Some(Cookie::Network(low as u16)),
            2 => Some(Cookie::Static),
            3 => Some(Cookie::Learned(low as u16)),
            4 => Some(Cookie::Attachment(low)),
            5 => Some(Cookie::Spoof(low)),
            6 => Some(Cookie::Acl { acl: (low >> 16) as u16, rule: low as u16 }),
            7 => Some(Cookie::Discovery),
            _ => None,
        }
    }
}

/// A meter as the controller compares it: one band that drops.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MeterBody {
    /// Whether rate and burst are packets; else they are kilobits.
    pub packets: bool,
    /// Kilobits or packets a second.
    pub rate: u32,
    /// Kilobits or packets at once.
    pub burst: u32,
}

impl MeterBody {
    /// A meter that a switch tells; `None` when it is not of the kind that the controller makes.
    pub fn from_config(config: &MeterConfig) -> Option<MeterBody> {
        let unit = MeterFlags(MeterFlags::KBPS.0 | MeterFlags::PKTPS.0);
        let packets = match config.flags.0 & unit.0 {
            flags if flags == MeterFlags::PKTPS.0 => true,
            flags if flags == MeterFlags::KBPS.0 => false,
            _ => return None,
        };
        match config.bands[..] {
            [MeterBand::Drop { rate, burst_size }] => Some(MeterBody { packets, rate, burst: burst_size }),
            _ => None,
        }
    }

    /// The message that makes it so.
    pub fn message(self, command: MeterModCommand, meter_id: u32) -> MeterMod {
        let unit = if self.packets { MeterFlags::PKTPS } else { MeterFlags::KBPS };
        let flags = MeterFlags(unit.0 | MeterFlags::BURST.0 | MeterFlags::STATS.0);
        let bands = vec![MeterBand::Drop { rate: self.rate, burst_size: self.burst }];
        MeterMod { command, flags, meter_id, bands }
    }
}

/// The message that deletes a meter, and the flow entries that use it.
pub fn delete_meter(meter_id: u32) -> MeterMod {
    let flags = MeterFlags::KBPS;
    MeterMod { command: MeterModCommand::Delete, flags, meter_id, bands: vec![] }
}

/// The request for every flow entry of ours.
pub fn ours_request() -> FlowStatsRequest {
    FlowStatsRequest { cookie: Cookie::OURS, cookie_mask: Cookie::OURS_MASK, ..FlowStatsRequest::default() }
}

/// The flow-mod that adds an entry, or replaces the one with its key.
pub fn add(key: &FlowKey, body: &FlowBody) -> FlowMod {
    FlowMod {
        cookie: body.cookie,
        table_id: key.table,
        priority: key.priority,
        flags: FlowModFlags::SEND_FLOW_REM,
        matching: (*key.matching).clone(),
        instructions: body.instructions.to_vec(),
        ..FlowMod::new(FlowModCommand::Add)
    }
}

/// The flow-mod that deletes an entry, and nothing that another controller put in its place.
pub fn delete(key: &FlowKey) -> FlowMod {
    FlowMod {
        cookie: Cookie::OURS,
        cookie_mask: Cookie::OURS_MASK,
        table_id: key.table,
        priority: key.priority,
        matching: (*key.matching).clone(),
        ..FlowMod::new(FlowModCommand::DeleteStrict)
    }
}

/// Key and body of an entry that the switch tells.
pub fn from_stats(stats: &FlowStats) -> (FlowKey, FlowBody) {
    let key = FlowKey::new(stats.table_id, stats.priority, &stats.matching);
    (key, FlowBody::new(stats.cookie, &stats.instructions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies() {
        let acl = Cookie::Acl { acl: 0xffff, rule: 512 };
        let numbered = [Cookie::Attachment(u32::MAX), Cookie::Spoof(3), acl, Cookie::Discovery];
        let plain = [Cookie::Shared, Cookie::Network(4094), Cookie::Static, Cookie::Learned(7)];
        for cookie in plain.into_iter().chain(numbered) {
            assert_eq!(Cookie::from_number(cookie.number()), Some(cookie));
            assert_eq!(cookie.number() & Cookie::OURS_MASK, Cookie::OURS);
        }
        assert_eq!(Cookie::from_number(7), None);
    }

    #[test]
    fn the_length_of_an_output_to_a_port_does_not_count() {
        let output = |port, max_len| {
            FlowBody::new(1, &[Instruction::ApplyActions(vec![Action::Output { port, max_len }])])
        };
        assert_eq!(output(PortNo(1), 0), output(PortNo(1), 0xffff));
        assert_ne!(output(PortNo::CONTROLLER, 64), output(PortNo::CONTROLLER, 0xffff));
    }
}
