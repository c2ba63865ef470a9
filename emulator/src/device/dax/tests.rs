//! Tests of the device: accesses against a plain byte vector, concurrency by words, images and
//! their refusals.

use super::super::open::{FOLIO, MAX_BYTES};
use super::*;
use crate::runtime::sync::thread;
use proptest::prelude::*;

const SIZE: u64 = FOLIO;

fn device() -> Device {
    Device::memory(SIZE).expect("a memory file of 2 MiB")
}

fn pages(start: u64, len: u64) -> PageRange {
    PageRange::new(start, len)
}

#[test]
fn sizes_that_no_device_has_are_refused() {
    for asked in [0, 1, PAGE, FOLIO - 1, FOLIO + PAGE, MAX_BYTES + FOLIO, u64::MAX] {
        assert!(matches!(Device::memory(asked), Err(OpenError::Size { asked: a }) if a == asked), "{asked}");
    }
}

#[test]
fn a_terabyte_is_sparse() {
    let device = Device::memory(MAX_BYTES).unwrap();
    assert_eq!(device.pages(), 1 << 28);
    device.write(MAX_BYTES - 3, b"end").unwrap();
    let mut end = [0; 4];
    device.read(MAX_BYTES - 4, &mut end).unwrap();
    assert_eq!(&end, b"\0end");
    let used = rustix::fs::fstat(device.fd()).unwrap().st_blocks * 512;
    assert!((1..=FOLIO as i64).contains(&used), "{used} bytes used");
}

/// Every access at the edges of the device fails whole or succeeds whole, and never panics.
#[test]
fn out_of_range_is_an_error_and_touches_nothing() {
    let device = device();
    device.fill(pages(0, device.pages()), 0xaa).unwrap();
    let outside = |offset, len| AccessError::OutOfRange { offset, len, bytes: SIZE };
    for offset in [SIZE - 7, SIZE, SIZE + 1, u64::MAX] {
        assert_eq!(device.read(offset, &mut [0; 8]), Err(outside(offset, 8)));
        assert_eq!(device.write(offset, &[0; 8]), Err(outside(offset, 8)));
        assert_eq!(device.copy_within(offset, 0, 8), Err(outside(offset, 8)));
        assert_eq!(device.copy_within(0, offset, 8), Err(outside(offset, 8)));
        assert_eq!(device.load_u64(offset), Err(outside(offset, 8)));
        assert_eq!(device.fetch_add_u64(offset, 1), Err(outside(offset, 8)));
    }
    for range in [pages(device.pages(), 1), pages(0, device.pages() + 1), pages(u64::MAX, 1), pages(1, u64::MAX)] {
        assert!(matches!(device.zero(range), Err(AccessError::OutOfRange { .. })), "{range}");
        assert!(matches!(device.discard(range), Err(AccessError::OutOfRange { .. })), "{range}");
    }
    assert_eq!(device.store_u64(12, 0), Err(AccessError::Misaligned { offset: 12 }));
    assert_eq!(device.read(SIZE, &mut []), Ok(()), "nothing, at the very end");
    let mut all = vec![0; SIZE as usize];
    device.read(0, &mut all).unwrap();
    assert!(all.iter().all(|byte| *byte == 0xaa));
}

#[test]
fn atomics_say_what_stood_there() {
    let device = device();
    device.store_u64(64, 5).unwrap();
    assert_eq!(device.compare_exchange_u64(64, 4, 9), Ok(5));
    assert_eq!(device.compare_exchange_u64(64, 5, u64::MAX), Ok(5));
    assert_eq!(device.fetch_add_u64(64, 2), Ok(u64::MAX));
    assert_eq!(device.load_u64(64), Ok(1));
    let mut bytes = [0; 8];
    device.read(64, &mut bytes).unwrap();
    assert_eq!(u64::from_ne_bytes(bytes), 1, "the same memory");
}

#[test]
fn discard_gives_memory_back_and_reads_zero() {
    let device = device();
    device.fill(pages(0, 512), 7).unwrap();
    let used = || rustix::fs::fstat(device.fd()).unwrap().st_blocks * 512;
    let before = used();
    assert_eq!(device.discard(pages(16, 480)), Ok(true));
    assert!(used() < before);
    let byte = |offset| {
        let mut byte = [9];
        device.read(offset, &mut byte).unwrap();
        byte[0]
    };
    assert_eq!([byte(16 * PAGE - 1), byte(16 * PAGE), byte(496 * PAGE - 1), byte(496 * PAGE)], [7, 0, 0, 7]);
    assert_eq!(rustix::fs::fstat(device.fd()).unwrap().st_size as u64, SIZE, "the size stays");
    assert_eq!(device.discard(pages(3, 0)), Ok(true));
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Copy(u64, u64, u64),
    Fill(u64, u64, u8),
    Discard(u64, u64),
}

fn op() -> impl Strategy<Value = Op> {
    // Short lengths take the loop of words, long ones the string instruction; odd ones leave heads
    // and tails.
    let len = || prop_oneof![0u64..40, 700u64..900, 4000u64..20_000];
    let at = || 0..6 * PAGE;
    prop_oneof![
        (at(), len(), any::<u8>())
            .prop_map(|(at, len, salt)| Op::Write(at, (0..len).map(|n| (n as u8).wrapping_mul(31) ^ salt).collect())),
        (at(), len()).prop_map(|(at, len)| Op::Read(at, len as usize)),
        (at(), at(), len()).prop_map(|(src, dst, len)| Op::Copy(src, dst, len)),
        (at(), at(), len()).prop_map(|(src, dst, len)| Op::Copy(src & !7, dst & !7, len & !7)),
        (0u64..10, 0u64..4, any::<u8>()).prop_map(|(start, len, byte)| Op::Fill(start, len, byte)),
        (0u64..10, 0u64..4).prop_map(|(start, len)| Op::Discard(start, len)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Any sequence of accesses does to the device what it does to a byte vector; whole device
    /// compared after each.
    #[test]
    fn agrees_with_a_byte_vector(ops in prop::collection::vec(op(), 1..20)) {
        let device = device();
        let mut model = vec![0u8; 16 * PAGE as usize];
        for op in ops {
            match op {
                Op::Write(at, bytes) => {
                    device.write(at, &bytes).unwrap();
                    model[at as usize..][..bytes.len()].copy_from_slice(&bytes);
                }
                Op::Read(at, len) => {
                    let mut found = vec![0x55; len];
                    device.read(at, &mut found).unwrap();
                    prop_assert_eq!(&found, &model[at as usize..][..len]);
                }
                Op::Copy(src, dst, len) => {
                    device.copy_within(src, dst, len).unwrap();
                    model.copy_within(src as usize..(src + len) as usize, dst as usize);
                }
                Op::Fill(start, len, byte) => {
                    device.fill(pages(start, len), byte).unwrap();
                    model[(start * PAGE) as usize..][..(len * PAGE) as usize].fill(byte);
                }
                Op::Discard(start, len) => {
                    device.discard(pages(start, len)).unwrap();
                    model[(start * PAGE) as usize..][..(len * PAGE) as usize].fill(0);
                }
            }
            let mut found = vec![0x55; model.len()];
            device.read(0, &mut found).unwrap();
            prop_assert!(found == model, "the device differs from the model");
        }
    }
}

/// Writers of neighbouring bytes in one word, at full speed: no byte is lost to another thread's
/// merge.
#[test]
fn neighbours_in_a_word_do_not_disturb_each_other() {
    let device = device();
    thread::scope(|scope| {
        for lane in 0..3u64 {
            let device = &device;
            scope.spawn(move || {
                // Bytes 9..11, 11..13 and 13..15 of one word. What a neighbour's stale merge takes
                // away is missing when its writer comes back. Many rounds: the threads may begin on
                // one processor.
                let at = 9 + lane * 2;
                let mut bytes = [0; 2];
                for round in 0..2_000_000u32 {
                    let mut found = [0xff; 2];
                    device.read(at, &mut found).unwrap();
                    assert_eq!(found, bytes, "before round {round} of writer {lane}");
                    bytes = [round as u8, (round >> 8) as u8];
                    device.write(at, &bytes).unwrap();
                }
            });
        }
    });
}

/// A block copied by one thread while another rewrites it: words may mix, but no word is torn,
/// whichever way it is copied.
#[test]
fn a_racing_copy_never_tears_a_word() {
    let device = device();
    let pattern = |byte: u8| vec![byte; PAGE as usize];
    let (ones, twos) = (pattern(0x11), pattern(0x22));
    let whole = |bytes: &[u8]| bytes.as_chunks::<8>().0.iter().all(|w| [[0; 8], [0x11; 8], [0x22; 8]].contains(w));
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..40_000 {
                let len = if round % 4 < 2 { PAGE } else { 256 };
                let pattern = if round % 2 == 0 { &ones } else { &twos };
                device.write(0, &pattern[..len as usize]).unwrap();
            }
        });
        scope.spawn(|| {
            for round in 0..20_000 {
                let mut found = pattern(0);
                // Long and short copies: the string instruction and the loop of words.
                let len = if round % 2 == 0 { PAGE } else { 256 };
                device.read(0, &mut found[..len as usize]).unwrap();
                assert!(whole(&found), "torn in round {round}");
                device.copy_within(0, PAGE, len).unwrap();
                device.read(PAGE, &mut found).unwrap();
                assert!(whole(&found), "torn by a copy in round {round}");
            }
        });
    });
}

#[test]
fn atomic_adds_from_several_threads_all_count() {
    let device = device();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    device.fetch_add_u64(4096, 1).unwrap();
                }
            });
        }
    });
    assert_eq!(device.load_u64(4096), Ok(30_000));
}

#[test]
fn an_image_is_made_sparse_kept_and_locked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pmem.img");
    {
        let device = Device::image(&path, 64 * FOLIO).unwrap();
        assert_eq!(device.path(), Some(path.as_path()));
        let found = path.metadata().unwrap();
        assert_eq!(found.len(), 64 * FOLIO);
        assert!(std::os::unix::fs::MetadataExt::blocks(&found) * 512 < FOLIO, "not sparse");
        device.write(FOLIO + 5, b"persists").unwrap();
        device.sync().unwrap();
        assert!(matches!(Device::image(&path, FOLIO), Err(OpenError::Locked { .. })), "a second device got in");
    }
    assert_eq!(&std::fs::read(&path).unwrap()[FOLIO as usize + 5..][..8], b"persists");
    let again = Device::image(&path, 2 * FOLIO).unwrap();
    assert_eq!((again.bytes(), path.metadata().unwrap().len()), (2 * FOLIO, 64 * FOLIO), "a larger image is fine");
    let mut found = [0; 8];
    again.read(FOLIO + 5, &mut found).unwrap();
    assert_eq!(&found, b"persists");
    assert!(again.read(2 * FOLIO, &mut found).is_err(), "what lies behind the device can't be reached");
}

#[test]
fn an_image_that_does_not_fit_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small.img");
    std::fs::write(&small, b"precious").unwrap();
    let error = Device::image(&small, FOLIO).unwrap_err();
    assert!(matches!(error, OpenError::TooSmall { asked: FOLIO, found: 8, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("small.img: 8 bytes, but a device of 2097152 was asked for"), "{text}");
    assert_eq!(std::fs::read(&small).unwrap(), b"precious");
    assert!(matches!(Device::image(folder.path(), FOLIO), Err(OpenError::NotAFile { .. })));
    let error = Device::image(&folder.path().join("no/such/folder"), FOLIO).unwrap_err();
    assert!(matches!(&error, OpenError::Os { source, .. } if source.kind() == std::io::ErrorKind::NotFound), "{error}");
}

/// A frontend gets this file: it must not be able to make an access of ours a SIGBUS.
#[test]
fn a_memory_file_keeps_its_size() {
    let device = device();
    for bytes in [0, SIZE + PAGE] {
        assert_eq!(rustix::fs::ftruncate(device.fd(), bytes), Err(rustix::io::Errno::PERM), "{bytes}");
    }
    assert_eq!(device.discard(pages(0, 4)), Ok(true), "holes can still be punched");
}

#[test]
fn an_image_takes_its_room_at_once_if_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let sparse = Device::image(&path, 4 * FOLIO).unwrap().room().unwrap().unwrap();
    assert_eq!(sparse.missing, 4 * FOLIO);
    let full = Device::image_with(&path, 4 * FOLIO, ImageSpace::Preallocated).unwrap().room().unwrap().unwrap();
    assert_eq!(full.missing, 0);
    assert_eq!(device().room().unwrap(), None);
}

#[test]
fn a_link_leads_to_a_regular_file_or_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let link = |name: &str, target: &Path| std::os::unix::fs::symlink(target, at(name)).unwrap();
    link("dangling", Path::new("nothing"));
    link("loop", Path::new("loop"));
    link("folder", folder.path());
    link("device", Path::new("/dev/null"));
    for (name, found) in [
        ("dangling", "can't be followed (No such file"),
        ("loop", "can't be followed (Too many levels"),
        ("folder", "no regular file"),
        ("device", "no regular file"),
    ] {
        let error = Device::image(&at(name), FOLIO).unwrap_err();
        assert!(matches!(error, OpenError::Link { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains(found) && error.to_string().contains(name), "{name}: {error}");
    }
    assert!(!at("nothing").exists(), "nothing is made behind a link");
    drop(Device::image(&at("image"), FOLIO).unwrap());
    link("good", Path::new("image"));
    Device::image(&at("good"), FOLIO).unwrap().write(0, b"followed").unwrap();
    assert_eq!(&std::fs::read(at("image")).unwrap()[..8], b"followed");
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: a file of another user takes root to make");
        return;
    }
    std::os::unix::fs::chown(at("image"), Some(12_345), None).unwrap();
    let error = Device::image(&at("good"), FOLIO).unwrap_err().to_string();
    assert!(error.contains("belongs to user 12345"), "{error}");
}

#[test]
fn after_a_failed_sync_none_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::image(&folder.path().join("image"), FOLIO).unwrap();
    device.sync().unwrap();
    assert!(device.write_back(|| Err(rustix::io::Errno::IO)).is_err());
    let error = device.sync().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    assert!(device.sync_pages(pages(0, 1)).is_err());
}

/// A device of a pool starts with zeros, also where the one before it wrote beyond what the pool
/// keeps; and none gets memory that another one can still write to.
#[test]
fn a_pooled_device_is_new_to_its_user() {
    let pool = DevicePool::default();
    let bytes = POOLED_BYTES + 2 * FOLIO;
    let places = [0, 5 * PAGE + 8, POOLED_BYTES - 8, POOLED_BYTES, bytes - 8];
    let read = |device: &Device, at: u64| device.load_u64(at).unwrap();
    let first = pool.memory(bytes).unwrap();
    let address = first.base;
    places.into_iter().for_each(|at| first.store_u64(at, at + 1).unwrap());
    first.poison().poison(PageRange::new(0, 1));
    let other = pool.memory(bytes).unwrap();
    assert_ne!(other.base, address, "the first is in use");
    drop(first);
    let second = pool.memory(bytes).unwrap();
    assert_eq!(second.base, address, "the memory is used again");
    assert_eq!(places.map(|at| read(&second, at)), [0; 5]);
    // As many blocks as before, but others: a hole was punched, and another page written.
    second.discard(PageRange::new(0, 1)).unwrap();
    second.store_u64(9 * PAGE, 9).unwrap();
    drop(second);
    let second = pool.memory(bytes).unwrap();
    assert_eq!((second.base, read(&second, 9 * PAGE)), (address, 0));
    // More than the pool keeps.
    second.fill(PageRange::new(0, second.pages()), b'x').unwrap();
    drop(second);
    let second = pool.memory(bytes).unwrap();
    assert_eq!(second.mapping.blocks(), Some(POOLED_BYTES / 512));
    assert_eq!(places.map(|at| read(&second, at)), [0; 5]);
    // The same memory once more, and once more: it is in use until the last of them is gone.
    let again = second.map_again().unwrap();
    drop(second);
    let once_more = again.map_again().unwrap();
    drop(again);
    let third = pool.memory(bytes).unwrap();
    once_more.store_u64(0, 7).unwrap();
    assert_eq!(read(&third, 0), 0);
    drop((once_more, third, other));
    // Of another size.
    let small = pool.memory(FOLIO).unwrap();
    assert_eq!((small.bytes(), read(&small, 0)), (FOLIO, 0));
    assert_eq!(pool.0.lock().len(), 1, "memory of other sizes is given back");
}
