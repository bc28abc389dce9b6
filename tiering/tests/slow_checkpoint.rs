//! A checkpoint that takes long while guests keep the journal busy.

use tiering::{
    Action, ActionKind, BlockingIo, Buffer, DeviceId, DeviceSpec, FormatSpec, IoError, OpenOptions, Request,
    RequestKind, Store, Tier, UNIT_BYTES, VolumeId,
};
use uuid::Uuid;

const FLUSH_TAG: u32 = 1;

/// Devices of zeroes that remember what is written before the pool is at work.
struct Memory([Vec<u8>; 2]);

impl BlockingIo for Memory {
    fn present(&self, device: DeviceId) -> bool {
        device.0 < 2
    }
    fn read(&mut self, device: DeviceId, offset: u64, into: &mut [u8]) -> Result<(), IoError> {
        let from = offset as usize;
        into.copy_from_slice(self.0[usize::from(device.0)].get(from..from + into.len()).ok_or(IoError)?);
        Ok(())
    }
    fn write(&mut self, device: DeviceId, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        let from = offset as usize;
        let to = self.0[usize::from(device.0)].get_mut(from..from + bytes.len()).ok_or(IoError)?;
        to.copy_from_slice(bytes);
        Ok(())
    }
    fn flush(&mut self, _: DeviceId) -> Result<(), IoError> {
        Ok(())
    }
}

/// A store whose actions are all carried out at once, but those of checkpoints while they are held.
struct Rig {
    store: Store,
    now_ns: u64,
    hold: bool,
    held: Vec<Action>,
    /// Flushes that were taken, and those that are done.
    asked: u32,
    flushes: u32,
}

impl Rig {
    fn new(hot_bytes: u64, cold_bytes: u64) -> Rig {
        let device = |uuid, tier, size_bytes| DeviceSpec { uuid: Uuid::from_u128(uuid), tier, size_bytes };
        let devices = vec![device(2, Tier::Hot, hot_bytes), device(3, Tier::Cold, cold_bytes)];
        let mut memory = Memory([hot_bytes, cold_bytes].map(|bytes| vec![0; bytes as usize]));
        tiering::format(&mut memory, &FormatSpec::usual(Uuid::from_u128(1), devices)).expect("metadata fits");
        let store = Store::open(&mut memory, OpenOptions::default()).expect("a new pool opens");
        Rig { store, now_ns: 0, hold: false, held: Vec::new(), asked: 0, flushes: 0 }
    }

    fn drive(&mut self) {
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
    fn ask(&mut self, tag: u32, volume: VolumeId, kind: RequestKind, unit: u64) -> bool {
        let len = if kind == RequestKind::Flush { 0 } else { UNIT_BYTES as u32 };
        let request = Request { tag, volume, kind, offset: unit * UNIT_BYTES, len };
        let taken = self.store.submit(request).is_ok();
        self.drive();
        taken
    }
}

/// Reads bring data in, whose records need journal blocks with each flush of a guest: the ring must last until the
/// checkpoint that frees it has ended, however long that takes.
#[test]
fn the_journal_lasts_until_a_slow_checkpoint_has_ended() {
    let mut rig = Rig::new(8 << 20, 64 << 20);
    let volume = rig.store.create_volume(32 << 20).expect("there is room");
    for unit in 0..512 {
        assert!(rig.ask(0, volume, RequestKind::Write, unit));
    }
    rig.hold = true;
    rig.store.checkpoint();
    for turn in 0..2000 {
        assert!(rig.ask(0, volume, RequestKind::Read, turn * 7 % 512));
        if rig.asked == rig.flushes && rig.ask(FLUSH_TAG, volume, RequestKind::Flush, 0) {
            rig.asked += 1;
        }
        assert_eq!(rig.store.read_only(), None, "turn {turn}, {:?}", rig.store.log_depth());
    }
    assert!(rig.held.iter().any(|action| action.kind == ActionKind::Write), "a checkpoint runs");
    assert!(rig.flushes > 0, "flushes go on while the journal has room");
    let before = rig.store.log_depth().0;
    rig.hold = false;
    for action in std::mem::take(&mut rig.held) {
        rig.store.complete(action.id, Ok(action.len));
    }
    rig.drive();
    assert_eq!(rig.flushes, rig.asked, "whoever waited is answered");
    assert!(rig.store.log_depth().0 < before, "{:?}", rig.store.log_depth());
    assert!(rig.ask(0, volume, RequestKind::Write, 0));
}
