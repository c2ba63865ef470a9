//! What a FLUSH costs without the disk: from the driver's kick to its interrupt, beside the least
//! that two threads can do.
//!
//! `cargo bench -p emulator --bench flush`. The medium's flush does nothing. The yardstick is an
//! eventfd round trip: one thread writes and sleeps in epoll, the other wakes up in epoll, reads,
//! and writes back. Both are measured in turns of 1,000 in one run: the asking thread on one
//! processor, the answering one on another, so that what disturbs one disturbs the other. A control
//! message goes from the frontend to the relay, from there to the daemon, and back the same way.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "a measurement that can't go on ends")]

#[path = "../tests/vhost_user/guest.rs"]
mod guest;
#[path = "../tests/vhost_user/medium.rs"]
mod medium;

use emulator::sync::atomic::Ordering;
use std::os::fd::{AsFd, OwnedFd};

use emulator::World;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{Bytes, GuestAddress};

use crate::guest::{AVAIL, Guest, SIZE, borrow, willing};
use crate::medium::Served;

const TURN: usize = 1_000;
const TURNS: usize = 50;

/// One end of a wait in epoll.
struct Sleeper {
    poll: OwnedFd,
}

impl Sleeper {
    fn on(fd: impl AsFd) -> Sleeper {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(&poll, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN).unwrap();
        Sleeper { poll }
    }

    fn sleep(&self) {
        let mut events = Vec::with_capacity(1);
        while epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), None).unwrap_or(0) == 0 {}
    }
}

fn ring(fd: impl AsFd, count: u64) {
    rustix::io::write(fd, &count.to_ne_bytes()).unwrap();
}

fn clear(fd: impl AsFd) -> u64 {
    let mut count = [0; 8];
    let _none = rustix::io::read(fd, &mut count);
    u64::from_ne_bytes(count)
}

/// The other thread's life: until it is rung by more than one.
fn echo(there: &OwnedFd, back: &OwnedFd) {
    let sleeper = Sleeper::on(there);
    loop {
        sleeper.sleep();
        if clear(there) > 1 {
            return;
        }
        ring(back, 1);
    }
}

/// A FLUSH in the way of a driver: both notifications by event-idx, the answer waited for in epoll.
fn flush(guest: &mut Guest, sleeper: &Sleeper) {
    guest.offer(0);
    guest.kick();
    guest.used = guest.used.wrapping_add(1);
    while guest.used_index() != guest.used {
        sleeper.sleep();
        clear(borrow(&guest.call));
    }
    guest.memory.store(guest.used, GuestAddress(AVAIL + 4 + u64::from(SIZE) * 2), Ordering::Release).unwrap();
}

/// Keeps this thread, and those that it starts, on the `at`th of the processors that the process
/// may use; on the last one if there are fewer.
fn stay_on(processors: &CpuSet, at: usize) {
    let mut of_its_own = CpuSet::new();
    let usable: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| processors.is_set(*cpu)).collect();
    of_its_own.set(usable[at.min(usable.len() - 1)]);
    sched_setaffinity(None, &of_its_own).unwrap();
}

fn median(samples: &mut [u64]) -> u64 {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

fn main() {
    let world = World::real(0);
    let processors = sched_getaffinity(None).unwrap();
    stay_on(&processors, 1);
    let served = Served::new();
    stay_on(&processors, 0);
    let mut guest = Guest::connect(&served.path());
    guest.realise(willing());
    guest.start();
    assert_eq!(guest.flush(), 0);
    let call = Sleeper::on(borrow(&guest.call));
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let (there, back) = (eventfd(0, flags).unwrap(), eventfd(0, flags).unwrap());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    emulator::sync::thread::scope(|scope| {
        scope.spawn(|| {
            stay_on(&processors, 1);
            echo(&there, &back);
        });
        let answer = Sleeper::on(&back);
        for turn in 0..TURNS {
            for _ in 0..TURN {
                let start = world.now();
                flush(&mut guest, &call);
                ours.push(world.now().since(start));
            }
            for _ in 0..TURN {
                let start = world.now();
                ring(&there, 1);
                answer.sleep();
                clear(&back);
                theirs.push(world.now().since(start));
            }
            // What warms up is no measurement.
            if turn == 0 {
                ours.clear();
                theirs.clear();
            }
        }
        ring(&there, 2);
    });
    let mut messages = Vec::new();
    for _ in 0..TURN {
        let start = world.now();
        guest.frontend.set_vring_enable(0, true).unwrap();
        messages.push(world.now().since(start));
    }
    let stats = served.server.stats();
    assert_eq!((stats.failed, stats.malformed, stats.coalesced), (0, 0, 0));
    let (mean, yardstick) =
        (ours.iter().sum::<u64>() / ours.len() as u64, theirs.iter().sum::<u64>() / theirs.len() as u64);
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!("FLUSH round trip      p50 {ours:>7} ns   mean {mean:>7} ns");
    println!("eventfd round trip    p50 {theirs:>7} ns   mean {yardstick:>7} ns");
    println!("control message       p50 {:>7} ns", median(&mut messages));
    println!(
        "ratio                 p50 {:>7.2}      mean {:>7.2}",
        ours as f64 / theirs as f64,
        mean as f64 / yardstick as f64
    );
}
