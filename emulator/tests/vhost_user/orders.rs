//! Message orders of frontends: QEMU's, an old guest's, rebinds, reboots, one frontend
//! after the other.

use std::os::unix::net::UnixListener;
use std::sync::mpsc::channel;
use std::time::Duration;

use emulator::World;
use emulator::sync::Arc;
use emulator::vhost_user::{Medium, Peer, PmemPiece, Unmapped, VhostOptions, VhostServer};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use crate::guest::{
    ALL, Asked, DEVICE, FRONTEND, Guest, Policy, RAM, SHMEM_REGION, SIZE, borrow, memfd, readable_within, region,
    rings, willing,
};
use crate::medium::{BYTES, Event, MIB, Served, TestMedium};

/// A guest that is up and running.
fn running(served: &Served) -> Guest {
    let mut guest = Guest::connect(&served.path());
    guest.realise(willing());
    guest.start();
    assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES));
    guest
}

/// What QEMU does about pieces: it has one or has it not, and says which by its errors.
fn like_qemu() -> Policy {
    let mut mapped: Vec<(u64, u64, u64)> = Vec::new();
    Box::new(move |asked| match asked {
        Asked::Map(at, offset, len) if mapped.iter().all(|(other, _, _)| *other != at) => {
            mapped.push((at, offset, len));
            Ok(())
        }
        Asked::Unmap(at, offset, len) if mapped.contains(&(at, offset, len)) => {
            mapped.retain(|piece| *piece != (at, offset, len));
            Ok(())
        }
        _ => Err(14),
    })
}

fn config(guest: &mut Guest) -> (u64, u64) {
    let (_, bytes) = guest.frontend.get_config(0, 16, VhostUserConfigFlags::empty(), &[0; 16]).unwrap();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    (word(0), word(8))
}

fn fragments(pieces: u64) -> Vec<PmemPiece> {
    let len = BYTES / pieces / 4096 * 4096;
    let piece = |at: u64| PmemPiece {
        guest_offset: at * len,
        // The last of them first.
        device_offset: BYTES - (at + 1) * len,
        len,
    };
    (0..pieces).map(piece).collect()
}

#[test]
fn a_guest_attaches_as_under_qemu_and_flushes() {
    let served = Served::new();
    let mut guest = Guest::connect(&served.path());
    let regions = guest.realise(willing());
    assert_eq!((regions.nregions, &regions.memory_sizes[..3]), (2, &[6 * MIB, 2 * MIB, 0][..]));
    assert_eq!(served.medium.count(|event| *event == Event::Attach), 0, "before a driver took it");
    guest.start();
    assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES));
    // The second table, with the device in it.
    let device = region(DEVICE, BYTES, 0x7e00_0000_0000, 0, &served.medium.file);
    guest.frontend.set_mem_table(&[guest.ram_region(), device]).unwrap();
    assert_eq!(guest.flush(), 0);
    assert_eq!(guest.flush(), 0);
    assert_eq!(served.medium.flushes(), 2);
    // Counted when the answer is there, which the frontend gives after it said what it was asked.
    while served.server.stats().maps == 0 {
        std::thread::yield_now();
    }
    let stats = served.server.stats();
    assert_eq!((stats.requests, stats.flushes, stats.failed, stats.malformed), (2, 2, 0, 0), "{stats:?}");
    assert_eq!((stats.maps, stats.resets, stats.problem.clone()), (1, 0, None), "{stats:?}");
    assert!(served.server.is_connected());
}

#[test]
fn the_medium_learns_who_connected() {
    let served = Served::new();
    let mut guest = Guest::connect(&served.path());
    guest.realise(willing());
    let peer = Peer { pid: Some(std::process::id()), uid: rustix::process::geteuid().as_raw() };
    assert_eq!(*served.medium.events.lock(), [Event::Connect(peer)]);
}

#[test]
fn a_rebind_maps_again_and_counts_from_zero() {
    let served = Served::new();
    let mut guest = running(&served);
    for round in 1..=5 {
        assert_eq!(guest.flush(), 0);
        guest.reset();
        guest.start();
        assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES), "round {round}");
        assert_eq!(served.server.stats().resets, round);
    }
    assert_eq!(guest.flush(), 0);
    assert_eq!(served.medium.count(|event| *event == Event::Attach), 6);
}

#[test]
fn a_machine_that_was_stopped_and_goes_on_keeps_its_pieces() {
    let served = Served::new();
    let mut guest = Guest::connect(&served.path());
    guest.realise(like_qemu());
    guest.start();
    guest.was_asked();
    assert_eq!(guest.flush(), 0);
    // No reset: QEMU still has the piece, the rings go on where they were.
    assert_eq!(guest.frontend.get_vring_base(0).unwrap(), 1);
    guest.go_on(BYTES);
    assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES), "refused, because it is there");
    assert_eq!(guest.flush(), 0);
    assert_eq!(served.server.unmap(), Unmapped { pieces: 1, acknowledged: true });
    assert_eq!(guest.was_asked(), Asked::Unmap(0, 0, BYTES));
    assert_eq!(served.server.stats().problem, None);
}

#[test]
fn pieces_that_are_the_devices_no_longer_go_before_the_new_ones_come() {
    let served = Served::new();
    let mut guest = Guest::connect(&served.path());
    guest.realise(like_qemu());
    guest.start();
    assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES));
    *served.medium.pieces.lock() = fragments(2);
    guest.frontend.get_vring_base(0).unwrap();
    guest.start();
    assert_eq!(guest.was_asked(), Asked::Unmap(0, 0, BYTES));
    assert_eq!(guest.was_asked(), Asked::Map(0, BYTES / 2, BYTES / 2));
    assert_eq!(guest.was_asked(), Asked::Map(BYTES / 2, 0, BYTES / 2));
    assert_eq!(served.server.unmap(), Unmapped { pieces: 2, acknowledged: true });
}

#[test]
fn an_old_guest_learns_the_start_once_it_was_seen() {
    let served = Served::new();
    let mut guest = Guest::connect(&served.path());
    guest.features = ALL & !SHMEM_REGION;
    guest.realise(willing());
    assert_eq!(config(&mut guest), (0, BYTES), "before anything is mapped");
    guest.start();
    guest.was_asked();
    let device = region(DEVICE, BYTES, 0x7e00_0000_0000, 0, &served.medium.file);
    guest.frontend.set_mem_table(&[guest.ram_region(), device]).unwrap();
    assert_eq!(config(&mut guest), (DEVICE, BYTES));
    guest.reset();
    guest.frontend.set_features(guest.features).unwrap();
    guest.frontend.set_mem_table(&[guest.ram_region()]).unwrap();
    assert_eq!(config(&mut guest), (DEVICE, BYTES), "it is where it was");
    guest.frontend.set_config(0, VhostUserConfigFlags::empty(), &[7; 16]).unwrap();
    assert_eq!(config(&mut guest), (DEVICE, BYTES), "it is the device's own");
}

#[test]
fn a_fragmented_device_is_mapped_piece_by_piece() {
    let served = Served::new();
    *served.medium.pieces.lock() = fragments(128);
    let mut guest = Guest::connect(&served.path());
    guest.realise(willing());
    guest.start();
    for piece in fragments(128) {
        assert_eq!(guest.was_asked(), Asked::Map(piece.guest_offset, piece.device_offset, piece.len));
    }
    assert_eq!(guest.flush(), 0);
    assert_eq!(served.server.unmap(), Unmapped { pieces: 128, acknowledged: true });
    for piece in fragments(128) {
        assert_eq!(guest.was_asked(), Asked::Unmap(piece.guest_offset, piece.device_offset, piece.len));
    }
    let stats = served.server.stats();
    assert_eq!((stats.maps, stats.unmaps, stats.problem), (128, 128, None));
}

/// What QEMU says of a piece that it has mapped.
fn told(served: &Served, piece: PmemPiece) -> VhostUserMemoryRegionInfo {
    let frontend = (1 << 45) + piece.guest_offset;
    region(DEVICE + piece.guest_offset, piece.len, frontend, piece.device_offset, &served.medium.file)
}

/// QEMU tells of all its memory before it starts the queue, and does not start if it is told no.
#[test]
fn the_machines_whole_table_is_taken_and_counted() {
    let served = Served::new();
    *served.medium.pieces.lock() = fragments(6);
    let mut guest = Guest::connect(&served.path());
    guest.realise(like_qemu());
    guest.start();
    for _ in 0..6 {
        guest.was_asked();
    }
    guest.frontend.get_vring_base(0).unwrap();
    guest.frontend.set_features(ALL).unwrap();
    let other = memfd(MIB);
    let mut regions: Vec<_> = fragments(6).into_iter().map(|piece| told(&served, piece)).collect();
    regions.extend([guest.ram_region(), region(1 << 40, MIB, 1 << 46, 0, &other)]);
    guest.frontend.set_mem_table(&regions).unwrap();
    guest.start_queue();
    assert_eq!(guest.flush(), 0);
    assert_eq!(config(&mut guest).0, DEVICE);
    let stats = served.server.stats();
    assert_eq!((stats.ram_regions, stats.own_regions, stats.other_regions), (1, 6, 1));
    assert_eq!((stats.violations, stats.problem), (0, None));
    // Rings in a piece would be written to after it was taken away.
    let inside = VringConfigData { desc_table_addr: 1 << 45, ..rings() };
    assert!(guest.frontend.set_vring_addr(0, &inside).is_err());
}

/// With CONFIGURE_MEM_SLOTS, QEMU 11.1 dies at a guest's reset.
#[test]
fn memory_slots_are_never_offered() {
    let served = Served::new();
    *served.medium.pieces.lock() = fragments(128);
    let mut guest = Guest::connect(&served.path());
    guest.realise(willing());
    let offered = guest.frontend.get_protocol_features().unwrap();
    assert!(!offered.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS), "{offered:?}");
}

/// QEMU that can't start the device sends SET_FEATURES, and then nothing.
#[test]
fn a_device_that_is_not_started_is_seen() {
    let served = Served::new();
    let guest = running(&served);
    assert_eq!(served.server.stats().starting_ms, 0);
    guest.frontend.set_features(ALL).unwrap();
    assert!(served.server.stats().starting_ms > 0);
    guest.frontend.set_mem_table(&[guest.ram_region()]).unwrap();
    assert_eq!(served.server.stats().starting_ms, 0);
    guest.frontend.set_features(ALL).unwrap();
    let gone = served.medium.tell_gone();
    guest.hang_up();
    gone.recv().unwrap();
    assert_eq!(served.server.stats().starting_ms, 0, "no frontend is starting it");
}

#[test]
fn pieces_that_are_no_device_are_not_mapped() {
    let whole = PmemPiece { guest_offset: 0, device_offset: 0, len: BYTES };
    for (pieces, says) in [
        (vec![PmemPiece { len: BYTES - 4096, ..whole }], "for a device of"),
        (vec![PmemPiece { device_offset: 512, ..whole }], "multiples of 4096"),
        (vec![PmemPiece { len: 100, ..whole }], "multiples of 4096"),
        (vec![PmemPiece { len: 0, ..whole }], "multiples of 4096"),
        (vec![PmemPiece { device_offset: u64::MAX - 4095, ..whole }], "multiples of 4096"),
        (vec![PmemPiece { guest_offset: 4096, ..whole }], "end at 0"),
        (vec![whole, whole], "end at 6291456"),
        (fragments(129), "at most 128"),
    ] {
        let served = Served::new();
        *served.medium.pieces.lock() = pieces;
        let (attaching, go_on) = served.medium.hold_attaches();
        // It need not wait: the frontend's messages wait for it.
        go_on.send(()).unwrap();
        let mut guest = Guest::connect(&served.path());
        guest.realise(willing());
        guest.start();
        attaching.recv().unwrap();
        assert_eq!(guest.flush(), 1);
        // The first attach is over when the second begins.
        go_on.send(()).unwrap();
        guest.frontend.set_features(ALL).unwrap();
        attaching.recv().unwrap();
        assert!(guest.asked.try_recv().is_err());
        let stats = served.server.stats();
        let problem = stats.problem.unwrap();
        assert!(stats.maps == 0 && problem.starts_with("nothing is mapped: ") && problem.contains(says), "{problem}");
    }
}

#[test]
fn a_revoke_unmaps_what_is_mapped_and_a_later_driver_gets_what_there_is() {
    let served = Served::new();
    assert_eq!(served.server.unmap(), Unmapped { pieces: 0, acknowledged: true }, "no frontend is connected");
    let mut guest = running(&served);
    let pieces = std::mem::take(&mut *served.medium.pieces.lock());
    assert_eq!(served.server.unmap(), Unmapped { pieces: 1, acknowledged: true });
    assert_eq!(guest.was_asked(), Asked::Unmap(0, 0, BYTES));
    assert_eq!(served.server.unmap(), Unmapped { pieces: 0, acknowledged: true }, "once is enough");
    guest.reset();
    let (attaching, go_on) = served.medium.hold_attaches();
    guest.start();
    attaching.recv().unwrap();
    go_on.send(()).unwrap();
    *served.medium.pieces.lock() = pieces;
    guest.reset();
    guest.start();
    attaching.recv().unwrap();
    go_on.send(()).unwrap();
    // Either of the two mapped it, depending on when it looked; none asked for anything else.
    assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES));
    assert_eq!(guest.flush(), 0);
}

#[test]
fn a_revoke_while_the_medium_is_being_asked_wins() {
    let served = Served::new();
    let (attaching, go_on) = served.medium.hold_attaches();
    let mut guest = Guest::connect(&served.path());
    guest.realise(willing());
    guest.start();
    attaching.recv().unwrap();
    assert_eq!(served.server.unmap(), Unmapped { pieces: 0, acknowledged: true });
    go_on.send(()).unwrap();
    assert_eq!(guest.flush(), 1);
    // The first attach is over when the second begins.
    guest.frontend.set_features(ALL).unwrap();
    attaching.recv().unwrap();
    assert!(guest.asked.try_recv().is_err());
    go_on.send(()).unwrap();
    assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES), "for the driver that came later");
}

#[test]
fn a_revoke_between_two_pieces_wins() {
    let served = Served::new();
    *served.medium.pieces.lock() = fragments(3);
    let mut guest = Guest::connect(&served.path());
    let (second, is_second) = channel();
    let (answer, answers) = channel::<()>();
    guest.realise(Box::new(move |asked| {
        if matches!(asked, Asked::Map(at, ..) if at == BYTES / 3) {
            second.send(()).unwrap();
            answers.recv().unwrap();
        }
        Ok(())
    }));
    guest.start();
    is_second.recv().unwrap();
    std::thread::scope(|scope| {
        let unmap = scope.spawn(|| served.server.unmap());
        while served.server.stats().revokes == 0 {
            std::thread::yield_now();
        }
        answer.send(()).unwrap();
        assert_eq!(unmap.join().unwrap(), Unmapped { pieces: 2, acknowledged: true });
    });
    let third = BYTES / 3;
    assert_eq!(guest.was_asked(), Asked::Map(0, 2 * third, third));
    assert_eq!(guest.was_asked(), Asked::Map(third, third, third));
    assert_eq!(guest.was_asked(), Asked::Unmap(0, 2 * third, third));
    assert_eq!(guest.was_asked(), Asked::Unmap(third, third, third));
    assert_eq!(guest.flush(), 1);
    assert!(guest.asked.try_recv().is_err());
}

#[test]
fn a_frontend_that_refuses_a_piece_gets_none() {
    let served = Served::new();
    *served.medium.pieces.lock() = fragments(3);
    let third = BYTES / 3;
    let mut guest = Guest::connect(&served.path());
    guest.realise(Box::new(
        move |asked| if matches!(asked, Asked::Map(at, ..) if at == 2 * third) { Err(22) } else { Ok(()) },
    ));
    guest.start();
    for at in [0, third, 2 * third] {
        assert_eq!(guest.was_asked(), Asked::Map(at, BYTES - at - third, third));
    }
    for at in [0, third] {
        assert_eq!(guest.was_asked(), Asked::Unmap(at, BYTES - at - third, third));
    }
    let problem = served.server.stats().problem.unwrap();
    assert!(problem.contains("the frontend refused") && problem.contains("-22"), "{problem}");
    assert_eq!(guest.flush(), 1, "answered, and nothing is durable");
}

#[test]
fn nothing_is_mapped_for_who_can_not_acknowledge() {
    let needed = [
        VhostUserProtocolFeatures::SHMEM,
        VhostUserProtocolFeatures::REPLY_ACK,
        VhostUserProtocolFeatures::BACKEND_SEND_FD,
    ];
    for missing in needed {
        let served = Served::new();
        let mut guest = Guest::connect(&served.path());
        guest.negotiate(VhostUserProtocolFeatures::all() & !missing);
        guest.give_channel(willing());
        guest.start();
        assert_eq!(guest.flush(), 1);
        while served.server.stats().problem.is_none() {
            std::thread::yield_now();
        }
        let problem = served.server.stats().problem.unwrap();
        assert!(problem.starts_with("nothing is mapped: the frontend did not negotiate "), "{problem}");
        let (name, _) = missing.iter_names().next().unwrap();
        assert!(problem.contains(name), "{problem}");
        assert_eq!(served.medium.count(|event| *event == Event::Attach), 0);
    }
}

/// The frontend answers the map request too late for what the driver may have stored before.
#[test]
fn a_flush_fails_from_a_late_mapping_until_the_guest_begins_anew() {
    let world = Arc::new(World::manual(0));
    let options = VhostOptions { world: Arc::clone(&world), ..VhostOptions::default() };
    let served = Served::with_options(TestMedium::new(), options);
    let (answer, answers) = channel();
    let mut guest = Guest::connect(&served.path());
    let mut like_qemu = like_qemu();
    guest.realise(Box::new(move |asked| {
        answers.recv().unwrap();
        like_qemu(asked)
    }));
    // It is held until the request was sent, and no longer.
    guest.start();
    world.advance(Duration::from_millis(500));
    answer.send(()).unwrap();
    assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES));
    assert_eq!(guest.flush(), 0, "just in time");

    for (unmaps, expected, why) in [
        (true, 1, "late"),
        (false, 1, "there was no reset: the piece is refused"),
        (true, 0, "the guest has begun anew"),
    ] {
        guest.reset();
        if unmaps {
            // The reset takes the pieces away, which QEMU does not tell.
            answer.send(()).unwrap();
            assert_eq!(served.server.unmap(), Unmapped { pieces: 1, acknowledged: true });
            assert_eq!(guest.was_asked(), Asked::Unmap(0, 0, BYTES));
        }
        if unmaps {
            guest.start()
        } else {
            guest.go_on(BYTES)
        }
        world.advance(Duration::from_millis(if why == "late" { 501 } else { 0 }));
        answer.send(()).unwrap();
        assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES), "{why}");
        assert_eq!(guest.flush(), expected, "{why}");
    }
    assert_eq!(served.medium.flushes(), 2, "a flush that can't succeed reaches no medium");
}

/// CONFIG was not negotiated: nothing is sent that needs it, and a revoke ends all the same.
#[test]
fn a_revoke_without_config_unmaps_twice() {
    let served = Served::new();
    let mut guest = Guest::connect(&served.path());
    guest.negotiate(VhostUserProtocolFeatures::all() & !VhostUserProtocolFeatures::CONFIG);
    guest.give_channel(like_qemu());
    guest.start();
    assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES));
    assert_eq!(guest.flush(), 0);
    assert_eq!(served.server.unmap(), Unmapped { pieces: 1, acknowledged: true });
    assert_eq!(guest.was_asked(), Asked::Unmap(0, 0, BYTES));
    assert_eq!(guest.was_asked(), Asked::Unmap(0, 0, BYTES));
    assert_eq!(served.server.stats().problem, None);
}

#[test]
fn one_frontend_after_the_other() {
    let served = Served::new();
    let gone = served.medium.tell_gone();
    for _ in 0..3 {
        let mut guest = running(&served);
        assert_eq!(guest.flush(), 0);
        guest.hang_up();
        gone.recv().unwrap();
    }
    let events = served.medium.events.lock().clone();
    assert_eq!(events.len(), 12);
    for one in events.chunks(4) {
        assert!(matches!(one, [Event::Connect(_), Event::Attach, Event::Flush, Event::Gone]), "{one:?}");
    }
    assert_eq!(served.server.stats().broken, 0);
}

#[test]
fn a_second_frontend_is_hung_up_on_at_once_and_both_sides_can_tell() {
    let served = Served::new();
    let mut first = running(&served);
    for round in 1..=3 {
        let second = Guest::connect(&served.path());
        assert!(second.frontend.get_features().is_err());
        assert_eq!(served.server.stats().refused, round);
    }
    let problem = served.server.stats().problem.unwrap();
    let pid = std::process::id();
    let says =
        format!("connection refused: process {pid} connected while process {pid} is attached: one guest at a time");
    assert_eq!(problem, says);
    assert_eq!(first.flush(), 0, "the first one has not noticed");
    assert_eq!(served.medium.count(|event| matches!(event, Event::Connect(_))), 1);
}

/// A machine that is started anew at once: its first frontend's flush still runs.
#[test]
fn a_frontend_that_comes_after_the_hang_up_of_the_first_waits_for_its_end() {
    let served = Served::new();
    let (flushing, end) = served.medium.hold_flushes();
    let mut first = running(&served);
    first.request(0, 0);
    first.kick();
    flushing.recv().unwrap();
    first.hang_up();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| running(&served));
        end.send(Ok(())).unwrap();
        second.join().unwrap();
    });
    let events = served.medium.events.lock().clone();
    let ends: Vec<_> = events.iter().filter(|event| matches!(event, Event::Connect(_) | Event::Gone)).collect();
    assert!(matches!(ends[..3], [Event::Connect(_), Event::Gone, Event::Connect(_)]), "{ends:?}");
    assert_eq!(served.server.stats().refused, 0);
}

#[test]
fn two_guests_do_not_wait_for_one_another() {
    let (slow, quick) = (Served::new(), Served::new());
    let (flushing, end) = slow.medium.hold_flushes();
    let (mut first, mut second) = (running(&slow), running(&quick));
    first.request(0, 0);
    first.kick();
    flushing.recv().unwrap();
    assert_eq!(second.flush(), 0);
    assert_eq!(first.used_index(), 0);
    end.send(Ok(())).unwrap();
    assert_eq!(first.answer(), (0, 4));
}

#[test]
fn who_is_not_wanted_is_sent_away_and_the_next_is_served() {
    let served = Served::new();
    *served.medium.admit.lock() = Err("the file is gone".to_owned());
    let guest = Guest::connect(&served.path());
    assert!(guest.frontend.get_features().is_err());
    assert_eq!(served.server.stats().problem.as_deref(), Some("connection refused: the file is gone"));
    *served.medium.admit.lock() = Ok(BYTES);
    assert_eq!(running(&served).flush(), 0);
    assert_eq!(served.server.stats().refused, 1);
    assert!(matches!(served.medium.events.lock()[0], Event::Connect(_)), "no other frontend was connected");
}

#[test]
fn a_medium_of_no_size_a_guest_can_have_is_given_up_again() {
    for bytes in [0, MIB, 3 * MIB, u64::MAX, 2 << 40] {
        let served = Served::new();
        let gone = served.medium.tell_gone();
        *served.medium.admit.lock() = Ok(bytes);
        let guest = Guest::connect(&served.path());
        assert!(guest.frontend.get_features().is_err());
        gone.recv().unwrap();
        assert!(served.server.stats().problem.unwrap().contains("multiple of 2 MiB"));
        assert_eq!(served.medium.gones(), 1);
    }
}

#[test]
fn a_joined_server_serves_its_guest_to_the_end_and_nobody_else() {
    let Served { folder, medium, server } = Served::new();
    let path = folder.path().join("guest.sock");
    let mut guest = Guest::connect(&path);
    guest.realise(willing());
    guest.start();
    std::thread::scope(|scope| {
        let join = scope.spawn(|| server.join());
        assert_eq!(guest.flush(), 0);
        guest.reset();
        guest.start();
        assert_eq!(guest.flush(), 0);
        guest.hang_up();
        join.join().unwrap();
    });
    assert_eq!(medium.gones(), 1);
    assert!(!path.exists());
}

#[test]
fn a_dropped_server_hangs_up() {
    let Served { folder, medium, server } = Served::new();
    let path = folder.path().join("guest.sock");
    let mut guest = Guest::connect(&path);
    guest.realise(willing());
    guest.start();
    drop(server);
    assert!(guest.frontend.get_features().is_err());
    assert_eq!(medium.gones(), 1);
    assert!(!path.exists());
    // The path is free again at once.
    let server =
        VhostServer::start(UnixListener::bind(&path).unwrap(), Arc::clone(&medium) as Arc<dyn Medium>, || {}).unwrap();
    drop(server);
    drop(TestMedium::new());
}

/// A machine that goes on after a stop: its queue runs before the frontend sets the call descriptor
/// again. Nothing else signals that answer.
#[test]
fn an_answer_from_before_set_vring_call_is_signalled() {
    let served = Served::new();
    let mut guest = running(&served);
    assert_eq!(guest.flush(), 0);
    guest.frontend.get_vring_base(0).unwrap();
    guest.request(0, 0);
    guest.kick();
    guest.frontend.set_vring_num(0, SIZE).unwrap();
    guest.frontend.set_vring_base(0, 1).unwrap();
    guest.frontend.set_vring_addr(0, &rings()).unwrap();
    guest.frontend.set_vring_kick(0, &guest.kick).unwrap();
    guest.frontend.set_vring_enable(0, true).unwrap();
    while guest.used_index() != 2 {
        std::thread::yield_now();
    }
    guest.frontend.set_vring_call(0, &guest.call).unwrap();
    assert!(readable_within(borrow(&guest.call), 0), "the answer is never heard of");
}

/// What a guest can make QEMU say: sizes and addresses of rings are its own choice.
#[test]
fn rings_that_a_guest_can_not_have_cost_it_its_queue_and_not_its_connection() {
    let served = Served::new();
    let gone = served.medium.tell_gone();
    let mut guest = running(&served);
    let device = region(DEVICE, BYTES, 0x7e00_0000_0000, 0, &served.medium.file);
    guest.frontend.set_mem_table(&[guest.ram_region(), device]).unwrap();
    type Wrong = fn(&mut Guest) -> bool;
    let wrong: [(&str, Wrong); 7] = [
        ("3 descriptors", |guest| guest.frontend.set_vring_num(0, 3).is_err()),
        ("2048 descriptors", |guest| guest.frontend.set_vring_num(0, 2048).is_err()),
        ("rings that are not aligned", |guest| {
            let odd = VringConfigData { used_ring_addr: FRONTEND + 0x6001, ..rings() };
            guest.frontend.set_vring_addr(0, &odd).is_err()
        }),
        ("rings that are aligned only where the frontend has them", |guest| {
            // The guest's memory begins at an odd address of the frontend's.
            let odd = region(0, RAM, FRONTEND + 8, 0, &guest.ram);
            guest.frontend.set_mem_table(&[odd]).unwrap();
            guest.frontend.set_vring_addr(0, &rings()).is_err()
        }),
        ("a used ring without an index", |guest| {
            let short = region(0, 0x6002, FRONTEND, 0, &guest.ram);
            guest.frontend.set_mem_table(&[short]).unwrap();
            guest.frontend.set_vring_addr(0, &rings()).is_err()
        }),
        ("rings outside memory", |guest| {
            let outside = VringConfigData { desc_table_addr: FRONTEND + RAM, ..rings() };
            guest.frontend.set_vring_addr(0, &outside).is_err()
        }),
        ("rings in the device", |guest| {
            let inside = VringConfigData { desc_table_addr: 0x7e00_0000_0000, ..rings() };
            guest.frontend.set_vring_addr(0, &inside).is_err()
        }),
    ];
    for (what, worst) in wrong {
        guest.reset();
        guest.start();
        assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES));
        assert_eq!(guest.flush(), 0, "{what}");
        guest.reset();
        guest.frontend.set_vring_num(0, SIZE).unwrap();
        guest.frontend.set_vring_base(0, 0).unwrap();
        guest.frontend.set_vring_addr(0, &rings()).unwrap();
        assert!(worst(&mut guest), "{what}");
        guest.request(0, 0);
        guest.frontend.set_vring_kick(0, &guest.kick).unwrap();
        guest.frontend.set_vring_call(0, &guest.call).unwrap();
        guest.frontend.set_vring_enable(0, true).unwrap();
        guest.kick();
        assert_eq!(guest.frontend.get_vring_base(0).unwrap(), 0, "{what}: nothing is taken");
        assert!(gone.try_recv().is_err(), "{what}: it still has its pieces");
    }
    guest.reset();
    guest.start();
    assert_eq!(guest.flush(), 0);
}

/// The frontend did not go, it was sent away: it has its memory as long as it is told nothing else.
#[test]
fn who_is_sent_away_loses_the_pieces_first() {
    type End = fn(&Served, &mut Guest);
    let ends: [(&str, End); 3] = [
        ("a wrong message without an answer", |_, guest| {
            // No answer is asked for, as by QEMU, which then waits for the answer to the next
            // message.
            guest.frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
            guest.frontend.set_features(1 << 60).unwrap();
        }),
        ("a wrong message", |_, guest| assert!(guest.frontend.set_features(1 << 60).is_err())),
        ("a bug behind the device", |served, guest| {
            *served.medium.panics.lock() = true;
            guest.request(0, 0);
            guest.kick();
        }),
    ];
    for (what, end) in ends {
        let served = Served::new();
        let gone = served.medium.tell_gone();
        let mut guest = running(&served);
        end(&served, &mut guest);
        gone.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        assert_eq!(guest.asked.try_recv(), Ok(Asked::Unmap(0, 0, BYTES)), "{what}");
    }
}

#[test]
fn connections_leave_no_descriptor_behind() {
    fn held() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }
    // Alone in its process: other tests' descriptors come and go.
    if std::env::var_os("DAXLAB_ALONE").is_none() {
        let this = std::env::current_exe().unwrap();
        let name = "orders::connections_leave_no_descriptor_behind";
        let alone = std::process::Command::new(this).args(["--exact", name]).env("DAXLAB_ALONE", "1").output().unwrap();
        assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stdout));
        assert!(String::from_utf8_lossy(&alone.stdout).contains("1 passed"));
        return;
    }
    let served = Served::new();
    let gone = served.medium.tell_gone();
    let mut before = 0;
    for round in 0..60 {
        let mut guest = running(&served);
        assert_eq!(guest.flush(), 0);
        guest.reset();
        guest.start();
        // What is being asked on the old channel would be taken for unanswered.
        assert_eq!(guest.flush(), 0);
        guest.close_channel();
        guest.give_channel(willing());
        match round % 3 {
            0 => assert!(guest.frontend.set_features(1 << 60).is_err()),
            1 => assert!(served.server.unmap().acknowledged),
            _ => {}
        }
        drop(guest);
        gone.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        if round == 9 {
            before = held();
        }
    }
    // One connection may be just ending.
    assert!(held() <= before + 5, "{} descriptors after 10 connections, {} after 60", before, held());
}

/// The guest may not have been interrupted for answers that came before.
#[test]
fn a_new_call_descriptor_is_rung_at_once_and_never_blocks() {
    let served = Served::new();
    let mut guest = running(&served);
    assert_eq!(guest.flush(), 0);
    let call = EventFd::new(0).unwrap();
    guest.frontend.set_vring_call(0, &call).unwrap();
    assert!(readable_within(borrow(&call), 0), "it is not rung");
    let flags = rustix::fs::fcntl_getfl(borrow(&call)).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::NONBLOCK), "{flags:?}");
}

#[test]
fn a_queue_whose_new_size_was_declined_stands_still() {
    let served = Served::new();
    let mut guest = running(&served);
    assert_eq!(guest.flush(), 0);
    // Until this one, which also empties it.
    guest.frontend.set_vring_call(0, &guest.call).unwrap();
    guest.call.read().unwrap();
    assert!(guest.frontend.set_vring_num(0, 3).is_err());
    guest.request(0, 0);
    guest.kick();
    assert!(!readable_within(borrow(&guest.call), 1), "it runs with the size it had");
    guest.frontend.set_vring_num(0, SIZE).unwrap();
    assert_eq!(guest.answer(), (0, 4), "it goes on where it was");
}

/// A second driver takes the device while the medium is still being asked for the first.
#[test]
fn a_revoke_cancels_a_driver_that_waits_for_its_turn() {
    let served = Served::new();
    let mut guest = Guest::connect(&served.path());
    guest.realise(willing());
    let (begins, end) = served.medium.hold_attaches();
    guest.start();
    begins.recv().unwrap();
    guest.frontend.set_features(ALL).unwrap();
    assert_eq!(served.server.unmap(), Unmapped { pieces: 0, acknowledged: true });
    end.send(()).unwrap();
    drop(end);
    assert_eq!(guest.flush(), 1, "nothing is mapped");
    assert!(guest.asked.try_recv().is_err());
    assert_eq!(served.medium.count(|event| *event == Event::Attach), 1);
}
