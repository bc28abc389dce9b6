//! Ports: description, status, modification, statistics.

use crate::error::{DecodeError, ErrorCode};
use crate::types::{MacAddr, PortNo, Text};
use crate::wire::{Reader, Wire, Writer};

flags! {
    /// `OFPPC_*`: what the operator or a controller wants of a port.
    PortConfig: u32 {
        /// The port is off.
        PORT_DOWN = 1 << 0,
        /// Drop what comes in.
        NO_RECV = 1 << 2,
        /// Drop what would go out.
        NO_FWD = 1 << 5,
        /// Send no packet-in for this port.
        NO_PACKET_IN = 1 << 6,
    }
}

flags! {
    /// `OFPPS_*`: what the switch says of a port.
    PortState: u32 {
        /// No physical link.
        LINK_DOWN = 1 << 0,
        /// Blocked by another protocol, e.g. spanning tree.
        BLOCKED = 1 << 1,
        /// Usable by fast-failover groups.
        LIVE = 1 << 2,
    }
}

flags! {
    /// `OFPPF_*`: link modes.
    PortFeatures: u32 {
        /// 10 Mbit/s half duplex.
        SPEED_10MB_HD = 1 << 0,
        /// 10 Mbit/s.
        SPEED_10MB_FD = 1 << 1,
        /// 100 Mbit/s half duplex.
        SPEED_100MB_HD = 1 << 2,
        /// 100 Mbit/s.
        SPEED_100MB_FD = 1 << 3,
        /// 1 Gbit/s half duplex.
        SPEED_1GB_HD = 1 << 4,
        /// 1 Gbit/s.
        SPEED_1GB_FD = 1 << 5,
        /// 10 Gbit/s.
        SPEED_10GB_FD = 1 << 6,
        /// 40 Gbit/s.
        SPEED_40GB_FD = 1 << 7,
        /// 100 Gbit/s.
        SPEED_100GB_FD = 1 << 8,
        /// 1 Tbit/s.
        SPEED_1TB_FD = 1 << 9,
        /// Another speed.
        SPEED_OTHER = 1 << 10,
        /// Copper.
        COPPER = 1 << 11,
        /// Fibre.
        FIBER = 1 << 12,
        /// Auto-negotiation.
        AUTONEG = 1 << 13,
        /// Pause frames.
        PAUSE = 1 << 14,
        /// Asymmetric pause.
        PAUSE_ASYM = 1 << 15,
    }
}

/// `ofp_port` (7.2.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Its number.
    pub port_no: PortNo,
    /// Its Ethernet address.
    pub hw_addr: MacAddr,
    /// Its name.
    pub name: Text<16>,
    /// What is wanted of it.
    pub config: PortConfig,
    /// How it is.
    pub state: PortState,
    /// The link mode in use.
    pub current: PortFeatures,
    /// Advertised link modes.
    pub advertised: PortFeatures,
    /// Link modes the port can do.
    pub supported: PortFeatures,
    /// Link modes the other end advertises.
    pub peer: PortFeatures,
    /// Current speed in kbit/s.
    pub current_speed_kbps: u32,
    /// Highest speed in kbit/s.
    pub max_speed_kbps: u32,
}

impl Port {
    /// A port about which nothing is said but what it is called.
    pub fn new(port_no: PortNo, hw_addr: MacAddr, name: &str) -> Port {
        Port {
            port_no,
            hw_addr,
            name: Text::new(name),
            config: PortConfig(0),
            state: PortState(0),
            current: PortFeatures(0),
            advertised: PortFeatures(0),
            supported: PortFeatures(0),
            peer: PortFeatures(0),
            current_speed_kbps: 0,
            max_speed_kbps: 0,
        }
    }
}

impl Wire for Port {
    fn put(&self, w: &mut Writer<'_>) {
        self.port_no.put(w);
        w.zeros(4);
        self.hw_addr.put(w);
        w.zeros(2);
        self.name.put(w);
        let modes = [self.current, self.advertised, self.supported, self.peer];
        w.u32(self.config.0);
        w.u32(self.state.0);
        modes.iter().for_each(|mode| w.u32(mode.0));
        w.u32(self.current_speed_kbps);
        w.u32(self.max_speed_kbps);
    }

    fn get(r: &mut Reader<'_>) -> Result<Port, DecodeError> {
        let port_no = PortNo::get(r)?;
        r.skip(4)?;
        let hw_addr = MacAddr::get(r)?;
        r.skip(2)?;
        Ok(Port {
            port_no,
            hw_addr,
            name: Text::get(r)?,
            config: PortConfig(r.u32()?),
            state: PortState(r.u32()?),
            current: PortFeatures(r.u32()?),
            advertised: PortFeatures(r.u32()?),
            supported: PortFeatures(r.u32()?),
            peer: PortFeatures(r.u32()?),
            current_speed_kbps: r.u32()?,
            max_speed_kbps: r.u32()?,
        })
    }
}

wire_enum! {
    /// What happened to a port (`OFPPR_*`).
    PortStatusReason: u8 {
        /// It is new.
        Add = 0,
        /// It is gone.
        Delete = 1,
        /// Something about it changed.
        Modify = 2,
    }
}

/// `OFPT_PORT_STATUS` (7.4.3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortStatus {
    /// What happened.
    pub reason: PortStatusReason,
    /// The port as it is now, or was.
    pub port: Port,
}

impl Wire for PortStatus {
    fn put(&self, w: &mut Writer<'_>) {
        w.u8(self.reason.number());
        w.zeros(7);
        self.port.put(w);
    }

    fn get(r: &mut Reader<'_>) -> Result<PortStatus, DecodeError> {
        let reason = PortStatusReason::from_number(r.u8()?)
            .ok_or(DecodeError::new(ErrorCode::BAD_TYPE, "port-status reason"))?;
        r.skip(7)?;
        Ok(PortStatus { reason, port: Port::get(r)? })
    }
}

/// `OFPT_PORT_MOD` (7.3.4.3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortMod {
    /// The port.
    pub port_no: PortNo,
    /// Its address, as a check that this port is meant.
    pub hw_addr: MacAddr,
    /// The bits to set.
    pub config: PortConfig,
    /// Which bits to change.
    pub mask: PortConfig,
    /// Link modes to advertise; empty = leave.
    pub advertise: PortFeatures,
}

impl Wire for PortMod {
    fn put(&self, w: &mut Writer<'_>) {
        self.port_no.put(w);
        w.zeros(4);
        self.hw_addr.put(w);
        w.zeros(2);
        w.u32(self.config.0);
        w.u32(self.mask.0);
        w.u32(self.advertise.0);
        w.zeros(4);
    }

    fn get(r: &mut Reader<'_>) -> Result<PortMod, DecodeError> {
        let port_no = PortNo::get(r)?;
        r.skip(4)?;
        let hw_addr = MacAddr::get(r)?;
        r.skip(2)?;
        let port_mod = PortMod {
            port_no,
            hw_addr,
            config: PortConfig(r.u32()?),
            mask: PortConfig(r.u32()?),
            advertise: PortFeatures(r.u32()?),
        };
        r.skip(4).map(|()| port_mod)
    }
}

/// Statistics of one port (7.3.5.6). A counter that the switch does not have is all ones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortStats {
    /// The port.
    pub port_no: PortNo,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Received packets dropped.
    pub rx_dropped: u64,
    /// Packets dropped instead of sent.
    pub tx_dropped: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Frame alignment errors.
    pub rx_frame_err: u64,
    /// Overruns.
    pub rx_over_err: u64,
    /// Checksum errors.
    pub rx_crc_err: u64,
    /// Collisions.
    pub collisions: u64,
    /// Whole seconds the port is alive.
    pub duration_sec: u32,
    /// Nanoseconds beyond those.
    pub duration_nsec: u32,
}

impl PortStats {
    /// All counters zero.
    pub fn new(port_no: PortNo) -> PortStats {
        PortStats {
            port_no,
            rx_packets: 0,
            tx_packets: 0,
            rx_bytes: 0,
            tx_bytes: 0,
            rx_dropped: 0,
            tx_dropped: 0,
            rx_errors: 0,
            tx_errors: 0,
            rx_frame_err: 0,
            rx_over_err: 0,
            rx_crc_err: 0,
            collisions: 0,
            duration_sec: 0,
            duration_nsec: 0,
        }
    }
}

impl Wire for PortStats {
    fn put(&self, w: &mut Writer<'_>) {
        self.port_no.put(w);
        w.zeros(4);
        for counter in [
            self.rx_packets,
            self.tx_packets,
            self.rx_bytes,
            self.tx_bytes,
            self.rx_dropped,
            self.tx_dropped,
            self.rx_errors,
            self.tx_errors,
            self.rx_frame_err,
            self.rx_over_err,
            self.rx_crc_err,
            self.collisions,
        ] {
            w.u64(counter);
        }
        w.u32(self.duration_sec);
        w.u32(self.duration_nsec);
    }

    fn get(r: &mut Reader<'_>) -> Result<PortStats, DecodeError> {
        let port_no = PortNo::get(r)?;
        r.skip(4)?;
        Ok(PortStats {
            port_no,
            rx_packets: r.u64()?,
            tx_packets: r.u64()?,
            rx_bytes: r.u64()?,
            tx_bytes: r.u64()?,
            rx_dropped: r.u64()?,
            tx_dropped: r.u64()?,
            rx_errors: r.u64()?,
            tx_errors: r.u64()?,
            rx_frame_err: r.u64()?,
            rx_over_err: r.u64()?,
            rx_crc_err: r.u64()?,
            collisions: r.u64()?,
            duration_sec: r.u32()?,
            duration_nsec: r.u32()?,
        })
    }
}
