//! The storage daemon as an operator runs it, and disks used by drivers of our own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use tests::bad_messages::{Outcome, cases};
use tests::blk_frontend::{BlkFrontend, BlkOptions, BlkRequest, OK, READ};
use tests::daemon::Daemon;
use tests::disk_model::{DiskModel, SECTOR};
use tests::frontend::{F_PROTOCOL, F_VERSION_1, Frontend, PATIENCE, Protocol};
use tests::guest_ram::GuestRam;
use tests::{binary, holds_within, log_lines};
use xtask::lab::Site;

const MIB: u64 = 1 << 20;

/// A daemon with directories of its own.
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
        Self { daemon: Daemon::blk(&site), site, _dir: dir }
    }

    /// Makes a volume on a file of its own; returns its socket and the file.
    fn volume(&self, name: &str, bytes: u64, options: &[&str]) -> (PathBuf, PathBuf) {
        let file = self.site.dir.join(format!("{name}.img"));
        let (path, size) = (file.display().to_string(), bytes.to_string());
        let args = [&["volume", "create", name, "--file", &path, "--size", &size], options].concat();
        self.site.sluice(&args).unwrap();
        (self.site.socket(name), file)
    }
}

fn four_queues() -> BlkOptions {
    BlkOptions { queues: 4, slots: 32, ..BlkOptions::default() }
}

fn model(bytes: u64, block_bytes: u64, seed: u64) -> DiskModel {
    DiskModel::new(bytes / SECTOR as u64, block_bytes, 64 << 10, seed)
}

#[test]
fn every_sector_holds_what_was_written_last() {
    let bed = Bed::new();
    for (name, block, indirect) in [("plain", 512, false), ("big", 4096, true)] {
        let arguments = ["--queues", "4", "--block-size", &block.to_string()];
        let (socket, file) = bed.volume(name, 16 * MIB, &arguments);
        let mut blk = BlkFrontend::connect(&socket, BlkOptions { indirect, ..four_queues() }).unwrap();
        assert_eq!(blk.capacity().unwrap(), 16 * MIB / SECTOR as u64);
        let mut model = model(16 * MIB, block, 1 + block);
        model.load(&mut blk, 10_000);
        model.finish(&mut blk);
        model.verify(&mut blk);
        assert_eq!(blk.flush(), OK);
        model.verify_bytes(&std::fs::read(&file).unwrap());
    }
}

/// kill -9 under load, again and again: nothing is lost and nothing is done twice, also when requests were answered out
/// of order. (A write done again would show as soon as another one has been done in its place.)
#[test]
fn a_killed_daemon_comes_back_and_every_request_is_done_once() {
    let mut bed = Bed::new();
    let (socket, file) = bed.volume("v0", 16 * MIB, &["--queues", "4"]);
    let mut blk = BlkFrontend::connect(&socket, four_queues()).unwrap();
    let mut model = model(16 * MIB, 512, 7);
    let mut left_in_flight = 0;
    for round in 0..24 {
        model.load(&mut blk, 100 + 37 * round);
        model.fill(&mut blk);
        left_in_flight += model.in_flight();
        bed.daemon.kill_and_restart();
        blk.reconnect().unwrap();
    }
    assert!(left_in_flight > 100, "the daemon died with requests in flight: {left_in_flight}");
    model.load(&mut blk, 100);
    model.finish(&mut blk);
    model.verify(&mut blk);
    model.verify_bytes(&std::fs::read(&file).unwrap());
}

/// A verified load on a volume of its own, which goes on undisturbed whatever happens to others.
struct Bystander {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Bystander {
    fn start(bed: &Bed) -> Self {
        let (socket, _) = bed.volume("bystander", 4 * MIB, &["--queues", "4"]);
        let mut blk = BlkFrontend::connect(socket, four_queues()).unwrap();
        let mut model = model(4 * MIB, 512, 99);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                model.load(&mut blk, 50);
            }
            model.finish(&mut blk);
            model.verify(&mut blk);
            model.done
        });
        Self { stop, thread }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.thread.join().unwrap() > 0);
    }
}

fn serves(socket: &Path) {
    let mut blk = BlkFrontend::connect(socket, BlkOptions::default()).unwrap();
    assert_eq!(blk.read(0, 8 * SECTOR), [0; 8 * SECTOR]);
}

#[test]
fn bad_messages_do_nothing_to_others() {
    let mut bed = Bed::new();
    let (victim, _) = bed.volume("victim", 16 * MIB, &[]);
    let bystander = Bystander::start(&bed);
    let begin = Instant::now();
    let ram = GuestRam::new(0, MIB as usize).unwrap();
    for case in cases(&ram) {
        for protocol in [Protocol::all(), Protocol::all() - Protocol::REPLY_ACK] {
            let mut frontend = Frontend::connect(&victim).unwrap();
            frontend.negotiate(F_PROTOCOL | F_VERSION_1, protocol).unwrap();
            let outcome = case.inflict(&frontend, &ram).unwrap();
            let expected = [Some(Outcome::Closed), Some(Outcome::Refused)];
            assert!(expected.contains(&outcome), "{}: neither closed nor refused", case.name);
        }
    }
    serves(&victim);
    bystander.finish();
    bed.daemon.assert_alive();
    log_lines::assert_bounded(&bed.daemon.log(), begin);
}

#[test]
fn a_truncated_guest_memory_ends_only_its_own_session() {
    let mut bed = Bed::new();
    let (victim, _) = bed.volume("victim", 16 * MIB, &[]);
    let bystander = Bystander::start(&bed);
    for keep in [0, 4096, 64 << 10] {
        let mut blk = BlkFrontend::connect(&victim, BlkOptions::default()).unwrap();
        blk.read(0, SECTOR);
        blk.ram().file().set_len(keep).unwrap();
        if keep == 0 {
            // The rings are gone, too.
            blk.ring(0).kick();
        } else {
            blk.send_untouched(0);
        }
        assert!(blk.frontend().closed_within(PATIENCE), "truncated to {keep} bytes");
    }
    serves(&victim);
    bystander.finish();
    bed.daemon.assert_alive();
}

#[test]
fn volumes_come_and_go_while_others_run() {
    let mut bed = Bed::new();
    let bystander = Bystander::start(&bed);
    for round in 0..10u64 {
        let name = format!("guest{}", round % 3);
        let (socket, file) = bed.volume(&name, 2 * MIB, &[]);
        let mut blk = BlkFrontend::connect(&socket, BlkOptions::default()).unwrap();
        let mut second = BlkFrontend::connect(&socket, BlkOptions::default()).unwrap();
        let mut model = model(2 * MIB, 512, round);
        model.load(&mut blk, 200);
        if round % 2 == 0 {
            model.finish(&mut blk);
            model.verify(&mut second);
        }
        // Deleted under its guests: their sessions end, the socket goes, the data stay.
        bed.site.sluice(&["volume", "delete", &name]).unwrap();
        assert!(blk.frontend().closed_within(PATIENCE) && second.frontend().closed_within(PATIENCE));
        assert!(!socket.exists());
        assert_eq!(std::fs::metadata(&file).unwrap().len(), 2 * MIB);
        std::fs::remove_file(&file).unwrap();
    }
    bystander.finish();
    let volumes = bed.site.sluice_json(&["volume", "list"]).unwrap();
    assert_eq!(volumes.as_array().map(Vec::len), Some(1), "{volumes}");
    bed.daemon.kill_and_restart();
    let mut blk = BlkFrontend::connect(bed.site.socket("bystander"), four_queues()).unwrap();
    assert_eq!(blk.flush(), OK);
}

#[test]
fn a_guest_sees_its_disk_grow() {
    let bed = Bed::new();
    let (socket, file) = bed.volume("grows", 4 * MIB, &[]);
    let mut blk = BlkFrontend::connect(&socket, BlkOptions::default()).unwrap();
    let channel = blk.frontend().open_request_channel().unwrap();
    let sector = 4 * MIB / SECTOR as u64;
    let beyond = BlkRequest { kind: READ, sector, read_bytes: SECTOR, ..BlkRequest::default() };
    assert_ne!(blk.ask(&beyond).status, OK, "not there yet");
    bed.site.sluice(&["volume", "resize", "grows", &(8 * MIB).to_string()]).unwrap();
    let message = channel.reply().unwrap();
    assert_eq!((message.request, message.payload.len()), (2, 0), "CONFIG_CHANGE_MSG");
    assert_eq!(blk.capacity().unwrap(), 8 * MIB / SECTOR as u64);
    assert_eq!(blk.write(sector, &[0x5a; SECTOR]), OK);
    assert_eq!(blk.read(sector, SECTOR), [0x5a; SECTOR]);
    assert_eq!(std::fs::metadata(file).unwrap().len(), 8 * MIB);
}

/// Guests that disappear in the middle of their requests leave nothing behind.
#[test]
fn frontends_that_vanish_leave_the_volume_free() {
    let bed = Bed::new();
    let (socket, _) = bed.volume("v0", 16 * MIB, &["--queues", "4"]);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", bed.daemon.id())).unwrap().count();
    let frontends = || bed.site.sluice_json(&["volume", "show", "v0"]).unwrap()["frontends"].clone();
    let vanish = || {
        let mut blk = BlkFrontend::connect(&socket, four_queues()).unwrap();
        model(16 * MIB, 512, 3).fill(&mut blk);
    };
    vanish();
    assert!(holds_within(PATIENCE, || frontends() == 0), "{}", frontends());
    let before = descriptors();
    (0..20).for_each(|_| vanish());
    assert!(holds_within(PATIENCE, || frontends() == 0), "{}", frontends());
    assert!(
        holds_within(PATIENCE, || descriptors() <= before),
        "{} descriptors, {before} before",
        descriptors()
    );
}
