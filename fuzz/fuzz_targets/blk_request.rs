//! Headers and segments of virtio-blk requests: what is accepted lies within the disk and is whole blocks.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_blk::request::{DiskLimits, Request, parse, parse_range};

/// Types that exist, so that most inputs get past the first check.
const KINDS: &[u32] = &[0, 1, 4, 8, 11, 13];

fn word(data: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(data.iter().skip(at)) {
        *to = *from;
    }
    u64::from_le_bytes(bytes)
}

fuzz_target!(|data: &[u8]| {
    let Some((&options, data)) = data.split_first() else { return };
    let limits = DiskLimits {
        // The size of a disk in bytes fits 64 bits.
        capacity_sectors: word(data, 0) / 512 >> (options & 0x1f),
        block_bytes: if options & 0x20 != 0 { 4096 } else { 512 },
        read_only: options & 0x40 != 0,
        discard: options & 0x80 == 0,
    };
    let kind = word(data, 8) as u32;
    let kind = KINDS.get(kind as usize % 8).copied().unwrap_or(kind);
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&(word(data, 12) >> (options & 0x1f)).to_le_bytes());
    let (readable, writable) = (word(data, 20) & 0xffff_ffff, word(data, 24) & 0xffff_ffff);
    let inside = |offset: u64, bytes: u64| {
        let block = u64::from(limits.block_bytes);
        assert!(offset % block == 0 && bytes % block == 0);
        let end = u128::from(offset) + u128::from(bytes);
        assert!(end <= u128::from(limits.capacity_sectors) * 512, "{offset} {bytes}");
    };
    let request = match parse(&header, readable, writable, &limits) {
        Ok(request) => request,
        Err(fault) => {
            let _ = (fault.status(), fault.to_string());
            return;
        }
    };
    match request {
        Request::Read { offset, bytes } | Request::Write { offset, bytes } => inside(offset, bytes),
        Request::Discard { ranges } | Request::WriteZeroes { ranges } => {
            assert!(readable >= 16 + 16 * u64::from(ranges));
            for chunk in data.chunks_exact(16).take(ranges as usize) {
                let chunk = chunk.try_into().expect("chunks of 16 bytes");
                if let Ok(range) = parse_range(chunk, request, &limits) {
                    inside(range.offset, range.bytes);
                }
            }
        }
        Request::Flush | Request::GetId => {}
    }
    let changes = !matches!(request, Request::Read { .. } | Request::Flush | Request::GetId);
    assert!(!(changes && limits.read_only));
});
