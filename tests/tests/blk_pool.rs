//! What an operator does with pools while guests are at work.

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::blk_frontend::{BlkFrontend, BlkOptions, OK};
use tests::frontend::PATIENCE;
use tests::holds_within;
use tests::pool_bed::{Bed, MIB};

/// A unit of the tiered store.
const UNIT: usize = 64 << 10;

fn connect(bed: &Bed, volume: &str) -> BlkFrontend {
    BlkFrontend::connect(bed.site.socket(volume), BlkOptions::default()).unwrap()
}

/// Writes `units` whole units from `first` on.
fn write_units(blk: &mut BlkFrontend, first: u64, units: u64, value: u8) {
    for unit in first..first + units {
        assert_eq!(blk.write(unit * 128, &vec![value; UNIT]), OK, "unit {unit}");
    }
}

fn job(bed: &Bed, id: &Value) -> Value {
    bed.json(&["job", "show", &id.to_string()])
}

/// A drain writes back what is only hot, and ends although a guest never stops writing.
#[test]
fn a_drain_ends_although_guests_go_on() {
    let bed = Bed::new("16MiB", "64MiB");
    bed.volume("v0", 16 * MIB, &[]);
    let mut blk = connect(&bed, "v0");
    write_units(&mut blk, 0, 100, 1);
    let dirty = bed.pool()["usage"]["dirty_bytes"].as_u64().unwrap();
    assert!(dirty > 4 * MIB, "{dirty}");
    let begun = bed.json(&["pool", "drain", "pool0", "--hot", "--background"]);
    assert_eq!((&begun["kind"], &begun["target"]), (&"drain".into(), &"pool0".into()));
    let mut value = 1u8;
    let ended = holds_within(PATIENCE, || {
        for _ in 0..100 {
            value = value.wrapping_add(1);
            assert_eq!(blk.write(0, &vec![value; UNIT]), OK);
        }
        job(&bed, &begun["id"])["state"] != "running"
    });
    let job = job(&bed, &begun["id"]);
    assert!(ended && job["state"] == "done", "{job}");
    assert_eq!(job["done_bytes"], job["total_bytes"]);
    assert!(job["total_bytes"].as_u64().unwrap() > 4 * MIB && job.get("left_s").is_none(), "{job}");
    // What the guest wrote last may be dirty again.
    assert!(bed.pool()["usage"]["dirty_bytes"].as_u64().unwrap() <= 2 * UNIT as u64, "{}", bed.pool());
    assert_eq!(blk.read(0, UNIT), vec![value; UNIT]);
    drop(blk);
    let said = bed.run(&["pool", "drain", "pool0", "--hot"]);
    assert!(said.contains("drain pool0: ") && said.contains("done"), "{said}");
    assert_eq!(bed.pool()["usage"]["dirty_bytes"], 0);
    let jobs = bed.json(&["job", "list"]);
    assert_eq!(jobs.as_array().map(Vec::len), Some(2), "{jobs}");
    assert!(bed.refused(&["pool", "drain", "pool1", "--hot"]).contains("there is no pool `pool1`"));
}

/// A slow drain is cancelled, and one that runs does not hold up the daemon's end.
#[test]
fn a_drain_is_cancelled() {
    let mut bed = Bed::without_pool();
    bed.make_pool("32MiB", "64MiB", &["--migration-limit", "1MiB"]);
    bed.volume("v0", 24 * MIB, &[]);
    let mut blk = connect(&bed, "v0");
    write_units(&mut blk, 0, 320, 1);
    let begun = bed.json(&["pool", "drain", "pool0", "--hot", "--background"]);
    let refused = bed.refused(&["pool", "drain", "pool0", "--hot"]);
    assert!(refused.contains(&format!("job {}", begun["id"])), "{refused}");
    assert!(bed.run(&["job", "list"]).contains("running"));
    bed.run(&["job", "cancel", &begun["id"].to_string()]);
    assert!(holds_within(PATIENCE, || job(&bed, &begun["id"])["state"] == "cancelled"));
    assert!(bed.pool()["usage"]["dirty_bytes"].as_u64().unwrap() > 8 * MIB);
    bed.json(&["pool", "drain", "pool0", "--hot", "--background"]);
    let began = Instant::now();
    bed.daemon.stop();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    bed.daemon = tests::daemon::Daemon::blk(&bed.site);
    blk.reconnect().unwrap();
    assert_eq!(blk.read(0, UNIT), vec![1; UNIT]);
}
