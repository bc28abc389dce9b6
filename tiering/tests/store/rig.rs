//! A store on devices that take no room and do at once whatever they are asked for.

use std::collections::BTreeMap;

use tiering::{
    Action, BlockingIo, Buffer, DeviceId, DeviceSpec, FormatSpec, IoError, OpenOptions, Request, RequestKind,
    Store, Tier, UNIT_BYTES, VolumeId,
};
use uuid::Uuid;

/// Tag of the flushes that are counted.
pub const FLUSH_TAG: u32 = 1;
const BLOCK: usize = 4096;

/// Large devices, of which only what was written takes memory.
#[derive(Default)]
struct Sparse(BTreeMap<(u8, u64), Vec<u8>>);

impl BlockingIo for Sparse {
    fn present(&self, _: DeviceId) -> bool {
        true
    }
    fn read(&mut self, device: DeviceId, offset: u64, into: &mut [u8]) -> Result<(), IoError> {
        for (at, block) in (offset..).step_by(BLOCK).zip(into.chunks_mut(BLOCK)) {
            match self.0.get(&(device.0, at)) {
                Some(bytes) => block.copy_from_slice(&bytes[..block.len()]),
                None => block.fill(0),
            }
        }
        Ok(())
    }
    fn write(&mut self, device: DeviceId, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        for (at, block) in (offset..).step_by(BLOCK).zip(bytes.chunks(BLOCK)) {
            self.0.insert((device.0, at), block.to_vec());
        }
        Ok(())
    }
    fn flush(&mut self, _: DeviceId) -> Result<(), IoError> {
        Ok(())
    }
}

/// A store whose actions are all carried out at once, but those of checkpoints while they are held.
pub struct Rig {
    pub store: Store,
    pub now_ns: u64,
    pub hold: bool,
    pub held: Vec<Action>,
    /// Flushes that were taken, and those that are done.
    pub asked: u32,
    pub flushes: u32,
}

impl Rig {
    pub fn new(hot_bytes: u64, cold_bytes: u64) -> Rig {
        let device = |uuid, tier, size_bytes| DeviceSpec { uuid: Uuid::from_u128(uuid), tier, size_bytes };
        let devices = vec![device(2, Tier::Hot, hot_bytes), device(3, Tier::Cold, cold_bytes)];
        let mut disks = Sparse::default();
        tiering::format(&mut disks, &FormatSpec::usual(Uuid::from_u128(1), devices)).expect("metadata fits");
        let store = Store::open(&mut disks, OpenOptions::default()).expect("a new pool opens");
        Rig { store, now_ns: 0, hold: false, held: Vec::new(), asked: 0, flushes: 0 }
    }

    pub fn drive(&mut self) {
        self.now_ns += 1_000_000;
        self.store.tick(self.now_ns);
        while let Some(action) = self.store.next_action() {
            // Of the cold device only checkpoints write what the library keeps.
            let checkpoint = matches!(action.buffer, Buffer::Meta { .. }) && action.device == DeviceId(1);
            match self.hold && checkpoint {
                true => self.held.push(action),
                false => self.store.complete(action.id, Ok(action.len)),
            }
        }
        while let Some(done) = self.store.next_done() {
            assert_eq!(done.result, Ok(()));
            self.flushes += u32::from(done.tag == FLUSH_TAG);
        }
    }

    /// False when the store takes none now.
    pub fn ask(&mut self, tag: u32, volume: VolumeId, kind: RequestKind, unit: u64) -> bool {
        let len = if kind == RequestKind::Flush { 0 } else { UNIT_BYTES as u32 };
        let request = Request { tag, volume, kind, offset: unit * UNIT_BYTES, len };
        let taken = self.store.submit(request).is_ok();
        self.drive();
        taken
    }
}
