//! Controllers that break the protocol harm nobody but their own session.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ofp::{Body, ErrorCode, Message};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vswitch::bridge::BridgeConfig;
use vswitch::openflow::AgentConfig;

use crate::client::{Client, add};
use crate::data_path::{PATIENCE, Switch, frame, wait_for};

fn start() -> Switch {
    Switch::start(BridgeConfig::default(), AgentConfig::default())
}

fn connect(switch: &Switch) -> UnixStream {
    let stream = UnixStream::connect(switch.socket()).expect("the agent listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Reads to the end: the agent closes.
fn read_to_end(mut stream: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        // It closed with bytes of ours unread.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("the session was not closed: {error}"),
    }
}

const HELLO: [u8; 8] = [4, 0, 0, 8, 0, 0, 0, 1];

#[test]
fn streams_that_are_no_openflow_are_closed() {
    let switch = start();
    let mut good = Client::connect(&switch.socket());
    let streams: [&[u8]; 5] = [
        // Not a hello.
        &[4, 5, 0, 8, 0, 0, 0, 1],
        // Shorter than its header.
        &[4, 0, 0, 7, 0, 0, 0, 1],
        // OpenFlow 1.0 only.
        &[1, 0, 0, 8, 0, 0, 0, 1],
        // A hello whose element is longer than the message.
        &[4, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0xff, 0xff, 0, 0, 0, 0],
        b"GET / HTTP/1.1\r\nHost: switch\r\n\r\n",
    ];
    for bytes in streams {
        let mut stream = connect(&switch);
        stream.write_all(bytes).expect("connected");
        stream.shutdown(std::net::Shutdown::Write).expect("connected");
        read_to_end(stream);
        good.barrier();
    }
    // An old controller is told why.
    let mut stream = connect(&switch);
    stream.write_all(&[1, 0, 0, 8, 0, 0, 0, 1]).expect("connected");
    let answer = read_to_end(stream);
    let error = &answer[usize::from(u16::from_be_bytes([answer[2], answer[3]]))..];
    let Body::Error(error) = ofp::decode(error).expect("a message").body else { panic!("no error") };
    assert_eq!(error.error, ErrorCode::HELLO_INCOMPATIBLE);
}

#[test]
fn after_a_greeting_bad_messages_are_answered_and_the_session_goes_on() {
    let switch = start();
    let mut client = Client::connect(&switch.socket());
    let mut error = |bytes: &[u8]| {
        client.raw(bytes);
        match client.next() {
            Message { xid: 9, body: Body::Error(error) } => {
                assert_eq!(error.data, bytes[..bytes.len().min(64)]);
                error.error
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error(&[4, 99, 0, 8, 0, 0, 0, 9]), ErrorCode::BAD_TYPE);
    assert_eq!(error(&[5, 5, 0, 8, 0, 0, 0, 9]), ErrorCode::BAD_VERSION);
    assert_eq!(error(&[4, 14, 0, 16, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]), ErrorCode::BAD_LEN);
    let mut multipart = vec![4, 18, 0, 16, 0, 0, 0, 9];
    multipart.extend([0, 77, 0, 0, 0, 0, 0, 0]);
    assert_eq!(error(&multipart), ErrorCode::BAD_MULTIPART);
    client.barrier();
}

#[test]
fn half_a_message_and_then_silence_ends_the_session() {
    let config = AgentConfig { probe_interval: Duration::from_millis(1500), ..AgentConfig::default() };
    let switch = Switch::start(BridgeConfig::default(), config);
    let mut client = Client::connect(&switch.socket());
    // Greeted or not.
    let silent: Vec<_> = [&HELLO[..], &[]]
        .into_iter()
        .map(|greeting| {
            let mut stream = connect(&switch);
            stream.write_all(greeting).expect("connected");
            stream.write_all(&[4, 14, 0xff, 0xff, 0, 0]).expect("connected");
            std::thread::spawn(move || read_to_end(stream))
        })
        .collect();
    // All the while one that answers lives.
    wait_for("the silent ones are closed", || {
        client.barrier();
        silent.iter().all(std::thread::JoinHandle::is_finished)
    });
    silent.into_iter().for_each(|reader| drop(reader.join().expect("closed")));
    client.barrier();
}

#[test]
fn a_byte_at_a_time_keeps_no_session() {
    let config = AgentConfig { probe_interval: Duration::from_millis(300), ..AgentConfig::default() };
    let switch = Switch::start(BridgeConfig::default(), config);
    let mut client = Client::connect(&switch.socket());
    let mut slow = connect(&switch);
    slow.write_all(&HELLO).expect("connected");
    slow.write_all(&[4, 14, 0xff, 0xff]).expect("connected");
    // At this pace the message would take minutes; it is closed long before, and one that answers is not.
    wait_for("the slow one is closed", || {
        client.barrier();
        slow.write_all(&[0]).is_err()
    });
    client.barrier();
}

#[test]
fn a_multipart_request_without_end_is_closed() {
    let switch = start();
    let mut client = Client::connect(&switch.socket());
    let mut endless = connect(&switch);
    endless.write_all(&HELLO).expect("connected");
    // A part full of one table's features, with more to come.
    let mut part = vec![4, 18, 0xff, 0xd0, 0, 0, 0, 9, 0, 12, 0, 1, 0, 0, 0, 0];
    let table = [&64u16.to_be_bytes()[..], &[0; 62]].concat();
    part.extend(table.iter().cycle().take(0xffd0 - 16));
    let sent = (0..1000).take_while(|_| endless.write_all(&part).is_ok()).count();
    assert!(sent < 1000, "64 MiB were taken for one request");
    read_to_end(endless);
    client.barrier();
}

#[test]
fn random_messages_change_nothing_for_others() {
    let switch = start();
    let mut good = Client::connect(&switch.socket());
    good.send(Body::FlowMod(add(0xffff, &[ofp::OxmField::InPort(ofp::PortNo(1))], &[2])));
    good.barrier();
    let good = std::cell::RefCell::new(good);
    let mut runner = TestRunner::new(Config { cases: 150, ..Config::default() });
    let kind = prop_oneof![Just(14u8), Just(18), Just(13), Just(16), Just(24), 0..40u8];
    let message = (kind, proptest::collection::vec(any::<u8>(), 0..200));
    let messages = proptest::collection::vec(message, 1..20);
    runner
        .run(&messages, |messages| {
            let mut stream = connect(&switch);
            let mut bytes = HELLO.to_vec();
            for (kind, mut body) in messages {
                if kind == 14 && body.len() > 18 {
                    // Never a delete: the other controller's flow has to stay. Table and command.
                    (body[16], body[17]) = (0, body[17] % 3);
                }
                if kind == 24 {
                    // Nor a master.
                    continue;
                }
                let len = (body.len() + 8) as u16;
                bytes.extend([4, kind]);
                bytes.extend(len.to_be_bytes());
                bytes.extend([0, 0, 0, 5]);
                bytes.extend(body);
            }
            // It may be closed before all is written.
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            read_to_end(stream);
            good.borrow_mut().barrier();
            prop_assert_eq!(switch.frame(1, &frame(1, 2)).frames.len(), 1);
            good.borrow_mut().notices.clear();
            Ok(())
        })
        .expect("nobody else is harmed");
}
