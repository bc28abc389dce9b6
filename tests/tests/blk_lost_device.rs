//! Pools that lose a device while many guests are at work, and get it back.
#![allow(clippy::print_stdout, reason = "a test that failed shows the daemon's log")]

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use tests::binary;
use tests::blk_frontend::{BlkFrontend, BlkOptions, BlkRequest, IO_ERROR, OK, READ};
use tests::disk_model::{DiskModel, SECTOR};
use tests::failing_disk::{FailingDisk, NAME};
use tests::frontend::PATIENCE;
use tests::holds_within;
use tests::pool_bed::MIB;
use xtask::lab::Site;
use xtask::lab::daemons::Daemon;

/// Longest request: over the border of a unit or two.
const REQUEST_BYTES_MAX: usize = 96 << 10;
/// Bytes of each volume under load; together they are far more than the hot tier.
const LOADED_BYTES: u64 = 16 * MIB;
/// What the store keeps apart: the finest range that can be lost.
const PAGE: usize = 4096;

/// Two pools of one daemon, on one worker; a device of `pool0` can fail.
struct Bed {
    daemon: Daemon,
    site: Site,
    /// After the daemon, which uses it.
    disk: FailingDisk,
    _dir: tempfile::TempDir,
}

impl Bed {
    /// A pool with the failing disk as its `tier`, a file as the other, and another pool of files; `None` skips the test.
    fn new(tier: &str) -> Option<Bed> {
        let disk = FailingDisk::new(if tier == "hot" { 8 * MIB } else { 96 * MIB })?;
        let dir = tempfile::Builder::new().prefix("sluice-").tempdir().unwrap();
        let site = binary::site(dir.path());
        let bed = Bed { daemon: site.blk().unwrap(), site, disk, _dir: dir };
        let file = |name: &str, size: &str| format!("{}:{size}", bed.site.dir.join(name).display());
        let failing = bed.disk.path().display().to_string();
        let (hot, cold) = match tier {
            "hot" => (failing, file("cold.img", "96MiB")),
            _ => (file("hot.img", "8MiB"), failing),
        };
        bed.run(&["pool", "create", "pool0", "--hot", &hot, "--cold", &cold]);
        let (hot, cold) = (file("hot1.img", "8MiB"), file("cold1.img", "64MiB"));
        bed.run(&["pool", "create", "pool1", "--hot", &hot, "--cold", &cold]);
        Some(bed)
    }

    fn run(&self, args: &[&str]) -> String {
        self.site.sluice(args).unwrap()
    }

    fn pool(&self, name: &str) -> Value {
        self.site.sluice_json(&["pool", "show", name]).unwrap()
    }

    fn log(&mut self) -> String {
        self.daemon.process().output()
    }

    /// Guests whose data are hot and cold, of all ages.
    fn loaded(&self) -> Vec<Guest> {
        let mut guests: Vec<_> = ["v0", "v1", "v2"]
            .iter()
            .map(|name| Guest::new(self, name, "pool0", LOADED_BYTES, &[]))
            .collect();
        guests.iter_mut().for_each(|guest| guest.work(400));
        guests
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log());
        }
    }
}

/// A volume, what uses it, and what it must hold.
struct Guest {
    name: String,
    blk: BlkFrontend,
    model: DiskModel,
}

impl Guest {
    fn new(bed: &Bed, name: &str, pool: &str, bytes: u64, options: &[&str]) -> Guest {
        let size = bytes.to_string();
        let create = ["volume", "create", name, "--pool", pool, "--size", &size, "--queues", "2"];
        bed.run(&[&create[..], options].concat());
        let options =
            BlkOptions { queues: 2, slots: 32, slot_bytes: REQUEST_BYTES_MAX, ..BlkOptions::default() };
        let blk = BlkFrontend::connect(bed.site.socket(name), options).unwrap();
        let model = DiskModel::new(bytes / SECTOR as u64, 512, REQUEST_BYTES_MAX, bytes + name.len() as u64);
        Guest { name: name.to_string(), blk, model }
    }

    /// Works for `requests`, and leaves a flushed disk.
    fn work(&mut self, requests: u64) {
        self.model.load(&mut self.blk, requests);
        self.model.finish(&mut self.blk);
        assert_eq!(self.blk.flush(), OK);
    }

    /// Works, with requests in flight when `lose` is passed, until many of them have failed.
    fn work_over_loss(&mut self, lose: &Barrier) {
        self.model.load(&mut self.blk, 300);
        self.model.fill(&mut self.blk);
        self.model.allow_errors(true);
        lose.wait();
        let until = Instant::now() + PATIENCE;
        while self.model.failed < 50 {
            assert!(Instant::now() < until, "{}: only {} requests failed", self.name, self.model.failed);
            self.model.load(&mut self.blk, 20);
        }
        self.model.finish(&mut self.blk);
        self.model.allow_errors(false);
    }

    /// Reads every page: what is not among `lost` is there and right, the rest gives an I/O error.
    fn assert_lost(&mut self, usage: &Value) {
        let lost: Vec<_> = usage["lost"].as_array().into_iter().flatten().collect();
        let number = |range: &Value, key: &str| range[key].as_u64().unwrap();
        for at in (0..LOADED_BYTES).step_by(PAGE) {
            let named = lost.iter().any(|range| {
                let from = number(range, "offset");
                range["volume"] == self.name.as_str() && (from..from + number(range, "bytes")).contains(&at)
            });
            let sector = at / SECTOR as u64;
            let read = BlkRequest { kind: READ, sector, read_bytes: PAGE, ..BlkRequest::default() };
            let answer = self.blk.ask(&read);
            assert_eq!(answer.status, if named { IO_ERROR } else { OK }, "{} at {at}", self.name);
            if !named {
                self.model.compare(sector, &answer.data);
            }
        }
    }
}

/// Several guests at work when `disk` fails. Meanwhile `safe` is read, which needs nothing of that disk, and `other`, whose
/// pool is another, goes on.
fn lose_at_work(disk: &FailingDisk, loaded: &mut [Guest], safe: &mut Guest, other: &mut Guest) {
    let (lose, over) = (Barrier::new(loaded.len() + 1), AtomicBool::new(false));
    let over = &over;
    std::thread::scope(|scope| {
        let bystanders = [
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    safe.model.verify(&mut safe.blk);
                }
            }),
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    other.model.load(&mut other.blk, 50);
                }
                other.model.finish(&mut other.blk);
            }),
        ];
        let lose = &lose;
        let workers: Vec<_> =
            loaded.iter_mut().map(|guest| scope.spawn(move || guest.work_over_loss(lose))).collect();
        lose.wait();
        disk.fail();
        let ends: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        over.store(true, Ordering::SeqCst);
        ends.into_iter().chain(bystanders.map(|bystander| bystander.join())).for_each(|end| end.unwrap());
    });
    assert!(disk.refused() > 0);
}

/// The pool says what has happened: its state, the device, the volumes and ranges, in the log, and in figures. Returns what is
/// shown of its use.
fn assert_told(bed: &mut Bed, loaded: &[Guest]) -> Value {
    let device = bed.disk.path();
    let read_only = || bed.pool("pool0")["state"].get("read_only").is_some();
    assert!(holds_within(PATIENCE, read_only), "{}", bed.pool("pool0"));
    let usage = bed.pool("pool0")["usage"].clone();
    assert_eq!(usage["lost_devices"], json!([device]));
    let shown = bed.run(&["pool", "show", "pool0"]);
    assert!(shown.contains(device.to_str().unwrap()), "{shown}");
    let lost: Vec<_> = usage["lost"].as_array().into_iter().flatten().collect();
    assert!(!lost.is_empty(), "something was only there: {usage}");
    let range = |from: &Value| {
        let offset = from["offset"].as_u64().unwrap();
        format!("{offset}..{}", offset + from["bytes"].as_u64().unwrap())
    };
    let first = format!("{} {}", lost[0]["volume"].as_str().unwrap(), range(lost[0]));
    assert!(shown.contains(&first), "{first}: {shown}");
    for guest in loaded {
        let Some(first) = lost.iter().find(|range| range["volume"] == *guest.name) else { continue };
        let told = || {
            let log = bed.log();
            let mut lines =
                log.lines().filter(|line| line.contains("these bytes of the volume cannot be read"));
            lines.any(|line| line.contains(&guest.name) && line.contains(&range(first)))
        };
        assert!(holds_within(PATIENCE, told), "{} {}: {}", guest.name, range(first), bed.log());
    }
    assert!(bed.log().contains(&format!("device={}", device.display())), "{}", bed.log());
    let metrics = bed.daemon.metrics().unwrap();
    let of = |name: &str, pool: &str| metrics.sum(name, &[("pool", pool)]).unwrap();
    assert_eq!([of("sluice_tier_read_only", "pool0"), of("sluice_tier_read_only", "pool1")], [1.0, 0.0]);
    for name in ["sluice_tier_device_errors_total", "sluice_tier_io_errors_total"] {
        assert!(of(name, "pool0") > 0.0 && of(name, "pool1") == 0.0, "{name}");
    }
    assert_eq!(bed.pool("pool1")["state"], "open");
    usage
}

/// The device is back: the pool opens, everything that was answered is there, and goes on.
fn assert_whole_again(bed: &mut Bed, guests: &mut [Guest]) {
    bed.disk.come_back();
    // One that could not be opened is tried again by itself, perhaps just now.
    let said = bed.site.sluice(&["pool", "open", "pool0"]).unwrap_or_else(|error| error.to_string());
    assert!(said.contains("is open") && bed.pool("pool0")["state"] == "open", "{said}");
    for guest in guests {
        // Whoever was told that a flush failed is not written before an operator says so.
        let volume = bed.site.sluice_json(&["volume", "show", &guest.name]).unwrap();
        if volume["state"].get("poisoned").is_some() {
            bed.run(&["volume", "reopen", &guest.name]);
        }
        guest.blk.reconnect().unwrap();
        guest.model.verify(&mut guest.blk);
        guest.work(300);
        guest.model.verify(&mut guest.blk);
    }
    let checked = bed.site.sluice_json(&["pool", "check", "pool0"]).unwrap();
    assert_eq!(checked["findings"], json!([]));
    bed.daemon.process().alive().unwrap();
}

/// The cold device fails: what is hot is read on, what needs the lost disk is named and gives I/O errors, and nobody else
/// notices.
#[test]
fn guests_at_work_lose_the_cold_device_and_get_it_back() {
    let Some(mut bed) = Bed::new("cold") else { return };
    let mut warm = Guest::new(&bed, "warm", "pool0", MIB, &["--pin", "hot"]);
    warm.work(200);
    let mut other = Guest::new(&bed, "other", "pool1", LOADED_BYTES, &[]);
    let mut loaded = bed.loaded();
    lose_at_work(&bed.disk, &mut loaded, &mut warm, &mut other);
    let usage = assert_told(&mut bed, &loaded);
    loaded.iter_mut().for_each(|guest| guest.assert_lost(&usage));
    let refused = bed.site.sluice(&["pool", "open", "pool0"]).unwrap_err().to_string();
    assert!(refused.contains(NAME), "{refused}");
    other.work(100);
    other.model.verify(&mut other.blk);
    loaded.push(warm);
    assert_whole_again(&mut bed, &mut loaded);
}

/// The hot device fails with data that are nowhere else: the pool is not opened without it unless that is said, and then
/// as of the last checkpoint.
#[test]
fn guests_at_work_lose_the_hot_device_and_get_it_back() {
    let Some(mut bed) = Bed::new("hot") else { return };
    let mut safe = Guest::new(&bed, "safe", "pool0", MIB, &["--pin", "cold"]);
    safe.work(200);
    bed.run(&["pool", "drain", "pool0", "--hot"]);
    let mut other = Guest::new(&bed, "other", "pool1", LOADED_BYTES, &[]);
    let mut loaded = bed.loaded();
    lose_at_work(&bed.disk, &mut loaded, &mut safe, &mut other);
    let usage = assert_told(&mut bed, &loaded);
    loaded.iter_mut().for_each(|guest| guest.assert_lost(&usage));
    let refused = bed.site.sluice(&["pool", "open", "pool0"]).unwrap_err().to_string();
    assert!(refused.contains(NAME) && refused.contains("--degraded"), "{refused}");
    assert!(refused.contains("only there (volume "), "{refused}");
    assert!(bed.run(&["pool", "open", "pool0", "--degraded"]).contains("read-only"));
    safe.blk.reconnect().unwrap();
    safe.model.verify(&mut safe.blk);
    assert_ne!(safe.blk.write(0, &[1; SECTOR]), OK);
    other.work(100);
    other.model.verify(&mut other.blk);
    loaded.push(safe);
    assert_whole_again(&mut bed, &mut loaded);
}
