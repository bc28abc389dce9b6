//! A process killed between any two stores to shared memory, and what its successor makes of the remains.
//!
//! Every store to the inflight region and the used ring first passes [`point`], which ends the "process" (unwinds to
//! the test) when its time has come. The shared memory stays as it is, everything else is gone: just what kill -9 does.

use std::cell::Cell;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::{Chain, GuestMemory, InflightRegion, Queue, RingSetup};

thread_local! {
    static STORES_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

struct Killed;

/// Called before each store; see the module.
pub(crate) fn point() {
    if let Some(left) = STORES_LEFT.get() {
        if left == 0 {
            resume_unwind(Box::new(Killed));
        }
        STORES_LEFT.set(Some(left - 1));
    }
}

/// Runs `life` until it ends or makes its store number `stores`; true when it was killed.
fn killed_after(stores: u32, life: impl FnOnce()) -> bool {
    STORES_LEFT.set(Some(stores));
    let end = catch_unwind(AssertUnwindSafe(life));
    STORES_LEFT.set(None);
    match end {
        Ok(()) => false,
        Err(payload) if payload.is::<Killed>() => true,
        Err(payload) => resume_unwind(payload),
    }
}

const SIZE: u16 = 8;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Indexes start shortly before they wrap around.
const START: u16 = u16::MAX - 5;

/// Driver, rings and inflight region: what outlives the device.
struct World {
    mem: Arc<GuestMemory>,
    region: InflightRegion,
    setup: RingSetup,
    outstanding: HashSet<u16>,
    /// Heads in the order they were offered, with how often they came back.
    offered: Vec<u16>,
    answered: Vec<u16>,
    seen: u16,
}

impl World {
    fn new(in_order: bool) -> World {
        let mem = Arc::new(GuestMemory::anonymous(&[(0, 0x3000), (0x10000, 0x1000)]));
        let setup = RingSetup {
            size: SIZE,
            avail_user_addr: AVAIL,
            used_user_addr: USED,
            next_avail: START,
            in_order,
            ..RingSetup::default()
        };
        let mut world = World {
            mem,
            region: InflightRegion::anonymous(1, SIZE),
            setup,
            outstanding: HashSet::new(),
            offered: Vec::new(),
            answered: Vec::new(),
            seen: START,
        };
        world.put(AVAIL + 2, &START.to_le_bytes());
        world.put(USED + 2, &START.to_le_bytes());
        for index in 0..SIZE {
            let mut bytes = 0x10000u64.to_le_bytes().to_vec();
            bytes.extend(16u32.to_le_bytes());
            bytes.extend(2u32.to_le_bytes());
            world.put(16 * u64::from(index), &bytes);
        }
        world
    }

    fn put(&mut self, addr: u64, bytes: &[u8]) {
        self.mem.write(self.mem.slice_user(addr, bytes.len() as u64).unwrap(), 0, bytes);
    }

    fn get<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.mem.read(self.mem.slice_user(addr, N as u64).unwrap(), 0, &mut bytes);
        bytes
    }

    fn offer(&mut self, heads: &[u16]) {
        for &head in heads {
            let idx = u16::from_le_bytes(self.get(AVAIL + 2));
            assert!(self.outstanding.insert(head), "the driver itself reuses a head");
            self.offered.push(head);
            self.put(AVAIL + 4 + 2 * u64::from(idx % SIZE), &head.to_le_bytes());
            self.put(AVAIL + 2, &idx.wrapping_add(1).to_le_bytes());
        }
    }

    /// Takes the used elements as a driver does, skipped ones (IN_ORDER) included.
    fn collect(&mut self) {
        let idx = u16::from_le_bytes(self.get(USED + 2));
        while self.seen != idx {
            let element = USED + 4 + 8 * u64::from(self.seen % SIZE);
            let id = u32::from_le_bytes(self.get(element)) as u16;
            loop {
                let head = if self.setup.in_order { self.offered[self.answered.len()] } else { id };
                assert!(self.outstanding.remove(&head), "{head} came back twice or was never offered");
                self.answered.push(head);
                self.seen = self.seen.wrapping_add(1);
                if head == id {
                    break;
                }
                assert!(self.seen != idx, "the last element of a batch names its last head");
            }
        }
    }

    fn queue(&self) -> Queue {
        Queue::new(Arc::clone(&self.mem), &self.setup, self.region.queue(0), None).unwrap()
    }

    /// A life of the device: takes what is there, gives back out of order, in two batches with pops in between.
    fn serve(&self) {
        let mut queue = self.queue();
        let mut chain = Chain::new(SIZE);
        let mut heads = queue.resubmit();
        // What the predecessor had taken comes again, in the order it was offered.
        let last_offer = |head: &u16| self.offered.iter().rposition(|offered| offered == head);
        assert!(heads.is_sorted_by_key(last_offer), "{heads:?} of {:?}", self.offered);
        let mut batch = [0; 3];
        while let count @ 1.. = queue.pop_batch(&mut batch).unwrap() {
            heads.extend(&batch[..count]);
            if heads.len() > 4 {
                queue.undo_pop(1);
                heads.pop();
            }
            for &head in &heads {
                queue.walk(head, &mut chain).unwrap();
            }
            // The newest first, one stays behind.
            for head in heads.drain(1..).rev() {
                queue.push_used(head, u32::from(head) % 2);
            }
            queue.publish();
        }
        for head in heads {
            queue.push_used(head, 0);
        }
        queue.publish();
        assert_eq!(queue.in_flight(), 0);
    }
}

/// One life killed after `first` stores, one after `second`, then one that may finish. False when the first was not
/// killed any more.
fn lives(in_order: bool, first: u32, second: Option<u32>) -> (bool, bool) {
    let mut world = World::new(in_order);
    world.offer(&[5, 1, 7, 2, 0, 3]);
    let was_killed = killed_after(first, || world.serve());
    world.collect();
    // The driver goes on meanwhile with the heads it got back.
    if !world.outstanding.contains(&7) {
        world.offer(&[7]);
    }
    if !world.outstanding.contains(&4) {
        world.offer(&[4]);
    }
    let again = second.is_some_and(|stores| {
        let killed = killed_after(stores, || world.serve());
        world.collect();
        killed
    });
    world.serve();
    world.collect();
    assert!(world.outstanding.is_empty(), "never answered: {:?}", world.outstanding);
    assert_eq!(world.answered.len(), world.offered.len());
    (was_killed, again)
}

#[test]
fn killed_at_every_store_each_request_is_answered_once() {
    for in_order in [false, true] {
        let mut deaths = 0;
        while lives(in_order, deaths, None).0 {
            deaths += 1;
        }
        assert!(deaths > 40, "only {deaths} stores were seen");
    }
}

#[test]
fn killed_again_while_taking_over() {
    for in_order in [false, true] {
        let mut first = 0;
        loop {
            let mut second = 0;
            while lives(in_order, first, Some(second)).1 {
                second += 1;
            }
            if !lives(in_order, first, None).0 {
                break;
            }
            first += 1;
        }
    }
}

/// What QEMU does with a region when the guest resets: the rings start at 0 again, the region keeps its old index.
#[test]
fn a_drained_region_serves_the_next_driver() {
    let mut world = World::new(false);
    world.offer(&[5, 1, 7]);
    world.serve();
    world.collect();
    world.put(AVAIL + 2, &0u16.to_le_bytes());
    world.put(USED + 2, &0u16.to_le_bytes());
    world.setup.next_avail = 0;
    world.seen = 0;
    world.offer(&[7, 2]);
    world.serve();
    world.collect();
    assert!(world.outstanding.is_empty());
}

/// The region is the frontend's memory: nothing in it may be trusted.
#[test]
fn garbage_in_the_region_does_no_harm() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut faults = 0;
    for round in 0..2000 {
        let world = World::new(round % 2 == 0);
        let mut region = world.region.queue(0).unwrap();
        for byte in 0..144 {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            region.overwrite(byte, (seed >> 56) as u8);
        }
        if round % 10 != 0 {
            region.overwrite(8, 1);
            region.overwrite(9, 0);
        }
        match Queue::new(Arc::clone(&world.mem), &world.setup, Some(region), None) {
            Ok(mut queue) => {
                for head in queue.resubmit() {
                    queue.push_used(head, 0);
                }
                queue.publish();
            }
            Err(_) => faults += 1,
        }
    }
    assert!((1..=200).contains(&faults));
}

#[test]
fn a_region_for_smaller_queues_is_refused() {
    let world = World::new(false);
    let small = InflightRegion::anonymous(1, SIZE / 2).queue(0);
    let fault = Queue::new(Arc::clone(&world.mem), &world.setup, small, None).unwrap_err();
    assert_eq!(fault, crate::RingFault::InflightTooSmall { capacity: 4, size: 8 });
}
