//! The commands of the storage daemon as an operator types them, right and wrong.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

use xtask::lab::daemons::Site;

/// A site in a directory of its own, with nothing running.
fn site() -> (tempfile::TempDir, Site) {
    let dir = tempfile::Builder::new().prefix("sluice-").tempdir().unwrap();
    let site = Site::debug(dir.path()).unwrap();
    (dir, site)
}

fn run(site: &Site, args: &[&str]) -> Output {
    site.command(args).output().expect("the program runs")
}

/// Runs a command that must be refused as bad input, and checks that it names all of `expected`.
fn check_refused(site: &Site, args: &[&str], expected: &[&str]) {
    let output = run(site, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    for part in expected {
        assert!(said.contains(part), "{args:?} does not say `{part}`:\n{said}");
    }
    assert!(output.stdout.is_empty(), "{args:?} printed something");
}

#[test]
fn the_commands_of_the_manual_work_as_written() {
    let (dir, site) = site();
    let mut daemon = site.blk().unwrap();
    let image = dir.path().join("disk.img").display().to_string();
    let create =
        ["volume", "create", "v0", "--file", &image, "--size", "4GiB", "--queues", "2", "--serial", "S1"];
    let said =
        site.sluice(&[&create[..], &["--block-size", "4096", "--socket-mode", "0600"]].concat()).unwrap();
    assert!(said.contains("v0.sock"), "{said}");
    let mode = std::fs::metadata(site.socket("v0")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    site.sluice(&["volume", "create", "n0", "--null", "--size", "4GiB"]).unwrap();
    site.sluice(&[
        "volume",
        "create",
        "r0",
        "--file",
        &format!("{image}.ro"),
        "--size",
        "1MiB",
        "--read-only",
    ])
    .unwrap();
    let list = site.sluice_json(&["volume", "list"]).unwrap();
    let names: Vec<_> =
        list.as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["n0", "r0", "v0"]);
    let show = site.sluice_json(&["volume", "show", "v0"]).unwrap();
    assert_eq!((&show["size_bytes"], &show["queues"]), (&(4u64 << 30).into(), &2.into()));
    assert_eq!((&show["state"], &show["serial"]), (&"serving".into(), &"S1".into()));
    site.sluice(&["volume", "resize", "v0", "8GiB"]).unwrap();
    assert_eq!(std::fs::metadata(&image).unwrap().len(), 8 << 30);
    site.sluice(&["volume", "delete", "v0"]).unwrap();
    assert!(!site.socket("v0").exists());
    let table = site.sluice(&["volume", "list"]).unwrap();
    let names: Vec<_> = table.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["NAME", "n0", "r0"], "{table}");
    let metrics = daemon.metrics().unwrap();
    assert_eq!(metrics.sum("sluice_blk_volume_bytes", &[("volume", "n0")]), Some((4u64 << 30) as f64));
    assert_eq!(daemon.process().stop().unwrap().code(), Some(0));
    assert!(!site.run_dir().join("blk.admin.sock").exists());
}

#[test]
fn bad_volumes_are_refused_whole() {
    let (dir, site) = site();
    let _daemon = site.blk().unwrap();
    let small = dir.path().join("small.img");
    std::fs::write(&small, vec![0; 4096]).unwrap();
    let small = small.display().to_string();
    let absent = dir.path().join("absent.img").display().to_string();
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["a/b", "--file", &absent, "--size", "4GB", "--queues", "17", "--serial", "has space"],
            &["`a/b`", "`4GB`", "KiB, MiB, GiB", "`17`", "1 to 16", "`has space`"],
        ),
        (&["v", "--null"], &["size"]),
        (&["v", "--size", "1MiB"], &["file, device, pool and null"]),
        (&["v", "--null", "--file", &absent, "--size", "1MiB"], &["one of file, device, pool and null"]),
        (&["v", "--file", &absent], &[&absent, "--size"]),
        (&["v", "--file", &small, "--size", "1MiB"], &[&small, "4096 bytes", "1048576"]),
        (&["v", "--device", &small], &[&small, "block device"]),
        (&["v", "--device", "/dev/no-such-device"], &["/dev/no-such-device"]),
        (
            &["v", "--file", &small, "--block-size", "1024", "--queues", "none"],
            &["`1024`", "512 or 4096", "`none`"],
        ),
        (&["v", "--null", "--size", "513"], &["`513`", "multiple"]),
        (
            &[
                "v",
                "--null",
                "--size",
                "1MiB",
                "--socket-mode",
                "9999",
                "--socket-owner",
                "no-such-user-here",
            ],
            &["`9999`", "`no-such-user-here`"],
        ),
    ];
    for (args, expected) in cases {
        check_refused(&site, &[&["volume", "create"], *args].concat(), expected);
    }
    assert!(!std::path::Path::new(&absent).exists());
    site.sluice(&["volume", "create", "v", "--null", "--size", "1MiB"]).unwrap();
    check_refused(&site, &["volume", "create", "v", "--null", "--size", "1MiB"], &["`v`", "already"]);
    check_refused(&site, &["volume", "resize", "v", "512KiB"], &["`v`", "cannot shrink"]);
    check_refused(&site, &["volume", "resize", "v", "lots"], &["`lots`"]);
    for verb in ["show", "delete"] {
        check_refused(&site, &["volume", verb, "nobody"], &["nobody"]);
    }
    assert_eq!(site.sluice_json(&["volume", "list"]).unwrap().as_array().unwrap().len(), 1);
}

#[test]
fn bad_settings_are_told_all_at_once() {
    let (dir, site) = site();
    let file = dir.path().join("blk.toml");
    let path = file.display().to_string();
    let wrong = "run_dirr = \"/tmp\"\nmetrics = \"nowhere\"\ncores = [0, 4096]\nspin_us = \"fast\"\n";
    std::fs::write(&file, wrong).unwrap();
    for verb in ["check", "run"] {
        check_refused(
            &site,
            &["blk", verb, "--config", &path],
            &["run_dirr", "nowhere", "4096", "fast", "not a known key"],
        );
    }
    std::fs::write(&file, "not toml at all").unwrap();
    check_refused(&site, &["blk", "check", "--config", &path], &[&path]);
    check_refused(
        &site,
        &["blk", "check", "--cores", "x", "--spin-us=-1", "--metrics", "9101"],
        &["`x`", "-1", "9101"],
    );
    std::fs::write(
        &file,
        format!("state_dir = \"{0}/s\"\nspin_us = 20\ncores = [0]\n", dir.path().display()),
    )
    .unwrap();
    let good = run(&site, &["blk", "check", "--config", &path]);
    assert_eq!(good.status.code(), Some(0), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(!dir.path().join("s").exists(), "check changes nothing");
}

#[test]
fn without_a_daemon_the_verbs_say_where_they_looked() {
    let (_dir, site) = site();
    let output = run(&site, &["volume", "list"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("blk.admin.sock"));
}

#[test]
fn a_list_of_volumes_that_is_broken_stops_the_start_and_is_kept() {
    let (dir, site) = site();
    let state = dir.path().join("state/blk");
    std::fs::create_dir_all(&state).unwrap();
    let list = state.join("volumes.json");
    std::fs::write(&list, "{\"version\": 1, \"volumes\": [{").unwrap();
    let state = state.display().to_string();
    let run_dir = site.run_dir().display().to_string();
    let output = run(&site, &["blk", "run", "--state-dir", &state, "--run-dir", &run_dir]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("volumes.json"));
    assert_eq!(std::fs::read_to_string(list).unwrap(), "{\"version\": 1, \"volumes\": [{");
    assert!(!site.run_dir().join("blk.admin.sock").exists());
}
