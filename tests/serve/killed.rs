//! The server is killed at any moment while a guest writes: every record whose FLUSH was
//! acknowledged is in the image, whole, and on the disk.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use emulator::sync::thread;
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rustix::process::{Signal, kill_process};

use crate::guest::Guest;
use crate::page_cache::cachestat;
use crate::server::Server;

const RECORD: u64 = 4096;
const ARGS: [&str; 6] = ["--control", "a.ctl", "--image", "img", "--size", "4MiB"];
/// So many records are written at most: fewer than the image has room for.
const RECORDS: u64 = 1000;

/// The record with this number: every 8 bytes of it.
fn record(number: u64) -> Vec<u8> {
    (number + 1).to_le_bytes().repeat(RECORD as usize / 8)
}

fn store(guest: &Guest, number: u64) {
    guest.file.lock().as_ref().unwrap().write_all_at(&record(number), number * RECORD).unwrap();
}

/// Where in a record's life the server is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Unwritten,
    Stored,
    /// The request is in the queue, and its answer was not looked for.
    Asked,
    /// By another thread, so many spins after the request.
    Beside(u32),
}

/// Writes records and flushes each, and kills the server at `moment` of record `at`. The number of
/// records that were acknowledged.
fn write_until_flushes_fail(server: &mut Server, guest: &mut Guest, at: u64, moment: Moment) -> u64 {
    for number in 0..RECORDS {
        let now = number == at;
        if now && matches!(moment, Moment::Unwritten) {
            server.end(Signal::KILL);
        }
        store(guest, number);
        if now && matches!(moment, Moment::Stored) {
            server.end(Signal::KILL);
        }
        guest.request(0, 0);
        guest.kick();
        if now && matches!(moment, Moment::Asked) {
            server.end(Signal::KILL);
        }
        if let (true, Moment::Beside(spins)) = (now, moment) {
            let pid = server.pid();
            thread::scope(|scope| {
                scope.spawn(move || {
                    (0..spins).for_each(|_| std::hint::spin_loop());
                    kill_process(pid, Signal::KILL).unwrap();
                });
                assert_eq!(guest.answer(), (0, 4));
            });
        } else {
            assert_eq!(guest.answer(), (0, 4));
        }
        if guest.ret(0) != 0 {
            assert!(number >= at, "record {number}: a flush failed before the server was killed");
            return number;
        }
    }
    panic!("{RECORDS} flushes succeeded, most of them without a server");
}

#[test]
fn every_acknowledged_record_is_in_the_image_whenever_the_server_is_killed() {
    let mut counted = false;
    for seed in 0..100 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let at = rng.random_range(0..30);
        let moment = match rng.next_u32() % 4 {
            0 => Moment::Unwritten,
            1 => Moment::Stored,
            2 => Moment::Asked,
            _ => Moment::Beside(rng.random_range(0..20_000)),
        };
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut server = Server::start(dir.path(), &["a"], &ARGS);
        let mut guest = server.guest("a");
        let acknowledged = write_until_flushes_fail(&mut server, &mut guest, at, moment);
        let image = File::open(dir.path().join("img")).unwrap();
        for number in 0..acknowledged {
            let mut found = vec![0; RECORD as usize];
            image.read_exact_at(&mut found, number * RECORD).unwrap();
            assert!(found == record(number), "seed {seed}, {moment:?} of record {at}: record {number} is not whole");
        }
        // Where dirty pages can be counted, none of a record that was acknowledged is left.
        if let Some(found) = cachestat(image.as_fd(), 0, (acknowledged * RECORD).max(1)).filter(|_| acknowledged > 0) {
            counted = true;
            assert_eq!((found.dirty, found.writeback), (0, 0), "seed {seed}, {moment:?} of record {at}");
        }
    }
    if !counted {
        eprintln!("not run: cachestat, which counts dirty pages, needs Linux 6.5");
    }
}
