//! Open vSwitch's userspace datapath in a network namespace of its own, with hosts in namespaces around it.

use std::fs::File;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recvmsg, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use xtask::lab::process::{Lifetime, Process};
use xtask::paths::find_program;

use crate::holds_within;

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a program to its end and returns what it printed.
fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)))
    }
}

fn ip(args: &str) {
    run("ip", &args.split(' ').collect::<Vec<_>>()).expect("network namespaces need root and iproute2");
}

/// A network namespace; gone with the value.
pub struct Namespace {
    /// Its name.
    pub name: String,
}

impl Namespace {
    /// A new namespace with its loopback up.
    ///
    /// # Panics
    /// Without root or iproute2.
    pub fn new(what: &str) -> Namespace {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}-{number}-{what}", std::process::id());
        ip(&format!("netns add {name}"));
        let namespace = Namespace { name };
        namespace.enter(|| {
            for which in ["all", "default"] {
                // Nobody but the tests speaks. A kernel without IPv6 has nothing to say anyway.
                let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
            }
        });
        ip(&format!("-n {} link set lo up", namespace.name));
        namespace
    }

    /// Runs `work` in the namespace, on a thread of its own.
    ///
    /// # Panics
    /// When `work` does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = File::open(format!("/run/netns/{}", self.name)).expect("the namespace is there");
                setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that runs in the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What is left shows in `ip netns list`; there is nobody to tell here.
        let _ = run("ip", &["netns", "delete", &self.name]);
    }
}

/// A host with one Ethernet interface.
pub struct Host {
    namespace: Namespace,
    /// Its address.
    pub address: Ipv4Addr,
}

impl Host {
    /// Whether `to` answers one of three echo requests within `patience`.
    ///
    /// # Panics
    /// Without root.
    pub fn pings(&self, to: &Host, patience: Duration) -> bool {
        let address = to.address;
        self.namespace.enter(move || ping(address, patience))
    }
}

/// The checksum of RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

fn ping(to: Ipv4Addr, patience: Duration) -> bool {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let id = (NEXT.fetch_add(1, Ordering::Relaxed) as u16).to_be_bytes();
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp);
    let raw = raw.expect("raw sockets need root");
    let target = SockaddrIn::from(SocketAddrV4::new(to, 0));
    let turn = patience / 3;
    let wait = TimeVal::microseconds(turn.as_micros() as i64);
    setsockopt(&raw, sockopt::ReceiveTimeout, &wait).expect("a socket has a time-out");
    for sequence in 0..3u8 {
        let mut request = [8, 0, 0, 0, id[0], id[1], 0, sequence];
        let sum = checksum(&request).to_be_bytes();
        request[2..4].copy_from_slice(&sum);
        // An address that does not resolve is told here for an earlier request.
        if sendto(raw.as_raw_fd(), &request, &target, MsgFlags::empty()).is_err() {
            continue;
        }
        let until = Instant::now() + turn;
        while Instant::now() < until {
            let mut buffer = [0; 256];
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let count = match recvmsg::<SockaddrIn>(raw.as_raw_fd(), &mut parts, None, MsgFlags::empty()) {
                Ok(message) => message.bytes,
                Err(_) => break,
            };
            // An IP header without options, an echo reply with our id.
            if count >= 28 && buffer[20] == 0 && buffer[24..26] == id && buffer[12..16] == to.octets() {
                return true;
            }
        }
    }
    false
}

/// A private Open vSwitch: database, daemon, and its namespace.
pub struct Ovs {
    /// The namespace the daemon runs in; a controller belongs here too.
    pub namespace: Namespace,
    directory: tempfile::TempDir,
    daemon: Option<Process>,
    _database: Process,
}

impl Ovs {
    /// Starts it.
    ///
    /// # Panics
    /// Without root, or without the Debian package openvswitch-switch.
    pub fn start() -> Ovs {
        for program in ["ovs-vswitchd", "ovsdb-server", "ovsdb-tool", "ovs-vsctl", "ovs-ofctl"] {
            let remedy = "install the Debian package: apt-get install openvswitch-switch";
            assert!(find_program(program).is_some(), "{program} is not there; {remedy}");
        }
        let directory = tempfile::Builder::new().prefix("sluice-ovs-").tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        run("ovsdb-tool", &["create", path("conf.db").to_str().unwrap(), schema]).unwrap();
        let mut command = Command::new("ovsdb-server");
        command.arg(path("conf.db")).arg(format!("--remote=punix:{}", path("db.sock").display()));
        command.arg(format!("--unixctl={}", path("db.ctl").display())).arg("--no-chdir");
        let database = Process::start("ovsdb-server", &command, &path("db.log"), Lifetime::Ours).unwrap();
        let namespace = Namespace::new("ovs");
        let mut ovs = Ovs { namespace, directory, daemon: None, _database: database };
        let listens = holds_within(PATIENCE, || ovs.path("db.sock").exists());
        assert!(listens, "ovsdb-server listens");
        ovs.vsctl(&["--no-wait", "init"]);
        ovs.start_daemon();
        ovs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn database(&self) -> String {
        format!("unix:{}", self.path("db.sock").display())
    }

    fn start_daemon(&mut self) {
        let mut command = self.namespace.command("ovs-vswitchd");
        command.arg(self.database()).arg(format!("--unixctl={}", self.path("vswitchd.ctl").display()));
        command.args(["--no-chdir", "-vconsole:warn"]).env("OVS_RUNDIR", self.directory.path());
        let log = self.path("vswitchd.log");
        self.daemon = Some(Process::start("ovs-vswitchd", &command, &log, Lifetime::Ours).unwrap());
    }

    /// Kills the daemon (SIGKILL) and starts it again: its flow entries are gone.
    ///
    /// # Panics
    /// It does not start.
    pub fn kill_and_restart(&mut self) {
        self.daemon.as_mut().expect("it runs").kill().unwrap();
        self.start_daemon();
    }

    /// Configures by `ovs-vsctl`, which waits until the daemon has done it.
    ///
    /// # Panics
    /// It is refused, or not done in time.
    pub fn vsctl(&self, args: &[&str]) -> String {
        let database = format!("--db={}", self.database());
        run("ovs-vsctl", &[&["--timeout=60", &database], args].concat()).unwrap()
    }

    /// Asks or tells a bridge by `ovs-ofctl`.
    ///
    /// # Panics
    /// It is refused.
    pub fn ofctl(&self, verb: &str, bridge: &str, args: &[&str]) -> String {
        let target = format!("unix:{}", self.path(&format!("{bridge}.mgmt")).display());
        run("ovs-ofctl", &[&["-O", "OpenFlow13", "--timeout=60", verb, &target], args].concat()).unwrap()
    }

    /// The flow entries of a bridge, one a line.
    ///
    /// # Panics
    /// The bridge does not answer.
    pub fn flows(&self, bridge: &str) -> Vec<String> {
        let text = self.ofctl("dump-flows", bridge, &[]);
        text.lines().filter(|line| line.contains("cookie=")).map(|line| line.trim().to_owned()).collect()
    }

    /// Makes a bridge without ports that does nothing of its own and calls the controller at `controller`.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn add_bridge(&self, name: &str, dpid: u64, controller: &str) {
        let id = format!("other-config:datapath-id={dpid:016x}");
        self.vsctl(
            &[
                &[
                    "add-br",
                    name,
                    "--",
                    "set",
                    "bridge",
                    name,
                    "datapath_type=netdev",
                    "protocols=OpenFlow13",
                ][..],
                &["fail-mode=secure", &id, "--", "set-controller", name, &format!("tcp:{controller}")],
                &["--", "set", "controller", name, "max_backoff=1000"],
            ]
            .concat(),
        );
    }

    /// Joins two bridges by a pair of ports of these names and numbers.
    ///
    /// # Panics
    /// They cannot be made.
    pub fn join(&self, ends: [(&str, &str, u32); 2]) {
        for ((bridge, port, number), (_, peer, _)) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let (peer, number) = (format!("options:peer={peer}"), format!("ofport_request={number}"));
            let set = ["set", "interface", port, "type=patch", &peer, &number];
            self.vsctl(&[&["--no-wait", "add-port", bridge, port, "--"][..], &set].concat());
        }
    }

    /// Adds a host: a namespace of its own with `address`/24, on port `number` of the bridge, called `port`.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn add_host(&self, bridge: &str, port: &str, number: u32, address: Ipv4Addr) -> Host {
        let namespace = Namespace::new(port);
        let (inside, outside) = (&namespace.name, &self.namespace.name);
        ip(&format!("-n {outside} link add name {port} type veth peer name eth0 netns {inside}"));
        ip(&format!("-n {outside} link set dev {port} up"));
        ip(&format!("-n {inside} addr add {address}/24 dev eth0"));
        ip(&format!("-n {inside} link set eth0 up"));
        let number = format!("ofport_request={number}");
        self.vsctl(&["add-port", bridge, port, "--", "set", "interface", port, &number]);
        Host { namespace, address }
    }
}
