//! Every message written and read again; cut and damaged messages.

mod common;

use std::collections::HashSet;

use ofp::*;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

/// What decoded must encode, and decode to the same again.
fn stable(bytes: &[u8]) {
    if let Ok(message) = decode(bytes) {
        let again = message.encode().expect("what was decoded can be encoded");
        assert_eq!(decode(&again), Ok(message));
    }
}

/// Stores the number of bytes in the header, as a sender of cut messages would.
fn with_length(bytes: &mut [u8]) {
    let len = u16::try_from(bytes.len()).unwrap();
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
}

/// A flow-mod that a switch takes as an addition: as [`decode`] and [`Match::validate`] see it.
fn addition(bytes: &[u8]) -> Option<FlowMod> {
    let Ok(Message { body: Body::FlowMod(flow_mod), .. }) = decode(bytes) else { return None };
    let plain = flow_mod.command == FlowModCommand::Add && flow_mod.buffer_id == NO_BUFFER;
    (plain && flow_mod.matching.validate().is_ok()).then_some(flow_mod)
}

/// The same as [`Addition`] sees it: everything but the instructions, and those on the wire.
fn peeked(bytes: &[u8]) -> Option<(FlowMod, &[u8])> {
    let peek = Addition::peek(bytes)?;
    let mut flow_mod = FlowMod::new(FlowModCommand::Add);
    let fields = &mut flow_mod.matching.fields;
    let valid = peek.fields(|field, value, mask| {
        let mask = field.maskable().then_some(mask);
        fields.push(field.with(value, mask).expect("what was read can be written"));
    });
    flow_mod.cookie = peek.cookie;
    flow_mod.table_id = peek.table_id;
    flow_mod.idle_timeout = peek.idle_timeout;
    flow_mod.hard_timeout = peek.hard_timeout;
    flow_mod.priority = peek.priority;
    flow_mod.flags = peek.flags;
    valid.then_some((flow_mod, peek.instructions))
}

/// Both see the same, or both nothing.
fn peeked_as_decoded(bytes: &[u8]) {
    let Some((peeked, instructions)) = peeked(bytes) else {
        assert_eq!(addition(bytes), None);
        return;
    };
    // Instructions are nobody's business but the decoder's.
    let mut without = bytes[..bytes.len() - instructions.len()].to_vec();
    with_length(&mut without);
    let decoded = addition(&without).expect("nothing is wrong before the instructions");
    let FlowMod { cookie_mask, out_port, out_group, .. } = decoded;
    assert_eq!(peeked.matching.normalized(), decoded.matching.normalized());
    let matching = decoded.matching.clone();
    assert_eq!(FlowMod { cookie_mask, out_port, out_group, matching, ..peeked }, decoded);
}

/// Matches of which many are valid.
fn likely_match() -> impl Strategy<Value = Match> {
    let before = vec![
        vec![],
        vec![OxmField::VlanVid(Masked::exact(VID_PRESENT | 7))],
        vec![OxmField::EthType(0x0806)],
        vec![OxmField::EthType(0x0800), OxmField::IpProto(6)],
        vec![OxmField::EthType(0x86dd), OxmField::IpProto(17)],
        vec![OxmField::EthType(0x86dd), OxmField::IpProto(58), OxmField::Icmpv6Type(135)],
    ];
    let more = prop::collection::vec(common::field(), 0..3);
    (prop::sample::select(before), more)
        .prop_map(|(before, more)| Match { fields: before.into_iter().chain(more).collect() })
}

proptest! {
    #[test]
    fn additions_are_what_decoding_makes_of_them(
        matching in likely_match(),
        flags in 0u16..40,
        damage in prop::collection::vec((8usize..120, any::<u8>()), 0..3),
    ) {
        let mut flow_mod = FlowMod::new(FlowModCommand::Add);
        flow_mod.matching = matching;
        flow_mod.instructions = vec![Instruction::GotoTable(3)];
        flow_mod.flags = FlowModFlags(flags);
        let mut bytes = Message { xid: 1, body: Body::FlowMod(flow_mod) }.encode().unwrap();
        peeked_as_decoded(&bytes);
        for (at, byte) in damage {
            let at = at.min(bytes.len() - 1);
            bytes[at] = byte;
            peeked_as_decoded(&bytes);
        }
    }

    #[test]
    fn other_messages_are_no_additions(message in common::message()) {
        let bytes = message.encode().unwrap();
        peeked_as_decoded(&bytes);
        for len in 0..bytes.len() {
            prop_assert!(Addition::peek(&bytes[..len]).is_none());
        }
    }

    #[test]
    fn what_is_encoded_decodes(message in common::message()) {
        let bytes = message.encode().unwrap();
        prop_assert_eq!(decode(&bytes), Ok(message));
    }

    #[test]
    fn cut_at_every_byte(message in common::message()) {
        let bytes = message.encode().unwrap();
        for len in 0..bytes.len() {
            prop_assert_eq!(decode(&bytes[..len]).map_err(|e| e.code), Err(ErrorCode::BAD_LEN));
            if len >= HEADER_LEN {
                let mut cut = bytes[..len].to_vec();
                with_length(&mut cut);
                stable(&cut);
            }
        }
    }

    #[test]
    fn damaged(message in common::message(), damage in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..8)) {
        let mut bytes = message.encode().unwrap();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        stable(&bytes);
        with_length(&mut bytes);
        stable(&bytes);
    }

    #[test]
    fn any_bytes(kind in 0u8..32, body in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = vec![VERSION, kind, 0, 0, 0, 0, 0, 1];
        bytes.extend(body);
        with_length(&mut bytes);
        stable(&bytes);
    }

    #[test]
    fn no_wider_than_written(matching in common::matching()) {
        // A switch that decodes a match sees as many fields as the controller wrote.
        let flow_mod = FlowMod { matching: matching.clone(), ..FlowMod::new(FlowModCommand::Add) };
        let bytes = Message { xid: 1, body: Body::FlowMod(flow_mod) }.encode().unwrap();
        let Ok(Message { body: Body::FlowMod(read), .. }) = decode(&bytes) else { panic!("a flow-mod") };
        prop_assert_eq!(read.matching, matching);
    }

    #[test]
    fn normalizing_twice_changes_nothing(matching in common::matching()) {
        let once = matching.normalized();
        prop_assert_eq!(once.normalized(), once);
    }

    #[test]
    fn framer_finds_messages_however_the_bytes_arrive(
        messages in prop::collection::vec(common::message(), 1..8),
        chunk in 1usize..200,
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(|m| m.encode().unwrap()).collect();
        let (mut framer, mut found) = (Framer::new(), Vec::new());
        for mut part in stream.chunks(chunk) {
            while !part.is_empty() {
                part = &part[framer.push(part)..];
                while let Some(bytes) = framer.pop().unwrap() {
                    found.push(decode(bytes).unwrap());
                }
            }
        }
        prop_assert_eq!(found, messages);
        prop_assert_eq!(framer.pending(), 0);
    }

    #[test]
    fn split_replies_join_again(reply in common::multipart_reply(), bytes_max in 4000usize..70_000) {
        let parts = split_reply(7, reply.clone(), bytes_max).unwrap();
        let mut reassembler = Reassembler::new(1000);
        let mut whole = None;
        for (index, part) in parts.iter().enumerate() {
            prop_assert!(part.encode().unwrap().len() <= bytes_max);
            let (more, body) = match &part.body {
                Body::MultipartReplyMore(body) => (true, body.clone()),
                Body::MultipartReply(body) => (false, body.clone()),
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(more, index + 1 < parts.len());
            whole = reassembler.push(7, more, body).unwrap();
        }
        prop_assert_eq!(whole, Some(reply));
    }
}

#[test]
fn the_strategies_cover_every_message_type() {
    let mut runner = TestRunner::deterministic();
    let seen: HashSet<MessageType> =
        (0..3000).map(|_| common::message().new_tree(&mut runner).unwrap().current().body.kind()).collect();
    let missing: Vec<_> = MessageType::ALL.iter().filter(|kind| !seen.contains(kind)).collect();
    assert!(missing.is_empty(), "never generated: {missing:?}");
}

fn flow(priority: u16) -> FlowStats {
    FlowStats {
        table_id: 0,
        duration_sec: 0,
        duration_nsec: 0,
        priority,
        idle_timeout: 0,
        hard_timeout: 0,
        flags: FlowModFlags::default(),
        cookie: 0,
        packet_count: 0,
        byte_count: 0,
        matching: Match::any(),
        instructions: vec![],
    }
}

#[test]
fn long_replies_are_cut_into_full_messages() {
    let flows: Vec<_> = (0..3000).map(flow).collect();
    let parts = split_reply(1, MultipartReply::Flow(flows), MESSAGE_LEN_MAX).unwrap();
    let lengths: Vec<_> = parts.iter().map(|part| part.encode().unwrap().len()).collect();
    // 56 bytes an entry: 1169 fit behind the 16 bytes of header.
    assert_eq!(lengths, [16 + 1169 * 56, 16 + 1169 * 56, 16 + 662 * 56]);
}

#[test]
fn endless_parts_are_refused_at_the_limit_and_forgotten() {
    let mut reassembler = Reassembler::new(10);
    for xid in 0..5 {
        assert_eq!(reassembler.push(xid, true, MultipartReply::Flow(vec![flow(1), flow(2)])), Ok(None));
    }
    let too_many = Err(ReassemblyError::TooMany { elements_max: 10 });
    assert_eq!(reassembler.push(9, true, MultipartReply::Flow(vec![])), too_many);
    assert_eq!(reassembler.push(0, true, MultipartReply::Flow(vec![flow(3)])), too_many);
    // Request 0 was forgotten, so there is room again; its later parts begin a reply of their own.
    assert_eq!(reassembler.push(9, true, MultipartReply::Flow(vec![flow(1)])), Ok(None));
    reassembler.forget(1);
    let mixed = ReassemblyError::Mixed { first: MultipartType::Flow, then: MultipartType::Table };
    assert_eq!(reassembler.push(9, false, MultipartReply::Table(vec![])), Err(mixed));
}

#[test]
fn framer_refuses_a_header_shorter_than_itself_and_holds_one_largest_message() {
    let mut framer = Framer::new();
    assert_eq!(framer.push(&[4, 0, 0, 7, 0, 0, 0, 0]), 8);
    assert_eq!(framer.pop(), Err(FrameError { length: 7 }));
    assert_eq!(framer.pop(), Err(FrameError { length: 7 }));

    let mut framer = Framer::new();
    let mut largest = vec![0; MESSAGE_LEN_MAX];
    largest[..4].copy_from_slice(&[4, 2, 0xff, 0xff]);
    assert_eq!(framer.push(&largest[..MESSAGE_LEN_MAX - 1]), MESSAGE_LEN_MAX - 1);
    assert_eq!(framer.pop(), Ok(None));
    framer.push(&largest[MESSAGE_LEN_MAX - 1..]);
    assert_eq!(framer.pop().unwrap().map(<[u8]>::len), Some(MESSAGE_LEN_MAX));
    assert_eq!(framer.push(&vec![0; 3 * MESSAGE_LEN_MAX]), Framer::CAPACITY);
}

#[test]
fn messages_that_cannot_be_written() {
    let refused = |body| Message { xid: 0, body }.encode().unwrap_err();
    assert_eq!(refused(Body::EchoRequest(vec![0; 65_528])), EncodeError::TooLong { bytes: 65_536 });
    assert!(Message { xid: 0, body: Body::EchoRequest(vec![0; 65_527]) }.encode().is_ok());
    let set = |field| {
        let actions = vec![Action::SetField(field)];
        Body::PacketOut(PacketOut {
            buffer_id: NO_BUFFER,
            in_port: PortNo::CONTROLLER,
            actions,
            data: vec![],
        })
    };
    let bad = |field| EncodeError::BadField { field };
    assert_eq!(refused(set(OxmField::VlanVid(Masked::exact(0x2000)))), bad("vlan_vid"));
    assert_eq!(refused(set(OxmField::VlanVid(Masked::with_mask(1, 1)))), bad("vlan_vid"));
    assert_eq!(
        refused(set(OxmField::EthDst(Masked::with_mask(MacAddr::BROADCAST, MacAddr([0; 6]))))),
        bad("eth_dst")
    );
}
