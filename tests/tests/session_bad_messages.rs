//! Everything a frontend can do wrong, in one process of its own because descriptors are counted.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tests::bad_messages::{BadCase, Outcome, cases};
use tests::driver_queue::DriverQueue;
use tests::echo_device::serve_echo;
use tests::frontend::{F_EVENT_IDX, F_PROTOCOL, F_VERSION_1, Frontend, PATIENCE, Protocol, message};
use tests::guest_ram::GuestRam;
use tests::{holds_within, log_lines};
use vhost_session::{Endpoint, SessionInfo};

const FEATURES: u64 = F_PROTOCOL | F_VERSION_1 | F_EVENT_IDX;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A good frontend, from connect to the last byte.
fn serves(path: &Path) {
    let ram = Arc::new(GuestRam::new(0, 1 << 20).unwrap());
    let mut frontend = Frontend::connect(path).unwrap();
    frontend.negotiate(FEATURES, Protocol::all()).unwrap();
    frontend.set_mem_table(&[&ram]).unwrap();
    let mut queue = DriverQueue::new(Arc::clone(&ram), 16, true).unwrap();
    frontend.start_queue(0, &queue, 0).unwrap();
    let (out, back) = (ram.alloc(8, 8), ram.alloc(8, 8));
    ram.write(out, b"good one");
    queue.add(&[(out, 8)], &[(back, 8)]).unwrap();
    queue.publish();
    assert!(queue.wait_used(PATIENCE).is_some());
    assert_eq!(ram.bytes(back, 8), b"good one".map(|byte| !byte));
}

struct Bed {
    endpoint: RefCell<Option<Endpoint>>,
    path: std::path::PathBuf,
    ram: GuestRam,
    descriptors: usize,
}

impl Bed {
    fn sessions(&self) -> Vec<SessionInfo> {
        self.endpoint.borrow().as_ref().expect("it is served").sessions()
    }

    fn settled(&self) {
        assert!(holds_within(PATIENCE, || self.sessions().is_empty()), "sessions end");
        assert!(
            holds_within(PATIENCE, || open_descriptors() == self.descriptors),
            "no descriptor is left behind"
        );
    }

    /// Runs one bad frontend on a socket of its own, which has said nothing yet; then there must be one line in the log
    /// about it, and nothing left.
    fn bad<T>(&self, name: &str, protocol: Protocol, behave: impl FnOnce(&mut Frontend) -> T) -> T {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.endpoint.take();
        let (endpoint, _calls) = serve_echo(&format!("bad-{number}"), &self.path).unwrap();
        self.endpoint.replace(Some(endpoint));
        let mut frontend = Frontend::connect(&self.path).unwrap();
        frontend.negotiate(FEATURES, protocol).unwrap();
        frontend.sync().unwrap();
        let result = behave(&mut frontend);
        drop(frontend);
        self.settled();
        let lines = log_lines::warnings(&format!("bad-{number} (frontend "));
        assert_eq!(lines.len(), 1, "{name}: {lines:#?}");
        result
    }

    fn inflict(&self, case: &BadCase, protocol: Protocol) -> Outcome {
        let outcome = self.bad(case.name, protocol, |frontend| case.inflict(frontend, &self.ram).unwrap());
        outcome.unwrap_or_else(|| panic!("{}: neither closed nor refused", case.name))
    }
}

#[test]
fn every_bad_message_ends_its_own_session_with_one_line_and_nothing_else() {
    log_lines::collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("echo.sock");
    let (endpoint, _calls) = serve_echo("bad", &path).unwrap();
    serves(&path);
    let ram = GuestRam::new(0, 1 << 20).unwrap();
    assert!(holds_within(PATIENCE, || endpoint.sessions().is_empty()));
    let descriptors = open_descriptors();
    let bed = Bed { endpoint: RefCell::new(Some(endpoint)), path, ram, descriptors };

    let mut refused = 0;
    for case in cases(&bed.ram) {
        assert_eq!(
            bed.inflict(&case, Protocol::all() - Protocol::REPLY_ACK),
            Outcome::Closed,
            "{}",
            case.name
        );
        refused += usize::from(bed.inflict(&case, Protocol::all()) == Outcome::Refused);
        serves(&bed.path);
        bed.settled();
    }
    assert!(refused > 20, "most bad values are only refused where the frontend can be told: {refused}");

    let with_channel = Protocol::all();
    let owner = message(3, 0, &[]);
    for cut in 1..owner.len() {
        bed.bad("a header cut off", with_channel, |frontend| frontend.send_raw(&owner[..cut], &[]).unwrap());
    }
    let features = message(2, 0, &[0; 8]);
    for cut in owner.len()..features.len() {
        bed.bad("a payload cut off", with_channel, |frontend| {
            frontend.send_raw(&features[..cut], &[]).unwrap()
        });
    }
    bed.bad("a half message with a descriptor", with_channel, |frontend| {
        frontend.send_raw(&features[..5], &[bed.ram.file().as_fd()]).unwrap();
        frontend.send_raw(&features[5..8], &[bed.ram.file().as_fd()]).unwrap();
    });
    bed.bad("descriptors on the payload", with_channel, |frontend| {
        let kick = message(12, 0, &[0; 8]);
        frontend.send_raw(&kick[..12], &[]).unwrap();
        frontend.send_raw(&kick[12..], &[bed.ram.file().as_fd()]).unwrap();
        assert!(frontend.closed_within(PATIENCE));
    });
    bed.bad("a message that never ends", with_channel, |frontend| {
        let mut endless = message(5, 0, &[]);
        endless[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
        // The other side may be gone before all of it is sent.
        let _ = frontend.send_raw(&[endless, vec![0xff; 100_000]].concat(), &[]);
        assert!(frontend.closed_within(PATIENCE));
    });
    serves(&bed.path);
    bed.settled();
    // A message in single bytes is a good message.
    let mut frontend = Frontend::connect(&bed.path).unwrap();
    for byte in message(1, 0, &[]) {
        frontend.send_raw(&[byte], &[]).unwrap();
    }
    assert_eq!(frontend.reply().unwrap().request, 1);
    frontend.negotiate(FEATURES, Protocol::all()).unwrap();
    for byte in message(18, 8, &tests::frontend::pair(0, 1)) {
        frontend.send_raw(&[byte], &[]).unwrap();
    }
    assert_eq!(frontend.reply().unwrap().number().unwrap(), 0);
}
