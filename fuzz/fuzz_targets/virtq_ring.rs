//! A driver that is mostly right and sometimes wild, against the queue: no panic, nothing outside guest memory, every
//! head given back once.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use virtq::{Chain, GuestMemory, InflightRegion, Queue, RingSetup};

const SIZE: u16 = 16;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const TABLES: u64 = 0x4000;
const DATA: u64 = 0x1_0000;
const REGION: u64 = 0x4000;

/// Hands out the input piece by piece, zeros after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn long(&mut self) -> u64 {
        (0..4).fold(0, |value, _| value << 16 | u64::from(self.word()))
    }

    /// True rarely: faults must not end most runs at their first step.
    fn rare(&mut self) -> bool {
        self.byte() > 250
    }
}

struct Driver {
    mem: Arc<GuestMemory>,
    avail_idx: u16,
}

impl Driver {
    fn put(&self, addr: u64, bytes: &[u8]) {
        if let Some(slice) = self.mem.slice_user(addr, bytes.len() as u64) {
            self.mem.write(slice, 0, bytes);
        }
    }

    fn desc(&self, table: u64, index: u16, input: &mut Input<'_>, flags: u16, next: u16) {
        let wild = input.rare();
        let addr = if wild { input.long() } else { DATA + u64::from(input.word()) % (2 * REGION) };
        let len = if wild { input.long() as u32 } else { u32::from(input.byte()) };
        let flags = if input.rare() { input.word() } else { flags };
        let next = if input.rare() { input.word() } else { next };
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    /// A chain of some buffers, readable ones first, direct or in a table, and its entry in the avail ring.
    fn offer(&mut self, input: &mut Input<'_>) {
        let shape = input.byte();
        let head = u16::from(input.byte()) % SIZE;
        let links = 1 + u16::from(shape & 7);
        let readable = u16::from(shape >> 3 & 7);
        let table = if shape & 0x40 != 0 { TABLES + u64::from(input.byte()) } else { DESC };
        let first = if table == DESC { head } else { 0 };
        for link in 0..links {
            let next = if link + 1 < links { 1 } else { 0 };
            let write = if link >= readable { 2 } else { 0 };
            self.desc(table, (first + link) % SIZE, input, next | write, (first + link + 1) % SIZE);
        }
        if table != DESC {
            let len = if input.rare() { input.word() } else { 16 * SIZE };
            let mut bytes = table.to_le_bytes().to_vec();
            bytes.extend(u32::from(len).to_le_bytes());
            bytes.extend([4, 0, 0, 0]);
            self.put(DESC + 16 * u64::from(head), &bytes);
        }
        let named = if input.rare() { input.word() } else { head };
        self.put(AVAIL + 4 + 2 * u64::from(self.avail_idx % SIZE), &named.to_le_bytes());
        self.avail_idx = self.avail_idx.wrapping_add(1);
        let idx = if input.rare() { input.word() } else { self.avail_idx };
        self.put(AVAIL + 2, &idx.to_le_bytes());
    }
}

fn serve(queue: &mut Queue, chain: &mut Chain, head: u16) {
    if queue.walk(head, chain).is_err() {
        return;
    }
    let mem = Arc::clone(queue.memory());
    let mut bytes = [0; 48];
    let read = chain.read_at(&mem, 5, &mut bytes);
    assert!(read as u64 <= chain.readable_bytes());
    let written = chain.write_at(&mem, 3, &bytes);
    assert!(written as u64 <= chain.writable_bytes());
    for part in chain.readable().iter().chain(chain.writable()) {
        assert!(!part.is_empty());
        // The buffers of the driver are the only memory at these addresses besides the rings.
        assert!(mem.guest_addr(*part) + u64::from(part.len()) <= DATA + 2 * REGION);
    }
}

fn run(data: &[u8]) {
    let mut input = Input(data);
    let mem = Arc::new(GuestMemory::anonymous(&[
        (0x1000, 0x5000),
        (DATA, REGION as usize),
        (DATA + REGION, REGION as usize),
    ]));
    let options = input.byte();
    let start = if options & 1 != 0 { 0u16.wrapping_sub(options.into()) } else { 0 };
    let mut driver = Driver { mem: Arc::clone(&mem), avail_idx: start };
    driver.put(AVAIL + 2, &start.to_le_bytes());
    driver.put(USED + 2, &start.to_le_bytes());
    let setup = RingSetup {
        size: SIZE,
        desc_user_addr: DESC,
        avail_user_addr: AVAIL,
        used_user_addr: USED,
        next_avail: start,
        event_idx: options & 2 != 0,
        indirect: options & 4 == 0,
        in_order: options & 8 != 0,
        ..RingSetup::default()
    };
    let inflight = (options & 0x30 == 0x30).then(|| {
        let (file, len) = InflightRegion::create(1, SIZE).expect("a memfd");
        InflightRegion::open(&file, 0, len, 1, SIZE).expect("a mapping").queue(0).expect("its only queue")
    });
    let mut queue = Queue::new(mem, &setup, inflight, None).expect("good rings");
    let mut chain = Chain::new(SIZE);
    let mut taken = Vec::new();
    let mut heads = [0; 8];
    while !input.0.is_empty() {
        match input.byte() % 8 {
            0..3 => driver.offer(&mut input),
            3 => {
                let limit = usize::from(input.byte() % 9);
                let Ok(count) = queue.pop_batch(&mut heads[..limit]) else { return };
                taken.extend_from_slice(&heads[..count]);
                heads[..count].iter().for_each(|&head| serve(&mut queue, &mut chain, head));
            }
            4 if !taken.is_empty() => {
                let head = taken.swap_remove(usize::from(input.byte()) % taken.len());
                queue.push_used(head, input.byte().into());
            }
            5 => {
                queue.publish();
                if queue.arm() {
                    queue.disarm();
                }
            }
            6 => {
                let Ok(count) = queue.pop_batch(&mut heads) else { return };
                queue.undo_pop(count as u16);
            }
            // Raw bytes anywhere in the rings.
            _ => {
                let at = 0x1000 + u64::from(input.word()) % 0x3000;
                let bytes = input.long().to_le_bytes();
                driver.put(at, &bytes);
            }
        }
        assert!(usize::from(queue.in_flight()) >= taken.len());
    }
    for head in taken {
        queue.push_used(head, 0);
    }
    assert_eq!(queue.in_flight(), 0);
    queue.publish();
}

fuzz_target!(|data: &[u8]| run(data));
