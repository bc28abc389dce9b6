//! Network namespaces as hosts: an address of their own, and one Ethernet interface that leads to a switch.

use std::fs::File;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recvmsg, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::process::output;
use super::wait::wait_for;

/// How long a link may take to come up.
const LINK_LIMIT: Duration = Duration::from_secs(30);

/// Runs `ip` with these words.
pub fn ip(words: &str) -> anyhow::Result<()> {
    output(Command::new("ip").args(words.split(' '))).context("iproute2 is needed").map(drop)
}

/// Joins two interfaces that are made for it by a cable (a veth pair), in `namespace` or in that of the caller, and
/// returns when frames pass: the kernel sets an interface to work a moment after its peer came up, and until then
/// drops what is sent.
pub fn cable(namespace: Option<&Namespace>, ends: [&str; 2], mtu: u16) -> anyhow::Result<()> {
    let [one, other] = ends;
    let at = namespace.map_or_else(String::new, |namespace| format!("-n {} ", namespace.name));
    ip(&format!("{at}link add {one} mtu {mtu} type veth peer name {other} mtu {mtu}"))?;
    for end in ends {
        ip(&format!("{at}link set {end} up"))?;
    }
    for end in ends {
        let show = format!("{at}-o link show {end}");
        wait_for(&format!("interface {end}"), LINK_LIMIT, || {
            let text = output(Command::new("ip").args(show.split(' ')))?;
            Ok(text.contains("state UP").then_some(()))
        })?;
    }
    Ok(())
}

/// A network namespace; gone with the value, or, when its process was killed, with the next one that is made.
pub struct Namespace {
    /// Its name.
    pub name: String,
}

impl Namespace {
    /// A new namespace with its loopback up, in which nothing speaks IPv6 by itself.
    pub fn new(what: &str) -> anyhow::Result<Namespace> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Once = Once::new();
        SWEEP.call_once(remove_orphans);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{what}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let namespace = Namespace { name };
        namespace.enter(|| {
            for which in ["all", "default"] {
                // Nobody but the tests speaks. A kernel without IPv6 has nothing to say anyway.
                let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
            }
        })?;
        ip(&format!("-n {} link set lo up", namespace.name))?;
        Ok(namespace)
    }

    /// Runs `work` in the namespace, on a thread of its own. A panic in there is one out here.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let file = File::open(format!("/run/netns/{}", self.name)).context("the namespace is gone")?;
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(file, CloneFlags::CLONE_NEWNET).context("only root may enter a namespace")?;
                Ok(work())
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

/// First letters of our names; the id of the process that made the namespace follows.
const PREFIX: &str = "sluice-";

/// Removes the namespaces of processes that were killed.
fn remove_orphans() {
    let Ok(names) = std::fs::read_dir("/run/netns") else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if maker.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
            // Another of us may have been faster.
            let _ = ip(&format!("netns delete {name}"));
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What is left shows in `ip netns list`; there is nobody to tell here.
        let _ = ip(&format!("netns delete {}", self.name));
    }
}

/// A host with one Ethernet interface.
pub struct Host {
    /// Where it lives.
    pub namespace: Namespace,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its Ethernet address: 02:00 and the IP address.
    pub mac: [u8; 6],
}

impl Host {
    /// A host with `address`/24. The other end of its cable is the interface `port` of the namespace `switch`.
    pub fn new(switch: &Namespace, port: &str, address: Ipv4Addr) -> anyhow::Result<Host> {
        let namespace = Namespace::new(port)?;
        let (inside, outside) = (&namespace.name, &switch.name);
        ip(&format!("-n {outside} link add name {port} type veth peer name eth0 netns {inside}"))?;
        ip(&format!("-n {outside} link set dev {port} up"))?;
        ip(&format!("-n {inside} addr add {address}/24 dev eth0"))?;
        let [a, b, c, d] = address.octets();
        ip(&format!("-n {inside} link set eth0 address 02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x} up"))?;
        Ok(Host { namespace, address, mac: [2, 0, a, b, c, d] })
    }

    /// How many of `count` echo requests to `to` are answered, each within `patience`.
    pub fn echoes(&self, to: Ipv4Addr, count: u8, patience: Duration) -> anyhow::Result<u8> {
        self.namespace.enter(move || {
            let mut answered = 0;
            for sequence in 0..count {
                answered += u8::from(echo(to, sequence, patience)?);
            }
            anyhow::Ok(answered)
        })?
    }

    /// Whether `to` answers one of three echo requests within `patience`.
    pub fn pings(&self, to: &Host, patience: Duration) -> anyhow::Result<bool> {
        let address = to.address;
        self.namespace.enter(move || {
            for sequence in 0..3 {
                if echo(address, sequence, patience / 3)? {
                    return Ok(true);
                }
            }
            anyhow::Ok(false)
        })?
    }

    /// Frames that its interface received.
    pub fn received_frames(&self) -> anyhow::Result<u64> {
        let table = self.namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        let Some(line) = table.lines().find_map(|line| line.trim().strip_prefix("eth0:")) else {
            bail!("no interface eth0 in:\n{table}");
        };
        line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).context("no counter of frames")
    }
}

/// The checksum of RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// Whether one echo request is answered within `patience`.
fn echo(to: Ipv4Addr, sequence: u8, patience: Duration) -> anyhow::Result<bool> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let id = (NEXT.fetch_add(1, Ordering::Relaxed) as u16).to_be_bytes();
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)
        .context("raw sockets need root")?;
    let target = SockaddrIn::from(SocketAddrV4::new(to, 0));
    let wait = TimeVal::microseconds(patience.as_micros() as i64);
    setsockopt(&raw, sockopt::ReceiveTimeout, &wait)?;
    let mut request = [8, 0, 0, 0, id[0], id[1], 0, sequence];
    let sum = checksum(&request).to_be_bytes();
    request[2..4].copy_from_slice(&sum);
    // An address that does not resolve is told here for an earlier request.
    if sendto(raw.as_raw_fd(), &request, &target, MsgFlags::empty()).is_err() {
        return Ok(false);
    }
    let until = Instant::now() + patience;
    while Instant::now() < until {
        let mut buffer = [0; 256];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let count = match recvmsg::<SockaddrIn>(raw.as_raw_fd(), &mut parts, None, MsgFlags::empty()) {
            Ok(message) => message.bytes,
            Err(_) => break,
        };
        // An IP header without options, an echo reply with our id.
        if count >= 28 && buffer[20] == 0 && buffer[24..26] == id && buffer[12..16] == to.octets() {
            return Ok(true);
        }
    }
    Ok(false)
}
