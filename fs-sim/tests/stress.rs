//! Real threads on few files: readers, writers, truncaters, punchers, mappings, pinners, lease
//! holders and cloners meet at armed race points, and the system defragments. Every aligned 8 bytes
//! of data say for which file and which place in it they were written. A reader finds a word in a
//! wrong place (invariant 7), besides what the ledger finds (invariant 2).
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::time::Duration;

use common::watchdog::{spawn_in, watch};
use common::{Actor, Nic, exclusive, preset};
use emulator::World;
use emulator::device::Device;
use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, race, thread};
use fs_sim::base::numbers::Fd;
use fs_sim::design::{Axes, LeaseRules, PinGate, VolumeOptions};
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::pinning::admission::LongTermUser;
use fs_sim::pinning::registration::PinRequest;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::{BLOCK, BlockRange, Errno, Kernel, KernelConfig, Sabotage};

const FILES: u64 = 2;
/// The largest file, in blocks.
const BLOCKS: u64 = 16;
const WORDS: u64 = BLOCK / 8;

/// SplitMix64: each thread draws from its own.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A range of blocks in a file: the first, and how many.
    fn blocks(&mut self) -> (u64, u64) {
        let first = self.below(BLOCKS);
        (first, 1 + self.below(4.min(BLOCKS - first)))
    }
}

/// What the word number `word` of file `file` may hold besides zero.
fn word(file: u64, word: u64, sequence: u64) -> u64 {
    (file + 1) << 56 | word << 32 | (sequence & 0xffff_ffff)
}

fn payload(file: u64, first_block: u64, blocks: u64, sequence: u64) -> Vec<u8> {
    (first_block * WORDS..(first_block + blocks) * WORDS)
        .flat_map(|at| word(file, at, sequence).to_ne_bytes())
        .collect()
}

struct Stress {
    kernel: Arc<Kernel>,
    rounds: u64,
    /// Words found where they don't belong.
    strays: AtomicU64,
    /// Layouts that changed under an exclusive lease of another process.
    moved: AtomicU64,
    pinned: AtomicU64,
    changed: AtomicU64,
    cloned: AtomicU64,
}

fn name(file: u64) -> String {
    format!("file {file}")
}

/// One thread's life: a process that is replaced when it dies.
struct Life<'a> {
    stress: &'a Stress,
    actor: Actor,
    fds: Vec<Fd>,
    dice: Dice,
}

impl<'a> Life<'a> {
    fn new(stress: &'a Stress, number: u64) -> Life<'a> {
        race::arm(stress.kernel.world().stream("race points", number), 0.15);
        let (actor, fds) = Life::born(stress);
        Life { stress, actor, fds, dice: Dice(number << 32) }
    }

    fn born(stress: &Stress) -> (Actor, Vec<Fd>) {
        let actor = Actor::adopt(stress.kernel.spawn()).handling();
        let fds = (0..FILES).map(|file| actor.creates(&name(file))).collect();
        (actor, fds)
    }

    /// Handles a result that a race allows. A process that died is replaced.
    fn settle<R>(&mut self, result: Result<R, Errno>, allowed: &[Errno]) -> Option<R> {
        let _seen = self.actor.take_signals();
        match result {
            Ok(value) => Some(value),
            Err(errno) => {
                if self.actor.process().is_dying() {
                    (self.actor, self.fds) = Life::born(self.stress);
                } else {
                    assert!(allowed.contains(&errno), "{errno}");
                }
                None
            }
        }
    }

    fn judge(&self, file: u64, first_word: u64, bytes: &[u8]) {
        for (at, found) in bytes.chunks_exact(8).enumerate() {
            let found = u64::from_ne_bytes(found.try_into().unwrap());
            if found != 0 && found >> 32 != word(file, first_word + at as u64, 0) >> 32 {
                self.stress.strays.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn reads(&mut self) {
        let (file, (first, blocks)) = (self.dice.below(FILES), self.dice.blocks());
        let mut bytes = vec![0; (blocks * BLOCK) as usize];
        let read = self.actor.read(self.fds[file as usize], first * BLOCK, &mut bytes);
        if let Some(len) = self.settle(read, &[]) {
            self.judge(file, first * WORDS, &bytes[..len / 8 * 8]);
        }
    }

    fn writes(&mut self) {
        let (file, (first, blocks)) = (self.dice.below(FILES), self.dice.blocks());
        let data = payload(file, first, blocks, self.dice.next());
        let written = self.actor.write(self.fds[file as usize], first * BLOCK, &data);
        self.settle(written, CHANGE);
    }

    fn changes(&mut self) {
        let (file, (first, blocks)) = (self.dice.below(FILES), self.dice.blocks());
        let (fd, at, len) = (self.fds[file as usize], first * BLOCK, blocks * BLOCK);
        let keep_size = self.dice.below(2) == 0;
        let changed = match self.dice.below(6) {
            0 => self.actor.truncate(&name(file), at),
            1 => self.actor.ftruncate(fd, at + 8 * self.dice.below(WORDS)),
            2 | 3 => self.actor.fallocate(fd, FallocateMode::PunchHole, at, len),
            4 => self.actor.fallocate(fd, FallocateMode::ZeroRange { keep_size }, at, len),
            _ => self.actor.fallocate(fd, FallocateMode::Allocate { keep_size }, at, len),
        };
        if self.settle(changed, CHANGE).is_some() {
            self.stress.changed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn maps(&mut self) {
        let (file, (first, blocks)) = (self.dice.below(FILES), self.dice.blocks());
        let Some(va) = self.mapping(file, first, blocks) else { return };
        let mut bytes = vec![0; (blocks * BLOCK) as usize];
        let access = match self.dice.below(2) {
            0 => self.actor.store(va, &payload(file, first, blocks, self.dice.next())),
            _ => self.actor.load(va, &mut bytes),
        };
        if self.settle(access, &[Errno::SIGBUS]).is_some() {
            self.judge(file, first * WORDS, &bytes);
            let unmapped = self.actor.munmap(va, blocks * BLOCK);
            self.settle(unmapped, &[]);
        } else if !self.actor.process().is_dying() {
            let _perhaps_another_life = self.actor.munmap(va, blocks * BLOCK);
        }
    }

    fn mapping(&mut self, file: u64, first: u64, blocks: u64) -> Option<u64> {
        let mapped = self.actor.mmap(self.fds[file as usize], first * BLOCK, blocks * BLOCK, true);
        self.settle(mapped, &[])
    }

    /// Lease, register, DMA in and out, deregister, unlock, with other threads at work.
    fn pins(&mut self) {
        let axes = *self.stress.kernel.axes();
        let (file, (first, blocks)) = (self.dice.below(FILES), self.dice.blocks());
        let range = BlockRange::new(first, first + blocks);
        let fd = self.fds[file as usize];
        let leased = axes.lease_rules != LeaseRules::None;
        if leased {
            let kind = match axes.pin_gate {
                PinGate::Lease if self.dice.below(2) == 0 => LeaseKind::READ,
                _ => exclusive(axes),
            };
            let lease = self.actor.lease(fd, kind, range);
            if self.settle(lease, LEASE).is_none() {
                return;
            }
        }
        let actor = self.actor.clone();
        let (context, nic) = Nic::open(&actor);
        if let Some(va) = self.mapping(file, first, blocks) {
            let want = PinRequest { va, len: blocks * BLOCK, write: true, user: LongTermUser::Rdma };
            let region = nic.register(&actor, want);
            let _later = region.as_ref().err().filter(|errno| !REGISTER.contains(errno)).map(|errno| {
                assert!(actor.process().is_dying(), "{errno}");
            });
            let past_the_end = region.as_ref().err() == Some(&Errno::EFAULT);
            if let Ok(region) = region {
                self.stress.pinned.fetch_add(1, Ordering::Relaxed);
                for _ in 0..self.dice.below(4) {
                    let data = payload(file, first, blocks, self.dice.next());
                    let _revoked_or_unreachable = region.dma_write(&self.stress.kernel, 0, &data);
                    let mut bytes = vec![0; data.len()];
                    if region.dma_read(&self.stress.kernel, 0, &mut bytes).is_ok() {
                        self.judge(file, first * WORDS, &bytes);
                    }
                }
                if self.dice.below(4) == 0 {
                    // A change under its own region: `holder_change`.
                    let own = actor.fallocate(fd, FallocateMode::PunchHole, first * BLOCK, BLOCK);
                    assert!(
                        own.is_ok() || own.is_err_and(|errno| CHANGE.contains(&errno) || errno == Errno::Dead),
                        "{own:?}"
                    );
                    let data = payload(file, first, blocks, self.dice.next());
                    let _into_orphans_perhaps = region.dma_write(&self.stress.kernel, 0, &data);
                }
                if self.dice.below(2) == 0 {
                    region.dereg(&actor);
                }
            }
            let unmapped = actor.munmap(va, blocks * BLOCK);
            self.settle(unmapped, &[]);
            if past_the_end && Arc::ptr_eq(&actor.0, &self.actor.0) {
                // No other process writes to this file now.
                self.writes();
            }
        }
        if Arc::ptr_eq(&actor.0, &self.actor.0) {
            let closed = actor.close(context);
            self.settle(closed, &[]);
        }
        if leased && Arc::ptr_eq(&actor.0, &self.actor.0) {
            let unlocked = actor.unlock(fd, range);
            self.settle(unlocked, LEASE);
        }
    }

    /// A process that holds an exclusive lease sees the same layout twice while it holds the lease.
    fn watches(&mut self) {
        let axes = *self.stress.kernel.axes();
        if axes.lease_rules == LeaseRules::None {
            return;
        }
        let (file, (first, blocks)) = (self.dice.below(FILES), self.dice.blocks());
        let (fd, range) = (self.fds[file as usize], BlockRange::new(first, first + blocks));
        let lease = self.actor.lease(fd, exclusive(axes), range);
        if self.settle(lease, LEASE).is_none() {
            return;
        }
        let inside = |actor: &Actor| -> Option<Vec<(u64, u64)>> {
            let extents = actor.fiemap(fd, range).ok()?;
            let blocks = extents.iter().flat_map(|extent| {
                (0..extent.length / BLOCK).map(|n| (extent.logical / BLOCK + n, extent.physical / BLOCK + n))
            });
            Some(blocks.filter(|(block, _)| (range.start..range.end).contains(block)).collect())
        };
        let before = inside(&self.actor);
        thread::yield_now();
        let after = inside(&self.actor);
        let kept = !self.actor.process().is_dying()
            && self.actor.leases(fd).iter().any(|lease| lease.pid == self.actor.pid() && lease.range == range);
        if kept && before != after {
            self.stress.moved.fetch_add(1, Ordering::Relaxed);
        }
        let unlocked = self.actor.unlock(fd, range);
        self.settle(unlocked, LEASE);
    }

    /// Clones a part of a file into a private file, which no other process knows: what it reads
    /// there never changes, and no other process reads what it writes there.
    fn clones(&mut self) {
        let (file, (first, blocks)) = (self.dice.below(FILES), self.dice.blocks());
        let private = format!("private to {}", self.actor.pid());
        let opened = self.actor.open(&private, OpenFlags::create());
        let Some(own) = self.settle(opened, &[]) else { return };
        let unlinked = self.actor.unlink(&private);
        let actor = self.actor.clone();
        if self.settle(unlinked, &[]).is_some() {
            self.plays_with(own, file, first, blocks);
        }
        if Arc::ptr_eq(&actor.0, &self.actor.0) {
            let closed = actor.close(own);
            self.settle(closed, &[]);
        }
    }

    fn plays_with(&mut self, own: Fd, file: u64, first: u64, blocks: u64) {
        let (fd, at, len) = (self.fds[file as usize], first * BLOCK, blocks * BLOCK);
        let cloned = self.actor.reflink(fd, at, own, at, len);
        // The file may be shorter, or no other process writes to it now.
        let short = cloned == Err(Errno::EINVAL);
        let cloned = self.settle(cloned, &[CHANGE, &[Errno::EINVAL]].concat()).is_some();
        if short {
            self.writes();
        }
        if !cloned || self.looks_at(own, file, first, blocks).is_none() {
            return;
        }
        self.stress.cloned.fetch_add(1, Ordering::Relaxed);
        match self.dice.below(4) {
            0 => {
                let data = payload(FILES + 1, first, blocks, self.dice.next());
                let written = self.actor.write(own, at, &data);
                if self.settle(written, CHANGE).is_none() {
                    return;
                }
                let mut found = vec![0; data.len()];
                let read = self.actor.read(own, at, &mut found);
                if self.settle(read, &[]).is_some() && found != data {
                    self.stress.strays.fetch_add(1, Ordering::Relaxed);
                }
            }
            call => {
                let done = match call {
                    1 => self.actor.exchange_range(own, at, fd, at, len),
                    2 => self.actor.dedupe(fd, at, own, at, len).map(|_| ()),
                    _ => self.actor.fallocate(own, FallocateMode::UnshareRange { keep_size: true }, at, len),
                };
                let tolerated = [CHANGE, &[Errno::EINVAL]].concat();
                if self.settle(done, &tolerated).is_some() {
                    let _died = self.looks_at(own, file, first, blocks);
                }
            }
        }
    }

    /// Reads a private clone twice.
    fn looks_at(&mut self, own: Fd, file: u64, first: u64, blocks: u64) -> Option<()> {
        let mut looks = [vec![0; (blocks * BLOCK) as usize], vec![0; (blocks * BLOCK) as usize]];
        for look in &mut looks {
            let read = self.actor.read(own, first * BLOCK, look);
            self.settle(read, &[])?;
            thread::yield_now();
        }
        self.judge(file, first * WORDS, &looks[0]);
        if looks[0] != looks[1] {
            self.stress.strays.fetch_add(1, Ordering::Relaxed);
        }
        Some(())
    }

    /// The system moves a file's blocks together.
    fn tidies(&mut self) {
        let done = self.stress.kernel.defragment_politely(&name(self.dice.below(FILES)));
        self.settle(done, &[Errno::ENOENT, Errno::ENOSPC]);
    }

    /// Renames a new file over an old one, which lives as long as a process has it open; or opens a
    /// file that another process renamed.
    fn renames(&mut self) {
        let file = self.dice.below(FILES);
        if self.dice.below(4) == 0 {
            let unlinked = self.actor.unlink(&name(file));
            self.settle(unlinked, &[Errno::ENOENT]);
        }
        let closed = self.actor.close(self.fds[file as usize]);
        if self.settle(closed, &[]).is_some() {
            let opened = self.actor.open(&name(file), OpenFlags::create());
            if let Some(fd) = self.settle(opened, &[]) {
                self.fds[file as usize] = fd;
            }
        }
    }

    fn live(mut self, trade: Trade) {
        for round in 0..self.stress.rounds {
            trade(&mut self);
            if round % 64 == 0 {
                self.renames();
            }
        }
        race::disarm();
        self.actor.exit();
    }
}

/// What a thread does, over and over.
type Trade = for<'a, 'b> fn(&'a mut Life<'b>);

const TRADES: [Trade; 9] = [
    |life| life.reads(),
    |life| life.writes(),
    |life| life.changes(),
    |life| life.changes(),
    |life| life.maps(),
    |life| life.pins(),
    |life| life.watches(),
    |life| life.clones(),
    |life| {
        life.clones();
        life.tidies();
    },
];

/// The errors that a layout change may return. By path, its file may just have lost its name.
const CHANGE: &[Errno] = &[Errno::ETXTBSY, Errno::EINTR, Errno::EDEADLK, Errno::ENOSPC, Errno::ENOENT];
/// The errors that a lease request or an unlock may return. An unlock finds nothing if the lease
/// was removed.
const LEASE: &[Errno] = &[Errno::ETXTBSY, Errno::EAGAIN, Errno::EINTR, Errno::EDEADLK, Errno::EBUSY];
/// The errors that a registration may return.
const REGISTER: &[Errno] =
    &[Errno::EPERM, Errno::EAGAIN, Errno::EFAULT, Errno::ETXTBSY, Errno::ENOSPC, Errno::EOPNOTSUPP];

fn stress(axes: Axes, sabotage: Sabotage, seed: u64, rounds: u64) -> Stress {
    let options = VolumeOptions { lease_break_time: Duration::from_millis(2), ..VolumeOptions::default() };
    let mut config = KernelConfig::new(axes).sabotaged_for_tests(sabotage);
    config.options = options;
    let device = Device::memory(2 << 20).expect("a device");
    let world = Arc::new(World::real(seed));
    let kernel = Kernel::new(Arc::clone(&world), device, config).expect("a kernel");
    watch(&world, &kernel, false);
    let zero = || AtomicU64::new(0);
    let stress =
        Stress { kernel, rounds, strays: zero(), moved: zero(), pinned: zero(), changed: zero(), cloned: zero() };
    thread::scope(|scope| {
        let start = |(number, trade)| {
            let stress = &stress;
            spawn_in(scope, move || Life::new(stress, seed << 8 | number as u64).live(trade))
        };
        let lives: Vec<_> = TRADES.into_iter().enumerate().map(start).collect();
        lives.into_iter().for_each(|life| life.join());
    });
    stress
}

/// Every preset but the negative control, and among them those that differ most.
#[test]
fn no_word_is_misplaced_under_the_safe_designs() {
    for name in ["rfc-v2", "man-page", "chinner-2019", "chinner-2025", "kara", "gunthorpe", "odp", "revoke", "mainline"]
    {
        let axes = preset(name);
        let stress = stress(axes, Sabotage::default(), 7, 5000);
        let counters = &stress.kernel.counters;
        let (pinned, changed) = (stress.pinned.load(Ordering::Relaxed), stress.changed.load(Ordering::Relaxed));
        eprintln!(
            "{name}: {pinned} pinned, {changed} changed, {} cloned, {} closes met a pin, {} retries, {} revoked, {} killed, {} EDEADLK",
            stress.cloned.load(Ordering::Relaxed),
            counters.closes_met_pin.get(),
            counters.pin_retries.get(),
            counters.revocations.get(),
            counters.processes_killed.get(),
            counters.deadlocks.get(),
        );
        assert_eq!(stress.kernel.check_at_rest(), Vec::<String>::new(), "{name}");
        assert_eq!(counters.stale_dma.get(), 0, "{name}: {:?}", stress.kernel.findings().first());
        assert_eq!(stress.strays.load(Ordering::Relaxed), 0, "{name}: words where they don't belong");
        assert_eq!(stress.moved.load(Ordering::Relaxed), 0, "{name}: a layout changed under an exclusive lease");
        assert!(stress.cloned.load(Ordering::Relaxed) > 0, "{name}");
        assert!(changed > 0 && counters.closes_met_pin.get() > 0, "{name}: the two sides met");
        assert_eq!(pinned > 0, axes.pin_gate != PinGate::Refuse, "{name}");
    }
}

/// Runs until `seen`, for at most so many rounds of different seeds.
fn until(what: &str, axes: Axes, sabotage: Sabotage, seen: impl Fn(&Stress) -> bool) {
    let rounds = 60;
    assert!((0..rounds).any(|seed| seen(&stress(axes, sabotage, seed, 600))), "{what}: not seen in {rounds} rounds");
}

/// The negative control: `unsafe` shows stale DMA.
#[test]
fn the_negative_control_shows_stale_dma() {
    until("stale DMA", preset("unsafe"), Sabotage::default(), |stress| stress.kernel.counters.stale_dma.get() > 0);
}

/// The oracle detects a missing recheck.
#[test]
fn without_the_recheck_stale_accesses_show() {
    let sabotage = common::sabotaged(true, false);
    until("stale accesses", preset("rfc-v2"), sabotage, |stress| stress.kernel.counters.stale_dma.get() > 0);
}

/// The oracle detects a block that is freed without a close.
#[test]
fn blocks_freed_without_a_close_show() {
    let sabotage = common::sabotaged(false, true);
    until("a violation", preset("rfc-v2"), sabotage, |stress| {
        !stress.kernel.violations().is_empty() || stress.kernel.counters.stale_dma.get() > 0
    });
}
