//! The switch daemon as an operator runs it, and ports that misbehave.

use std::path::PathBuf;
use std::time::Instant;

use tests::bad_messages::{Outcome, cases};
use tests::daemon::Daemon;
use tests::frontend::{F_PROTOCOL, F_VERSION_1, Frontend, PATIENCE, Protocol};
use tests::guest_ram::GuestRam;
use tests::net_frontend::{NetFrontend, NetOptions};
use tests::switch::{BROADCAST, expect_frame, frame, mac};
use tests::{binary, holds_within, log_lines};
use xtask::lab::Site;

/// A switch with directories of its own.
struct Bed {
    daemon: Daemon,
    site: Site,
    /// Last, so that it goes last.
    _dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("sluice-").tempdir().unwrap();
        let site = binary::site(dir.path());
        Self { daemon: Daemon::switch(&site), site, _dir: dir }
    }

    fn port(&self, name: &str, options: &[&str]) -> PathBuf {
        self.site.sluice(&[&["port", "add", name, "--vhost-user"], options].concat()).unwrap();
        self.site.socket(name)
    }

    fn guest(&self, name: &str) -> NetFrontend {
        NetFrontend::connect(self.port(name, &[]), NetOptions::default()).unwrap()
    }
}

/// A frame from each to the other.
fn talk(one: &mut NetFrontend, other: &mut NetFrontend, text: &str) {
    let there = frame(mac(2), mac(1), &[], text.as_bytes());
    one.send(&there).unwrap();
    assert_eq!(expect_frame(other), there);
    let back = frame(mac(1), mac(2), &[], text.as_bytes());
    other.send(&back).unwrap();
    assert_eq!(expect_frame(one), back);
}

fn introduce(one: &mut NetFrontend, other: &mut NetFrontend) {
    one.send(&frame(BROADCAST, mac(1), &[], b"one")).unwrap();
    expect_frame(other);
    other.send(&frame(mac(1), mac(2), &[], b"other")).unwrap();
    expect_frame(one);
}

#[test]
fn bad_messages_do_nothing_to_others() {
    let mut bed = Bed::new();
    let (mut one, mut other) = (bed.guest("one"), bed.guest("other"));
    introduce(&mut one, &mut other);
    let victim = bed.port("victim", &[]);
    let begin = Instant::now();
    let ram = GuestRam::new(0, 1 << 20).unwrap();
    for case in cases(&ram) {
        for protocol in [Protocol::all(), Protocol::all() - Protocol::REPLY_ACK] {
            let mut frontend = Frontend::connect(&victim).unwrap();
            frontend.negotiate(F_PROTOCOL | F_VERSION_1, protocol).unwrap();
            let outcome = case.inflict(&frontend, &ram).unwrap();
            let expected = [Some(Outcome::Closed), Some(Outcome::Refused)];
            assert!(expected.contains(&outcome), "{}: neither closed nor refused", case.name);
        }
        talk(&mut one, &mut other, case.name);
    }
    let mut third = NetFrontend::connect(&victim, NetOptions::default()).unwrap();
    third.send(&frame(mac(1), mac(3), &[], b"well again")).unwrap();
    expect_frame(&mut one);
    bed.daemon.assert_alive();
    log_lines::assert_bounded(&bed.daemon.log(), begin);
}

#[test]
fn a_truncated_guest_memory_ends_only_its_own_session() {
    let mut bed = Bed::new();
    let (mut one, mut other) = (bed.guest("one"), bed.guest("other"));
    introduce(&mut one, &mut other);
    let socket = bed.port("victim", &[]);
    for round in 0..3 {
        let mut victim = NetFrontend::connect(&socket, NetOptions::default()).unwrap();
        victim.send(&frame(mac(1), mac(3), &[], b"hello")).unwrap();
        expect_frame(&mut one);
        victim.ram().file().set_len(0).unwrap();
        if round == 0 {
            // A kick makes the switch look at the ring that is gone.
            victim.queues(0).1.kick();
        } else {
            // A frame for the victim does so, too.
            one.send(&frame(mac(3), mac(1), &[], b"to the victim")).unwrap();
        }
        assert!(victim.frontend().closed_within(PATIENCE), "round {round}");
        talk(&mut one, &mut other, "undisturbed");
    }
    bed.daemon.assert_alive();
}

#[test]
fn guests_find_their_ports_again_after_a_crash_of_the_switch() {
    let mut bed = Bed::new();
    let sockets = [bed.port("one", &["--vlan", "7"]), bed.port("other", &["--vlan", "7"])];
    for round in 0..5 {
        let [mut one, mut other] =
            sockets.clone().map(|socket| NetFrontend::connect(socket, NetOptions::default()).unwrap());
        introduce(&mut one, &mut other);
        talk(&mut one, &mut other, &format!("round {round}"));
        bed.daemon.kill_and_restart();
        assert!(one.frontend().closed_within(PATIENCE));
    }
}

#[test]
fn ports_come_and_go_while_others_run() {
    let mut bed = Bed::new();
    let (mut one, mut other) = (bed.guest("one"), bed.guest("other"));
    introduce(&mut one, &mut other);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", bed.daemon.id())).unwrap().count();
    let mut before = 0;
    for round in 0..10 {
        let socket = bed.port("guest", &[]);
        let options = NetOptions { indirect: round % 2 == 0, ..NetOptions::default() };
        let mut guest = NetFrontend::connect(&socket, options).unwrap();
        guest.send(&frame(mac(1), mac(4), &[], b"short visit")).unwrap();
        expect_frame(&mut one);
        bed.site.sluice(&["port", "delete", "guest"]).unwrap();
        assert!(guest.frontend().closed_within(PATIENCE));
        assert!(!socket.exists());
        talk(&mut one, &mut other, "undisturbed");
        if round == 0 {
            before = descriptors();
        }
    }
    assert!(
        holds_within(PATIENCE, || descriptors() <= before),
        "{} descriptors, {before} before",
        descriptors()
    );
    bed.daemon.assert_alive();
}
