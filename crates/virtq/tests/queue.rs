//! The queue against a driver written by hand: one test per rule of the ring.

use std::sync::Arc;

use virtq::{Chain, GuestMemory, Queue, RingFault, RingSetup};

const SIZE: u16 = 8;
const DESC: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const DATA: u64 = 0x10000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The driver's side, in guest memory, with nothing checked.
struct Driver {
    mem: Arc<GuestMemory>,
    setup: RingSetup,
}

impl Driver {
    fn new() -> Driver {
        Driver::on(GuestMemory::anonymous(&[
            (0, 0x4000),
            (DATA, 0x4000),
            (DATA + 0x4000, 0x4000),
            (0x100000, 0x1000),
        ]))
    }

    fn on(mem: GuestMemory) -> Driver {
        let setup = RingSetup {
            size: SIZE,
            desc_user_addr: DESC,
            avail_user_addr: AVAIL,
            used_user_addr: USED,
            indirect: true,
            ..RingSetup::default()
        };
        Driver { mem: Arc::new(mem), setup }
    }

    fn queue(&self) -> Queue {
        Queue::new(Arc::clone(&self.mem), &self.setup, None, None).unwrap()
    }

    fn put(&self, addr: u64, bytes: &[u8]) {
        let slice = self.mem.slice_user(addr, bytes.len() as u64).unwrap();
        self.mem.write(slice, 0, bytes);
    }

    fn get<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.mem.read(self.mem.slice_user(addr, N as u64).unwrap(), 0, &mut bytes);
        bytes
    }

    fn get16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.get(addr))
    }

    fn put16(&self, addr: u64, value: u16) {
        self.put(addr, &value.to_le_bytes());
    }

    fn desc_at(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend(addr.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    fn desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.desc_at(DESC, index, addr, len, flags, next);
    }

    fn offer(&self, heads: &[u16]) {
        let mut idx = self.get16(AVAIL + 2);
        for &head in heads {
            self.put16(AVAIL + 4 + 2 * u64::from(idx % SIZE), head);
            idx = idx.wrapping_add(1);
        }
        self.put16(AVAIL + 2, idx);
    }

    fn used(&self, position: u16) -> (u32, u32) {
        let at = USED + 4 + 8 * u64::from(position % SIZE);
        (u32::from_le_bytes(self.get(at)), u32::from_le_bytes(self.get(at + 4)))
    }

    fn used_idx(&self) -> u16 {
        self.get16(USED + 2)
    }

    fn walk(&self, head: u16) -> Result<Chain, RingFault> {
        let mut chain = Chain::new(SIZE);
        self.queue().walk(head, &mut chain).map(|()| chain)
    }
}

fn pop(queue: &mut Queue) -> Result<Vec<u16>, RingFault> {
    let mut heads = [0; 32];
    queue.pop_batch(&mut heads).map(|count| heads[..count].to_vec())
}

#[test]
fn a_request_makes_the_round() {
    let driver = Driver::new();
    driver.put(DATA, b"0123456789abcdef");
    driver.desc(3, DATA, 16, NEXT, 1);
    driver.desc(1, DATA + 0x100, 512, NEXT | WRITE, 2);
    driver.desc(2, DATA + 0x300, 1, WRITE, 0);
    driver.offer(&[3]);
    let mut queue = driver.queue();
    let mut chain = Chain::new(SIZE);

    assert_eq!(pop(&mut queue), Ok(vec![3]));
    queue.walk(3, &mut chain).unwrap();
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (16, 513));
    let mut header = [0; 20];
    assert_eq!(chain.read_at(&driver.mem, 0, &mut header), 16);
    assert_eq!(&header[..16], b"0123456789abcdef");
    assert_eq!(chain.read_at(&driver.mem, 10, &mut header[..4]), 4);
    assert_eq!(&header[..4], b"abcd");
    assert_eq!(chain.write_at(&driver.mem, 510, b"xyz and more"), 3);
    assert_eq!(&driver.get::<2>(DATA + 0x100 + 510), b"xy");
    assert_eq!(&driver.get::<1>(DATA + 0x300), b"z");
    let status = chain.last_writable_byte().unwrap();
    assert_eq!(driver.mem.guest_addr(status), DATA + 0x300);

    assert_eq!(queue.in_flight(), 1);
    queue.push_used(3, 513);
    assert_eq!((driver.used_idx(), queue.in_flight()), (0, 0));
    assert!(queue.publish());
    assert!(!queue.publish(), "nothing new");
    assert_eq!((driver.used_idx(), driver.used(0)), (1, (3, 513)));
    assert_eq!(queue.next_avail(), 1);
}

#[test]
fn a_broken_avail_ring_is_a_fault() {
    let driver = Driver::new();
    driver.offer(&[0, 1, 1, 2]);
    let mut queue = driver.queue();
    assert_eq!(pop(&mut queue), Ok(vec![0, 1]), "what came before the fault");
    assert_eq!(pop(&mut queue), Err(RingFault::HeadInFlight { head: 1 }));
    assert_eq!(queue.in_flight(), 2);

    let driver = Driver::new();
    driver.offer(&[SIZE]);
    let fault = RingFault::HeadOutside { position: 0, head: SIZE, size: SIZE };
    assert_eq!(pop(&mut driver.queue()), Err(fault));

    let driver = Driver::new();
    driver.put16(AVAIL + 2, SIZE + 1);
    let mut queue = driver.queue();
    let fault = RingFault::AvailRunsAhead { avail_idx: 9, next_avail: 0, ahead: 9, size: SIZE };
    assert_eq!(pop(&mut queue), Err(fault));
    assert!(queue.arm(), "a fault counts as work, or it would never be seen");
    driver.put16(AVAIL + 2, SIZE);
    assert_eq!(pop(&mut queue), Ok(vec![0]), "a full ring is not too much");
}

#[test]
fn undone_pops_come_again() {
    let driver = Driver::new();
    driver.offer(&[4, 5, 6]);
    let mut queue = driver.queue();
    assert_eq!(pop(&mut queue), Ok(vec![4, 5, 6]));
    queue.undo_pop(2);
    assert_eq!((queue.in_flight(), queue.next_avail()), (1, 1));
    assert_eq!(pop(&mut queue), Ok(vec![5, 6]));
}

#[test]
fn what_is_left_is_taken_back_from_the_newest_on() {
    let driver = Driver::new();
    driver.offer(&[4, 5, 6, 7]);
    let mut queue = driver.queue();
    assert_eq!(pop(&mut queue), Ok(vec![4, 5, 6, 7]));
    queue.push_used(5, 0);
    let mut left = vec![7, 4, 6];
    queue.leave(&mut left);
    assert_eq!(left, [4], "what came before a used one stays in flight");
    assert_eq!((queue.in_flight(), queue.next_avail()), (1, 2));
    assert!(!queue.keeps_in_flight(), "nobody remembers it without an inflight region");
    assert_eq!(pop(&mut queue), Ok(vec![6, 7]));
}

#[test]
fn broken_chains_are_faults() {
    let far = 0x20_0000;
    type Table<'a> = &'a [(u16, u64, u32, u16, u16)];
    let cases: &[(Table<'_>, RingFault)] = &[
        (&[(0, DATA, 4, NEXT, 9)], RingFault::NextOutside { next: 9, size: 8 }),
        (&[(0, DATA, 4, NEXT, 0)], RingFault::ChainTooLong { head: 0, size: 8 }),
        (&[(0, DATA, 4, NEXT | WRITE, 1), (1, DATA, 4, 0, 0)], RingFault::ReadableAfterWritable { head: 0 }),
        (&[(0, far, 4, 0, 0)], RingFault::BufferOutsideMemory { guest_addr: far, len: 4 }),
        (
            &[(0, DATA + 0x7fff, 2, 0, 0)],
            RingFault::BufferOutsideMemory { guest_addr: DATA + 0x7fff, len: 2 },
        ),
        (&[(0, u64::MAX, 4, 0, 0)], RingFault::BufferOutsideMemory { guest_addr: u64::MAX, len: 4 }),
        (&[(0, DATA, u32::MAX, 0, 0)], RingFault::BufferOutsideMemory { guest_addr: DATA, len: u32::MAX }),
        (&[(0, DATA, 16, INDIRECT | NEXT, 1)], RingFault::IndirectWithNext { head: 0 }),
        (&[(0, DATA, 0, INDIRECT, 0)], RingFault::IndirectBadLength { head: 0, len: 0 }),
        (&[(0, DATA, 24, INDIRECT, 0)], RingFault::IndirectBadLength { head: 0, len: 24 }),
        (&[(0, far, 16, INDIRECT, 0)], RingFault::BufferOutsideMemory { guest_addr: far, len: 16 }),
    ];
    for (descs, fault) in cases {
        let driver = Driver::new();
        for &(index, addr, len, flags, next) in *descs {
            driver.desc(index, addr, len, flags, next);
        }
        assert_eq!(driver.walk(0).unwrap_err(), *fault, "{descs:?}");
    }
}

#[test]
fn indirect_tables() {
    let driver = Driver::new();
    driver.desc(0, DATA, 8, NEXT, 1);
    driver.desc(1, DATA + 0x200, 48, INDIRECT | WRITE, 77);
    driver.desc_at(DATA + 0x200, 0, DATA + 8, 8, NEXT, 2);
    driver.desc_at(DATA + 0x200, 2, DATA + 0x100, 0, NEXT, 1);
    driver.desc_at(DATA + 0x200, 1, DATA + 0x100, 32, WRITE, 0);
    let chain = driver.walk(0).unwrap();
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (16, 32));
    assert_eq!(chain.readable().len(), 2);

    driver.desc_at(DATA + 0x200, 1, DATA + 0x100, 32, INDIRECT, 0);
    assert_eq!(driver.walk(0).unwrap_err(), RingFault::IndirectNested { head: 0 });
    driver.desc_at(DATA + 0x200, 2, DATA + 0x100, 0, NEXT, 3);
    assert_eq!(driver.walk(0).unwrap_err(), RingFault::NextOutside { next: 3, size: 3 });
    driver.desc_at(DATA + 0x200, 2, DATA + 0x100, 0, NEXT, 2);
    assert_eq!(driver.walk(0).unwrap_err(), RingFault::ChainTooLong { head: 0, size: SIZE });

    let mut plain = driver;
    plain.setup.indirect = false;
    assert_eq!(plain.walk(0).unwrap_err(), RingFault::IndirectNotNegotiated { head: 0 });
}

#[test]
fn a_peek_shows_the_beginning_of_the_first_buffer() {
    const TABLE: u64 = DATA + 0x1000;
    let driver = Driver::new();
    let bytes: [u8; 16] = std::array::from_fn(|at| at as u8 + 1);
    driver.put(DATA + 0x40, &bytes);
    driver.desc(0, DATA + 0x40, 64, NEXT, 1);
    driver.desc_at(TABLE, 0, DATA + 0x40, 16, NEXT, 1);
    driver.desc(1, TABLE, 32, INDIRECT, 0);
    driver.desc(2, DATA + 0x40, 15, NEXT, 1);
    driver.desc(3, DATA + 0x3ff8, 16, NEXT, 1);
    driver.desc(4, u64::MAX - 8, 16, NEXT, 1);
    driver.desc(5, u64::MAX - 8, 32, INDIRECT, 0);
    let mut queue = driver.queue();
    let seen: Vec<Option<[u8; 16]>> = (0..6).map(|head| queue.peek(head)).collect();
    // Too short, in two pieces, nowhere, a table that is nowhere, and no descriptor at all.
    assert_eq!(seen, [Some(bytes), Some(bytes), None, None, None, None]);
    assert_eq!(queue.peek::<16>(SIZE), None);
}

#[test]
fn buffers_and_tables_across_regions() {
    let border = DATA + 0x4000;
    let driver = Driver::new();
    driver.desc(0, border - 3, 10, WRITE, 0);
    let chain = driver.walk(0).unwrap();
    assert_eq!(chain.writable().iter().map(|s| s.len()).collect::<Vec<_>>(), [3, 7]);
    assert_eq!(chain.write_at(&driver.mem, 1, b"abcdef"), 6);
    assert_eq!(&driver.get::<2>(border - 2), b"ab");
    assert_eq!(&driver.get::<4>(border), b"cdef");

    // A table whose second entry is cut in two by the border.
    let table = border - 24;
    let entry = |addr: u64, len: u32, flags: u16, next: u16| {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes
    };
    driver.put(table, &entry(DATA, 5, NEXT, 1));
    let second = entry(DATA + 5, 6, WRITE, 0);
    driver.put(table + 16, &second[..8]);
    driver.put(border, &second[8..]);
    driver.desc(0, table, 32, INDIRECT, 0);
    let chain = driver.walk(0).unwrap();
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (5, 6));
}

#[test]
fn setup_is_checked() {
    let fault = |change: &dyn Fn(&mut RingSetup)| {
        let mut driver = Driver::new();
        change(&mut driver.setup);
        Queue::new(Arc::clone(&driver.mem), &driver.setup, None, None).unwrap_err()
    };
    for size in [0, 3, 32769, 65535] {
        assert_eq!(fault(&|s| s.size = size), RingFault::BadSize { size });
    }
    assert!(matches!(fault(&|s| s.desc_user_addr = 8), RingFault::Misaligned { align: 16, .. }));
    assert!(matches!(fault(&|s| s.avail_user_addr = 0x1001), RingFault::Misaligned { align: 2, .. }));
    assert!(matches!(fault(&|s| s.used_user_addr = 0x2002), RingFault::Misaligned { align: 4, .. }));
    assert!(matches!(fault(&|s| s.desc_user_addr = 0x4000 - 112), RingFault::RingOutsideMemory { .. }));
    assert!(matches!(fault(&|s| s.used_user_addr = u64::MAX - 3), RingFault::RingOutsideMemory { .. }));
    // The last two bytes of the avail ring exist with EVENT_IDX only.
    let mut driver = Driver::new();
    driver.setup.avail_user_addr = 0x4000 - 20;
    driver.queue();
    driver.setup.event_idx = true;
    assert!(Queue::new(Arc::clone(&driver.mem), &driver.setup, None, None).is_err());
}

#[test]
fn flags_decide_on_signals_and_kicks() {
    let driver = Driver::new();
    let mut queue = driver.queue();
    let mut round = |flags: u16| {
        driver.put16(AVAIL, flags);
        driver.offer(&[0]);
        assert_eq!(pop(&mut queue), Ok(vec![0]));
        queue.push_used(0, 0);
        queue.publish()
    };
    assert!(round(0));
    assert!(!round(1));
    assert!(round(0));
    queue.disarm();
    assert_eq!(driver.get16(USED), 1);
    assert!(!queue.arm());
    assert_eq!(driver.get16(USED), 0);
    driver.offer(&[0]);
    assert!(queue.arm(), "an entry is there already");
}

#[test]
fn event_indexes_decide_on_signals_and_kicks() {
    let mut driver = Driver::new();
    driver.setup.event_idx = true;
    let mut queue = driver.queue();
    let used_event = AVAIL + 4 + 2 * u64::from(SIZE);
    let avail_event = USED + 4 + 8 * u64::from(SIZE);
    // Far beyond the wrap-around of the index.
    for round in 0..70_000u32 {
        let now = round as u16;
        let wanted = round % 3 == 0;
        driver.put16(used_event, if wanted { now } else { now.wrapping_add(1) });
        driver.offer(&[0]);
        assert_eq!(pop(&mut queue), Ok(vec![0]));
        queue.push_used(0, 0);
        assert_eq!(queue.publish(), wanted, "round {round}");
        assert!(!queue.arm());
        assert_eq!(driver.get16(avail_event), now.wrapping_add(1));
        queue.disarm();
        assert_eq!(driver.get16(avail_event), now);
    }
}

#[test]
fn in_order_gives_back_in_the_order_taken() {
    let mut driver = Driver::new();
    driver.setup.in_order = true;
    let mut queue = driver.queue();
    driver.offer(&[3, 1, 4, 5, 2]);
    assert_eq!(pop(&mut queue), Ok(vec![3, 1, 4, 5, 2]));
    queue.push_used(1, 0);
    assert!(!queue.publish(), "an older one is missing");
    queue.push_used(3, 0);
    queue.push_used(4, 0);
    queue.push_used(2, 7);
    assert!(queue.publish());
    assert_eq!(driver.used_idx(), 3);
    assert_eq!(driver.used(0), (4, 0), "one element for the three");
    assert_eq!(queue.in_flight(), 2);
    queue.push_used(5, 9);
    assert!(queue.publish());
    assert_eq!(driver.used_idx(), 5);
    assert_eq!((driver.used(3), driver.used(4)), ((5, 9), (2, 7)), "elements with a length stay single");
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn in_order_batches_end_at_an_element_with_a_length() {
    let mut driver = Driver::new();
    driver.setup.in_order = true;
    let mut queue = driver.queue();
    driver.offer(&[0, 1, 2, 3, 4]);
    pop(&mut queue).unwrap();
    for (head, written) in [(0, 0), (1, 0), (2, 60), (3, 0), (4, 0)] {
        queue.push_used(head, written);
    }
    assert!(queue.publish());
    assert_eq!((driver.used(0), driver.used(2), driver.used(3)), ((1, 0), (2, 60), (4, 0)));
    assert_eq!(driver.used_idx(), 5);
}

#[test]
fn a_restarted_queue_owes_a_signal() {
    let driver = Driver::new();
    driver.put16(USED + 2, 40000);
    let mut setup = driver.setup;
    setup.next_avail = 40000;
    driver.put16(AVAIL + 2, 40000);
    let mut queue = Queue::new(Arc::clone(&driver.mem), &setup, None, None).unwrap();
    assert!(queue.publish());
    assert!(!queue.publish());
    assert_eq!(driver.used_idx(), 40000);
}

#[test]
#[should_panic(expected = "not in flight")]
fn using_a_head_twice_is_our_bug() {
    let driver = Driver::new();
    driver.offer(&[3]);
    let mut queue = driver.queue();
    pop(&mut queue).unwrap();
    queue.push_used(3, 0);
    queue.push_used(3, 0);
}
