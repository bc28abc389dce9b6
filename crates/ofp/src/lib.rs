//! OpenFlow 1.3.5 codec, without I/O.
//!
//! [`decode`] turns the bytes of one message into a [`Message`] and never panics, whatever the bytes are;
//! [`Message::encode`] does the reverse. A [`Framer`] cuts a byte stream into messages, [`Reassembler`] and
//! [`split_reply`] handle multipart messages that carry the MORE flag.
//!
//! What the codec does not know it keeps as raw bytes (experimenters, unknown match fields) or refuses (unknown
//! actions and instructions): a match never becomes wider by passing through here. Every [`DecodeError`] carries the
//! OpenFlow error to answer with.
#![forbid(unsafe_code)]

#[macro_use]
mod wire;

mod action;
mod addition;
mod bundle;
mod error;
mod flow;
mod framer;
mod groups;
mod instruction;
mod matching;
mod message;
mod meters;
mod multipart;
mod oxm;
mod packet;
mod port;
mod queue;
mod switch;
mod table;
mod types;

pub use action::{Action, ActionId};
pub use addition::Addition;
pub use bundle::{
    BundleAdd, BundleControl, BundleControlType, BundleFlags, BundleProperty, ONF_EXPERIMENTER,
};
pub use error::{DecodeError, EncodeError, ErrorCode, ErrorMessage};
pub use flow::{
    AggregateStats, FlowMod, FlowModCommand, FlowModFlags, FlowRemoved, FlowRemovedReason, FlowStats,
    FlowStatsRequest,
};
pub use framer::{FrameError, Framer};
pub use groups::{
    Bucket, BucketCounter, GroupDesc, GroupFeatures, GroupMod, GroupModCommand, GroupStats, GroupType, group,
};
pub use instruction::{Instruction, InstructionId};
pub use matching::{Match, MatchError};
pub use message::{Body, HEADER_LEN, Header, Hello, MESSAGE_LEN_MAX, Message, MessageType, VERSION, decode};
pub use meters::{
    MeterBand, MeterBandCounter, MeterConfig, MeterFeatures, MeterFlags, MeterMod, MeterModCommand,
    MeterStats, meter,
};
pub use multipart::{
    MultipartReply, MultipartRequest, MultipartType, Reassembler, ReassemblyError, split_reply, split_request,
};
pub use oxm::{Field, Masked, OxmField, OxmId, OxmPayload, OxmValue, RawOxm, VID_NONE, VID_PRESENT};
pub use packet::{CONTROLLER_LEN_NO_BUFFER, NO_BUFFER, PacketIn, PacketInReason, PacketOut};
pub use port::{Port, PortConfig, PortFeatures, PortMod, PortState, PortStats, PortStatus, PortStatusReason};
pub use queue::{PacketQueue, QUEUE_ALL, QueueConfig, QueueProperty, QueueStats};
pub use switch::{
    AsyncConfig, Capabilities, ConfigFlags, Desc, Experimenter, Role, RoleMessage, SwitchConfig,
    SwitchFeatures,
};
pub use table::{TABLE_ALL, TableFeatures, TableMod, TableProperty, TableStats};
pub use types::{MacAddr, ParseMacError, PortNo, Text};
