//! The queue beside the crate `virtio-queue`, on equal memory and with equal drivers: the same chains, the same used
//! ring, the same decisions about signals. And rings full of garbage.

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::{Queue as Oracle, QueueOwnedT, QueueT};
use virtq::{Chain, GuestMemory, GuestSlice, Lone, Queue, RegionHint, RingSetup};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SIZE: u16 = 16;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const TABLES: u64 = 0x4000;
const DATA: u64 = 0x10000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Address, length, writable: a buffer of a chain.
type Buffer = (u64, u32, bool);

/// Both sides: what is written here is written to both memories.
struct Pair {
    mem: Arc<GuestMemory>,
    other: GuestMemoryMmap<()>,
    ours: Queue,
    oracle: Oracle,
}

impl Pair {
    fn new(start: u16, event_idx: bool) -> Pair {
        let layout = [(0x1000, 0xf000), (DATA, 0x8000), (DATA + 0x8000, 0x8000)];
        let mem = Arc::new(GuestMemory::anonymous(&layout));
        let other = GuestMemoryMmap::from_ranges(&layout.map(|(at, len)| (GuestAddress(at), len))).unwrap();
        let setup = RingSetup {
            size: SIZE,
            desc_user_addr: DESC,
            avail_user_addr: AVAIL,
            used_user_addr: USED,
            next_avail: start,
            event_idx,
            indirect: true,
            ..RingSetup::default()
        };
        let mut oracle = Oracle::new(SIZE).unwrap();
        oracle.set_desc_table_address(Some(DESC as u32), None);
        oracle.set_avail_ring_address(Some(AVAIL as u32), None);
        oracle.set_used_ring_address(Some(USED as u32), None);
        oracle.set_event_idx(event_idx);
        oracle.set_next_avail(start);
        oracle.set_next_used(start);
        oracle.set_ready(true);
        for (ring, bytes) in [(AVAIL, 2), (USED, 2)] {
            mem.write(mem.slice_user(ring + bytes, 2).unwrap(), 0, &start.to_le_bytes());
            other.write_obj(start, GuestAddress(ring + bytes)).unwrap();
        }
        let mut ours = Queue::new(Arc::clone(&mem), &setup, None, None).unwrap();
        // The signal a restarted queue owes is ours alone.
        ours.publish();
        Pair { mem, other, ours, oracle }
    }

    fn put(&self, addr: u64, bytes: &[u8]) {
        self.mem.write(self.mem.slice_user(addr, bytes.len() as u64).unwrap(), 0, bytes);
        self.other.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    fn desc(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    /// The used ring as the driver sees it, the event index behind it left out.
    fn used_rings(&self) -> (Vec<u8>, Vec<u8>) {
        let mut ours = vec![0; 4 + 8 * usize::from(SIZE)];
        let mut theirs = ours.clone();
        self.mem.read(self.mem.slice_user(USED, ours.len() as u64).unwrap(), 0, &mut ours);
        self.other.read_slice(&mut theirs, GuestAddress(USED)).unwrap();
        (ours, theirs)
    }

    /// What the oracle takes from the avail ring now.
    fn oracle_pops(&mut self, limit: usize) -> Vec<(u16, Vec<Buffer>)> {
        let mem = &self.other;
        let chains = self.oracle.iter(mem).unwrap().take(limit);
        let buffer =
            |desc: virtio_queue::desc::split::Descriptor| (desc.addr().0, desc.len(), desc.is_write_only());
        chains.map(|chain| (chain.head_index(), chain.map(buffer).collect())).collect()
    }
}

/// Buffers as they were before they were cut at region borders; the oracle does not cut.
fn joined(mem: &GuestMemory, chain: &Chain) -> Vec<Buffer> {
    let mut buffers: Vec<Buffer> = Vec::new();
    let part = |write: bool| move |slice: &GuestSlice| (mem.guest_addr(*slice), slice.len(), write);
    let parts = chain.readable().iter().map(part(false)).chain(chain.writable().iter().map(part(true)));
    for (addr, len, write) in parts {
        match buffers.last_mut() {
            Some(last) if last.0 + u64::from(last.1) == addr && addr == DATA + 0x8000 && last.2 == write => {
                last.1 += len;
            }
            _ => buffers.push((addr, len, write)),
        }
    }
    buffers
}

#[derive(Clone, Debug)]
enum Step {
    /// Offers a chain: lengths of its buffers, how many of them are readable, whether in a table.
    Offer {
        lens: Vec<u16>,
        readable: usize,
        indirect: bool,
    },
    /// The device takes up to so many heads.
    Pop(usize),
    /// Takes some and puts them back.
    Undo(usize),
    /// The device completes the nth of those in flight.
    Complete {
        nth: usize,
        written: u32,
    },
    Publish,
    /// The driver asks to be told about the entry this far from the used index.
    Event(i8),
    /// A check of arm: are entries waiting?
    Arm,
}

fn step() -> impl Strategy<Value = Step> {
    let offer =
        (prop::collection::vec(prop_oneof![4 => 1..6000u16, 1 => Just(0)], 1..6), 0..6usize, any::<bool>());
    prop_oneof![
        5 => offer.prop_map(|(lens, readable, indirect)| Step::Offer { lens, readable, indirect }),
        4 => (1..20usize).prop_map(Step::Pop),
        1 => (1..5usize).prop_map(Step::Undo),
        6 => (any::<prop::sample::Index>(), any::<u32>())
            .prop_map(|(nth, written)| Step::Complete { nth: nth.index(SIZE.into()), written }),
        4 => Just(Step::Publish),
        2 => (-3..20i8).prop_map(Step::Event),
        1 => Just(Step::Arm),
    ]
}

/// The driver's book-keeping: the simple model both queues are held against.
struct Model {
    free: Vec<u16>,
    offered: VecDeque<(u16, Vec<u16>, Vec<Buffer>)>,
    in_flight: Vec<(u16, Vec<u16>)>,
    done: Vec<Vec<u16>>,
    avail_idx: u16,
    used_idx: u16,
    offset: u64,
}

impl Model {
    fn offer(&mut self, pair: &Pair, lens: &[u16], readable: usize, indirect: bool) {
        let direct = if indirect { 1 } else { lens.len() };
        if self.free.len() < direct {
            return;
        }
        let ids = self.free.split_off(self.free.len() - direct);
        let head = ids[0];
        let table = TABLES + 0x100 * u64::from(head);
        let mut buffers = Vec::new();
        for (place, &len) in lens.iter().enumerate() {
            self.offset = (self.offset + 0x51d) % (0x10000 - 6000);
            let addr = DATA + self.offset;
            let write = place >= readable;
            let mut flags = if write { WRITE } else { 0 };
            let last = place + 1 == lens.len();
            if !last {
                flags |= NEXT;
            }
            if indirect {
                pair.desc(table, place as u16, addr, len.into(), flags, place as u16 + 1);
            } else {
                let next = if last { 0 } else { ids[place + 1] };
                pair.desc(DESC, ids[place], addr, len.into(), flags, next);
            }
            if len > 0 {
                buffers.push((addr, u32::from(len), write));
            }
        }
        if indirect {
            pair.desc(DESC, head, table, 16 * lens.len() as u32, INDIRECT, 0);
        }
        pair.put(AVAIL + 4 + 2 * u64::from(self.avail_idx % SIZE), &head.to_le_bytes());
        self.avail_idx = self.avail_idx.wrapping_add(1);
        pair.put(AVAIL + 2, &self.avail_idx.to_le_bytes());
        self.offered.push_back((head, ids, buffers));
    }

    fn pop(&mut self, pair: &mut Pair, limit: usize) {
        let mut heads = [0; 32];
        let count = pair.ours.pop_batch(&mut heads[..limit]).unwrap();
        let theirs = pair.oracle_pops(limit);
        assert_eq!(count, theirs.len());
        assert_eq!(count, limit.min(self.offered.len()));
        let mut chain = Chain::new(SIZE);
        for (&head, (their_head, their_buffers)) in heads[..count].iter().zip(theirs) {
            pair.ours.walk(head, &mut chain).unwrap();
            let buffers = joined(&pair.mem, &chain);
            let (model_head, ids, model_buffers) = self.offered.pop_front().unwrap();
            assert_eq!((head, their_head), (model_head, model_head));
            assert_eq!(buffers, model_buffers);
            assert_eq!(buffers, their_buffers.into_iter().filter(|b| b.1 > 0).collect::<Vec<_>>());
            let total =
                |write: bool| buffers.iter().filter(|b| b.2 == write).map(|b| u64::from(b.1)).sum::<u64>();
            assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (total(false), total(true)));
            self.in_flight.push((head, ids));
        }
    }

    fn publish(&mut self, pair: &mut Pair, event_idx: bool) {
        let pushed = !self.done.is_empty();
        let wanted = pair.oracle.needs_notification(&pair.other).unwrap();
        // Without EVENT_IDX the oracle says yes even when nothing was added.
        assert_eq!(pair.ours.publish(), wanted && (pushed || event_idx));
        let (ours, theirs) = pair.used_rings();
        assert_eq!(ours, theirs);
        self.used_idx = u16::from_le_bytes([ours[2], ours[3]]);
        self.free.extend(self.done.drain(..).flatten());
    }
}

fn run(start: u16, event_idx: bool, steps: Vec<Step>) {
    let mut pair = Pair::new(start, event_idx);
    let mut model = Model {
        free: (0..SIZE).collect(),
        offered: VecDeque::new(),
        in_flight: Vec::new(),
        done: Vec::new(),
        avail_idx: start,
        used_idx: start,
        offset: 0,
    };
    for step in steps {
        match step {
            Step::Offer { lens, readable, indirect } => model.offer(&pair, &lens, readable, indirect),
            Step::Pop(limit) => model.pop(&mut pair, limit),
            Step::Undo(limit) => {
                let mut heads = [0; 32];
                let count = pair.ours.pop_batch(&mut heads[..limit]).unwrap();
                pair.ours.undo_pop(count as u16);
            }
            Step::Complete { nth, written } => {
                if !model.in_flight.is_empty() {
                    let (head, ids) = model.in_flight.swap_remove(nth % model.in_flight.len());
                    pair.ours.push_used(head, written);
                    pair.oracle.add_used(&pair.other, head, written).unwrap();
                    model.done.push(ids);
                }
            }
            Step::Publish => model.publish(&mut pair, event_idx),
            Step::Event(ahead) => {
                let event = model.used_idx.wrapping_add_signed(ahead.into());
                pair.put(AVAIL + 4 + 2 * u64::from(SIZE), &event.to_le_bytes());
            }
            Step::Arm => {
                let waiting = pair.oracle.enable_notification(&pair.other).unwrap();
                assert_eq!(pair.ours.arm(), waiting);
                pair.oracle.disable_notification(&pair.other).unwrap();
                pair.ours.disarm();
            }
        }
        assert_eq!(usize::from(pair.ours.in_flight()), model.in_flight.len());
        assert_eq!(pair.ours.next_avail(), pair.oracle.next_avail());
    }
}

/// Descriptors that are mostly right, so that walks get deep, with anything else now and then.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let addr = prop_oneof![8 => DATA..DATA + 0xff00, 2 => TABLES..TABLES + 0x1000, 1 => any::<u64>()];
    let len = prop_oneof![8 => 0..600u32, 2 => (0..20u32).prop_map(|n| n * 16), 1 => any::<u32>()];
    let flags = prop_oneof![12 => 0..4u16, 4 => Just(INDIRECT), 1 => any::<u16>()];
    let next = prop_oneof![10 => 0..SIZE, 1 => any::<u16>()];
    (addr, len, flags, next)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 400 }, ..ProptestConfig::default() })]

    #[test]
    fn same_as_virtio_queue(
        start in prop_oneof![Just(0u16), 65500..=u16::MAX, any::<u16>()],
        event_idx: bool,
        steps in prop::collection::vec(step(), 1..300),
    ) {
        run(start, event_idx, steps);
    }

    /// Whatever we accept, the oracle reads in the same way; what breaks a rule is a fault, never a panic.
    #[test]
    fn wild_tables_are_read_alike_or_refused(
        direct in prop::collection::vec(descriptor(), usize::from(SIZE)),
        table in prop::collection::vec(descriptor(), 64),
    ) {
        let mut pair = Pair::new(0, false);
        for (index, (addr, len, flags, next)) in direct.into_iter().enumerate() {
            pair.desc(DESC, index as u16, addr, len, flags, next);
        }
        for (index, (addr, len, flags, next)) in table.into_iter().enumerate() {
            pair.desc(TABLES, index as u16, addr, len, flags, next);
        }
        let heads: Vec<u8> = (0..SIZE).flat_map(u16::to_le_bytes).collect();
        pair.put(AVAIL + 4, &heads);
        pair.put(AVAIL + 2, &SIZE.to_le_bytes());
        let theirs = pair.oracle_pops(SIZE.into());
        let mut ours = [0; SIZE as usize];
        prop_assert_eq!(pair.ours.pop_batch(&mut ours), Ok(SIZE.into()));
        let (mut chain, mut other) = (Chain::new(SIZE), Chain::new(SIZE));
        for (head, buffers) in theirs {
            let walked = pair.ours.walk(head, &mut chain);
            match pair.ours.walk_lone(head, &mut other) {
                Ok(Some(Lone { slice, writable: false })) => {
                    prop_assert_eq!((chain.readable(), chain.writable()), (&[slice][..], &[][..]));
                }
                Ok(Some(Lone { slice, writable: true })) => {
                    prop_assert_eq!((chain.readable(), chain.writable()), (&[][..], &[slice][..]));
                }
                Ok(None) => {
                    prop_assert_eq!(walked, Ok(()));
                    prop_assert_eq!(
                        (chain.readable(), chain.writable()),
                        (other.readable(), other.writable())
                    );
                }
                Err(fault) => prop_assert_eq!(walked, Err(fault)),
            }
            if walked.is_ok() {
                let buffers: Vec<Buffer> = buffers.into_iter().filter(|b| b.1 > 0).collect();
                // Joining is ambiguous where two buffers meet exactly at the border.
                let meet = buffers.windows(2).any(|w| w[0].0 + u64::from(w[0].1) == w[1].0);
                prop_assert!(meet || joined(&pair.mem, &chain) == buffers);
            }
        }
    }

    /// Random bytes everywhere: nothing panics, everything handed out lies in guest memory.
    #[test]
    fn garbage_rings_never_panic(
        desc in prop::collection::vec(any::<u8>(), 16 * usize::from(SIZE)),
        avail in prop::collection::vec(any::<u8>(), 6 + 2 * usize::from(SIZE)),
        calm: bool,
        event_idx: bool,
        in_order: bool,
    ) {
        let mem = Arc::new(GuestMemory::anonymous(&[(0x1000, 0xf000), (DATA, 0x8000)]));
        let put = |addr: u64, bytes: &[u8]| mem.write(mem.slice_user(addr, bytes.len() as u64).unwrap(), 0, bytes);
        put(DESC, &desc);
        put(AVAIL, &avail);
        if calm {
            put(AVAIL + 2, &SIZE.to_le_bytes());
        }
        let setup = RingSetup {
            size: SIZE,
            desc_user_addr: DESC,
            avail_user_addr: AVAIL,
            used_user_addr: USED,
            event_idx,
            in_order,
            indirect: true,
            ..RingSetup::default()
        };
        let mut queue = Queue::new(Arc::clone(&mem), &setup, None, None).unwrap();
        let mut chain = Chain::new(SIZE);
        let mut heads = [0; 8];
        while let Ok(count @ 1..) = queue.pop_batch(&mut heads) {
            for &head in &heads[..count] {
                if queue.walk(head, &mut chain).is_ok() {
                    let mut bytes = [0; 64];
                    chain.read_at(&mem, 3, &mut bytes);
                    chain.write_at(&mem, 1, &bytes);
                    let total: u64 = chain.readable().iter().chain(chain.writable()).map(|s| u64::from(s.len())).sum();
                    prop_assert_eq!(total, chain.readable_bytes() + chain.writable_bytes());
                }
                queue.push_used(head, 1);
            }
            queue.publish();
            queue.arm();
        }
    }

    /// The cursor against a flat copy.
    #[test]
    fn ranges_of_a_chain(
        lens in prop::collection::vec(1..40u32, 1..8),
        offset in 0..200u64,
        len in 0..200u64,
    ) {
        let mem = Arc::new(GuestMemory::anonymous(&[(0, 0x4000), (DATA, 0x1000)]));
        let put = |addr: u64, bytes: &[u8]| mem.write(mem.slice_user(addr, bytes.len() as u64).unwrap(), 0, bytes);
        let mut flat = Vec::new();
        for (index, &len) in lens.iter().enumerate() {
            let addr = DATA + 0x100 * index as u64;
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + index as u32) as u8).collect();
            put(addr, &bytes);
            flat.extend(bytes);
            let flags = if index + 1 < lens.len() { NEXT } else { 0 };
            let mut desc = addr.to_le_bytes().to_vec();
            desc.extend(len.to_le_bytes());
            desc.extend(flags.to_le_bytes());
            desc.extend((index as u16 + 1).to_le_bytes());
            put(DESC + 16 * index as u64, &desc);
        }
        let setup = RingSetup {
            size: SIZE, desc_user_addr: DESC, avail_user_addr: AVAIL, used_user_addr: USED, ..RingSetup::default()
        };
        let mut queue = Queue::new(Arc::clone(&mem), &setup, None, None).unwrap();
        let mut chain = Chain::new(SIZE);
        queue.walk(0, &mut chain).unwrap();
        let begin = (offset as usize).min(flat.len());
        let end = (begin + len as usize).min(flat.len());
        let mut read = vec![0; len as usize];
        let count = chain.read_at(&mem, offset, &mut read);
        prop_assert_eq!(&read[..count], &flat[begin..end]);
        let addrs: u64 = chain.readable_range(offset, len).map(|s| u64::from(s.len())).sum();
        prop_assert_eq!(addrs as usize, count);
        prop_assert!(chain.writable_range(0, 100).next().is_none());
        prop_assert!(chain.last_writable_byte().is_none());
        prop_assert!(mem.slice(&mut RegionHint::default(), DATA, 0x1001).is_none());
    }
}
