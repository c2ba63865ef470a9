//! The request queue as a driver sees it: answers, coalescing, notifications, and chains that no
//! driver should make.

use std::sync::atomic::Ordering;

use emulator::vhost_user::{FlushError, VhostStats};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{Bytes, GuestAddress};

use crate::guest::{
    ALL, AVAIL, DEVICE, EVENT_IDX, Guest, INDIRECT, NEXT, RAM, SIZE, USED, WRITE, await_readable, borrow, buffer,
    readable_within, region, willing,
};
use crate::medium::{BYTES, Served};

fn running(served: &Served, features: u64) -> Guest {
    let mut guest = Guest::connect(&served.path());
    guest.realise(willing());
    guest.features = features;
    guest.start();
    guest
}

/// The counters, when the requests so far were dealt with: the queue was stopped, and starts again.
fn settled(served: &Served, guest: &mut Guest) -> VhostStats {
    assert_eq!(guest.frontend.get_vring_base(0).unwrap(), u32::from(guest.avail));
    guest.start_queue();
    // The bell is tried when it is new.
    let _ = guest.call.read();
    served.server.stats()
}

#[test]
fn success_is_answered_after_the_medium_said_so() {
    let served = Served::new();
    let (flushing, end) = served.medium.hold_flushes();
    let mut guest = running(&served, ALL);
    guest.request(0, 0);
    guest.kick();
    flushing.recv().unwrap();
    assert_eq!((guest.used_index(), guest.ret(0)), (0, 0xdead_beef), "nothing is known yet");
    end.send(Ok(())).unwrap();
    assert_eq!(guest.answer(), (0, 4));
    assert_eq!(guest.ret(0), 0);
}

#[test]
fn every_failure_is_the_same_to_the_guest() {
    let served = Served::new();
    let (flushing, end) = served.medium.hold_flushes();
    let mut guest = running(&served, ALL);
    let failures =
        [FlushError::Revoked, FlushError::Told, FlushError::Gone, FlushError::Io(std::io::Error::from_raw_os_error(5))];
    for failure in failures {
        let says = failure.to_string();
        guest.request(0, 0);
        guest.kick();
        flushing.recv().unwrap();
        end.send(Err(failure)).unwrap();
        assert_eq!(guest.answer(), (0, 4));
        assert_eq!(guest.ret(0), 1);
        assert_eq!(served.server.stats().problem.unwrap(), format!("a flush failed: {says}"));
    }
    guest.request(0, 0);
    guest.kick();
    flushing.recv().unwrap();
    end.send(Ok(())).unwrap();
    assert_eq!(guest.answer(), (0, 4));
    assert_eq!(guest.ret(0), 0, "the next one is on its own");
    assert_eq!(served.server.stats().failed, 4);
}

#[test]
fn requests_share_a_flush_that_began_after_them_and_no_other() {
    let served = Served::new();
    let (flushing, end) = served.medium.hold_flushes();
    let mut guest = running(&served, ALL);
    guest.request(0, 0);
    guest.kick();
    flushing.recv().unwrap();
    for slot in 1..4 {
        guest.request(slot, 0);
        guest.kick();
    }
    end.send(Ok(())).unwrap();
    assert_eq!(guest.answer(), (0, 4));
    // The three that came meanwhile need another flush, which fails.
    flushing.recv().unwrap();
    assert_eq!((guest.used_index(), guest.ret(0)), (1, 0));
    end.send(Err(FlushError::Told)).unwrap();
    for slot in 1..4 {
        assert_eq!(guest.answer(), (2 * u32::from(slot), 4));
        assert_eq!(guest.ret(slot), 1);
    }
    let stats = settled(&served, &mut guest);
    assert_eq!((stats.requests, stats.flushes, stats.coalesced, stats.failed), (4, 2, 2, 3), "{stats:?}");
}

#[test]
fn the_queue_wraps_around_its_indices() {
    let served = Served::new();
    let mut guest = running(&served, ALL);
    // Indices are 16 bits wide, slots 4: both wrap.
    guest.reset();
    (guest.avail, guest.used) = (65530, 65530);
    guest.memory.write_obj(65530_u16, GuestAddress(AVAIL + 2)).unwrap();
    guest.memory.write_obj(65530_u16, GuestAddress(USED + 2)).unwrap();
    guest.memory.write_obj(65530_u16, GuestAddress(AVAIL + 4 + u64::from(SIZE) * 2)).unwrap();
    guest.start();
    for _ in 0..40 {
        assert_eq!(guest.flush(), 0);
    }
    assert_eq!(guest.used_index(), 34);
    assert_eq!(served.medium.flushes(), 40);
}

#[test]
fn stopping_waits_for_requests_under_way() {
    let served = Served::new();
    let (flushing, end) = served.medium.hold_flushes();
    let mut guest = running(&served, ALL);
    guest.request(0, 0);
    guest.kick();
    flushing.recv().unwrap();
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| guest.frontend.get_vring_base(0).unwrap());
        end.send(Ok(())).unwrap();
        assert_eq!(stop.join().unwrap(), 1);
    });
    assert_eq!(guest.used_index(), 1, "answered before it stopped");
    // What is offered to a stopped queue waits for its start, kicked or not.
    guest.request(1, 0);
    guest.kick();
    guest.start_queue_at(1);
    flushing.recv().unwrap();
    end.send(Ok(())).unwrap();
    assert_eq!((guest.answer(), guest.answer()), ((0, 4), (2, 4)));
}

#[test]
fn a_disabled_queue_holds_requests_back() {
    let served = Served::new();
    let mut guest = running(&served, ALL);
    guest.frontend.set_vring_enable(0, false).unwrap();
    guest.request(0, 0);
    guest.kick();
    assert_eq!(guest.frontend.get_vring_base(0).unwrap(), 0, "nothing was taken");
    guest.frontend.set_vring_base(0, 0).unwrap();
    guest.frontend.set_vring_kick(0, &guest.kick).unwrap();
    guest.frontend.set_vring_call(0, &guest.call).unwrap();
    guest.frontend.set_vring_enable(0, true).unwrap();
    assert_eq!(guest.answer(), (0, 4));
}

#[test]
fn indirect_descriptors() {
    let served = Served::new();
    let mut guest = running(&served, ALL);
    let table = 0x20000;
    guest.memory.write_obj(7_u32, GuestAddress(buffer(0) + 8)).unwrap();
    guest.descriptor_in(table, 0, buffer(0), 4, NEXT, 1);
    guest.descriptor_in(table, 1, buffer(0) + 8, 4, WRITE, 0);
    guest.descriptor(5, table, 32, INDIRECT, 0);
    guest.offer(5);
    guest.kick();
    assert_eq!((guest.answer(), guest.ret(0)), ((5, 4), 0));
    // A direct descriptor before the table, and a table that is larger than what is used of it.
    guest.memory.write_obj(7_u32, GuestAddress(buffer(0) + 8)).unwrap();
    guest.descriptor_in(table, 0, buffer(0) + 8, 4, WRITE, 0);
    guest.descriptor(6, buffer(0), 4, NEXT, 7);
    guest.descriptor(7, table, 160, INDIRECT, 0);
    guest.offer(6);
    guest.kick();
    assert_eq!((guest.answer(), guest.ret(0)), ((6, 4), 0));
}

#[test]
fn a_byte_may_have_a_descriptor_of_its_own() {
    let served = Served::new();
    let mut guest = running(&served, ALL);
    for at in 0..4_u16 {
        guest.memory.write_obj(0_u8, GuestAddress(0x30000 + u64::from(at) * 0x100)).unwrap();
        guest.memory.write_obj(9_u8, GuestAddress(0x31000 + u64::from(at) * 0x100)).unwrap();
        guest.descriptor(at, 0x30000 + u64::from(at) * 0x100, 1, NEXT, at + 1);
        guest.descriptor(4 + at, 0x31000 + u64::from(at) * 0x100, 1, WRITE | if at < 3 { NEXT } else { 0 }, 5 + at);
    }
    guest.offer(0);
    guest.kick();
    assert_eq!(guest.answer(), (0, 4));
    for at in 0..4_u64 {
        assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(0x31000 + at * 0x100)).unwrap(), 0);
    }
}

/// A chain: descriptors as address, length, flags, next.
type Chain<'a> = &'a [(u64, u32, u16, u16)];

#[test]
fn chains_that_no_driver_makes_are_given_back() {
    let (request, response) = (buffer(0), buffer(0) + 8);
    let far = 0x7fff_0000_0000;
    let indirect = 0x20000;
    // What is in the chain; the used length; what stands in the answer's place (7: it was left
    // alone).
    let table: &[(&str, Chain<'_>, u32, u32)] = &[
        ("ordinary", &[(request, 4, NEXT, 1), (response, 4, WRITE, 0)], 4, 0),
        ("more than enough", &[(request, 4096, NEXT, 1), (response, 4096, WRITE, 0)], 4, 0),
        ("an empty one first", &[(request, 0, NEXT, 1), (request, 4, NEXT, 2), (response, 4, WRITE, 0)], 4, 0),
        ("an empty one that lies nowhere", &[(far, 0, NEXT, 1), (request, 4, NEXT, 2), (response, 4, WRITE, 0)], 4, 0),
        ("a request of 3 bytes", &[(request, 3, NEXT, 1), (response, 4, WRITE, 0)], 4, 1),
        ("no request", &[(response, 4, WRITE, 0)], 4, 1),
        ("3 bytes for the answer", &[(request, 4, NEXT, 1), (response, 3, WRITE, 0)], 0, 7),
        ("no place for the answer", &[(request, 4, 0, 0)], 0, 7),
        ("writable first", &[(response, 4, WRITE | NEXT, 1), (request, 4, 0, 0)], 0, 7),
        (
            "readable, writable, readable",
            &[(request, 4, NEXT, 1), (response, 4, WRITE | NEXT, 2), (request, 4, 0, 0)],
            0,
            7,
        ),
        ("a request outside memory", &[(far, 4, NEXT, 1), (response, 4, WRITE, 0)], 0, 7),
        ("a request half outside", &[(RAM - 2, 4, NEXT, 1), (response, 4, WRITE, 0)], 0, 7),
        ("its tail outside", &[(RAM - 8, 16, NEXT, 1), (response, 4, WRITE, 0)], 0, 7),
        ("at the end of all addresses", &[(u64::MAX - 1, 4, NEXT, 1), (response, 4, WRITE, 0)], 0, 7),
        ("an answer outside memory", &[(request, 4, NEXT, 1), (far, 4, WRITE, 0)], 0, 7),
        ("an answer in the device", &[(request, 4, NEXT, 1), (DEVICE, 4, WRITE, 0)], 0, 7),
        ("a request in the device", &[(DEVICE, 4, NEXT, 1), (response, 4, WRITE, 0)], 0, 7),
        ("4 GiB", &[(request, u32::MAX, NEXT, 1), (response, 4, WRITE, 0)], 0, 7),
        ("a loop of one", &[(request, 4, NEXT, 0)], 0, 7),
        ("a loop of two", &[(request, 4, NEXT, 1), (response, 4, WRITE | NEXT, 0)], 0, 7),
        ("a loop after the answer", &[(request, 4, NEXT, 1), (response, 4, WRITE | NEXT, 1)], 0, 7),
        ("a next outside the table", &[(request, 4, NEXT, SIZE)], 0, 7),
        ("an indirect table outside memory", &[(far, 32, INDIRECT, 0)], 0, 7),
        ("half a descriptor", &[(indirect, 24, INDIRECT, 0)], 0, 7),
        ("an empty indirect table", &[(indirect, 0, INDIRECT, 0)], 0, 7),
        ("an enormous indirect table", &[(indirect, 0xffff_fff0, INDIRECT, 0)], 0, 7),
        ("an indirect table in an indirect table", &[(indirect + 0x100, 16, INDIRECT, 0)], 0, 7),
        ("a loop in an indirect table", &[(indirect + 0x200, 32, INDIRECT, 0)], 0, 7),
        ("a chain of 40 in an indirect table", &[(indirect + 0x300, 40 * 16, INDIRECT, 0)], 0, 7),
    ];
    let served = Served::new();
    let mut guest = running(&served, ALL);
    let device = region(DEVICE, BYTES, 1 << 45, 0, &served.medium.file);
    guest.frontend.set_mem_table(&[guest.ram_region(), device]).unwrap();
    guest.descriptor_in(indirect + 0x100, 0, indirect, 32, INDIRECT, 0);
    guest.descriptor_in(indirect + 0x200, 0, request, 4, NEXT, 1);
    guest.descriptor_in(indirect + 0x200, 1, response, 4, WRITE | NEXT, 0);
    for at in 0..40 {
        guest.descriptor_in(indirect + 0x300, at, request, 1, NEXT, at + 1);
    }
    guest.descriptor_in(indirect + 0x300, 39, response, 4, WRITE, 0);
    let mut flushes = 0;
    for (what, chain, used, ret) in table {
        guest.memory.write_obj(0_u32, GuestAddress(request)).unwrap();
        guest.memory.write_obj(7_u32, GuestAddress(response)).unwrap();
        for (at, (addr, len, flags, next)) in chain.iter().enumerate() {
            guest.descriptor(at as u16, *addr, *len, *flags, *next);
        }
        guest.offer(0);
        guest.kick();
        assert_eq!(guest.answer(), (0, *used), "{what}");
        assert_eq!(guest.ret(0), *ret, "{what}");
        flushes += usize::from(*ret == 0);
        assert_eq!(served.medium.flushes(), flushes, "{what}");
    }
    let stats = settled(&served, &mut guest);
    let malformed = table.iter().filter(|(_, _, used, _)| *used == 0).count() as u64;
    assert_eq!((stats.malformed, stats.unknown), (malformed, 2), "{stats:?}");
    assert_eq!(rustix::fs::fstat(&served.medium.file).unwrap().st_blocks, 0, "nothing was written through the device");
    assert_eq!(guest.flush(), 0);
}

#[test]
fn unknown_types_fail_and_are_not_flushed_for() {
    let served = Served::new();
    let mut guest = running(&served, ALL);
    for kind in [1, 2, 0x0100_0000, u32::MAX] {
        guest.request(0, kind);
        guest.kick();
        assert_eq!(guest.answer(), (0, 4));
        assert_eq!(guest.ret(0), 1, "{kind}");
    }
    assert_eq!(served.medium.flushes(), 0);
    assert_eq!(served.server.stats().unknown, 4);
}

#[test]
fn a_queue_that_contradicts_itself_stands_still_until_it_is_set_up_anew() {
    type Break = fn(&mut Guest);
    let breaks: &[(&str, Break)] = &[
        ("an index that runs ahead", |guest| {
            guest.memory.write_obj(guest.avail + SIZE + 1, GuestAddress(AVAIL + 2)).unwrap();
        }),
        ("an index that goes back", |guest| {
            guest.memory.write_obj(guest.avail.wrapping_sub(1), GuestAddress(AVAIL + 2)).unwrap();
        }),
        ("a head outside the table", |guest| guest.offer(SIZE)),
        ("a head far outside the table", |guest| guest.offer(u16::MAX)),
        ("rings in no memory", |guest| {
            let elsewhere = region(RAM, RAM, 1 << 45, 0, &guest.ram);
            guest.frontend.set_mem_table(&[elsewhere]).unwrap();
        }),
    ];
    let served = Served::new();
    let gone = served.medium.tell_gone();
    for (what, break_it) in breaks {
        let mut guest = running(&served, ALL);
        assert_eq!(guest.flush(), 0);
        let err = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
        guest.frontend.set_vring_err(0, &err).unwrap();
        break_it(&mut guest);
        guest.kick();
        await_readable(borrow(&err), what);
        assert!(served.server.stats().problem.unwrap().starts_with("the guest's request queue is broken: "), "{what}");
        let flushes = served.medium.flushes();
        guest.reset();
        guest.start();
        assert_eq!(guest.flush(), 0, "{what}");
        assert_eq!(served.medium.flushes(), flushes + 1, "{what}");
        guest.hang_up();
        gone.recv().unwrap();
    }
}

#[test]
fn who_does_not_want_to_be_told_is_not() {
    for features in [ALL, ALL & !EVENT_IDX] {
        let served = Served::new();
        let mut guest = running(&served, features);
        // Not before the third answer: by event-idx, or by the flag and looking.
        let wanted_at = GuestAddress(AVAIL + 4 + u64::from(SIZE) * 2);
        if features & EVENT_IDX == 0 {
            guest.memory.write_obj(1_u16, GuestAddress(AVAIL)).unwrap();
        } else {
            guest.memory.write_obj(2_u16, wanted_at).unwrap();
        }
        for slot in 0..2 {
            guest.request(slot, 0);
            guest.kick();
            while guest.used_index() <= slot {
                std::thread::yield_now();
            }
        }
        // When the queue stopped, everything about the two was done.
        let stats = settled(&served, &mut guest);
        assert_eq!(stats.notifications, 0, "{features:#x}");
        assert!(!readable_within(borrow(&guest.call), 0));
        guest.memory.write_obj(0_u16, GuestAddress(AVAIL)).unwrap();
        guest.request(2, 0);
        guest.kick();
        await_readable(borrow(&guest.call), "the third answer");
        assert_eq!(guest.used_index(), 3);
    }
}

/// A driver that kicks only when the device asked for it, and offers the next request as soon as it
/// sees an answer: sooner or later between the device's last look and its falling asleep. A device
/// that did not look once more after it asked to be told loses that request for good.
#[test]
fn no_request_is_lost_to_a_driver_that_kicks_only_when_told() {
    for features in [ALL, ALL & !EVENT_IDX] {
        let served = Served::new();
        let mut guest = running(&served, features);
        let rounds = 30_000_u16;
        guest.request(0, 0);
        guest.avail = 0;
        // Answers are watched for, not told of.
        guest.memory.write_obj(1_u16, GuestAddress(AVAIL)).unwrap();
        guest.memory.write_obj(u16::MAX, GuestAddress(AVAIL + 4 + u64::from(SIZE) * 2)).unwrap();
        let world = emulator::World::real(0);
        for round in 0..rounds {
            // So that the moment differs.
            for _ in 0..round % 256 {
                std::hint::spin_loop();
            }
            guest.offer(0);
            std::sync::atomic::fence(Ordering::SeqCst);
            let event: u16 =
                guest.memory.load(GuestAddress(USED + 4 + u64::from(SIZE) * 8), Ordering::Relaxed).unwrap();
            let flags: u16 = guest.memory.load(GuestAddress(USED), Ordering::Relaxed).unwrap();
            let wanted = if features & EVENT_IDX == 0 { flags & 1 == 0 } else { event == round };
            if wanted {
                guest.kick();
            }
            let start = world.now();
            while guest.used_index() == round {
                assert!(world.now().since(start) < 60_000_000_000, "request {round} is lost");
                std::hint::spin_loop();
            }
        }
        let stats = settled(&served, &mut guest);
        assert_eq!((stats.requests, stats.notifications), (u64::from(rounds), 0));
    }
}

#[test]
fn memory_may_be_told_of_anew_while_the_queue_runs() {
    let served = Served::new();
    let mut guest = running(&served, ALL);
    assert_eq!(guest.flush(), 0);
    for _ in 0..10 {
        guest.frontend.set_mem_table(&[guest.ram_region()]).unwrap();
        assert_eq!(guest.flush(), 0);
    }
}
