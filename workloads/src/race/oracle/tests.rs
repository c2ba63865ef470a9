//! The oracle: what it accepts, and what it must find.

use super::payload::*;

const INO: u64 = 12;
const FILE: PayloadFile = PayloadFile::Inode(INO);
const OTHER: PayloadFile = PayloadFile::Inode(INO + 1);

fn written(file: PayloadFile, offset: u64, len: usize, writer: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, file, offset, writer, 5);
    bytes
}

fn number_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn what_an_entitled_writer_wrote_is_fine_at_its_place() {
    for offset in [0, 8, 56, 64, 4096, 4096 - 8, FILE_BYTES_MAX - 512] {
        assert_eq!(check(&written(FILE, offset, 512, 3), FILE, offset), Ok(()), "at {offset}");
    }
}

#[test]
fn zeros_are_fine_anywhere() {
    assert_eq!(check(&[0; 4096], FILE, 8), Ok(()));
    let mut half = written(FILE, 0, 128, 1);
    half[40..104].fill(0);
    assert_eq!(check(&half, FILE, 0), Ok(()));
}

#[test]
fn a_line_torn_between_two_entitled_writers_is_fine() {
    let (a, b) = (written(FILE, 128, 64, 1), written(FILE, 128, 64, 2));
    for tear in (0..=64).step_by(8) {
        let torn = [&a[..tear], &b[tear..]].concat();
        assert_eq!(check(&torn, FILE, 128), Ok(()), "torn at {tear}");
    }
}

#[test]
fn another_files_bytes_are_found_with_their_writer() {
    let foreign = ForeignWord { file: FILE, offset: 64, found: WordOrigin::Line { ino: 13, offset: 64, writer: 9 } };
    assert_eq!(check(&written(OTHER, 64, 64, 9), FILE, 64), Err(foreign));
    assert_eq!(foreign.to_string(), "inode 12 byte 64: bytes that actor 9 wrote for inode 13 byte 64");
}

/// The most important mutation: the right file, and an offset that is wrong by the smallest step.
#[test]
fn bytes_of_another_offset_are_found_however_near() {
    for wrong in [8, 64, 4096] {
        let found = check(&written(FILE, 4096 + wrong, 64, 9), FILE, 4096);
        let line = WordOrigin::Line { ino: INO, offset: 4096 + wrong, writer: 9 };
        assert_eq!(found, Err(ForeignWord { file: FILE, offset: 4096, found: line }), "wrong by {wrong}");
    }
}

#[test]
fn one_foreign_word_among_many_is_found_where_it_is() {
    let mut bytes = written(FILE, 0, 4096, 1);
    for word in (0..4096).step_by(8).filter(|at| at % 64 != 56) {
        let sound = number_at(&bytes, word);
        bytes[word..word + 8].copy_from_slice(&written(OTHER, word as u64, 8, 2));
        let found = check(&bytes, FILE, 0).expect_err("a foreign word");
        assert_eq!(found.offset, word as u64);
        bytes[word..word + 8].copy_from_slice(&sound.to_ne_bytes());
    }
}

#[test]
fn bytes_that_are_no_payload_are_found() {
    let found = check(&0x0102_0304_0506_0708_u64.to_ne_bytes(), FILE, 0).expect_err("no payload");
    assert_eq!(found.found, WordOrigin::Unknown(0x0102_0304_0506_0708));
}

#[test]
fn atomics_reach_the_sequence_word_only_and_stay_fine() {
    let mut bytes = written(FILE, 64, 64, 1);
    let at = (sequence_word_at(70) - 64) as usize;
    assert_eq!(at, 56);
    for _ in 0..3 {
        let added = number_at(&bytes, at).wrapping_add(1);
        bytes[at..].copy_from_slice(&added.to_ne_bytes());
        assert_eq!(check(&bytes, FILE, 64), Ok(()));
    }
    bytes[at..].copy_from_slice(&sequence_word(FILE, 64, 77).to_ne_bytes());
    assert_eq!(check(&bytes, FILE, 64), Ok(()), "swapped in");
    bytes.fill(0);
    bytes[at..].copy_from_slice(&1_u64.to_ne_bytes());
    assert_eq!(check(&bytes, FILE, 64), Ok(()), "added to zeros");
}

#[test]
fn a_sequence_word_of_another_line_is_found() {
    for (file, offset) in [(FILE, 128), (OTHER, 64), (FILE, 0)] {
        let mut bytes = written(FILE, 64, 64, 1);
        bytes[56..].copy_from_slice(&sequence_word(file, offset, 1).to_ne_bytes());
        let found = check(&bytes, FILE, 64).expect_err("another line's");
        assert_eq!(found.offset, 64 + 56);
    }
}

#[test]
fn a_tail_of_less_than_a_word_is_not_judged() {
    let mut bytes = written(FILE, 0, 16, 1);
    bytes.extend([1, 2, 3]);
    assert_eq!(check(&bytes, FILE, 0), Ok(()));
}

/// Blocks move as a whole: a word of the moved files belongs to any block of any of them, at its
/// offset in the block, and to no other file.
#[test]
fn words_of_moved_files_belong_to_their_offset_in_any_block_and_to_no_other_file() {
    let bytes = written(PayloadFile::Moved, 4096 + 64, 128, 3);
    for block in [0, 1, 17] {
        assert_eq!(check(&bytes, PayloadFile::Moved, block * 4096 + 64), Ok(()), "moved to block {block}");
    }
    assert!(check(&bytes, PayloadFile::Moved, 128).is_err(), "another offset in the block");
    let found = check(&bytes, FILE, 4096 + 64).expect_err("a word of the moved files in another file");
    assert_eq!(
        found.to_string(),
        "inode 12 byte 4160: bytes that actor 3 wrote for byte 64 of a block of the moved files"
    );
    let found = check(&written(FILE, 64, 64, 3), PayloadFile::Moved, 64).expect_err("another file's word");
    assert_eq!(found.to_string(), "a moved file, byte 64: bytes that actor 3 wrote for inode 12 byte 64");
    let mut swapped = bytes;
    let sequence = sequence_word(PayloadFile::Moved, 64, 9);
    swapped[56..64].copy_from_slice(&sequence.to_ne_bytes());
    assert_eq!(check(&swapped, PayloadFile::Moved, 8192 + 64), Ok(()), "swapped in");
    assert!(check(&swapped, FILE, 64).is_err());
}

mod against_a_real_volume {
    use super::super::*;
    use emulator::World;
    use emulator::device::Device;
    use emulator::sync::Arc;
    use fs_sim::design::presets;
    use fs_sim::syscalls::open::OpenFlags;
    use fs_sim::{Kernel, KernelConfig, Task};

    fn task() -> Task {
        let device = Device::memory(4 << 20).unwrap();
        let axes = presets()[0].axes;
        Kernel::new(Arc::new(World::manual(1)), device, KernelConfig::new(axes)).unwrap().spawn()
    }

    #[test]
    fn reading_back_accounts_for_every_byte_and_finds_what_does_not_belong() {
        let task = task();
        let mut files = Vec::new();
        for (name, len) in [("a", 70_000_u64), ("b", 4096), ("empty", 0)] {
            let fd = task.open(name, OpenFlags::create()).unwrap();
            let mut bytes = vec![0; (len / 8 * 8) as usize];
            fill(&mut bytes, PayloadFile::Inode(task.stat(fd).unwrap().ino.0), 0, 1, 0);
            task.write(fd, 0, &bytes).unwrap();
            task.close(fd).unwrap();
            files.push(RaceFile { name: name.to_owned(), moved: false });
        }
        let sound = read_back(&task, &files);
        assert_eq!((sound.files, sound.bytes, sound.foreign), (3, 70_000 + 4096, 0), "{sound:?}");
        assert!(sound.unaccounted.is_empty(), "{sound:?}");

        let fd = task.open("a", OpenFlags::create()).unwrap();
        let mut wrong = vec![0; 8];
        fill(&mut wrong, PayloadFile::Inode(task.stat(fd).unwrap().ino.0), 4096, 6, 0);
        task.write(fd, 4096 + 64, &wrong).unwrap();
        let ino = task.stat(fd).unwrap().ino.0;
        task.close(fd).unwrap();
        let found = read_back(&task, &files);
        assert_eq!(found.foreign, 1);
        assert_eq!(
            found.foreign_examples,
            [format!("a, inode {ino} byte 4160: bytes that actor 6 wrote for inode {ino} byte 4096")]
        );
        assert!(read_back(&task, &files[..1]).unaccounted.len() == 2, "two files without a name to look under");
        task.exit();
    }
}
