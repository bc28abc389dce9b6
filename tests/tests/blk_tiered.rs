//! Volumes in tiered pools, served by the daemon as an operator runs it: every sector is what was written last, whatever
//! moves between the tiers, over copies, kills, a full pool and a lost device.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tests::blk_frontend::{BlkFrontend, BlkOptions, BlkRequest, IO_ERROR, OK, READ, WRITE};
use tests::daemon::Daemon;
use tests::disk_model::{DiskModel, SECTOR};
use tests::frontend::PATIENCE;
use tests::guest_ram::GuestRam;
use tests::holds_within;
use tests::pool_bed::{Bed, MIB};

/// Longest request: over the border of a unit or two.
const REQUEST_BYTES_MAX: usize = 96 << 10;

fn four_queues() -> BlkOptions {
    BlkOptions { queues: 4, slots: 32, slot_bytes: REQUEST_BYTES_MAX, ..BlkOptions::default() }
}

fn model(bytes: u64, seed: u64) -> DiskModel {
    DiskModel::new(bytes / SECTOR as u64, 512, REQUEST_BYTES_MAX, seed)
}

fn connect_one(socket: &PathBuf) -> BlkFrontend {
    BlkFrontend::connect(socket, BlkOptions::default()).unwrap()
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

/// Fills a pool but for one unit that volume `guest` has; returns a driver of that volume.
fn full_pool(bed: &Bed, options: BlkOptions) -> BlkFrontend {
    let capacity = bed.pool()["usage"]["cold_bytes"].as_u64().unwrap();
    let ballast = bed.volume("ballast", capacity / MIB * MIB, &[]);
    let queues = options.queues.to_string();
    let guest = bed.volume("guest", 8 * MIB, &["--queues", &queues]);
    let mut blk = BlkFrontend::connect(&guest, options).unwrap();
    assert_eq!(blk.write(0, &[1; SECTOR]), OK);
    let mut filler = BlkFrontend::connect(&ballast, BlkOptions::default()).unwrap();
    let bytes = vec![2; 64 << 10];
    let units = filler.capacity().unwrap() / 128;
    // One unit is the guest's.
    for unit in 0..units.min(capacity / (64 << 10) - 1) {
        assert_eq!(filler.write(unit * 128, &bytes), OK, "unit {unit} of {units}");
    }
    // Whatever rounding has left.
    for sector in (128..).step_by(128) {
        let write = BlkRequest { kind: WRITE, sector, out: &[3; SECTOR], tag: sector, ..Default::default() };
        blk.send(0, &write);
        if blk.answer(0, Duration::from_secs(1)).is_none() {
            break;
        }
    }
    assert!(holds_within(PATIENCE, || bed.pool()["state"] == "full"), "{}", bed.pool());
    blk
}

/// Writes in flight, by tag, which is their sector: what they wrote.
type Held = Vec<(u64, u8)>;

/// Stops the queues, which does not wait for what waits.
fn pause_at_once(blk: &mut BlkFrontend) -> Vec<u16> {
    let began = Instant::now();
    let bases = blk.pause().unwrap();
    assert!(began.elapsed() < DETACH, "{:?}", began.elapsed());
    bases
}

/// The tags of what was answered, all of it with an error.
fn failed(blk: &mut BlkFrontend) -> Vec<u64> {
    let mut failed = Vec::new();
    while let Some(answer) = blk.answer_any(Duration::ZERO) {
        assert_eq!(answer.status, IO_ERROR, "{answer:?}");
        failed.push(answer.tag);
    }
    failed
}

/// More writes that have to wait, on all queues, and overwrites between them that need not.
fn hold_more(blk: &mut BlkFrontend, held: &mut Held) {
    for turn in 0..8 {
        let queue = turn as usize % blk.queues();
        let (sector, value) = (128 * (60 + turn), 10 + turn as u8);
        let write =
            BlkRequest { kind: WRITE, sector, out: &[value; SECTOR], tag: sector, ..Default::default() };
        blk.send(queue, &write);
        held.push((sector, value));
        if turn % 3 == 0 {
            let out = [value; SECTOR];
            blk.send(queue, &BlkRequest { kind: WRITE, sector: 0, out: &out, tag: 0, ..Default::default() });
            let answer = blk.answer(queue, PATIENCE).expect("an overwrite needs no space");
            assert_eq!((answer.tag, answer.status), (0, OK));
        }
    }
}

/// All that was held is answered with success, once.
fn all_done(blk: &mut BlkFrontend, held: &Held) {
    let mut done = Vec::new();
    while done.len() < held.len() {
        let answer = blk.answer_any(PATIENCE).expect("the write goes on when there is space");
        assert_eq!(answer.status, OK, "{answer:?}");
        done.push(answer.tag);
    }
    done.sort_unstable();
    let mut tags: Vec<u64> = held.iter().map(|(tag, _)| *tag).collect();
    tags.sort_unstable();
    assert_eq!(done, tags);
    assert!(blk.answer_any(Duration::ZERO).is_none());
    for (sector, value) in held {
        assert_eq!(blk.read(*sector, SECTOR), vec![*value; SECTOR], "sector {sector}");
    }
}

/// The write that [`full_pool`] left in flight.
fn first_held(blk: &BlkFrontend) -> Held {
    assert_eq!(blk.in_flight(0), 1);
    vec![(blk.tags(0)[0], 3)]
}

/// A full pool lets overwrites through and holds what needs space until there is some.
#[test]
fn a_full_pool_waits_and_goes_on() {
    let bed = Bed::new("4MiB", "16MiB");
    let mut blk = full_pool(&bed, BlkOptions::default());
    let mut held = first_held(&blk);
    hold_more(&mut blk, &mut held);
    bed.run(&["volume", "delete", "ballast"]);
    all_done(&mut blk, &held);
    assert_eq!(blk.read(0, SECTOR), vec![16; SECTOR]);
    assert!(holds_within(PATIENCE, || bed.pool()["state"] == "open"), "{}", bed.pool());
}

/// How long whatever ends a queue may take although writes wait in it: not for ever, on a machine with other work.
const DETACH: Duration = Duration::from_secs(5);

/// Writes that wait for space hold up nobody who wants their queue to end: they are done when it runs again.
#[test]
fn writes_that_wait_for_space_let_their_queue_stop() {
    let mut bed = Bed::new("4MiB", "16MiB");
    let mut blk = full_pool(&bed, BlkOptions { queues: 2, ..BlkOptions::default() });
    let mut held = first_held(&blk);
    hold_more(&mut blk, &mut held);
    // The guest is paused, and goes on.
    let bases = pause_at_once(&mut blk);
    assert!(blk.answer_any(Duration::ZERO).is_none(), "nobody may be told that it was done");
    blk.resume(&bases).unwrap();
    assert!(holds_within(PATIENCE, || bed.pool()["state"] == "full"), "{}", bed.pool());
    // Copies are made although writes wait.
    bed.run(&["volume", "snapshot", "guest", "then"]);
    // The daemon is stopped, and starts again.
    let began = Instant::now();
    bed.daemon.stop();
    assert!(began.elapsed() < 3 * DETACH, "{:?}", began.elapsed());
    bed.daemon = Daemon::blk(&bed.site);
    blk.reconnect().unwrap();
    assert!(holds_within(PATIENCE, || bed.pool()["state"] == "full"), "{}", bed.pool());
    assert!(blk.answer_any(Duration::ZERO).is_none());
    bed.run(&["volume", "delete", "ballast"]);
    all_done(&mut blk, &held);
    assert_eq!(blk.read(0, SECTOR), vec![16; SECTOR]);
    let mut then = connect_one(&bed.site.socket("then"));
    assert_eq!(then.read(held[0].0, SECTOR), vec![0; SECTOR], "what waited is not in the copy");
    assert_eq!(then.read(0, SECTOR), vec![16; SECTOR]);
}

/// A volume whose writes wait can be deleted.
#[test]
fn a_volume_whose_writes_wait_is_deleted() {
    let bed = Bed::new("4MiB", "16MiB");
    let mut blk = full_pool(&bed, BlkOptions::default());
    hold_more(&mut blk, &mut Held::new());
    let began = Instant::now();
    bed.run(&["volume", "delete", "guest"]);
    assert!(began.elapsed() < DETACH, "{:?}", began.elapsed());
    assert!(holds_within(PATIENCE, || bed.pool()["state"] == "open"), "{}", bed.pool());
}

/// Without an inflight region only the newest can be taken back: the others end with an error, and none is lost.
#[test]
fn without_an_inflight_region_what_waits_ends_or_is_done_again() {
    let bed = Bed::new("4MiB", "16MiB");
    let mut blk = full_pool(&bed, BlkOptions { inflight: false, ..BlkOptions::default() });
    let mut held = first_held(&blk);
    hold_more(&mut blk, &mut held);
    let bases = pause_at_once(&mut blk);
    let failed = failed(&mut blk);
    // The last overwrite came after the seventh write that waits; the eighth is behind it.
    assert_eq!(failed.len(), held.len() - 1);
    held.retain(|(tag, _)| !failed.contains(tag));
    blk.resume(&bases).unwrap();
    bed.run(&["volume", "delete", "ballast"]);
    all_done(&mut blk, &held);
}

/// The same while a guest migrates, for QEMU does not take the inflight region along.
#[test]
fn while_a_dirty_log_runs_what_waits_ends_or_is_done_again() {
    let bed = Bed::new("4MiB", "16MiB");
    let mut blk = full_pool(&bed, BlkOptions::default());
    let mut held = first_held(&blk);
    hold_more(&mut blk, &mut held);
    let log = GuestRam::new(0, 2 << 20).unwrap();
    blk.log_to(&log).unwrap();
    let bases = pause_at_once(&mut blk);
    let failed = failed(&mut blk);
    assert!(!failed.is_empty() && failed.len() < held.len(), "{failed:?} of {held:?}");
    held.retain(|(tag, _)| !failed.contains(tag));
    blk.resume(&bases).unwrap();
    bed.run(&["volume", "delete", "ballast"]);
    all_done(&mut blk, &held);
}
