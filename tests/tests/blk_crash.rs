//! The storage daemon is killed under load, again and again: every request completes exactly once, and no data are lost.

use std::time::Duration;

use tests::blk_frontend::*;
use tests::frontend::PATIENCE;
use xtask::lab::daemons::Site;

const QUEUES: usize = 2;
const BLOCK: usize = 8192;
const BLOCK_SECTORS: u64 = (BLOCK / 512) as u64;
/// Blocks per queue: each queue works on blocks of its own.
const BLOCKS: u64 = 512;
const KILLS: u32 = 25;

/// A small generator (xorshift): the load is the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What a block may hold: the generation acknowledged last, and that of a write in flight.
#[derive(Clone, Copy, Default)]
struct Block {
    acknowledged: u64,
    flying: Option<u64>,
}

fn contents(queue: usize, block: u64, generation: u64) -> Vec<u8> {
    let word = generation << 32 | (queue as u64) << 24 | block;
    if generation == 0 { vec![0; BLOCK] } else { word.to_le_bytes().repeat(BLOCK / 8) }
}

/// One queue's load and what it expects.
struct Load {
    queue: usize,
    random: Random,
    blocks: Vec<Block>,
    generation: u64,
    answered: u64,
}

impl Load {
    fn new(queue: usize) -> Load {
        let blocks = vec![Block::default(); BLOCKS as usize];
        Load { queue, random: Random(0x9e37_79b9 + queue as u64), blocks, generation: 0, answered: 0 }
    }

    fn sector(&self, block: u64) -> u64 {
        (self.queue as u64 * BLOCKS + block) * BLOCK_SECTORS
    }

    /// Fills the queue with reads, writes and zeroes; never two on one block at a time.
    fn fill(&mut self, driver: &mut BlkFrontend) {
        while driver.has_room(self.queue) {
            let block = self.random.below(BLOCKS);
            if self.blocks[block as usize].flying.is_some() {
                continue;
            }
            let sector = self.sector(block);
            // Sizes of parts and alignment vary, so that bounce copies are in flight too.
            let (parts, shift) =
                (1 + self.random.below(4) as usize, [0, 0, 0, 13][self.random.below(4) as usize]);
            let base = BlkRequest { sector, parts, shift, tag: block, ..BlkRequest::default() };
            match self.random.below(10) {
                0..5 => {
                    self.generation += 1;
                    self.blocks[block as usize].flying = Some(self.generation);
                    let out = contents(self.queue, block, self.generation);
                    driver.send(self.queue, &BlkRequest { kind: WRITE, out: &out, ..base });
                }
                5 => {
                    // Zeroes are generation 0 of their own kind.
                    self.blocks[block as usize].flying = Some(0);
                    let out = range_list(&[(sector, BLOCK_SECTORS as u32, 1)]);
                    driver.send(self.queue, &BlkRequest { kind: WRITE_ZEROES, out: &out, parts: 1, ..base });
                }
                _ => {
                    self.blocks[block as usize].flying = Some(self.blocks[block as usize].acknowledged);
                    driver.send(self.queue, &BlkRequest { kind: READ, read_bytes: BLOCK, ..base });
                }
            }
        }
    }

    /// Takes one answer, if there is one within `patience`.
    fn take(&mut self, driver: &mut BlkFrontend, patience: Duration) -> bool {
        let Some(answer) = driver.answer(self.queue, patience) else { return false };
        let block = &mut self.blocks[answer.tag as usize];
        let flying = block.flying.take().expect("one request per block");
        assert_eq!(answer.status, OK, "block {} of queue {}", answer.tag, self.queue);
        if answer.data.is_empty() {
            block.acknowledged = flying;
        } else {
            let expected = contents(self.queue, answer.tag, block.acknowledged);
            assert!(
                answer.data == expected,
                "block {} of queue {}: not what was written",
                answer.tag,
                self.queue
            );
        }
        self.answered += 1;
        true
    }
}

/// Works until `done` requests of each queue were answered.
fn work(driver: &mut BlkFrontend, loads: &mut [Load], done: u64) {
    let goal: Vec<u64> = loads.iter().map(|load| load.answered + done).collect();
    for (load, goal) in loads.iter_mut().zip(goal) {
        while load.answered < goal {
            load.fill(driver);
            assert!(
                load.take(driver, PATIENCE),
                "queue {} hangs: {} in flight",
                load.queue,
                driver.in_flight(load.queue)
            );
        }
        load.fill(driver);
    }
}

#[test]
fn every_request_completes_exactly_once_over_kills() {
    let dir = tempfile::Builder::new().prefix("sluice-").tempdir().unwrap();
    let site = Site::debug(dir.path()).unwrap();
    let mut daemon = site.blk().unwrap();
    let image = dir.path().join("v0.img").display().to_string();
    site.sluice(&["volume", "create", "v0", "--file", &image, "--size", "8MiB", "--queues", "2"]).unwrap();
    let options = BlkOptions { queues: QUEUES as u16, slots: 24, queue_size: 256, ..BlkOptions::default() };
    let mut driver = BlkFrontend::connect(site.socket("v0"), options).unwrap();
    let mut loads: Vec<Load> = (0..QUEUES).map(Load::new).collect();
    let mut interrupted = 0;
    let mut random = Random(77);
    for kill in 0..KILLS {
        work(&mut driver, &mut loads, 50 + random.below(200));
        daemon.crash().unwrap();
        // The rings are full of requests; some were answered by the dead daemon, the others are owed.
        interrupted += (0..QUEUES).map(|queue| driver.in_flight(queue)).sum::<usize>();
        daemon.restart().unwrap();
        driver.reconnect().unwrap_or_else(|error| panic!("after kill {kill}: {error}"));
    }
    assert!(interrupted > KILLS as usize, "the load was never interrupted: {interrupted}");
    for load in &mut loads {
        while driver.in_flight(load.queue) > 0 {
            assert!(load.take(&mut driver, PATIENCE), "queue {} hangs at the end", load.queue);
        }
    }
    assert_eq!(driver.flush(), OK);
    for load in &mut loads {
        for block in 0..BLOCKS {
            let read = driver.read(load.sector(block), BLOCK);
            let expected = contents(load.queue, block, load.blocks[block as usize].acknowledged);
            assert!(read == expected, "block {block} of queue {} at the end", load.queue);
        }
    }
    assert_eq!(daemon.process().stop().unwrap().code(), Some(0), "a clean stop at the end");
    assert!(!site.socket("v0").exists());
}
