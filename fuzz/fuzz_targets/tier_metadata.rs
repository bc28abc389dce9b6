//! Metadata of the tiered store, any bytes: superblocks, journal and checkpoint as they are decoded, each with its checksum
//! put right, so that the fuzzer gets behind it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tiering::checkpoint;
use tiering::journal::{BLOCK_BYTES, Cursor, replay};
use tiering::superblock::{SUPERBLOCK_BYTES, Superblock};

const POOL: u64 = 7;

fn seal(bytes: &mut [u8], crc_at: usize) {
    let crc = crc32c::crc32c(&bytes[crc_at + 4..]);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn superblock(data: &[u8]) {
    let mut bytes = data.to_vec();
    bytes.resize(SUPERBLOCK_BYTES, 0);
    bytes[..8].copy_from_slice(b"SluiceT1");
    seal(&mut bytes, 8);
    if let Some(block) = Superblock::decode(&bytes) {
        assert_eq!(Superblock::decode(&block.encode()), Some(block.clone()));
        let _ = (block.slots(), block.data_bytes_end(), block.member());
    }
}

/// Blocks that follow each other, so that only what they say is the fuzzer's; some are damaged.
fn journal(data: &[u8]) {
    let mut ring = Vec::new();
    let (mut previous, mut lsn) = (0u32, 1u64);
    for (sequence, payload) in data.chunks(BLOCK_BYTES - 64).take(8).enumerate() {
        let mut block = vec![0; BLOCK_BYTES];
        block[64..64 + payload.len()].copy_from_slice(payload);
        block[..4].copy_from_slice(b"1SLJ");
        let records = (payload.len() / 32).min(126) as u64;
        for (at, field) in [POOL, sequence as u64, u64::from(payload[0] & 1), lsn, u64::from(payload[0] >> 1)]
            .into_iter()
            .enumerate()
        {
            block[8 + at * 8..16 + at * 8].copy_from_slice(&field.to_le_bytes());
        }
        block[48..52].copy_from_slice(&previous.to_le_bytes());
        block[52..54].copy_from_slice(&(records as u16).to_le_bytes());
        block[56..64].copy_from_slice(&(u64::from(payload[0]) % (sequence as u64 + 1)).to_le_bytes());
        seal(&mut block, 4);
        previous = u32::from_le_bytes(block[4..8].try_into().expect("four bytes"));
        lsn += records;
        if payload.get(1) == Some(&0xff) {
            block[4] ^= 1;
        }
        ring.extend_from_slice(&block);
    }
    let start = Cursor { lsn: 1, ..Cursor::default() };
    let found = replay(&ring, start, POOL, 1);
    assert!(found.end.lsn <= lsn);
    assert!(found.records.iter().all(|(at, _)| *at < found.end.lsn));
    if let Some(damage) = found.damage {
        assert!(damage.blocks.first() == Some(&found.end.sequence));
        assert!(damage.behind.iter().all(|(at, _)| (found.end.lsn..lsn).contains(at)));
    }
}

fn one_checkpoint(data: &[u8]) {
    let mut area = Vec::new();
    for (index, payload) in data.chunks(checkpoint::CHUNK_BYTES - 32).enumerate() {
        let mut chunk = b"SCKP\0\0\0\0".to_vec();
        for field in [9u64, index as u64, payload.len() as u64] {
            chunk.extend_from_slice(&field.to_le_bytes());
        }
        chunk.extend_from_slice(payload);
        chunk.resize(chunk.len().next_multiple_of(4096), 0);
        seal(&mut chunk, 4);
        area.extend_from_slice(&chunk);
    }
    if let Some(content) = checkpoint::read(&area, 9, 64) {
        assert!(content.volumes.values().all(|volume| volume.units() <= 64 * 512));
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&which, data)) = data.split_first() else { return };
    match which % 4 {
        0 => superblock(data),
        1 => journal(data),
        2 => one_checkpoint(data),
        // As they come, nothing put right.
        _ => {
            Superblock::newest(data, data);
            replay(data, Cursor::default(), POOL, 1);
            checkpoint::read(data, 9, 64);
        }
    }
});
