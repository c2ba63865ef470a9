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

mod moved_files {
    use super::super::*;

    const BLOCK: u64 = fs_sim::BLOCK;
    const FILE: u64 = 0;
    const OTHER: u64 = 1;
    const COLLAPSE: BlockMove = BlockMove::Collapse { at: (FILE, 2), blocks: 3 };

    /// Two moved files of 8 blocks.
    fn payloads() -> Payloads {
        Payloads::new(2, 8 * BLOCK)
    }

    /// A line that is written now at a block of a file.
    fn written(payloads: &Payloads, (file, block): (u64, u64)) -> Vec<u8> {
        let mut line = vec![0; 64];
        payloads.fill(&mut line, PayloadFile::Moved(file), block * BLOCK + 128, 3, 5);
        line
    }

    fn is_found_at(payloads: &Payloads, line: &[u8], (file, block): (u64, u64)) -> bool {
        payloads.check(line, PayloadFile::Moved(file), block * BLOCK + 128).is_ok()
    }

    fn make(payloads: &Payloads, moved: BlockMove) {
        let in_flight = payloads.moves.begin(moved);
        payloads.moves.end(in_flight, true);
    }

    #[test]
    fn a_word_is_at_home_in_its_place_alone_until_a_move_brings_it_elsewhere() {
        let payloads = payloads();
        let line = written(&payloads, (FILE, 6));
        assert!(is_found_at(&payloads, &line, (FILE, 6)));
        assert!(!is_found_at(&payloads, &line, (FILE, 3)) && !is_found_at(&payloads, &line, (OTHER, 6)));
        assert!(payloads.check(&line, PayloadFile::Moved(FILE), 6 * BLOCK).is_err(), "another byte of the block");
        make(&payloads, COLLAPSE);
        assert!(is_found_at(&payloads, &line, (FILE, 3)));
        assert!(!is_found_at(&payloads, &line, (FILE, 2)) && !is_found_at(&payloads, &line, (FILE, 9)));
    }

    /// The write of a NIC whose region a collapse has left behind.
    #[test]
    fn a_word_written_after_a_move_is_not_explained_by_it() {
        let payloads = payloads();
        make(&payloads, COLLAPSE);
        let line = written(&payloads, (FILE, 6));
        let found = payloads.check(&line, PayloadFile::Moved(FILE), 3 * BLOCK + 128).expect_err("a stale write");
        assert_eq!(
            found.to_string(),
            "moved file 0 byte 12416: bytes that actor 3 wrote for moved file 0 byte 24704, after move 1; no move since \
             then brings them here"
        );
        make(&payloads, COLLAPSE);
        assert!(is_found_at(&payloads, &line, (FILE, 3)), "the next collapse explains it");
    }

    #[test]
    fn each_kind_of_move_brings_blocks_where_it_says() {
        let inserted = payloads();
        let line = written(&inserted, (FILE, 2));
        make(&inserted, BlockMove::Insert { at: (FILE, 1), blocks: 2 });
        assert!(is_found_at(&inserted, &line, (FILE, 4)) && !is_found_at(&inserted, &line, (FILE, 3)));

        let cloned = payloads();
        let line = written(&cloned, (FILE, 2));
        make(&cloned, BlockMove::Clone { from: (FILE, 1), to: (OTHER, 5), blocks: 2 });
        assert!(is_found_at(&cloned, &line, (OTHER, 6)) && is_found_at(&cloned, &line, (FILE, 2)));
        assert!(!is_found_at(&cloned, &line, (OTHER, 7)));

        let exchanged = payloads();
        let lines = [written(&exchanged, (FILE, 2)), written(&exchanged, (OTHER, 4))];
        make(&exchanged, BlockMove::Exchange { a: (FILE, 2), b: (OTHER, 4), blocks: 1 });
        assert!(is_found_at(&exchanged, &lines[0], (OTHER, 4)) && is_found_at(&exchanged, &lines[1], (FILE, 2)));
        // One move after the other.
        make(&exchanged, BlockMove::Insert { at: (OTHER, 0), blocks: 1 });
        assert!(is_found_at(&exchanged, &lines[0], (OTHER, 5)) && !is_found_at(&exchanged, &lines[0], (FILE, 3)));
    }

    #[test]
    fn a_move_counts_from_its_beginning_and_not_if_it_failed() {
        let payloads = payloads();
        let line = written(&payloads, (FILE, 6));
        let in_flight = payloads.moves.begin(COLLAPSE);
        assert!(is_found_at(&payloads, &line, (FILE, 3)), "it may have happened");
        payloads.moves.end(in_flight, false);
        assert!(!is_found_at(&payloads, &line, (FILE, 3)), "it has not");
    }

    /// The calls say when moves began and ended, not in which order they happened.
    #[test]
    fn moves_in_flight_together_explain_in_every_order() {
        let clone = |from, to| BlockMove::Clone { from, to, blocks: 1 };
        let (first, second) = (clone((FILE, 0), (FILE, 4)), clone((FILE, 4), (OTHER, 7)));
        let payloads = payloads();
        let line = written(&payloads, (FILE, 0));
        let in_flight = payloads.moves.begin(first);
        make(&payloads, second);
        assert!(is_found_at(&payloads, &line, (OTHER, 7)), "the first may have come first");
        payloads.moves.end(in_flight, true);
        assert!(is_found_at(&payloads, &line, (OTHER, 7)), "and still may have");
        let line = written(&payloads, (FILE, 0));
        make(&payloads, second);
        make(&payloads, first);
        assert!(!is_found_at(&payloads, &line, (OTHER, 7)), "one came after the other");
    }

    #[test]
    fn blocks_beyond_the_record_may_be_any_and_nothing_panics() {
        let payloads = payloads();
        let line = written(&payloads, (FILE, 1_000));
        assert!(is_found_at(&payloads, &line, (FILE, 17)));
        make(&payloads, BlockMove::Collapse { at: (FILE, 0), blocks: 40 });
        assert!(is_found_at(&payloads, &line, (FILE, 3)));
        make(&payloads, BlockMove::Insert { at: (OTHER, u64::MAX), blocks: u64::MAX });
        make(&payloads, BlockMove::Collapse { at: (OTHER, 900), blocks: 1 });
    }

    #[test]
    fn words_of_moved_files_and_of_others_are_told_apart() {
        let payloads = payloads();
        let line = written(&payloads, (OTHER, 2));
        let found = payloads.check(&line, PayloadFile::Inode(12), 128).expect_err("a moved file's word");
        let said = "bytes that actor 3 wrote for moved file 1 byte 8320, after move 0";
        assert_eq!(found.to_string(), format!("inode 12 byte 128: {said}"));
        let mut line = vec![0; 64];
        payloads.fill(&mut line, PayloadFile::Inode(12), 128, 7, 1);
        let found = payloads.check(&line, PayloadFile::Moved(1), 128).expect_err("another file's word");
        assert_eq!(found.to_string(), "moved file 1 byte 128: bytes that actor 7 wrote for inode 12 byte 128");
        let mut swapped = written(&payloads, (FILE, 1));
        let sequence = payloads.sequence_word(PayloadFile::Moved(FILE), BLOCK + 128, 9);
        swapped[56..].copy_from_slice(&sequence.to_ne_bytes());
        assert!(is_found_at(&payloads, &swapped, (FILE, 1)), "swapped in");
        assert!(payloads.check(&swapped[56..], PayloadFile::Moved(FILE), BLOCK + 64 + 56).is_err(), "another line");
    }
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
        let payloads = Payloads::new(0, 0);
        for (name, len) in [("a", 70_000_u64), ("b", 4096), ("empty", 0)] {
            let fd = task.open(name, OpenFlags::create()).unwrap();
            let mut bytes = vec![0; (len / 8 * 8) as usize];
            fill(&mut bytes, task.stat(fd).unwrap().ino.0, 0, 1, 0);
            task.write(fd, 0, &bytes).unwrap();
            task.close(fd).unwrap();
            files.push(RaceFile { name: name.to_owned(), moved: None });
        }
        let sound = read_back(&task, &payloads, &files);
        assert_eq!((sound.files, sound.bytes, sound.foreign), (3, 70_000 + 4096, 0), "{sound:?}");
        assert!(sound.unaccounted.is_empty(), "{sound:?}");

        let fd = task.open("a", OpenFlags::create()).unwrap();
        let mut wrong = vec![0; 8];
        fill(&mut wrong, task.stat(fd).unwrap().ino.0, 4096, 6, 0);
        task.write(fd, 4096 + 64, &wrong).unwrap();
        let ino = task.stat(fd).unwrap().ino.0;
        task.close(fd).unwrap();
        let found = read_back(&task, &payloads, &files);
        assert_eq!(found.foreign, 1);
        assert_eq!(
            found.foreign_examples,
            [format!("a, inode {ino} byte 4160: bytes that actor 6 wrote for inode {ino} byte 4096")]
        );
        assert!(
            read_back(&task, &payloads, &files[..1]).unaccounted.len() == 2,
            "two files without a name to look under"
        );
        task.exit();
    }
}
