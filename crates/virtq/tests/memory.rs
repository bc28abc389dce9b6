//! Memory maps over real files, and files that shrink under them.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::process::Command;

use virtq::{
    DirtyLog, GuestMemory, InflightError, InflightRegion, MAX_REGIONS, MemoryError, RegionHint, RegionSpec,
    install_sigbus_guard,
};

fn memfd(len: u64) -> File {
    // SAFETY: a valid C string; the result is checked, and the descriptor is fresh.
    let file = unsafe {
        let fd = libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        File::from_raw_fd(fd)
    };
    file.set_len(len).unwrap();
    file
}

fn spec(guest_addr: u64, size: u64, mmap_offset: u64, file: &File) -> RegionSpec {
    let file = file.try_clone().unwrap();
    RegionSpec { guest_addr, size, user_addr: 0x7f00_0000_0000 + guest_addr, mmap_offset, file }
}

fn read(mem: &GuestMemory, guest_addr: u64, len: u32) -> Vec<u8> {
    let slice = mem.slice(&mut RegionHint::default(), guest_addr, len).unwrap();
    let mut bytes = vec![0xee; len as usize];
    mem.read(slice, 0, &mut bytes);
    bytes
}

fn write(mem: &GuestMemory, guest_addr: u64, bytes: &[u8]) {
    let slice = mem.slice(&mut RegionHint::default(), guest_addr, bytes.len() as u32).unwrap();
    mem.write(slice, 0, bytes);
}

#[test]
fn regions_show_their_part_of_the_file() {
    use std::os::unix::fs::FileExt;
    let file = memfd(0x5000);
    file.write_all_at(b"first", 0x1000).unwrap();
    // An offset inside a page is unusual, but a frontend may send it.
    file.write_all_at(b"second", 0x3010).unwrap();
    let mem = GuestMemory::new(vec![spec(0x10_0000, 0x1ff0, 0x3010, &file), spec(0, 0x2000, 0x1000, &file)])
        .unwrap();
    assert_eq!(read(&mem, 0, 5), b"first");
    assert_eq!(read(&mem, 0x10_0000, 6), b"second");
    write(&mem, 0x10_0006, b"!");
    let mut seen = [0; 7];
    file.read_exact_at(&mut seen, 0x3010).unwrap();
    assert_eq!(&seen, b"second!");

    let by_user = mem.slice_user(0x7f00_0010_0001, 5).unwrap();
    let mut seen = [0; 5];
    mem.read(by_user, 0, &mut seen);
    assert_eq!(&seen, b"econd");
    assert_eq!(mem.guest_addr(by_user), 0x10_0001);
    assert!(mem.slice_user(0x7f00_0010_0000, 0x1ff1).is_none());
    assert!(mem.slice_user(0x7f00_0010_0000, 1 << 33).is_none());
}

#[test]
fn slices_end_where_regions_end() {
    let mem = GuestMemory::anonymous(&[(0x1000, 0x1000), (0x2000, 0x1000), (0x8000, 0x1000)]);
    let cases = [
        (0, 1, false),
        (0xfff, 1, false),
        (0x1000, 0, true),
        (0x1000, 0x1000, true),
        (0x1000, 0x1001, false),
        (0x1fff, 2, false),
        (0x2fff, 1, true),
        (0x3000, 0, false),
        (0x8fff, 1, true),
        (0x8fff, u32::MAX, false),
        (u64::MAX, 1, false),
        (u64::MAX, 0, false),
    ];
    // The answer does not depend on where the last one was found.
    for warm in [0x1000, 0x2000, 0x8000] {
        for (addr, len, inside) in cases {
            let mut hint = RegionHint::default();
            mem.slice(&mut hint, warm, 1).unwrap();
            assert_eq!(mem.slice(&mut hint, addr, len).is_some(), inside, "{addr:#x} {len:#x}");
        }
    }
}

#[test]
fn bad_maps_are_refused() {
    let file = memfd(0x4000);
    let new = |specs: Vec<RegionSpec>| GuestMemory::new(specs).unwrap_err();
    let wrapping = RegionSpec { guest_addr: u64::MAX - 0xfff, ..spec(0, 0x1000, 0, &file) };
    let user_wrapping = RegionSpec { user_addr: u64::MAX - 0xffe, ..spec(0, 0x1000, 0, &file) };
    assert!(matches!(new(vec![spec(0, 0, 0, &file)]), MemoryError::Empty { guest_addr: 0 }));
    assert!(matches!(new(vec![wrapping]), MemoryError::Wraps { .. }));
    assert!(matches!(new(vec![user_wrapping]), MemoryError::Wraps { .. }));
    assert!(matches!(new(vec![spec(0, 0x4001, 0, &file)]), MemoryError::Map { .. }));
    assert!(matches!(new(vec![spec(0, 0x1000, 0x3001, &file)]), MemoryError::Map { .. }));
    assert!(matches!(new(vec![spec(0, 0x1000, u64::MAX - 1, &file)]), MemoryError::Map { .. }));
    let overlap = new(vec![spec(0x1000, 0x1000, 0, &file), spec(0, 0x1001, 0, &file)]);
    assert!(matches!(overlap, MemoryError::Overlap { first: 0, second: 0x1000 }));

    let many =
        |count: usize| (0..count).map(|i| spec(0x1000 * i as u64, 0x1000, 0, &file)).collect::<Vec<_>>();
    let full = GuestMemory::new(many(MAX_REGIONS)).unwrap();
    assert_eq!(full.region_count(), MAX_REGIONS);
    assert!(matches!(
        full.with_region(spec(1 << 40, 0x1000, 0, &file)),
        Err(MemoryError::TooManyRegions { .. })
    ));
    assert!(matches!(new(many(1000)), MemoryError::TooManyRegions { count: 1000 }));
}

#[test]
fn regions_come_and_go_while_the_old_map_is_in_use() {
    let file = memfd(0x3000);
    let old = GuestMemory::new(vec![spec(0x1000, 0x1000, 0, &file)]).unwrap();
    write(&old, 0x1000, b"kept");
    let more = old.with_region(spec(0, 0x1000, 0x1000, &file)).unwrap();
    write(&more, 0, b"new");
    assert_eq!(read(&more, 0x1000, 4), b"kept");
    // One mapping, seen through both maps.
    let place = |mem: &GuestMemory| mem.host_ptr(mem.slice_user(0x7f00_0000_1000, 1).unwrap());
    assert_eq!(place(&old), place(&more));
    assert!(matches!(more.with_region(spec(0xfff, 1, 0, &file)), Err(MemoryError::Overlap { .. })));

    let fewer = more.without_region(0x1000, 0x7f00_0000_1000, 0x1000).unwrap();
    assert!(fewer.slice(&mut RegionHint::default(), 0x1000, 1).is_none());
    drop(more);
    assert_eq!(read(&fewer, 0, 3), b"new");
    assert_eq!(read(&old, 0x1000, 4), b"kept");
    for (guest, user, size) in
        [(0x1000, 0x7f00_0000_1000, 0x1000), (0, 0x7f00_0000_0000, 0x2000), (0, 0, 0x1000)]
    {
        assert!(matches!(fewer.without_region(guest, user, size), Err(MemoryError::NoSuchRegion { .. })));
    }
}

#[test]
fn copies_between_guests_and_over_themselves() {
    let a = GuestMemory::anonymous(&[(0, 0x1000)]);
    let b = GuestMemory::anonymous(&[(0x5000, 0x1000)]);
    write(&a, 0x10, b"0123456789");
    let from = a.slice_user(0x10, 10).unwrap();
    let to = b.slice_user(0x5000, 10).unwrap();
    a.window(from).copy_to(2, b.window(to), 1, 8);
    assert_eq!(read(&b, 0x5000, 10), b"\x0023456789\x00");
    let shifted = a.slice_user(0x12, 10).unwrap();
    a.window(from).copy_to(0, a.window(shifted), 0, 10);
    assert_eq!(read(&a, 0x10, 12), b"010123456789");
    a.zero(shifted, 1, 3);
    assert_eq!(read(&a, 0x10, 12), b"010\0\0\x00456789");
    a.window(from).prefetch(0);
    b.window(to).prefetch_write(0);
}

#[test]
fn slices_are_checked_at_every_use() {
    let small = GuestMemory::anonymous(&[(0, 0x1000)]);
    let large = GuestMemory::anonymous(&[(0, 0x1000), (0x1000, 0x4000)]);
    let foreign = large.slice_user(0x1000, 0x10).unwrap();
    let slice = small.slice_user(0xff0, 0x10).unwrap();
    let panics = |act: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).is_err();
    assert!(panics(&|| small.write(foreign, 0, b"x")));
    let longer = GuestMemory::anonymous(&[(0, 0x2000)]).slice_user(0xff0, 0x100).unwrap();
    assert!(panics(&|| small.write(longer, 0xf, b"xy")));
    let beyond = GuestMemory::anonymous(&[(0, 0x2000)]).slice_user(0x1800, 0x100).unwrap();
    assert!(panics(&|| small.write(beyond, 0, b"")));
    assert!(panics(&|| small.read(slice, 0xf, &mut [0; 2])));
    assert!(panics(&|| small.zero(slice, u32::MAX, 1)));
    assert!(panics(&|| small.window(slice).copy_to(0, small.window(slice), 1, 0x10)));
    assert!(!panics(&|| small.read(slice, 0xf, &mut [0; 1])));
    assert_eq!(slice.sub(0x10, 0).map(|s| s.len()), Some(0));
    assert_eq!((slice.sub(0x10, 1), slice.sub(u32::MAX, 2)), (None, None));
}

#[test]
fn the_dirty_log_marks_each_touched_page() {
    use std::os::unix::fs::FileExt;
    let file = memfd(0x1000);
    let log = DirtyLog::new(&file, 0x10, 8).unwrap();
    log.mark(0x1fff, 2);
    log.mark(0x5000, 0x1000);
    log.mark(0x9000, 0);
    log.mark(63 << 12, 0x10000);
    log.mark(64 << 12, 1);
    log.mark(u64::MAX, u64::MAX);
    let mut bits = [0; 0x30];
    file.read_exact_at(&mut bits, 0).unwrap();
    let mut expected = [0; 0x30];
    expected[0x10] = 0b10_0110;
    expected[0x17] = 0x80;
    assert_eq!(bits, expected);
    assert!(DirtyLog::new(&file, 0xfff, 2).is_err());
    assert!(DirtyLog::new(&file, 0, 0).is_err());
}

#[test]
fn inflight_regions_must_fit() {
    let (file, len) = InflightRegion::create(2, 128).unwrap();
    // 16 + 128 * 16 = 2064 bytes, rounded up to 64.
    assert_eq!(len, 2 * 2112);
    let region = InflightRegion::open(&file, 0, len, 2, 128).unwrap();
    assert!(region.queue(1).is_some() && region.queue(2).is_none());
    assert!(matches!(InflightRegion::open(&file, 0, len - 1, 2, 128), Err(InflightError::TooSmall { .. })));
    assert!(matches!(InflightRegion::open(&file, 1, len, 2, 128), Err(InflightError::Map(_))));
    assert!(matches!(InflightRegion::create(0, 128), Err(InflightError::Empty { .. })));
}

#[test]
fn a_truncated_file_reads_as_zeros_and_is_reported() {
    install_sigbus_guard();
    let (file, other) = (memfd(0x4000), memfd(0x1000));
    let mem = GuestMemory::new(vec![spec(0, 0x4000, 0, &file), spec(0x10000, 0x1000, 0, &other)]).unwrap();
    let bystander = GuestMemory::new(vec![spec(0, 0x1000, 0, &other)]).unwrap();
    write(&mem, 0x2ffe, b"data");
    write(&mem, 0x10000, b"safe");
    file.set_len(0).unwrap();
    assert!(!mem.lost());
    assert_eq!(read(&mem, 0x2ffe, 4), [0; 4]);
    assert!(mem.lost());
    write(&mem, 0x1000, b"goes nowhere");
    assert_eq!(read(&mem, 0x10000, 4), b"safe");
    assert!(!bystander.lost());
    drop(mem);
    // A later mapping starts afresh, in the same place of the guard's table.
    let again = GuestMemory::new(vec![spec(0, 0x1000, 0, &other)]).unwrap();
    assert!(!again.lost());
}

#[test]
fn many_threads_may_lose_memory_at_once() {
    install_sigbus_guard();
    let workers: Vec<_> = (0..8u64)
        .map(|worker| {
            std::thread::spawn(move || {
                for turn in 0..50u64 {
                    let file = memfd(0x8000);
                    let mem = GuestMemory::new(vec![spec(0, 0x8000, 0, &file)]).unwrap();
                    write(&mem, 0x7000, &[1; 8]);
                    let cut = (worker + turn) % 2 == 0;
                    if cut {
                        file.set_len(0x1000).unwrap();
                    }
                    assert_eq!(read(&mem, 0x7000, 8), if cut { [0; 8] } else { [1; 8] });
                    assert_eq!(mem.lost(), cut);
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}

/// Runs one of the ignored tests below in a process of its own, since its signals end it.
fn child(name: &str) -> std::process::ExitStatus {
    let test = std::env::current_exe().unwrap();
    Command::new(test).args(["--exact", name, "--ignored", "--quiet"]).output().unwrap().status
}

#[test]
fn the_guard_leaves_other_faults_alone() {
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child("child_survives").code(), Some(0));
    assert_eq!(child("child_foreign_fault").signal(), Some(libc::SIGBUS));
    assert_eq!(child("child_sent_signal").signal(), Some(libc::SIGBUS));
    assert_eq!(child("child_previous_handler").code(), Some(42));
}

#[test]
#[ignore = "run by the_guard_leaves_other_faults_alone"]
fn child_survives() {
    install_sigbus_guard();
    install_sigbus_guard();
    let file = memfd(0x1000);
    let mem = GuestMemory::new(vec![spec(0, 0x1000, 0, &file)]).unwrap();
    file.set_len(0).unwrap();
    write(&mem, 0, b"gone");
    assert!(mem.lost());
}

/// Faults in a mapping that the guard does not know.
fn fault_elsewhere() {
    use std::os::fd::AsRawFd;
    let file = memfd(0x1000);
    let flags = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a fresh mapping; the read of its first byte is the fault that the test is about.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), 0x1000, flags.0, flags.1, file.as_raw_fd(), 0);
        assert!(at != libc::MAP_FAILED);
        file.set_len(0).unwrap();
        at.cast::<u8>().read_volatile();
    }
}

#[test]
#[ignore = "run by the_guard_leaves_other_faults_alone"]
fn child_foreign_fault() {
    install_sigbus_guard();
    fault_elsewhere();
}

#[test]
#[ignore = "run by the_guard_leaves_other_faults_alone"]
fn child_sent_signal() {
    // Rust's own handler would take a signal that was sent for a fault that repeats itself, and return.
    // SAFETY: the default action of a valid signal.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    install_sigbus_guard();
    // SAFETY: a signal to ourselves.
    unsafe { libc::raise(libc::SIGBUS) };
}

#[test]
#[ignore = "run by the_guard_leaves_other_faults_alone"]
fn child_previous_handler() {
    extern "C" fn leave(_: libc::c_int) {
        // SAFETY: async-signal-safe.
        unsafe { libc::_exit(42) };
    }
    // SAFETY: a handler of the right type for a valid signal.
    unsafe { libc::signal(libc::SIGBUS, leave as *const () as libc::sighandler_t) };
    install_sigbus_guard();
    fault_elsewhere();
}
