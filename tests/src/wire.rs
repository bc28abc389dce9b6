//! An interface in a namespace as raw frames, past the host's own network stack.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use xtask::lab::netns::{Host, Namespace};

/// Bytes that wait for us at most, as far as the kernel lets us: nothing may be lost while we look elsewhere.
const BUFFER: libc::c_int = 64 << 20;

/// From linux/if_packet.h.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// Ethernet and IP address.
pub type Addresses = ([u8; 6], Ipv4Addr);

/// A packet socket bound to one interface.
pub struct Wire {
    socket: OwnedFd,
}

/// The result of a system call.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Wire {
    /// The interface of a host.
    ///
    /// # Panics
    /// Without root.
    pub fn of(host: &Host) -> Wire {
        Wire::open(&host.namespace, "eth0")
    }

    /// An interface of a namespace.
    ///
    /// # Panics
    /// Without root, or without that interface.
    pub fn open(namespace: &Namespace, interface: &str) -> Wire {
        let open = || {
            let all = (libc::ETH_P_ALL as u16).to_be();
            // SAFETY: no pointers; the descriptor is new and ours alone.
            let socket = unsafe {
                let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
                OwnedFd::from_raw_fd(check(libc::socket(libc::AF_PACKET, kind, 0))?)
            };
            let set = |level, name, value: libc::c_int| {
                let (at, len) = ((&raw const value).cast(), size_of_val(&value) as u32);
                // SAFETY: `at` points to `len` bytes that live during the call.
                check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, at, len) })
            };
            set(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
            set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
            set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER)?;
            // SAFETY: all zeroes is a valid address of this kind.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = all;
            address.sll_ifindex = nix::net::if_::if_nametoindex(interface)? as i32;
            let (at, len) = ((&raw const address).cast(), size_of_val(&address) as u32);
            // SAFETY: `at` points to `len` bytes that live during the call.
            check(unsafe { libc::bind(socket.as_raw_fd(), at, len) })?;
            io::Result::Ok(Wire { socket })
        };
        namespace.enter(open).expect("root may enter a namespace").expect("packet sockets need root")
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// The interface is gone.
    pub fn send(&self, frame: &[u8]) {
        let sent = nix::unistd::write(&self.socket, frame).expect("an interface that takes frames");
        assert_eq!(sent, frame.len());
    }

    /// The next frame that `wanted` is true of, if it comes within `patience`; the others are dropped.
    ///
    /// # Panics
    /// The interface is gone.
    pub fn receive(&self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let until = Instant::now() + patience;
        let mut buffer = [0; 2048];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: `poll` is one entry that lives during the call.
            let ready = unsafe { libc::poll(&mut poll, 1, left.as_millis().min(60_000) as i32) };
            if ready <= 0 {
                return None;
            }
            let count = nix::unistd::read(&self.socket, &mut buffer).expect("an interface");
            if wanted(&buffer[..count]) {
                return Some(buffer[..count].to_vec());
            }
        }
    }
}

/// A UDP datagram over IPv4 between these addresses and ports, with this text in it.
pub fn datagram(from: Addresses, to: Addresses, ports: [u16; 2], text: &[u8]) -> Vec<u8> {
    let ((from_mac, from), (to_mac, to)) = (from, to);
    let mut frame = [&to_mac[..], &from_mac, &[8, 0]].concat();
    let len = (28 + text.len()) as u16;
    frame.extend([0x45, 0]);
    frame.extend(len.to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    let sum = packet::checksum::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    ports.iter().for_each(|port| frame.extend(port.to_be_bytes()));
    frame.extend((len - 20).to_be_bytes());
    // No checksum.
    frame.extend([0, 0]);
    frame.extend(text);
    frame.resize(frame.len().max(60), 0);
    frame
}
