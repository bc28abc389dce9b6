//! Static flows and their JSON: table, priority, match and actions in the names of the OpenFlow specification.

use std::net::{Ipv4Addr, Ipv6Addr};

use ofp::{Action, Field, Instruction, MacAddr, Match, OxmField, OxmValue, PortNo, VID_PRESENT};
use serde_json::{Map, Value, json};
use telemetry::check::{Errors, Fields};

use crate::entry::{FlowBody, FlowKey};

/// The last table a flow can be in (`OFPTT_MAX`).
const TABLE_MAX: u8 = 0xfe;

/// A static flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowSpec {
    /// The table.
    pub table: u8,
    /// Higher wins.
    pub priority: u16,
    /// Which packets; normalized.
    pub matching: Match,
    /// What happens to them; none = drop.
    pub instructions: Vec<Instruction>,
}

impl FlowSpec {
    /// What tells it from the other flows of its switch.
    pub fn key(&self) -> FlowKey {
        FlowKey::new(self.table, self.priority, &self.matching)
    }

    /// The rest of it.
    pub fn body(&self, cookie: u64) -> FlowBody {
        FlowBody::new(cookie, &self.instructions)
    }

    /// Reads a flow from JSON; everything wrong with it goes to `errors`.
    pub fn from_json(value: Value, errors: &mut Errors) -> Option<FlowSpec> {
        let mut fields = Fields::new("", value, errors);
        let table = fields.optional::<u8>("table", "a table number, 0 to 254");
        let priority = fields.optional::<u16>("priority", "a number, 0 to 65535");
        let matching = fields.optional::<Value>("match", "an object of match fields");
        let actions = fields.optional::<Vec<Value>>("actions", "a list of actions");
        let instructions = fields.optional::<Vec<Value>>("instructions", "a list of instructions");
        fields.finish();
        errors.range("table", table.unwrap_or(0), 0..=TABLE_MAX);
        let matching = match matching {
            Some(Value::Object(fields)) => read_match(&fields, errors),
            Some(other) => {
                errors.add("match", other, "is no object", "give match fields and their values");
                Match::any()
            }
            None => Match::any(),
        };
        let mut instructions = match (actions, instructions) {
            (Some(_), Some(_)) => {
                let remedy = "give `actions`, which is short for one `apply_actions`, or `instructions`";
                errors.add("instructions", "", "`actions` is given too", remedy);
                return None;
            }
            (Some(actions), None) if actions.is_empty() => vec![],
            (Some(actions), None) => {
                vec![Instruction::ApplyActions(read_actions("actions", actions, errors))]
            }
            (None, instructions) => read_instructions(instructions.unwrap_or_default(), errors),
        };
        // To apply nothing is to do nothing, and is written so.
        instructions.retain(|instruction| *instruction != Instruction::ApplyActions(vec![]));
        let spec =
            FlowSpec { table: table.unwrap_or(0), priority: priority.unwrap_or(0), matching, instructions };
        Some(spec).filter(|_| errors.is_empty())
    }

    /// The flow as JSON; the same flow is always the same text.
    pub fn to_json(&self) -> Value {
        let matching: Map<String, Value> =
            self.matching.fields.iter().map(|field| (field.name().to_owned(), field_value(field))).collect();
        let mut value = json!({ "table": self.table, "priority": self.priority, "match": matching });
        match &self.instructions[..] {
            [] => value["actions"] = json!([]),
            [Instruction::ApplyActions(actions)] => value["actions"] = actions_value(actions),
            instructions => value["instructions"] = instructions.iter().map(instruction_value).collect(),
        }
        value
    }
}

fn read_match(given: &Map<String, Value>, errors: &mut Errors) -> Match {
    let mut matching = Match::any();
    for (name, value) in given {
        let path = format!("match.{name}");
        let Some(field) = Field::from_name(name) else {
            let known: Vec<_> = Field::ALL.iter().map(|field| field.name()).collect();
            errors.add(path, value, "unknown match field", format!("the fields are {}", known.join(", ")));
            continue;
        };
        if let Some(oxm) = read_field(&path, field, value, true, errors) {
            matching.fields.push(oxm);
        }
    }
    let matching = matching.normalized();
    if errors.is_empty()
        && let Err(error) = matching.validate()
    {
        let value = given.get(error.field).cloned().unwrap_or_default();
        let (_, code) = error.code.names();
        let detail = format!("{} ({})", error.problem.replace(" before it", ""), code.unwrap_or_default());
        errors.add(format!("match.{}", error.field), value, detail, "add the field it needs");
    }
    matching
}

/// Reads the value of a match field or of a set-field action.
fn read_field(path: &str, field: Field, value: &Value, masks: bool, errors: &mut Errors) -> Option<OxmField> {
    let mut refuse = |detail: String| {
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        errors.add(path, shown, detail, format!("give {}", expected(field)));
        None
    };
    let (number, mask) = match value {
        Value::Number(number) => match number.as_u64() {
            Some(number) => (u128::from(number), None),
            None => return refuse("is not a whole number".into()),
        },
        Value::String(text) => match parse_masked(field, text) {
            Some(parsed) => parsed,
            None => return refuse("cannot be read".into()),
        },
        _ => return refuse("is neither a number nor a text".into()),
    };
    if mask.is_some() && !(masks && field.maskable()) {
        return refuse("has a mask, and none is allowed here".into());
    }
    if number >> (field.bits() - 1) > 1 {
        return refuse(format!("is wider than {} bits", field.bits()));
    }
    if field == Field::VlanVid && mask.is_none() && number != 0 && number & u128::from(VID_PRESENT) == 0 {
        return refuse(format!("lacks the bit that says that there is a tag: write {}", number + 0x1000));
    }
    match field.with(number, mask) {
        Some(oxm) => Some(oxm),
        None => refuse("has bits outside of its mask".into()),
    }
}

fn expected(field: Field) -> &'static str {
    match (field, field.bits()) {
        (_, 48) => "an Ethernet address, such as 02:00:00:00:00:01, and where allowed a mask behind `/`",
        (_, 128) => "an IPv6 address, and where allowed a prefix length or mask behind `/`",
        (Field::Ipv4Src | Field::Ipv4Dst | Field::ArpSpa | Field::ArpTpa, _) => {
            "an IPv4 address, and where allowed a prefix length or mask behind `/`"
        }
        (Field::VlanVid, _) => "4096 + the VLAN id, 0 for no tag, or \"0x1000/0x1000\" for any tag",
        _ => "a number, and where allowed a text of number, `/` and mask",
    }
}

fn parse_masked(field: Field, text: &str) -> Option<(u128, Option<u128>)> {
    let (value, mask) = match text.split_once('/') {
        Some((value, mask)) => (value, Some(mask)),
        None => (text, None),
    };
    let value = parse_one(field, value)?;
    let Some(mask) = mask else { return Some((value, None)) };
    let bits = field.bits();
    let address =
        matches!(field, Field::Ipv4Src | Field::Ipv4Dst | Field::ArpSpa | Field::ArpTpa) || bits == 128;
    let prefix = mask.parse::<u32>().ok().filter(|&length| address && length <= bits);
    let Some(length) = prefix else { return Some((value, Some(parse_one(field, mask)?))) };
    let full = u128::MAX >> (128 - bits);
    let mask = full & !full.checked_shr(length).unwrap_or(0);
    // The host part of 10.0.0.5/8 says nothing.
    Some((value & mask, Some(mask)))
}

fn parse_one(field: Field, text: &str) -> Option<u128> {
    match (field, field.bits()) {
        (_, 48) => text.parse::<MacAddr>().ok().map(OxmValue::to_number),
        (_, 128) => text.parse::<Ipv6Addr>().ok().map(OxmValue::to_number),
        (Field::Ipv4Src | Field::Ipv4Dst | Field::ArpSpa | Field::ArpTpa, _) => {
            text.parse::<Ipv4Addr>().ok().map(OxmValue::to_number)
        }
        (Field::InPort, _) if PortNo::from_reserved_name(text).is_some() => {
            PortNo::from_reserved_name(text).map(OxmValue::to_number)
        }
        _ => parse_number(text),
    }
}

fn parse_number(text: &str) -> Option<u128> {
    let unsigned = text.bytes().all(|b| b.is_ascii_alphanumeric());
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse::<u64>(),
    };
    number.ok().filter(|_| unsigned).map(u128::from)
}

/// A value without its mask: an address as text, anything else as a number.
pub fn show_value(field: Field, value: u128) -> Value {
    let ipv4 = matches!(field, Field::Ipv4Src | Field::Ipv4Dst | Field::ArpSpa | Field::ArpTpa);
    if ipv4 || matches!(field.bits(), 48 | 128) { json!(show_one(field, value)) } else { json!(value as u64) }
}

/// The value of a field as [`read_field`] reads it.
fn field_value(oxm: &OxmField) -> Value {
    let (Some(field), Some((value, mask))) = (oxm.field(), oxm.numbers()) else { return Value::Null };
    let address = field.bits() == 48
        || field.bits() == 128
        || matches!(field, Field::Ipv4Src | Field::Ipv4Dst | Field::ArpSpa | Field::ArpTpa);
    if !address && mask.is_none() {
        return match (field, PortNo(value as u32).reserved_name()) {
            (Field::InPort, Some(name)) => json!(name),
            _ => json!(value as u64),
        };
    }
    let Some(mask) = mask else { return json!(show_one(field, value)) };
    if !address {
        return json!(format!("{value:#x}/{mask:#x}"));
    }
    let full = u128::MAX >> (128 - field.bits());
    let length = mask.count_ones();
    let prefix = full & !full.checked_shr(length).unwrap_or(0);
    match field.bits() {
        32 | 128 if mask == prefix => json!(format!("{}/{length}", show_one(field, value))),
        _ => json!(format!("{}/{}", show_one(field, value), show_one(field, mask))),
    }
}

fn show_one(field: Field, value: u128) -> String {
    match field.bits() {
        48 => MacAddr::from_number(value).to_string(),
        128 => Ipv6Addr::from_number(value).to_string(),
        _ => Ipv4Addr::from_number(value).to_string(),
    }
}

const PLAIN_ACTIONS: [(&str, Action); 6] = [
    ("copy_ttl_out", Action::CopyTtlOut),
    ("copy_ttl_in", Action::CopyTtlIn),
    ("dec_mpls_ttl", Action::DecMplsTtl),
    ("pop_vlan", Action::PopVlan),
    ("dec_nw_ttl", Action::DecNwTtl),
    ("pop_pbb", Action::PopPbb),
];

const ACTIONS_REMEDY: &str = "use {\"output\": PORT}, {\"group\": N}, {\"set_queue\": N}, {\"push_vlan\": 33024}, \
     {\"set_field\": {FIELD: VALUE}}, {\"set_nw_ttl\": N}, {\"set_mpls_ttl\": N}, {\"push_mpls\": ETHERTYPE}, \
     {\"pop_mpls\": ETHERTYPE}, {\"push_pbb\": ETHERTYPE}, \"pop_vlan\", \"dec_nw_ttl\", \"dec_mpls_ttl\", \
     \"copy_ttl_out\", \"copy_ttl_in\" or \"pop_pbb\"";

fn read_actions(path: &str, actions: Vec<Value>, errors: &mut Errors) -> Vec<Action> {
    let read = |(index, action)| read_action(&format!("{path}[{index}]"), &action, errors);
    actions.into_iter().enumerate().filter_map(read).collect()
}

fn read_action(path: &str, value: &Value, errors: &mut Errors) -> Option<Action> {
    if let Some(name) = value.as_str()
        && let Some((_, action)) = PLAIN_ACTIONS.iter().find(|(n, _)| *n == name)
    {
        return Some(action.clone());
    }
    let single = value.as_object().filter(|object| object.len() == 1).and_then(|object| object.iter().next());
    let Some((name, argument)) = single else {
        errors.add(path, value, "unknown action", ACTIONS_REMEDY);
        return None;
    };
    let path = format!("{path}.{name}");
    let mut number = |max: u64| match argument.as_u64().filter(|&number| number <= max) {
        Some(number) => Some(number),
        None => {
            errors.add(&path, argument, "out of range or no number", format!("give a number, 0 to {max}"));
            None
        }
    };
    let (byte, ethertype, word) = (u64::from(u8::MAX), u64::from(u16::MAX), u64::from(u32::MAX));
    match name.as_str() {
        "output" => read_output(&path, argument, errors),
        "group" => number(word).map(|n| Action::Group(n as u32)),
        "set_queue" => number(word).map(|n| Action::SetQueue(n as u32)),
        "push_vlan" => number(ethertype).map(|n| Action::PushVlan(n as u16)),
        "push_mpls" => number(ethertype).map(|n| Action::PushMpls(n as u16)),
        "pop_mpls" => number(ethertype).map(|n| Action::PopMpls(n as u16)),
        "push_pbb" => number(ethertype).map(|n| Action::PushPbb(n as u16)),
        "set_nw_ttl" => number(byte).map(|n| Action::SetNwTtl(n as u8)),
        "set_mpls_ttl" => number(byte).map(|n| Action::SetMplsTtl(n as u8)),
        "set_field" => read_set_field(&path, argument, errors),
        _ => {
            errors.add(path, argument, "unknown action", ACTIONS_REMEDY);
            None
        }
    }
}

fn read_output(path: &str, argument: &Value, errors: &mut Errors) -> Option<Action> {
    let (port, max_len) = match argument {
        Value::Object(object) => {
            let mut fields = Fields::new(path, Value::Object(object.clone()), errors);
            let port = fields.required::<Value>("port", "a port number or the name of a reserved port");
            let max_len = fields.optional::<u16>("max_len", "a number of bytes, 65535 for all");
            fields.finish();
            (port?, max_len)
        }
        other => (other.clone(), None),
    };
    let number = match &port {
        Value::Number(number) => number.as_u64().and_then(|n| u32::try_from(n).ok()).map(PortNo),
        Value::String(name) => PortNo::from_reserved_name(name),
        _ => None,
    };
    let Some(number) = number.filter(|&port| port != PortNo::ANY && port.0 != 0) else {
        let remedy = "give a port number from 1, or IN_PORT, NORMAL, FLOOD, ALL, CONTROLLER or LOCAL";
        errors.add(path, port, "is no port", remedy);
        return None;
    };
    let controller = number == PortNo::CONTROLLER;
    Some(Action::Output { port: number, max_len: max_len.unwrap_or(if controller { 0xffff } else { 0 }) })
}

fn read_set_field(path: &str, argument: &Value, errors: &mut Errors) -> Option<Action> {
    let single = argument.as_object().filter(|object| object.len() == 1).and_then(|o| o.iter().next());
    let Some((name, value)) = single else {
        errors.add(path, argument, "is not one field", "give {\"eth_dst\": \"02:00:00:00:00:01\"}");
        return None;
    };
    let path = format!("{path}.{name}");
    let Some(field) = Field::from_name(name).filter(|field| field.settable()) else {
        errors.add(path, value, "is no field that can be set", "see set-field in the OpenFlow specification");
        return None;
    };
    read_field(&path, field, value, false, errors).map(Action::SetField)
}

fn read_instructions(given: Vec<Value>, errors: &mut Errors) -> Vec<Instruction> {
    let mut instructions: Vec<Instruction> = Vec::new();
    for (index, value) in given.into_iter().enumerate() {
        let path = format!("instructions[{index}]");
        let Some(instruction) = read_instruction(&path, &value, errors) else { continue };
        if instructions.iter().any(|i| i.number() == instruction.number()) {
            errors.add(path, value, "is of a kind given before", "give one instruction of each kind");
        }
        instructions.push(instruction);
    }
    // The order in which a switch carries them out, whatever their order in the list (5.9).
    instructions.sort_by_key(|instruction| match instruction {
        Instruction::Meter(_) => 0,
        Instruction::ApplyActions(_) => 1,
        Instruction::ClearActions => 2,
        Instruction::WriteActions(_) => 3,
        Instruction::WriteMetadata { .. } => 4,
        Instruction::Experimenter { .. } => 5,
        Instruction::GotoTable(_) => 6,
    });
    instructions
}

fn read_instruction(path: &str, value: &Value, errors: &mut Errors) -> Option<Instruction> {
    let remedy = "use {\"apply_actions\": [..]}, {\"write_actions\": [..]}, \"clear_actions\", {\"goto_table\": N}, \
         {\"meter\": N} or {\"write_metadata\": {\"metadata\": N, \"mask\": N}}";
    if value.as_str() == Some("clear_actions") {
        return Some(Instruction::ClearActions);
    }
    let single = value.as_object().filter(|object| object.len() == 1).and_then(|object| object.iter().next());
    let Some((name, argument)) = single else {
        errors.add(path, value, "unknown instruction", remedy);
        return None;
    };
    let path = format!("{path}.{name}");
    match (name.as_str(), argument) {
        ("apply_actions", Value::Array(actions)) => {
            Some(Instruction::ApplyActions(read_actions(&path, actions.clone(), errors)))
        }
        ("write_actions", Value::Array(actions)) => {
            Some(Instruction::WriteActions(read_actions(&path, actions.clone(), errors)))
        }
        ("goto_table", Value::Number(n)) if n.as_u64().is_some_and(|n| n <= u64::from(TABLE_MAX)) => {
            n.as_u64().map(|n| Instruction::GotoTable(n as u8))
        }
        ("meter", Value::Number(n)) if n.as_u64().is_some_and(|n| n <= u64::from(u32::MAX)) => {
            n.as_u64().map(|n| Instruction::Meter(n as u32))
        }
        ("write_metadata", Value::Object(_)) => {
            let mut fields = Fields::new(&path, argument.clone(), errors);
            let metadata = fields.required::<u64>("metadata", "a number of 64 bits");
            let mask = fields.optional::<u64>("mask", "a number of 64 bits");
            fields.finish();
            Some(Instruction::WriteMetadata { metadata: metadata?, mask: mask.unwrap_or(u64::MAX) })
        }
        _ => {
            errors.add(path, argument, "unknown instruction or bad argument", remedy);
            None
        }
    }
}

fn actions_value(actions: &[Action]) -> Value {
    actions.iter().map(action_value).collect()
}

fn action_value(action: &Action) -> Value {
    match action {
        Action::Output { port, max_len } => {
            let number = port.reserved_name().map_or(json!(port.0), |name| json!(name));
            match (*port, *max_len) {
                (PortNo::CONTROLLER, max_len) if max_len != 0xffff => {
                    json!({ "output": { "port": number, "max_len": max_len } })
                }
                _ => json!({ "output": number }),
            }
        }
        Action::SetMplsTtl(ttl) => json!({ "set_mpls_ttl": ttl }),
        Action::SetNwTtl(ttl) => json!({ "set_nw_ttl": ttl }),
        Action::PushVlan(ethertype) => json!({ "push_vlan": ethertype }),
        Action::PushMpls(ethertype) => json!({ "push_mpls": ethertype }),
        Action::PopMpls(ethertype) => json!({ "pop_mpls": ethertype }),
        Action::PushPbb(ethertype) => json!({ "push_pbb": ethertype }),
        Action::SetQueue(queue) => json!({ "set_queue": queue }),
        Action::Group(group) => json!({ "group": group }),
        Action::SetField(field) => json!({ "set_field": { field.name(): field_value(field) } }),
        Action::Experimenter { experimenter, .. } => json!({ "experimenter": experimenter }),
        plain => {
            let name = PLAIN_ACTIONS.iter().find(|(_, action)| action == plain).map(|(name, _)| *name);
            json!(name)
        }
    }
}

fn instruction_value(instruction: &Instruction) -> Value {
    match instruction {
        Instruction::GotoTable(table) => json!({ "goto_table": table }),
        Instruction::WriteMetadata { metadata, mask } => {
            json!({ "write_metadata": { "metadata": metadata, "mask": mask } })
        }
        Instruction::WriteActions(actions) => json!({ "write_actions": actions_value(actions) }),
        Instruction::ApplyActions(actions) => json!({ "apply_actions": actions_value(actions) }),
        Instruction::ClearActions => json!("clear_actions"),
        Instruction::Meter(meter) => json!({ "meter": meter }),
        Instruction::Experimenter { experimenter, .. } => json!({ "experimenter": experimenter }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_apply_nothing_is_to_do_nothing() {
        let read = |value| FlowSpec::from_json(value, &mut Errors::new()).expect("a good flow");
        let flow = read(json!({"instructions": [{"apply_actions": []}]}));
        assert_eq!(read(flow.to_json()), flow);
    }

    fn read(value: Value) -> Result<FlowSpec, Vec<String>> {
        let mut errors = Errors::new();
        let flow = FlowSpec::from_json(value, &mut errors);
        flow.ok_or(errors.list().iter().map(|e| format!("{}: {}", e.field, e.detail)).collect())
    }

    #[test]
    fn flows_are_written_as_they_are_read() {
        for flow in [
            json!({"table": 0, "priority": 100, "match": {"eth_type": 2048, "in_port": 1, "ipv4_dst": "10.0.0.0/24"},
                   "actions": [{"output": 2}]}),
            json!({"table": 3, "priority": 0, "match": {}, "actions": []}),
            json!({"table": 0, "priority": 1, "match": {"vlan_vid": 4106, "vlan_pcp": 3},
                   "actions": ["pop_vlan", {"set_field": {"eth_dst": "02:00:00:00:00:01"}}, {"output": "NORMAL"}]}),
            json!({"table": 0, "priority": 1, "match": {"vlan_vid": "0x1000/0x1000", "metadata": "0x10/0xf0"},
                   "actions": [{"output": {"port": "CONTROLLER", "max_len": 128}}]}),
            json!({"table": 0, "priority": 1,
                   "match": {"eth_dst": "01:00:00:00:00:00/01:00:00:00:00:00", "eth_type": 34525,
                             "ip_proto": 6, "ipv6_src": "2001:db8::/32", "tcp_dst": 443},
                   "instructions": [{"meter": 4}, {"apply_actions": [{"push_vlan": 33024}]}, "clear_actions",
                                    {"write_actions": [{"group": 7}, {"set_queue": 2}]},
                                    {"write_metadata": {"metadata": 1, "mask": 255}}, {"goto_table": 4}]}),
            json!({"table": 0, "priority": 1, "match": {"eth_type": 2054, "arp_spa": "10.0.0.0/255.0.0.255"},
                   "actions": [{"output": "FLOOD"}, {"output": "IN_PORT"}, "dec_nw_ttl", {"set_nw_ttl": 3}]}),
        ] {
            let spec = read(flow.clone()).unwrap();
            assert_eq!(spec.to_json(), flow);
        }
    }

    #[test]
    fn short_forms() {
        let spec = read(json!({"match": {"eth_type": "0x800", "ipv4_src": "10.1.2.3/8"}})).unwrap();
        let expected = json!({"table": 0, "priority": 0, "match": {"eth_type": 2048, "ipv4_src": "10.0.0.0/8"},
                              "actions": []});
        assert_eq!(spec.to_json(), expected);
        assert_eq!(read(json!({})).unwrap().matching, Match::any());
    }

    #[test]
    fn everything_wrong_is_told() {
        let wrong = json!({
            "table": 255, "prioriti": 5,
            "match": {"eth_dst": "nonsense", "vlan_vid": 10, "tcp_dst": 70_000, "color": 1, "eth_type": "0x800/0xff"},
            "actions": [{"output": 0}, "fly", {"set_field": {"in_port": 1}}, {"push_vlan": 99_999}, {"a": 1, "b": 2}],
        });
        let mut fields: Vec<_> =
            read(wrong).unwrap_err().iter().map(|e| e.split(": ").next().unwrap().to_owned()).collect();
        fields.sort();
        let expected = [
            "actions[0].output",
            "actions[1]",
            "actions[2].set_field.in_port",
            "actions[3].push_vlan",
            "actions[4]",
            "match.color",
            "match.eth_dst",
            "match.eth_type",
            "match.tcp_dst",
            "match.vlan_vid",
            "prioriti",
            "table",
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn rules_of_the_specification() {
        let errors = read(json!({"match": {"ipv4_dst": "10.0.0.1"}})).unwrap_err();
        assert_eq!(errors, ["match.ipv4_dst: needs eth_type 0x0800 (OFPBMC_BAD_PREREQ)"]);
        let errors = read(json!({"instructions": [{"goto_table": 1}, {"goto_table": 2}]})).unwrap_err();
        assert_eq!(errors, ["instructions[1]: is of a kind given before"]);
        let errors = read(json!({"actions": [], "instructions": []})).unwrap_err();
        assert_eq!(errors, ["instructions: `actions` is given too"]);
        for bad in [json!(7), json!([]), json!(null), json!({"match": 5}), json!({"actions": {}})] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }
}
