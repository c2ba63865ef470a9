//! Frontends that break the protocol: each loses its connection, and nothing else happens.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use emulator::vhost_user::{MessageLimits, VhostOptions, VhostStats};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::{VhostBackend, VringConfigData};

use crate::guest::{ALL, Asked, FRONTEND, Guest, PROTOCOL, RAM, borrow, into_file, memfd, region, rings, willing};
use crate::medium::{BYTES, Served, TestMedium};

/// Lets a frontend do its worst; then the medium must have been told once that it is gone, and the
/// next guest be served.
fn survives(what: &str, worst: impl FnOnce(&Served, Guest)) -> VhostStats {
    let served = Served::new();
    let gone = served.medium.tell_gone();
    worst(&served, Guest::connect(&served.path()));
    gone.recv_timeout(std::time::Duration::from_secs(60)).unwrap_or_else(|_| panic!("{what}: not given up"));
    let mut next = Guest::connect(&served.path());
    next.realise(willing());
    next.start();
    assert_eq!(next.was_asked(), Asked::Map(0, 0, BYTES), "{what}");
    assert_eq!(next.flush(), 0, "{what}");
    assert_eq!(served.medium.gones(), 1, "{what}");
    served.server.stats()
}

/// Up to a running queue.
fn started(mut guest: Guest) -> Guest {
    guest.realise(willing());
    guest.start();
    guest
}

fn message(code: u32, flags: u32, size: u32, body: &[u8]) -> Vec<u8> {
    [&code.to_le_bytes()[..], &flags.to_le_bytes(), &size.to_le_bytes(), body].concat()
}

fn send(guest: &Guest, bytes: &[u8], files: &[BorrowedFd<'_>]) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(files)));
    }
    rustix::net::sendmsg(guest.socket(), &[std::io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
}

#[test]
fn bytes_that_are_no_message() {
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("one byte", vec![1]),
        ("most of a header", message(1, 1, 0, &[])[..11].to_vec()),
        ("zeros", vec![0; 64]),
        ("ones", vec![255; 64]),
        ("a text", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_vec()),
        ("request 0", message(0, 1, 0, &[])),
        ("an unknown request", message(1000, 1, 0, &[])),
        ("a request that was not offered", message(34, 1, 0, &[])),
        ("version 0", message(1, 0, 0, &[])),
        ("version 3", message(1, 3, 0, &[])),
        ("a reply", message(1, 5, 0, &[])),
        ("a body of 4 GiB", message(2, 1, u32::MAX, &[0; 100])),
        ("a body past the longest", message(2, 1, 4097, &[0; 4097])),
        ("a body that does not come", message(2, 1, 8, &[])),
        ("half a body", message(2, 1, 8, &[0; 4])),
        ("a body too short", message(2, 1, 4, &[0; 4])),
        ("a body too long", message(2, 1, 16, &[0; 16])),
        ("no regions", message(5, 1, 8, &[0; 8])),
        ("regions without descriptors", message(5, 1, 40, &[&[1, 0, 0, 0, 0, 0, 0, 0][..], &[1; 32]].concat())),
        ("more regions than it has", message(5, 1, 40, &[&[9, 0, 0, 0, 0, 0, 0, 0][..], &[1; 32]].concat())),
        ("a channel without a descriptor", message(21, 1, 0, &[])),
        ("memory without slots negotiated", message(37, 1, 40, &[1; 40])),
        ("configuration before it was negotiated", message(24, 1, 28, &[0; 28])),
    ];
    for (what, bytes) in table {
        let stats = survives(what, |_, guest| {
            let _refused = guest.socket().write_all(&bytes);
            // What was not whole is known not to be when nothing follows.
            guest.hang_up();
        });
        assert_eq!(stats.broken, u64::from(!bytes.is_empty()), "{what}");
        assert_eq!(stats.connections, 2, "{what}");
    }
}

#[test]
fn messages_that_ask_for_too_much() {
    type Worst = fn(&mut Guest) -> bool;
    let table: &[(&str, Worst)] = &[
        ("features that were not offered", |guest| guest.frontend.set_features(ALL | 1 << 35).is_err()),
        ("owner twice", |guest| guest.frontend.set_owner().is_err()),
        ("a queue of 3", |guest| guest.frontend.set_vring_num(0, 3).is_err()),
        ("a queue of 0", |guest| guest.frontend.set_vring_num(0, 0).is_err()),
        ("a queue of 2048", |guest| guest.frontend.set_vring_num(0, 2048).is_err()),
        ("rings outside memory", |guest| {
            let outside = VringConfigData { desc_table_addr: FRONTEND + RAM, ..rings() };
            guest.frontend.set_vring_addr(0, &outside).is_err()
        }),
        ("rings that are not aligned", |guest| {
            let odd = VringConfigData { used_ring_addr: FRONTEND + 0x6001, ..rings() };
            guest.frontend.set_vring_addr(0, &odd).is_err()
        }),
        ("a used ring at the end of memory", |guest| {
            let end = VringConfigData { used_ring_addr: FRONTEND + RAM - 4, ..rings() };
            // Its index lies in memory, its entries do not: the queue does not run.
            guest.frontend.set_vring_addr(0, &end).unwrap();
            guest.request(0, 0);
            guest.kick();
            guest.frontend.get_vring_base(0).unwrap() == 0
        }),
        ("memory longer than its file", |guest| {
            let long = region(0, 2 * RAM, FRONTEND, 0, &guest.ram);
            guest.frontend.set_mem_table(&[long]).is_err()
        }),
        ("memory that overlaps", |guest| {
            let (one, two) = (guest.ram_region(), region(RAM / 2, RAM, 1 << 45, 0, &guest.ram));
            guest.frontend.set_mem_table(&[one, two]).is_err()
        }),
        ("memory past the end of all addresses", |guest| {
            guest.frontend.set_mem_table(&[region(u64::MAX - 4095, RAM, FRONTEND, 0, &guest.ram)]).is_err()
        }),
        ("memory past the end of the frontend's addresses", |guest| {
            guest.frontend.set_mem_table(&[region(0, 4096, u64::MAX - 10, 0, &guest.ram)]).is_err()
        }),
        ("memory of an odd part of its file", |guest| {
            guest.frontend.set_mem_table(&[region(0, 4096, FRONTEND, 512, &guest.ram)]).is_err()
        }),
        ("memory that is sealed against stores", |guest| {
            // What no check of the relay's shows: the daemon fails, and its connection ends.
            let sealed = rustix::fs::memfd_create("sealed", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
            rustix::fs::ftruncate(&sealed, 4096).unwrap();
            rustix::fs::fcntl_add_seals(&sealed, rustix::fs::SealFlags::WRITE).unwrap();
            let refused = guest.frontend.set_mem_table(&[region(0, 4096, FRONTEND, 0, &into_file(sealed))]).is_err();
            // It is answered until it has unmapped.
            while guest.frontend.get_features().is_ok() {
                std::thread::yield_now();
            }
            refused && (guest.was_asked(), guest.was_asked()) == (Asked::Map(0, 0, BYTES), Asked::Unmap(0, 0, BYTES))
        }),
        ("no memory but the device", |guest| {
            assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES));
            let device = guest.file.lock().take().unwrap();
            guest.frontend.set_mem_table(&[region(0, 4096, FRONTEND, 0, &device)]).is_err()
        }),
        ("memory that is a device node", |guest| {
            guest.frontend.set_mem_table(&[region(0, 4096, FRONTEND, 0, &File::open("/dev/zero").unwrap())]).is_err()
        }),
        ("memory that can only be read", |guest| {
            let file = File::open("/proc/self/exe").unwrap();
            guest.frontend.set_mem_table(&[region(0, 4096, FRONTEND, 0, &file)]).is_err()
        }),
        ("a reset that was not offered", |guest| guest.frontend.reset_device().is_err()),
    ];
    for (what, worst) in table {
        survives(what, |_, guest| {
            let mut guest = started(guest);
            assert!(worst(&mut guest), "{what}");
            drop(guest);
        });
    }
}

#[test]
fn descriptors_that_are_not_what_they_should_be() {
    let file = memfd(4096);
    let (pipe, _other) = std::io::pipe().unwrap();
    let index = |value: u64| message(12, 9, 8, &value.to_le_bytes());
    let bell = |code: u32| message(code, 9, 8, &0_u64.to_le_bytes());
    // A store there raises SIGPIPE.
    let (_, broken) = std::os::unix::net::UnixStream::pair().unwrap();
    type Files<'a> = Vec<BorrowedFd<'a>>;
    let table: Vec<(&str, Vec<u8>, Files<'_>)> = vec![
        ("a kick that can't be waited for", index(0), vec![file.as_fd()]),
        ("a kick that is ready for ever", index(0), vec![pipe.as_fd()]),
        ("a call that is no eventfd", bell(13), vec![broken.as_fd()]),
        ("an error descriptor that is no eventfd", bell(14), vec![broken.as_fd()]),
        ("a kick that says it has none", index(0x100), vec![file.as_fd()]),
        ("a kick that has none", index(0), vec![]),
        ("a kick for queue 1", index(1), vec![pipe.as_fd()]),
        ("two kicks", index(0), vec![pipe.as_fd(), pipe.as_fd()]),
        ("a channel that is no socket", message(21, 9, 0, &[]), vec![file.as_fd()]),
        ("two channels", message(21, 9, 0, &[]), vec![file.as_fd(), file.as_fd()]),
        ("descriptors with a request that has none", message(1, 1, 0, &[]), vec![file.as_fd()]),
    ];
    for (what, bytes, files) in table {
        survives(what, |_, mut guest| {
            guest.realise(willing());
            send(&guest, &bytes, &files);
            // Answers go on until it was asked to unmap.
            while guest.frontend.get_features().is_ok() {
                std::thread::yield_now();
            }
        });
    }
}

/// The specification lets a frontend have its queue polled. It is told no, and goes on.
#[test]
fn a_kick_without_a_descriptor_is_answered() {
    let stats = survives("polling", |_, guest| {
        let mut guest = started(guest);
        send(&guest, &message(12, 9, 8, &0x100_u64.to_le_bytes()), &[]);
        let mut reply = [0; 20];
        guest.socket().read_exact(&mut reply).unwrap();
        assert_eq!(reply.to_vec(), message(12, 5, 8, &1_u64.to_le_bytes()));
        assert_eq!(guest.flush(), 0, "the kick that it gave before is used");
    });
    assert_eq!((stats.broken, stats.declined), (0, 1));
    assert!(stats.problem.unwrap().contains("not polled"));
}

/// A second kick descriptor while the queue runs: from then on only this one tells.
#[test]
fn a_kick_is_replaced_while_the_queue_runs() {
    survives("two kicks", |_, guest| {
        let mut guest = started(guest);
        assert_eq!(guest.flush(), 0);
        for _ in 0..3 {
            let new = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
            guest.frontend.set_vring_kick(0, &new).unwrap();
            guest.kick = new;
            assert_eq!(guest.flush(), 0);
        }
    });
}

fn impatient(first_message: u64, rest_of_message: u64) -> Served {
    let limits = MessageLimits {
        first_message: std::time::Duration::from_millis(first_message),
        rest_of_message: std::time::Duration::from_millis(rest_of_message),
    };
    Served::with_options(TestMedium::new(), VhostOptions { limits, ..VhostOptions::default() })
}

#[test]
fn a_frontend_that_says_nothing_is_hung_up_on() {
    for half in [&[][..], &message(1, 1, 0, &[])[..7], &message(2, 1, 8, &[0; 3])] {
        let served = impatient(20, 3_600_000);
        let gone = served.medium.tell_gone();
        let guest = Guest::connect(&served.path());
        guest.socket().write_all(half).unwrap();
        let mut rest = Vec::new();
        let _reset_or_end = guest.socket().read_to_end(&mut rest);
        gone.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        assert_eq!(rest, []);
        let problem = served.server.stats().problem.unwrap();
        assert_eq!(problem, "connection ended: no whole message within 20ms of connecting");
    }
}

#[test]
fn a_frontend_that_stops_in_a_message_loses_its_pieces_and_is_hung_up_on() {
    for half in [&message(1, 1, 0, &[])[..7], &message(2, 1, 8, &[0; 3])] {
        let served = impatient(3_600_000, 20);
        let gone = served.medium.tell_gone();
        let guest = started(Guest::connect(&served.path()));
        assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES));
        guest.socket().write_all(half).unwrap();
        gone.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        assert_eq!(guest.was_asked(), Asked::Unmap(0, 0, BYTES));
        let problem = served.server.stats().problem.unwrap();
        assert_eq!(problem, "connection ended: a message that began and was not whole within 20ms");
    }
}

/// It sends requests for ever, and reads no reply.
#[test]
fn a_frontend_that_reads_no_replies_is_hung_up_on() {
    let served = impatient(3_600_000, 20);
    let gone = served.medium.tell_gone();
    let guest = Guest::connect(&served.path());
    let request = message(1, 1, 0, &[]).repeat(100);
    while guest.socket().write_all(&request).is_ok() {}
    gone.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    let problem = served.server.stats().problem.unwrap();
    assert_eq!(problem, "connection ended: replying: the frontend does not read its replies");
}

#[test]
fn more_descriptors_than_a_message_may_have() {
    let file = memfd(4096);
    survives("33 descriptors", |_, mut guest| {
        guest.realise(willing());
        send(&guest, &message(5, 1, 0, &[]), &[file.as_fd(); 33]);
        // Whether the message is taken for none at all, or for the end: the descriptors are not
        // kept.
        let _either_way = guest.frontend.get_features();
        let held = std::fs::read_dir("/proc/self/fd").unwrap();
        let held = held.filter(|entry| {
            let Ok(entry) = entry else { return false };
            let id = |metadata: std::io::Result<std::fs::Metadata>| {
                metadata.map(|metadata| std::os::unix::fs::MetadataExt::ino(&metadata)).ok()
            };
            id(std::fs::metadata(entry.path())) == id(file.metadata())
        });
        assert_eq!(held.count(), 1);
    });
}

#[test]
fn a_call_that_is_full_holds_nobody_up() {
    let stats = survives("a full call", |served, guest| {
        let mut guest = started(guest);
        // As full as it gets, and blocking again, although the backend set it otherwise.
        let _ = guest.call.read();
        guest.call.write(u64::MAX - 1).unwrap();
        rustix::fs::fcntl_setfl(borrow(&guest.call), rustix::fs::OFlags::empty()).unwrap();
        for slot in 0..3 {
            guest.request(slot, 0);
            guest.kick();
            while guest.used_index() <= slot {
                std::thread::yield_now();
            }
        }
        assert_eq!(served.medium.flushes(), 3);
    });
    assert_eq!(stats.broken, 0);
}

/// It reads its own kicks, so that the backend finds none where there was one.
#[test]
fn a_frontend_that_takes_its_kicks_back_holds_nobody_up() {
    let served = Served::new();
    let mut guest = started(Guest::connect(&served.path()));
    for _ in 0..20_000 {
        guest.kick();
        let mut count = [0; 8];
        let bytes = &mut [std::io::IoSliceMut::new(&mut count)];
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        let _mine_or_the_backends = rustix::io::preadv2(borrow(&guest.kick), bytes, u64::MAX, flags);
    }
    assert_eq!(guest.flush(), 0);
}

#[test]
fn features_flipped_on_the_way() {
    let served = Served::new();
    let mut guest = started(Guest::connect(&served.path()));
    for features in [0, PROTOCOL, ALL & !PROTOCOL, 1 << 29, ALL] {
        guest.frontend.set_features(features).unwrap();
        if features & PROTOCOL != 0 {
            guest.frontend.set_vring_enable(0, true).unwrap();
        }
        guest.request(0, 0);
        guest.kick();
        while guest.used_index() != guest.avail {
            std::thread::yield_now();
        }
        assert_eq!(guest.ret(0), 0, "{features:#x}");
    }
    guest.frontend.set_protocol_features(VhostUserProtocolFeatures::empty()).unwrap();
    assert!(guest.frontend.get_protocol_features().is_ok());
}

#[test]
fn a_panic_ends_the_connection_and_nothing_else() {
    let stats = survives("a medium with a bug", |served, guest| {
        let mut guest = started(guest);
        *served.medium.panics.lock() = true;
        guest.request(0, 0);
        // The hang-up cuts this message off, which would be a problem of its own.
        guest.socket().write_all(&message(1, 1, 0, &[])[..6]).unwrap();
        guest.kick();
        let mut rest = Vec::new();
        let _hung_up = guest.socket().read_to_end(&mut rest);
        assert_eq!(guest.used_index(), 0, "no success was reported");
    });
    let problem = stats.problem.unwrap();
    assert_eq!(problem, "connection ended: a thread of the connection ended: it panicked");
    assert_eq!((stats.failed, stats.broken), (0, 1));
}

#[test]
fn hanging_up_while_a_flush_runs() {
    let served = Served::new();
    let gone = served.medium.tell_gone();
    let (flushing, end) = served.medium.hold_flushes();
    let mut guest = started(Guest::connect(&served.path()));
    guest.request(0, 0);
    guest.kick();
    flushing.recv().unwrap();
    let memory = guest.memory.clone();
    guest.hang_up();
    assert_eq!(served.medium.gones(), 0, "the medium is still flushing");
    end.send(Ok(())).unwrap();
    gone.recv().unwrap();
    drop(memory);
    assert_eq!(served.medium.gones(), 1);
    assert!(!served.server.is_connected());
}

#[test]
fn hanging_up_while_a_piece_is_mapped() {
    let served = Served::new();
    let gone = served.medium.tell_gone();
    let (mapping, is_mapping) = std::sync::mpsc::channel();
    let (hung_up, wait) = std::sync::mpsc::channel::<()>();
    let mut guest = Guest::connect(&served.path());
    guest.realise(Box::new(move |_| {
        mapping.send(()).unwrap();
        // Never answered: the channel stays open, and only the connection ends.
        let _ = wait.recv();
        Ok(())
    }));
    guest.start();
    is_mapping.recv().unwrap();
    std::thread::scope(|scope| {
        let unmap = scope.spawn(|| served.server.unmap());
        while served.server.stats().revokes == 0 {
            std::thread::yield_now();
        }
        guest.socket().shutdown(std::net::Shutdown::Both).unwrap();
        let unmapped = unmap.join().unwrap();
        assert_eq!((unmapped.pieces, unmapped.acknowledged), (1, true), "what hung up has nothing mapped");
    });
    gone.recv().unwrap();
    drop(hung_up);
    assert_eq!(served.server.stats().maps, 0);
}

#[test]
fn a_channel_that_closes_leaves_the_queue_alone() {
    let served = Served::new();
    let mut guest = Guest::connect(&served.path());
    guest.realise(willing());
    guest.start();
    assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES));
    while served.server.stats().maps == 0 {
        std::thread::yield_now();
    }
    guest.close_channel();
    let unmapped = served.server.unmap();
    assert_eq!((unmapped.pieces, unmapped.acknowledged), (1, false), "no frontend acknowledged the unmap");
    assert_eq!(guest.flush(), 0);
    // A new channel, and what is still mapped can be asked for.
    guest.give_channel(willing());
    assert_eq!(guest.was_asked(), Asked::Unmap(0, 0, BYTES));
    assert!(served.server.unmap().acknowledged);
}

#[test]
fn a_channel_that_answers_nonsense_is_not_used_again() {
    for (what, answer) in [
        ("another request's answer", message(10, 5, 8, &[0; 8])),
        ("a request", message(9, 1, 8, &[0; 8])),
        ("a longer answer", message(9, 5, 16, &[0; 16])),
        ("garbage", vec![0xaa; 20]),
        ("half an answer and the end", message(9, 5, 8, &[0; 2])),
    ] {
        let served = Served::new();
        let mut guest = Guest::connect(&served.path());
        guest.negotiate(VhostUserProtocolFeatures::all());
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        guest.frontend.set_backend_request_fd(&theirs).unwrap();
        drop(theirs);
        guest.start();
        // The answer may well be there before the question.
        (&ours).write_all(&answer).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        while served.server.stats().problem.is_none() {
            std::thread::yield_now();
        }
        assert!(served.server.stats().problem.unwrap().starts_with("mapping: the frontend"), "{what}");
        assert!(!served.server.unmap().acknowledged, "{what}");
        assert_eq!(guest.flush(), 1, "{what}: nothing is mapped");
    }
}

/// Its descriptors are used up while a frontend waits to be accepted; then there are some again.
#[test]
fn a_lack_of_descriptors_at_accept_is_waited_out() {
    // Alone in its process: other tests need descriptors.
    if std::env::var_os("DAXLAB_ALONE").is_none() {
        let this = std::env::current_exe().unwrap();
        let name = "hostile::a_lack_of_descriptors_at_accept_is_waited_out";
        let alone = std::process::Command::new(this).args(["--exact", name]).env("DAXLAB_ALONE", "1").output().unwrap();
        assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stdout));
        assert!(String::from_utf8_lossy(&alone.stdout).contains("1 passed"));
        return;
    }
    let served = Served::new();
    let socket = std::os::unix::net::UnixStream::pair().unwrap().0;
    let address = rustix::net::SocketAddrUnix::new(served.path()).unwrap();
    let mut held = Vec::new();
    while let Ok(another) = socket.try_clone() {
        held.push(another);
    }
    // One for the frontend's side.
    held.pop();
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let kind = rustix::net::SocketType::STREAM;
    let frontend = rustix::net::socket_with(rustix::net::AddressFamily::UNIX, kind, flags, None).unwrap();
    rustix::net::connect(&frontend, &address).unwrap();
    while served.server.stats().problem.is_none() {
        std::thread::yield_now();
    }
    let problem = served.server.stats().problem.unwrap();
    assert!(problem.starts_with("accept: Too many open files"), "{problem}");
    drop(held);
    let mut guest = started(Guest::over(frontend.into()));
    assert_eq!(guest.flush(), 0);
}
