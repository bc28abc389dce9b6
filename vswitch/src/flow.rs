//! Flows: what a flow entry is, what it does, what it counts.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use packet::{Edit, FlowKey, WORDS};

use crate::model::PortNo;

/// Actions in one list of one flow. Longer lists are refused: each packet pays for each of them.
pub const ACTIONS_MAX: usize = 256;

/// One action.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Change the packet.
    Edit(Edit),
    /// Send it through a group.
    Group(u32),
    /// Send it to a port, which may be a reserved one.
    Output {
        /// The port.
        port: PortNo,
        /// For the controller: bytes to send; 0xffff = all.
        max_len: u16,
    },
}

/// The action set of a packet in the pipeline (OpenFlow 1.3.5, 5.10): at most one action of a kind, executed in
/// the order of the kinds.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ActionSet(Vec<Action>);

impl ActionSet {
    /// Adds an action; one of the same kind that is there already is replaced.
    pub fn write(&mut self, action: Action) {
        let kind = kind(&action);
        match self.0.binary_search_by_key(&kind, kind_of) {
            Ok(at) => self.0[at] = action,
            Err(at) => self.0.insert(at, action),
        }
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The actions in the order of execution.
    pub fn actions(&self) -> &[Action] {
        &self.0
    }
}

fn kind_of(action: &Action) -> (u8, u8) {
    kind(action)
}

/// Place in the order of execution (5.10), and the field for set-field, of which there may be one per field.
fn kind(action: &Action) -> (u8, u8) {
    match action {
        Action::Edit(edit) => edit_kind(edit),
        Action::Group(_) => (10, 0),
        Action::Output { .. } => (11, 0),
    }
}

fn edit_kind(edit: &Edit) -> (u8, u8) {
    let field = match edit {
        Edit::CopyTtlIn => return (1, 0),
        Edit::PopVlan => return (2, 0),
        Edit::PopMpls(_) => return (2, 1),
        Edit::PushMpls(_) => return (3, 0),
        Edit::PushVlan(_) => return (5, 0),
        Edit::CopyTtlOut => return (6, 0),
        Edit::DecTtl => return (7, 0),
        Edit::DecMplsTtl => return (7, 1),
        Edit::SetVlanVid(_) => 0,
        Edit::SetVlanPcp(_) => 1,
        Edit::SetEthDst(_) => 2,
        Edit::SetEthSrc(_) => 3,
        Edit::SetIpDscp(_) => 4,
        Edit::SetIpEcn(_) => 5,
        Edit::SetTtl(_) => 7,
        Edit::SetIpv4Src(_) => 8,
        Edit::SetIpv4Dst(_) => 9,
        Edit::SetIpv6Src(_) => 10,
        Edit::SetIpv6Dst(_) => 11,
        Edit::SetIpv6Flabel(_) => 12,
        Edit::SetTpSrc(..) => 13,
        Edit::SetTpDst(..) => 14,
        Edit::SetIcmpCode(..) => 15,
        Edit::SetArpOp(_) => 16,
        Edit::SetArpSpa(_) => 17,
        Edit::SetArpTpa(_) => 18,
        Edit::SetArpSha(_) => 19,
        Edit::SetArpTha(_) => 20,
        Edit::SetNdTarget(_) => 21,
        Edit::SetNdSll(_) => 22,
        Edit::SetNdTll(_) => 23,
        Edit::SetMplsLabel(_) => 24,
        Edit::SetMplsTc(_) => 25,
        Edit::SetMplsTtl(_) => 26,
        Edit::SetTunnelId(_) => 27,
        // Last, because they change what the others apply to.
        Edit::SetMplsBos(_) => 28,
        Edit::SetIcmpType(..) => 29,
        Edit::SetIpProto(_) => 30,
        Edit::SetEthType(_) => 31,
    };
    (8, field)
}

/// What a flow entry does with the packets that match it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Instructions {
    /// Meter: before everything else.
    pub meter: Option<u32>,
    /// Apply-Actions: at once, in this order.
    pub apply: Vec<Action>,
    /// Clear-Actions: empty the action set (after `apply`).
    pub clear: bool,
    /// Write-Actions: into the action set.
    pub write: Vec<Action>,
    /// Write-Metadata: value and mask.
    pub metadata: Option<(u64, u64)>,
    /// Goto-Table.
    pub goto: Option<u8>,
    /// The instructions as the controller sent them, for it to see again.
    pub wire: Vec<ofp::Instruction>,
}

impl Instructions {
    /// All actions, of both lists.
    pub fn actions(&self) -> impl Iterator<Item = &Action> {
        self.apply.iter().chain(&self.write)
    }

    /// The groups that packets are sent through.
    pub fn groups(&self) -> impl Iterator<Item = u32> + '_ {
        self.actions().filter_map(|action| match action {
            Action::Group(id) => Some(*id),
            _ => None,
        })
    }

    /// Whether some action sends packets to `port`.
    pub fn outputs_to(&self, wanted: PortNo) -> bool {
        self.actions().any(|action| matches!(action, Action::Output { port, .. } if *port == wanted))
    }
}

/// Instructions in use, each different one once: a million flows mostly do one of a few things, and what they share they
/// need not keep a million times.
#[derive(Default)]
pub struct Shared {
    known: HashSet<Arc<Instructions>>,
    last: Option<Arc<Instructions>>,
    sweep_at: usize,
}

/// Different instructions that are kept without a look at whether somebody still uses them.
const UNSWEPT_MAX: usize = 1024;

impl Shared {
    /// The one copy of these instructions.
    pub fn one(&mut self, new: &Arc<Instructions>) -> Arc<Instructions> {
        // Most flow-mods say what the one before them said.
        if let Some(last) = self.last.as_ref().filter(|last| *last == new) {
            return last.clone();
        }
        let one = match self.known.get(new) {
            Some(known) => known.clone(),
            None => self.keep(new),
        };
        self.last = Some(one.clone());
        one
    }

    fn keep(&mut self, new: &Arc<Instructions>) -> Arc<Instructions> {
        if self.known.len() >= self.sweep_at.max(UNSWEPT_MAX) {
            self.known.retain(|instructions| Arc::strong_count(instructions) > 1);
            self.sweep_at = 2 * self.known.len();
        }
        self.known.insert(new.clone());
        new.clone()
    }
}

/// What one worker counted for a flow. One writer.
#[derive(Default, Debug)]
pub struct Cell {
    packets: AtomicU64,
    bytes: AtomicU64,
    used_ms: AtomicU64,
}

impl Cell {
    /// Adds what its only writer counted.
    pub fn add(&self, packets: u64, bytes: u64, used_ms: u64) {
        self.packets.store(self.packets.load(Ordering::Relaxed) + packets, Ordering::Relaxed);
        self.bytes.store(self.bytes.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
        self.used_ms.store(used_ms.max(self.used_ms.load(Ordering::Relaxed)), Ordering::Relaxed);
    }
}

/// Counters of a flow: one cell per worker, and one more for the control side.
#[derive(Clone, Debug)]
pub struct FlowStats(Arc<[Cell]>);

/// The sum over the cells of a [`FlowStats`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowCounters {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// When the last packet matched, milliseconds of the switch's clock; 0 = never.
    pub used_ms: u64,
}

impl FlowStats {
    /// Zero counters for `workers` workers.
    pub fn new(workers: usize) -> FlowStats {
        FlowStats((0..=workers).map(|_| Cell::default()).collect())
    }

    /// The cell of a worker; `workers` itself is the control side's.
    pub fn cell(&self, worker: usize) -> &Cell {
        &self.0[worker]
    }

    /// The sum.
    pub fn sum(&self) -> FlowCounters {
        self.0.iter().fold(FlowCounters::default(), |sum, cell| FlowCounters {
            packets: sum.packets + cell.packets.load(Ordering::Relaxed),
            bytes: sum.bytes + cell.bytes.load(Ordering::Relaxed),
            used_ms: sum.used_ms.max(cell.used_ms.load(Ordering::Relaxed)),
        })
    }
}

/// `OFPFF_*` flags of a flow entry that outlive the flow-mod.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowFlags {
    /// Tell the controllers when the flow goes.
    pub send_removed: bool,
    /// Was added with CHECK_OVERLAP.
    pub check_overlap: bool,
    /// Was added with RESET_COUNTS.
    pub reset_counts: bool,
    /// The controller does not need packet counts.
    pub no_packet_counts: bool,
    /// The controller does not need byte counts.
    pub no_byte_counts: bool,
}

/// Words of a key that need no memory of their own: port, tag, addresses and ports of IPv4.
const FEW_WORDS: usize = 5;

/// A key without the words in which its mask has no bits: most masks look at few of them, and a million flows need not
/// keep the others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PackedKey {
    /// Zeros follow.
    Few([u64; FEW_WORDS]),
    /// More than fit.
    Many(Box<[u64]>),
}

impl PackedKey {
    /// The bits of `key` that `mask` selects.
    pub fn new(key: &FlowKey, mask: &FlowKey) -> PackedKey {
        let mut words = [0; WORDS];
        let mut count = 0;
        for (key, mask) in key.words().iter().zip(mask.words()) {
            if *mask != 0 {
                words[count] = key & mask;
                count += 1;
            }
        }
        match words.first_chunk() {
            Some(few) if count <= FEW_WORDS => PackedKey::Few(*few),
            _ => PackedKey::Many(words[..count].into()),
        }
    }

    /// The key under the mask that it was packed with.
    pub fn unpack(&self, mask: &FlowKey) -> FlowKey {
        let packed: &[u64] = match self {
            PackedKey::Few(words) => words,
            PackedKey::Many(words) => words,
        };
        let (mut words, mut packed) = ([0; WORDS], packed.iter());
        for (word, mask) in words.iter_mut().zip(mask.words()) {
            if *mask != 0 {
                *word = packed.next().copied().unwrap_or_default();
            }
        }
        FlowKey::from_words(words)
    }

    /// The first `count` words, as many as the mask has words with bits.
    #[inline]
    pub fn words(&self, count: usize) -> &[u64] {
        match self {
            PackedKey::Few(words) => &words[..count.min(FEW_WORDS)],
            PackedKey::Many(words) => words,
        }
    }

    /// Whether these are its words; zeros follow them.
    #[inline]
    pub fn is(&self, packed: &[u64; WORDS]) -> bool {
        match self {
            // Of a length that is known: no call.
            PackedKey::Few(words) => packed.first_chunk() == Some(words),
            PackedKey::Many(words) => packed.get(..words.len()) == Some(words),
        }
    }
}

/// A flow entry. Immutable: a modification puts another one in its place that shares the counters.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Tells this entry from one that was at its place before.
    pub id: u64,
    /// Table.
    pub table: u8,
    /// Priority.
    pub priority: u16,
    /// The fields to match; see [`Flow::key`].
    pub packed: PackedKey,
    /// Which bits of the key count; shared by all flows that look at the same bits.
    pub mask: Arc<FlowKey>,
    /// The controller's number for it.
    pub cookie: u64,
    /// Seconds without packets until it goes; 0 = never.
    pub idle_timeout_s: u16,
    /// Seconds until it goes; 0 = never.
    pub hard_timeout_s: u16,
    /// Flags.
    pub flags: FlowFlags,
    /// When it was added, milliseconds of the switch's clock.
    pub created_ms: u64,
    /// What it does.
    pub instructions: Arc<Instructions>,
    /// What it counted.
    pub stats: FlowStats,
}

impl Flow {
    /// The fields to match, masked.
    pub fn key(&self) -> FlowKey {
        self.packed.unpack(&self.mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packed_keys_say_what_the_mask_selects(
            key in any::<[u64; WORDS]>(),
            mask in proptest::array::uniform16(prop_oneof![2 => Just(0), 1 => any::<u64>()]),
        ) {
            let (key, mask) = (FlowKey::from_words(key), FlowKey::from_words(mask));
            let packed = PackedKey::new(&key, &mask);
            prop_assert_eq!(packed.unpack(&mask), key.masked(&mask));
            let count = mask.words().iter().filter(|word| **word != 0).count();
            prop_assert_eq!(packed.words(count).len(), count);
            let mut words = [0; WORDS];
            words[..count].copy_from_slice(packed.words(count));
            prop_assert!(packed.is(&words));
            for at in 0..count {
                let mut other = words;
                other[at] ^= 1;
                prop_assert!(!packed.is(&other));
            }
        }
    }

    fn to(port: u32) -> Arc<Instructions> {
        let apply = vec![Action::Output { port: PortNo(port), max_len: 0 }];
        Arc::new(Instructions { apply, ..Instructions::default() })
    }

    #[test]
    fn the_same_instructions_are_kept_once_and_only_while_used() {
        let mut shared = Shared::default();
        let (one, other) = (shared.one(&to(1)), shared.one(&to(2)));
        for _ in 0..2 {
            assert!(Arc::ptr_eq(&shared.one(&to(1)), &one));
            assert!(Arc::ptr_eq(&shared.one(&to(2)), &other));
        }
        for port in 0..10 * UNSWEPT_MAX as u32 {
            shared.one(&to(port + 3));
        }
        assert!(shared.known.len() <= UNSWEPT_MAX + 1, "{}", shared.known.len());
        assert!(Arc::ptr_eq(&shared.one(&to(1)), &one), "what is used stays");
    }
}
