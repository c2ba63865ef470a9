//! Dialogues with the long-term holders that are not NICs: AF_XDP umem, io_uring fixed buffers,
//! guest exports, and block-layout clients. `docs/semantics.md`, section 5 ("Revoke by kind of
//! holder", "Block-layout clients") and the scenarios S36 and S37.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use common::changes::DEPARTURES;
use common::{Actor, BREAK_TIME, Lab, can_pin, every_preset, exclusive, needs_lease, preset, rule_of};
use emulator::sync::Arc;
use fs_sim::base::numbers::Fd;
use fs_sim::design::{Axes, ChangeRule, GateScope, LeaseRules};
use fs_sim::holders::block_layout::IoMode;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::pinning::af_xdp::XdpSocket;
use fs_sim::pinning::fixed_buffers::{BUFFERS_MAX, FixedBuffer};
use fs_sim::pinning::guest_export::GuestExport;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::vfs::signals::Signal;
use fs_sim::{BLOCK, BlockRange, Errno};

const ALL: BlockRange = BlockRange::ALL;

/// Whether a long-term user other than RDMA can have file pages at all.
fn others_can_pin(axes: Axes) -> bool {
    can_pin(axes) && axes.gate_scope == GateScope::All
}

fn umem(a: &Actor, va: u64, len: u64) -> Result<(Fd, Arc<XdpSocket>), Errno> {
    let (fd, socket) = a.xdp_socket()?;
    a.register_umem(fd, va, len).map(|()| (fd, socket))
}

fn first(n: u64) -> FixedBuffer {
    FixedBuffer { index: 0, offset: 0, len: n }
}

/// S36: both kinds pass the gate and its scope. The report names a holder that is let through; the
/// holder lives in its own descriptor.
#[test]
fn s36_umem_and_fixed_buffers_meet_the_gate() {
    every_preset(|axes| {
        let (lab, [a]) = Lab::cast(axes);
        let f = a.writes_file("data", 4, 1);
        let va = a.mmap(f, 0, 4 * BLOCK, true).unwrap();
        let (xdp, socket) = a.xdp_socket().unwrap();
        let (ring_fd, ring) = a.io_uring().unwrap();
        let refused = (!others_can_pin(axes)).then_some(Errno::EOPNOTSUPP);
        let bare = refused.or(needs_lease(axes).then_some(Errno::EPERM));
        if bare.is_some() {
            assert_eq!(a.register_umem(xdp, va, 2 * BLOCK).err(), bare, "without a lease");
            assert_eq!(a.register_buffers(ring_fd, &[(va, BLOCK)]).err(), bare);
        }
        if needs_lease(axes) {
            a.lease(f, exclusive(axes), ALL).unwrap();
        }
        assert_eq!(a.register_umem(xdp, va, 2 * BLOCK).err(), refused);
        assert_eq!(a.register_buffers(ring_fd, &[(va, BLOCK), (va + 2 * BLOCK, 2 * BLOCK)]).err(), refused);
        if refused.is_some() {
            assert_eq!((a.process().locked_pages(), ring.buffers(), socket.is_bound()), (0, 0, false));
            return lab.end([&a]);
        }
        let holders = a.inode_of(f).holders();
        let kinds: Vec<_> = holders.iter().map(|holder| holder.object.describe()).map(|i| (i.kind, i.fd)).collect();
        let expected = [
            ("AF_XDP umem", Some(xdp)),
            ("io_uring fixed buffer", Some(ring_fd)),
            ("io_uring fixed buffer", Some(ring_fd)),
        ];
        assert_eq!(kinds, expected);
        assert!(holders.iter().all(|holder| holder.object.describe().processes == [a.pid()]));
        assert_eq!(a.process().locked_pages(), 5);

        assert_eq!(socket.receive(&lab.kernel, BLOCK + 1, &[9; 3]), Ok(()));
        let mut bytes = [0; 5];
        assert_eq!((a.load(va + BLOCK, &mut bytes), bytes), (Ok(()), [2, 9, 9, 9, 2]));
        assert_eq!((socket.transmit(&lab.kernel, 0, &mut bytes), bytes), (Ok(()), [1; 5]));
        assert_eq!(socket.receive(&lab.kernel, 2 * BLOCK - 1, &[0; 2]), Err(Errno::EFAULT), "outside the umem");

        let other = a.writes_file("other", 2, 7);
        let second = FixedBuffer { index: 1, offset: 10, len: BLOCK };
        assert_eq!(a.read_fixed(ring_fd, second, other, BLOCK - 1), Ok(BLOCK));
        assert_eq!((a.load(va + 2 * BLOCK + 9, &mut bytes), bytes), (Ok(()), [3, 7, 8, 8, 8]));
        assert_eq!(a.write_fixed(ring_fd, first(3), other, 0), Ok(3));
        assert_eq!((a.read(other, 0, &mut bytes), bytes), (Ok(5), [1, 1, 1, 7, 7]));
        assert_eq!(a.read_fixed(ring_fd, first(BLOCK), other, 2 * BLOCK - 5), Ok(5), "short at the end of the file");
        for wrong in
            [FixedBuffer { index: 2, ..first(1) }, first(BLOCK + 1), FixedBuffer { offset: u64::MAX, ..first(1) }]
        {
            assert_eq!(a.read_fixed(ring_fd, wrong, other, 0), Err(Errno::EFAULT), "{wrong:?}");
        }

        a.munmap(va, 4 * BLOCK).unwrap();
        assert_eq!(socket.receive(&lab.kernel, 0, &[5]), Ok(()), "the pins don't mind");
        a.close(xdp).unwrap();
        assert_eq!(socket.receive(&lab.kernel, 0, &[5]), Err(Errno::ENXIO));
        a.unregister_buffers(ring_fd).unwrap();
        assert_eq!(a.unregister_buffers(ring_fd), Err(Errno::ENXIO));
        assert_eq!(a.write_fixed(ring_fd, first(1), other, 0), Err(Errno::EFAULT), "no table");
        assert_eq!((a.process().locked_pages(), a.inode_of(f).holders().len()), (0, 0));
        lab.end([&a]);
    });
}

/// Anonymous memory needs no gate in any design. Wrong requests leave nothing behind.
#[test]
fn anonymous_memory_is_free_and_wrong_requests_leave_nothing() {
    every_preset(|axes| {
        let (lab, [a]) = Lab::cast(axes);
        let (va, memory) = a.mmap_anonymous(4 * BLOCK).unwrap();
        let (xdp, socket) = umem(&a, va + BLOCK, BLOCK).unwrap();
        assert_eq!(socket.receive(&lab.kernel, 1, &[6]), Ok(()));
        let mut byte = [0];
        assert_eq!((memory.read(BLOCK + 1, &mut byte), byte), (Ok(()), [6]));
        assert_eq!(socket.receive(&lab.kernel, BLOCK, &[6]), Err(Errno::EFAULT), "mapped, and outside the umem");
        assert_eq!(a.register_umem(xdp, va, BLOCK), Err(Errno::EBUSY));
        let (ring_fd, ring) = a.io_uring().unwrap();
        assert_eq!(a.register_umem(ring_fd, va, BLOCK), Err(Errno::EINVAL), "a ring is no socket");
        assert_eq!(a.register_buffers(xdp, &[(va, BLOCK)]), Err(Errno::EINVAL));
        assert_eq!(a.register_buffers(ring_fd, &[]), Err(Errno::EINVAL));
        assert_eq!(a.register_buffers(ring_fd, &[(va, 2 << 30)]), Err(Errno::EFAULT));
        // Where the design admits no such holder, the walk of the refusal comes first.
        let beyond = if others_can_pin(axes) { Errno::EINVAL } else { Errno::EFAULT };
        assert_eq!(a.register_buffers(ring_fd, &[(va, BLOCK), (va, 5 * BLOCK)]), Err(beyond), "all or none");
        assert_eq!(ring.buffers(), 0);
        a.register_buffers(ring_fd, &[(va, BLOCK), (va, BLOCK)]).unwrap();
        assert_eq!(a.register_buffers(ring_fd, &[(va, BLOCK)]), Err(Errno::EBUSY));
        assert_eq!(ring.buffers(), 2);
        lab.end([&a]);
    });
}

/// S14 for both kinds: `stranger_change` decides about a stranger's change, and a revocation ends
/// each kind in its own way.
#[test]
fn changes_over_umem_and_fixed_buffers() {
    every_preset(|axes| {
        if !others_can_pin(axes) {
            return;
        }
        for (name, change) in DEPARTURES {
            let (lab, [a, b]) = Lab::cast(axes);
            let f = common::changes::canvas(&a);
            if needs_lease(axes) {
                a.lease(f, exclusive(axes), ALL).unwrap();
            }
            let va = a.mmap(f, 0, 2 * BLOCK, true).unwrap();
            let (_, socket) = umem(&a, va, 2 * BLOCK).unwrap();
            let (ring_fd, ring) = a.io_uring().unwrap();
            let (anon, _) = a.mmap_anonymous(BLOCK).unwrap();
            a.register_buffers(ring_fd, &[(va + BLOCK, BLOCK), (anon, BLOCK)]).unwrap();
            let fb = b.opens("data");
            let io = || (socket.receive(&lab.kernel, BLOCK, &[1]), a.read_fixed(ring_fd, first(1), f, 0).map(|_| ()));
            match rule_of(axes, false) {
                ChangeRule::Fail => {
                    assert_eq!(change(&b, fb), Err(Errno::ETXTBSY), "{name}");
                    assert_eq!(io(), (Ok(()), Ok(())));
                }
                ChangeRule::Wait => {
                    let reason = if needs_lease(axes) { "exclusive lease" } else { "long-term pins" };
                    let blocked = b.blocks(reason, move |task| change(task, fb));
                    assert_eq!(io(), (Ok(()), Ok(())));
                    a.exit();
                    assert_eq!(blocked.finish(), Ok(()), "{name}");
                }
                ChangeRule::Revoke => {
                    assert_eq!(socket.take_error(), None);
                    assert_eq!(change(&b, fb), Ok(()), "{name}");
                    assert_eq!(io(), (Err(Errno::ENXIO), Err(Errno::ECANCELED)));
                    assert_eq!((socket.take_error(), socket.take_error()), (Some(Errno::ENETDOWN), None), "told once");
                    assert_eq!(ring.buffers(), 0, "the whole table");
                    a.unregister_buffers(ring_fd).unwrap();
                    a.register_buffers(ring_fd, &[(anon, BLOCK)]).unwrap();
                    assert_eq!(a.process().locked_pages(), 0);
                }
                ChangeRule::Orphan => {
                    assert_eq!(change(&b, fb), Ok(()), "{name}");
                    assert_eq!(io().0, Ok(()), "into a block without an owner");
                }
                ChangeRule::Proceed => {
                    assert_eq!(change(&b, fb), Ok(()), "{name}");
                    assert_eq!(io().0, Ok(()));
                    assert_ne!(lab.stale(), 0, "{name}: and it was not stopped");
                    continue;
                }
            }
            lab.end([&a, &b]);
        }
    });
}

/// S36: each buffer is a holder of its own. A table is revoked as a whole, also the largest one: by
/// the revocation of one of its buffers and of all.
#[test]
fn the_largest_table_is_revoked() {
    let (lab, [a, b]) = Lab::cast(preset("revoke"));
    a.set_memlock(1 << 30).unwrap();
    let [va, other] = ["data", "other"].map(|name| {
        let f = a.writes_file(name, 1, 1);
        a.lease(f, exclusive(preset("revoke")), ALL).unwrap();
        a.mmap(f, 0, BLOCK, true).unwrap()
    });
    let mut memory = vec![(va, BLOCK); BUFFERS_MAX];
    memory[BUFFERS_MAX / 2] = (other, BLOCK);
    let (fd, ring) = a.io_uring().unwrap();
    let left = || (ring.buffers(), a.process().locked_pages());
    a.register_buffers(fd, &memory).unwrap();
    assert_eq!(left(), (BUFFERS_MAX, BUFFERS_MAX as u64));
    b.truncate("other", 0).unwrap();
    assert_eq!((left(), lab.kernel.counters.revocations.get()), ((0, 0), 1));

    // A revoked table has no effect on the next one.
    a.unregister_buffers(fd).unwrap();
    a.register_buffers(fd, &vec![(va, BLOCK); BUFFERS_MAX]).unwrap();
    assert_eq!(left(), (BUFFERS_MAX, BUFFERS_MAX as u64));
    b.truncate("data", 0).unwrap();
    assert_eq!((left(), lab.kernel.counters.revocations.get()), ((0, 0), 1 + BUFFERS_MAX as u64));
    lab.end([&a, &b]);
}

fn export(axes: Axes, lab: &Lab, blocks: u64) -> Option<(Actor, Fd, Fd, Arc<GuestExport>)> {
    let a = lab.actor();
    let f = a.writes_file("data", blocks, 1);
    let exported = a.export_to_guest(f);
    if !others_can_pin(axes) {
        assert_eq!(exported.err(), Some(Errno::EOPNOTSUPP));
        assert_eq!((a.leases(f), a.process().locked_pages()), (vec![], 0), "nothing stays");
        return None;
    }
    let (guest_fd, guest) = exported.unwrap();
    Some((a, f, guest_fd, guest))
}

/// A guest export holds what the gate demands as long as it is attached, whichever process closes
/// which descriptor.
#[test]
fn a_guest_export_holds_lease_and_pins_until_it_is_detached() {
    every_preset(|axes| {
        let lab = Lab::new(axes);
        let Some((a, f, guest_fd, guest)) = export(axes, &lab, 4) else { return };
        let demanded = if needs_lease(axes) { vec![(exclusive(axes), ALL)] } else { vec![] };
        assert_eq!(a.held(f), demanded);
        assert_eq!(guest.pieces(&lab.kernel).iter().map(|piece| piece.len).sum::<u64>(), 4 * BLOCK);
        assert_eq!(guest.write(&lab.kernel, 3 * BLOCK, &[8]), Ok(()));
        let mut byte = [0];
        assert_eq!((a.read(f, 3 * BLOCK, &mut byte), byte), (Ok(1), [8]), "the same bytes");
        assert_eq!(guest.read(&lab.kernel, 4 * BLOCK, &mut byte), Err(Errno::EFAULT));
        assert_eq!(guest.flush(&lab.kernel), Ok(()));
        a.close(f).unwrap();
        assert_eq!((guest.read(&lab.kernel, 0, &mut byte), byte), (Ok(()), [1]), "the guest has the file for itself");
        let again = a.opens("data");
        assert_eq!((a.held(again), a.inode_of(again).holders().len()), (demanded, 1));
        a.close(guest_fd).unwrap();
        assert_eq!((a.held(again), a.inode_of(again).holders().len()), (vec![], 0));
        assert_eq!((guest.flush(&lab.kernel), guest.pieces(&lab.kernel)), (Err(Errno::EIO), vec![]));
        lab.end([&a]);
    });
}

/// The host truncates the exported file: the design's rules decide.
#[test]
fn the_host_truncates_under_a_guest() {
    every_preset(|axes| {
        let lab = Lab::new(axes);
        let Some((a, _, _, guest)) = export(axes, &lab, 4) else { return };
        let b = lab.actor();
        match rule_of(axes, false) {
            ChangeRule::Fail => {
                assert_eq!(b.truncate("data", 0), Err(Errno::ETXTBSY));
                assert_eq!(guest.flush(&lab.kernel), Ok(()));
            }
            ChangeRule::Wait => {
                let blocked = b.blocks("exclusive lease", |task| task.truncate("data", 0));
                assert_eq!(guest.flush(&lab.kernel), Ok(()));
                a.exit();
                assert_eq!(blocked.finish(), Ok(()));
            }
            ChangeRule::Revoke => {
                assert_eq!(b.truncate("data", 0), Ok(()));
                assert!(guest.is_revoked());
                assert_eq!(guest.pieces(&lab.kernel), [], "unmapped");
                assert_eq!(guest.flush(&lab.kernel), Err(Errno::EIO), "and so for good");
                assert_eq!(guest.write(&lab.kernel, 0, &[1]), Err(Errno::EIO));
                assert_eq!(a.signals(), [Signal::Sigio], "the exclusive lease's owner is told");
            }
            ChangeRule::Orphan => {
                assert_eq!(b.truncate("data", 0), Ok(()));
                assert_eq!(guest.write(&lab.kernel, 0, &[1]), Ok(()), "into blocks without an owner");
                assert_eq!(lab.kernel.usage().orphaned, 4);
            }
            ChangeRule::Proceed => {
                assert_eq!(b.truncate("data", 0), Ok(()));
                assert_eq!(guest.write(&lab.kernel, 0, &[1]), Ok(()));
                assert_ne!(lab.stale(), 0);
                return;
            }
        }
        lab.end([&a, &b]);
    });
}

/// S37: a change by another process recalls a client's layout, waits two periods and fences it.
/// Then the change continues, in every design.
#[test]
fn s37_recall_two_periods_fence() {
    every_preset(|axes| {
        let (lab, [client, b]) = Lab::cast(axes);
        let f = client.writes_file("data", 4, 1);
        let (_, layout) = client.layoutget(f, BlockRange::new(0, 4), IoMode::ReadWrite).unwrap();
        let mut byte = [0];
        assert_eq!((layout.read(&lab.kernel, 2 * BLOCK, &mut byte), byte), (Ok(()), [3]));
        assert_eq!(layout.write(&lab.kernel, 2 * BLOCK, &[9]), Ok(()));
        assert_eq!((client.read(f, 2 * BLOCK, &mut byte), byte), (Ok(1), [9]), "the device's own bytes");

        let blocked = b.blocks("block layout recall", |task| task.truncate("data", BLOCK));
        let recall = layout.recall().expect("the client is told");
        assert_eq!(recall.deadline, Some(lab.world.now().after(BREAK_TIME * 2)));
        assert_eq!(client.signals(), [], "and by no signal");
        assert_eq!(client.layoutget(f, BlockRange::new(1, 2), IoMode::Read).err(), Some(Errno::EAGAIN));
        assert_eq!(layout.write(&lab.kernel, 2 * BLOCK, &[7]), Ok(()), "it may finish what it began");
        lab.advance(BREAK_TIME);
        blocked.expect_blocked("block layout recall");
        assert!(!layout.is_fenced(), "one period is not enough");
        lab.advance(BREAK_TIME);
        assert_eq!(blocked.finish(), Ok(()));
        assert!(layout.is_fenced());
        assert_eq!(layout.write(&lab.kernel, 0, &[1]), Err(Errno::EIO), "fenced");
        assert_eq!((lab.kernel.counters.layout_recalls.get(), lab.kernel.counters.layout_fences.get()), (1, 1));
        assert_eq!(client.layoutget(f, BlockRange::new(0, 1), IoMode::Read).err(), None, "a new one");
        lab.end([&client, &b]);
    });
}

/// If the client returns its layout, the change continues at once. The death of the client has the
/// same effect.
#[test]
fn a_returned_layout_lets_the_change_go_on() {
    every_preset(|axes| {
        for dies in [false, true] {
            let (lab, [client, b]) = Lab::cast(axes);
            let f = client.writes_file("data", 4, 1);
            let (layout_fd, layout) = client.layoutget(f, BlockRange::new(2, 4), IoMode::Read).unwrap();
            assert_eq!(layout.write(&lab.kernel, 2 * BLOCK, &[1]), Err(Errno::EACCES), "for reading");
            assert_eq!(layout.read(&lab.kernel, BLOCK, &mut [0]), Err(Errno::EFAULT), "outside its range");
            let fb = b.opens("data");
            assert_eq!(
                b.fallocate(fb, FallocateMode::PunchHole, 0, BLOCK),
                Ok(()),
                "a change elsewhere doesn't concern it"
            );
            let blocked = b.blocks("block layout recall", move |task| {
                task.fallocate(fb, FallocateMode::PunchHole, 3 * BLOCK, BLOCK)
            });
            match dies {
                true => client.exit(),
                false => client.layoutreturn(layout_fd).unwrap(),
            }
            assert_eq!(blocked.finish(), Ok(()));
            assert!(!layout.is_fenced());
            assert_eq!(layout.read(&lab.kernel, 2 * BLOCK, &mut [0]), Err(Errno::EIO), "returned");
            lab.end([&client, &b]);
        }
    });
}

/// A change that gives up leaves the recall pending; the next change continues with the time left.
/// A refused change recalls no layout.
#[test]
fn a_recall_outlives_its_change_and_a_refused_change_recalls_no_layout() {
    every_preset(|axes| {
        let (lab, [client, b]) = Lab::cast(axes);
        let f = client.writes_file("data", 4, 1);
        let (_, layout) = client.layoutget(f, BlockRange::new(0, 4), IoMode::Read).unwrap();
        let blocked = b.blocks("block layout recall", |task| task.truncate("data", 0));
        let recall = layout.recall();
        client.kill(b.pid(), Signal::Sigusr1).unwrap();
        assert_eq!(blocked.finish(), Err(Errno::EINTR));
        b.take_signals();
        lab.advance(BREAK_TIME * 2);
        assert_eq!(layout.recall(), recall);
        assert!(!layout.is_fenced(), "no change waits for it");
        assert_eq!(b.truncate("data", 0), Ok(()), "its time is over");
        assert!(layout.is_fenced());

        let g = client.writes_file("more", 4, 1);
        let (_, layout) = client.layoutget(g, BlockRange::new(0, 4), IoMode::Read).unwrap();
        if axes.stranger_change == ChangeRule::Fail && client.lease(g, exclusive(axes), ALL).is_ok() {
            assert_eq!(b.truncate("more", 0), Err(Errno::ETXTBSY));
            assert_eq!(layout.recall(), None);
        }
        lab.end([&client, &b]);
    });
}

/// A layout for writing allocates holes. A client's own changes end its layouts where blocks leave,
/// and no others.
#[test]
fn a_clients_own_changes() {
    every_preset(|axes| {
        let (lab, [client]) = Lab::cast(axes);
        let f = client.creates("data");
        client.ftruncate(f, 4 * BLOCK).unwrap();
        assert_eq!(
            client.layoutget(f, BlockRange::new(0, 5), IoMode::ReadWrite).err(),
            Some(Errno::EINVAL),
            "beyond the end"
        );
        assert_eq!(client.layoutget(f, BlockRange::new(1, 1), IoMode::Read).err(), Some(Errno::EINVAL));
        let (_, read) = client.layoutget(f, BlockRange::new(0, 4), IoMode::Read).unwrap();
        let (write_fd, write) = client.layoutget(f, BlockRange::new(1, 3), IoMode::ReadWrite).unwrap();
        assert_eq!(client.stat(f).unwrap().blocks, 2, "allocated for it");
        assert_eq!(read.recall(), None, "its own allocation recalls nothing of its own");
        assert_eq!(write.write(&lab.kernel, BLOCK, &[5; 2 * BLOCK as usize]), Ok(()));
        assert_eq!(client.bytes_of(f), [0, 5, 5, 0]);
        // Turning blocks unwritten moves no block, but the client would write into them without the
        // file seeing it.
        let zero = FallocateMode::ZeroRange { keep_size: true };
        client.fallocate(f, zero, 2 * BLOCK, BLOCK).unwrap();
        assert_eq!(write.write(&lab.kernel, 2 * BLOCK, &[6]), Err(Errno::EIO));
        assert_eq!(read.read(&lab.kernel, 0, &mut [0]), Err(Errno::EIO));
        assert!(!write.is_fenced() && lab.kernel.counters.layout_recalls.get() == 0);
        assert_eq!(client.bytes_of(f), [0, 5, 0, 0]);
        let child = client.child();
        assert_eq!(child.object(write_fd).err(), Some(Errno::EBADF), "a client's session is its own");
        lab.end([&client, &child]);
    });
}

/// A fault that must allocate under a client's layout does not wait for it.
#[test]
fn a_fault_does_not_wait_for_a_client() {
    let (lab, [client, b]) = Lab::cast(preset("mainline"));
    let f = client.creates("data");
    client.ftruncate(f, 2 * BLOCK).unwrap();
    let (_, layout) = client.layoutget(f, BlockRange::new(0, 2), IoMode::Read).unwrap();
    let fb = b.opens("data");
    let va = b.mmap(fb, 0, 2 * BLOCK, true).unwrap();
    assert_eq!(b.store(va, &[1]), Err(Errno::SIGBUS));
    assert_eq!(layout.recall(), None);
    assert_eq!(client.export_to_guest(Fd(99)).err(), Some(Errno::EBADF));
    let empty = client.creates("empty");
    assert_eq!(client.export_to_guest(empty).err(), Some(Errno::EINVAL));
    lab.end([&client, &b]);
}

/// An export that the design refuses to every guest is refused before any lease is broken for it.
#[test]
fn a_refused_export_breaks_no_lease() {
    every_preset(|axes| {
        if others_can_pin(axes) || axes.lease_rules == LeaseRules::None {
            return;
        }
        let (lab, [a, b]) = Lab::cast(axes);
        let f = a.writes_file("data", 4, 1);
        let g = b.opens("data");
        b.lease(g, LeaseKind::WRITE, ALL).unwrap();
        assert_eq!(a.export_to_guest(f).err(), Some(Errno::EOPNOTSUPP));
        assert_eq!((b.signals(), b.held(g)), (vec![], vec![(LeaseKind::WRITE, ALL)]));
        lab.end([&a, &b]);
    });
}

/// A change for which there is no space leaves a client's own layouts alone.
#[test]
fn a_clients_own_change_without_space() {
    let (lab, [client]) = Lab::cast(preset("mainline"));
    let (f, g) = (client.writes_file("data", 4, 1), client.creates("clone"));
    client.reflink(f, 0, g, 0, 4 * BLOCK).unwrap();
    let (_, layout) = client.layoutget(f, BlockRange::new(0, 4), IoMode::Read).unwrap();
    let filler = client.creates("filler");
    let full = (0..).map_while(|block| client.fills(filler, block, 9).ok()).count() as u64;
    assert_eq!(client.write(f, 0, &[7]), Err(Errno::ENOSPC), "it is shared, and has to be copied");
    assert_eq!(layout.read(&lab.kernel, 0, &mut [0]), Ok(()));
    client.ftruncate(filler, (full - 1) * BLOCK).unwrap();
    assert_eq!(client.write(f, 0, &[7]), Ok(1));
    assert_eq!(layout.read(&lab.kernel, 0, &mut [0]), Err(Errno::EIO), "what it knows is no longer so");
    lab.end([&client]);
}
