use super::*;
use proptest::prelude::*;

fn byte(image: &Image, offset: u64) -> u8 {
    let mut b = [0];
    image.read(offset, &mut b);
    b[0]
}

#[test]
fn only_a_flush_submitted_after_completion_makes_a_write_stable() {
    let mut disk = SimDisk::new(1 << 16, 1);
    let (write, _) = disk.submit(Operation::Write { offset: 0, bytes: vec![1; 512] }).unwrap();
    let (early, _) = disk.submit(Operation::Flush).unwrap();
    disk.complete(write, &mut []).unwrap();
    disk.complete(early, &mut []).unwrap();
    assert_eq!(byte(&disk.cut(CutMode::Nothing), 0), 0);
    assert_eq!(byte(&disk.killed(CutMode::Nothing), 0), 1);
    disk.flush().unwrap();
    assert_eq!(byte(&disk.cut(CutMode::Nothing), 0), 1);
}

#[test]
fn a_cut_may_keep_any_subset() {
    let mut disk = SimDisk::new(1 << 16, 1);
    disk.write(0, &[1; 1024]).unwrap();
    disk.write(512, &[2; 1024]).unwrap();
    let seen = |bits| {
        let image = disk.cut(CutMode::Subset(bits));
        [byte(&image, 0), byte(&image, 512), byte(&image, 1024)]
    };
    assert_eq!([seen(0), seen(1), seen(2), seen(3)], [[0, 0, 0], [1, 1, 0], [0, 2, 2], [1, 2, 2]]);
    // Torn cuts reach old and new in the shared sector, and halves of one write.
    let torn: std::collections::BTreeSet<_> = (0..200)
        .map(|seed| {
            let image = disk.cut(CutMode::Torn(seed));
            (byte(&image, 0), byte(&image, 512), byte(&image, 1024))
        })
        .collect();
    assert_eq!(torn.len(), 2 * 3 * 2, "{torn:?}");
}

#[test]
fn faults_strike_once_and_where_told() {
    let mut disk = SimDisk::new(1 << 16, 1);
    disk.faults().write_in = Some(2);
    assert_eq!(disk.write(0, &[1; 512]), Ok(512));
    assert_eq!(disk.write(0, &[2; 512]), Err(DiskFault::Io));
    assert_eq!(disk.write(0, &[3; 512]), Ok(512));
    disk.faults().flush_in = Some(1);
    assert_eq!(disk.flush(), Err(DiskFault::Io));
    disk.flush().unwrap();
    assert_ne!(byte(&disk.cut(CutMode::Nothing), 0), 3, "a failed flush loses what it covered");
    assert_eq!(byte(disk.visible(), 0), 3);
    disk.add_latent_error(4096);
    assert_eq!(disk.read(4096, &mut [0; 512]), Err(DiskFault::Io));
    assert_eq!(disk.read(0, &mut [0; 512]), Ok(512));
    disk.write(4096, &[0; 512]).unwrap();
    assert_eq!(disk.read(4096, &mut [0; 512]), Ok(512));
    disk.faults().gone = true;
    assert_eq!(disk.flush(), Err(DiskFault::Gone));
    assert_eq!(disk.write(1, &[0; 512]), Err(DiskFault::Range));
}

#[test]
fn time_is_seek_plus_transfer() {
    let mut disk = SimDisk::new(1 << 20, 1);
    (disk.seek_ns, disk.bytes_per_s) = (8_000_000, 1 << 20);
    let mut cost = |offset| disk.submit(Operation::Read { offset, len: 1 << 19 }).unwrap().1;
    assert_eq!([cost(0), cost(1 << 19), cost(0)], [508_000_000, 500_000_000, 508_000_000]);
}

#[test]
fn short_transfers_move_a_prefix() {
    let mut disk = SimDisk::new(1 << 16, 3);
    disk.faults().short_one_in = Some(2);
    let moved: Vec<u32> = (0..64).map(|_| disk.write(0, &[7; 4096]).unwrap()).collect();
    assert!(moved.iter().any(|n| *n < 4096) && moved.contains(&4096));
    assert!(moved.iter().all(|n| n % 512 == 0 && *n > 0));
}

proptest! {
    #[test]
    fn image_equals_a_byte_array(writes in prop::collection::vec((0u64..16384, 1usize..6000, any::<u8>()), 1..20)) {
        let mut image = Image::new(32768);
        let mut model = vec![0u8; 32768];
        for (offset, len, value) in writes {
            let old = image.clone();
            let before = model.clone();
            image.write(offset, &vec![value; len]);
            model[offset as usize..offset as usize + len].fill(value);
            let mut got = vec![0; 32768];
            old.read(0, &mut got);
            prop_assert!(got == before, "a copy changed with the original");
            image.read(0, &mut got);
            prop_assert!(got == model);
        }
    }
}
