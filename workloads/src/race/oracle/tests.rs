//! The oracle: what it accepts, and what it must find.

use super::payload::*;

const INO: u64 = 12;

fn written(ino: u64, offset: u64, len: usize, writer: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, ino, offset, writer, 5);
    bytes
}

fn number_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn what_an_entitled_writer_wrote_is_fine_at_its_place() {
    for offset in [0, 8, 56, 64, 4096, 4096 - 8, FILE_BYTES_MAX - 512] {
        assert_eq!(check(&written(INO, offset, 512, 3), INO, offset), Ok(()), "at {offset}");
    }
}

#[test]
fn zeros_are_fine_anywhere() {
    assert_eq!(check(&[0; 4096], INO, 8), Ok(()));
    let mut half = written(INO, 0, 128, 1);
    half[40..104].fill(0);
    assert_eq!(check(&half, INO, 0), Ok(()));
}

#[test]
fn a_line_torn_between_two_entitled_writers_is_fine() {
    let (a, b) = (written(INO, 128, 64, 1), written(INO, 128, 64, 2));
    for tear in (0..=64).step_by(8) {
        let torn = [&a[..tear], &b[tear..]].concat();
        assert_eq!(check(&torn, INO, 128), Ok(()), "torn at {tear}");
    }
}

#[test]
fn another_files_bytes_are_found_with_their_writer() {
    let foreign = ForeignWord { ino: INO, offset: 64, found: WordOrigin::Line { ino: 13, offset: 64, writer: 9 } };
    assert_eq!(check(&written(13, 64, 64, 9), INO, 64), Err(foreign));
    assert_eq!(foreign.to_string(), "inode 12 byte 64: bytes that actor 9 wrote for inode 13 byte 64");
}

/// The most important mutation: the right file, and an offset that is wrong by the smallest step.
#[test]
fn bytes_of_another_offset_are_found_however_near() {
    for wrong in [8, 64, 4096] {
        let found = check(&written(INO, 4096 + wrong, 64, 9), INO, 4096);
        let line = WordOrigin::Line { ino: INO, offset: 4096 + wrong, writer: 9 };
        assert_eq!(found, Err(ForeignWord { ino: INO, offset: 4096, found: line }), "wrong by {wrong}");
    }
}

#[test]
fn one_foreign_word_among_many_is_found_where_it_is() {
    let mut bytes = written(INO, 0, 4096, 1);
    for word in (0..4096).step_by(8).filter(|at| at % 64 != 56) {
        let sound = number_at(&bytes, word);
        bytes[word..word + 8].copy_from_slice(&written(INO + 1, word as u64, 8, 2));
        let found = check(&bytes, INO, 0).expect_err("a foreign word");
        assert_eq!(found.offset, word as u64);
        bytes[word..word + 8].copy_from_slice(&sound.to_ne_bytes());
    }
}

#[test]
fn bytes_that_are_no_payload_are_found() {
    let found = check(&0x0102_0304_0506_0708_u64.to_ne_bytes(), INO, 0).expect_err("no payload");
    assert_eq!(found.found, WordOrigin::Unknown(0x0102_0304_0506_0708));
}

#[test]
fn atomics_reach_the_sequence_word_only_and_stay_fine() {
    let mut bytes = written(INO, 64, 64, 1);
    let at = (sequence_word_at(70) - 64) as usize;
    assert_eq!(at, 56);
    for _ in 0..3 {
        let added = number_at(&bytes, at).wrapping_add(1);
        bytes[at..].copy_from_slice(&added.to_ne_bytes());
        assert_eq!(check(&bytes, INO, 64), Ok(()));
    }
    bytes[at..].copy_from_slice(&sequence_word(INO, 64, 77).to_ne_bytes());
    assert_eq!(check(&bytes, INO, 64), Ok(()), "swapped in");
    bytes.fill(0);
    bytes[at..].copy_from_slice(&1_u64.to_ne_bytes());
    assert_eq!(check(&bytes, INO, 64), Ok(()), "added to zeros");
}

#[test]
fn a_sequence_word_of_another_line_is_found() {
    for (ino, offset) in [(INO, 128), (INO + 1, 64), (INO, 0)] {
        let mut bytes = written(INO, 64, 64, 1);
        bytes[56..].copy_from_slice(&sequence_word(ino, offset, 1).to_ne_bytes());
        let found = check(&bytes, INO, 64).expect_err("another line's");
        assert_eq!(found.offset, 64 + 56);
    }
}

#[test]
fn a_tail_of_less_than_a_word_is_not_judged() {
    let mut bytes = written(INO, 0, 16, 1);
    bytes.extend([1, 2, 3]);
    assert_eq!(check(&bytes, INO, 0), Ok(()));
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
        let mut names = Vec::new();
        for (name, len) in [("a", 70_000_u64), ("b", 4096), ("empty", 0)] {
            let fd = task.open(name, OpenFlags::create()).unwrap();
            let mut bytes = vec![0; (len / 8 * 8) as usize];
            fill(&mut bytes, task.stat(fd).unwrap().ino.0, 0, 1, 0);
            task.write(fd, 0, &bytes).unwrap();
            task.close(fd).unwrap();
            names.push(name.to_owned());
        }
        let sound = read_back(&task, &names);
        assert_eq!((sound.files, sound.bytes, sound.foreign), (3, 70_000 + 4096, 0), "{sound:?}");
        assert!(sound.unaccounted.is_empty(), "{sound:?}");

        let fd = task.open("a", OpenFlags::create()).unwrap();
        let mut wrong = vec![0; 8];
        fill(&mut wrong, task.stat(fd).unwrap().ino.0, 4096, 6, 0);
        task.write(fd, 4096 + 64, &wrong).unwrap();
        let ino = task.stat(fd).unwrap().ino.0;
        task.close(fd).unwrap();
        let found = read_back(&task, &names);
        assert_eq!(found.foreign, 1);
        assert_eq!(
            found.foreign_examples,
            [format!("a, inode {ino} byte 4160: bytes that actor 6 wrote for inode {ino} byte 4096")]
        );
        assert!(read_back(&task, &names[..1]).unaccounted.len() == 2, "two files without a name to look under");
        task.exit();
    }
}
