//! Calls that fail half-way: each gives back everything that it had taken. `docs/semantics.md`,
//! section 3 for leases, section 4 and invariant 8 for layout changes.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use common::changes::{ALL, ZERO, canvas};
use common::watchdog::soon;
use common::{Lab, Nic, every_preset, exclusive, preset};
use fs_sim::base::numbers::Fd;
use fs_sim::design::{ChangeRule, PinWaitHolds};
use fs_sim::holders::in_flight_io::Transfer;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::vfs::signals::Signal;
use fs_sim::{BLOCK, BlockRange, Errno, Task};

/// A call of a process that shares the open file `fd`: it must wait for the pins under both leases
/// of the file's holder. The pins under the first lease end; the call is interrupted while it
/// waits for the pin under the second. Both leases must admit pins again.
fn interrupted_at_the_second_lease(call: fn(&Task, Fd) -> Result<(), Errno>) {
    let (lab, [holder]) = Lab::cast(preset("kara"));
    let fd = holder.writes_file("data", 4, 1);
    let child = holder.child();
    for range in [BlockRange::new(0, 2), BlockRange::new(2, 4)] {
        holder.lease(fd, exclusive(*lab.kernel.axes()), range).unwrap();
    }
    let leases = holder.held(fd);
    let (_, nic) = Nic::open(&holder);

    let first = nic.pins(&holder, fd, 0..2).unwrap();
    let calling = child.blocks("unlock while pinned", move |child| call(child, fd));
    assert_eq!(nic.pins(&holder, fd, 0..1).err(), Some(Errno::EPERM), "the first lease's gate is closed");
    // The second lease had no pin when the call looked. It has one when the call looks again.
    let second = nic.pins(&holder, fd, 2..4).unwrap();
    first.dereg(&holder);
    let refused = soon("a closed gate of the second lease", || match nic.pins(&holder, fd, 2..3) {
        Ok(region) => {
            region.dereg(&holder);
            None
        }
        Err(errno) => Some(errno),
    });
    assert_eq!(refused, Errno::EPERM);
    calling.expect_blocked("unlock while pinned");
    child.kill(child.pid(), Signal::Sigusr1).unwrap();
    assert_eq!(calling.finish(), Err(Errno::EINTR));

    assert_eq!(holder.held(fd), leases, "a call that fails changes no lease");
    let again = nic.pins(&holder, fd, 0..2).map(|region| region.dereg(&holder));
    assert_eq!(again, Ok(()), "the first lease admits pins again");
    let again = nic.pins(&holder, fd, 2..4).map(|region| region.dereg(&holder));
    assert_eq!(again, Ok(()), "the second lease admits pins again");
    second.dereg(&holder);
    lab.end([&holder, &child]);
}

#[test]
fn failed_conversion_reopens_the_gates_it_closed() {
    interrupted_at_the_second_lease(|task, fd| task.lease(fd, LeaseKind::READ, ALL));
}

#[test]
fn failed_unlock_reopens_the_gates_it_closed() {
    interrupted_at_the_second_lease(|task, fd| task.unlock(fd, ALL));
}

/// A zero-range over a written block and a hole takes a new block, then waits for the direct read
/// of the written one. It is interrupted, and gives the new block back.
#[test]
fn interrupted_change_gives_its_new_blocks_back() {
    every_preset(|axes| {
        if axes.stranger_change == ChangeRule::Proceed {
            return;
        }
        let (lab, [reader, changer]) = Lab::cast(axes);
        let fd = canvas(&reader);
        let changer_fd = changer.opens("data");
        let (state_report, usage) = (reader.state_report(fd), lab.kernel.usage());
        let io = reader.submit_direct_io(fd, 3 * BLOCK, BLOCK, Transfer::Read).unwrap();
        let changing =
            changer.blocks("pins draining", move |task| task.fallocate(changer_fd, ZERO, 3 * BLOCK, 2 * BLOCK));
        // One that waits with all pages open has not taken it yet.
        let taken = u64::from(axes.pin_wait_holds == PinWaitHolds::Range);
        assert_eq!(lab.kernel.usage().allocated, usage.allocated + taken, "the change has taken the block");
        reader.kill(changer.pid(), Signal::Sigusr1).unwrap();
        assert_eq!(changing.finish(), Err(Errno::EINTR));
        assert_eq!(io.complete(&reader, &mut [0; BLOCK as usize]), Ok(BLOCK as usize));
        assert_eq!(lab.kernel.usage(), usage, "the failed change gave the block back");
        assert!(reader.state_report(fd) == state_report, "the failed change is not visible in the file");
        lab.end([&reader, &changer]);
    });
}
