//! What a request costs on the ring: take it, translate its three buffers, give it back, show it.
//!
//! The same rings and chains are served by this crate and by the crate `virtio-queue`, in turn, many times; the medians
//! and their ratio are printed. Run it by `cargo bench -p virtq`.

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::{Queue as OtherQueue, QueueOwnedT, QueueT};
use virtq::{Chain, GuestMemory, InflightRegion, Queue, RingSetup};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const SIZE: u16 = 256;
const BATCH: u16 = 32;
const DESC: u64 = 0;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const TABLES: u64 = 0x8000;
const DATA: u64 = 0x10_0000;
const MEMORY: usize = 0x40_0000;

const ROUNDS: usize = 41;
const BATCHES_PER_ROUND: u32 = 4000;

/// Chains as a block driver makes them: a header of 16 bytes, 4096 bytes of data, a status byte.
fn ring_image(indirect: bool) -> Vec<(u64, Vec<u8>)> {
    let mut image = Vec::new();
    let mut put = |at: u64, addr: u64, len: u32, flags: u16, next: u16| {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        image.push((at, bytes));
    };
    for request in 0..64u16 {
        let data = DATA + u64::from(request) * 0x2000;
        let first = request * 3;
        let (table, base) = if indirect { (TABLES + 64 * u64::from(request), 0) } else { (DESC, first) };
        put(table + 16 * u64::from(base), data, 16, 1, base + 1);
        put(table + 16 * u64::from(base + 1), data + 0x1000, 4096, 3, base + 2);
        put(table + 16 * u64::from(base + 2), data + 16, 1, 2, 0);
        if indirect {
            put(DESC + 16 * u64::from(first), table, 48, 4, 0);
        }
    }
    // Each head comes again only after 64 others, later than it was used.
    let entries = (0..SIZE).flat_map(|entry| ((entry % 64) * 3).to_le_bytes()).collect();
    image.push((AVAIL + 4, entries));
    image
}

/// Nanoseconds a request, for one round.
fn round(mut batch: impl FnMut(u16)) -> f64 {
    let start = Instant::now();
    for turn in 0..BATCHES_PER_ROUND {
        batch(((turn + 1) * u32::from(BATCH)) as u16);
    }
    start.elapsed().as_nanos() as f64 / f64::from(BATCHES_PER_ROUND * u32::from(BATCH))
}

struct Options {
    indirect: bool,
    event_idx: bool,
    inflight: bool,
}

fn ours(options: &Options) -> f64 {
    let mem = Arc::new(GuestMemory::anonymous(&[(0, MEMORY)]));
    for (at, bytes) in ring_image(options.indirect) {
        mem.write(mem.slice_user(at, bytes.len() as u64).unwrap(), 0, &bytes);
    }
    let setup = RingSetup {
        size: SIZE,
        desc_user_addr: DESC,
        avail_user_addr: AVAIL,
        used_user_addr: USED,
        indirect: true,
        event_idx: options.event_idx,
        ..RingSetup::default()
    };
    let inflight = options.inflight.then(|| {
        let (file, len) = InflightRegion::create(1, SIZE).unwrap();
        InflightRegion::open(&file, 0, len, 1, SIZE).unwrap().queue(0).unwrap()
    });
    let mut queue = Queue::new(Arc::clone(&mem), &setup, inflight, None).unwrap();
    let avail_idx = mem.slice_user(AVAIL + 2, 2).unwrap();
    let mut chain = Chain::new(SIZE);
    let mut heads = [0; BATCH as usize];
    round(|idx| {
        mem.write(avail_idx, 0, &idx.to_le_bytes());
        let count = queue.pop_batch(&mut heads).unwrap();
        assert_eq!(count, usize::from(BATCH));
        for &head in &heads[..count] {
            queue.walk(head, &mut chain).unwrap();
            black_box(mem.host_ptr(chain.readable()[0]));
            black_box(mem.host_ptr(chain.writable()[0]));
            black_box(mem.host_ptr(chain.writable()[1]));
            queue.push_used(head, 4097);
        }
        black_box(queue.publish());
    })
}

fn other(options: &Options) -> f64 {
    let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    for (at, bytes) in ring_image(options.indirect) {
        mem.write_slice(&bytes, GuestAddress(at)).unwrap();
    }
    let mut queue = OtherQueue::new(SIZE).unwrap();
    queue.set_size(SIZE);
    queue.set_desc_table_address(Some(DESC as u32), None);
    queue.set_avail_ring_address(Some(AVAIL as u32), None);
    queue.set_used_ring_address(Some(USED as u32), None);
    queue.set_event_idx(options.event_idx);
    queue.set_ready(true);
    assert!(queue.is_valid(&mem));
    let mut heads = [0; BATCH as usize];
    round(|idx| {
        mem.write_obj(idx, GuestAddress(AVAIL + 2)).unwrap();
        let mut count = 0;
        for mut chain in queue.iter(&mem).unwrap() {
            heads[count] = chain.head_index();
            count += 1;
            let mut buffers = 0;
            for desc in &mut chain {
                black_box(mem.get_slice(desc.addr(), desc.len() as usize).unwrap().ptr_guard_mut().as_ptr());
                buffers += 1;
            }
            assert_eq!(buffers, 3);
        }
        assert_eq!(count, usize::from(BATCH));
        for &head in &heads {
            queue.add_used(&mem, head, 4097).unwrap();
        }
        black_box(queue.needs_notification(&mem).unwrap());
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let cases = [
        ("3 descriptors", Options { indirect: false, event_idx: false, inflight: false }),
        ("3 descriptors, EVENT_IDX", Options { indirect: false, event_idx: true, inflight: false }),
        ("3 in an indirect table", Options { indirect: true, event_idx: false, inflight: false }),
        ("3 descriptors, inflight marks", Options { indirect: false, event_idx: false, inflight: true }),
    ];
    println!("batches of {BATCH}, ns per request, medians of {ROUNDS} interleaved rounds\n");
    println!("{:<32} {:>14} {:>8} {:>8}", "chain", "virtio-queue", "virtq", "ratio");
    for (name, options) in cases {
        let (mut peer, mut us) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            peer.push(other(&options));
            us.push(ours(&options));
        }
        let (peer, us) = (median(peer), median(us));
        println!("{name:<32} {peer:>14.1} {us:>8.1} {:>7.1}x", peer / us);
    }
    println!("\nvirtio-queue keeps no inflight marks and detects no head that comes twice.");
}
