//! Which lines of 64 bytes a power cut takes back, against a plain model: random stores of a CPU
//! and of a device, calls and write-backs. `docs/persistence.md`, and the scenarios S46c to S46e.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::collections::BTreeSet;
use std::ops::Range;

use common::{Actor, Lab, Nic, Region, preset};
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, thread};
use fs_sim::base::numbers::Fd;
use fs_sim::design::Platform;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::{BLOCK, Kernel, KernelConfig};
use proptest::prelude::*;

const BLOCKS: u64 = 4;
const BYTES: u64 = BLOCKS * BLOCK;
const LINE: u64 = 64;

/// Offset and length in bytes, inside the file.
type Bytes = (u64, u64);

#[derive(Clone, Debug)]
enum Act {
    /// A CPU stores through the mapping.
    Store(Bytes, u8),
    /// The device stores into its registration, which is as old as the machine.
    Dma(Bytes, u8),
    Write(Bytes, u8),
    ZeroRange(Bytes),
    /// CLWB and SFENCE, by the mapping.
    Persist(Bytes),
    /// The same, by the file's name.
    PersistByName(Bytes),
    Msync(u64),
    Fsync,
    PowerCut,
}

fn act() -> impl Strategy<Value = Act> {
    let bytes = || (0..BYTES, 1..3 * BLOCK).prop_map(|(at, len)| (at, len.min(BYTES - at)));
    prop_oneof![
        6 => (bytes(), 1..=255u8).prop_map(|(at, byte)| Act::Store(at, byte)),
        6 => (bytes(), 1..=255u8).prop_map(|(at, byte)| Act::Dma(at, byte)),
        2 => (bytes(), 1..=255u8).prop_map(|(at, byte)| Act::Write(at, byte)),
        1 => bytes().prop_map(Act::ZeroRange),
        3 => bytes().prop_map(Act::Persist),
        2 => bytes().prop_map(Act::PersistByName),
        2 => (0..BLOCKS).prop_map(Act::Msync),
        2 => Just(Act::Fsync),
        1 => Just(Act::PowerCut),
    ]
}

/// The bytes of the file, and which of them survive.
struct Lines {
    live: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<u64>,
}

impl Lines {
    fn put(&mut self, (at, len): Bytes, byte: u8) {
        self.live[at as usize..(at + len) as usize].fill(byte);
    }

    fn write_back(&mut self, bytes: Range<u64>) {
        let lines = (bytes.start / LINE * LINE) as usize..(bytes.end.next_multiple_of(LINE)) as usize;
        self.durable[lines.clone()].copy_from_slice(&self.live[lines]);
    }

    fn fault(&mut self, (at, len): Bytes) {
        self.dirty.extend(at / BLOCK..(at + len).div_ceil(BLOCK));
    }

    fn clean(&mut self, blocks: Range<u64>) {
        for block in blocks {
            if self.dirty.remove(&block) {
                self.write_back(block * BLOCK..(block + 1) * BLOCK);
            }
        }
    }

    fn unflushed(&self) -> u64 {
        let lines = self.live.chunks(LINE as usize).zip(self.durable.chunks(LINE as usize));
        lines.filter(|(live, durable)| live != durable).count() as u64
    }
}

/// A machine with one file, which a process has mapped and a device has registered.
struct PowerRun {
    lab: Lab,
    actor: Actor,
    fd: Fd,
    va: u64,
    region: Arc<Region>,
    lines: Lines,
}

impl PowerRun {
    fn start() -> PowerRun {
        let lab = Lab::with(preset("unsafe"), |config| config.options.platform = Platform::Adr);
        let actor = lab.actor();
        actor.writes_file("data", BLOCKS, 0);
        let bytes = (0..BLOCKS).flat_map(|block| vec![block as u8; BLOCK as usize]).collect::<Vec<u8>>();
        let lines = Lines { live: bytes.clone(), durable: bytes, dirty: BTreeSet::new() };
        PowerRun::over(lab, lines)
    }

    fn over(lab: Lab, mut lines: Lines) -> PowerRun {
        let actor = lab.actor();
        let fd = actor.opens("data");
        let va = actor.mmap(fd, 0, BYTES, true).unwrap();
        let (_, nic) = Nic::open(&actor);
        let region = nic.pins(&actor, fd, 0..BLOCKS).unwrap();
        lines.fault((0, BYTES));
        PowerRun { lab, actor, fd, va, region, lines }
    }

    fn step(mut self, act: &Act) -> PowerRun {
        let (actor, lines) = (&self.actor, &mut self.lines);
        match *act {
            Act::Store((at, len), byte) => {
                actor.store(self.va + at, &vec![byte; len as usize]).unwrap();
                lines.fault((at, len));
                lines.put((at, len), byte);
            }
            Act::Dma((at, len), byte) => {
                self.region.dma_write(&self.lab.kernel, at, &vec![byte; len as usize]).unwrap();
                lines.put((at, len), byte);
            }
            Act::Write((at, len), byte) => {
                actor.write(self.fd, at, &vec![byte; len as usize]).unwrap();
                lines.put((at, len), byte);
                lines.write_back(at..at + len);
            }
            Act::ZeroRange((at, len)) => {
                // Inside one block: a whole one would leave the file, and its pin with it.
                let len = len.min(BLOCK - at % BLOCK).min(BLOCK - 1);
                actor.fallocate(self.fd, FallocateMode::PunchHole, at, len).unwrap();
                lines.clean(at / BLOCK..at / BLOCK + 1);
                lines.put((at, len), 0);
                lines.write_back(at..at + len);
            }
            Act::Persist((at, len)) => {
                actor.persist_mapped(self.va + at, len).unwrap();
                lines.write_back(at..at + len);
            }
            Act::PersistByName((at, len)) => {
                let ino = actor.inode_of(self.fd).ino();
                self.lab.kernel.persist_range(ino, at, len).unwrap();
                lines.write_back(at..at + len);
            }
            Act::Msync(block) => {
                actor.msync(self.va + block * BLOCK, BLOCK).unwrap();
                lines.clean(block..block + 1);
            }
            Act::Fsync => {
                actor.fsync(self.fd).unwrap();
                lines.clean(0..BLOCKS);
            }
            Act::PowerCut => return self.cut(),
        }
        self.check(act)
    }

    fn check(self, act: &Act) -> PowerRun {
        let inode = self.actor.inode_of(self.fd);
        assert_eq!(self.lab.kernel.unflushed_lines(&inode), self.lines.unflushed(), "after {act:?}");
        self
    }

    fn cut(mut self) -> PowerRun {
        let lost = self.lines.unflushed();
        let durable = self.lab.kernel.power_cut().unwrap();
        let mut config = KernelConfig::new(preset("unsafe"));
        config.options.platform = Platform::Adr;
        let (kernel, recovered) = Kernel::recover(Arc::clone(&self.lab.world), durable, config).unwrap();
        assert_eq!(recovered.lost_lines, Some(lost));
        self.lines.live.clone_from(&self.lines.durable);
        self.lines.dirty.clear();
        let run = PowerRun::over(Lab::over(kernel, Arc::clone(&self.lab.world)), self.lines);
        let mut bytes = vec![0; BYTES as usize];
        run.actor.load(run.va, &mut bytes).unwrap();
        let wrong = bytes.iter().zip(&run.lines.live).position(|(read, kept)| read != kept);
        assert_eq!(wrong, None, "a byte that is neither live nor durable");
        run.check(&Act::PowerCut)
    }
}

/// A file that is made of blocks at once reads as zeros, also where the blocks were another file's.
#[test]
fn a_provisioned_file_is_durable_zeros() {
    let lab = Lab::with(preset("mainline"), |config| config.options.platform = Platform::Adr);
    let actor = lab.actor();
    let old = actor.writes_file("old", BLOCKS, 7);
    let va = actor.mmap(old, 0, BYTES, true).unwrap();
    actor.store(va, &[9; 3 * BLOCK as usize]).unwrap();
    actor.munmap(va, BYTES).unwrap();
    actor.close(old).unwrap();
    actor.unlink("old").unwrap();
    actor.provision("new", BYTES, None).unwrap();
    let fd = actor.opens("new");
    assert_eq!(lab.kernel.unflushed_lines(&actor.inode_of(fd)), 0);
    let durable = lab.kernel.power_cut().unwrap();
    let mut config = KernelConfig::new(preset("mainline"));
    config.options.platform = Platform::Adr;
    let (kernel, recovered) = Kernel::recover(Arc::clone(&lab.world), durable, config).unwrap();
    assert_eq!(recovered.lost_lines, Some(0));
    let lab = Lab::over(kernel, Arc::clone(&lab.world));
    let reader = lab.actor();
    let fd = reader.opens("new");
    assert_eq!(reader.bytes_of(fd), [0; BLOCKS as usize]);
    lab.end([&reader]);
}

/// Of two processes that sync a file, one stores. Its own `fsync` has made its store durable,
/// whatever the other one's was doing at any moment.
#[test]
fn an_fsync_beside_another_one_keeps_its_promise() {
    let lab = Lab::with(preset("unsafe"), |config| config.options.platform = Platform::Adr);
    let [a, b] = [lab.actor(), lab.actor()];
    a.writes_file("data", BLOCKS, 0);
    let (fa, fb) = (a.opens("data"), b.opens("data"));
    let va = a.mmap(fa, 0, BYTES, true).unwrap();
    let inode = a.inode_of(fa);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                b.fsync(fb).unwrap();
            }
        });
        for round in 0..4000u32 {
            a.store(va, &[round as u8 | 1; BYTES as usize]).unwrap();
            a.fsync(fa).unwrap();
            let unflushed = lab.kernel.unflushed_lines(&inode);
            if unflushed > 0 {
                over.store(true, Ordering::SeqCst);
            }
            assert_eq!(unflushed, 0, "round {round}");
        }
        over.store(true, Ordering::SeqCst);
    });
    lab.end([&a, &b]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_power_cut_takes_back_what_was_not_written_back(acts in prop::collection::vec(act(), 5..60)) {
        let run = acts.iter().chain([&Act::PowerCut]).fold(PowerRun::start(), PowerRun::step);
        run.lab.end([&run.actor]);
    }
}
