//! Matches, actions, groups and meters in the JSON of Ryu's `ofctl_rest` for OpenFlow 1.3.

use ofp::{
    Action, Bucket, GroupMod, GroupModCommand, GroupType, Instruction, Match, MeterBand, MeterFlags,
    MeterMod, MeterModCommand, OxmField, PortNo, VID_PRESENT,
};
use serde_json::{Map, Value, json};
use telemetry::Problem;
use telemetry::check::Errors;

use crate::flow_json::{FlowSpec, show_value};

/// Names that Ryu shows, and those of the specification. It reads both.
const OLD_NAMES: [(&str, &str); 11] = [
    ("dl_src", "eth_src"),
    ("dl_dst", "eth_dst"),
    ("dl_type", "eth_type"),
    ("dl_vlan", "vlan_vid"),
    ("nw_src", "ipv4_src"),
    ("nw_dst", "ipv4_dst"),
    ("nw_proto", "ip_proto"),
    ("tp_src", "tcp_src"),
    ("tp_dst", "tcp_dst"),
    ("tp_src", "udp_src"),
    ("tp_dst", "udp_dst"),
];

/// Numbers with names: those that Ryu reads, which are those of the specification without what they begin with.
pub type Names = &'static [(&'static str, u32)];
/// Of tables.
pub const TABLES: Names = &[("ALL", ofp::TABLE_ALL as u32), ("MAX", 0xfe)];
/// Of groups.
pub const GROUPS: Names = &[("ALL", ofp::group::ALL), ("ANY", ofp::group::ANY), ("MAX", ofp::group::MAX)];
/// Of buffers.
pub const BUFFERS: Names = &[("NO_BUFFER", ofp::NO_BUFFER)];
const METERS: Names = &[
    ("ALL", ofp::meter::ALL),
    ("CONTROLLER", ofp::meter::CONTROLLER),
    ("SLOWPATH", ofp::meter::SLOWPATH),
    ("MAX", ofp::meter::MAX),
];
const QUEUES: Names = &[("ALL", ofp::QUEUE_ALL)];
const LENGTHS: Names = &[("MAX", LENGTH_MAX as u32), ("NO_BUFFER", ofp::CONTROLLER_LEN_NO_BUFFER as u32)];
/// What Ryu has sent to the controller of a packet when nothing is said (`OFPCML_MAX`).
const LENGTH_MAX: u16 = 0xffe5;

fn named(names: Names, value: &Value) -> Option<u64> {
    let text = value.as_str()?;
    names.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, number)| u64::from(*number))
}

/// A port as Ryu shows it: reserved ones by name.
pub fn port(port: PortNo) -> Value {
    port.reserved_name().map_or(json!(port.0), |name| json!(name))
}

/// A match.
pub fn matching(matching: &Match) -> Value {
    let mut shown = Map::new();
    for field in &matching.fields {
        let name = field.name();
        let key = OLD_NAMES.iter().find(|(_, new)| *new == name).map_or(name, |(old, _)| old);
        let value = match (field, field.numbers()) {
            (OxmField::InPort(number), _) => port(*number),
            (OxmField::VlanVid(_), Some((value, Some(mask)))) => json!(format!("{value:#06x}/{mask:#06x}")),
            (OxmField::VlanVid(_), Some((value, None))) if value & u128::from(VID_PRESENT) != 0 => {
                json!((value & 0xfff).to_string())
            }
            (OxmField::VlanVid(_), Some((value, None))) => json!(format!("{value:#06x}")),
            (_, Some((value, Some(mask)))) => {
                let one = |number| field.field().map_or(String::new(), |f| plain(&show_value(f, number)));
                json!(format!("{}/{}", one(value), one(mask)))
            }
            (_, Some((value, None))) => field.field().map_or(Value::Null, |f| show_value(f, value)),
            _ => continue,
        };
        shown.entry(key).or_insert(value);
    }
    shown.into()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// An action.
pub fn action(action: &Action) -> Value {
    json!(match action {
        Action::Output { port: to, .. } => format!("OUTPUT:{}", plain(&port(*to))),
        Action::CopyTtlOut => "COPY_TTL_OUT".to_owned(),
        Action::CopyTtlIn => "COPY_TTL_IN".to_owned(),
        Action::SetMplsTtl(ttl) => format!("SET_MPLS_TTL:{ttl}"),
        Action::DecMplsTtl => "DEC_MPLS_TTL".to_owned(),
        Action::PushVlan(kind) => format!("PUSH_VLAN:{kind}"),
        Action::PopVlan => "POP_VLAN".to_owned(),
        Action::PushMpls(kind) => format!("PUSH_MPLS:{kind}"),
        Action::PopMpls(kind) => format!("POP_MPLS:{kind}"),
        Action::SetQueue(queue) => format!("SET_QUEUE:{queue}"),
        Action::Group(group) => format!("GROUP:{group}"),
        Action::SetNwTtl(ttl) => format!("SET_NW_TTL:{ttl}"),
        Action::DecNwTtl => "DEC_NW_TTL".to_owned(),
        Action::SetField(field) => {
            let value = match (field.field(), field.numbers()) {
                (Some(kind), Some((value, _))) => plain(&show_value(kind, value)),
                _ => String::new(),
            };
            format!("SET_FIELD: {{{}:{value}}}", field.name())
        }
        Action::PushPbb(kind) => format!("PUSH_PBB:{kind}"),
        Action::PopPbb => "POP_PBB".to_owned(),
        Action::Experimenter { experimenter, .. } => format!("EXPERIMENTER: {{experimenter:{experimenter}}}"),
    })
}

/// Instructions, in one list with the actions that are applied.
pub fn instructions(instructions: &[Instruction]) -> Vec<Value> {
    let mut shown = Vec::new();
    for instruction in instructions {
        match instruction {
            Instruction::ApplyActions(actions) => shown.extend(actions.iter().map(action)),
            Instruction::WriteActions(actions) if actions.is_empty() => {}
            Instruction::WriteActions(actions) => {
                shown.push(json!({"WRITE_ACTIONS": actions.iter().map(action).collect::<Vec<_>>()}));
            }
            Instruction::ClearActions => shown.push(json!("CLEAR_ACTIONS")),
            Instruction::GotoTable(table) => shown.push(json!(format!("GOTO_TABLE:{table}"))),
            Instruction::WriteMetadata { metadata, mask: 0 } => {
                shown.push(json!(format!("WRITE_METADATA:{metadata:#x}")));
            }
            Instruction::WriteMetadata { metadata, mask } => {
                shown.push(json!(format!("WRITE_METADATA:{metadata:#x}/{mask:#x}")));
            }
            Instruction::Meter(id) => shown.push(json!(format!("METER:{id}"))),
            Instruction::Experimenter { .. } => {}
        }
    }
    shown
}

const GROUP_TYPES: [(&str, GroupType); 4] = [
    ("ALL", GroupType::All),
    ("SELECT", GroupType::Select),
    ("INDIRECT", GroupType::Indirect),
    ("FF", GroupType::FastFailover),
];

/// The type of a group.
pub fn group_type(kind: GroupType) -> Option<&'static str> {
    GROUP_TYPES.iter().find(|(_, known)| *known == kind).map(|(name, _)| *name)
}

const METER_FLAGS: [(&str, MeterFlags); 4] = [
    ("KBPS", MeterFlags::KBPS),
    ("PKTPS", MeterFlags::PKTPS),
    ("BURST", MeterFlags::BURST),
    ("STATS", MeterFlags::STATS),
];

/// The flags of a meter.
pub fn meter_flags(flags: MeterFlags) -> Vec<&'static str> {
    METER_FLAGS.iter().filter(|(_, flag)| flags.contains(*flag)).map(|(name, _)| *name).collect()
}

/// A band of a meter.
pub fn band(band: &MeterBand) -> Value {
    match band {
        MeterBand::Drop { rate, burst_size } => {
            json!({"type": "DROP", "rate": rate, "burst_size": burst_size})
        }
        MeterBand::DscpRemark { rate, burst_size, prec_level } => {
            json!({"type": "DSCP_REMARK", "rate": rate, "burst_size": burst_size, "prec_level": prec_level})
        }
        MeterBand::Experimenter { rate, burst_size, experimenter, .. } => {
            json!({"type": "EXPERIMENTER", "rate": rate, "burst_size": burst_size, "experimenter": experimenter})
        }
    }
}

/// Reads a body, and notes everything that is wrong with it.
pub struct Input {
    body: Value,
    errors: Errors,
}

fn as_number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        },
        _ => None,
    }
}

/// What can be read as a number is one; the rest is told later what is wrong with it.
fn number_or_text(value: &Value, names: Names) -> Value {
    as_number(value).or_else(|| named(names, value)).map_or(value.clone(), |number| json!(number))
}

impl Input {
    /// A body to read.
    pub fn new(body: Value) -> Input {
        Input { body, errors: Errors::new() }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// All that was wrong.
    pub fn finish(self, title: &str) -> Result<(), Problem> {
        self.errors.into_result(title, ())
    }

    /// A number, or a text of one; `default` when it is not there.
    pub fn number<T: TryFrom<u64>>(&mut self, key: &'static str, default: T) -> T {
        self.reserved(key, &[], default)
    }

    /// The same, where some numbers have names.
    pub fn reserved<T: TryFrom<u64>>(&mut self, key: &'static str, names: Names, default: T) -> T {
        let value = &self.body[key];
        if value.is_null() {
            return default;
        }
        let number = as_number(value).or_else(|| named(names, value));
        match number.and_then(|number| T::try_from(number).ok()) {
            Some(number) => number,
            None => {
                let highest = u128::MAX >> (128 - 8 * size_of::<T>());
                self.errors.add(
                    key,
                    value,
                    "out of range or no number",
                    format!("give a number up to {highest}"),
                );
                default
            }
        }
    }

    /// One of these words; `default` when there is none.
    pub fn one_of<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)], default: T) -> T {
        let value = &self.body[key];
        if value.is_null() {
            return default;
        }
        let word = value.as_str().unwrap_or_default();
        match words.iter().find(|(known, _)| known.eq_ignore_ascii_case(word)) {
            Some((_, meant)) => *meant,
            None => {
                let known: Vec<_> = words.iter().map(|(known, _)| *known).collect();
                self.errors.add(key, value, "not known", format!("give {}", known.join(", ")));
                default
            }
        }
    }

    /// A port, by number or name.
    pub fn port(&mut self, key: &'static str, default: u32) -> u32 {
        match self.body[key].as_str().and_then(PortNo::from_reserved_name) {
            Some(port) => port.0,
            None => self.number(key, default),
        }
    }

    /// The switch.
    pub fn dpid(&mut self) -> String {
        match &self.body["dpid"] {
            Value::Null => {
                self.errors.add("dpid", "", "missing", "give the number of a switch");
                String::new()
            }
            value => plain(value),
        }
    }

    /// A flow in the words of the other interface, with the errors of this one.
    fn spec(&mut self, value: Value) -> Option<FlowSpec> {
        let mut errors = Errors::new();
        let spec = FlowSpec::from_json(value, &mut errors);
        self.errors.extend(errors.list().to_vec());
        spec
    }

    /// The match.
    pub fn matching(&mut self) -> Match {
        let given = match &self.body["match"] {
            Value::Object(given) => given.clone(),
            Value::Null => return Match::any(),
            other => {
                self.errors.add("match", other, "is no object", "give match fields and their values");
                return Match::any();
            }
        };
        let known = |keys: [&str; 2]| keys.iter().find_map(|key| given.get(*key)).and_then(as_number);
        let (protocol, ether) = (known(["nw_proto", "ip_proto"]), known(["dl_type", "eth_type"]));
        let mut fields = Map::new();
        for (key, value) in &given {
            let name = match (key.as_str(), protocol, ether) {
                ("tp_src", Some(17), _) => "udp_src",
                ("tp_dst", Some(17), _) => "udp_dst",
                ("nw_src", _, Some(0x0806)) => "arp_spa",
                ("nw_dst", _, Some(0x0806)) => "arp_tpa",
                (key, ..) => OLD_NAMES.iter().find(|(old, _)| *old == key).map_or(key, |(_, new)| new),
            };
            let tagged = |number: u64| json!(number | u64::from(VID_PRESENT));
            let value = match (name, value) {
                ("vlan_vid", Value::Number(number)) => number.as_u64().map_or(json!(number), tagged),
                ("vlan_vid", Value::String(text)) => text.parse().map_or(json!(text), tagged),
                _ => value.clone(),
            };
            fields.insert(name.to_owned(), value);
        }
        self.spec(json!({"match": fields})).map_or(Match::any(), |spec| spec.matching)
    }

    /// The instructions, from the list of actions.
    pub fn instructions(&mut self) -> Vec<Instruction> {
        let (mut instructions, mut apply) = (Vec::new(), Vec::new());
        for (index, item) in self.list("actions").into_iter().enumerate() {
            let kind = item["type"].as_str().unwrap_or_default().to_owned();
            let number = |key: &str| number_or_text(&item[key], &[]);
            match kind.as_str() {
                "WRITE_ACTIONS" => {
                    let inner = item["actions"].as_array().cloned().unwrap_or_default();
                    let actions: Vec<_> = inner.iter().filter_map(|item| self.action(index, item)).collect();
                    instructions.push(json!({"write_actions": actions}));
                }
                "CLEAR_ACTIONS" => instructions.push(json!("clear_actions")),
                "GOTO_TABLE" => {
                    instructions.push(json!({"goto_table": number_or_text(&item["table_id"], TABLES)}));
                }
                "METER" => instructions.push(json!({"meter": number_or_text(&item["meter_id"], METERS)})),
                "WRITE_METADATA" => {
                    let mask = if item["metadata_mask"].is_null() {
                        json!(u64::MAX)
                    } else {
                        number("metadata_mask")
                    };
                    let metadata = json!({"metadata": number("metadata"), "mask": mask});
                    instructions.push(json!({"write_metadata": metadata}));
                }
                _ => apply.extend(self.action(index, &item)),
            }
        }
        if !apply.is_empty() {
            instructions.push(json!({"apply_actions": apply}));
        }
        self.spec(json!({"instructions": instructions})).map_or(vec![], |spec| spec.instructions)
    }

    fn list(&mut self, key: &'static str) -> Vec<Value> {
        match &self.body[key] {
            Value::Null => vec![],
            Value::Array(list) => list.clone(),
            other => {
                self.errors.add(key, other, "is no list", "give a list");
                vec![]
            }
        }
    }

    /// An action in the words of the other interface.
    fn action(&mut self, index: usize, item: &Value) -> Option<Value> {
        let number = |key: &str| number_or_text(&item[key], &[]);
        let one = |name: &str, value: Value| Some(json!({ name: value }));
        match item["type"].as_str().unwrap_or_default() {
            "OUTPUT" => {
                let length = match &item["max_len"] {
                    Value::Null => json!(LENGTH_MAX),
                    length => number_or_text(length, LENGTHS),
                };
                one("output", json!({"port": number("port"), "max_len": length}))
            }
            "COPY_TTL_OUT" => Some(json!("copy_ttl_out")),
            "COPY_TTL_IN" => Some(json!("copy_ttl_in")),
            "DEC_MPLS_TTL" => Some(json!("dec_mpls_ttl")),
            "POP_VLAN" => Some(json!("pop_vlan")),
            "DEC_NW_TTL" => Some(json!("dec_nw_ttl")),
            "POP_PBB" => Some(json!("pop_pbb")),
            "SET_MPLS_TTL" => one("set_mpls_ttl", number("mpls_ttl")),
            "SET_NW_TTL" => one("set_nw_ttl", number("nw_ttl")),
            "PUSH_VLAN" => one("push_vlan", number("ethertype")),
            "PUSH_MPLS" => one("push_mpls", number("ethertype")),
            "POP_MPLS" => one("pop_mpls", number("ethertype")),
            "PUSH_PBB" => one("push_pbb", number("ethertype")),
            "SET_QUEUE" => one("set_queue", number_or_text(&item["queue_id"], QUEUES)),
            "GROUP" => one("group", number_or_text(&item["group_id"], GROUPS)),
            "SET_FIELD" => {
                let field = item["field"].as_str().unwrap_or_default();
                one("set_field", json!({field: item["value"]}))
            }
            _ => {
                let remedy = "see the actions of Ryu's ofctl_rest for OpenFlow 1.3";
                self.errors.add(format!("actions[{index}].type"), &item["type"], "unknown action", remedy);
                None
            }
        }
    }

    /// A group.
    pub fn group_mod(&mut self, command: GroupModCommand) -> GroupMod {
        let kind = self.one_of("type", &GROUP_TYPES, GroupType::All);
        let group_id = self.reserved("group_id", GROUPS, 0);
        let mut buckets = Vec::new();
        for (index, bucket) in self.list("buckets").into_iter().enumerate() {
            let list = bucket["actions"].as_array().cloned().unwrap_or_default();
            let actions: Vec<_> = list.iter().filter_map(|item| self.action(index, item)).collect();
            let spec = self.spec(json!({"actions": actions}));
            let actions = match spec.map(|spec| spec.instructions).unwrap_or_default().pop() {
                Some(Instruction::ApplyActions(actions)) => actions,
                _ => vec![],
            };
            let mut parts = Input::new(bucket);
            buckets.push(Bucket {
                weight: parts.number("weight", 0),
                watch_port: PortNo(parts.port("watch_port", PortNo::ANY.0)),
                watch_group: parts.reserved("watch_group", GROUPS, ofp::group::ANY),
                actions,
            });
            self.errors.extend(parts.errors.list().to_vec());
        }
        GroupMod { command, kind, group_id, buckets }
    }

    /// A meter.
    pub fn meter_mod(&mut self, command: MeterModCommand) -> MeterMod {
        let named = match self.body["flags"].clone() {
            Value::Null => vec![],
            Value::Array(list) => list,
            one => vec![one],
        };
        let mut flags = MeterFlags(0);
        for name in named {
            match METER_FLAGS.iter().find(|(known, _)| name == **known) {
                Some((_, flag)) => flags.0 |= flag.0,
                None => self.errors.add("flags", name, "unknown flag", "give KBPS, PKTPS, BURST or STATS"),
            }
        }
        let meter_id = self.reserved("meter_id", METERS, 0);
        let mut bands = Vec::new();
        for (index, band) in self.list("bands").into_iter().enumerate() {
            let kind = band["type"].clone();
            let mut parts = Input::new(band);
            let (rate, burst_size) = (parts.number("rate", 0), parts.number("burst_size", 0));
            let prec_level = parts.number("prec_level", 0);
            match kind.as_str() {
                Some("DROP") => bands.push(MeterBand::Drop { rate, burst_size }),
                Some("DSCP_REMARK") => bands.push(MeterBand::DscpRemark { rate, burst_size, prec_level }),
                _ => {
                    let remedy = "give DROP or DSCP_REMARK";
                    self.errors.add(format!("bands[{index}].type"), kind, "unknown type of band", remedy);
                }
            }
            self.errors.extend(parts.errors.list().to_vec());
        }
        MeterMod { command, flags, meter_id, bands }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_read_and_shown_as_ryu_does() {
        let mut input = Input::new(json!({
            "dpid": 1, "priority": "7",
            "match": {"in_port": 1, "dl_type": 2048, "nw_proto": 17, "tp_dst": 53, "dl_vlan": "10", "nw_dst": "10.0.0.0/24"},
            "actions": [{"type": "SET_FIELD", "field": "eth_dst", "value": "02:00:00:00:00:01"}, {"type": "OUTPUT", "port": 2},
                        {"type": "GOTO_TABLE", "table_id": 9}, {"type": "METER", "meter_id": 3}],
        }));
        assert_eq!((input.dpid().as_str(), input.number("priority", 0u16)), ("1", 7));
        let (found, steps) = (input.matching(), input.instructions());
        input.finish("wrong").unwrap();
        let expected = json!({
            "in_port": 1, "dl_type": 2048, "nw_proto": 17, "tp_dst": 53, "dl_vlan": "10", "nw_dst": "10.0.0.0/255.255.255.0",
        });
        assert_eq!(matching(&found), expected);
        let mut shown = instructions(&steps);
        shown.sort_by_key(plain);
        let expected = ["GOTO_TABLE:9", "METER:3", "OUTPUT:2", "SET_FIELD: {eth_dst:02:00:00:00:00:01}"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn everything_wrong_is_told() {
        let mut input = Input::new(json!({
            "priority": 70000, "match": {"colour": 1}, "actions": [{"type": "FLY"}, {"type": "OUTPUT", "port": 0}],
        }));
        input.dpid();
        input.number("priority", 0u16);
        input.matching();
        input.instructions();
        let problem = input.finish("wrong").unwrap_err();
        assert_eq!(problem.errors.len(), 5, "{problem}");
    }

    #[test]
    fn groups_and_meters() {
        let mut input = Input::new(json!({
            "type": "SELECT", "group_id": 5, "buckets": [{"weight": 2, "actions": [{"type": "OUTPUT", "port": 3}]}],
            "flags": ["KBPS", "BURST"], "meter_id": 4, "bands": [{"type": "DROP", "rate": 1000, "burst_size": 10}],
        }));
        let group = input.group_mod(GroupModCommand::Add);
        assert_eq!(
            (group.kind, group.buckets[0].weight, group.buckets[0].actions.len()),
            (GroupType::Select, 2, 1)
        );
        let meter = input.meter_mod(MeterModCommand::Add);
        assert_eq!(meter_flags(meter.flags), ["KBPS", "BURST"]);
        assert_eq!(band(&meter.bands[0]), json!({"type": "DROP", "rate": 1000, "burst_size": 10}));
        input.finish("wrong").unwrap();
    }
}
