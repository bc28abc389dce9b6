//! Messages: header, body, decode and encode.

use crate::bundle::{self, BundleAdd, BundleControl, ONF_EXPERIMENTER};
use crate::error::{DecodeError, EncodeError, ErrorCode, ErrorMessage};
use crate::flow::{FlowMod, FlowRemoved};
use crate::groups::GroupMod;
use crate::meters::MeterMod;
use crate::multipart::{MultipartReply, MultipartRequest};
use crate::packet::{PacketIn, PacketOut};
use crate::port::{PortMod, PortStatus};
use crate::queue::QueueConfig;
use crate::switch::{AsyncConfig, Experimenter, RoleMessage, SwitchConfig, SwitchFeatures};
use crate::table::TableMod;
use crate::types::PortNo;
use crate::wire::{Reader, Wire, Writer, padding8};

/// The version byte of OpenFlow 1.3.
pub const VERSION: u8 = 4;
/// Bytes of the header that begins every message.
pub const HEADER_LEN: usize = 8;
/// Bytes of the largest message.
pub const MESSAGE_LEN_MAX: usize = 0xffff;

wire_enum! {
    /// The type of a message (`OFPT_*`, 7.1).
    MessageType: u8 {
        /// Version negotiation.
        Hello = 0,
        /// A refusal.
        Error = 1,
        /// Are you there?
        EchoRequest = 2,
        /// I am.
        EchoReply = 3,
        /// An experimenter's.
        Experimenter = 4,
        /// Who are you?
        FeaturesRequest = 5,
        /// I am this switch.
        FeaturesReply = 6,
        /// Asks for the configuration.
        GetConfigRequest = 7,
        /// The configuration.
        GetConfigReply = 8,
        /// Sets the configuration.
        SetConfig = 9,
        /// A packet for the controller.
        PacketIn = 10,
        /// A flow entry is gone.
        FlowRemoved = 11,
        /// A port changed.
        PortStatus = 12,
        /// A packet for the switch to send.
        PacketOut = 13,
        /// Changes flow entries.
        FlowMod = 14,
        /// Changes groups.
        GroupMod = 15,
        /// Changes a port.
        PortMod = 16,
        /// Changes a table.
        TableMod = 17,
        /// Asks for a description or statistics.
        MultipartRequest = 18,
        /// A description or statistics.
        MultipartReply = 19,
        /// Do everything before this first.
        BarrierRequest = 20,
        /// It is done.
        BarrierReply = 21,
        /// Asks for queues.
        QueueGetConfigRequest = 22,
        /// The queues.
        QueueGetConfigReply = 23,
        /// Asks for a role.
        RoleRequest = 24,
        /// The role.
        RoleReply = 25,
        /// Asks which asynchronous messages are sent.
        GetAsyncRequest = 26,
        /// Which are sent.
        GetAsyncReply = 27,
        /// Sets which are sent.
        SetAsync = 28,
        /// Changes meters.
        MeterMod = 29,
    }
}

/// The header of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The protocol version, 4 for OpenFlow 1.3.
    pub version: u8,
    /// The type, a number of [`MessageType`] or another.
    pub kind: u8,
    /// Bytes of the message, this header included.
    pub length: u16,
    /// The number that pairs replies with requests.
    pub xid: u32,
}

impl Header {
    /// The header at the beginning of `bytes`; `None` when there are fewer than eight.
    pub fn peek(bytes: &[u8]) -> Option<Header> {
        let [version, kind, l0, l1, xid @ ..] = *bytes.first_chunk::<HEADER_LEN>()?;
        Some(Header { version, kind, length: u16::from_be_bytes([l0, l1]), xid: u32::from_be_bytes(xid) })
    }
}

/// `OFPT_HELLO` (7.5.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The version byte of the header: the highest version the sender supports.
    pub version: u8,
    /// The version bitmap element, if there is one: bit n of word m is version 32 m + n.
    pub bitmap: Option<Vec<u32>>,
}

const HELLO_VERSION_BITMAP: u16 = 1;

impl Default for Hello {
    /// OpenFlow 1.3 and nothing else.
    fn default() -> Hello {
        Hello { version: VERSION, bitmap: Some(vec![1 << VERSION]) }
    }
}

impl Hello {
    /// Whether the negotiation with a sender of this hello, when we support 1.3 only, ends at 1.3: by the bitmap if
    /// there is one, else the lower of both versions (6.3.1).
    pub fn agrees(&self) -> bool {
        match &self.bitmap {
            Some(bitmap) => bitmap.first().is_some_and(|word| word & 1 << VERSION != 0),
            None => self.version >= VERSION,
        }
    }

    fn put(&self, w: &mut Writer<'_>) {
        if let Some(bitmap) = &self.bitmap {
            let start = w.at();
            w.u16(HELLO_VERSION_BITMAP);
            w.u16(0);
            bitmap.iter().for_each(|&word| w.u32(word));
            w.patch_len(start + 2, start);
            w.pad8(start);
        }
    }

    /// Unknown elements are skipped, as 7.5.1 demands.
    fn get(version: u8, r: &mut Reader<'_>) -> Result<Hello, DecodeError> {
        let mut bitmap = None;
        while !r.is_empty() {
            let (kind, len) = (r.u16()?, usize::from(r.u16()?));
            let body = len.checked_sub(4).ok_or(r.error())?;
            let mut element = r.part(body, ErrorCode::BAD_LEN, "hello element")?;
            // The padding of the last element may be missing.
            r.skip(padding8(len).min(r.len()))?;
            if kind == HELLO_VERSION_BITMAP && bitmap.is_none() {
                let mut words = Vec::new();
                while !element.is_empty() {
                    words.push(element.u32()?);
                }
                bitmap = Some(words);
            }
        }
        Ok(Hello { version, bitmap })
    }
}

/// One OpenFlow 1.3 message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Pairs replies with requests.
    pub xid: u32,
    /// What is said.
    pub body: Body,
}

macro_rules! bodies {
    ($($(#[$meta:meta])* $variant:ident $(($payload:ty))? : $kind:ident,)*) => {
        /// What a message says.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub enum Body { $($(#[$meta])* $variant $(($payload))?,)* }

        impl Body {
            /// The type of the message that carries it.
            pub const fn kind(&self) -> MessageType {
                match self { $(Body::$variant { .. } => MessageType::$kind,)* }
            }
        }
    };
}

bodies! {
    /// Version negotiation.
    Hello(Hello): Hello,
    /// A refusal.
    Error(ErrorMessage): Error,
    /// Are you there? With any bytes.
    EchoRequest(Vec<u8>): EchoRequest,
    /// I am; with the bytes of the request.
    EchoReply(Vec<u8>): EchoReply,
    /// An experimenter's message, raw.
    Experimenter(Experimenter): Experimenter,
    /// Opens, commits, discards a bundle, or the answer to that.
    BundleControl(BundleControl): Experimenter,
    /// Adds a message to a bundle.
    BundleAdd(BundleAdd): Experimenter,
    /// Who are you?
    FeaturesRequest: FeaturesRequest,
    /// I am this switch.
    FeaturesReply(SwitchFeatures): FeaturesReply,
    /// Asks for the configuration.
    GetConfigRequest: GetConfigRequest,
    /// The configuration.
    GetConfigReply(SwitchConfig): GetConfigReply,
    /// Sets the configuration.
    SetConfig(SwitchConfig): SetConfig,
    /// A packet for the controller.
    PacketIn(PacketIn): PacketIn,
    /// A flow entry is gone.
    FlowRemoved(FlowRemoved): FlowRemoved,
    /// A port changed.
    PortStatus(PortStatus): PortStatus,
    /// A packet for the switch to send.
    PacketOut(PacketOut): PacketOut,
    /// Changes flow entries.
    FlowMod(FlowMod): FlowMod,
    /// Changes groups.
    GroupMod(GroupMod): GroupMod,
    /// Changes a port.
    PortMod(PortMod): PortMod,
    /// Changes a table.
    TableMod(TableMod): TableMod,
    /// Asks for a description or statistics.
    MultipartRequest(MultipartRequest): MultipartRequest,
    /// A part of a multipart request; more follow.
    MultipartRequestMore(MultipartRequest): MultipartRequest,
    /// A description or statistics, or their last part.
    MultipartReply(MultipartReply): MultipartReply,
    /// A part of a multipart reply; more follow.
    MultipartReplyMore(MultipartReply): MultipartReply,
    /// Do everything before this first.
    BarrierRequest: BarrierRequest,
    /// It is done.
    BarrierReply: BarrierReply,
    /// Asks for the queues of a port.
    QueueGetConfigRequest(PortNo): QueueGetConfigRequest,
    /// The queues of a port.
    QueueGetConfigReply(QueueConfig): QueueGetConfigReply,
    /// Asks for a role.
    RoleRequest(RoleMessage): RoleRequest,
    /// The role.
    RoleReply(RoleMessage): RoleReply,
    /// Asks which asynchronous messages are sent.
    GetAsyncRequest: GetAsyncRequest,
    /// Which asynchronous messages are sent.
    GetAsyncReply(AsyncConfig): GetAsyncReply,
    /// Sets which asynchronous messages are sent.
    SetAsync(AsyncConfig): SetAsync,
    /// Changes meters.
    MeterMod(MeterMod): MeterMod,
}

/// `OFPMPF_REQ_MORE` and `OFPMPF_REPLY_MORE`.
const MULTIPART_MORE: u16 = 1;

impl Body {
    fn put(&self, w: &mut Writer<'_>) {
        match self {
            Body::Hello(hello) => hello.put(w),
            Body::Error(error) => error.put(w),
            Body::EchoRequest(data) | Body::EchoReply(data) => w.bytes(data),
            Body::Experimenter(experimenter) => experimenter.put(w),
            Body::BundleControl(control) => control.put(w),
            Body::BundleAdd(add) => add.put(w),
            Body::FeaturesRequest
            | Body::GetConfigRequest
            | Body::BarrierRequest
            | Body::BarrierReply
            | Body::GetAsyncRequest => {}
            Body::FeaturesReply(features) => features.put(w),
            Body::GetConfigReply(config) | Body::SetConfig(config) => config.put(w),
            Body::PacketIn(packet_in) => packet_in.put(w),
            Body::FlowRemoved(removed) => removed.put(w),
            Body::PortStatus(status) => status.put(w),
            Body::PacketOut(packet_out) => packet_out.put(w),
            Body::FlowMod(flow_mod) => flow_mod.put(w),
            Body::GroupMod(group_mod) => group_mod.put(w),
            Body::PortMod(port_mod) => port_mod.put(w),
            Body::TableMod(table_mod) => table_mod.put(w),
            Body::MultipartRequest(request) => request.put(w, 0),
            Body::MultipartRequestMore(request) => request.put(w, MULTIPART_MORE),
            Body::MultipartReply(reply) => reply.put(w, 0),
            Body::MultipartReplyMore(reply) => reply.put(w, MULTIPART_MORE),
            Body::QueueGetConfigRequest(port) => {
                port.put(w);
                w.zeros(4);
            }
            Body::QueueGetConfigReply(config) => config.put(w),
            Body::RoleRequest(role) | Body::RoleReply(role) => role.put(w),
            Body::GetAsyncReply(config) | Body::SetAsync(config) => config.put(w),
            Body::MeterMod(meter_mod) => meter_mod.put(w),
        }
    }

    fn get(kind: MessageType, version: u8, r: &mut Reader<'_>) -> Result<Body, DecodeError> {
        Ok(match kind {
            MessageType::Hello => Body::Hello(Hello::get(version, r)?),
            MessageType::Error => Body::Error(ErrorMessage::get(r)?),
            MessageType::EchoRequest => Body::EchoRequest(r.rest().to_vec()),
            MessageType::EchoReply => Body::EchoReply(r.rest().to_vec()),
            MessageType::Experimenter => experimenter(r)?,
            MessageType::FeaturesRequest => Body::FeaturesRequest,
            MessageType::FeaturesReply => Body::FeaturesReply(SwitchFeatures::get(r)?),
            MessageType::GetConfigRequest => Body::GetConfigRequest,
            MessageType::GetConfigReply => Body::GetConfigReply(SwitchConfig::get(r)?),
            MessageType::SetConfig => Body::SetConfig(SwitchConfig::get(r)?),
            MessageType::PacketIn => Body::PacketIn(PacketIn::get(r)?),
            MessageType::FlowRemoved => Body::FlowRemoved(FlowRemoved::get(r)?),
            MessageType::PortStatus => Body::PortStatus(PortStatus::get(r)?),
            MessageType::PacketOut => Body::PacketOut(PacketOut::get(r)?),
            MessageType::FlowMod => Body::FlowMod(FlowMod::get(r)?),
            MessageType::GroupMod => Body::GroupMod(GroupMod::get(r)?),
            MessageType::PortMod => Body::PortMod(PortMod::get(r)?),
            MessageType::TableMod => Body::TableMod(TableMod::get(r)?),
            MessageType::MultipartRequest => {
                let (request, flags) = MultipartRequest::get(r)?;
                let more = flags & MULTIPART_MORE != 0;
                if more { Body::MultipartRequestMore(request) } else { Body::MultipartRequest(request) }
            }
            MessageType::MultipartReply => {
                let (reply, flags) = MultipartReply::get(r)?;
                let more = flags & MULTIPART_MORE != 0;
                if more { Body::MultipartReplyMore(reply) } else { Body::MultipartReply(reply) }
            }
            MessageType::BarrierRequest => Body::BarrierRequest,
            MessageType::BarrierReply => Body::BarrierReply,
            MessageType::QueueGetConfigRequest => {
                let port = PortNo::get(r)?;
                r.skip(4)?;
                Body::QueueGetConfigRequest(port)
            }
            MessageType::QueueGetConfigReply => Body::QueueGetConfigReply(QueueConfig::get(r)?),
            MessageType::RoleRequest => Body::RoleRequest(RoleMessage::get(r)?),
            MessageType::RoleReply => Body::RoleReply(RoleMessage::get(r)?),
            MessageType::GetAsyncRequest => Body::GetAsyncRequest,
            MessageType::GetAsyncReply => Body::GetAsyncReply(AsyncConfig::get(r)?),
            MessageType::SetAsync => Body::SetAsync(AsyncConfig::get(r)?),
            MessageType::MeterMod => Body::MeterMod(MeterMod::get(r)?),
        })
    }
}

/// Bundles are the only experimenter messages that are understood.
fn experimenter(r: &mut Reader<'_>) -> Result<Body, DecodeError> {
    let raw = Experimenter::get(r)?;
    let part = |what| Reader::new(&raw.data, ErrorCode::BAD_LEN, what);
    match (raw.experimenter, raw.exp_type) {
        (ONF_EXPERIMENTER, bundle::CONTROL) => {
            Ok(Body::BundleControl(BundleControl::get(&mut part("bundle control"))?))
        }
        (ONF_EXPERIMENTER, bundle::ADD_MESSAGE) => {
            Ok(Body::BundleAdd(BundleAdd::get(&mut part("bundle add"))?))
        }
        _ => Ok(Body::Experimenter(raw)),
    }
}

impl Message {
    /// Appends the bytes of the message to `out`.
    ///
    /// # Errors
    /// The message is longer than 65535 bytes or has a match field that the specification forbids; then `out` is as
    /// before.
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let start = out.len();
        let mut w = Writer::new(out);
        w.u8(if let Body::Hello(hello) = &self.body { hello.version } else { VERSION });
        w.u8(self.body.kind().number());
        w.u16(0);
        w.u32(self.xid);
        self.body.put(&mut w);
        w.patch_len(start + 2, start);
        match w.fault {
            None => Ok(()),
            Some(error) => {
                out.truncate(start);
                Err(error)
            }
        }
    }

    /// The bytes of the message.
    ///
    /// # Errors
    /// As [`Message::encode_into`].
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let mut out = Vec::with_capacity(64);
        self.encode_into(&mut out)?;
        Ok(out)
    }
}

/// Decodes exactly one message: `bytes` is what a [`crate::Framer`] cut out.
///
/// Hellos and errors of every version are accepted: they are how versions are negotiated.
///
/// # Errors
/// Anything the specification does not allow; answer with [`DecodeError::answer`].
pub fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
    let bad_len = DecodeError::new(ErrorCode::BAD_LEN, "message length");
    let header = Header::peek(bytes).ok_or(bad_len)?;
    if usize::from(header.length) != bytes.len() {
        return Err(bad_len);
    }
    let kind = MessageType::from_number(header.kind);
    let any_version = matches!(kind, Some(MessageType::Hello | MessageType::Error));
    if header.version != VERSION && !any_version {
        return Err(DecodeError::new(ErrorCode::BAD_VERSION, "protocol version"));
    }
    let kind = kind.ok_or(DecodeError::new(ErrorCode::BAD_TYPE, "message type"))?;
    let mut r = Reader::new(&bytes[HEADER_LEN..], ErrorCode::BAD_LEN, "message body");
    let body = Body::get(kind, header.version, &mut r)?;
    r.finish()?;
    Ok(Message { xid: header.xid, body })
}
