//! Tests of the power-cut model against plain byte vectors, and under concurrent stores and
//! flushes.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

use super::*;
use crate::device::FOLIO;
use crate::runtime::sync::atomic::{AtomicU64 as Counter, Ordering};
use crate::runtime::sync::thread;
use proptest::prelude::*;

const SIZE: usize = FOLIO as usize;
const LINE_BYTES: usize = LINE as usize;

fn contents(device: &Device) -> Vec<u8> {
    let mut all = vec![0; device.bytes() as usize];
    device.read(0, &mut all).unwrap();
    all
}

fn used(fd: BorrowedFd<'_>) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_blocks as u64 * 512
}

#[derive(Clone, Debug)]
enum Op {
    Write { at: usize, len: usize, byte: u8 },
    Flush { at: usize, len: usize },
    Discard { page: u64, pages: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    // Mostly in few pages, so that flushes and writes meet.
    let place = || prop_oneof![4 => 0..32 * 1024usize, 1 => 0..SIZE - 20_000];
    prop_oneof![
        4 => (place(), 1..9000usize, any::<u8>()).prop_map(|(at, len, byte)| Op::Write { at, len, byte }),
        2 => (place(), 0..20_000usize).prop_map(|(at, len)| Op::Flush { at, len }),
        1 => (0..12u64, 0..8u64).prop_map(|(page, pages)| Op::Discard { page, pages }),
    ]
}

/// The model: two byte vectors.
struct Model {
    live: Vec<u8>,
    durable: Vec<u8>,
}

impl Model {
    fn apply(&mut self, op: &Op, device: &Device, durable: &DurableImage) {
        match *op {
            Op::Write { at, len, byte } => {
                self.live[at..at + len].fill(byte);
                device.write(at as u64, &vec![byte; len]).unwrap();
            }
            Op::Flush { at, len } => {
                let flushed = durable.flush(device, Some(at as u64..(at + len) as u64)).unwrap();
                assert_eq!(flushed.lines_unsettled, 0, "no other thread stores meanwhile");
                if len > 0 {
                    let page = PAGE as usize;
                    let pages = at / page * page..(at + len).next_multiple_of(page);
                    self.durable[pages.clone()].copy_from_slice(&self.live[pages]);
                }
            }
            Op::Discard { page, pages } => {
                self.live[(page * PAGE) as usize..((page + pages) * PAGE) as usize].fill(0);
                device.discard(PageRange::new(page, pages)).unwrap();
            }
        }
    }

    /// The lines that differ.
    fn unflushed(&self) -> Vec<usize> {
        let both = self.live.chunks(LINE_BYTES).zip(self.durable.chunks(LINE_BYTES));
        both.enumerate().filter(|(_, (live, durable))| live != durable).map(|(line, _)| line).collect()
    }
}

/// Runs `ops`, cuts the power, and checks every line of what comes back; returns it.
fn run(device: &Device, ops: &[Op], seed: u64) -> Vec<u8> {
    let durable = DurableImage::new(device).unwrap();
    let mut model = Model { live: contents(device), durable: contents(device) };
    ops.iter().for_each(|op| model.apply(op, device, &durable));
    assert_eq!(contents(&durable.copy), model.durable, "before the cut: what was flushed and nothing else");
    let cut = durable.cut(device, seed).unwrap();
    assert_eq!(contents(device), model.live, "the cut leaves the live image alone");
    durable.restore(device).unwrap();
    let after = contents(device);
    let unflushed = model.unflushed();
    let mut survived = 0;
    for (line, found) in after.chunks(LINE_BYTES).enumerate() {
        let at = line * LINE_BYTES..(line + 1) * LINE_BYTES;
        if unflushed.contains(&line) {
            survived += u64::from(found == &model.live[at.clone()]);
            assert!(found == &model.live[at.clone()] || found == &model.durable[at], "line {line} is neither version");
        } else {
            assert_eq!(found, &model.durable[at], "line {line} was flushed");
        }
    }
    assert_eq!(cut, PowerCut { lines_unflushed: unflushed.len() as u64, lines_survived: survived });
    after
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_cut_keeps_what_was_flushed_and_chooses_for_the_rest(
        ops in proptest::collection::vec(op(), 1..25),
        before in proptest::collection::vec(op(), 0..5),
        seed: u64,
    ) {
        let device = Device::memory(FOLIO).unwrap();
        let mut unused = Model { live: vec![0; SIZE], durable: vec![0; SIZE] };
        let other = DurableImage::new(&device).unwrap();
        before.iter().for_each(|op| unused.apply(op, &device, &other));
        let start = contents(&device);
        let first = run(&device, &ops, seed);

        // The same over an image of a real filesystem, with the same outcome: the seed decides, not
        // the medium.
        let folder = tempfile::tempdir().unwrap();
        let image = Device::image(&folder.path().join("image"), FOLIO).unwrap();
        for (page, bytes) in start.chunks(PAGE as usize).enumerate().filter(|(_, bytes)| bytes.iter().any(|b| *b != 0)) {
            image.write(page as u64 * PAGE, bytes).unwrap();
        }
        prop_assert!(run(&image, &ops, seed) == first, "another outcome over an image");
    }
}

#[test]
fn every_second_line_survives_and_the_seed_says_which() {
    let outcome = |seed, lines: u64| {
        let device = Device::memory(FOLIO).unwrap();
        let durable = DurableImage::new(&device).unwrap();
        device.write(0, &vec![0xee; (lines * LINE) as usize]).unwrap();
        let cut = durable.cut(&device, seed).unwrap();
        assert_eq!(cut.lines_unflushed, lines);
        (cut.lines_survived, contents(&durable.copy))
    };
    let (survived, bytes) = outcome(7, 4096);
    // A fair coin is outside this 10 standard deviations from the mean: not once in 10^23 seeds.
    assert!((1728..2368).contains(&survived), "{survived} of 4096");
    assert_eq!(outcome(7, 4096).1, bytes);
    assert_ne!(outcome(8, 4096).1, bytes);
    // A line's fate does not hang on which others were not flushed.
    assert_eq!(outcome(7, 100).1[..100 * LINE_BYTES], bytes[..100 * LINE_BYTES]);
    // Over seeds, both happen to the very same line.
    let fates: Vec<u64> = (0..64).map(|seed| outcome(seed, 1).0).collect();
    assert!(fates.contains(&0) && fates.contains(&1), "{fates:?}");
}

#[test]
fn holes_stay_holes() {
    let device = Device::memory(1 << 40).unwrap();
    let durable = DurableImage::new(&device).unwrap();
    let far = (1 << 40) - PAGE;
    device.write(far, &[1; 64]).unwrap();
    let all = 0..device.bytes();
    let flushed = durable.flush(&device, Some(all.clone())).unwrap();
    assert!(flushed.bytes_compared <= FOLIO, "{flushed:?}");
    assert_eq!(flushed.bytes_copied, 64);
    assert!(used(durable.fd()) <= FOLIO);

    // Discarded: reading it for the comparison must not take memory again, and the durable page
    // goes too.
    device.discard(PageRange::new(device.pages() - FOLIO / PAGE, FOLIO / PAGE)).unwrap();
    durable.flush(&device, Some(all.clone())).unwrap();
    assert_eq!((used(device.fd()), used(durable.fd())), (0, 0));

    // Written with zeros, it takes memory where it is live only.
    device.zero(PageRange::new(5, 1)).unwrap();
    durable.flush(&device, Some(all)).unwrap();
    assert_eq!(used(durable.fd()), 0);
    device.write(far, &[1; 64]).unwrap();
    durable.restore(&device).unwrap();
    assert_eq!(used(device.fd()), 0);
}

#[test]
fn ranges_outside_are_refused_whole() {
    let device = Device::memory(FOLIO).unwrap();
    let durable = DurableImage::new(&device).unwrap();
    device.write(0, b"new").unwrap();
    for outside in [FOLIO - 1..FOLIO + 1, FOLIO..u64::MAX, u64::MAX - 1..u64::MAX] {
        let refused = durable.flush(&device, [0..64, outside]);
        assert!(matches!(refused, Err(AccessError::OutOfRange { .. })), "{refused:?}");
    }
    assert_eq!(contents(&durable.copy)[..3], [0; 3], "nothing was flushed");
    #[expect(clippy::reversed_empty_ranges, reason = "a caller's mistake must do no harm")]
    let empty = [5..5, 9..3, u64::MAX..0];
    assert_eq!(durable.flush(&device, empty), Ok(FlushStats::default()));
    let larger = Device::memory(2 * FOLIO).unwrap();
    assert!(durable.cut(&larger, 0).is_err());
    assert!(durable.restore(&larger).is_err());
    assert!(durable.flush(&larger, Some(FOLIO..FOLIO + 1)).is_err());
}

#[test]
fn two_mappings_of_one_durable_image_agree() {
    let device = Device::memory(FOLIO).unwrap();
    let made = DurableImage::new(&device).unwrap();
    let other = DurableImage::from_fd(made.fd().try_clone_to_owned().unwrap(), FOLIO).unwrap();
    assert_eq!(other.bytes(), FOLIO);
    device.write(100, b"flushed by the other").unwrap();
    other.flush(&device, Some(0..PAGE)).unwrap();
    assert_eq!(made.cut(&device, 1).unwrap(), PowerCut::default(), "all was flushed");
    device.poison().poison(PageRange::new(0, 1));
    made.restore(&device).unwrap();
    device.poison().clear(PageRange::new(0, 1));
    assert_eq!(&contents(&device)[100..120], b"flushed by the other");
}

/// One thread stores to lines, word by word; two flush. At the end the first flusher has flushed
/// all, and the second one's last flush may have started before: it must not have left an older
/// version behind.
#[test]
fn flushes_at_once_leave_the_newer_version() {
    const LINES: u64 = 24;
    const ROUNDS: u64 = 4000;
    let device = Device::memory(FOLIO).unwrap();
    let durable = DurableImage::new(&device).unwrap();
    let range = 0..LINES * LINE;
    for batch in 0..20 {
        let stored = Counter::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    let line = round % LINES * LINE;
                    device.store_u64(line, batch * ROUNDS + round).unwrap();
                    device.store_u64(line + 56, batch * ROUNDS + round).unwrap();
                    stored.store(round, Ordering::SeqCst);
                }
            });
            scope.spawn(|| {
                while stored.load(Ordering::SeqCst) < ROUNDS {
                    durable.flush(&device, Some(range.clone())).unwrap();
                }
            });
            scope.spawn(|| {
                while stored.load(Ordering::SeqCst) < ROUNDS {
                    durable.flush(&device, Some(range.clone())).unwrap();
                }
                durable.flush(&device, Some(range.clone())).unwrap();
            });
        });
        assert!(contents(&device) == contents(&durable.copy), "batch {batch}: an older version was left behind");
    }
}

/// A line's words are stored in order; a flush that settled must have taken a state that was there:
/// never the later word without the earlier one, and never less than what had been stored when it
/// began.
#[test]
fn a_flushed_line_is_a_state_that_was_there() {
    const ROUNDS: u64 = 100_000;
    let device = Device::memory(FOLIO).unwrap();
    let durable = DurableImage::new(&device).unwrap();
    let stored = Counter::new(0);
    let mut settled = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                device.store_u64(0, round).unwrap();
                device.store_u64(56, round).unwrap();
                stored.store(round, Ordering::SeqCst);
                if round % 64 == 0 {
                    thread::yield_now();
                }
            }
        });
        loop {
            let before = stored.load(Ordering::SeqCst);
            let flushed = durable.flush(&device, Some(0..LINE)).unwrap();
            let (first, last) = (durable.copy.load_u64(0).unwrap(), durable.copy.load_u64(56).unwrap());
            assert!(first >= before && last >= before, "{first}, {last}: older than {before}");
            if flushed.lines_unsettled == 0 {
                settled += 1;
                assert!(first == last || first == last + 1, "{first} with {last} was never there");
            }
            if before == ROUNDS {
                break;
            }
        }
    });
    assert!(settled > 0, "no flush settled");
}
