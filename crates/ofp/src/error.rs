//! OpenFlow errors: the codes of the specification, decode and encode errors.

use std::fmt;

use crate::message::{Body, HEADER_LEN, Message};
use crate::wire::{Reader, Wire, Writer};

/// Bytes of a refused request that an error message returns (specification 7.4.4: at least 64).
const RETURNED_BYTES: usize = 64;
const EXPERIMENTER: u16 = 0xffff;

/// Type and code of an OpenFlow error (7.4.4). For type 0xffff (experimenter) `code` is the experimenter's own type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ErrorCode {
    /// `OFPET_*`.
    pub kind: u16,
    /// The code within the type.
    pub code: u16,
    /// The experimenter that defines the error; 0 unless `kind` is 0xffff.
    pub experimenter: u32,
}

macro_rules! codes {
    ($($kind_name:ident = $kind:literal { $($name:ident / $const:ident = $code:literal,)* })*) => {
        impl ErrorCode {
            $($(
                #[doc = concat!("`OFPET_", stringify!($kind_name), "` / `OFP", stringify!($name), "`.")]
                pub const $const: ErrorCode = ErrorCode { kind: $kind, code: $code, experimenter: 0 };
            )*)*

            /// The specification's names of type and code, e.g. `OFPET_BAD_MATCH` and `OFPBMC_BAD_PREREQ`;
            /// `None` where it has none.
            pub fn names(self) -> (Option<&'static str>, Option<&'static str>) {
                if self.kind == EXPERIMENTER {
                    return (Some("OFPET_EXPERIMENTER"), self.bundle_name());
                }
                match self.kind {
                    $($kind => (
                        Some(concat!("OFPET_", stringify!($kind_name))),
                        match self.code { $($code => Some(concat!("OFP", stringify!($name))),)* _ => None },
                    ),)*
                    _ => (None, None),
                }
            }
        }
    };
}

codes! {
    HELLO_FAILED = 0 {
        HFC_INCOMPATIBLE / HELLO_INCOMPATIBLE = 0, HFC_EPERM / HELLO_EPERM = 1,
    }
    BAD_REQUEST = 1 {
        BRC_BAD_VERSION / BAD_VERSION = 0, BRC_BAD_TYPE / BAD_TYPE = 1, BRC_BAD_MULTIPART / BAD_MULTIPART = 2,
        BRC_BAD_EXPERIMENTER / BAD_EXPERIMENTER = 3, BRC_BAD_EXP_TYPE / BAD_EXP_TYPE = 4,
        BRC_EPERM / REQUEST_EPERM = 5, BRC_BAD_LEN / BAD_LEN = 6, BRC_BUFFER_EMPTY / BUFFER_EMPTY = 7,
        BRC_BUFFER_UNKNOWN / BUFFER_UNKNOWN = 8, BRC_BAD_TABLE_ID / BAD_TABLE_ID = 9,
        BRC_IS_SLAVE / IS_SLAVE = 10, BRC_BAD_PORT / BAD_PORT = 11, BRC_BAD_PACKET / BAD_PACKET = 12,
        BRC_MULTIPART_BUFFER_OVERFLOW / MULTIPART_BUFFER_OVERFLOW = 13,
    }
    BAD_ACTION = 2 {
        BAC_BAD_TYPE / ACTION_BAD_TYPE = 0, BAC_BAD_LEN / ACTION_BAD_LEN = 1,
        BAC_BAD_EXPERIMENTER / ACTION_BAD_EXPERIMENTER = 2, BAC_BAD_EXP_TYPE / ACTION_BAD_EXP_TYPE = 3,
        BAC_BAD_OUT_PORT / ACTION_BAD_OUT_PORT = 4, BAC_BAD_ARGUMENT / ACTION_BAD_ARGUMENT = 5,
        BAC_EPERM / ACTION_EPERM = 6, BAC_TOO_MANY / ACTION_TOO_MANY = 7, BAC_BAD_QUEUE / ACTION_BAD_QUEUE = 8,
        BAC_BAD_OUT_GROUP / ACTION_BAD_OUT_GROUP = 9, BAC_MATCH_INCONSISTENT / ACTION_MATCH_INCONSISTENT = 10,
        BAC_UNSUPPORTED_ORDER / ACTION_UNSUPPORTED_ORDER = 11, BAC_BAD_TAG / ACTION_BAD_TAG = 12,
        BAC_BAD_SET_TYPE / ACTION_BAD_SET_TYPE = 13, BAC_BAD_SET_LEN / ACTION_BAD_SET_LEN = 14,
        BAC_BAD_SET_ARGUMENT / ACTION_BAD_SET_ARGUMENT = 15,
    }
    BAD_INSTRUCTION = 3 {
        BIC_UNKNOWN_INST / UNKNOWN_INSTRUCTION = 0, BIC_UNSUP_INST / UNSUPPORTED_INSTRUCTION = 1,
        BIC_BAD_TABLE_ID / INSTRUCTION_BAD_TABLE_ID = 2,
        BIC_UNSUP_METADATA / INSTRUCTION_UNSUPPORTED_METADATA = 3,
        BIC_UNSUP_METADATA_MASK / INSTRUCTION_UNSUPPORTED_METADATA_MASK = 4,
        BIC_BAD_EXPERIMENTER / INSTRUCTION_BAD_EXPERIMENTER = 5,
        BIC_BAD_EXP_TYPE / INSTRUCTION_BAD_EXP_TYPE = 6, BIC_BAD_LEN / INSTRUCTION_BAD_LEN = 7,
        BIC_EPERM / INSTRUCTION_EPERM = 8,
    }
    BAD_MATCH = 4 {
        BMC_BAD_TYPE / MATCH_BAD_TYPE = 0, BMC_BAD_LEN / MATCH_BAD_LEN = 1, BMC_BAD_TAG / MATCH_BAD_TAG = 2,
        BMC_BAD_DL_ADDR_MASK / MATCH_BAD_DL_ADDR_MASK = 3, BMC_BAD_NW_ADDR_MASK / MATCH_BAD_NW_ADDR_MASK = 4,
        BMC_BAD_WILDCARDS / MATCH_BAD_WILDCARDS = 5, BMC_BAD_FIELD / MATCH_BAD_FIELD = 6,
        BMC_BAD_VALUE / MATCH_BAD_VALUE = 7, BMC_BAD_MASK / MATCH_BAD_MASK = 8,
        BMC_BAD_PREREQ / MATCH_BAD_PREREQ = 9, BMC_DUP_FIELD / MATCH_DUP_FIELD = 10,
        BMC_EPERM / MATCH_EPERM = 11,
    }
    FLOW_MOD_FAILED = 5 {
        FMFC_UNKNOWN / FLOW_MOD_UNKNOWN = 0, FMFC_TABLE_FULL / FLOW_MOD_TABLE_FULL = 1,
        FMFC_BAD_TABLE_ID / FLOW_MOD_BAD_TABLE_ID = 2, FMFC_OVERLAP / FLOW_MOD_OVERLAP = 3,
        FMFC_EPERM / FLOW_MOD_EPERM = 4, FMFC_BAD_TIMEOUT / FLOW_MOD_BAD_TIMEOUT = 5,
        FMFC_BAD_COMMAND / FLOW_MOD_BAD_COMMAND = 6, FMFC_BAD_FLAGS / FLOW_MOD_BAD_FLAGS = 7,
    }
    GROUP_MOD_FAILED = 6 {
        GMFC_GROUP_EXISTS / GROUP_EXISTS = 0, GMFC_INVALID_GROUP / INVALID_GROUP = 1,
        GMFC_WEIGHT_UNSUPPORTED / GROUP_WEIGHT_UNSUPPORTED = 2, GMFC_OUT_OF_GROUPS / OUT_OF_GROUPS = 3,
        GMFC_OUT_OF_BUCKETS / OUT_OF_BUCKETS = 4, GMFC_CHAINING_UNSUPPORTED / GROUP_CHAINING_UNSUPPORTED = 5,
        GMFC_WATCH_UNSUPPORTED / GROUP_WATCH_UNSUPPORTED = 6, GMFC_LOOP / GROUP_LOOP = 7,
        GMFC_UNKNOWN_GROUP / UNKNOWN_GROUP = 8, GMFC_CHAINED_GROUP / CHAINED_GROUP = 9,
        GMFC_BAD_TYPE / GROUP_BAD_TYPE = 10, GMFC_BAD_COMMAND / GROUP_BAD_COMMAND = 11,
        GMFC_BAD_BUCKET / GROUP_BAD_BUCKET = 12, GMFC_BAD_WATCH / GROUP_BAD_WATCH = 13,
        GMFC_EPERM / GROUP_EPERM = 14,
    }
    PORT_MOD_FAILED = 7 {
        PMFC_BAD_PORT / PORT_MOD_BAD_PORT = 0, PMFC_BAD_HW_ADDR / PORT_MOD_BAD_HW_ADDR = 1,
        PMFC_BAD_CONFIG / PORT_MOD_BAD_CONFIG = 2, PMFC_BAD_ADVERTISE / PORT_MOD_BAD_ADVERTISE = 3,
        PMFC_EPERM / PORT_MOD_EPERM = 4,
    }
    TABLE_MOD_FAILED = 8 {
        TMFC_BAD_TABLE / TABLE_MOD_BAD_TABLE = 0, TMFC_BAD_CONFIG / TABLE_MOD_BAD_CONFIG = 1,
        TMFC_EPERM / TABLE_MOD_EPERM = 2,
    }
    QUEUE_OP_FAILED = 9 {
        QOFC_BAD_PORT / QUEUE_BAD_PORT = 0, QOFC_BAD_QUEUE / QUEUE_BAD_QUEUE = 1, QOFC_EPERM / QUEUE_EPERM = 2,
    }
    SWITCH_CONFIG_FAILED = 10 {
        SCFC_BAD_FLAGS / CONFIG_BAD_FLAGS = 0, SCFC_BAD_LEN / CONFIG_BAD_LEN = 1, SCFC_EPERM / CONFIG_EPERM = 2,
    }
    ROLE_REQUEST_FAILED = 11 {
        RRFC_STALE / ROLE_STALE = 0, RRFC_UNSUP / ROLE_UNSUPPORTED = 1, RRFC_BAD_ROLE / ROLE_BAD_ROLE = 2,
    }
    METER_MOD_FAILED = 12 {
        MMFC_UNKNOWN / METER_MOD_UNKNOWN = 0, MMFC_METER_EXISTS / METER_EXISTS = 1,
        MMFC_INVALID_METER / INVALID_METER = 2, MMFC_UNKNOWN_METER / UNKNOWN_METER = 3,
        MMFC_BAD_COMMAND / METER_BAD_COMMAND = 4, MMFC_BAD_FLAGS / METER_BAD_FLAGS = 5,
        MMFC_BAD_RATE / METER_BAD_RATE = 6, MMFC_BAD_BURST / METER_BAD_BURST = 7,
        MMFC_BAD_BAND / METER_BAD_BAND = 8, MMFC_BAD_BAND_VALUE / METER_BAD_BAND_VALUE = 9,
        MMFC_OUT_OF_METERS / OUT_OF_METERS = 10, MMFC_OUT_OF_BANDS / OUT_OF_BANDS = 11,
    }
    TABLE_FEATURES_FAILED = 13 {
        TFFC_BAD_TABLE / TABLE_FEATURES_BAD_TABLE = 0, TFFC_BAD_METADATA / TABLE_FEATURES_BAD_METADATA = 1,
        TFFC_BAD_TYPE / TABLE_FEATURES_BAD_TYPE = 2, TFFC_BAD_LEN / TABLE_FEATURES_BAD_LEN = 3,
        TFFC_BAD_ARGUMENT / TABLE_FEATURES_BAD_ARGUMENT = 4, TFFC_EPERM / TABLE_FEATURES_EPERM = 5,
    }
}

macro_rules! bundle_codes {
    ($($name:ident = $code:literal,)*) => {
        /// Errors of the ONF bundle extension (EXT-230): experimenter errors of the ONF.
        impl ErrorCode {
            $(
                #[doc = concat!("`ONFBFC_", stringify!($name), "` of the bundle extension.")]
                pub const $name: ErrorCode =
                    ErrorCode { kind: EXPERIMENTER, code: $code, experimenter: crate::ONF_EXPERIMENTER };
            )*

            fn bundle_name(self) -> Option<&'static str> {
                if self.experimenter != crate::ONF_EXPERIMENTER {
                    return None;
                }
                match self.code { $($code => Some(concat!("ONFBFC_", stringify!($name))),)* _ => None }
            }
        }
    };
}

bundle_codes! {
    BUNDLE_UNKNOWN = 2300, BUNDLE_EPERM = 2301, BUNDLE_BAD_ID = 2302, BUNDLE_EXISTS = 2303, BUNDLE_CLOSED = 2304,
    OUT_OF_BUNDLES = 2305, BUNDLE_BAD_TYPE = 2306, BUNDLE_BAD_FLAGS = 2307, BUNDLE_MESSAGE_BAD_LEN = 2308,
    BUNDLE_MESSAGE_BAD_XID = 2309, BUNDLE_MESSAGE_UNSUPPORTED = 2310, BUNDLE_MESSAGE_CONFLICT = 2311,
    BUNDLE_TOO_MANY_MESSAGES = 2312, BUNDLE_MESSAGE_FAILED = 2313, BUNDLE_TIMEOUT = 2314,
    BUNDLE_IN_PROGRESS = 2315,
}

impl ErrorCode {
    /// An error of this type and code, named by the specification or not.
    pub const fn new(kind: u16, code: u16) -> ErrorCode {
        ErrorCode { kind, code, experimenter: 0 }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names() {
            (Some(kind), Some(code)) => write!(f, "{kind}/{code}"),
            (Some(kind), None) => write!(f, "{kind}/{}", self.code),
            _ => write!(f, "error type {}, code {}", self.kind, self.code),
        }
    }
}

/// `OFPT_ERROR` (7.4.4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ErrorMessage {
    /// What went wrong.
    pub error: ErrorCode,
    /// The beginning of the refused request, or ASCII text for `OFPET_HELLO_FAILED`.
    pub data: Vec<u8>,
}

impl ErrorMessage {
    /// The error for `request`, of which the first 64 bytes are returned.
    pub fn refusing(error: ErrorCode, request: &[u8]) -> ErrorMessage {
        ErrorMessage { error, data: request[..request.len().min(RETURNED_BYTES)].to_vec() }
    }
}

impl Wire for ErrorMessage {
    fn put(&self, w: &mut Writer<'_>) {
        w.u16(self.error.kind);
        w.u16(self.error.code);
        if self.error.kind == EXPERIMENTER {
            w.u32(self.error.experimenter);
        }
        w.bytes(&self.data);
    }

    fn get(r: &mut Reader<'_>) -> Result<ErrorMessage, DecodeError> {
        let (kind, code) = (r.u16()?, r.u16()?);
        let experimenter = if kind == EXPERIMENTER { r.u32()? } else { 0 };
        Ok(ErrorMessage { error: ErrorCode { kind, code, experimenter }, data: r.rest().to_vec() })
    }
}

/// Bytes that are no valid message, with the error to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("bad {what}: {code}")]
pub struct DecodeError {
    /// The error to answer with.
    pub code: ErrorCode,
    /// The part of the message that is wrong.
    pub what: &'static str,
}

impl DecodeError {
    pub(crate) fn new(code: ErrorCode, what: &'static str) -> DecodeError {
        DecodeError { code, what }
    }

    /// The error message that answers `request`, the bytes that could not be decoded.
    pub fn answer(&self, request: &[u8]) -> Message {
        let xid = match request.get(4..HEADER_LEN) {
            Some(b) => u32::from_be_bytes([b[0], b[1], b[2], b[3]]),
            None => 0,
        };
        Message { xid, body: Body::Error(ErrorMessage::refusing(self.code, request)) }
    }
}

/// A message that cannot be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EncodeError {
    /// Lengths are 16-bit numbers.
    #[error("{bytes} bytes do not fit into one OpenFlow message; at most 65535 do")]
    TooLong {
        /// Bytes that the message or the structure in it would have.
        bytes: usize,
    },
    /// A match field is wider than the specification says, has a mask where none is allowed, or value bits outside
    /// of its mask.
    #[error("the value or mask of match field {field} is not allowed")]
    BadField {
        /// The field's name in the specification.
        field: &'static str,
    },
    /// A bundle inside a bundle.
    #[error("a bundle cannot carry bundle messages")]
    NestedBundle,
}
