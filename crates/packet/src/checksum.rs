//! Internet checksums: whole (RFC 1071) and incremental (RFC 1624).

/// The one's complement sum of `bytes`, added to `start` (a sum, not a checksum).
pub fn sum(bytes: &[u8], start: u32) -> u32 {
    let mut total = u64::from(start);
    let mut chunks = bytes.chunks_exact(2);
    for pair in &mut chunks {
        total += u64::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    if let [last] = chunks.remainder() {
        total += u64::from(*last) << 8;
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u32
}

/// The checksum of `bytes`: the complement of their sum.
pub fn checksum(bytes: &[u8]) -> u16 {
    !(sum(bytes, 0) as u16)
}

/// The checksum after a part of the data that was `old` became `new` (RFC 1624, equation 3). Both must start at
/// an even offset of the summed data.
pub fn update(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    !(replace(!checksum, old, new))
}

/// A sum (not complemented) after a part of the data that was `old` became `new`.
pub fn replace(current: u16, old: &[u8], new: &[u8]) -> u16 {
    let without = u32::from(current) + u32::from(!(sum(old, 0) as u16));
    let mut total = without + sum(new, 0);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}
