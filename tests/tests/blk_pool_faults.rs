//! Pools whose devices are wrong, or others'.

use tests::blk_frontend::{BlkFrontend, BlkOptions, BlkRequest, OK, WRITE};
use tests::block_devices::LoopDevice;
use tests::daemon::Daemon;
use tests::pool_bed::{Bed, MIB};

/// A unit of the tiered store.
const UNIT: usize = 64 << 10;

fn connect(bed: &Bed, volume: &str) -> BlkFrontend {
    BlkFrontend::connect(bed.site.socket(volume), BlkOptions::default()).unwrap()
}

/// What another daemon uses is left alone, whatever it is asked for.
#[test]
fn a_device_of_another_daemon_is_refused() {
    let bed = Bed::new("8MiB", "64MiB");
    bed.volume("v0", 8 * MIB, &[]);
    let mut blk = connect(&bed, "v0");
    assert_eq!(blk.write(0, &[7; UNIT]), OK);
    let other = Bed::without_pool();
    let (hot, cold) = (bed.device("hot", "8MiB"), other.device("cold", "64MiB"));
    for extra in [&[][..], &["--force"]] {
        let create = ["pool", "create", "pool1", "--hot", &hot, "--cold", &cold];
        let refused = other.refused(&[&create[..], extra].concat());
        assert!(refused.contains("hot.img") && refused.contains("in use"), "{refused}");
    }
    assert!(!other.site.dir.join("cold.img").exists(), "the file made for it is gone");
    let file = bed.site.dir.join("hot.img").display().to_string();
    let refused = other.refused(&["volume", "create", "v1", "--file", &file]);
    assert!(refused.contains("in use"), "{refused}");
    other.make_pool("8MiB", "16MiB", &[]);
    let refused = other.refused(&["volume", "create", "v1", "--pool", "pool0", "--adopt", &file]);
    assert!(refused.contains("in use"), "{refused}");
    assert_eq!(blk.read(0, UNIT), vec![7; UNIT]);
}

/// More hot than cold is allowed, and said to be of no use.
#[test]
fn a_hot_tier_larger_than_the_cold_one_is_warned_of() {
    let bed = Bed::without_pool();
    let (hot, cold) = (bed.device("hot", "64MiB"), bed.device("cold", "16MiB"));
    let create = ["pool", "create", "pool0", "--hot", &hot, "--cold", &cold];
    let output = bed.site.command(&create).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("the hot tier is larger than the cold one"), "{said}");
    assert!(bed.pool()["warnings"][0].as_str().is_some_and(|text| text.contains("never used")));
    bed.volume("v0", 8 * MIB, &[]);
    assert_eq!(connect(&bed, "v0").write(0, &[7; UNIT]), OK);
}

/// All devices that are wrong are told at once.
#[test]
fn all_devices_that_are_wrong_are_told_at_once() {
    let mut bed = Bed::new("8MiB", "64MiB");
    let hot = bed.device("hot1", "8MiB");
    let [cold, more] = ["cold1", "cold2"].map(|name| bed.device(name, "64MiB"));
    bed.run(&["pool", "create", "pool1", "--hot", &hot, "--cold", &cold, "--cold", &more]);
    bed.daemon.stop();
    let path = |name: &str| bed.site.dir.join(name);
    for name in ["hot1.img", "cold1.img"] {
        std::fs::copy(path(if name == "hot1.img" { "hot.img" } else { "cold.img" }), path(name)).unwrap();
    }
    std::fs::remove_file(path("cold2.img")).unwrap();
    bed.daemon = Daemon::blk(&bed.site);
    let refused = bed.refused(&["pool", "open", "pool1"]);
    for says in ["hot1.img belongs to the pool", "cold1.img belongs to the pool", "cold2.img"] {
        assert!(refused.contains(says), "{refused} does not say {says}");
    }
    assert_eq!(bed.pool()["state"], "open");
}

/// Devices with blocks of 4096 bytes: their volumes have them, too.
#[test]
fn devices_with_large_blocks_make_volumes_with_large_blocks() {
    let mut bed = Bed::without_pool();
    let device = |name: &str, bytes: u64| {
        let file = bed.site.dir.join(name);
        std::fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        LoopDevice::new(&file, 4096)
    };
    let (Some(hot), Some(cold)) = (device("hot.raw", 8 * MIB), device("cold.raw", 64 * MIB)) else { return };
    bed.run(&["pool", "create", "pool0", "--hot", &hot.path(), "--cold", &cold.path()]);
    let refused =
        bed.refused(&["volume", "create", "v0", "--pool", "pool0", "--size", "8MiB", "--block-size", "512"]);
    assert!(refused.contains("blocks of 4096 bytes"), "{refused}");
    bed.volume("v0", 16 * MIB, &[]);
    assert_eq!(bed.json(&["volume", "show", "v0"])["block_bytes"], 4096);
    let mut blk = connect(&bed, "v0");
    let value = |unit: u64| vec![unit as u8 + 1; UNIT];
    for unit in 0..250 {
        assert_eq!(blk.write(unit * 128, &value(unit)), OK);
    }
    assert_eq!(blk.write(8, &[0xee; 4096]), OK);
    assert_eq!(blk.flush(), OK);
    let part = BlkRequest { kind: WRITE, sector: 1, out: &[1; 512], ..Default::default() };
    assert_ne!(blk.ask(&part).status, OK, "not a whole block");
    bed.daemon.kill_and_restart();
    blk.reconnect().unwrap();
    for unit in 1..250 {
        assert_eq!(blk.read(unit * 128, UNIT), value(unit));
    }
    assert_eq!(blk.read(8, 4096), [0xee; 4096]);
    assert_eq!(bed.json(&["pool", "check", "pool0"])["findings"], serde_json::json!([]));
    bed.daemon.stop();
}
