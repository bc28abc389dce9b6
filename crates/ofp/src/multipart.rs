//! Multipart messages (7.3.5), and their cutting and joining by the MORE flag.

use std::collections::HashMap;

use crate::error::{DecodeError, EncodeError, ErrorCode};
use crate::flow::{AggregateStats, FlowStats, FlowStatsRequest};
use crate::groups::{GroupDesc, GroupFeatures, GroupStats};
use crate::message::{Body, MESSAGE_LEN_MAX, Message};
use crate::meters::{MeterConfig, MeterFeatures, MeterStats};
use crate::port::{Port, PortStats};
use crate::queue::QueueStats;
use crate::switch::{Desc, Experimenter};
use crate::table::{TableFeatures, TableStats};
use crate::types::PortNo;
use crate::wire::{Reader, Wire, Writer};

wire_enum! {
    /// The subject of a multipart message (`OFPMP_*`).
    MultipartType: u16 {
        /// Description of the switch.
        Desc = 0,
        /// Flow entries.
        Flow = 1,
        /// Sums over flow entries.
        Aggregate = 2,
        /// Tables.
        Table = 3,
        /// Port counters.
        PortStats = 4,
        /// Queue counters.
        Queue = 5,
        /// Group counters.
        Group = 6,
        /// Groups.
        GroupDesc = 7,
        /// What groups can do.
        GroupFeatures = 8,
        /// Meter counters.
        Meter = 9,
        /// Meters.
        MeterConfig = 10,
        /// What meters can do.
        MeterFeatures = 11,
        /// What tables can do.
        TableFeatures = 12,
        /// Ports.
        PortDesc = 13,
        /// An experimenter's.
        Experimenter = 0xffff,
    }
}

/// A multipart request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MultipartRequest {
    /// Description of the switch.
    Desc,
    /// Flow entries.
    Flow(FlowStatsRequest),
    /// Sums over flow entries.
    Aggregate(FlowStatsRequest),
    /// Tables.
    Table,
    /// Counters of a port, or of all with `ANY`.
    PortStats(PortNo),
    /// Counters of queues.
    Queue {
        /// The port, or `ANY`.
        port_no: PortNo,
        /// The queue, or [`crate::QUEUE_ALL`].
        queue_id: u32,
    },
    /// Counters of a group, or of all with [`crate::group::ALL`].
    Group(u32),
    /// All groups.
    GroupDesc,
    /// What groups can do.
    GroupFeatures,
    /// Counters of a meter, or of all with [`crate::meter::ALL`].
    Meter(u32),
    /// A meter, or all with [`crate::meter::ALL`].
    MeterConfig(u32),
    /// What meters can do.
    MeterFeatures,
    /// What tables can do; a list that is not empty asks the switch to become like that.
    TableFeatures(Vec<TableFeatures>),
    /// All ports.
    PortDesc,
    /// An experimenter's, raw.
    Experimenter(Experimenter),
}

/// A multipart reply, or one part of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MultipartReply {
    /// Description of the switch.
    Desc(Box<Desc>),
    /// Flow entries.
    Flow(Vec<FlowStats>),
    /// Sums over flow entries.
    Aggregate(AggregateStats),
    /// Tables.
    Table(Vec<TableStats>),
    /// Counters of ports.
    PortStats(Vec<PortStats>),
    /// Counters of queues.
    Queue(Vec<QueueStats>),
    /// Counters of groups.
    Group(Vec<GroupStats>),
    /// Groups.
    GroupDesc(Vec<GroupDesc>),
    /// What groups can do.
    GroupFeatures(GroupFeatures),
    /// Counters of meters.
    Meter(Vec<MeterStats>),
    /// Meters.
    MeterConfig(Vec<MeterConfig>),
    /// What meters can do.
    MeterFeatures(MeterFeatures),
    /// What tables can do.
    TableFeatures(Vec<TableFeatures>),
    /// Ports.
    PortDesc(Vec<Port>),
    /// An experimenter's, raw.
    Experimenter(Experimenter),
}

fn put_header(w: &mut Writer<'_>, kind: MultipartType, flags: u16) {
    w.u16(kind.number());
    w.u16(flags);
    w.zeros(4);
}

fn get_header(r: &mut Reader<'_>) -> Result<(MultipartType, u16), DecodeError> {
    let (number, flags) = (r.u16()?, r.u16()?);
    let kind = MultipartType::from_number(number)
        .ok_or(DecodeError::new(ErrorCode::BAD_MULTIPART, "multipart type"))?;
    r.skip(4)?;
    Ok((kind, flags))
}

impl MultipartRequest {
    /// The subject.
    pub const fn kind(&self) -> MultipartType {
        match self {
            MultipartRequest::Desc => MultipartType::Desc,
            MultipartRequest::Flow(_) => MultipartType::Flow,
            MultipartRequest::Aggregate(_) => MultipartType::Aggregate,
            MultipartRequest::Table => MultipartType::Table,
            MultipartRequest::PortStats(_) => MultipartType::PortStats,
            MultipartRequest::Queue { .. } => MultipartType::Queue,
            MultipartRequest::Group(_) => MultipartType::Group,
            MultipartRequest::GroupDesc => MultipartType::GroupDesc,
            MultipartRequest::GroupFeatures => MultipartType::GroupFeatures,
            MultipartRequest::Meter(_) => MultipartType::Meter,
            MultipartRequest::MeterConfig(_) => MultipartType::MeterConfig,
            MultipartRequest::MeterFeatures => MultipartType::MeterFeatures,
            MultipartRequest::TableFeatures(_) => MultipartType::TableFeatures,
            MultipartRequest::PortDesc => MultipartType::PortDesc,
            MultipartRequest::Experimenter(_) => MultipartType::Experimenter,
        }
    }

    pub(crate) fn put(&self, w: &mut Writer<'_>, flags: u16) {
        put_header(w, self.kind(), flags);
        match self {
            MultipartRequest::Desc
            | MultipartRequest::Table
            | MultipartRequest::GroupDesc
            | MultipartRequest::GroupFeatures
            | MultipartRequest::MeterFeatures
            | MultipartRequest::PortDesc => {}
            MultipartRequest::Flow(request) | MultipartRequest::Aggregate(request) => request.put(w),
            MultipartRequest::PortStats(port_no) => {
                port_no.put(w);
                w.zeros(4);
            }
            MultipartRequest::Queue { port_no, queue_id } => {
                port_no.put(w);
                w.u32(*queue_id);
            }
            MultipartRequest::Group(id) | MultipartRequest::Meter(id) | MultipartRequest::MeterConfig(id) => {
                w.u32(*id);
                w.zeros(4);
            }
            MultipartRequest::TableFeatures(tables) => w.list(tables),
            MultipartRequest::Experimenter(experimenter) => experimenter.put(w),
        }
    }

    pub(crate) fn get(r: &mut Reader<'_>) -> Result<(MultipartRequest, u16), DecodeError> {
        let (kind, flags) = get_header(r)?;
        let id = |r: &mut Reader<'_>| r.u32().and_then(|id| r.skip(4).map(|()| id));
        let request = match kind {
            MultipartType::Desc => MultipartRequest::Desc,
            MultipartType::Flow => MultipartRequest::Flow(FlowStatsRequest::get(r)?),
            MultipartType::Aggregate => MultipartRequest::Aggregate(FlowStatsRequest::get(r)?),
            MultipartType::Table => MultipartRequest::Table,
            MultipartType::PortStats => MultipartRequest::PortStats(PortNo(id(r)?)),
            MultipartType::Queue => MultipartRequest::Queue { port_no: PortNo::get(r)?, queue_id: r.u32()? },
            MultipartType::Group => MultipartRequest::Group(id(r)?),
            MultipartType::GroupDesc => MultipartRequest::GroupDesc,
            MultipartType::GroupFeatures => MultipartRequest::GroupFeatures,
            MultipartType::Meter => MultipartRequest::Meter(id(r)?),
            MultipartType::MeterConfig => MultipartRequest::MeterConfig(id(r)?),
            MultipartType::MeterFeatures => MultipartRequest::MeterFeatures,
            MultipartType::TableFeatures => MultipartRequest::TableFeatures(r.list()?),
            MultipartType::PortDesc => MultipartRequest::PortDesc,
            MultipartType::Experimenter => MultipartRequest::Experimenter(Experimenter::get(r)?),
        };
        Ok((request, flags))
    }
}

/// The replies that are lists, for code that is the same for each.
macro_rules! for_lists {
    ($reply:expr, $items:ident => $list:expr, $other:pat => $rest:expr) => {
        match $reply {
            MultipartReply::Flow($items) => $list,
            MultipartReply::Table($items) => $list,
            MultipartReply::PortStats($items) => $list,
            MultipartReply::Queue($items) => $list,
            MultipartReply::Group($items) => $list,
            MultipartReply::GroupDesc($items) => $list,
            MultipartReply::Meter($items) => $list,
            MultipartReply::MeterConfig($items) => $list,
            MultipartReply::TableFeatures($items) => $list,
            MultipartReply::PortDesc($items) => $list,
            $other => $rest,
        }
    };
}

impl MultipartReply {
    /// The subject.
    pub const fn kind(&self) -> MultipartType {
        match self {
            MultipartReply::Desc(_) => MultipartType::Desc,
            MultipartReply::Flow(_) => MultipartType::Flow,
            MultipartReply::Aggregate(_) => MultipartType::Aggregate,
            MultipartReply::Table(_) => MultipartType::Table,
            MultipartReply::PortStats(_) => MultipartType::PortStats,
            MultipartReply::Queue(_) => MultipartType::Queue,
            MultipartReply::Group(_) => MultipartType::Group,
            MultipartReply::GroupDesc(_) => MultipartType::GroupDesc,
            MultipartReply::GroupFeatures(_) => MultipartType::GroupFeatures,
            MultipartReply::Meter(_) => MultipartType::Meter,
            MultipartReply::MeterConfig(_) => MultipartType::MeterConfig,
            MultipartReply::MeterFeatures(_) => MultipartType::MeterFeatures,
            MultipartReply::TableFeatures(_) => MultipartType::TableFeatures,
            MultipartReply::PortDesc(_) => MultipartType::PortDesc,
            MultipartReply::Experimenter(_) => MultipartType::Experimenter,
        }
    }

    /// How many elements the list has; 1 for the replies that are not lists.
    pub fn len(&self) -> usize {
        for_lists!(self, items => items.len(), _ => 1)
    }

    /// Whether it is an empty list.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn put(&self, w: &mut Writer<'_>, flags: u16) {
        put_header(w, self.kind(), flags);
        for_lists!(self, items => w.list(items), other => match other {
            MultipartReply::Desc(desc) => desc.put(w),
            MultipartReply::Aggregate(stats) => stats.put(w),
            MultipartReply::GroupFeatures(features) => features.put(w),
            MultipartReply::MeterFeatures(features) => features.put(w),
            MultipartReply::Experimenter(experimenter) => experimenter.put(w),
            _ => {}
        });
    }

    pub(crate) fn get(r: &mut Reader<'_>) -> Result<(MultipartReply, u16), DecodeError> {
        let (kind, flags) = get_header(r)?;
        let reply = match kind {
            MultipartType::Desc => MultipartReply::Desc(Box::new(Desc::get(r)?)),
            MultipartType::Flow => MultipartReply::Flow(r.list()?),
            MultipartType::Aggregate => MultipartReply::Aggregate(AggregateStats::get(r)?),
            MultipartType::Table => MultipartReply::Table(r.list()?),
            MultipartType::PortStats => MultipartReply::PortStats(r.list()?),
            MultipartType::Queue => MultipartReply::Queue(r.list()?),
            MultipartType::Group => MultipartReply::Group(r.list()?),
            MultipartType::GroupDesc => MultipartReply::GroupDesc(r.list()?),
            MultipartType::GroupFeatures => MultipartReply::GroupFeatures(GroupFeatures::get(r)?),
            MultipartType::Meter => MultipartReply::Meter(r.list()?),
            MultipartType::MeterConfig => MultipartReply::MeterConfig(r.list()?),
            MultipartType::MeterFeatures => MultipartReply::MeterFeatures(MeterFeatures::get(r)?),
            MultipartType::TableFeatures => MultipartReply::TableFeatures(r.list()?),
            MultipartType::PortDesc => MultipartReply::PortDesc(r.list()?),
            MultipartType::Experimenter => MultipartReply::Experimenter(Experimenter::get(r)?),
        };
        Ok((reply, flags))
    }

    /// Appends the elements of `more`, which is of the same kind. Gives `more` back when they cannot be joined.
    fn join(&mut self, more: MultipartReply) -> Result<(), MultipartReply> {
        match (self, more) {
            (MultipartReply::Flow(all), MultipartReply::Flow(more)) => all.extend(more),
            (MultipartReply::Table(all), MultipartReply::Table(more)) => all.extend(more),
            (MultipartReply::PortStats(all), MultipartReply::PortStats(more)) => all.extend(more),
            (MultipartReply::Queue(all), MultipartReply::Queue(more)) => all.extend(more),
            (MultipartReply::Group(all), MultipartReply::Group(more)) => all.extend(more),
            (MultipartReply::GroupDesc(all), MultipartReply::GroupDesc(more)) => all.extend(more),
            (MultipartReply::Meter(all), MultipartReply::Meter(more)) => all.extend(more),
            (MultipartReply::MeterConfig(all), MultipartReply::MeterConfig(more)) => all.extend(more),
            (MultipartReply::TableFeatures(all), MultipartReply::TableFeatures(more)) => all.extend(more),
            (MultipartReply::PortDesc(all), MultipartReply::PortDesc(more)) => all.extend(more),
            (MultipartReply::Experimenter(all), MultipartReply::Experimenter(more))
                if (all.experimenter, all.exp_type) == (more.experimenter, more.exp_type) =>
            {
                all.data.extend(more.data);
            }
            (_, more) => return Err(more),
        }
        Ok(())
    }
}

/// Bytes of a multipart message before its body.
const MULTIPART_HEADER: usize = 16;

/// Cuts a list into runs whose elements take at most `room` bytes. At least one run, at least one element a run.
fn runs<T: Wire>(items: Vec<T>, room: usize) -> Result<Vec<Vec<T>>, EncodeError> {
    let (mut runs, mut run, mut used, mut scratch) = (Vec::new(), Vec::new(), 0, Vec::new());
    for item in items {
        scratch.clear();
        let mut w = Writer::new(&mut scratch);
        item.put(&mut w);
        if let Some(error) = w.fault {
            return Err(error);
        }
        if scratch.len() > room {
            return Err(EncodeError::TooLong { bytes: scratch.len() });
        }
        if used + scratch.len() > room {
            runs.push(std::mem::take(&mut run));
            used = 0;
        }
        used += scratch.len();
        run.push(item);
    }
    runs.push(run);
    Ok(runs)
}

/// The messages of a reply of any length: every one but the last has the MORE flag, none is longer than `bytes_max`
/// (at most 65535).
///
/// # Errors
/// An element that does not fit into a message of its own.
pub fn split_reply(xid: u32, reply: MultipartReply, bytes_max: usize) -> Result<Vec<Message>, EncodeError> {
    let room = bytes_max.min(MESSAGE_LEN_MAX).saturating_sub(MULTIPART_HEADER);
    macro_rules! parts {
        ($($variant:ident)*) => {
            match reply {
                $(MultipartReply::$variant(items) => {
                    runs(items, room)?.into_iter().map(MultipartReply::$variant).collect()
                })*
                other => vec![other],
            }
        };
    }
    let parts: Vec<MultipartReply> = parts!(
        Flow Table PortStats Queue Group GroupDesc Meter MeterConfig TableFeatures PortDesc
    );
    let last = parts.len() - 1;
    let message = |(index, part)| {
        let body = if index < last { Body::MultipartReplyMore(part) } else { Body::MultipartReply(part) };
        Message { xid, body }
    };
    Ok(parts.into_iter().enumerate().map(message).collect())
}

/// The messages of a request of any length, like [`split_reply`]; only table features can be long.
///
/// # Errors
/// A table that does not fit into a message of its own.
pub fn split_request(
    xid: u32,
    request: MultipartRequest,
    bytes_max: usize,
) -> Result<Vec<Message>, EncodeError> {
    let room = bytes_max.min(MESSAGE_LEN_MAX).saturating_sub(MULTIPART_HEADER);
    let parts: Vec<MultipartRequest> = match request {
        MultipartRequest::TableFeatures(tables) => {
            runs(tables, room)?.into_iter().map(MultipartRequest::TableFeatures).collect()
        }
        other => vec![other],
    };
    let last = parts.len() - 1;
    let message = |(index, part)| {
        let body = if index < last { Body::MultipartRequestMore(part) } else { Body::MultipartRequest(part) };
        Message { xid, body }
    };
    Ok(parts.into_iter().enumerate().map(message).collect())
}

/// Joins the parts of multipart replies.
#[derive(Debug)]
pub struct Reassembler {
    open: HashMap<u32, MultipartReply>,
    elements: usize,
    elements_max: usize,
}

/// Parts that make no reply. The request they belong to is forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReassemblyError {
    /// More than was agreed to hold.
    #[error("the parts of multipart replies have more than {elements_max} elements")]
    TooMany {
        /// The limit.
        elements_max: usize,
    },
    /// The parts speak of different things.
    #[error("a part of a {first:?} reply is of type {then:?}")]
    Mixed {
        /// The type of the earlier parts.
        first: MultipartType,
        /// The type of the later part.
        then: MultipartType,
    },
}

impl Reassembler {
    /// A reassembler that holds at most `elements_max` elements over all unfinished replies.
    pub fn new(elements_max: usize) -> Reassembler {
        Reassembler { open: HashMap::new(), elements: 0, elements_max }
    }

    /// Takes a part; `more` says that it came with the MORE flag. Returns the whole reply when this was the last.
    ///
    /// # Errors
    /// Too many elements, or parts of different types under one xid.
    pub fn push(
        &mut self,
        xid: u32,
        more: bool,
        part: MultipartReply,
    ) -> Result<Option<MultipartReply>, ReassemblyError> {
        // An empty part counts as one element, else endless empty parts under new xids would grow the map.
        let added = cost(&part);
        let earlier = self.open.remove(&xid);
        let held = earlier.as_ref().map_or(0, cost);
        self.elements -= held;
        if self.elements + held + added > self.elements_max {
            return Err(ReassemblyError::TooMany { elements_max: self.elements_max });
        }
        let whole = match earlier {
            None => part,
            Some(mut whole) => match whole.join(part) {
                Ok(()) => whole,
                Err(part) => {
                    return Err(ReassemblyError::Mixed { first: whole.kind(), then: part.kind() });
                }
            },
        };
        if !more {
            return Ok(Some(whole));
        }
        self.elements += cost(&whole);
        self.open.insert(xid, whole);
        Ok(None)
    }

    /// Forgets the parts of a request that nobody waits for any longer.
    pub fn forget(&mut self, xid: u32) {
        if let Some(part) = self.open.remove(&xid) {
            self.elements -= cost(&part);
        }
    }
}

/// What holding a part costs, in elements; raw bytes count as elements of 64 bytes.
fn cost(part: &MultipartReply) -> usize {
    match part {
        MultipartReply::Experimenter(experimenter) => 1 + experimenter.data.len() / 64,
        list => list.len().max(1),
    }
}
