//! Queues: configuration and statistics.

use crate::error::{DecodeError, ErrorCode};
use crate::types::PortNo;
use crate::wire::{Reader, Wire, Writer};

/// `OFPQ_ALL`: every queue of a port.
pub const QUEUE_ALL: u32 = 0xffff_ffff;

/// A property of a queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum QueueProperty {
    /// Guaranteed rate in 1/1000 of the port's; above 1000 = none.
    MinRate(u16),
    /// Rate at most, in 1/1000 of the port's; above 1000 = none.
    MaxRate(u16),
    /// An experimenter's property, as it came.
    Experimenter {
        /// The experimenter's number.
        experimenter: u32,
        /// What follows the number and its padding.
        data: Vec<u8>,
    },
}

const MIN_RATE: u16 = 1;
const MAX_RATE: u16 = 2;
const EXPERIMENTER: u16 = 0xffff;

impl Wire for QueueProperty {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        w.u16(match self {
            QueueProperty::MinRate(_) => MIN_RATE,
            QueueProperty::MaxRate(_) => MAX_RATE,
            QueueProperty::Experimenter { .. } => EXPERIMENTER,
        });
        w.u16(0);
        w.zeros(4);
        match self {
            QueueProperty::MinRate(rate) | QueueProperty::MaxRate(rate) => {
                w.u16(*rate);
                w.zeros(6);
            }
            QueueProperty::Experimenter { experimenter, data } => {
                w.u32(*experimenter);
                w.zeros(4);
                w.bytes(data);
            }
        }
        w.patch_len(start + 2, start);
    }

    fn get(outer: &mut Reader<'_>) -> Result<QueueProperty, DecodeError> {
        let (kind, len) = (outer.u16()?, usize::from(outer.u16()?));
        let body = len.checked_sub(4).ok_or(outer.error())?;
        let mut r = outer.part(body, ErrorCode::BAD_LEN, "queue property")?;
        r.skip(4)?;
        let property = match kind {
            MIN_RATE | MAX_RATE => {
                let rate = r.u16()?;
                r.skip(6)?;
                if kind == MIN_RATE { QueueProperty::MinRate(rate) } else { QueueProperty::MaxRate(rate) }
            }
            EXPERIMENTER => {
                let experimenter = r.u32()?;
                r.skip(4)?;
                QueueProperty::Experimenter { experimenter, data: r.rest().to_vec() }
            }
            _ => return Err(DecodeError::new(ErrorCode::BAD_TYPE, "queue property type")),
        };
        r.finish().map(|()| property)
    }
}

/// One queue of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PacketQueue {
    /// Its number.
    pub queue_id: u32,
    /// The port it belongs to.
    pub port: PortNo,
    /// Its properties.
    pub properties: Vec<QueueProperty>,
}

impl Wire for PacketQueue {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        w.u32(self.queue_id);
        self.port.put(w);
        w.u16(0);
        w.zeros(6);
        w.list(&self.properties);
        w.patch_len(start + 8, start);
    }

    fn get(outer: &mut Reader<'_>) -> Result<PacketQueue, DecodeError> {
        let (queue_id, port, len) = (outer.u32()?, PortNo::get(outer)?, usize::from(outer.u16()?));
        let body = len.checked_sub(10).ok_or(outer.error())?;
        let mut r = outer.part(body, ErrorCode::BAD_LEN, "queue")?;
        r.skip(6)?;
        Ok(PacketQueue { queue_id, port, properties: r.list()? })
    }
}

/// `OFPT_QUEUE_GET_CONFIG_REPLY` (7.3.6).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueueConfig {
    /// The port that was asked for.
    pub port: PortNo,
    /// Its queues.
    pub queues: Vec<PacketQueue>,
}

impl Wire for QueueConfig {
    fn put(&self, w: &mut Writer<'_>) {
        self.port.put(w);
        w.zeros(4);
        w.list(&self.queues);
    }

    fn get(r: &mut Reader<'_>) -> Result<QueueConfig, DecodeError> {
        let port = PortNo::get(r)?;
        r.skip(4)?;
        Ok(QueueConfig { port, queues: r.list()? })
    }
}

/// Statistics of one queue (7.3.5.7).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueueStats {
    /// The port it belongs to.
    pub port_no: PortNo,
    /// Its number.
    pub queue_id: u32,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets dropped.
    pub tx_errors: u64,
    /// Whole seconds it lives.
    pub duration_sec: u32,
    /// Nanoseconds beyond those.
    pub duration_nsec: u32,
}

impl Wire for QueueStats {
    fn put(&self, w: &mut Writer<'_>) {
        self.port_no.put(w);
        w.u32(self.queue_id);
        w.u64(self.tx_bytes);
        w.u64(self.tx_packets);
        w.u64(self.tx_errors);
        w.u32(self.duration_sec);
        w.u32(self.duration_nsec);
    }

    fn get(r: &mut Reader<'_>) -> Result<QueueStats, DecodeError> {
        Ok(QueueStats {
            port_no: PortNo::get(r)?,
            queue_id: r.u32()?,
            tx_bytes: r.u64()?,
            tx_packets: r.u64()?,
            tx_errors: r.u64()?,
            duration_sec: r.u32()?,
            duration_nsec: r.u32()?,
        })
    }
}
