//! QEMU guests on our daemons. They need QEMU and a minute, so `cargo test` leaves them out: `cargo xtask test --only qemu`.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use xtask::demo;
use xtask::image::{self, Image};
use xtask::lab::process::Lifetime;
use xtask::lab::qemu::{Accelerator, GuestSpec};
use xtask::lab::{Daemon, Guest, Site, wait_for};
use xtask::progress::Progress;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(120);

/// What every test stands on: an image, a directory of its own, the program.
struct Ground {
    image: Image,
    accelerator: Accelerator,
    site: Site,
    /// Last, so that it goes last.
    _dir: tempfile::TempDir,
}

impl Ground {
    fn new() -> Ground {
        let progress = Progress::new();
        let image = image::make(&progress).unwrap();
        let accelerator = Accelerator::probe(&image, &progress).unwrap();
        let dir = tempfile::Builder::new().prefix("sluice-").tempdir().unwrap();
        Ground { image, accelerator, site: Site::debug(dir.path()).unwrap(), _dir: dir }
    }

    fn spec(&self, name: &str) -> GuestSpec {
        GuestSpec::new(name, &self.image, self.accelerator)
    }

    fn boot(&self, spec: &GuestSpec) -> Guest {
        Guest::boot(spec, &self.site.dir, Lifetime::Ours).unwrap()
    }

    /// Makes a volume on a file of its own and returns the file.
    fn volume(&self, name: &str, size: &str, options: &[&str]) -> PathBuf {
        let file = self.site.dir.join(format!("{name}.img"));
        let path = file.display().to_string();
        let args = [&["volume", "create", name, "--file", &path, "--size", size], options].concat();
        self.site.sluice(&args).unwrap();
        file
    }
}

/// The SHA-256 of `count` MiB of `file` from MiB `skip` on, as the host sees them.
fn host_sum(file: &Path, skip: u64, count: u64) -> String {
    let script = format!("dd if={} bs=1M skip={skip} count={count} status=none | sha256sum", file.display());
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

fn guest_sum(guest: &mut Guest, file: &str) -> String {
    guest.run(&format!("sha256sum <{file}")).unwrap().split_whitespace().next().unwrap().to_owned()
}

fn number(guest: &mut Guest, command: &str) -> u64 {
    let text = guest.run(command).unwrap();
    text.trim().parse().unwrap_or_else(|_| panic!("{command} said {text:?}"))
}

fn requests(blk: &Daemon, volume: &str, op: &str) -> f64 {
    blk.metrics().unwrap().sum("sluice_blk_requests_total", &[("volume", volume), ("op", op)]).unwrap_or(0.0)
}

fn assert_no_io_error(guest: &mut Guest) {
    let log = guest.run("dmesg").unwrap();
    let errors: Vec<_> =
        log.lines().filter(|line| line.contains("I/O error") || line.contains("is not a head")).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

#[test]
#[ignore = "boots a guest"]
fn a_guest_uses_our_disks() {
    let ground = Ground::new();
    let blk = ground.site.blk().unwrap();
    let disk = ground.volume("v0", "64MiB", &["--serial", "SERIAL-0"]);
    let image = ground.site.dir.join("ro.img");
    std::fs::write(&image, "sluice!\n".repeat(MIB as usize / 8)).unwrap();
    let image_path = image.display().to_string();
    ground
        .site
        .sluice(&["volume", "create", "ro", "--file", &image_path, "--size", "1MiB", "--read-only"])
        .unwrap();
    let spec = ground.spec("guest").disk(&ground.site.socket("v0"), 1).disk(&ground.site.socket("ro"), 1);
    let mut guest = ground.boot(&spec);

    assert_eq!(guest.run("cat /sys/block/vda/serial").unwrap(), "SERIAL-0");
    assert_eq!(guest.run("cat /sys/block/vda/queue/write_cache").unwrap(), "write back");
    assert_eq!(number(&mut guest, "blockdev --getsize64 /dev/vda"), 64 * MIB);

    // The bytes that the guest wrote are the bytes in the file.
    guest.run("dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null").unwrap();
    guest.run("dd if=/tmp/data of=/dev/vda bs=1M seek=5 oflag=direct conv=fsync 2>/dev/null").unwrap();
    assert_eq!(guest_sum(&mut guest, "/tmp/data"), host_sum(&disk, 5, 8));

    let flushes = requests(&blk, "v0", "flush");
    guest
        .run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && cp /tmp/data /mnt/ && sync && umount /mnt")
        .unwrap();
    assert!(requests(&blk, "v0", "flush") > flushes, "the guest's flushes do not arrive");
    guest.run("echo 3 >/proc/sys/vm/drop_caches; mount /dev/vda /mnt").unwrap();
    assert_eq!(guest_sum(&mut guest, "/mnt/data"), guest_sum(&mut guest, "/tmp/data"));
    guest.run("umount /mnt && e2fsck -fn /dev/vda").unwrap();

    read_only(&mut guest, &image);
    discard(&mut guest, &disk);
    resize(&ground, &mut guest, &disk);
    assert_no_io_error(&mut guest);
}

fn read_only(guest: &mut Guest, image: &Path) {
    assert_eq!(guest.run("cat /sys/block/vdb/ro").unwrap(), "1");
    assert_eq!(guest_sum(guest, "/dev/vdb"), host_sum(image, 0, 1));
    let write = guest.run_within("dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync", LIMIT).unwrap();
    assert_ne!(write.status, 0, "a read-only disk was written");
    assert_eq!(std::fs::read(image).unwrap()[..8], *b"sluice!\n");
}

/// Discarded space goes back to the host, and reads as zeros.
fn discard(guest: &mut Guest, disk: &Path) {
    guest.run("dd if=/dev/urandom of=/dev/vda bs=1M count=32 oflag=direct conv=fsync 2>/dev/null").unwrap();
    let before = disk.metadata().unwrap().blocks() * 512;
    assert!(before >= 32 * MIB);
    guest.run("blkdiscard -o 0 -l 33554432 /dev/vda").unwrap();
    let after = disk.metadata().unwrap().blocks() * 512;
    assert!(after + 31 * MIB <= before, "the file still has {after} of {before} bytes");
    guest.run("dd if=/dev/zero bs=1M count=32 2>/dev/null | cmp -n 33554432 - /dev/vda").unwrap();
}

/// A disk that grows is seen without a reset, and the new space works.
fn resize(ground: &Ground, guest: &mut Guest, disk: &Path) {
    ground.site.sluice(&["volume", "resize", "v0", "96MiB"]).unwrap();
    wait_for("the guest sees the new size", LIMIT, || {
        Ok((number(guest, "blockdev --getsize64 /dev/vda") == 96 * MIB).then_some(()))
    })
    .unwrap();
    wait_for("the guest's log tells of it", LIMIT, || {
        Ok(guest.run("dmesg")?.contains("detected capacity change").then_some(()))
    })
    .unwrap();
    guest.run("dd if=/tmp/data of=/dev/vda bs=1M seek=88 oflag=direct conv=fsync 2>/dev/null").unwrap();
    assert_eq!(guest_sum(guest, "/tmp/data"), host_sum(disk, 88, 8));
}

#[test]
#[ignore = "boots a guest"]
fn a_guest_does_not_see_the_storage_daemon_crash() {
    const ROUNDS: u64 = 24;
    let ground = Ground::new();
    let mut blk = ground.site.blk().unwrap();
    let disk = ground.volume("v0", "64MiB", &["--queues", "2"]);
    let mut guest = ground.boot(&ground.spec("guest").disk(&ground.site.socket("v0"), 2));
    guest.run("dd if=/dev/urandom of=/tmp/data bs=1M count=2 2>/dev/null").unwrap();
    // Each round writes 2 MiB in small pieces to its own place and reads them again.
    let script = format!(
        "for i in $(seq 0 {}); do \
           dd if=/tmp/data of=/dev/vda bs=16k seek=$((i * 128)) oflag=direct conv=fsync,notrunc 2>/dev/null || exit 1; \
           dd if=/dev/vda bs=16k skip=$((i * 128)) count=128 iflag=direct 2>/dev/null | cmp - /tmp/data || exit 2; \
         done",
        ROUNDS - 1
    );
    let work = guest.send(&script).unwrap();
    for crash in 1..=5 {
        // Each crash hits while requests arrive.
        let writes = requests(&blk, "v0", "write");
        wait_for("the guest writes", LIMIT, || {
            Ok((requests(&blk, "v0", "write") > writes + 16.0).then_some(()))
        })
        .unwrap();
        blk.crash().unwrap();
        blk.restart().unwrap_or_else(|error| panic!("restart after crash {crash}: {error:#}"));
    }
    let done = guest.finish(work, LIMIT * 2).unwrap();
    assert_eq!(done.status, 0, "{}", done.output);
    assert_no_io_error(&mut guest);
    let expected = guest_sum(&mut guest, "/tmp/data");
    for round in 0..ROUNDS {
        assert_eq!(host_sum(&disk, round * 2, 2), expected, "round {round}");
    }
}

#[test]
#[ignore = "boots a guest"]
fn a_guest_reboots_and_disks_come_and_go() {
    let ground = Ground::new();
    let _blk = ground.site.blk().unwrap();
    ground.volume("v0", "32MiB", &[]);
    let plugged = ground.volume("v1", "16MiB", &["--serial", "PLUGGED"]);
    let mut spec = ground.spec("guest").disk(&ground.site.socket("v0"), 1);
    spec.may_reboot = true;
    spec.free_slot = true;
    let mut guest = ground.boot(&spec);
    let mut qmp = guest.qmp().unwrap();

    guest.run("dd if=/dev/urandom of=/dev/vda bs=1M count=4 conv=fsync 2>/dev/null").unwrap();
    let before = guest.run("dd if=/dev/vda bs=1M count=4 2>/dev/null | sha256sum").unwrap();
    // The firmware looks at every disk with other features before the kernel does.
    guest.send("reboot -f").unwrap();
    qmp.event("RESET", |_| true, LIMIT).unwrap();
    guest.wait_ready(LIMIT * 2).unwrap();
    assert_eq!(guest.run("dd if=/dev/vda bs=1M count=4 2>/dev/null | sha256sum").unwrap(), before);

    // The backend is there before the device: a reconnecting one without backend would stop QEMU.
    let address = json!({ "type": "unix", "data": { "path": ground.site.socket("v1") } });
    let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
    for round in 0..2 {
        qmp.execute("chardev-add", json!({ "id": "plug", "backend": backend })).unwrap();
        let device = json!({ "driver": "vhost-user-blk-pci", "id": "plugged", "chardev": "plug", "bus": "slot0", "num-queues": 1 });
        qmp.execute("device_add", device).unwrap();
        wait_for("the guest finds the disk", LIMIT, || {
            let there = guest.run_within("cat /sys/block/vdb/serial", LIMIT)?;
            Ok((there.status == 0 && there.output == "PLUGGED").then_some(()))
        })
        .unwrap();
        let line = format!("round {round}");
        guest.run(&format!("echo '{line}' | dd of=/dev/vdb conv=sync,fsync 2>/dev/null")).unwrap();
        assert_eq!(std::fs::read(&plugged).unwrap()[..line.len()], *line.as_bytes());
        qmp.execute("device_del", json!({ "id": "plugged" })).unwrap();
        qmp.event("DEVICE_DELETED", |data| data["device"] == "plugged", LIMIT).unwrap();
        qmp.execute("chardev-remove", json!({ "id": "plug" })).unwrap();
        wait_for("the guest loses the disk", LIMIT, || {
            Ok((guest.run_within("test -e /sys/block/vdb", LIMIT)?.status != 0).then_some(()))
        })
        .unwrap();
    }
    ground.site.sluice(&["volume", "delete", "v1"]).unwrap();
    assert!(!ground.site.socket("v1").exists());
    guest.run("dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null").unwrap();
    assert_no_io_error(&mut guest);
}

/// A guest moves to another QEMU while it writes; both are connected to the same volume for a while.
#[test]
#[ignore = "boots a guest"]
fn a_guest_migrates_while_it_writes() {
    const ROUNDS: u64 = 40;
    let ground = Ground::new();
    let _blk = ground.site.blk().unwrap();
    let disk = ground.volume("v0", "64MiB", &["--queues", "2"]);
    let mut spec = ground.spec("here").disk(&ground.site.socket("v0"), 2);
    let mut here = ground.boot(&spec);
    here.run("dd if=/dev/urandom of=/tmp/data bs=1M count=1 2>/dev/null").unwrap();
    let script = format!(
        "for i in $(seq 0 {}); do \
           dd if=/tmp/data of=/dev/vda bs=16k seek=$((i * 64)) oflag=direct conv=fsync,notrunc 2>/dev/null || exit 1; \
           dd if=/dev/vda bs=16k skip=$((i * 64)) count=64 iflag=direct 2>/dev/null | cmp - /tmp/data || exit 2; \
         done; sha256sum </tmp/data",
        ROUNDS - 1
    );
    let work = here.send(&script).unwrap();
    spec.name = "there".into();
    spec.incoming = true;
    let mut there = Guest::start(&spec, &ground.site.dir, Lifetime::Ours).unwrap();
    let uri = json!({ "uri": format!("unix:{}", ground.site.dir.join("migration").display()) });
    let (mut from, mut to) = (here.qmp().unwrap(), there.qmp().unwrap());
    to.execute("migrate-incoming", uri.clone()).unwrap();
    from.execute("migrate-set-parameters", json!({ "max-bandwidth": 1 << 30 })).unwrap();
    from.execute("migrate", uri).unwrap();
    wait_for("the guest moves", LIMIT * 2, || {
        let status = from.execute("query-migrate", json!({}))?["status"].clone();
        anyhow::ensure!(status != "failed", "the migration failed");
        Ok((status == "completed").then_some(()))
    })
    .unwrap();
    drop(here);
    let done = there.finish(work, LIMIT * 2).unwrap();
    assert_eq!(done.status, 0, "{}", done.output);
    let expected = done.output.split_whitespace().next().unwrap().to_owned();
    for round in 0..ROUNDS {
        assert_eq!(host_sum(&disk, round, 1), expected, "round {round}");
    }
    assert_no_io_error(&mut there);
}

#[test]
#[ignore = "boots guests"]
fn guests_meet_on_the_switch_and_survive_its_crash() {
    let ground = Ground::new();
    let site = &ground.site;
    let mut switch = site.switch(None).unwrap();
    site.sluice(&["port", "add", "p1", "--vhost-user", "--ofport", "1", "--vlan", "10"]).unwrap();
    // QEMU listens, we connect.
    let listening = site.dir.join("q.sock");
    let listening_path = listening.display().to_string();
    site.sluice(&[
        "port",
        "add",
        "p2",
        "--vhost-user",
        "--client",
        &listening_path,
        "--ofport",
        "2",
        "--vlan",
        "10",
    ])
    .unwrap();
    let mut alice = ground.boot(&ground.spec("alice").nic(&site.socket("p1"), false, "52:54:00:00:00:01"));
    let mut bob = ground.boot(&ground.spec("bob").nic(&listening, true, "52:54:00:00:00:02"));
    for (guest, address) in [(&mut alice, "10.0.0.1"), (&mut bob, "10.0.0.2")] {
        guest.run(&format!("ip addr add {address}/24 dev eth0 && ip link set eth0 up")).unwrap();
    }
    let answers = |guest: &mut Guest, address: &str| {
        let done = guest.run_within(&format!("ping -c 1 -W 1 {address}"), LIMIT).unwrap();
        (done.status == 0).then_some(())
    };
    wait_for("the first answer", LIMIT, || Ok(answers(&mut alice, "10.0.0.2"))).unwrap();
    alice.run("ping -c 20 -i 0.05 -W 1 10.0.0.2").unwrap();
    let learned = site.sluice(&["fdb", "show"]).unwrap();
    for mac in ["52:54:00:00:00:01", "52:54:00:00:00:02"] {
        assert!(learned.contains(mac), "{mac} is not in:\n{learned}");
    }

    // Big frames both ways, every byte right.
    bob.run("mkdir /tmp/www && dd if=/dev/urandom of=/tmp/www/data bs=1M count=16 2>/dev/null && httpd -h /tmp/www").unwrap();
    alice.run("wget -q -O /tmp/data http://10.0.0.2/data").unwrap();
    assert_eq!(guest_sum(&mut alice, "/tmp/data"), guest_sum(&mut bob, "/tmp/www/data"));

    switch.crash().unwrap();
    switch.restart().unwrap();
    wait_for("an answer after the crash of the switch", LIMIT, || Ok(answers(&mut alice, "10.0.0.2")))
        .unwrap();
}

/// Networks by REST, VLANs kept apart, and all that the demo shows.
#[test]
#[ignore = "boots guests"]
fn the_demo_is_all_good() {
    let ground = Ground::new();
    let program = &ground.site.program;
    let report = demo::perform(program, &ground.image, ground.accelerator, false, &Progress::new()).unwrap();
    assert!(report.passed(), "{report}");
    assert!(report.json()["passed"].as_bool().unwrap());
}
