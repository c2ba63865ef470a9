//! Frontends that refuse a piece, negotiate anew, or send what is no message; a start that is held.

use std::time::Duration;

use emulator::World;
use emulator::sync::{Arc, Mutex, thread};
use emulator::vhost_user::VhostOptions;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use crate::guest::{Asked, Guest, willing};
use crate::medium::{Event, Served, TestMedium};

#[test]
fn a_start_that_was_held_is_not_told_as_one_that_failed() {
    let world = Arc::new(World::manual(0));
    let options = VhostOptions { world: Arc::clone(&world), ..VhostOptions::default() };
    let served = Served::with_options(TestMedium::new(), options);
    let mut guest = Guest::connect(&served.path());
    guest.realise(willing());
    let (begins, end) = served.medium.hold_attaches();
    let ender = thread::spawn(move || {
        begins.recv().unwrap();
        // The driver is let go without its device, and its frontend goes on.
        world.advance(Duration::from_millis(1_100));
        end.send(()).unwrap();
    });
    guest.start();
    ender.join().unwrap();
    guest.flush();
    assert_eq!(served.medium.count(|event| *event == Event::NotStarted), 0);
}

#[test]
fn a_channel_is_not_used_for_what_was_negotiated_away() {
    let served = Served::new();
    let mut guest = Guest::connect(&served.path());
    guest.realise(willing());
    let offered = guest.frontend.get_protocol_features().unwrap();
    guest.frontend.set_protocol_features(offered & !VhostUserProtocolFeatures::BACKEND_SEND_FD).unwrap();
    guest.start();
    guest.flush();
    assert!(guest.asked.try_recv().is_err(), "a descriptor was sent without BACKEND_SEND_FD");
}

/// QEMU's answer is the same whether the piece is there or its mmap(2) failed.
#[test]
fn a_piece_that_the_memory_table_does_not_show_is_not_there() {
    let served = Served::new();
    let mut guest = Guest::connect(&served.path());
    let mut maps = 0;
    guest.realise(Box::new(move |asked| {
        maps += i32::from(matches!(asked, Asked::Map(..)));
        if maps == 2 { Err(libc::EFAULT) } else { Ok(()) }
    }));
    guest.start();
    assert_eq!(guest.flush(), 0);
    guest.reset();
    guest.start();
    assert_eq!(guest.flush(), 1, "nothing is mapped");
}

#[test]
fn a_header_that_is_none_is_a_violation() {
    let reported = Arc::new(Mutex::new(Vec::new()));
    let report = Arc::clone(&reported);
    let violations: Option<emulator::vhost_user::ViolationReport> =
        Some(Arc::new(move |what: &str| report.lock().push(what.to_owned())));
    let served = Served::with_options(TestMedium::new(), VhostOptions { violations, ..VhostOptions::default() });
    let gone = served.medium.tell_gone();
    let guest = Guest::connect(&served.path());
    let header: Vec<u8> = [1_u32, 2, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    rustix::io::write(guest.socket(), &header).unwrap();
    gone.recv().unwrap();
    assert_eq!((served.server.stats().violations, reported.lock().len()), (1, 1), "{:?}", served.server.stats());
}
