//! The host's network devices: tap devices and packet sockets, opened for [`crate::Io`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

/// Bytes of the `virtio_net_hdr` in front of each frame of a tap device opened by [`open_tap`].
pub const TAP_HEADER_BYTES: usize = 12;
/// Bytes of the `virtio_net_hdr` in front of each frame of a socket opened by [`open_packet`].
pub const PACKET_HEADER_BYTES: usize = 10;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;
const TUN_F_TSO_ECN: libc::c_ulong = 8;
/// Frames that the host may hold back for us, in bytes.
const RECEIVE_BUFFER_BYTES: libc::c_int = 8 << 20;

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a network device"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn ioctl_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointer is involved.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Asks the kernel about, or changes, the device that `request` names.
fn device_ioctl(operation: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = ioctl_socket()?;
    // SAFETY: `operation` is one of the SIOC* in this file, all of which take an ifreq; what it points to lives longer.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), operation as _, request as *mut libc::ifreq) })
}

fn flags(name: &str) -> io::Result<libc::c_int> {
    let mut request = request(name)?;
    device_ioctl(libc::SIOCGIFFLAGS as libc::c_ulong, &mut request)?;
    // SAFETY: SIOCGIFFLAGS filled this member; any bits are a valid short.
    Ok(libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
}

/// Whether a network device is up and has a carrier, now: the flags and notices of the kernel may be a second late.
///
/// # Errors
/// There is no such device.
pub fn is_running(name: &str) -> io::Result<bool> {
    let wanted = libc::IFF_UP | libc::IFF_RUNNING;
    // To ask for the carrier makes the flags right too. Devices that tell nothing have one.
    let carrier = carrier(name).unwrap_or(true);
    flags(name).map(|flags| carrier && flags & wanted == wanted)
}

fn carrier(name: &str) -> io::Result<bool> {
    let mut request = request(name)?;
    // struct ethtool_value: the command and its answer.
    let mut value = [ETHTOOL_GLINK, 0];
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    device_ioctl(libc::SIOCETHTOOL as libc::c_ulong, &mut request)?;
    Ok(value[1] != 0)
}

/// linux/ethtool.h
const ETHTOOL_GLINK: u32 = 0x0a;

/// Sets a network device up.
///
/// # Errors
/// There is no such device, or this process may not.
pub fn set_up(name: &str) -> io::Result<()> {
    let up = flags(name)? | libc::IFF_UP;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = up as libc::c_short;
    device_ioctl(libc::SIOCSIFFLAGS as libc::c_ulong, &mut request)
}

/// Sets the MTU of a network device, in bytes.
///
/// # Errors
/// There is no such device, it cannot have this MTU, or this process may not.
pub fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu.into();
    device_ioctl(libc::SIOCSIFMTU as libc::c_ulong, &mut request)
}

/// Number of a network device.
///
/// # Errors
/// There is no such device.
pub fn index(name: &str) -> io::Result<u32> {
    let mut request = request(name)?;
    device_ioctl(libc::SIOCGIFINDEX as libc::c_ulong, &mut request)?;
    // SAFETY: SIOCGIFINDEX filled this member; any bits are a valid int.
    u32::try_from(unsafe { request.ifr_ifru.ifru_ifindex }).map_err(io::Error::other)
}

/// Opens the tap device `name`, which is made unless it exists. Each frame is preceded by a `virtio_net_hdr` of
/// [`TAP_HEADER_BYTES`]; checksums and TCP segmentation may be left undone in both directions. A device made here goes
/// when the file is closed.
///
/// # Errors
/// Another program has it, it is no tap device, or this process may not.
pub fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let file: File =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let header_bytes = TAP_HEADER_BYTES as libc::c_int;
    let offload = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    let fd = file.as_raw_fd();
    // SAFETY: TUNSETIFF takes an ifreq, TUNSETVNETHDRSZ a pointer to an int, TUNSETOFFLOAD a plain number.
    unsafe {
        check(libc::ioctl(fd, TUNSETIFF as _, &raw mut request))?;
        check(libc::ioctl(fd, TUNSETVNETHDRSZ as _, &raw const header_bytes))?;
        check(libc::ioctl(fd, TUNSETOFFLOAD as _, offload))?;
    }
    Ok(file.into())
}

/// Opens a packet socket on the network device `name` that gets every frame the device receives, whomever it is for,
/// but not those that this host sends. Each frame is preceded by a `virtio_net_hdr` of [`PACKET_HEADER_BYTES`];
/// a VLAN tag that the host took out comes with the auxiliary data.
///
/// # Errors
/// There is no such device, it is no Ethernet device, or this process may not.
pub fn open_packet(name: &str) -> io::Result<OwnedFd> {
    let index = index(name)?;
    // No protocol yet: frames of other devices must not get in before the socket is bound.
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointer is involved.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    check(fd)?;
    // SAFETY: a new descriptor that nobody else knows.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let one: libc::c_int = 1;
    for option in [libc::PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING] {
        set_option(&socket, libc::SOL_PACKET, option, &one)?;
    }
    // Not more than the host's limit without CAP_NET_ADMIN; a smaller buffer is no failure.
    let _ = set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER_BYTES)
        .or_else(|_| set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BUFFER_BYTES));
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as libc::c_int;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: a sockaddr_ll of that length.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    let all = libc::packet_mreq {
        mr_ifindex: index as libc::c_int,
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &all)?;
    Ok(socket)
}

/// What the kernel says about network devices of this thread's namespace: that something changed, not what. Readable when
/// it did.
#[derive(Debug)]
pub struct DeviceChanges(OwnedFd);

impl DeviceChanges {
    /// Listens from now on.
    ///
    /// # Errors
    /// The host has no more sockets to give.
    pub fn listen() -> io::Result<DeviceChanges> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointer is involved.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        check(fd)?;
        // SAFETY: a new descriptor that nobody else knows.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zeroes is a valid sockaddr_nl.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = libc::RTMGRP_LINK as u32;
        let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: a sockaddr_nl of that length.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
        Ok(DeviceChanges(socket))
    }

    /// Another descriptor of the socket, readable when something was said.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn readable(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Takes all that was said; whether there was something. What did not fit into the socket's buffer counts too.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn take(&self) -> io::Result<bool> {
        let mut some = false;
        // What is in the messages is of no interest, so they may be cut.
        let mut buffer = [0u8; 64];
        loop {
            let (fd, room) = (self.0.as_raw_fd(), buffer.len());
            // SAFETY: `room` bytes that live across the call.
            let count = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), room, libc::MSG_TRUNC) };
            match check(count.min(0) as libc::c_int).map_err(|error| (error.kind(), error)) {
                Ok(()) => some = true,
                Err((io::ErrorKind::WouldBlock, _)) => return Ok(some),
                Err((_, error)) if error.raw_os_error() == Some(libc::ENOBUFS) => some = true,
                Err((io::ErrorKind::Interrupted, _)) => {}
                Err((_, error)) => return Err(error),
            }
        }
    }
}

/// linux/if_packet.h
const PACKET_VNET_HDR: libc::c_int = 15;
/// linux/if_packet.h
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

fn set_option<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is `length` bytes that live across the call; callers pass plain C data.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const *value).cast(), length) })
}
