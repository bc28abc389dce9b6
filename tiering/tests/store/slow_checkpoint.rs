//! A checkpoint that takes long while guests keep the journal busy.

use tiering::{ActionKind, RequestKind};

use crate::rig::{FLUSH_TAG, Rig};

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
