//! Bytes written by hand from the structures of the specification (sections in the names), both ways.

use ofp::*;

/// Hexadecimal digits to bytes; blanks are for the reader.
fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
}

/// `hex` must decode to `body` with xid 0x01020304, and `body` encode to `hex`.
#[track_caller]
fn check(hex: &str, body: Body) {
    let bytes = bytes(hex);
    let message = Message { xid: 0x0102_0304, body };
    assert_eq!(decode(&bytes), Ok(message.clone()));
    assert_eq!(message.encode().unwrap(), bytes);
}

/// `hex` must be refused with `code`.
#[track_caller]
fn refused(hex: &str, code: ErrorCode) {
    assert_eq!(decode(&bytes(hex)).map_err(|error| error.code), Err(code));
}

#[test]
fn hello_7_5_1() {
    check("04 00 0008 01020304", Body::Hello(Hello { version: 4, bitmap: None }));
    check("04 00 0010 01020304  0001 0008 00000010", Body::Hello(Hello::default()));
    check("01 00 0008 01020304", Body::Hello(Hello { version: 1, bitmap: None }));
    // An unknown element is skipped, a missing bitmap leaves the version byte.
    let hello = decode(&bytes("06 00 0010 01020304  0007 0006 abcd 0000")).unwrap().body;
    assert_eq!(hello, Body::Hello(Hello { version: 6, bitmap: None }));
    refused("04 00 000c 01020304  0001 0003", ErrorCode::BAD_LEN);
}

#[test]
fn hello_negotiation_6_3_1() {
    let agrees = |version, bitmap| Hello { version, bitmap }.agrees();
    assert!(agrees(4, None) && agrees(6, None) && !agrees(1, None));
    assert!(agrees(6, Some(vec![0x70])) && !agrees(6, Some(vec![0x42])) && !agrees(6, Some(vec![])));
}

#[test]
fn error_7_4_4() {
    let error = |error| Body::Error(ErrorMessage { error, data: bytes("040e000801020304") });
    check("04 01 0014 01020304  0004 0009 040e000801020304", error(ErrorCode::MATCH_BAD_PREREQ));
    let experimenter = ErrorCode::BUNDLE_EXISTS;
    check("04 01 0018 01020304  ffff 08ff 4f4e4600 040e000801020304", error(experimenter));
    assert_eq!(ErrorCode::MATCH_BAD_PREREQ.to_string(), "OFPET_BAD_MATCH/OFPBMC_BAD_PREREQ");
}

#[test]
fn flow_mod_7_3_4_1() {
    let output = Action::Output { port: PortNo(2), max_len: 0 };
    let body = FlowMod {
        cookie: 0x1122_3344_5566_7788,
        table_id: 1,
        priority: 100,
        idle_timeout: 60,
        flags: FlowModFlags::SEND_FLOW_REM,
        matching: Match::any()
            .with(OxmField::InPort(PortNo(7)))
            .with(OxmField::EthDst(Masked::with_mask(
                MacAddr([1, 0, 0, 0, 0, 0]),
                MacAddr([1, 0, 0, 0, 0, 0]),
            )))
            .with(OxmField::VlanVid(Masked::exact(VID_PRESENT | 10))),
        instructions: vec![
            Instruction::ApplyActions(vec![Action::PopVlan, output]),
            Instruction::GotoTable(3),
        ],
        ..FlowMod::new(FlowModCommand::Add)
    };
    check(
        "04 0e 0080 01020304
         1122334455667788 0000000000000000 01 00 003c 0000 0064 ffffffff ffffffff ffffffff 0001 0000
         0001 0022  80000004 00000007  8000070c 010000000000 010000000000  80000c02 100a  000000000000
         0004 0020 00000000  0012 0008 00000000  0000 0010 00000002 0000 000000000000
         0001 0008 03 000000",
        Body::FlowMod(body),
    );
}

#[test]
fn packets_7_3_7_and_7_4_1() {
    let packet_in = PacketIn {
        buffer_id: NO_BUFFER,
        total_len: 60,
        reason: PacketInReason::Action,
        table_id: 2,
        cookie: 5,
        matching: Match::any().with(OxmField::InPort(PortNo(3))),
        data: vec![0xaa, 0xbb],
    };
    check(
        "04 0a 002c 01020304  ffffffff 003c 01 02 0000000000000005
         0001 000c 80000004 00000003 00000000  0000 aabb",
        Body::PacketIn(packet_in),
    );
    let packet_out = PacketOut {
        buffer_id: NO_BUFFER,
        in_port: PortNo::CONTROLLER,
        actions: vec![Action::output(PortNo::TABLE)],
        data: vec![1, 2, 3],
    };
    check(
        "04 0d 002b 01020304  ffffffff fffffffd 0010 000000000000
         0000 0010 fffffff9 ffff 000000000000  010203",
        Body::PacketOut(packet_out),
    );
}

#[test]
fn features_and_roles_7_3_1_and_7_3_9() {
    let features = SwitchFeatures {
        datapath_id: 0x0000_0200_0000_0001,
        n_buffers: 256,
        n_tables: 254,
        auxiliary_id: 0,
        capabilities: Capabilities::FLOW_STATS | Capabilities::PORT_STATS,
    };
    check(
        "04 06 0020 01020304  0000020000000001 00000100 fe 00 0000 00000005 00000000",
        Body::FeaturesReply(features),
    );
    let role = RoleMessage { role: Role::Master, generation_id: 9 };
    check("04 18 0018 01020304  00000002 00000000 0000000000000009", Body::RoleRequest(role));
}

#[test]
fn groups_and_meters_7_3_4() {
    let bucket = Bucket {
        weight: 5,
        watch_port: PortNo::ANY,
        watch_group: group::ANY,
        actions: vec![Action::PushVlan(0x8100)],
    };
    let add = GroupMod {
        command: GroupModCommand::Add,
        kind: GroupType::Select,
        group_id: 7,
        buckets: vec![bucket],
    };
    check(
        "04 0f 0028 01020304  0000 01 00 00000007
         0018 0005 ffffffff ffffffff 00000000  0011 0008 8100 0000",
        Body::GroupMod(add),
    );
    let meter = MeterMod {
        command: MeterModCommand::Modify,
        flags: MeterFlags::KBPS | MeterFlags::BURST,
        meter_id: 1,
        bands: vec![MeterBand::DscpRemark { rate: 1000, burst_size: 10, prec_level: 1 }],
    };
    check(
        "04 1d 0020 01020304  0001 0005 00000001  0002 0010 000003e8 0000000a 01 000000",
        Body::MeterMod(meter),
    );
}

#[test]
fn multipart_7_3_5() {
    let request = FlowStatsRequest { cookie: 1, cookie_mask: 0xff, ..FlowStatsRequest::default() };
    check(
        "04 12 0038 01020304  0001 0000 00000000
         ff 000000 ffffffff ffffffff 00000000 0000000000000001 00000000000000ff  0001 0004 00000000",
        Body::MultipartRequest(MultipartRequest::Flow(request)),
    );
    let table = TableStats { table_id: 1, active_count: 2, lookup_count: 3, matched_count: 4 };
    check(
        "04 13 0028 01020304  0003 0001 00000000
         01 000000 00000002 0000000000000003 0000000000000004",
        Body::MultipartReplyMore(MultipartReply::Table(vec![table])),
    );
}

#[test]
fn bundles_of_ext_230() {
    let control = BundleControl {
        bundle_id: 2,
        kind: BundleControlType::CommitRequest,
        flags: BundleFlags::ATOMIC,
        properties: vec![],
    };
    check("04 04 0018 01020304  4f4e4600 000008fc  00000002 0004 0001", Body::BundleControl(control));
    let add = BundleAdd {
        bundle_id: 2,
        flags: BundleFlags::ATOMIC,
        message: Box::new(Message { xid: 0x0102_0304, body: Body::BarrierRequest }),
        properties: vec![],
    };
    check(
        "04 04 0020 01020304  4f4e4600 000008fd  00000002 0000 0001  04 14 0008 01020304",
        Body::BundleAdd(add),
    );
    // A bundle in a bundle, however deep, is refused before it is decoded.
    refused(
        "04 04 0030 01020304  4f4e4600 000008fd  00000002 0000 0001
         04 04 0018 01020304  4f4e4600 000008fc  00000002 0004 0001",
        ErrorCode::BUNDLE_MESSAGE_UNSUPPORTED,
    );
}

/// A flow-mod that adds `matching` (with its padding) and `instructions`, given as bytes.
fn flow_mod_bytes(matching: &str, instructions: &str) -> String {
    let len = 48 + bytes(matching).len() + bytes(instructions).len();
    format!(
        "04 0e {len:04x} 00000001  0000000000000000 0000000000000000 00 00 0000 0000 0001
         ffffffff ffffffff ffffffff 0000 0000 {matching} {instructions}"
    )
}

#[test]
fn refused_matches_7_2_3() {
    let matching = |fields: &str| {
        let len = 4 + bytes(fields).len();
        let padding = "00".repeat(len.next_multiple_of(8) - len);
        flow_mod_bytes(&format!("0001 {len:04x} {fields} {padding}"), "")
    };
    assert!(decode(&bytes(&matching("80000004 00000001"))).is_ok());
    refused(&flow_mod_bytes("0000 0058 00000000", ""), ErrorCode::MATCH_BAD_TYPE);
    refused(&flow_mod_bytes("0001 0003 00000000", ""), ErrorCode::MATCH_BAD_LEN);
    refused(&flow_mod_bytes("0001 0040 00000000", ""), ErrorCode::MATCH_BAD_LEN);
    // A field that claims more bytes than the match has; one with the wrong length; one cut in its header.
    refused(&matching("80000008 00000001"), ErrorCode::MATCH_BAD_LEN);
    refused(&matching("80000003 000001"), ErrorCode::MATCH_BAD_LEN);
    refused(&matching("8000"), ErrorCode::MATCH_BAD_LEN);
    // A mask where none is allowed, a value outside of its mask, a value too wide.
    refused(&matching("80000b04 0800 ffff"), ErrorCode::MATCH_BAD_MASK);
    refused(&matching("8000070c 010000000001 010000000000"), ErrorCode::MATCH_BAD_WILDCARDS);
    refused(&matching("80000c02 2000"), ErrorCode::MATCH_BAD_VALUE);
    refused(&matching("80000e01 08"), ErrorCode::MATCH_BAD_VALUE);
}

#[test]
fn refused_instructions_and_actions_7_2_4_and_7_2_5() {
    let instructions = |hex: &str| flow_mod_bytes("0001 0004 00000000", hex);
    let actions = |hex: &str| {
        let len = 8 + bytes(hex).len();
        instructions(&format!("0004 {len:04x} 00000000 {hex}"))
    };
    refused(&instructions("0001 0000 00 000000"), ErrorCode::INSTRUCTION_BAD_LEN);
    refused(&instructions("0001 0010 00 000000"), ErrorCode::INSTRUCTION_BAD_LEN);
    refused(&instructions("0009 0008 00 000000"), ErrorCode::UNKNOWN_INSTRUCTION);
    refused(&instructions("0002 0010 00000000 0000000000000001"), ErrorCode::INSTRUCTION_BAD_LEN);
    refused(&actions("0000 0000 00000001"), ErrorCode::ACTION_BAD_LEN);
    refused(&actions("0000 0008 00000001"), ErrorCode::ACTION_BAD_LEN);
    refused(&actions("0000 0018 00000001 ffff 000000000000"), ErrorCode::ACTION_BAD_LEN);
    refused(&actions("0001 0008 00000001"), ErrorCode::ACTION_BAD_TYPE);
    refused(&actions("0012 0010 00000000 0000000000000000"), ErrorCode::ACTION_BAD_LEN);
    // Set-field of in_port, with a mask, of the wrong length, of a value too wide.
    refused(&actions("0019 0010 80000004 00000001 00000000"), ErrorCode::ACTION_BAD_SET_TYPE);
    refused(&actions("0019 0010 80000d04 1001 1fff 00000000"), ErrorCode::ACTION_BAD_SET_ARGUMENT);
    refused(&actions("0019 0010 80000c04 00001001 00000000"), ErrorCode::ACTION_BAD_SET_LEN);
    refused(&actions("0019 0010 80000c02 3001 000000000000"), ErrorCode::ACTION_BAD_SET_ARGUMENT);
}

#[test]
fn refused_messages() {
    refused("05 02 0008 00000001", ErrorCode::BAD_VERSION);
    refused("04 1e 0008 00000001", ErrorCode::BAD_TYPE);
    refused("04 05 0009 00000001 00", ErrorCode::BAD_LEN);
    refused("04 05 0010 00000001", ErrorCode::BAD_LEN);
    refused("04 12 0010 00000001  00ff 0000 00000000", ErrorCode::BAD_MULTIPART);
    refused("04 18 0018 00000001  00000004 00000000 0000000000000000", ErrorCode::ROLE_BAD_ROLE);
    refused("04 0f 0010 00000001  0003 00 00 00000001", ErrorCode::GROUP_BAD_COMMAND);
    refused("04 0f 0010 00000001  0000 04 00 00000001", ErrorCode::GROUP_BAD_TYPE);
    refused("04 0f 0018 00000001  0000 00 00 00000001  0000 0000 00000000", ErrorCode::GROUP_BAD_BUCKET);
    refused("04 1d 0010 00000001  0003 0001 00000001", ErrorCode::METER_BAD_COMMAND);
    refused(
        "04 1d 0020 00000001  0000 0001 00000001  0003 0010 00000001 00000001 00000000",
        ErrorCode::METER_BAD_BAND,
    );
}

#[test]
fn the_answer_to_a_refused_message_has_its_xid_and_64_bytes_of_it() {
    let mut request = bytes("04 1e 0050 0a0b0c0d");
    request.resize(80, 7);
    let answer = decode(&request).unwrap_err().answer(&request);
    let data = request[..64].to_vec();
    let body = Body::Error(ErrorMessage { error: ErrorCode::BAD_TYPE, data });
    assert_eq!(answer, Message { xid: 0x0a0b_0c0d, body });
}

#[test]
fn prerequisites_7_2_3_6() {
    let code = |fields: &[OxmField]| Match { fields: fields.to_vec() }.validate().map_err(|e| e.code);
    let ip = OxmField::EthType(0x0800);
    let tcp = OxmField::TcpDst(Masked::exact(80));
    assert_eq!(code(&[ip.clone(), OxmField::IpProto(6), tcp.clone()]), Ok(()));
    assert_eq!(code(&[ip.clone(), tcp.clone(), OxmField::IpProto(6)]), Err(ErrorCode::MATCH_BAD_PREREQ));
    assert_eq!(code(&[OxmField::IpProto(6), tcp]), Err(ErrorCode::MATCH_BAD_PREREQ));
    assert_eq!(code(&[ip.clone(), ip]), Err(ErrorCode::MATCH_DUP_FIELD));
    let raw = RawOxm { class: 0x8000, field: 37, has_mask: false, payload: vec![0, 0, 1] };
    assert_eq!(code(&[OxmField::Raw(raw)]), Err(ErrorCode::MATCH_BAD_FIELD));
    let untagged = OxmField::VlanVid(Masked::exact(VID_NONE));
    assert_eq!(code(&[untagged, OxmField::VlanPcp(1)]), Err(ErrorCode::MATCH_BAD_PREREQ));
}

#[test]
fn normalized_matches_compare_equal() {
    let written = Match::any()
        .with(OxmField::VlanVid(Masked::with_mask(VID_PRESENT | 5, 0x1fff)))
        .with(OxmField::EthSrc(Masked::with_mask(MacAddr([0; 6]), MacAddr([0; 6]))))
        .with(OxmField::InPort(PortNo(1)));
    let same = Match::any()
        .with(OxmField::InPort(PortNo(1)))
        .with(OxmField::VlanVid(Masked::exact(VID_PRESENT | 5)));
    assert_eq!(written.normalized(), same);
    assert_eq!(
        written.to_string(),
        "vlan_vid=0x1005/0x1fff,eth_src=00:00:00:00:00:00/00:00:00:00:00:00,in_port=1"
    );
}

#[test]
fn addresses_and_ports_as_text() {
    assert_eq!("02:00:00:00:0a:FF".parse(), Ok(MacAddr([2, 0, 0, 0, 10, 255])));
    for bad in [
        "",
        "02:00:00:00:0a",
        "02:00:00:00:0a:ff:01",
        "2:0:0:0:a:ff",
        "02-00-00-00-0a-ff",
        "+2:00:00:00:00:00",
    ] {
        assert_eq!(bad.parse::<MacAddr>(), Err(ParseMacError), "{bad}");
    }
    assert_eq!((PortNo(7).to_string(), PortNo::FLOOD.to_string()), ("7".into(), "FLOOD".into()));
    assert_eq!(PortNo::from_reserved_name("controller"), Some(PortNo::CONTROLLER));
    assert_eq!(Text::<6>::new("größe").to_string(), "grö");
}
