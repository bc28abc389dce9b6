//! Volumes in tiered pools, served by the daemon as an operator runs it: every sector is what was written last, whatever
//! moves between the tiers, over copies, kills, a full pool and a lost device.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tests::blk_frontend::{BlkFrontend, BlkOptions, BlkRequest, IO_ERROR, OK, READ, WRITE};
use tests::daemon::Daemon;
use tests::disk_model::{DiskModel, SECTOR};
use tests::frontend::PATIENCE;
use tests::{binary, holds_within};
use xtask::lab::Site;

const MIB: u64 = 1 << 20;
/// Longest request: over the border of a unit or two.
const REQUEST_BYTES_MAX: usize = 96 << 10;

/// A daemon with a pool whose hot tier is much smaller than the volumes, so that data move all the time.
struct Bed {
    daemon: Daemon,
    site: Site,
    /// Last, so that it goes last.
    _dir: tempfile::TempDir,
}

impl Bed {
    fn new(hot: &str, cold: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("sluice-").tempdir().unwrap();
        let site = binary::site(dir.path());
        let bed = Self { daemon: Daemon::blk(&site), site, _dir: dir };
        let (hot, cold) = (bed.device("hot", hot), bed.device("cold", cold));
        bed.run(&["pool", "create", "pool0", "--hot", &hot, "--cold", &cold]);
        bed
    }

    fn device(&self, name: &str, size: &str) -> String {
        format!("{}:{size}", self.site.dir.join(format!("{name}.img")).display())
    }

    fn run(&self, args: &[&str]) -> String {
        self.site.sluice(args).unwrap()
    }

    fn volume(&self, name: &str, bytes: u64, options: &[&str]) -> PathBuf {
        let size = bytes.to_string();
        let args = [&["volume", "create", name, "--pool", "pool0", "--size", &size], options].concat();
        self.run(&args);
        self.site.socket(name)
    }

    fn pool(&self) -> Value {
        self.site.sluice_json(&["pool", "show", "pool0"]).unwrap()
    }
}

fn four_queues() -> BlkOptions {
    BlkOptions { queues: 4, slots: 32, slot_bytes: REQUEST_BYTES_MAX, ..BlkOptions::default() }
}

fn model(bytes: u64, seed: u64) -> DiskModel {
    DiskModel::new(bytes / SECTOR as u64, 512, REQUEST_BYTES_MAX, seed)
}

fn connect(socket: &PathBuf) -> BlkFrontend {
    BlkFrontend::connect(socket, four_queues()).unwrap()
}

/// A load on a volume while its data move, and copies of it that stay what they were.
#[test]
fn every_sector_holds_what_was_written_last_and_copies_stay() {
    let mut bed = Bed::new("4MiB", "256MiB");
    let size = 16 * MIB;
    let socket = bed.volume("v0", size, &["--queues", "4"]);
    let mut blk = connect(&socket);
    assert_eq!(blk.capacity().unwrap(), size / SECTOR as u64);
    let mut now = model(size, 1);
    let mut copies = Vec::new();
    for round in 0..3 {
        now.load(&mut blk, 1200);
        now.finish(&mut blk);
        let (clone, snapshot) = (format!("c{round}"), format!("s{round}"));
        bed.run(&["volume", "clone", "v0", &clone]);
        bed.run(&["volume", "snapshot", "v0", &snapshot]);
        copies.push((clone, snapshot, now.clone()));
    }
    now.load(&mut blk, 500);
    now.finish(&mut blk);
    now.verify(&mut blk);
    for (clone, snapshot, then) in &mut copies {
        then.verify(&mut connect(&bed.site.socket(snapshot)));
        // A clone goes its own way, and nobody else notices.
        let mut blk = connect(&bed.site.socket(clone));
        then.clone().verify(&mut blk);
        let mut own = then.clone();
        own.load(&mut blk, 300);
        own.finish(&mut blk);
        own.verify(&mut blk);
    }
    now.verify(&mut blk);
    let (_, snapshot, then) = &copies[0];
    let mut read_only = connect(&bed.site.socket(snapshot));
    assert_eq!(read_only.write(0, &[1; SECTOR]), IO_ERROR, "a snapshot is not written");
    then.verify(&mut read_only);
    bed.daemon.assert_alive();
}

/// A driver whose buffers direct I/O cannot use, and one that wants every write durable.
#[test]
fn buffers_anywhere_and_write_through() {
    let bed = Bed::new("4MiB", "64MiB");
    let socket = bed.volume("v0", 8 * MIB, &[]);
    let mut blk = BlkFrontend::connect(&socket, BlkOptions::default()).unwrap();
    let data: Vec<u8> = (0..48 << 10).map(|at| (at / 7) as u8).collect();
    for (sector, shift, parts) in [(0, 1, 3), (100, 13, 1), (120, 510, 5), (700, 0, 9)] {
        let request = BlkRequest { sector, shift, parts, ..BlkRequest::default() };
        let write = BlkRequest { kind: WRITE, out: &data, ..request.clone() };
        assert_eq!(blk.ask(&write).status, OK);
        let read = blk.ask(&BlkRequest { kind: READ, read_bytes: data.len(), ..request });
        assert!(read.status == OK && read.data == data, "sector {sector}, shift {shift}");
    }
    // The field `writeback` of the config space.
    blk.frontend().write_config(32, &[0]).unwrap();
    assert_eq!(blk.write(3, &[7; SECTOR]), OK);
    assert_eq!(blk.read(3, SECTOR), [7; SECTOR]);
}

/// kill -9 under load, again and again, while data move: nothing is lost and nothing is done twice.
#[test]
fn a_killed_daemon_comes_back_and_every_request_is_done_once() {
    let mut bed = Bed::new("4MiB", "256MiB");
    let size = 16 * MIB;
    let mut loads = Vec::new();
    for (seed, name) in [(3, "v0"), (4, "v1")] {
        let socket = bed.volume(name, size, &["--queues", "4"]);
        loads.push((connect(&socket), model(size, seed)));
    }
    let mut left_in_flight = 0;
    for round in 0..22 {
        for (blk, model) in &mut loads {
            model.load(blk, 60 + 17 * round);
            model.fill(blk);
            left_in_flight += model.in_flight();
        }
        bed.daemon.kill_and_restart();
        loads.iter_mut().for_each(|(blk, _)| blk.reconnect().unwrap());
    }
    assert!(left_in_flight > 200, "the daemon died with requests in flight: {left_in_flight}");
    for (blk, model) in &mut loads {
        model.load(blk, 100);
        model.finish(blk);
        assert_eq!(blk.flush(), OK);
        model.verify(blk);
    }
    // A clean stop and a new start find the same.
    drop(bed.daemon);
    bed.daemon = Daemon::blk(&bed.site);
    for (blk, model) in &mut loads {
        blk.reconnect().unwrap();
        model.verify(blk);
    }
}

/// A full pool lets overwrites through and holds what needs space until there is some.
#[test]
fn a_full_pool_waits_and_goes_on() {
    let bed = Bed::new("4MiB", "16MiB");
    let usage = bed.pool()["usage"].clone();
    let capacity = usage["cold_bytes"].as_u64().unwrap();
    let ballast = bed.volume("ballast", capacity / MIB * MIB, &[]);
    let guest = bed.volume("guest", 8 * MIB, &[]);
    let mut blk = BlkFrontend::connect(&guest, BlkOptions::default()).unwrap();
    assert_eq!(blk.write(0, &[1; SECTOR]), OK);
    {
        let mut filler = BlkFrontend::connect(&ballast, BlkOptions::default()).unwrap();
        let bytes = vec![2; 64 << 10];
        let units = filler.capacity().unwrap() / 128;
        // One unit is the guest's.
        for unit in 0..units.min(capacity / (64 << 10) - 1) {
            assert_eq!(filler.write(unit * 128, &bytes), OK, "unit {unit} of {units}");
        }
    }
    let mut next = 128;
    // Whatever rounding has left.
    let held = loop {
        blk.send(
            0,
            &BlkRequest { kind: WRITE, sector: next, out: &[3; SECTOR], tag: next, ..BlkRequest::default() },
        );
        let full = || bed.pool()["state"] == "full";
        if blk.answer(0, Duration::from_secs(1)).is_none() {
            assert!(holds_within(PATIENCE, full), "{}", bed.pool());
            break next;
        }
        next += 128;
    };
    blk.send(0, &BlkRequest { kind: WRITE, sector: 0, out: &[4; SECTOR], tag: 1, ..BlkRequest::default() });
    let overwritten = blk.answer(0, PATIENCE).expect("an overwrite needs no space");
    assert_eq!((overwritten.tag, overwritten.status), (1, OK));
    bed.run(&["volume", "delete", "ballast"]);
    let resumed = blk.answer(0, PATIENCE).expect("the write goes on when there is space");
    assert_eq!((resumed.tag, resumed.status), (held, OK));
    assert_eq!((blk.read(held, SECTOR), blk.read(0, SECTOR)), (vec![3; SECTOR], vec![4; SECTOR]));
    assert!(holds_within(PATIENCE, || bed.pool()["state"] == "open"), "{}", bed.pool());
}
