//! The storage daemon in this process, a driver at its sockets.

use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use serde_json::{Value, json};
use telemetry::Problem;
use tests::blk_frontend::*;
use tests::block_devices::{LoopDevice, RamDisk, run};
use tests::frontend::{F_PROTOCOL, F_VERSION_1, PATIENCE, Request, pair};
use vhost_blk::config::DaemonConfig;
use vhost_blk::daemon::Daemon;
use vhost_blk::spec::{VolumeState, VolumeView, read_create};

const MIB: u64 = 1 << 20;

/// A daemon in a directory of its own.
struct Bed {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    daemon: Option<Daemon>,
    cores: Vec<usize>,
}

impl Bed {
    fn new() -> Bed {
        Bed::on_cores(vec![])
    }

    fn on_cores(cores: Vec<usize>) -> Bed {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut bed = Bed { dir: tempfile::tempdir().unwrap(), runtime, daemon: None, cores };
        bed.start();
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn socket(&self, volume: &str) -> PathBuf {
        self.path("run").join(format!("{volume}.sock"))
    }

    fn start(&mut self) {
        let config = DaemonConfig {
            state_dir: self.path("state"),
            run_dir: self.path("run"),
            metrics: None,
            cores: self.cores.clone(),
            spin_us: 50,
        };
        self.daemon = Some(self.runtime.block_on(Daemon::start(config)).expect("the daemon starts"));
    }

    fn stop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            self.runtime.block_on(daemon.stop());
        }
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("a running daemon")
    }

    fn create(&self, body: Value) -> Result<VolumeView, Problem> {
        self.daemon().volumes().create(read_create(body)?)
    }

    /// A volume on a file of its own.
    fn file(&self, name: &str, bytes: u64, more: Value) -> PathBuf {
        let path = self.path(&format!("{name}.img"));
        let mut body = json!({"name": name, "file": path, "size_bytes": bytes});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        self.create(body).expect("a volume");
        path
    }

    fn driver(&self, volume: &str) -> BlkFrontend {
        BlkFrontend::connect(self.socket(volume), BlkOptions::default()).expect("a frontend")
    }

    fn metric(&self, series: &str) -> f64 {
        let text = self.daemon().registry().encode();
        let line = text.lines().find(|line| line.starts_with(series));
        line.and_then(|line| line.rsplit_once(' ')).map_or(0.0, |(_, value)| value.parse().unwrap())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.stop();
    }
}

fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|n| (n.wrapping_mul(31).wrapping_add(seed * 97) ^ n >> 9) as u8).collect()
}

#[test]
fn data_reach_the_file_and_come_back() {
    let bed = Bed::new();
    let path = bed.file("v0", 8 * MIB, json!({"serial": "SN-42"}));
    let mut driver = bed.driver("v0");
    assert_eq!(driver.capacity().unwrap(), 8 * MIB / 512);
    let data = pattern(1, 32 << 10);
    assert_eq!(driver.write(100, &data), OK);
    assert_eq!(driver.read(100, data.len()), data);
    assert_eq!(driver.flush(), OK);
    let mut stored = vec![0; data.len()];
    std::fs::File::open(&path).unwrap().read_exact_at(&mut stored, 100 * 512).unwrap();
    assert_eq!(stored, data);
    let id = driver.ask(&BlkRequest { kind: GET_ID, read_bytes: 20, ..BlkRequest::default() });
    assert_eq!((id.status, id.written, &id.data[..6]), (OK, 21, &b"SN-42\0"[..]));
    assert_eq!(bed.metric(r#"sluice_blk_requests_total{op="flush",queue="0",volume="v0"}"#), 1.0);
    assert_eq!(
        bed.metric(r#"sluice_blk_bytes_total{op="write",queue="0",volume="v0"}"#),
        f64::from(32 << 10)
    );
}

#[test]
fn requests_of_any_shape() {
    let bed = Bed::new();
    bed.file("v0", 16 * MIB, json!({}));
    for indirect in [false, true] {
        let options = BlkOptions { indirect, slot_bytes: 4 << 20, slots: 2, ..BlkOptions::default() };
        let mut driver = BlkFrontend::connect(bed.socket("v0"), options).unwrap();
        for (bytes, parts, shift) in [
            (512, 1, 0),
            (4096, 1, 0),
            (4096, 8, 0),
            (64 << 10, 30, 0),
            (1 << 20, 100, 0),
            (4 << 20, 3, 0),
            // Misaligned: through bounce buffers, the last in several pieces.
            (4096, 1, 1),
            (4096, 3, 7),
            (1 << 20, 5, 100),
        ] {
            let data = pattern(bytes as u64 + shift as u64, bytes);
            let write =
                BlkRequest { kind: WRITE, sector: 8, out: &data, parts, shift, ..BlkRequest::default() };
            assert_eq!(driver.ask(&write).status, OK, "{bytes} bytes, {parts} parts, {shift} off");
            let read = BlkRequest {
                kind: READ,
                sector: 8,
                read_bytes: bytes,
                parts,
                shift,
                ..BlkRequest::default()
            };
            let answer = driver.ask(&read);
            assert_eq!((answer.status, answer.written), (OK, bytes as u32 + 1));
            assert!(answer.data == data, "{bytes} bytes, {parts} parts, {shift} off");
        }
    }
    assert!(bed.metric(r#"sluice_blk_bounce_copies_total{queue="0",volume="v0"}"#) >= 20.0);
}

#[test]
fn wrong_requests_are_answered_and_harm_nobody() {
    let bed = Bed::new();
    bed.file("v0", MIB, json!({}));
    bed.file("ro", MIB, json!({"read_only": true}));
    let mut driver = bed.driver("v0");
    let block = pattern(3, 512);
    let ask = |driver: &mut BlkFrontend, kind, sector, out: &[u8], read_bytes| {
        driver.ask(&BlkRequest { kind, sector, out, read_bytes, ..BlkRequest::default() }).status
    };
    assert_eq!(ask(&mut driver, WRITE, 2047, &block, 0), OK);
    assert_eq!(ask(&mut driver, WRITE, 2048, &block, 0), IO_ERROR);
    assert_eq!(ask(&mut driver, READ, 2047, &[], 1024), IO_ERROR);
    assert_eq!(ask(&mut driver, READ, u64::MAX, &[], 512), IO_ERROR);
    assert_eq!(ask(&mut driver, READ, 0, &[], 100), IO_ERROR);
    assert_eq!(ask(&mut driver, 99, 0, &[], 512), UNSUPPORTED);
    assert_eq!(driver.ranges(DISCARD, &[(0, 8, 0), (2040, 9, 0)]), IO_ERROR);
    assert_eq!(driver.ranges(WRITE_ZEROES, &[(0, 8, 2)]), UNSUPPORTED);
    assert_eq!(driver.read(2047, 512), block);
    let mut reader = bed.driver("ro");
    assert_eq!(ask(&mut reader, WRITE, 0, &block, 0), IO_ERROR);
    assert_eq!(reader.read(0, 512), vec![0; 512]);
    assert_eq!(bed.metric(r#"sluice_blk_errors_total{queue="0",reason="guest",volume="v0"}"#), 7.0);
}

#[test]
fn a_broken_ring_stops_alone() {
    let bed = Bed::new();
    bed.file("v0", MIB, json!({"queues": 2}));
    let options = BlkOptions { queues: 2, ..BlkOptions::default() };
    let mut driver = BlkFrontend::connect(bed.socket("v0"), options).unwrap();
    // No room for a status, then a head that does not exist.
    let ring = driver.ring(1);
    ring.add_head(60_000);
    ring.publish();
    let faults = || bed.metric(r#"sluice_blk_ring_faults_total{queue="1",volume="v0"}"#) == 1.0;
    assert!(tests::holds_within(PATIENCE, faults));
    assert_eq!(driver.write(0, &pattern(1, 4096)), OK);
    assert_eq!(driver.frontend().stop_queue(0).unwrap(), 1);
    driver.frontend().stop_queue(1).expect("a broken queue can be stopped");
    drop(driver);
    assert_eq!(bed.driver("v0").read(0, 4096), pattern(1, 4096));
}

#[test]
fn space_is_really_returned_and_zeroes_are_zeroes() {
    let bed = Bed::new();
    let path = bed.file("v0", 16 * MIB, json!({}));
    let blocks = || std::fs::metadata(&path).unwrap().blocks();
    let options = BlkOptions { slot_bytes: 4 << 20, ..BlkOptions::default() };
    let mut driver = BlkFrontend::connect(bed.socket("v0"), options).unwrap();
    let data = pattern(9, 4 << 20);
    assert_eq!(driver.write(0, &data), OK);
    assert_eq!(driver.flush(), OK);
    let full = blocks();
    assert!(full >= 4 * MIB / 512);
    assert_eq!(driver.ranges(DISCARD, &[(0, 2048, 0), (4096, 2048, 0)]), OK);
    assert!(blocks() <= full - 2 * MIB / 512, "{} of {full} blocks", blocks());
    assert_eq!(driver.read(0, 4096), vec![0; 4096]);
    assert_eq!(driver.read(2048, 4096), data[1 << 20..][..4096]);
    let kept = blocks();
    assert_eq!(driver.ranges(WRITE_ZEROES, &[(2048, 100, 0)]), OK);
    assert_eq!(driver.read(2048, 51_200), vec![0; 51_200]);
    assert_eq!(driver.read(2148, 512), data[(1 << 20) + 51_200..][..512]);
    assert_eq!(blocks(), kept, "without the unmap flag the space stays");
    assert_eq!(driver.ranges(WRITE_ZEROES, &[(2048, 2048, 1), (6144, 1024, 1)]), OK);
    assert!(blocks() < kept);
}

#[test]
fn a_larger_size_is_seen_and_kept() {
    let mut bed = Bed::new();
    let path = bed.file("v0", MIB, json!({}));
    let mut driver = bed.driver("v0");
    let channel = driver.frontend().open_request_channel().unwrap();
    let view = bed.daemon().volumes().resize("v0", 2 * MIB).unwrap();
    assert_eq!(view.spec.size_bytes, Some(2 * MIB));
    assert_eq!(channel.reply().unwrap().request, 2, "CONFIG_CHANGE_MSG");
    assert_eq!(driver.capacity().unwrap(), 2 * MIB / 512);
    assert_eq!(driver.write(4095, &pattern(5, 512)), OK);
    let refused = bed.daemon().volumes().resize("v0", MIB).unwrap_err();
    assert!(refused.to_string().contains("cannot shrink"), "{refused}");
    assert_eq!(bed.daemon().volumes().resize("nobody", MIB).unwrap_err().status, 404);
    drop(driver);
    bed.stop();
    assert_eq!(std::fs::metadata(path).unwrap().len(), 2 * MIB);
    bed.start();
    assert_eq!(bed.driver("v0").read(4095, 512), pattern(5, 512));
}

#[test]
fn volumes_are_found_again_and_one_that_is_missing_is_told() {
    let mut bed = Bed::new();
    let path = bed.file("v0", MIB, json!({"queues": 3, "serial": "S", "block_size": 4096}));
    bed.file("v1", MIB, json!({}));
    bed.create(json!({"name": "n0", "null": true, "size_bytes": "1GiB"})).unwrap();
    let before = bed.daemon().volumes().list();
    assert_eq!(bed.driver("v1").write(0, &pattern(1, 512)), OK);
    bed.stop();
    assert!(!bed.socket("v0").exists(), "a clean stop removes the sockets");
    bed.start();
    assert_eq!(bed.daemon().volumes().list(), before);
    bed.stop();
    let aside = bed.path("aside");
    std::fs::rename(&path, &aside).unwrap();
    bed.start();
    let missing = bed.daemon().volumes().show("v0").unwrap();
    assert!(
        matches!(&missing.state, VolumeState::Failed { reason, .. } if reason.contains("v0.img")),
        "{missing:?}"
    );
    assert!(!path.exists(), "a missing file is not replaced by an empty one");
    assert_eq!(bed.driver("v1").read(0, 512), pattern(1, 512));
    // It is tried again by itself.
    std::fs::rename(&aside, &path).unwrap();
    assert!(tests::holds_within(PATIENCE, || bed.daemon().volumes().list() == before));
    bed.daemon().volumes().delete("v0", false).unwrap();
    assert!(path.exists() && !bed.socket("v0").exists());
    bed.stop();
    bed.start();
    assert_eq!(bed.daemon().volumes().list().len(), 2);
}

#[test]
fn what_cannot_be_created_leaves_nothing_behind() {
    let bed = Bed::new();
    bed.file("v0", MIB, json!({}));
    let refused = |body: Value| bed.create(body).expect_err("refused");
    let path = bed.path("new.img");
    assert_eq!(refused(json!({"name": "v0", "null": true, "size_bytes": 512})).status, 409);
    assert!(refused(json!({"name": "v1", "file": bed.path("v0.img")})).to_string().contains("in use"));
    std::fs::write(bed.socket("blocked"), b"precious").unwrap();
    let problem = refused(json!({"name": "blocked", "file": path, "size_bytes": 4096}));
    assert!(problem.to_string().contains("blocked.sock"), "{problem}");
    assert!(!path.exists(), "the file made for it is gone");
    assert_eq!(std::fs::read(bed.socket("blocked")).unwrap(), b"precious");
    assert_eq!(bed.daemon().volumes().list().len(), 1);
}

#[test]
fn a_second_daemon_is_refused() {
    let bed = Bed::new();
    let config = |state: &Path, run: &Path| DaemonConfig {
        state_dir: state.to_path_buf(),
        run_dir: run.to_path_buf(),
        metrics: None,
        cores: vec![],
        spin_us: 0,
    };
    let start = |config| bed.runtime.block_on(Daemon::start(config)).map(drop).unwrap_err().to_string();
    let same_state = start(config(&bed.path("state"), &bed.path("run2")));
    assert!(same_state.contains("another running daemon"), "{same_state}");
    let same_run = start(config(&bed.path("state2"), &bed.path("run")));
    assert!(same_run.contains("another daemon answers"), "{same_run}");
    assert!(bed.path("run/blk.admin.sock").exists());
}

#[test]
fn a_driver_without_flush_gets_durable_writes_and_wce_is_a_switch() {
    let bed = Bed::new();
    bed.file("v0", MIB, json!({}));
    let driver = bed.driver("v0");
    assert_eq!(driver.frontend().read_config(32, 1).unwrap(), [1], "write-back by default");
    driver.frontend().write_config(32, &[0]).unwrap();
    assert_eq!(driver.frontend().read_config(32, 1).unwrap(), [0]);
    assert!(
        driver.frontend().write_config(32, &[2]).is_err() && driver.frontend().write_config(0, &[1]).is_err()
    );
    drop(driver);
    for features in [F_VERSION_1 | F_PROTOCOL, F_VERSION_1 | F_PROTOCOL | BLK_FEATURES] {
        let options = BlkOptions { features, ..BlkOptions::default() };
        let mut driver = BlkFrontend::connect(bed.socket("v0"), options).unwrap();
        if driver.frontend().features & F_CONFIG_WCE != 0 {
            driver.frontend().write_config(32, &[0]).unwrap();
        }
        assert_eq!(driver.write(0, &pattern(features, 8192)), OK);
        assert_eq!(driver.ranges(WRITE_ZEROES, &[(0, 8, 1)]), OK);
        assert_eq!(driver.read(8, 4096), pattern(features, 8192)[4096..]);
    }
}

/// A file system in memory that is full soon; unmounted when dropped.
struct SmallSystem(PathBuf);

impl SmallSystem {
    /// `None` without the right to mount: then there is none to be had.
    fn new(path: PathBuf, size: &str) -> Option<SmallSystem> {
        std::fs::create_dir(&path).unwrap();
        let options = format!("size={size}");
        let mounted = run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", path.to_str().unwrap()]);
        mounted.map(|_| SmallSystem(path))
    }
}

impl Drop for SmallSystem {
    fn drop(&mut self) {
        let _ = run("umount", &["--lazy", self.0.to_str().unwrap()]);
    }
}

#[test]
fn no_space_on_the_host_is_an_error_of_that_request_only() {
    let bed = Bed::new();
    let Some(small) = SmallSystem::new(bed.path("small"), "2m") else { return };
    let body = json!({"name": "v0", "file": small.0.join("v0.img"), "size_bytes": "8MiB"});
    bed.create(body).expect("a sparse file");
    let mut driver = bed.driver("v0");
    let block = pattern(7, 64 << 10);
    let statuses: Vec<u8> = (0..64).map(|n| driver.write(n * 128, &block)).collect();
    assert_eq!(statuses[0], OK);
    assert!(statuses.ends_with(&[IO_ERROR; 8]), "{statuses:?}");
    assert_eq!(driver.read(0, block.len()), block);
    assert!(bed.metric(r#"sluice_blk_errors_total{queue="0",reason="no_space",volume="v0"}"#) >= 8.0);
    assert_eq!(driver.ranges(DISCARD, &[(0, 1280, 0)]), OK);
    assert_eq!(driver.write(16_000, &block), OK, "there is space again");
    assert_eq!(bed.daemon().volumes().show("v0").unwrap().state, VolumeState::Serving);
    drop(driver);
    bed.daemon().volumes().delete("v0", false).unwrap();
}

#[test]
fn a_failed_flush_ends_all_writing_and_shows() {
    let mut bed = Bed::new();
    let Some(small) = SmallSystem::new(bed.path("small"), "1m") else { return };
    let file = small.0.join("backing");
    std::fs::File::create(&file).unwrap().set_len(16 * MIB).unwrap();
    let Some(device) = LoopDevice::new(&file, 4096) else { return };
    // Blocks smaller than the device's go through the page cache: the device's failure shows at the flush.
    bed.create(json!({"name": "v0", "device": device.path(), "block_size": 512})).expect("a volume");
    let mut driver = bed.driver("v0");
    assert_eq!((driver.write(0, &pattern(1, 8192)), driver.flush()), (OK, OK));
    let block = pattern(2, 64 << 10);
    for n in 0..64 {
        assert_eq!(driver.write(128 * n, &block), OK, "the page cache takes it");
    }
    assert_eq!(driver.flush(), IO_ERROR);
    // A second flush that finds nothing to do must not look like success.
    assert_eq!(driver.flush(), IO_ERROR);
    assert_eq!(driver.write(0, &block), IO_ERROR);
    assert_eq!(driver.ranges(WRITE_ZEROES, &[(0, 8, 0)]), IO_ERROR);
    assert_eq!(driver.read(0, 4096).len(), 4096, "reads go on");
    let state = bed.daemon().volumes().show("v0").unwrap().state;
    assert!(matches!(&state, VolumeState::Poisoned { reason } if reason.contains("flush")), "{state:?}");
    assert_eq!(bed.metric(r#"sluice_blk_volume_poisoned{volume="v0"}"#), 1.0);
    // A restart brings nothing back that was lost: only an operator may say that it is good enough.
    drop(driver);
    bed.stop();
    bed.start();
    let poisoned = bed.daemon().volumes().show("v0").unwrap().state;
    assert_eq!(poisoned, state);
    assert_eq!(bed.metric(r#"sluice_blk_volume_poisoned{volume="v0"}"#), 1.0);
    let mut driver = bed.driver("v0");
    assert_eq!((driver.write(0, &block), driver.flush()), (IO_ERROR, IO_ERROR));
    assert_eq!(bed.daemon().volumes().reopen("v0").unwrap().state, VolumeState::Serving);
    assert!(driver.frontend().closed_within(PATIENCE), "a reader must look again");
    assert_eq!(bed.daemon().volumes().reopen("v0").unwrap_err().status, 409);
    assert_eq!(bed.driver("v0").write(0, &pattern(3, 4096)), OK);
    bed.daemon().volumes().delete("v0", false).unwrap();
}

#[test]
fn a_block_device_is_served_with_its_own_block_size() {
    let bed = Bed::new();
    let file = bed.path("backing");
    std::fs::File::create(&file).unwrap().set_len(16 * MIB).unwrap();
    let Some(device) = LoopDevice::new(&file, 4096) else { return };
    let view = bed.create(json!({"name": "d0", "device": device.path()})).expect("a volume");
    assert_eq!((view.spec.block_bytes, view.spec.size_bytes), (Some(4096), Some(16 * MIB)));
    let mut driver = bed.driver("d0");
    let data = pattern(3, 1 << 16);
    assert_eq!((driver.write(8, &data), driver.flush()), (OK, OK));
    assert_eq!(driver.read(8, data.len()), data);
    assert_eq!(driver.write(1, &data[..512]), IO_ERROR, "not a whole block");
    // The device's hole is the file's.
    let blocks = std::fs::metadata(&file).unwrap().blocks();
    assert_eq!(driver.ranges(DISCARD, &[(8, 64, 0), (80, 16, 0)]), OK);
    assert!(std::fs::metadata(&file).unwrap().blocks() < blocks);
    assert_eq!(driver.ranges(WRITE_ZEROES, &[(72, 8, 0)]), OK);
    assert_eq!(driver.read(72, 4096), vec![0; 4096]);
    drop(driver);
    bed.daemon().volumes().delete("d0", false).unwrap();
}

/// Small transfers of a disk in memory are carried out at once, large ones by the kernel's threads: both at the same time.
#[test]
fn a_disk_in_memory_is_served_both_ways() {
    let bed = Bed::new();
    let Some(disk) = RamDisk::new(64 * MIB) else { return };
    bed.create(json!({"name": "z0", "device": disk.path(), "queues": 2})).expect("a volume");
    let options = BlkOptions { queues: 2, slot_bytes: 1 << 20, slots: 8, ..BlkOptions::default() };
    let mut driver = BlkFrontend::connect(bed.socket("z0"), options).unwrap();
    for (bytes, parts, shift) in [
        (4096, 1, 0),
        (4096, 1, 7),
        (8192, 2, 0),
        (16 << 10, 4, 0),
        (20 << 10, 1, 0),
        (1 << 20, 9, 0),
        (1 << 20, 3, 64),
    ] {
        let data = pattern(bytes as u64 + shift as u64, bytes);
        let base = BlkRequest { sector: 8, parts, shift, ..BlkRequest::default() };
        assert_eq!(driver.ask(&BlkRequest { kind: WRITE, out: &data, ..base.clone() }).status, OK);
        let answer = driver.ask(&BlkRequest { kind: READ, read_bytes: bytes, ..base });
        assert!(answer.status == OK && answer.data == data, "{bytes} bytes, {parts} parts, {shift} off");
    }
    let (small, large) = (pattern(1, 4096), pattern(2, 1 << 20));
    for round in 0..50 {
        driver.send(
            0,
            &BlkRequest { kind: WRITE, sector: 65_536, out: &large, tag: 1, ..BlkRequest::default() },
        );
        for tag in 0..8 {
            let sector = 8 * (round + tag);
            driver.send(1, &BlkRequest { kind: WRITE, sector, out: &small, tag, ..BlkRequest::default() });
        }
        for queue in [0, 1] {
            while driver.in_flight(queue) > 0 {
                assert_eq!(driver.answer(queue, PATIENCE).expect("an answer").status, OK);
            }
        }
    }
    assert_eq!((driver.read(65_536, 1 << 20), driver.read(8 * 56, 4096)), (large, small));
    // Many together, each with data of its own.
    let data: Vec<_> = (0..8).map(|tag| pattern(100 + tag, 4096)).collect();
    for kind in [WRITE, READ] {
        for (tag, data) in (0..).zip(&data) {
            let base = BlkRequest {
                kind,
                sector: 8 * tag,
                tag,
                parts: 1 + tag as usize % 3,
                ..BlkRequest::default()
            };
            let request = match kind {
                WRITE => BlkRequest { out: data, ..base },
                _ => BlkRequest { read_bytes: data.len(), ..base },
            };
            driver.send(0, &request);
        }
        while driver.in_flight(0) > 0 {
            let answer = driver.answer(0, PATIENCE).expect("an answer");
            assert!(answer.status == OK && (kind == WRITE || answer.data == data[answer.tag as usize]));
        }
    }
    assert_eq!((driver.flush(), driver.ranges(DISCARD, &[(0, 8, 0)])), (OK, OK));
    assert_eq!(driver.read(0, 4096), vec![0; 4096]);
    drop(driver);
    bed.daemon().volumes().delete("z0", false).unwrap();
}

#[test]
fn a_file_cut_short_by_somebody_else_gives_errors_not_zeroes() {
    let bed = Bed::new();
    let path = bed.file("v0", MIB, json!({}));
    let mut driver = bed.driver("v0");
    std::fs::File::options().write(true).open(path).unwrap().set_len(MIB / 2).unwrap();
    let read = |sector, bytes| BlkRequest { kind: READ, sector, read_bytes: bytes, ..BlkRequest::default() };
    assert_eq!(driver.ask(&read(1536, 4096)).status, IO_ERROR);
    // Half of it is there: a short transfer that cannot be continued.
    assert_eq!(driver.ask(&read(1016, 8192)).status, IO_ERROR);
    assert_eq!(driver.ask(&read(0, 4096)).status, OK);
}

#[test]
fn volumes_come_and_go_while_others_run() {
    let bed = Bed::on_cores(vec![0, 1]);
    bed.file("busy", 4 * MIB, json!({"queues": 2}));
    let options = BlkOptions { queues: 2, ..BlkOptions::default() };
    let mut driver = BlkFrontend::connect(bed.socket("busy"), options).unwrap();
    let data = pattern(1, 4096);
    let mut answered = 0u64;
    for round in 0..30 {
        for (index, sector) in [(0, 8 * round), (1, 4096 + 8 * round)] {
            while driver.has_room(index) {
                let tag = answered;
                driver.send(
                    index,
                    &BlkRequest { kind: WRITE, sector, out: &data, tag, ..BlkRequest::default() },
                );
            }
        }
        let name = format!("v{round}");
        bed.create(json!({"name": name, "file": bed.path(&name), "size_bytes": "1MiB", "queues": 2}))
            .unwrap();
        let mut other = bed.driver(&name);
        assert_eq!(other.write(round, &data[..512]), OK);
        // Deleting it closes the frontend that is connected.
        bed.daemon().volumes().delete(&name, false).unwrap();
        assert!(other.frontend().closed_within(PATIENCE));
        for index in 0..2 {
            while driver.in_flight(index) > 0 {
                assert_eq!(driver.answer(index, PATIENCE).expect("an answer").status, OK);
                answered += 1;
            }
        }
    }
    assert_eq!(answered, 30 * 2 * 16);
}

#[test]
fn two_frontends_share_a_volume() {
    let bed = Bed::new();
    bed.file("v0", MIB, json!({}));
    let (mut one, mut other) = (bed.driver("v0"), bed.driver("v0"));
    assert_eq!(one.write(0, &pattern(1, 4096)), OK);
    assert_eq!(other.read(0, 4096), pattern(1, 4096));
    assert_eq!(bed.daemon().volumes().show("v0").unwrap().frontends, 2);
    drop(one);
    assert_eq!(other.write(8, &pattern(2, 512)), OK);
    assert_eq!(bed.metric(r#"sluice_blk_requests_total{op="write",queue="0",volume="v0"}"#), 2.0);
}

#[test]
fn a_queue_is_drained_before_it_is_given_back() {
    let bed = Bed::new();
    bed.file("v0", 16 * MIB, json!({}));
    let options = BlkOptions { slots: 32, queue_size: 256, ..BlkOptions::default() };
    let mut driver = BlkFrontend::connect(bed.socket("v0"), options).unwrap();
    let data = pattern(4, 64 << 10);
    for tag in 0..32 {
        driver.send(
            0,
            &BlkRequest { kind: WRITE, sector: tag * 128, out: &data, tag, ..BlkRequest::default() },
        );
    }
    let next = driver.frontend().stop_queue(0).unwrap();
    // Everything that was taken is answered; what was not is still there for the next start.
    assert_eq!(driver.ring(0).device_used_idx(), next);
    driver.frontend().tell(Request::SET_VRING_BASE, &pair(0, next.into()), &[]).unwrap();
    drop(driver);
    assert!(tests::holds_within(Duration::from_secs(5), || {
        bed.daemon().volumes().show("v0").unwrap().frontends == 0
    }));
}

/// The eventfd for calls is the frontend's: it may be full and in blocking mode.
#[test]
fn a_call_that_cannot_be_signalled_stalls_nobody() {
    let bed = Bed::new();
    bed.file("bad", MIB, json!({}));
    bed.file("good", MIB, json!({}));
    let (mut bad, mut good) = (bed.driver("bad"), bed.driver("good"));
    let full = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
    full.write(u64::MAX - 1).unwrap();
    let call = Request::SET_VRING_CALL;
    bad.frontend().tell(call, &0u64.to_ne_bytes(), &[full.as_fd()]).unwrap();
    for tag in 0..8 {
        bad.send(0, &BlkRequest { kind: READ, read_bytes: 512, tag, ..BlkRequest::default() });
    }
    assert_eq!(good.write(0, &pattern(1, 4096)), OK);
    // Its own requests are answered all the same; it just has to look.
    let used = || bad.ring(0).device_used_idx() == 8;
    assert!(tests::holds_within(PATIENCE, used));
    assert_eq!(good.read(0, 4096), pattern(1, 4096));
}

/// Memory that was taken away is noticed although the worker is never idle.
#[test]
fn lost_memory_is_noticed_while_others_keep_the_worker_busy() {
    let bed = Bed::new();
    for name in ["busy", "victim"] {
        bed.create(json!({"name": name, "null": true, "size_bytes": "1GiB"})).unwrap();
    }
    let victim = bed.driver("victim");
    let (stop, mut busy) = (std::sync::atomic::AtomicBool::new(false), bed.driver("busy"));
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(relaxed) {
                assert_eq!(busy.flush(), OK);
            }
        });
        victim.ram().file().set_len(0).unwrap();
        let closed = victim.frontend().closed_within(PATIENCE);
        stop.store(true, relaxed);
        assert!(closed);
    });
}

#[test]
fn null_answers_everything() {
    let bed = Bed::new();
    bed.create(json!({"name": "n0", "null": true, "size_bytes": "1GiB"})).unwrap();
    let mut driver = bed.driver("n0");
    assert_eq!(driver.write(0, &pattern(1, 4096)), OK);
    assert_eq!((driver.read(0, 4096).len(), driver.flush()), (4096, OK));
    assert_eq!(driver.ranges(DISCARD, &[(0, 8, 0)]), OK);
    assert_eq!(driver.write(1 << 21, &pattern(1, 512)), IO_ERROR);
}
