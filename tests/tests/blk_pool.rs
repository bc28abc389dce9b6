//! What an operator does with pools while guests are at work.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::blk_frontend::{BlkFrontend, BlkOptions, BlkRequest, IO_ERROR, OK, READ, WRITE};
use tests::frontend::PATIENCE;
use tests::holds_within;
use tests::pool_bed::{Bed, MIB};
use tiering::superblock::{SUPERBLOCK_BYTES, Superblock};

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

/// On a terminal a drain has a bar with rate and time left; Ctrl-C ends the job with the command, and it says so.
#[test]
fn a_drain_shows_itself_on_a_terminal() {
    let bed = Bed::without_pool();
    bed.make_pool("32MiB", "64MiB", &["--migration-limit", "1MiB"]);
    bed.volume("v0", 24 * MIB, &[]);
    write_units(&mut connect(&bed, "v0"), 0, 320, 1);
    let (program, run_dir) = (bed.site.program.display(), bed.site.run_dir());
    // `exec`: a shell that stays would have the Ctrl-C too, and some end with their own code then.
    let drain = format!("exec {program} pool drain pool0 --hot --run-dir {}", run_dir.display());
    let mut terminal = Command::new("script");
    terminal.args(["-qefc", &drain, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut terminal = terminal.spawn().unwrap_or_else(|error| panic!("script (package bsdutils): {error}"));
    let mut screen = terminal.stdout.take().unwrap();
    let mut said = String::new();
    let mut read = |said: &mut String| {
        let mut bytes = [0; 4096];
        let count = screen.read(&mut bytes).unwrap_or_default();
        said.push_str(&String::from_utf8_lossy(&bytes[..count]));
        count > 0
    };
    while !(said.contains("MiB/s ") && said.contains("s left")) {
        assert!(read(&mut said), "the drain has ended: {said}");
    }
    assert!(said.contains("drain pool0 "), "{said}");
    terminal.stdin.as_ref().unwrap().write_all(b"\x03").unwrap();
    while read(&mut said) {}
    assert!(said.contains("drain pool0 (job 1) was cancelled at "), "{said}");
    assert_eq!(terminal.wait().unwrap().code(), Some(1));
    assert_eq!(bed.json(&["job", "show", "1"])["state"], "cancelled");
    assert!(bed.pool()["usage"]["dirty_bytes"].as_u64().unwrap() > 8 * MIB);
}

/// A full pool gets more space, from the device it has and from others, and writes that waited go on; it is found again.
#[test]
fn a_full_pool_is_extended_at_work() {
    let mut bed = Bed::new("8MiB", "16MiB");
    bed.volume("v0", 64 * MIB, &[]);
    let mut blk = connect(&bed, "v0");
    let capacity = bed.pool()["usage"]["cold_bytes"].as_u64().unwrap();
    let fits = capacity / UNIT as u64;
    write_units(&mut blk, 0, fits, 1);
    let wait = |blk: &mut BlkFrontend, unit: u64| {
        let out = vec![2; UNIT];
        let write =
            BlkRequest { kind: WRITE, sector: unit * 128, out: &out, tag: unit, ..Default::default() };
        blk.send(0, &write);
        assert!(holds_within(PATIENCE, || bed.pool()["state"] == "full"), "{}", bed.pool());
    };
    let goes_on = |blk: &mut BlkFrontend, unit: u64| {
        let answer = blk.answer(0, PATIENCE).expect("there is space");
        assert_eq!((answer.tag, answer.status), (unit, OK));
    };
    wait(&mut blk, fits);
    let cold = bed.device("cold", "18MiB");
    let grown = bed.json(&["pool", "extend", "pool0", "--cold", &cold]);
    goes_on(&mut blk, fits);
    assert_eq!(grown["usage"]["cold_bytes"].as_u64(), Some(capacity + 2 * MIB));
    write_units(&mut blk, fits, 32, 2);
    wait(&mut blk, fits + 32);
    let (hot2, cold2) = (bed.device("hot2", "4MiB"), bed.device("cold2", "16MiB"));
    let said = bed.run(&["pool", "extend", "pool0", "--hot", &hot2, "--cold", &cold2]);
    assert!(said.contains("pool0 has "), "{said}");
    goes_on(&mut blk, fits + 32);
    write_units(&mut blk, fits + 32, 100, 3);
    let before = bed.pool();
    assert_eq!(before["devices"].as_array().map(Vec::len), Some(4));
    let read_all = |blk: &mut BlkFrontend| {
        for unit in 0..fits + 132 {
            let value = [1, 2, 3][usize::from(unit >= fits) + usize::from(unit >= fits + 32)];
            assert_eq!(blk.read(unit * 128, UNIT), vec![value; UNIT], "unit {unit}");
        }
    };
    read_all(&mut blk);
    bed.daemon.kill_and_restart();
    blk.reconnect().unwrap();
    read_all(&mut blk);
    assert_eq!(bed.pool()["devices"], before["devices"]);
    // All that is wrong is told at once, and nothing has changed.
    let absent = bed.site.dir.join("absent").display().to_string();
    let refused =
        bed.refused(&["pool", "extend", "pool0", "--hot", &cold2, "--cold", &absent, "--cold", &cold]);
    for says in ["it is a cold device of this pool", "absent", "the pool uses 18874368 bytes of it already"] {
        assert!(refused.contains(says), "{refused} does not say {says}");
    }
    assert!(bed.refused(&["pool", "extend", "pool0"]).contains("no device"));
    assert_eq!(bed.pool()["devices"], before["devices"]);
}

/// Where data are and why, for people and programs, as they move.
#[test]
fn the_tiers_of_a_volume_are_shown_and_explained() {
    let bed = Bed::new("8MiB", "64MiB");
    bed.volume("v0", 32 * MIB, &[]);
    let mut blk = connect(&bed, "v0");
    write_units(&mut blk, 0, 16, 1);
    let place = bed.json(&["tier", "explain", "v0", "0x20000"]);
    assert_eq!((&place["tier"], &place["unit"]), (&"hot".into(), &serde_json::json!([0x20000, UNIT])));
    assert_eq!(
        (place["hot_bytes"].as_u64(), place["dirty_bytes"].as_u64()),
        (Some(UNIT as u64), Some(UNIT as u64))
    );
    assert!(place["since_s"].as_f64().is_some_and(|since| since < 60.0), "{place}");
    assert!(place["why"].as_str().is_some_and(|why| why.contains("`v0` used it")), "{place}");
    for key in ["heat", "moves_when"] {
        assert!(place[key].as_str().is_some_and(|text| !text.is_empty()), "{place}");
    }
    assert_eq!(bed.json(&["tier", "explain", "v0", "31MiB"])["tier"], "none");
    bed.run(&["volume", "pin", "v0", "cold", "--range", "16MiB:1MiB"]);
    write_units(&mut blk, 256, 16, 2);
    let cold = bed.json(&["tier", "explain", "v0", "16MiB"]);
    assert_eq!(
        (&cold["tier"], &cold["moves_when"]),
        (&"cold".into(), &"never: the volume is pinned cold".into())
    );
    assert!(bed.run(&["tier", "explain", "v0", "16777216"]).contains("moves when"));
    let heat = bed.json(&["tier", "show", "v0"]);
    let cells = heat["cells"].as_array().unwrap();
    assert_eq!((heat["cell_bytes"].as_u64(), cells.len()), (Some(UNIT as u64), 512));
    let hot = |cell: &Value| cell["hot_bytes"].as_u64().unwrap() as usize;
    assert!((0..512).all(|at| hot(&cells[at]) == if at < 16 { UNIT } else { 0 }), "{heat}");
    let map = bed.run(&["tier", "show", "v0"]);
    assert!(map.contains(&format!("0x0 |{}{}|", "@".repeat(16), " ".repeat(48))), "{map}");
    assert!(map.contains(&format!("0x1000000 |{}{}|", ".".repeat(16), " ".repeat(48))), "{map}");
    assert!(map.contains("written 2MiB, hot 1MiB"), "{map}");
    assert_eq!(bed.run(&["tier", "show", "v0", "--lines", "1"]).lines().count(), 4);
    // What cannot be told.
    assert!(bed.refused(&["tier", "explain", "v0", "32MiB"]).contains("it has 33554432 bytes"));
    assert!(bed.refused(&["tier", "explain", "v1", "0"]).contains("there is no volume `v1`"));
    bed.run(&["volume", "create", "raw", "--null", "--size", "1MiB"]);
    assert!(bed.refused(&["tier", "show", "raw"]).contains("is in no pool"));
}

/// Bounds, quotas and pins hold, are shown, and are there after a crash.
#[test]
fn limits_hold_and_last() {
    let mut bed = Bed::new("16MiB", "64MiB");
    bed.run(&["pool", "quota", "pool0", "acme", "3MiB"]);
    let options = ["--hot-max", "1MiB", "--hot-min", "512KiB", "--quota", "8MiB", "--tenant", "acme"];
    bed.volume("v0", 16 * MIB, &options);
    bed.volume("v1", 16 * MIB, &["--tenant", "acme", "--pin", "hot"]);
    bed.run(&["volume", "pin", "v0", "hot", "--range", "1MiB:128KiB"]);
    let (mut v0, mut v1) = (connect(&bed, "v0"), connect(&bed, "v1"));
    write_units(&mut v0, 0, 32, 1);
    write_units(&mut v1, 0, 16, 1);
    // The tenant has its three MiB: one more unit fails, an overwrite does not.
    assert_eq!(v1.write(16 * 128, &vec![1; UNIT]), IO_ERROR);
    assert_eq!(v0.write(40 * 128, &vec![1; UNIT]), IO_ERROR);
    assert_eq!(v0.write(0, &vec![2; UNIT]), OK);
    bed.daemon.kill_and_restart();
    let tier = bed.json(&["volume", "show", "v0"])["tier"].clone();
    let expect = serde_json::json!({"pin": "auto", "quota_bytes": 8 * MIB, "hot_min_bytes": MIB / 2,
        "hot_max_bytes": MIB, "tenant": "acme", "mapped_bytes": 2 * MIB,
        "ranges": [{"offset": MIB, "bytes": 128 << 10, "pin": "hot"}], "hot_bytes": tier["hot_bytes"]});
    assert_eq!(tier, expect);
    assert!((1..=MIB).contains(&tier["hot_bytes"].as_u64().unwrap()), "{tier}");
    let other = bed.json(&["volume", "show", "v1"]);
    assert_eq!((&other["tier"]["pin"], &other["tier"]["tenant"]), (&"hot".into(), &"acme".into()));
    assert!(bed.run(&["volume", "show", "v0"]).contains("acme"));
    let tenants = &bed.pool()["usage"]["tenants"];
    assert_eq!(
        *tenants,
        serde_json::json!([{"tenant": "acme", "mapped_bytes": 3 * MIB, "quota_bytes": 3 * MIB}])
    );
    // More quota, no limit, other pins.
    bed.run(&["pool", "quota", "pool0", "acme", "none"]);
    bed.run(&["volume", "limit", "v0", "--hot-max", "none", "--quota", "3MiB"]);
    bed.run(&["volume", "pin", "v1", "auto"]);
    v0.reconnect().unwrap();
    v1.reconnect().unwrap();
    write_units(&mut v1, 16, 16, 1);
    write_units(&mut v0, 32, 16, 1);
    assert_eq!(v0.write(48 * 128, &vec![1; UNIT]), IO_ERROR, "its own quota");
    let tier = bed.json(&["volume", "show", "v0"])["tier"].clone();
    assert!(tier.get("hot_max_bytes").is_none() && tier["hot_min_bytes"] == MIB / 2, "{tier}");
    assert_eq!(bed.json(&["volume", "show", "v1"])["tier"]["pin"], "auto");
    // What cannot be, all at once.
    let refused = bed.refused(&[
        "volume",
        "create",
        "v2",
        "--pool",
        "pool0",
        "--size",
        "1MiB",
        "--hot-max",
        "1MiB",
        "--hot-min",
        "2MiB",
        "--quota",
        "1MB",
        "--tenant",
        "A B",
    ]);
    for says in ["hot_min", "unknown unit `MB`", "not a name"] {
        assert!(refused.contains(says), "{refused} does not say {says}");
    }
    let refused =
        bed.refused(&["volume", "create", "v2", "--pool", "pool0", "--size", "1MiB", "--hot-min", "1GiB"]);
    assert!(refused.contains("cannot be kept for one volume"), "{refused}");
    assert!(
        bed.refused(&["volume", "pin", "v0", "hot", "--range", "1GiB:1MiB"]).contains("not inside volume")
    );
    assert!(bed.refused(&["volume", "pin", "v0", "warm"]).contains("warm"));
    assert_eq!(bed.pool()["usage"]["unnamed"], serde_json::json!([]));
}

/// A check finds nothing wrong with a pool at work, and names what is: as text, as JSON, and by its exit code.
#[test]
fn a_check_tells_what_is_damaged() {
    let mut bed = Bed::new("8MiB", "64MiB");
    bed.volume("v0", 16 * MIB, &[]);
    let mut blk = connect(&bed, "v0");
    write_units(&mut blk, 0, 64, 1);
    bed.run(&["volume", "clone", "v0", "c0"]);
    assert_eq!(bed.json(&["volume", "diff", "v0", "c0"]), serde_json::json!([]));
    write_units(&mut blk, 0, 8, 2);
    assert_eq!(blk.flush(), OK);
    let differing = serde_json::json!([{"offset": 0, "bytes": 8 * UNIT}]);
    assert_eq!(bed.json(&["volume", "diff", "v0", "c0"]), differing);
    assert!(bed.run(&["volume", "diff", "c0", "v0"]).contains("512KiB"));
    assert!(bed.refused(&["volume", "diff", "v0", "c1"]).contains("there is no volume `c1`"));
    let checked = bed.json(&["pool", "check", "pool0"]);
    assert_eq!(checked["findings"], serde_json::json!([]));
    assert_eq!((checked["volumes"].as_u64(), checked["mapped_bytes"].as_u64()), (Some(2), Some(8 * MIB)));
    assert_eq!(checked["used_bytes"].as_u64(), Some(4 * MIB + 8 * UNIT as u64), "{checked}");
    assert!(bed.run(&["pool", "check", "pool0"]).contains("checked 2 volumes, 8MiB mapped"));
    // The checkpoint of a clean stop stands on both tiers; one copy is spoilt, and with it one of the superblocks.
    bed.daemon.stop();
    let cold = bed.site.dir.join("cold.img");
    let file = std::fs::File::options().read(true).write(true).open(&cold).unwrap();
    let mut bytes = vec![0; 64 << 10];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let (first, second) = bytes[..2 * SUPERBLOCK_BYTES].split_at(SUPERBLOCK_BYTES);
    let block = Superblock::newest(first, second).unwrap();
    let area = block.area(block.checkpoint.id);
    file.write_all_at(&[0xa5; 512], area + 512).unwrap();
    bed.daemon = tests::daemon::Daemon::blk(&bed.site);
    let refused = bed.refused(&["pool", "check", "pool0"]);
    assert!(refused.contains("the pool `pool0`: 1 findings"), "{refused}");
    let output = bed.site.command(&["pool", "check", "pool0"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains(&format!("checkpoint {} on device 1 is damaged", block.checkpoint.id)), "{said}");
    assert_eq!(output.status.code(), Some(1));
    blk.reconnect().unwrap();
    assert_eq!(blk.read(0, UNIT), vec![2; UNIT]);
}

/// A hot device that fails under load makes the pool read-only: what is lost is named in the log and shown, the rest is
/// read, nothing says that it could be written again, and the pool opens again when the device is back.
#[test]
fn a_lost_hot_device_is_named_with_what_it_had() {
    let mut bed = Bed::new("8MiB", "64MiB");
    for name in ["safe", "v0"] {
        bed.volume(name, 8 * MIB, if name == "safe" { &["--pin", "cold"] } else { &[] });
    }
    let (mut safe, mut blk) = (connect(&bed, "safe"), connect(&bed, "v0"));
    write_units(&mut safe, 0, 8, 1);
    // The cold tier alone knows what the last checkpoint knew; a drain ends with one.
    bed.run(&["pool", "drain", "pool0", "--hot"]);
    write_units(&mut blk, 0, 8, 2);
    assert_eq!(blk.flush(), OK);
    let (hot, kept) = (bed.site.dir.join("hot.img"), bed.site.dir.join("hot.kept"));
    std::fs::copy(&hot, &kept).unwrap();
    std::fs::File::options().write(true).open(&hot).unwrap().set_len(0).unwrap();
    let read = BlkRequest { kind: READ, read_bytes: UNIT, ..Default::default() };
    assert_eq!(blk.ask(&read).status, IO_ERROR);
    let read_only = || bed.pool()["state"].get("read_only").is_some();
    assert!(holds_within(PATIENCE, read_only), "{}", bed.pool());
    assert_eq!(safe.read(0, UNIT), vec![1; UNIT], "what is elsewhere is read");
    assert_eq!(blk.write(0, &vec![3; UNIT]), IO_ERROR);
    let usage = bed.pool()["usage"].clone();
    assert_eq!(usage["lost"], serde_json::json!([{"volume": "v0", "offset": 0, "bytes": 8 * UNIT}]));
    assert_eq!(usage["lost_devices"], serde_json::json!([hot]));
    assert!(bed.run(&["pool", "show", "pool0"]).contains("v0 0..524288"));
    assert!(holds_within(PATIENCE, || bed.daemon.log().contains("these bytes of the volume cannot be read")));
    let log = bed.daemon.log();
    assert!(log.contains("0..524288") && log.contains("hot.img"), "{log}");
    for volume in ["safe", "v0"] {
        let refused = bed.refused(&["volume", "reopen", volume]);
        assert!(refused.contains("its pool `pool0` is read-only"), "{refused}");
    }
    // Without the device nothing but a degraded opening is possible; with it all is there.
    std::fs::rename(&hot, bed.site.dir.join("hot.gone")).unwrap();
    let refused = bed.refused(&["pool", "open", "pool0"]);
    assert!(refused.contains("--degraded") && refused.contains("hot.img"), "{refused}");
    assert!(bed.pool()["state"].get("failed").is_some());
    assert!(bed.run(&["pool", "open", "pool0", "--degraded"]).contains("read-only"));
    safe.reconnect().unwrap_or_else(|error| panic!("{error}: {}", bed.daemon.log()));
    assert_eq!(safe.read(0, UNIT), vec![1; UNIT]);
    std::fs::rename(&kept, &hot).unwrap();
    assert!(bed.run(&["pool", "open", "pool0"]).contains("is open"));
    blk.reconnect().unwrap();
    assert_eq!(blk.read(0, UNIT), vec![2; UNIT]);
    assert_eq!(blk.write(0, &vec![4; UNIT]), OK);
    bed.daemon.assert_alive();
}

/// Devices that are not there, or somebody else's, are refused with their names; a pool that failed opens by itself.
#[test]
fn a_pool_whose_devices_are_wrong_is_not_opened_and_tried_again() {
    let mut bed = Bed::new("8MiB", "64MiB");
    bed.volume("v0", 8 * MIB, &[]);
    let (hot1, cold1) = (bed.device("hot1", "8MiB"), bed.device("cold1", "64MiB"));
    bed.run(&["pool", "create", "pool1", "--hot", &hot1, "--cold", &cold1]);
    let mut blk = connect(&bed, "v0");
    write_units(&mut blk, 0, 8, 1);
    // In use, here and by force: nothing is changed.
    for extra in [&[][..], &["--force"]] {
        let create = ["pool", "create", "pool2", "--hot", &hot1, "--cold", &bed.device("cold2", "64KiB")];
        let refused = bed.refused(&[&create[..], extra].concat());
        assert!(refused.contains("in use by the pool `pool1`"), "{refused}");
    }
    bed.daemon.stop();
    let hot = bed.site.dir.join("hot.img");
    let (other, away) = (bed.site.dir.join("hot1.img"), bed.site.dir.join("away"));
    std::fs::rename(&hot, &away).unwrap();
    std::fs::copy(&other, &hot).unwrap();
    bed.daemon = tests::daemon::Daemon::blk(&bed.site);
    let reason = |bed: &Bed| bed.pool()["state"]["failed"]["reason"].as_str().unwrap_or_default().to_string();
    assert!(reason(&bed).contains("hot.img belongs to the pool"), "{}", bed.pool());
    assert_eq!(bed.json(&["pool", "show", "pool1"])["state"], "open");
    // All is back: nobody has to say a word.
    std::fs::rename(&away, &hot).unwrap();
    assert!(holds_within(PATIENCE, || bed.pool()["state"] == "open"), "{}", bed.pool());
    blk.reconnect().unwrap();
    assert_eq!(blk.read(0, UNIT), vec![1; UNIT]);
}

/// A volume in a pool grows under its guest, which is told; it does not shrink.
#[test]
fn a_tiered_volume_grows_and_does_not_shrink() {
    let bed = Bed::new("8MiB", "64MiB");
    bed.volume("v0", 8 * MIB, &[]);
    let mut blk = connect(&bed, "v0");
    write_units(&mut blk, 0, 8, 1);
    let channel = blk.frontend().open_request_channel().unwrap();
    bed.run(&["volume", "resize", "v0", "16MiB"]);
    let message = channel.reply().unwrap();
    assert_eq!((message.request, message.payload.len()), (2, 0), "CONFIG_CHANGE_MSG");
    assert_eq!(blk.capacity().unwrap(), 16 * MIB / 512);
    write_units(&mut blk, 200, 8, 2);
    let refused = bed.refused(&["volume", "resize", "v0", "4MiB"]);
    assert!(refused.contains("size_bytes"), "{refused}");
    assert_eq!(blk.capacity().unwrap(), 16 * MIB / 512);
    assert_eq!(blk.read(200 * 128, UNIT), vec![2; UNIT]);
}

/// What is counted is there and moves.
#[test]
fn pools_and_their_volumes_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let site = tests::binary::site(dir.path());
    let daemon = site.blk().unwrap();
    let device = |name: &str, size: &str| format!("{}:{size}", site.dir.join(name).display());
    site.sluice(&[
        "pool",
        "create",
        "p",
        "--hot",
        &device("hot", "8MiB"),
        "--cold",
        &device("cold", "64MiB"),
    ])
    .unwrap();
    site.sluice(&["volume", "create", "v0", "--pool", "p", "--size", "32MiB"]).unwrap();
    let mut blk = BlkFrontend::connect(site.socket("v0"), BlkOptions::default()).unwrap();
    write_units(&mut blk, 0, 256, 1);
    for unit in 0..256 {
        blk.read(unit * 128, UNIT);
    }
    assert_eq!(blk.flush(), OK);
    let value =
        |name: &str, labels: &[(&str, &str)]| daemon.metrics().unwrap().sum(name, labels).unwrap_or_default();
    for (name, labels) in [
        ("sluice_tier_hits_total", &[("op", "read"), ("tier", "hot")][..]),
        ("sluice_tier_misses_total", &[("op", "read"), ("tier", "cold")]),
        ("sluice_tier_promotions_total", &[]),
        ("sluice_tier_demotions_total", &[]),
        ("sluice_tier_dirty_bytes", &[]),
        ("sluice_tier_dirty_age_seconds", &[]),
        ("sluice_tier_log_blocks", &[]),
        ("sluice_tier_log_blocks_max", &[]),
        ("sluice_tier_journal_write_seconds_count", &[]),
        ("sluice_tier_flush_seconds_count", &[]),
        ("sluice_tier_migration_bytes_per_second", &[]),
        ("sluice_tier_fill_percent", &[]),
        ("sluice_tier_full_in_seconds", &[]),
        ("sluice_tier_volume_mapped_bytes", &[("volume", "v0")]),
        ("sluice_tier_volume_hot_bytes", &[("volume", "v0")]),
        ("sluice_tier_volume_hot_percent", &[("volume", "v0")]),
    ] {
        assert!(holds_within(PATIENCE, || value(name, labels) > 0.0), "{name} is {}", value(name, labels));
    }
    // The volumes are looked at every now and then only.
    let mapped = || value("sluice_tier_volume_mapped_bytes", &[]);
    assert!(holds_within(PATIENCE, || mapped() == (16 * MIB) as f64), "{} bytes are mapped", mapped());
    let aborted = daemon.metrics().unwrap().text().contains("sluice_tier_moves_aborted_total");
    assert!(aborted, "aborted moves are counted");
    // Nothing happens any more: nothing moves, nothing fills.
    let quiet = || value("sluice_tier_migration_bytes_per_second", &[]) < 1e6;
    assert!(holds_within(PATIENCE, quiet));
}

/// A cold device that fails: what is hot is read, the rest is named.
#[test]
fn a_lost_cold_device_is_named_with_what_it_had() {
    let bed = Bed::new("8MiB", "64MiB");
    bed.volume("warm", 8 * MIB, &[]);
    bed.volume("v0", 8 * MIB, &["--pin", "cold"]);
    let (mut warm, mut blk) = (connect(&bed, "warm"), connect(&bed, "v0"));
    write_units(&mut warm, 0, 8, 1);
    write_units(&mut blk, 0, 8, 2);
    assert_eq!(blk.flush(), OK);
    let cold = bed.site.dir.join("cold.img");
    std::fs::File::options().write(true).open(&cold).unwrap().set_len(0).unwrap();
    let read = BlkRequest { kind: READ, read_bytes: UNIT, ..Default::default() };
    assert_eq!(blk.ask(&read).status, IO_ERROR);
    assert!(holds_within(PATIENCE, || bed.pool()["state"].get("read_only").is_some()), "{}", bed.pool());
    assert_eq!(warm.read(0, UNIT), vec![1; UNIT]);
    let usage = bed.pool()["usage"].clone();
    assert_eq!(usage["lost"], serde_json::json!([{"volume": "v0", "offset": 0, "bytes": 8 * UNIT}]));
    assert_eq!(usage["lost_devices"], serde_json::json!([cold]));
    assert!(holds_within(PATIENCE, || bed.daemon.log().contains("these bytes of the volume cannot be read")));
}

/// What a crash in the middle of making a volume leaves is deleted, but never anybody's data.
#[test]
fn volumes_without_a_name_are_deleted_if_nothing_is_lost_with_them() {
    let mut bed = Bed::new("8MiB", "64MiB");
    bed.volume("v0", 8 * MIB, &[]);
    write_units(&mut connect(&bed, "v0"), 0, 8, 1);
    bed.volume("empty", 8 * MIB, &[]);
    bed.volume("data", 8 * MIB, &[]);
    write_units(&mut connect(&bed, "data"), 0, 1, 2);
    bed.run(&["volume", "clone", "v0", "same"]);
    let id = |name: &str| bed.json(&["volume", "show", name])["backing"]["pool"]["id"].clone();
    let data = id("data");
    bed.daemon.stop();
    let list = bed.site.dir.join("state/blk/volumes.json");
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    kept["volumes"].as_array_mut().unwrap().retain(|volume| volume["name"] == "v0");
    std::fs::write(&list, kept.to_string()).unwrap();
    bed.daemon = tests::daemon::Daemon::blk(&bed.site);
    let pool = bed.pool();
    assert_eq!(pool["usage"]["unnamed"], serde_json::json!([data]), "{pool}");
    assert_eq!(bed.json(&["pool", "check", "pool0"])["findings"], serde_json::json!([]));
    let mut blk = connect(&bed, "v0");
    assert_eq!(blk.read(7 * 128, UNIT), vec![1; UNIT]);
    // It gets a name again; then it can be used, or deleted.
    let name =
        |id: &str| ["volume", "create", "found", "--pool", "pool0", "--unnamed", id].map(str::to_string);
    let refused = bed.refused(&name("999").each_ref().map(String::as_str));
    assert!(refused.contains("no volume 999 without a name"), "{refused}");
    bed.run(&name(&data.to_string()).each_ref().map(String::as_str));
    assert_eq!(connect(&bed, "found").read(0, UNIT), vec![2; UNIT]);
    let refused =
        bed.refused(&["volume", "create", "twice", "--pool", "pool0", "--unnamed", &data.to_string()]);
    assert!(refused.contains("without a name"), "{refused}");
    bed.run(&["volume", "delete", "found"]);
    assert_eq!(bed.pool()["usage"]["unnamed"], serde_json::json!([]));
}
