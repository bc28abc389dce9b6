use super::*;
use proptest::prelude::*;

fn record() -> impl Strategy<Value = Record> {
    let id = any::<u32>().prop_map(VolumeId);
    let pin = prop_oneof![Just(Pin::Auto), Just(Pin::Hot), Just(Pin::Cold)];
    let state = (any::<u64>(), id.clone(), any::<u16>(), any::<u16>(), any::<bool>())
        .prop_map(|(extent, volume, valid, dirty, fresh)| HotState { extent, volume, valid, dirty, fresh });
    let limits = (any::<u64>(), any::<u32>(), any::<u32>(), any::<u32>()).prop_map(
        |(quota, hot_min, hot_max, tenant)| UnitLimits { quota, hot_min, hot_max, tenant: TenantId(tenant) },
    );
    prop_oneof![
        (id.clone(), any::<u64>(), 0u64..1 << 34, 0u32..1 << 30).prop_map(|(volume, unit, extent, birth)| {
            Record::Map { volume, unit, entry: Entry::new(extent / 2, birth) }
        }),
        (any::<u32>(), prop::option::of(state)).prop_map(|(slot, state)| Record::Hot { slot, state }),
        (id.clone(), any::<u64>()).prop_map(|(id, size_bytes)| Record::Create { id, size_bytes }),
        (id.clone(), any::<u64>()).prop_map(|(id, size_bytes)| Record::Resize { id, size_bytes }),
        (id.clone(), id.clone(), any::<bool>()).prop_map(|(from, to, writable)| Record::Fork {
            from,
            to,
            writable
        }),
        id.clone().prop_map(|id| Record::Delete { id }),
        (id.clone(), pin.clone()).prop_map(|(id, pin)| Record::SetPin { id, pin }),
        (id.clone(), any::<u64>(), any::<u64>(), pin).prop_map(|(id, first, count, pin)| Record::PinRange {
            id,
            range: PinRange { first, count, pin }
        }),
        (id.clone(), limits).prop_map(|(id, limits)| Record::SetLimits { id, limits }),
        (id, any::<u64>()).prop_map(|(id, quota)| Record::SetTenant { id: TenantId(id.0), quota }),
    ]
}

const POOL: u64 = 77;

fn ring_of(batches: &[(Vec<Record>, u64, u64)], blocks: usize) -> Vec<u8> {
    let mut ring = vec![0; blocks * BLOCK_BYTES];
    let mut cursor = Cursor { lsn: 1, ..Cursor::default() };
    for (records, boot, firm_lsn) in batches {
        let at = (cursor.sequence as usize % blocks) * BLOCK_BYTES;
        let mut block = Vec::new();
        encode_block(
            &mut cursor,
            BlockHeader { pool: POOL, boot: *boot, firm_lsn: *firm_lsn, stable: 0 },
            records,
            &mut block,
        );
        ring[at..at + BLOCK_BYTES].copy_from_slice(&block);
    }
    ring
}

/// Appends a block of one record.
fn put(ring: &mut [u8], mut cursor: Cursor, record: Record, stable: u64) {
    let at = cursor.sequence as usize * BLOCK_BYTES % ring.len();
    let mut block = Vec::new();
    let header = BlockHeader { pool: POOL, boot: 5, firm_lsn: 0, stable };
    encode_block(&mut cursor, header, &[record], &mut block);
    ring[at..at + BLOCK_BYTES].copy_from_slice(&block);
}

/// The cursor behind the block before `sequence`.
fn cursor_of(ring: &[u8], sequence: u64) -> Cursor {
    let Some(before) = sequence.checked_sub(1) else { return START };
    let at = before as usize * BLOCK_BYTES % ring.len();
    Block::decode(&ring[at..at + BLOCK_BYTES], POOL).expect("it was written").next
}

const START: Cursor = Cursor { sequence: 0, previous_crc: 0, lsn: 1 };

proptest! {
    #[test]
    fn what_was_written_is_read(batches in prop::collection::vec(prop::collection::vec(record(), 0..BLOCK_RECORDS + 1), 0..9)) {
        let blocks: Vec<_> = batches.iter().map(|b| (b.clone(), 5, 0)).collect();
        let found = replay(&ring_of(&blocks, 10), START, POOL, 5);
        let expected: Vec<Record> = batches.concat();
        prop_assert_eq!(found.records.iter().map(|(_, r)| *r).collect::<Vec<_>>(), expected);
        prop_assert_eq!(found.end.sequence, batches.len() as u64);
        prop_assert_eq!(found.refused, None);
    }

    #[test]
    fn a_damaged_block_ends_the_log(records in prop::collection::vec(record(), 5), at in 0usize..5 * BLOCK_BYTES, flip in 1u8..) {
        let blocks: Vec<_> = records.iter().map(|r| (vec![*r], 5, 0)).collect();
        let mut ring = ring_of(&blocks, 8);
        ring[at] ^= flip;
        let found = replay(&ring, START, POOL, 5);
        prop_assert_eq!(found.records.len(), at / BLOCK_BYTES);
    }

    /// Twelve blocks of one record, on a ring of sixteen that they go around; those before `stable` were flushed.
    #[test]
    fn a_flushed_block_that_is_damaged_is_reported_and_no_other(
        stable in 0u64..12, at in 0u64..12, byte in 0usize..96, flip in 1u8.., lap in 0u64..16,
    ) {
        let delete = |id| Record::Delete { id: VolumeId(id) };
        let mut start = START;
        let mut ring = vec![0; 16 * BLOCK_BYTES];
        for sequence in 0..lap + 12 {
            if sequence == lap {
                start = cursor_of(&ring, lap);
            }
            let before = if sequence == 0 { START } else { cursor_of(&ring, sequence) };
            put(&mut ring, before, delete(sequence as u32), (lap + stable).min(sequence));
        }
        let damaged = ((lap + at) % 16) as usize * BLOCK_BYTES;
        ring[damaged + byte] ^= flip;
        let found = replay(&ring, start, POOL, 5);
        prop_assert_eq!(found.records.len() as u64, at);
        prop_assert_eq!(found.end.sequence, lap + at);
        // The blocks behind it say so, if there are any.
        if at < stable {
            let damage = found.damage.expect("a flushed block is gone");
            prop_assert_eq!(damage.blocks, [lap + at]);
            prop_assert_eq!(damage.records_lost, 1);
            prop_assert_eq!(damage.behind.len() as u64, 11 - at);
        } else {
            prop_assert_eq!(found.damage, None);
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..3 * BLOCK_BYTES), sequence: u64, lsn: u64, fix: bool, count: u16,
    ) {
        let mut ring = bytes;
        let start = Cursor { sequence, previous_crc: 0, lsn };
        let blocks = (ring.len() / BLOCK_BYTES) as u64;
        if fix && blocks > 0 {
            // Random records behind a header that fits.
            let at = (sequence % blocks) as usize * BLOCK_BYTES;
            let mut head = Vec::new();
            encode_block(&mut Cursor { sequence: sequence.min(u64::MAX - 1), previous_crc: 0, lsn: lsn.min(u64::MAX - 1) },
                BlockHeader { pool: POOL, boot: 0, firm_lsn: 0, stable: 0 }, &[], &mut head);
            ring[at..at + HEADER_BYTES].copy_from_slice(&head[..HEADER_BYTES]);
            ring[at + 52..at + 54].copy_from_slice(&(count % 130).to_le_bytes());
            let crc = crc32c::crc32c(&ring[at + 8..at + BLOCK_BYTES]);
            ring[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        }
        let found = replay(&ring, start, POOL, 0);
        prop_assert!(found.records.len() as u64 <= blocks * BLOCK_RECORDS as u64);
    }
}

#[test]
fn tentative_records_count_only_in_their_own_boot() {
    let delete = |id| Record::Delete { id: VolumeId(id) };
    let blocks = vec![(vec![delete(1), delete(2)], 5, 1), (vec![delete(3)], 5, 1)];
    let same = replay(&ring_of(&blocks, 8), START, POOL, 5);
    assert_eq!((same.records.len(), same.refused), (3, None));
    let other = replay(&ring_of(&blocks, 8), START, POOL, 6);
    assert_eq!((other.records.len(), other.refused), (1, Some((2, 3))));
    // The next opening declares them void; from then on they are refused whatever becomes firm.
    let mut blocks = blocks;
    blocks.push((vec![Record::Void { first: 2, last: 3 }, delete(4)], 6, 5));
    for boot in [5, 6, 7] {
        let later = replay(&ring_of(&blocks, 8), START, POOL, boot);
        assert_eq!(later.records.iter().map(|(lsn, _)| *lsn).collect::<Vec<_>>(), [1, 4, 5]);
        assert_eq!(later.refused, None);
    }
}

#[test]
fn an_earlier_lap_never_fits() {
    let blocks: Vec<_> = (0..11).map(|id| (vec![Record::Delete { id: VolumeId(id) }], 5, 0)).collect();
    let ring = ring_of(&blocks, 8);
    let mut start = START;
    let mut scratch = Vec::new();
    for (records, ..) in &blocks[..6] {
        encode_block(
            &mut start,
            BlockHeader { pool: POOL, boot: 5, firm_lsn: 0, stable: 0 },
            records,
            &mut scratch,
        );
    }
    let found = replay(&ring, start, POOL, 5);
    assert_eq!(found.records.len(), 5);
    assert_eq!(replay(&ring, start, POOL + 1, 5).records.len(), 0, "another pool's log");
}
