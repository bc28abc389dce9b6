//! Bundles: the ONF extension EXT-230 to OpenFlow 1.3.

use crate::error::{DecodeError, EncodeError, ErrorCode};
use crate::message::{Body, HEADER_LEN, Header, Message, decode};
use crate::wire::{Reader, Wire, Writer, padding8};

/// The experimenter number of the ONF.
pub const ONF_EXPERIMENTER: u32 = 0x4f4e_4600;
pub(crate) const CONTROL: u32 = 2300;
pub(crate) const ADD_MESSAGE: u32 = 2301;

wire_enum! {
    /// What a bundle control message asks or answers.
    BundleControlType: u16 {
        /// Open a bundle.
        OpenRequest = 0,
        /// It is open.
        OpenReply = 1,
        /// No more messages come.
        CloseRequest = 2,
        /// It is closed.
        CloseReply = 3,
        /// Apply all of it or nothing.
        CommitRequest = 4,
        /// It is applied.
        CommitReply = 5,
        /// Forget it.
        DiscardRequest = 6,
        /// It is forgotten.
        DiscardReply = 7,
    }
}

flags! {
    /// Promises asked of the switch.
    BundleFlags: u16 {
        /// All messages or none.
        ATOMIC = 1,
        /// In the order they were added.
        ORDERED = 2,
    }
}

/// A property of a bundle message, raw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BundleProperty {
    /// Its type.
    pub kind: u16,
    /// What follows type and length.
    pub data: Vec<u8>,
}

impl Wire for BundleProperty {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        w.u16(self.kind);
        w.patch_id(&self.data);
        w.pad8(start);
    }

    fn get(r: &mut Reader<'_>) -> Result<BundleProperty, DecodeError> {
        let kind = r.u16()?;
        let data = r.id_payload()?;
        r.skip(padding8(data.len() + 4))?;
        Ok(BundleProperty { kind, data })
    }
}

/// Bundle control (experimenter type 2300).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BundleControl {
    /// The bundle, numbered by the controller.
    pub bundle_id: u32,
    /// What is asked or answered.
    pub kind: BundleControlType,
    /// Promises asked.
    pub flags: BundleFlags,
    /// Properties.
    pub properties: Vec<BundleProperty>,
}

impl Wire for BundleControl {
    fn put(&self, w: &mut Writer<'_>) {
        w.u32(ONF_EXPERIMENTER);
        w.u32(CONTROL);
        w.u32(self.bundle_id);
        w.u16(self.kind.number());
        w.u16(self.flags.0);
        w.list(&self.properties);
    }

    /// Experimenter and type have been read.
    fn get(r: &mut Reader<'_>) -> Result<BundleControl, DecodeError> {
        let bundle_id = r.u32()?;
        let kind = BundleControlType::from_number(r.u16()?)
            .ok_or(DecodeError::new(ErrorCode::BUNDLE_BAD_TYPE, "bundle control type"))?;
        Ok(BundleControl { bundle_id, kind, flags: BundleFlags(r.u16()?), properties: r.list()? })
    }
}

/// A message added to a bundle (experimenter type 2301).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BundleAdd {
    /// The bundle.
    pub bundle_id: u32,
    /// Promises asked; the same as when it was opened.
    pub flags: BundleFlags,
    /// The message; its xid is that of the outer one. Never itself a bundle message.
    pub message: Box<Message>,
    /// Properties.
    pub properties: Vec<BundleProperty>,
}

impl BundleAdd {
    /// The bundle that a message was to be added to, whatever else is wrong with the message; `None` for other messages.
    pub fn peek(bytes: &[u8]) -> Option<u32> {
        let header = Header::peek(bytes)?;
        let [experimenter, kind, bundle_id] = [8, 12, 16]
            .map(|at| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_be_bytes));
        let is_add = header.kind == crate::MessageType::Experimenter.number()
            && experimenter == Some(ONF_EXPERIMENTER)
            && kind == Some(ADD_MESSAGE);
        if is_add { bundle_id } else { None }
    }
}

fn is_bundle(body: &Body) -> bool {
    matches!(body, Body::BundleAdd(_) | Body::BundleControl(_))
}

impl Wire for BundleAdd {
    fn put(&self, w: &mut Writer<'_>) {
        w.u32(ONF_EXPERIMENTER);
        w.u32(ADD_MESSAGE);
        w.u32(self.bundle_id);
        w.zeros(2);
        w.u16(self.flags.0);
        if is_bundle(&self.message.body) {
            return w.fail(EncodeError::NestedBundle);
        }
        let start = w.at();
        if let Err(error) = self.message.encode_into(w.out) {
            return w.fail(error);
        }
        if !self.properties.is_empty() {
            let len = w.at() - start;
            w.zeros(padding8(len));
            w.list(&self.properties);
        }
    }

    /// Experimenter and type have been read.
    fn get(r: &mut Reader<'_>) -> Result<BundleAdd, DecodeError> {
        let bundle_id = r.u32()?;
        r.skip(2)?;
        let flags = BundleFlags(r.u16()?);
        let bad_len = DecodeError::new(ErrorCode::BUNDLE_MESSAGE_BAD_LEN, "message in a bundle");
        let rest = r.rest();
        let len = usize::from(Header::peek(rest).ok_or(bad_len)?.length);
        if len < HEADER_LEN {
            return Err(bad_len);
        }
        let (inner, after) = rest.split_at_checked(len).ok_or(bad_len)?;
        // Refused before it is decoded: bundles in bundles would recurse as deep as the sender likes.
        let nested = inner.get(HEADER_LEN..HEADER_LEN + 4) == Some(&ONF_EXPERIMENTER.to_be_bytes());
        if inner[1] == crate::MessageType::Experimenter.number() && nested {
            return Err(DecodeError::new(ErrorCode::BUNDLE_MESSAGE_UNSUPPORTED, "message in a bundle"));
        }
        let message = Box::new(decode(inner)?);
        let mut r = Reader::new(after, ErrorCode::BAD_LEN, "bundle property");
        if !r.is_empty() {
            r.skip(padding8(len))?;
        }
        Ok(BundleAdd { bundle_id, flags, message, properties: r.list()? })
    }
}
