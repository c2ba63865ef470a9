//! A memory file against a vector of bytes, and pages that a holder keeps.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

use emulator::sync::Arc;
use emulator::sync::atomic::AtomicU64;
use proptest::prelude::*;

use super::*;
use crate::base::atomic_op::AtomicOp;

/// The longest offset of a call: somewhat more than five pages.
const REACH: u64 = 5 * BLOCK + 100;

#[derive(Clone, Copy, Debug)]
enum Call {
    Write(u64, u64, u8),
    SetSize(u64),
    Punch(u64, u64),
    Allocate(u64, u64, bool),
    /// A store through a mapping, which may reach behind the end in its page.
    Store(u64, u64, u8),
}

fn call() -> impl Strategy<Value = Call> {
    let (at, len) = (0..REACH, 1..2 * BLOCK);
    prop_oneof![
        (at.clone(), len.clone(), any::<u8>()).prop_map(|(at, len, byte)| Call::Write(at, len, byte)),
        (0..REACH + BLOCK).prop_map(Call::SetSize),
        (at.clone(), len.clone()).prop_map(|(at, len)| Call::Punch(at, at + len)),
        (at.clone(), len.clone(), any::<bool>()).prop_map(|(at, len, keep)| Call::Allocate(at, len, keep)),
        (at, len, any::<u8>()).prop_map(|(at, len, byte)| Call::Store(at, len, byte)),
    ]
}

fn file() -> MemoryFile {
    MemoryFile {
        kind: MemoryFileKind::Shmem,
        map: Mutex::default(),
        resizing: Mutex::default(),
        of_all: Arc::new(AtomicU64::new(0)),
    }
}

fn bytes_of(file: &MemoryFile) -> Vec<u8> {
    let mut bytes = vec![0xee; (REACH + 4 * BLOCK) as usize];
    let read = file.read(0, &mut bytes).unwrap();
    bytes.truncate(read);
    bytes
}

proptest! {
    #[test]
    fn a_file_is_a_vector_of_bytes(calls in prop::collection::vec(call(), 1..40)) {
        let (file, mut model) = (file(), Vec::<u8>::new());
        for call in calls {
            match call {
                Call::Write(at, len, byte) => {
                    prop_assert_eq!(file.write(at, &vec![byte; len as usize]), Ok(len as usize));
                    let (at, end) = (at as usize, (at + len) as usize);
                    model.resize(model.len().max(end), 0);
                    model[at..end].fill(byte);
                }
                Call::SetSize(size) => {
                    file.set_size(size).unwrap();
                    model.resize(size as usize, 0);
                }
                Call::Punch(at, end) => {
                    file.punch(at, end).unwrap();
                    let size = model.len();
                    model[size.min(at as usize)..size.min(end as usize)].fill(0);
                }
                Call::Allocate(at, len, keep_size) => {
                    file.allocate(at, len, keep_size).unwrap();
                    if !keep_size {
                        model.resize(model.len().max((at + len) as usize), 0);
                    }
                }
                Call::Store(at, len, byte) => {
                    let inside = at + len <= (model.len() as u64).next_multiple_of(BLOCK);
                    let pages = file.fault(at, len);
                    prop_assert_eq!(pages.as_ref().err().copied(), (!inside).then_some(Errno::SIGBUS));
                    if let Ok(pages) = pages {
                        pages.write(0, &vec![byte; len as usize]).unwrap();
                        let size = model.len();
                        model[size.min(at as usize)..size.min((at + len) as usize)].fill(byte);
                    }
                }
            }
            prop_assert_eq!(file.size(), model.len() as u64);
            prop_assert!(bytes_of(&file) == model, "the bytes differ after {call:?}");
            let counted = file.of_all.load(Ordering::Relaxed);
            prop_assert_eq!(counted, file.pages() * BLOCK, "only the file's own pages are there");
        }
    }
}

#[test]
fn a_holder_keeps_pages_that_the_file_loses_and_never_reaches_later_ones() {
    let file = file();
    file.write(0, &[1; 3 * BLOCK as usize]).unwrap();
    let held = file.fault(BLOCK - 8, 16).unwrap();
    file.set_size(0).unwrap();
    file.set_size(3 * BLOCK).unwrap();
    assert_eq!((file.pages(), file.of_all.load(Ordering::Relaxed)), (0, 2 * BLOCK), "held pages count");
    held.write(0, &[2; 16]).unwrap();
    assert_eq!(bytes_of(&file), vec![0; 3 * BLOCK as usize]);
    let mut bytes = [0; 16];
    held.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [2; 16]);
    assert_eq!(held.read(1, &mut [0; 2 * BLOCK as usize]), Err(Errno::EFAULT));
    assert_eq!(held.atomic(8, AtomicOp::FetchAdd(1)), Ok(u64::from_le_bytes([2; 8])));
    assert_eq!(held.atomic(4, AtomicOp::FetchAdd(1)), Err(Errno::EINVAL));
    drop(held);
    assert_eq!(file.of_all.load(Ordering::Relaxed), 0);
}

#[test]
fn no_more_pages_than_the_machine_has_room_for() {
    let file = file();
    assert_eq!(file.allocate(0, MEMORY_FILES_MAX + 1, false), Err(Errno::ENOSPC));
    assert_eq!(file.allocate(0, FILE_MAX, false), Err(Errno::ENOSPC), "no list of all its pages is made");
    assert_eq!((file.size(), file.pages()), (0, 0), "a refused call changes nothing");
    file.of_all.store(MEMORY_FILES_MAX - BLOCK, Ordering::Relaxed);
    assert_eq!(file.write(0, &[1; BLOCK as usize + 1]), Err(Errno::ENOSPC));
    assert_eq!(file.write(FILE_MAX, &[1]), Err(Errno::EFBIG));
    assert_eq!((file.size(), file.pages()), (0, 0));
    file.set_size(2 * BLOCK).unwrap();
    assert_eq!(file.fault(0, 2 * BLOCK).err(), Some(Errno::SIGBUS));
    assert!(file.fault(BLOCK, BLOCK).is_ok());
}
