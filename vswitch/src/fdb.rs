//! The forwarding database: which MAC address of which VLAN was last seen on which port.
//!
//! One table for all workers. Looking up and refreshing take no lock: a slot is two atomic words, and a reader
//! that sees the same key before and after the value has a value that belonged to it. Learning a new address,
//! moving one and removing take the lock, but a worker only *tries* it: if another one holds it the packet goes
//! its way unlearned and the next one tries again. So no packet ever waits.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use packet::MacAddr;

use crate::hash;
use crate::model::PortNo;

/// Addresses a table holds unless configured otherwise.
pub const FDB_LIMIT_DEFAULT: usize = 16_384;
/// Addresses a table can be configured to hold at most.
pub const FDB_LIMIT_MAX: usize = 1 << 22;
/// Seconds after which an address that was not seen is forgotten, unless configured otherwise (802.1D-2004, 7.9.2).
pub const FDB_AGEING_DEFAULT_S: u32 = 300;

/// Slots looked at for one address: at a load of at most one half longer runs do not occur in practice, and
/// a lookup has a bound.
const PROBES_MAX: usize = 32;
const FREE: u64 = 0;
const VALID: u64 = 1 << 60;
const DELETED: u64 = 1 << 61;

struct Slot {
    /// `VALID | vid << 48 | mac`, `FREE`, or `DELETED` (keep probing).
    key: AtomicU64,
    /// `port << 32 | seconds last seen`.
    value: AtomicU64,
}

struct Control {
    count: usize,
    per_port: HashMap<PortNo, usize>,
}

/// The table. See the module's documentation.
pub struct Fdb {
    slots: Box<[Slot]>,
    seed: u64,
    limit: usize,
    ageing_s: AtomicU32,
    control: Mutex<Control>,
    refused: AtomicU64,
    moved: AtomicU64,
}

/// One address of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FdbEntry {
    /// VLAN, 0 = the untagged network.
    pub vid: u16,
    /// The address.
    pub mac: MacAddr,
    /// Where it was last seen.
    pub port: PortNo,
    /// When: seconds of the switch's clock.
    pub seen_s: u32,
}

fn pack(vid: u16, mac: MacAddr) -> u64 {
    VALID | (u64::from(vid & 0xfff) << 48) | mac.to_u64()
}

fn pack_value(port: PortNo, seen_s: u32) -> u64 {
    (u64::from(port.0) << 32) | u64::from(seen_s)
}

fn port_of(value: u64) -> PortNo {
    PortNo((value >> 32) as u32)
}

impl Fdb {
    /// An empty table of at most `limit` addresses (clamped to 1..=[`FDB_LIMIT_MAX`]). `seed` keeps guests from
    /// choosing addresses that collide: take it from the system's random numbers.
    pub fn new(limit: usize, ageing_s: u32, seed: u64) -> Fdb {
        let limit = limit.clamp(1, FDB_LIMIT_MAX);
        let size = (limit * 2).next_power_of_two().max(64);
        let slots = (0..size).map(|_| Slot { key: AtomicU64::new(FREE), value: AtomicU64::new(0) }).collect();
        Fdb {
            slots,
            seed: seed | 1,
            limit,
            ageing_s: AtomicU32::new(ageing_s),
            control: Mutex::new(Control { count: 0, per_port: HashMap::new() }),
            refused: AtomicU64::new(0),
            moved: AtomicU64::new(0),
        }
    }

    /// Changes the ageing time.
    pub fn set_ageing(&self, ageing_s: u32) {
        self.ageing_s.store(ageing_s, Ordering::Relaxed);
    }

    /// Addresses in the table.
    pub fn len(&self) -> usize {
        self.lock().count
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Addresses that found no room.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Addresses that were seen on another port than before.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    #[inline]
    fn probes(&self, key: u64) -> impl Iterator<Item = &Slot> {
        let start = hash::fold(key ^ self.seed, 0x9e37_79b9_7f4a_7c15 ^ self.seed.rotate_left(32)) as usize;
        let mask = self.slots.len() - 1;
        (0..PROBES_MAX).map(move |i| &self.slots[(start.wrapping_add(i)) & mask])
    }

    #[inline]
    fn find(&self, key: u64) -> Option<(&Slot, u64)> {
        for slot in self.probes(key) {
            let found = slot.key.load(Ordering::Acquire);
            if found == key {
                let value = slot.value.load(Ordering::Acquire);
                // The slot may have been given to another address in between.
                return (slot.key.load(Ordering::Relaxed) == key && value != 0).then_some((slot, value));
            }
            if found == FREE {
                return None;
            }
        }
        None
    }

    /// The port of an address.
    #[inline]
    pub fn lookup(&self, vid: u16, mac: MacAddr) -> Option<PortNo> {
        self.find(pack(vid, mac)).map(|(_, value)| port_of(value))
    }

    /// Notes that `mac` of VLAN `vid` sent a packet on `port` at `now_s`. Group addresses are never learned.
    #[inline]
    pub fn learn(&self, vid: u16, mac: MacAddr, port: PortNo, now_s: u32) {
        let key = pack(vid, mac);
        if let Some((slot, value)) = self.find(key)
            && port_of(value) == port
        {
            if value as u32 != now_s {
                // At most once a second and address. A lost race means a worker moved or refreshed it just now.
                let new = pack_value(port, now_s);
                let _ = slot.value.compare_exchange(value, new, Ordering::Relaxed, Ordering::Relaxed);
            }
            return;
        }
        self.learn_slow(key, mac, port, now_s);
    }

    #[cold]
    fn learn_slow(&self, key: u64, mac: MacAddr, port: PortNo, now_s: u32) {
        if mac.is_multicast() || mac.to_u64() == 0 {
            return;
        }
        let Ok(mut control) = self.control.try_lock() else {
            return;
        };
        let value = pack_value(port, now_s);
        if let Some((slot, old)) = self.find(key) {
            slot.value.store(value, Ordering::Release);
            if port_of(old) != port {
                control.moved(port_of(old), port);
                self.moved.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        if control.count >= self.limit && !self.make_room(&mut control, port) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let unused = |slot: &&Slot| slot.key.load(Ordering::Relaxed) & VALID == 0;
        let Some(slot) = self.probes(key).find(unused) else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        // The value of the address that had the slot is zero since it was removed, so whoever sees the new key
        // sees no value or the new one.
        slot.key.store(key, Ordering::Release);
        slot.value.store(value, Ordering::Release);
        control.added(port);
    }

    /// The table is full: a port that has its fair share or more gets no more; else the port with the most
    /// addresses loses its oldest. So one guest that invents addresses cannot displace the others'.
    fn make_room(&self, control: &mut Control, port: PortNo) -> bool {
        let own = control.per_port.get(&port).copied().unwrap_or(0);
        let ports = control.per_port.len() + usize::from(own == 0);
        let Some((&largest, &most)) = control.per_port.iter().max_by_key(|(port, count)| (**count, port.0))
        else {
            return false;
        };
        if own * ports >= self.limit || most <= own {
            return false;
        }
        let oldest = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.key.load(Ordering::Relaxed) & VALID != 0)
            .filter(|(_, slot)| port_of(slot.value.load(Ordering::Relaxed)) == largest)
            .min_by_key(|(_, slot)| slot.value.load(Ordering::Relaxed) as u32);
        match oldest {
            Some((index, _)) => {
                self.remove(control, index);
                true
            }
            None => false,
        }
    }

    fn remove(&self, control: &mut Control, index: usize) {
        let port = port_of(self.slots[index].value.swap(0, Ordering::AcqRel));
        self.slots[index].key.store(DELETED, Ordering::Release);
        control.removed(port);
        // Deleted slots in front of a free one hide nothing: free them, or probes grow without end.
        let mask = self.slots.len() - 1;
        let mut at = index;
        while self.slots[(at + 1) & mask].key.load(Ordering::Relaxed) == FREE
            && self.slots[at].key.load(Ordering::Relaxed) == DELETED
        {
            self.slots[at].key.store(FREE, Ordering::Release);
            at = at.wrapping_sub(1) & mask;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn remove_if(&self, drop: impl Fn(u64, u64) -> bool) -> usize {
        let mut control = self.lock();
        let mut removed = 0;
        for (index, slot) in self.slots.iter().enumerate() {
            let key = slot.key.load(Ordering::Relaxed);
            if key & VALID != 0 && drop(key, slot.value.load(Ordering::Relaxed)) {
                self.remove(&mut control, index);
                removed += 1;
            }
        }
        removed
    }

    /// Forgets the addresses that were not seen for the ageing time; returns how many. For a timer of about a
    /// second on a control thread.
    pub fn age(&self, now_s: u32) -> usize {
        let ageing = self.ageing_s.load(Ordering::Relaxed);
        self.remove_if(|_, value| now_s.saturating_sub(value as u32) >= ageing)
    }

    /// Forgets the addresses of a port that went away or changed its VLANs.
    pub fn forget_port(&self, port: PortNo) -> usize {
        self.remove_if(|_, value| port_of(value) == port)
    }

    /// Forgets everything.
    pub fn clear(&self) -> usize {
        self.remove_if(|_, _| true)
    }

    /// All addresses, in no order.
    pub fn entries(&self) -> Vec<FdbEntry> {
        let entry = |slot: &Slot| {
            let key = slot.key.load(Ordering::Acquire);
            let value = slot.value.load(Ordering::Acquire);
            (key & VALID != 0 && value != 0).then(|| FdbEntry {
                vid: (key >> 48) as u16 & 0xfff,
                mac: MacAddr::from_u64(key),
                port: port_of(value),
                seen_s: value as u32,
            })
        };
        self.slots.iter().filter_map(entry).collect()
    }
}

impl Control {
    fn added(&mut self, port: PortNo) {
        self.count += 1;
        *self.per_port.entry(port).or_default() += 1;
    }

    fn removed(&mut self, port: PortNo) {
        self.count -= 1;
        if let Some(count) = self.per_port.get_mut(&port) {
            *count -= 1;
            if *count == 0 {
                self.per_port.remove(&port);
            }
        }
    }

    fn moved(&mut self, from: PortNo, to: PortNo) {
        self.removed(from);
        self.added(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const LIMIT: usize = 24;

    #[derive(Clone, Debug)]
    enum Step {
        Learn { vid: u16, mac: u8, port: u32 },
        Pass(u32),
        Age,
        Forget(u32),
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            12 => (0..3u16, any::<u8>(), 1..5u32).prop_map(|(vid, mac, port)| Step::Learn { vid, mac: mac % 32, port }),
            2 => (0..20u32).prop_map(Step::Pass),
            1 => Just(Step::Age),
            1 => (1..5u32).prop_map(Step::Forget),
            1 => Just(Step::Clear),
        ];
        proptest::collection::vec(step, 0..200)
    }

    fn mac(number: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, number])
    }

    /// What a full table does with a new address of `port`: refuses it, or names the port that loses its oldest.
    fn room(model: &BTreeMap<(u16, u8), (u32, u32)>, port: u32) -> Option<Option<u32>> {
        if model.len() < LIMIT {
            return Some(None);
        }
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        model.values().for_each(|(port, _)| *counts.entry(*port).or_default() += 1);
        let own = counts.get(&port).copied().unwrap_or(0);
        let ports = counts.len() + usize::from(own == 0);
        let (largest, most) = counts.into_iter().max_by_key(|(port, count)| (*count, *port))?;
        (own * ports < LIMIT && most > own).then_some(Some(largest))
    }

    proptest! {
        #[test]
        fn behaves_like_a_map_with_a_fair_limit(steps in steps(), seed in any::<u64>()) {
            let fdb = Fdb::new(LIMIT, 30, seed);
            let mut model: BTreeMap<(u16, u8), (u32, u32)> = BTreeMap::new();
            let mut now_s = 1;
            for step in steps {
                match step {
                    Step::Learn { vid, mac: number, port } => {
                        let known = model.contains_key(&(vid, number));
                        let room = if known { Some(None) } else { room(&model, port) };
                        fdb.learn(vid, mac(number), PortNo(port), now_s);
                        if let Some(loser) = room {
                            if let Some(loser) = loser {
                                // Of several that are equally old, any may go: see which one did.
                                let oldest = model.values().filter(|(port, _)| *port == loser).map(|e| e.1).min();
                                let gone: Vec<_> = model
                                    .iter()
                                    .filter(|((vid, number), _)| fdb.lookup(*vid, mac(*number)).is_none())
                                    .map(|(id, entry)| (*id, *entry))
                                    .collect();
                                prop_assert_eq!(gone.len(), 1);
                                prop_assert_eq!(Some(gone[0].1), oldest.map(|seen| (loser, seen)));
                                model.remove(&gone[0].0);
                            }
                            model.insert((vid, number), (port, now_s));
                        }
                    }
                    Step::Pass(seconds) => now_s += seconds,
                    Step::Age => {
                        let before = model.len();
                        model.retain(|_, (_, seen)| now_s - *seen < 30);
                        prop_assert_eq!(fdb.age(now_s), before - model.len());
                    }
                    Step::Forget(port) => {
                        let before = model.len();
                        model.retain(|_, (on, _)| *on != port);
                        prop_assert_eq!(fdb.forget_port(PortNo(port)), before - model.len());
                    }
                    Step::Clear => {
                        fdb.clear();
                        model.clear();
                    }
                }
                let mut entries: Vec<_> =
                    fdb.entries().iter().map(|e| ((e.vid, e.mac.0[5]), (e.port.0, e.seen_s))).collect();
                entries.sort_unstable();
                prop_assert_eq!(entries, model.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>());
                prop_assert_eq!(fdb.len(), model.len());
                for ((vid, number), (port, _)) in &model {
                    prop_assert_eq!(fdb.lookup(*vid, mac(*number)), Some(PortNo(*port)));
                }
            }
        }
    }

    #[test]
    fn holds_as_many_addresses_as_its_limit() {
        let fdb = Fdb::new(5000, 300, 12345);
        let address = |i: u32| MacAddr::from_u64(0x0200_0000_0000 | u64::from(i));
        for i in 0..6000 {
            fdb.learn(1, address(i), PortNo(1), 1);
        }
        assert_eq!((fdb.len(), fdb.refused()), (5000, 1000));
        assert!((0..5000).all(|i| fdb.lookup(1, address(i)) == Some(PortNo(1))));
        // Another port gets its share all the same.
        for i in 6000..6100 {
            fdb.learn(1, address(i), PortNo(2), 2);
        }
        assert!((6000..6100).all(|i| fdb.lookup(1, address(i)) == Some(PortNo(2))));
        assert_eq!(fdb.len(), 5000);
    }

    /// Threads learn, move, look up and remove at once: a lookup never names a port on which the address never was.
    #[test]
    fn workers_never_see_an_address_on_a_foreign_port() {
        let fdb = Fdb::new(32, 1, 99);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..3u32 {
                let (fdb, stop) = (&fdb, &stop);
                scope.spawn(move || {
                    let mut i = thread;
                    while !stop.load(Ordering::Relaxed) {
                        i = i.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        // Address n is only ever on ports n and n + 100.
                        let number = (i >> 8) as u8 % 64;
                        let port = u32::from(number) + if i & 1 == 0 { 1 } else { 101 };
                        fdb.learn(5, mac(number), PortNo(port), i);
                        if let Some(found) = fdb.lookup(5, mac(number)) {
                            assert_eq!((found.0 - 1) % 100, u32::from(number));
                        }
                    }
                });
            }
            for round in 0..2000 {
                fdb.forget_port(PortNo(round % 200));
                if round % 100 == 0 {
                    fdb.clear();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
