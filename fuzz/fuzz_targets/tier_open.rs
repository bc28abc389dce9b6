//! A pool whose metadata somebody wrote over, checksums put right: opening gives a store or an error, and a store that opened
//! answers reads.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tiering::superblock::Superblock;
use tiering::{
    ActionKind, BlockingIo, DeviceId, DeviceSpec, FormatSpec, IoError, OpenOptions, Request, RequestKind,
    Store, Tier, Tuning, UNIT_BYTES,
};
use uuid::Uuid;

const DISK_BYTES: usize = 40 * UNIT_BYTES as usize;

struct Memory([Vec<u8>; 2]);

impl BlockingIo for Memory {
    fn present(&self, device: DeviceId) -> bool {
        device.0 < 2
    }
    fn read(&mut self, device: DeviceId, offset: u64, into: &mut [u8]) -> Result<(), IoError> {
        let from = usize::try_from(offset).map_err(|_| IoError)?;
        let end = from.checked_add(into.len()).ok_or(IoError)?;
        into.copy_from_slice(self.0[usize::from(device.0)].get(from..end).ok_or(IoError)?);
        Ok(())
    }
    fn write(&mut self, device: DeviceId, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        let from = usize::try_from(offset).map_err(|_| IoError)?;
        let end = from.checked_add(bytes.len()).ok_or(IoError)?;
        self.0[usize::from(device.0)].get_mut(from..end).ok_or(IoError)?.copy_from_slice(bytes);
        Ok(())
    }
    fn flush(&mut self, _: DeviceId) -> Result<(), IoError> {
        Ok(())
    }
}

fn tuning() -> Tuning {
    Tuning { requests_max: 4, scratch_buffers: 4, boot: Uuid::from_u128(1 << 64), ..Tuning::default() }
}

/// Every action works; contents do not matter here. Bounded, for a store may wait for what never comes.
fn drive(store: &mut Store) {
    for now in 1..40u64 {
        while let Some(action) = store.next_action() {
            let device = usize::from(action.device.0);
            if matches!(action.kind, ActionKind::Read | ActionKind::Write) && device < 2 {
                assert!(action.offset + u64::from(action.len) <= DISK_BYTES as u64, "{action:?}");
            }
            store.complete(action.id, Ok(action.len));
        }
        while store.next_done().is_some() {}
        store.tick(now * 1_000_000_000);
    }
}

/// A small pool with a volume, a snapshot, pins and limits; closed with a checkpoint and a journal behind it.
fn pool() -> Memory {
    let mut memory = Memory([vec![0; DISK_BYTES], vec![0; DISK_BYTES]]);
    let device = |uuid, tier| DeviceSpec { uuid: Uuid::from_u128(uuid), tier, size_bytes: DISK_BYTES as u64 };
    let devices = vec![device(2, Tier::Hot), device(3, Tier::Cold)];
    let spec = FormatSpec { pool: Uuid::from_u128(1), devices, journal_bytes: 64 * 4096, leaves_max: 12 };
    tiering::format(&mut memory, &spec).expect("metadata fits");
    memory
}

fuzz_target!(|data: &[u8]| {
    let mut memory = pool();
    // Each piece: where (3 bytes), how much (1), the bytes.
    let mut rest = data;
    while let [a, b, c, len, more @ ..] = rest {
        let (device, at) =
            (usize::from(*c >> 7), usize::from(*a) | usize::from(*b) << 8 | usize::from(*c & 7) << 16);
        let (bytes, left) = more.split_at(more.len().min(usize::from(*len)));
        memory.0[device][at..at + bytes.len()].copy_from_slice(bytes);
        rest = left;
    }
    for disk in &mut memory.0 {
        for copy in disk[..8192].chunks_exact_mut(4096) {
            let crc = crc32c::crc32c(&copy[12..]);
            copy[8..12].copy_from_slice(&crc.to_le_bytes());
        }
        for block in disk[8192..8192 + 64 * 4096].chunks_exact_mut(4096) {
            let crc = crc32c::crc32c(&block[8..]);
            block[4..8].copy_from_slice(&crc.to_le_bytes());
        }
        let _ = Superblock::newest(&disk[..4096], &disk[4096..8192]);
    }
    let options = OpenOptions { tuning: tuning(), degraded: data.len() % 2 == 1, now_ns: 0 };
    let Ok(mut store) = Store::open(&mut memory, options) else { return };
    let volumes: Vec<_> = store.volumes().take(3).collect();
    for info in volumes {
        let len = info.size_bytes.min(UNIT_BYTES) as u32;
        for kind in [RequestKind::Read, RequestKind::Write] {
            let request = Request { tag: 0, volume: info.id, kind, offset: 0, len };
            if store.submit(request).is_ok() {
                drive(&mut store);
                return;
            }
        }
    }
    let _ = (store.lost(), store.fault_report());
});
