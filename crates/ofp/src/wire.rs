//! Bounds-checked reading, writing with back-patched lengths, and the macros for flags and enumerations.

use crate::error::{DecodeError, EncodeError, ErrorCode};

/// A cursor over received bytes. Running out of bytes yields the error code of the structure being read.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    short: ErrorCode,
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8], short: ErrorCode, what: &'static str) -> Reader<'a> {
        Reader { bytes, short, what }
    }

    /// The next `len` bytes as a structure of their own, with its own error for truncation.
    pub fn part(
        &mut self,
        len: usize,
        short: ErrorCode,
        what: &'static str,
    ) -> Result<Reader<'a>, DecodeError> {
        if self.bytes.len() < len {
            return Err(DecodeError::new(short, what));
        }
        Ok(Reader { bytes: self.take(len)?, short, what })
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn error(&self) -> DecodeError {
        DecodeError::new(self.short, self.what)
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        match self.bytes.split_at_checked(len) {
            Some((head, tail)) => {
                self.bytes = tail;
                Ok(head)
            }
            None => Err(self.error()),
        }
    }

    pub fn skip(&mut self, len: usize) -> Result<(), DecodeError> {
        self.take(len).map(drop)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        match self.bytes.split_first_chunk::<N>() {
            Some((head, tail)) => {
                self.bytes = tail;
                Ok(*head)
            }
            None => Err(self.error()),
        }
    }

    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[b]| b)
    }

    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    /// Trailing bytes after a structure of fixed size are an error.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(self.error()) }
    }

    /// A list element that begins with its own 16-bit length, which counts itself; what follows the length.
    pub fn sized(&mut self, what: &'static str) -> Result<Reader<'a>, DecodeError> {
        let len = usize::from(self.u16()?);
        let body = len.checked_sub(2).ok_or(self.error())?;
        let short = self.short;
        self.part(body, short, what)
    }

    /// The length and what it covers of an id in table features, whose type has been read.
    pub fn id_payload(&mut self) -> Result<Vec<u8>, DecodeError> {
        let len = usize::from(self.u16()?);
        let payload = len.checked_sub(4).ok_or(self.error())?;
        Ok(self.take(payload)?.to_vec())
    }

    /// Elements until the bytes end.
    pub fn list<T: Wire>(&mut self) -> Result<Vec<T>, DecodeError> {
        // No element is shorter than a match field of one byte, and most lists are short.
        let mut items = Vec::with_capacity((self.len() / 5).min(8));
        while !self.is_empty() {
            items.push(T::get(self)?);
        }
        Ok(items)
    }
}

/// A part of a message that can be written and read. `get` of a list element consumes at least one byte.
pub(crate) trait Wire: Sized {
    fn put(&self, w: &mut Writer<'_>);
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

/// Appends to a buffer; the first problem is kept and reported at the end.
pub(crate) struct Writer<'a> {
    pub out: &'a mut Vec<u8>,
    pub fault: Option<EncodeError>,
}

impl<'a> Writer<'a> {
    pub fn new(out: &'a mut Vec<u8>) -> Writer<'a> {
        Writer { out, fault: None }
    }

    pub fn fail(&mut self, error: EncodeError) {
        self.fault.get_or_insert(error);
    }

    pub fn at(&self) -> usize {
        self.out.len()
    }

    pub fn u8(&mut self, v: u8) {
        self.out.push(v);
    }

    pub fn u16(&mut self, v: u16) {
        self.bytes(&v.to_be_bytes());
    }

    pub fn u32(&mut self, v: u32) {
        self.bytes(&v.to_be_bytes());
    }

    pub fn u64(&mut self, v: u64) {
        self.bytes(&v.to_be_bytes());
    }

    pub fn bytes(&mut self, v: &[u8]) {
        self.out.extend_from_slice(v);
    }

    pub fn zeros(&mut self, count: usize) {
        self.out.resize(self.out.len() + count, 0);
    }

    pub fn list<T: Wire>(&mut self, items: &[T]) {
        for item in items {
            item.put(self);
        }
    }

    /// The length and what it covers of an id in table features, whose type has been written.
    pub fn patch_id(&mut self, payload: &[u8]) {
        let field = self.at();
        self.u16(0);
        self.patch(field, payload.len() + 4);
        self.bytes(payload);
    }

    /// Zeros until the bytes since `start` are a multiple of eight.
    pub fn pad8(&mut self, start: usize) {
        let len = self.at() - start;
        self.zeros(len.next_multiple_of(8) - len);
    }

    /// Stores the number of bytes since `start` in the two bytes at `field`.
    pub fn patch_len(&mut self, field: usize, start: usize) {
        self.patch(field, self.at() - start);
    }

    /// Stores `len` in the two bytes at `field`.
    pub fn patch(&mut self, field: usize, len: usize) {
        match u16::try_from(len) {
            Ok(len) => self.out[field..field + 2].copy_from_slice(&len.to_be_bytes()),
            Err(_) => self.fail(EncodeError::TooLong { bytes: len }),
        }
    }
}

/// Zeros that follow `len` bytes to reach a multiple of eight.
pub(crate) fn padding8(len: usize) -> usize {
    len.next_multiple_of(8) - len
}

/// A set of bits with names.
macro_rules! flags {
    ($(#[$meta:meta])* $name:ident: $bits:ty { $($(#[$flag_meta:meta])* $flag:ident = $value:expr,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $bits);

        impl $name {
            $($(#[$flag_meta])* pub const $flag: $name = $name($value);)*
            /// All bits that the specification names.
            pub const NAMED: $name = $name($($value |)* 0);

            /// Whether every bit of `other` is set.
            pub const fn contains(self, other: $name) -> bool {
                self.0 & other.0 == other.0
            }

            /// The names of the set bits, in ascending order.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                [$(($value, stringify!($flag)),)*]
                    .into_iter()
                    .filter(move |&(bit, _)| self.0 & bit != 0)
                    .map(|(_, name)| name)
            }
        }

        impl std::ops::BitOr for $name {
            type Output = $name;
            fn bitor(self, other: $name) -> $name {
                $name(self.0 | other.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x}"), self.0)?;
                self.names().try_for_each(|name| write!(f, " {name}"))?;
                f.write_str(")")
            }
        }
    };
}

/// An enumeration with the numbers of the specification.
macro_rules! wire_enum {
    ($(#[$meta:meta])* $name:ident: $number:ty { $($(#[$value_meta:meta])* $variant:ident = $value:expr,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum $name { $($(#[$value_meta])* $variant,)* }

        impl $name {
            /// Every value.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            /// The number on the wire.
            pub const fn number(self) -> $number {
                match self { $($name::$variant => $value,)* }
            }

            /// The value with this number on the wire, if the specification has one.
            pub const fn from_number(number: $number) -> Option<$name> {
                match number { $(n if n == $value => Some($name::$variant),)* _ => None }
            }
        }
    };
}
