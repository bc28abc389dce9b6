//! Images of QEMU become golden images in a pool, and volumes become files again, as QEMU's own tools judge it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::blk_frontend::{BlkFrontend, BlkOptions, DISCARD, IO_ERROR, OK};
use tests::block_devices::LoopDevice;
use tests::disk_model::SECTOR;
use tests::frontend::PATIENCE;
use tests::holds_within;
use tests::pool_bed::{Bed, MIB};

fn qemu(program: &str, dir: &Path, args: &[&str]) -> String {
    let output = Command::new(program).args(args).current_dir(dir).output();
    let output = output.unwrap_or_else(|error| panic!("{program} (package qemu-utils): {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn qemu_img(dir: &Path, args: &[&str]) -> String {
    qemu("qemu-img", dir, args)
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

/// Three layers: a raw file with an odd end, compressed clusters, and on top writes and zeroes over both.
fn three_layers(dir: &Path) {
    let mut base = vec![0u8; 9 * MIB as usize + 512];
    base[..MIB as usize].iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 509) as u8);
    base[5 * MIB as usize + 100..][..300].fill(0x77);
    let end = base.len();
    base[end - 5..].fill(0x99);
    std::fs::write(dir.join("base.raw"), &base).unwrap();
    qemu_img(dir, &["convert", "-c", "-O", "qcow2", "-o", "compat=0.10", "base.raw", "mid.qcow2"]);
    qemu_img(dir, &["create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2", "64M"]);
    let writes =
        ["write -P 0x11 64k 200k", "write -z 128k 64k", "write -P 0x22 40M 1M", "write -P 0x33 63M 1M"];
    for write in writes {
        qemu("qemu-io", dir, &["-f", "qcow2", "-c", write, "top.qcow2"]);
    }
}

fn pool_usage(bed: &Bed, key: &str) -> u64 {
    bed.site.sluice_json(&["pool", "show", "pool0"]).unwrap()["usage"][key].as_u64().unwrap()
}

fn volume_names(bed: &Bed) -> Vec<String> {
    let list = bed.site.sluice_json(&["volume", "list"]).unwrap();
    list.as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap().to_string()).collect()
}

#[test]
fn a_chain_with_compressed_clusters_is_imported_cloned_and_exported() {
    let mut bed = Bed::new("16MiB", "256MiB");
    let dir: PathBuf = bed.site.dir.clone();
    three_layers(&dir);
    let said = bed.run(&["image", "import", "gold", "--pool", "pool0", "--from", &path(&dir, "top.qcow2")]);
    assert!(said.contains("gold") && said.contains("done"), "{said}");
    let gold = bed.site.sluice_json(&["volume", "show", "gold"]).unwrap();
    assert_eq!((&gold["read_only"], &gold["size_bytes"]), (&Value::Bool(true), &Value::from(64 * MIB)));
    // About 2.5 MiB of 64 hold anything, and none of it is hot.
    let used = pool_usage(&bed, "cold_bytes") - pool_usage(&bed, "cold_free_bytes");
    assert!(used > 2 * MIB && used < 5 * MIB, "{used} bytes in use");
    assert_eq!(pool_usage(&bed, "hot_bytes"), pool_usage(&bed, "hot_free_bytes"));
    for (name, format) in [("out.qcow2", "qcow2"), ("out.raw", "raw")] {
        bed.run(&["volume", "export", "gold", "--to", &path(&dir, name)]);
        qemu_img(&dir, &["compare", "-f", "qcow2", "-F", format, "top.qcow2", name]);
    }
    assert!(qemu_img(&dir, &["check", "-f", "qcow2", "out.qcow2"]).contains("No errors"));
    let raw = std::fs::metadata(dir.join("out.raw")).unwrap();
    let on_disk = std::os::unix::fs::MetadataExt::blocks(&raw) * 512;
    assert!(on_disk < 5 * MIB, "{on_disk} bytes of the raw file are on disk");
    // The image itself is not written; a clone is, and goes its own way.
    let mut image = BlkFrontend::connect(bed.site.socket("gold"), BlkOptions::default()).unwrap();
    assert_eq!(image.write(0, &[1; SECTOR]), IO_ERROR);
    let refused = bed.refused(&["volume", "resize", "gold", "128MiB"]);
    assert!(refused.contains("read-only"), "{refused}");
    bed.run(&["volume", "clone", "gold", "c1"]);
    let mut clone = BlkFrontend::connect(bed.site.socket("c1"), BlkOptions::default()).unwrap();
    let sector = 40 * MIB / SECTOR as u64;
    assert_eq!(clone.read(sector, SECTOR), [0x22; SECTOR]);
    assert_eq!(clone.write(sector, &[0x44; SECTOR]), OK);
    // An export shows the clone as it is, while it is in use, and again over the same file when told so.
    bed.run(&["volume", "export", "c1", "--to", &path(&dir, "c1.qcow2")]);
    let refused = bed.refused(&["volume", "export", "c1", "--to", &path(&dir, "c1.qcow2")]);
    assert!(refused.contains("there already") && refused.contains("--force"), "{refused}");
    bed.run(&["volume", "export", "c1", "--to", &path(&dir, "c1.qcow2"), "--force"]);
    qemu("qemu-io", &dir, &["-f", "qcow2", "-c", "write -P 0x44 40M 512", "top.qcow2"]);
    qemu_img(&dir, &["compare", "-f", "qcow2", "-F", "qcow2", "top.qcow2", "c1.qcow2"]);
    assert_eq!(image.read(sector, SECTOR), [0x22; SECTOR]);
    // Snapshots of exports and volumes on the way are gone.
    let pool = bed.site.sluice_json(&["pool", "show", "pool0"]).unwrap();
    assert_eq!(pool["usage"]["unnamed"].as_array().map_or(0, Vec::len), 0, "{pool}");
    assert_eq!(volume_names(&bed), ["c1", "gold"]);
    bed.daemon.assert_alive();
}

#[test]
fn raw_images_keep_their_holes_and_their_odd_end() {
    let bed = Bed::new("16MiB", "256MiB");
    let dir = bed.site.dir.clone();
    let file = std::fs::File::create(dir.join("disk.raw")).unwrap();
    file.set_len(100 * MIB + 100).unwrap();
    let data: Vec<u8> = (0..3 * MIB as usize / 2).map(|at| (at / 512 + 1) as u8).collect();
    std::os::unix::fs::FileExt::write_all_at(&file, &data, 33 * MIB + 4096).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[5; 100], 100 * MIB).unwrap();
    bed.run(&["image", "import", "gold", "--pool", "pool0", "--from", &path(&dir, "disk.raw")]);
    let used = pool_usage(&bed, "cold_bytes") - pool_usage(&bed, "cold_free_bytes");
    assert!(used < 2 * MIB, "{used} bytes in use");
    bed.run(&["volume", "export", "gold", "--to", &path(&dir, "out.img")]);
    let (before, after) =
        (std::fs::read(dir.join("disk.raw")).unwrap(), std::fs::read(dir.join("out.img")).unwrap());
    assert_eq!(after.len() as u64, 100 * MIB + 512, "whole sectors");
    assert!(after.starts_with(&before) && after[before.len()..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_cannot_be_imported_is_refused_at_once_and_leaves_nothing() {
    let bed = Bed::new("16MiB", "32MiB");
    let dir = bed.site.dir.clone();
    let free = pool_usage(&bed, "cold_free_bytes");
    let import = |from: &str, options: &[&str]| {
        bed.refused(&[&["image", "import", "gold", "--pool", "pool0", "--from", from], options].concat())
    };
    std::fs::create_dir_all(dir.join("elsewhere")).unwrap();
    std::fs::create_dir_all(dir.join("images")).unwrap();
    let (images, secret) = (dir.join("images"), path(&dir, "elsewhere/secret.raw"));
    std::fs::write(&secret, vec![0x5e; MIB as usize]).unwrap();
    qemu_img(&images, &["create", "-q", "-f", "qcow2", "-b", &secret, "-F", "raw", "thief.qcow2"]);
    qemu_img(
        &images,
        &["create", "-q", "-f", "qcow2", "-u", "-b", "nbd://example.org/x", "-F", "raw", "net.qcow2", "1M"],
    );
    qemu_img(
        &images,
        &["create", "-q", "-f", "qcow2", "-u", "-b", "any.raw", "-F", "raw", "any.qcow2", "1M"],
    );
    // Without the header extension that tells the backing file's format.
    let mut any = std::fs::read(images.join("any.qcow2")).unwrap();
    let at = any.windows(4).position(|bytes| bytes == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    any[at] = 0x12;
    std::fs::write(images.join("any.qcow2"), any).unwrap();
    let outside = format!("data_file={secret},data_file_raw=on");
    std::fs::copy(&secret, dir.join("elsewhere/data.raw")).unwrap();
    qemu_img(
        &images,
        &["create", "-q", "-f", "qcow2", "-o", &outside.replace("secret", "data"), "data.qcow2", "1M"],
    );
    std::os::unix::fs::symlink(&secret, images.join("inside.raw")).unwrap();
    qemu_img(&images, &["create", "-q", "-f", "qcow2", "-b", "inside.raw", "-F", "raw", "link.qcow2"]);
    std::fs::copy(images.join("thief.qcow2"), images.join("guest.img")).unwrap();
    std::fs::write(images.join("short.qcow2"), b"QFI\xfb\0\0\0\x03").unwrap();
    std::fs::write(images.join("other.img"), b"KDMV12345678").unwrap();
    std::fs::write(images.join("what.bin"), b"12345678").unwrap();
    let file = std::fs::File::create(images.join("big.raw")).unwrap();
    (0..40).for_each(|at| {
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; MIB as usize], at * MIB).unwrap()
    });
    let cases: [(&str, &[&str], &[&str]); 12] = [
        ("none.qcow2", &[], &["cannot find", "No such file"]),
        ("thief.qcow2", &[], &["secret.raw", "outside", "--backing-dir"]),
        ("link.qcow2", &[], &["secret.raw", "outside", "--backing-dir"]),
        ("guest.img", &[], &["begins like qcow2", "--format"]),
        ("guest.img", &["--format", "qcow2"], &["outside", "--backing-dir"]),
        ("net.qcow2", &[], &["no local file"]),
        ("any.qcow2", &[], &["does not say of what format"]),
        ("data.qcow2", &[], &["in another file"]),
        ("short.qcow2", &[], &["too short"]),
        ("other.img", &[], &["another program"]),
        ("what.bin", &[], &["--format raw"]),
        ("big.raw", &[], &["40MiB of data", "free", "extend the pool"]),
    ];
    for (name, options, expected) in cases {
        let said = import(&path(&images, name), options);
        expected.iter().for_each(|text| assert!(said.contains(text), "{name}: no `{text}` in: {said}"));
    }
    bed.run(&["volume", "create", "taken", "--pool", "pool0", "--size", "1MiB"]);
    let said = bed.refused(&["image", "import", "taken", "--pool", "pool0", "--from", &secret]);
    assert!(said.contains("`taken` already"), "{said}");
    let said = bed.refused(&["image", "import", "gold", "--pool", "pool1", "--from", &secret]);
    assert!(said.contains("no pool `pool1`"), "{said}");
    let said = bed.refused(&["volume", "export", "taken", "--to", &path(&dir, "nowhere/out.raw")]);
    assert!(said.contains("nowhere"), "{said}");
    let said = bed.refused(&["volume", "export", "taken", "--to", &path(&dir, "out.vmdk")]);
    assert!(said.contains(".qcow2"), "{said}");
    assert_eq!(volume_names(&bed), ["taken"]);
    assert_eq!(pool_usage(&bed, "cold_free_bytes"), free);
    // What was refused for its place is taken when the place is allowed.
    let allowed = path(&dir, "elsewhere");
    bed.run(&[
        "image",
        "import",
        "gold",
        "--pool",
        "pool0",
        "--from",
        &path(&images, "thief.qcow2"),
        "--backing-dir",
        &allowed,
    ]);
    bed.run(&["volume", "export", "gold", "--to", &path(&dir, "out.raw")]);
    assert!(std::fs::read(&secret).unwrap() == std::fs::read(dir.join("out.raw")).unwrap());
    let left: Vec<_> =
        std::fs::read_dir(bed.site.run_dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("nbd-")), "{left:?}");
}

/// A daemon that is killed half way: no image, no space, no half file.
#[test]
fn an_import_or_export_that_is_killed_leaves_nothing() {
    let mut bed = Bed::new("16MiB", "512MiB");
    let dir = bed.site.dir.clone();
    let free = pool_usage(&bed, "cold_free_bytes");
    let bytes: Vec<u8> = (0..200 * MIB as usize).map(|at| (at >> 9) as u8 | 1).collect();
    std::fs::write(dir.join("disk.raw"), &bytes).unwrap();
    bed.run(&[
        "image",
        "import",
        "gold",
        "--pool",
        "pool0",
        "--from",
        &path(&dir, "disk.raw"),
        "--background",
    ]);
    assert!(!volume_names(&bed).contains(&"gold".to_string()), "it has no name before it is whole");
    let said = bed.refused(&["volume", "create", "gold", "--pool", "pool0", "--size", "1MiB"]);
    assert!(said.contains("is being made"), "{said}");
    let under_way = |bed: &Bed| pool_usage(bed, "cold_free_bytes") < free;
    assert!(holds_within(PATIENCE, || under_way(&bed)));
    bed.daemon.kill_and_restart();
    assert_eq!(volume_names(&bed), Vec::<String>::new());
    assert!(holds_within(PATIENCE, || pool_usage(&bed, "cold_free_bytes") == free));
    // The same again, called off by the operator; then it goes through.
    let import = ["image", "import", "gold", "--pool", "pool0", "--from", &path(&dir, "disk.raw")];
    let job = bed.site.sluice_json(&[&import[..], &["--background"]].concat()).unwrap();
    bed.run(&["job", "cancel", &job["id"].to_string()]);
    assert!(holds_within(PATIENCE, || pool_usage(&bed, "cold_free_bytes") == free));
    assert_eq!(volume_names(&bed), Vec::<String>::new());
    bed.run(&import);
    assert_eq!(volume_names(&bed), ["gold"]);
    bed.run(&["volume", "export", "gold", "--to", &path(&dir, "out.raw"), "--background"]);
    bed.daemon.kill_and_restart();
    assert!(!dir.join("out.raw").exists());
    let pool = bed.site.sluice_json(&["pool", "show", "pool0"]).unwrap();
    assert_eq!(pool["usage"]["unnamed"].as_array().map_or(0, Vec::len), 0, "{pool}");
    bed.run(&["volume", "export", "gold", "--to", &path(&dir, "out.raw")]);
    assert!(std::fs::read(dir.join("out.raw")).unwrap() == bytes);
}

/// A raw file becomes a volume where it is, and is the image of that volume again after a drain.
#[test]
fn a_raw_file_is_adopted_where_it_is() {
    let mut bed = Bed::new("16MiB", "64MiB");
    let dir = bed.site.dir.clone();
    let image = path(&dir, "old.raw");
    let mut bytes: Vec<u8> = (0..9 * MIB as usize + 1536).map(|at| (at / 512 * 7) as u8).collect();
    // Bytes at its beginning are a guest's: they may look like a part of a pool, and nobody believes them.
    std::fs::write(&image, &bytes).unwrap();
    let create = ["volume", "create", "v1", "--pool", "pool0", "--adopt"];
    let refused = |from: &str| bed.refused(&[&create[..], &[from]].concat());
    assert!(refused(&path(&dir, "none.raw")).contains("No such file"));
    assert!(refused(&path(&dir, "cold.img")).contains("belongs to a pool"));
    std::fs::write(path(&dir, "odd.raw"), [1; 700]).unwrap();
    assert!(refused(&path(&dir, "odd.raw")).contains("whole sectors"));
    assert_eq!(std::fs::metadata(path(&dir, "odd.raw")).unwrap().len(), 700);
    bed.run(&[&create[..], &[&image]].concat());
    let shown = bed.site.sluice_json(&["volume", "show", "v1"]).unwrap();
    assert_eq!(shown["size_bytes"], Value::from(bytes.len()));
    let refused = bed.refused(&["volume", "create", "v2", "--pool", "pool0", "--adopt", &image]);
    assert!(refused.contains("belongs to a pool"), "{refused}");
    let mut blk = BlkFrontend::connect(bed.site.socket("v1"), BlkOptions::default()).unwrap();
    let last = bytes.len() / SECTOR - 1;
    for sector in [0, 1000, last] {
        assert_eq!(blk.read(sector as u64, SECTOR), bytes[sector * SECTOR..][..SECTOR]);
    }
    // A superblock of the pool itself, as a guest could have read it somewhere.
    let block = std::fs::read(path(&dir, "cold.img")).unwrap()[..8192].to_vec();
    for (sector, with) in [(0, block), (1000, vec![0x42; 4096])] {
        assert_eq!(blk.write(sector as u64, &with), OK);
        bytes[sector * SECTOR..][..with.len()].copy_from_slice(&with);
    }
    assert_eq!(blk.flush(), OK);
    bed.daemon.kill_and_restart();
    blk.reconnect().unwrap();
    assert_eq!(blk.read(1000, 4096), bytes[1000 * SECTOR..][..4096]);
    bed.run(&["pool", "drain", "pool0", "--hot"]);
    drop(blk);
    bed.daemon.kill_and_restart();
    let mut blk = BlkFrontend::connect(bed.site.socket("v1"), BlkOptions::default()).unwrap();
    assert_eq!(blk.read(0, 8192), bytes[..8192]);
    assert!(std::fs::read(&image).unwrap()[..bytes.len()] == bytes[..], "it is the image of its volume");
}

/// An adopted file is the volume's present content when that is deleted, and its owner's alone when the pool is.
#[test]
fn an_adopted_file_is_left_as_its_volume_was() {
    let mut bed = Bed::new("16MiB", "64MiB");
    let dir = bed.site.dir.clone();
    let image = path(&dir, "old.raw");
    let mut bytes: Vec<u8> = (0..6 * MIB as usize + 512).map(|at| (at / 512 * 3) as u8 | 1).collect();
    std::fs::write(&image, &bytes).unwrap();
    let adopt = ["volume", "create", "v1", "--pool", "pool0", "--adopt", &image];
    bed.run(&adopt);
    let mut blk = BlkFrontend::connect(bed.site.socket("v1"), BlkOptions::default()).unwrap();
    assert_eq!(blk.write(256, &[0x42; 4096]), OK);
    bytes[256 * SECTOR..][..4096].fill(0x42);
    let free = pool_usage(&bed, "cold_free_bytes");
    bed.run(&["volume", "clone", "v1", "c1"]);
    let mut clone = BlkFrontend::connect(bed.site.socket("c1"), BlkOptions::default()).unwrap();
    assert_eq!(clone.write(512, &[0x43; 4096]), OK);
    assert_eq!(clone.read(256, 4096), [0x42; 4096]);
    let refused = bed.refused(&["volume", "delete", "v1"]);
    assert!(refused.contains("shared with copies") && refused.contains("--force"), "{refused}");
    assert_eq!(blk.read(256, 4096), [0x42; 4096], "its guest has not noticed");
    drop(clone);
    bed.run(&["volume", "delete", "c1"]);
    assert!(
        holds_within(PATIENCE, || pool_usage(&bed, "cold_free_bytes") == free),
        "nothing is shared any more"
    );
    assert_eq!(blk.ranges(DISCARD, &[(1024, 128, 0)]), OK);
    bytes[1024 * SECTOR..][..128 * SECTOR].fill(0);
    assert_eq!(blk.write(256, &[0x44; 4096]), OK);
    bytes[256 * SECTOR..][..4096].fill(0x44);
    assert!(bed.refused(&["volume", "delete", "v1"]).contains("pool drain pool0 --hot"));
    bed.daemon.kill_and_restart();
    blk.reconnect().unwrap();
    assert_eq!(blk.read(256, 4096), [0x44; 4096]);
    drop(blk);
    let deleted = || {
        bed.run(&["pool", "drain", "pool0", "--hot"]);
        bed.site.sluice(&["volume", "delete", "v1"]).is_ok()
    };
    assert!(holds_within(PATIENCE, deleted), "{}", bed.refused(&["volume", "delete", "v1"]));
    assert!(std::fs::read(&image).unwrap()[..bytes.len()] == bytes[..]);
    // What was the volume's is not given back to the file's system by the next checkpoints either.
    bed.run(&["pool", "drain", "pool0", "--hot"]);
    bed.daemon.kill_and_restart();
    bed.run(&["pool", "drain", "pool0", "--hot"]);
    assert!(std::fs::read(&image).unwrap()[..bytes.len()] == bytes[..]);
    let refused = bed.refused(&adopt);
    assert!(refused.contains("belongs to a pool"), "{refused}");
    // Nobody else takes it for an empty one, whether the daemon knows it or not.
    let other = Bed::without_pool();
    let (hot, cold) = (other.device("hot", "8MiB"), format!("{image}:4MiB"));
    let create = ["pool", "create", "pool1", "--hot", &hot, "--cold", &cold];
    assert!(other.refused(&create).contains("in use"));
    assert!(bed.refused(&create).contains("in use by the pool `pool0`"));
    bed.daemon.stop();
    assert!(other.refused(&create).contains("belongs to the pool"));
    bed.daemon = tests::daemon::Daemon::blk(&bed.site);
    bed.run(&["pool", "delete", "pool0"]);
    assert!(std::fs::read(&image).unwrap() == bytes, "as long as it was");
}

/// A device is adopted where there is room behind its data, and nobody's data are overwritten for it.
#[test]
fn a_block_device_is_adopted_with_room_behind_its_data() {
    let mut bed = Bed::new("16MiB", "64MiB");
    let file = bed.site.dir.join("lv.raw");
    let bytes: Vec<u8> = (0..8 * MIB as usize).map(|at| (at / 512 * 3) as u8 | 1).collect();
    std::fs::write(&file, &bytes).unwrap();
    let Some(device) = LoopDevice::new(&file, 512) else { return };
    let create = ["volume", "create", "v1", "--pool", "pool0", "--adopt", &device.path()];
    let refused = bed.refused(&create);
    assert!(refused.contains("the pool needs 8396800 for 8388608 of data"), "{refused}");
    let refused = bed.refused(&[&create[..], &["--size", "4MiB"]].concat());
    assert!(refused.contains("has data from byte 4194304 on"), "{refused}");
    drop(device);
    assert!(std::fs::read(&file).unwrap() == bytes);
    std::fs::File::options().write(true).open(&file).unwrap().set_len(9 * MIB).unwrap();
    let device = LoopDevice::new(&file, 512).unwrap();
    bed.run(&["volume", "create", "v1", "--pool", "pool0", "--adopt", &device.path(), "--size", "8MiB"]);
    let mut blk = BlkFrontend::connect(bed.site.socket("v1"), BlkOptions::default()).unwrap();
    assert_eq!(blk.capacity().unwrap(), 8 * MIB / 512);
    assert_eq!(blk.write(0, &[0x42; 4096]), OK);
    bed.daemon.kill_and_restart();
    blk.reconnect().unwrap();
    assert_eq!(blk.read(0, 4096), [0x42; 4096]);
    for sector in (8..8 * MIB / 512).step_by(1000) {
        assert_eq!(blk.read(sector, SECTOR), bytes[sector as usize * SECTOR..][..SECTOR]);
    }
    bed.daemon.stop();
}
