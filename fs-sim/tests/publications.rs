//! A pinner and the publication of a map, each kept at one step of its protocol while the other
//! moves.
//!
//! `Published::publish` changes the generation, publishes the map and changes the generation again.
//! A pinner reads the generation, draws its read point, reads the map, pins, and compares the
//! generation. Each dialogue here needs one of these steps, and runs in one order only.

mod common;

use common::stops::stops_at;
use common::{Lab, Nic, preset};
use fs_sim::base::numbers::Fd;
use fs_sim::design::{Axes, ChangeRule};
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::{BLOCK, Errno, Task};

/// The smallest device.
const SMALL_DEVICE: u64 = 2 << 20;

/// Any process may pin for long; no change frees pinned blocks.
fn open_gate() -> Axes {
    Axes { stranger_change: ChangeRule::Fail, holder_change: ChangeRule::Fail, ..preset("unsafe") }
}

/// Who pins block 0 of the file, and accesses it through the pin.
#[derive(Clone, Copy, Debug)]
enum Pinner {
    /// A read: a short-term pin.
    Read,
    /// A registration of the block, a DMA read, and the end of the registration.
    Registration,
}

impl Pinner {
    const ALL: [Pinner; 2] = [Pinner::Read, Pinner::Registration];

    /// The first byte of block 0.
    fn looks(self, task: &Task, fd: Fd) -> Result<u8, Errno> {
        let mut byte = [0xee];
        match self {
            Pinner::Read => task.read(fd, 0, &mut byte).map(|_| ())?,
            Pinner::Registration => {
                let (nic_fd, nic) = Nic::open(task);
                let region = nic.pins_for_reading(task, fd, 0..1)?;
                region.dma_read(task.kernel(), 0, &mut byte)?;
                region.dereg(task);
                task.close(nic_fd)?;
            }
        }
        Ok(byte[0])
    }
}

/// The step before the map. A pinner has drawn its read point. Then a block leaves another file,
/// and joins the pinner's file; the pinner reads the new map while the change has not taken its
/// second step. The generation must have changed already: the block's stamp is newer than the read
/// point, so the pinner must draw a new one.
#[test]
fn a_map_is_published_behind_a_step_of_the_generation() {
    for pinner in Pinner::ALL {
        let lab = Lab::on(SMALL_DEVICE, open_gate(), |_| {});
        let [a, b, c] = std::array::from_fn(|_| lab.actor());
        let (f, other) = (a.creates("data"), c.writes_file("other", 1, 9));
        a.ftruncate(f, BLOCK).unwrap();
        let rest = c.creates("rest");
        let free = lab.kernel.usage().free;
        c.fallocate(rest, FallocateMode::Allocate { keep_size: true }, 0, free * BLOCK).unwrap();
        let looking = stops_at("map: read point drawn, map not read", &a, move |a| pinner.looks(a, f));
        // The only free block is the one that has just been freed.
        c.ftruncate(other, 0).unwrap();
        assert_eq!(lab.kernel.usage().free, 1);
        let fb = b.opens("data");
        let writing =
            stops_at("map: map published, generation not changed", &b, move |b| b.write(fb, 0, &[5; BLOCK as usize]));
        assert_eq!(looking.finish(), Ok(5), "{pinner:?}");
        assert_eq!(lab.stale(), 0, "{pinner:?}: {:?}", lab.kernel.findings());
        assert_eq!(writing.finish(), Ok(BLOCK as usize));
        lab.end([&a, &b, &c]);
    }
}

/// The step behind the map. A pinner reads the generation and the old map between the two steps of
/// a change, which then frees and reopens the block. The generation must change once more: else the
/// pinner holds a block that belongs to no file.
#[test]
fn a_map_is_published_before_a_step_of_the_generation() {
    for (pinner, sees) in [(Pinner::Read, Ok(0)), (Pinner::Registration, Err(Errno::EFAULT))] {
        let (lab, [a, b]) = Lab::cast(open_gate());
        let f = a.writes_file("data", 1, 7);
        let fb = b.opens("data");
        let punching = stops_at("map: generation changed, map not published", &b, move |b| {
            b.fallocate(fb, FallocateMode::PunchHole, 0, BLOCK)
        });
        let looking = stops_at("gup: map read, not pinned", &a, move |a| pinner.looks(a, f));
        assert_eq!(punching.finish(), Ok(()));
        assert_eq!(looking.finish(), sees, "{pinner:?}: the block is a hole");
        assert_eq!(lab.stale(), 0, "{pinner:?}: {:?}", lab.kernel.findings());
        lab.end([&a, &b]);
    }
}

/// Two exchanges take a block away and bring it back while a pinner has read the map and not
/// pinned. The map says the same as before, but the pinner's read point is older than the block's
/// stamp: it must draw a new one.
#[test]
fn a_block_that_left_and_came_back_is_pinned_anew() {
    for pinner in Pinner::ALL {
        let (lab, [a, b]) = Lab::cast(open_gate());
        let f = a.writes_file("data", 2, 7);
        let fb = b.opens("data");
        let looking = stops_at("gup: map read, not pinned", &a, move |a| pinner.looks(a, f));
        for _ in 0..2 {
            b.exchange_range(fb, 0, fb, BLOCK, BLOCK).unwrap();
        }
        assert_eq!(b.bytes_of(fb), [7, 8]);
        assert_eq!(looking.finish(), Ok(7), "{pinner:?}");
        assert_eq!(lab.stale(), 0, "{pinner:?}: {:?}", lab.kernel.findings());
        lab.end([&a, &b]);
    }
}

/// A change of another part of the file does not send the pinner back: it keeps the pins that it
/// took before.
#[test]
fn a_change_elsewhere_in_the_file_does_not_undo_a_pin() {
    for pinner in Pinner::ALL {
        let (lab, [a, b]) = Lab::cast(open_gate());
        let f = a.writes_file("data", 3, 7);
        let fb = b.opens("data");
        let retries = lab.kernel.counters.pin_retries.get();
        let looking = stops_at("gup: map read, not pinned", &a, move |a| pinner.looks(a, f));
        b.exchange_range(fb, BLOCK, fb, 2 * BLOCK, BLOCK).unwrap();
        assert_eq!(looking.finish(), Ok(7), "{pinner:?}");
        assert_eq!(lab.kernel.counters.pin_retries.get(), retries, "{pinner:?}");
        lab.end([&a, &b]);
    }
}

/// A reader has read the map of a file whose block another file shares, and not pinned. Then its
/// file gets a copy of its own, and the other file writes the old block, which carries no newer
/// stamp: it never left the other file. The map says so, and the reader follows it.
#[test]
fn a_shared_block_that_was_replaced_by_a_copy_is_not_read() {
    let (lab, [a, b]) = Lab::cast(open_gate());
    let f = a.writes_file("data", 1, 7);
    let (fb, clone) = (b.opens("data"), b.creates("clone"));
    b.reflink(fb, 0, clone, 0, BLOCK).unwrap();
    let reading = stops_at("gup: map read, not pinned", &a, move |a| Pinner::Read.looks(a, f));
    b.fills(fb, 0, 8).unwrap();
    b.fills(clone, 0, 9).unwrap();
    assert_eq!(reading.finish(), Ok(8), "9 is in the other file only");
    lab.end([&a, &b]);
}
