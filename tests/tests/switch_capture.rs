//! `sluice capture` on a running switch, read back by somebody else's reader of pcapng.

use std::io::Cursor;
use std::path::PathBuf;
use std::process::Command;

use pcap_parser::traits::{PcapNGPacketBlock as _, PcapReaderIterator as _};
use pcap_parser::{Block, OptionCode, PcapBlockOwned, PcapNGReader};
use tests::daemon::Daemon;
use tests::frontend::PATIENCE;
use tests::net_frontend::{NetFrontend, NetOptions};
use tests::switch::{BROADCAST, expect_frame, frame, mac};
use tests::{binary, holds_within};
use xtask::lab::Site;
use xtask::lab::process::{Lifetime, Process};

/// A frame of a file: its bytes, which way it went (1 from the port, 2 to it), comments.
#[derive(Debug, PartialEq, Eq)]
struct Captured {
    bytes: Vec<u8>,
    direction: u32,
    comments: Vec<String>,
}

fn read(file: &PathBuf) -> (String, Vec<Captured>) {
    let bytes = std::fs::read(file).unwrap_or_default();
    let Ok(mut reader) = PcapNGReader::new(1 << 16, Cursor::new(bytes)) else { return Default::default() };
    let (mut interface, mut frames) = (String::new(), Vec::new());
    loop {
        match reader.next() {
            Ok((length, block)) => {
                match block {
                    PcapBlockOwned::NG(Block::InterfaceDescription(block)) => {
                        let name = block.options.iter().find(|option| option.code == OptionCode(2));
                        interface =
                            String::from_utf8_lossy(name.expect("a name").as_bytes().expect("bytes")).into();
                        assert_eq!(block.if_tsresol, 9);
                    }
                    PcapBlockOwned::NG(Block::EnhancedPacket(block)) => {
                        let options = |code| {
                            let wanted = move |option: &&pcap_parser::PcapNGOption<'_>| {
                                option.code == OptionCode(code)
                            };
                            block
                                .options
                                .iter()
                                .filter(wanted)
                                .map(|option| option.as_bytes().expect("bytes"))
                        };
                        let flags = options(2).next().and_then(|flags| flags.try_into().ok());
                        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                        frames.push(Captured {
                            bytes: block.packet_data().to_vec(),
                            direction: flags.map_or(0, u32::from_le_bytes),
                            comments: options(1).map(text).collect(),
                        });
                        assert_eq!(block.origlen as usize, block.packet_data().len());
                    }
                    _ => {}
                }
                reader.consume(length);
            }
            // The end, or the part of a block that is not written yet.
            Err(_) => return (interface, frames),
        }
    }
}

struct Running {
    file: PathBuf,
    process: Process,
}

/// Starts `sluice capture` and returns when it captures.
fn capture(site: &Site, name: &str, arguments: &[&str]) -> Running {
    let file = site.dir.join(name);
    let mut command = Command::new(&site.program);
    command.arg("capture").args(arguments).arg("--run-dir").arg(site.run_dir()).arg("-w").arg(&file);
    let log = site.dir.join(format!("{name}.log"));
    let process = Process::start(name, &command, &log, Lifetime::Ours).expect("the program starts");
    // The head comes when the workers know.
    let begun = holds_within(PATIENCE, || !read(&file).0.is_empty());
    assert!(begun, "{}", process.output());
    Running { file, process }
}

impl Running {
    /// The file has these frames, in any order: each worker writes on its own, and a drop is seen by another one than
    /// the frames to the port.
    fn expect(&self, frames: &[Captured]) {
        holds_within(PATIENCE, || read(&self.file).1.len() >= frames.len());
        let (interface, captured) = read(&self.file);
        assert_eq!(interface, "one");
        assert_eq!(captured.len(), frames.len(), "{}: {captured:?}", self.file.display());
        for frame in frames {
            assert!(captured.contains(frame), "{frame:?} is not in {}: {captured:?}", self.file.display());
        }
    }
}

#[test]
fn frames_and_reasons_of_drops_are_in_the_file() {
    captures(Daemon::switch);
}

#[test]
fn frames_from_one_worker_to_the_other_are_in_the_file() {
    captures(Daemon::switch_with_two_workers);
}

fn captures(start: fn(&Site) -> Daemon) {
    let dir = tempfile::Builder::new().prefix("sluice-").tempdir().unwrap();
    let site = binary::site(dir.path());
    let mut daemon = start(&site);
    let guest = |name: &str| {
        site.sluice(&["port", "add", name, "--vhost-user", "--vlan", "7"]).unwrap();
        NetFrontend::connect(site.socket(name), NetOptions::default()).unwrap()
    };
    let (mut one, mut other) = (guest("one"), guest("other"));
    let mut all = capture(&site, "all", &["one"]);
    let drops = capture(&site, "drops", &["one", "--drops"]);
    let filtered = capture(&site, "filtered", &["one", "from", "02:00:00:00:00:02", "type", "0x88b5"]);

    let hello = frame(BROADCAST, mac(1), &[], b"hello");
    one.send(&hello).unwrap();
    assert_eq!(expect_frame(&mut other), hello);
    let tagged = frame(mac(2), mac(1), &[99], b"a VLAN of others");
    one.send(&tagged).unwrap();
    let answer = frame(mac(1), mac(2), &[], b"answer");
    other.send(&answer).unwrap();
    assert_eq!(expect_frame(&mut one), answer);

    let captured = |bytes: &[u8], direction, comments: &[&str]| Captured {
        bytes: bytes.to_vec(),
        direction,
        comments: comments.iter().map(ToString::to_string).collect(),
    };
    let dropped = || captured(&tagged, 1, &["dropped: vlan_not_allowed"]);
    all.expect(&[captured(&hello, 1, &[]), dropped(), captured(&answer, 2, &[])]);
    drops.expect(&[dropped()]);
    filtered.expect(&[captured(&answer, 2, &[])]);

    // Interrupted as from a keyboard it ends well, and the switch goes on.
    assert!(all.process.stop().unwrap().success(), "{}", all.process.output());
    one.send(&hello).unwrap();
    assert_eq!(expect_frame(&mut other), hello);
    let refused = site.sluice(&["capture", "one", "tpc", "10.0.0.1->*"]).expect_err("no such protocol");
    assert!(refused.to_string().contains("tpc"), "{refused}");
    daemon.assert_alive();
}
