//! The file system against a plain model: a byte vector and a map of blocks per file, thousands of random calls, a device
//! small enough to be full at times. Invariants 3, 4 and 8 of SEMANTICS section 8, and 7 for one process.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::collections::BTreeMap;

use common::{Actor, Lab, Nic};
use fs_sim::design::presets;
use fs_sim::file_ops::fallocate::Mode;
use fs_sim::file_ops::open::Flags;
use fs_sim::inode::Ino;
use fs_sim::process::description::Access;
use fs_sim::process::fd_table::Fd;
use fs_sim::range::BlockRange;
use fs_sim::{BLOCK, Errno};
use proptest::prelude::*;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const SLOTS: usize = 6;
/// 2 MiB: the smallest device.
const DEVICE_BLOCKS: u64 = 512;

/// What a file is.
#[derive(Clone, Debug, Default)]
struct Model {
    size: u64,
    /// Up to the end of the last block that the size reaches into: what a mapping sees.
    bytes: Vec<u8>,
    /// Allocated blocks; true: written.
    blocks: BTreeMap<u64, bool>,
    linked: bool,
}

impl Model {
    fn resize(&mut self, size: u64) {
        let old = self.size;
        let kept = size.min(old) as usize;
        let end = self.bytes.len().min(kept.next_multiple_of(BLOCK as usize));
        self.bytes.truncate(end);
        self.bytes[kept..].fill(0);
        self.bytes.resize(size.next_multiple_of(BLOCK) as usize, 0);
        self.size = size;
    }

    fn zero(&mut self, from: u64, to: u64) {
        let (from, to) = (from.min(self.bytes.len() as u64), to.min(self.bytes.len() as u64));
        self.bytes[from as usize..to.max(from) as usize].fill(0);
    }

    fn holes(&self, range: BlockRange) -> u64 {
        range.len() - self.blocks.range(range.start..range.end).count() as u64
    }

    fn allocate(&mut self, range: BlockRange, written: bool) {
        for block in range.start..range.end {
            self.blocks.entry(block).or_insert(written);
        }
    }
}

/// A random call. Offsets and lengths are in bytes; slots and names by number.
#[derive(Clone, Debug)]
enum Op {
    Open {
        name: usize,
        create: bool,
        exclusive: bool,
        truncate: bool,
    },
    Close(usize),
    Unlink(usize),
    Read(usize, u64, u64),
    Write(usize, u64, u64, u8),
    Ftruncate(usize, u64),
    Truncate(usize, u64),
    Punch(usize, u64, u64),
    Zero(usize, bool, u64, u64),
    Allocate(usize, bool, u64, u64),
    Map(usize, u64, u64),
    Unmap(usize),
    Load(usize, u64, u64),
    Store(usize, u64, u64, u8),
    /// A registration through the mapping, one DMA write, and its end.
    Dma(usize, u8),
    /// A store through a mapping of the last block, from the end of the file to the end of the block.
    StoreTail(usize, u8),
    /// One of the calls above, from so many bytes behind the end of the file on.
    Grow(usize, u8, u64, u64),
}

/// Mostly small and at odd places, sometimes block aligned, sometimes large.
fn bytes(blocks: u64) -> impl Strategy<Value = u64> {
    let small = 24 * BLOCK;
    prop_oneof![4 => 0..small, 3 => (0..=24u64).prop_map(|n| n * BLOCK), 1 => 0..blocks * BLOCK]
}

fn op() -> impl Strategy<Value = Op> {
    let slot = || 0..SLOTS;
    let name = || 0..NAMES.len();
    let len = || bytes(220);
    prop_oneof![
        6 => (name(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(name, create, exclusive, truncate)| {
            Op::Open { name, create, exclusive: exclusive && create, truncate: truncate && exclusive }
        }),
        2 => slot().prop_map(Op::Close),
        1 => name().prop_map(Op::Unlink),
        4 => (slot(), bytes(300), len()).prop_map(|(s, at, len)| Op::Read(s, at, len)),
        8 => (slot(), bytes(300), len(), 1..=255u8).prop_map(|(s, at, len, byte)| Op::Write(s, at, len, byte)),
        2 => (slot(), bytes(300)).prop_map(|(s, size)| Op::Ftruncate(s, size)),
        1 => (name(), bytes(300)).prop_map(|(n, size)| Op::Truncate(n, size)),
        3 => (slot(), bytes(300), len()).prop_map(|(s, at, len)| Op::Punch(s, at, len)),
        3 => (slot(), any::<bool>(), bytes(300), len()).prop_map(|(s, keep, at, len)| Op::Zero(s, keep, at, len)),
        3 => (slot(), any::<bool>(), bytes(300), len()).prop_map(|(s, keep, at, len)| Op::Allocate(s, keep, at, len)),
        2 => (slot(), 0..8u64, 1..32u64).prop_map(|(s, block, blocks)| Op::Map(s, block * BLOCK, blocks * BLOCK)),
        1 => slot().prop_map(Op::Unmap),
        4 => (slot(), bytes(32), 1..3 * BLOCK).prop_map(|(s, at, len)| Op::Load(s, at, len)),
        5 => (slot(), bytes(32), 1..3 * BLOCK, 1..=255u8).prop_map(|(s, at, len, byte)| Op::Store(s, at, len, byte)),
        2 => (slot(), 1..=255u8).prop_map(|(s, byte)| Op::Dma(s, byte)),
        3 => (slot(), 1..=255u8).prop_map(|(s, byte)| Op::StoreTail(s, byte)),
        3 => (slot(), 0..4u8, 0..BLOCK, 1..2 * BLOCK).prop_map(|(s, call, gap, len)| Op::Grow(s, call, gap, len)),
    ]
}

struct Slot {
    fd: Fd,
    ino: Ino,
    /// Address, file offset, length.
    map: Option<(u64, u64, u64)>,
}

struct Run {
    lab: Lab,
    actor: Actor,
    files: BTreeMap<Ino, Model>,
    names: BTreeMap<usize, Ino>,
    slots: Vec<Option<Slot>>,
}

impl Run {
    fn free(&self) -> u64 {
        DEVICE_BLOCKS - self.files.values().map(|file| file.blocks.len() as u64).sum::<u64>()
    }

    /// Forgets files that nothing keeps.
    fn evict(&mut self) {
        let slots = &self.slots;
        self.files.retain(|ino, file| file.linked || slots.iter().flatten().any(|slot| slot.ino == *ino));
    }

    fn open(&mut self, name: usize, flags: Flags) {
        let expected = match self.names.get(&name) {
            Some(_) if flags.exclusive => Err(Errno::EEXIST),
            None if !flags.create => Err(Errno::ENOENT),
            _ => Ok(()),
        };
        let opened = self.actor.open(NAMES[name], flags);
        assert_eq!(opened.map(|_| ()), expected);
        let Ok(fd) = opened else { return };
        let ino = self.actor.stat(fd).unwrap().ino;
        match self.names.get(&name) {
            Some(known) => assert_eq!(*known, ino),
            None => {
                assert!(!self.files.contains_key(&ino), "an inode's number is never reused");
                self.names.insert(name, ino);
                self.files.insert(ino, Model { linked: true, ..Model::default() });
            }
        }
        let file = self.files.get_mut(&ino).unwrap();
        if flags.truncate {
            file.resize(0);
            file.blocks.clear();
        }
        let at = self.slots.iter().position(Option::is_none).unwrap_or(0);
        self.close(at);
        self.slots[at] = Some(Slot { fd, ino, map: None });
    }

    fn unmap(&mut self, slot: usize) {
        if let Some(slot) = &mut self.slots[slot]
            && let Some((va, _, len)) = slot.map.take()
        {
            assert_eq!(self.actor.munmap(va, len), Ok(()));
        }
    }

    fn close(&mut self, slot: usize) {
        self.unmap(slot);
        if let Some(Slot { fd, .. }) = self.slots[slot].take() {
            assert_eq!(self.actor.close(fd), Ok(()));
        }
        self.evict();
    }

    /// Runs a call that needs `blocks` new ones: it fails with `full` and changes nothing, or succeeds.
    fn allocating(&mut self, blocks: u64, result: Result<(), Errno>, full: Errno) -> bool {
        let fits = blocks <= self.free();
        assert_eq!(result, if fits { Ok(()) } else { Err(full) }, "{blocks} blocks needed, {} free", self.free());
        fits
    }

    /// Calls that are stated relative to the end of the file, as absolute ones.
    fn step(&mut self, op: &Op) {
        let size = |slot: usize| self.slots[slot].as_ref().map_or(0, |slot| self.files[&slot.ino].size);
        match *op {
            Op::StoreTail(slot, byte) => {
                let size = size(slot);
                let tail = size.next_multiple_of(BLOCK) - size;
                if tail > 0 {
                    self.absolute(&Op::Map(slot, size / BLOCK * BLOCK, BLOCK));
                    self.absolute(&Op::Store(slot, BLOCK - tail, tail, byte));
                }
            }
            Op::Grow(slot, call, gap, len) => {
                let at = size(slot) + gap;
                self.absolute(&match call {
                    0 => Op::Write(slot, at, len, 0xdd),
                    1 => Op::Ftruncate(slot, at + len),
                    2 => Op::Zero(slot, false, at, len),
                    _ => Op::Allocate(slot, false, at, len),
                });
            }
            _ => self.absolute(op),
        }
    }

    fn absolute(&mut self, op: &Op) {
        match *op {
            Op::Open { name, create, exclusive, truncate } => {
                self.open(name, Flags { create, exclusive, truncate, ..Flags::open(Access::BOTH) });
            }
            Op::Close(slot) => self.close(slot),
            Op::Unlink(name) => {
                let expected = self.names.remove(&name).ok_or(Errno::ENOENT);
                assert_eq!(self.actor.unlink(NAMES[name]), expected.map(|_| ()));
                if let Ok(ino) = expected {
                    self.files.get_mut(&ino).unwrap().linked = false;
                }
                self.evict();
            }
            Op::Truncate(name, size) => {
                let known = self.names.get(&name).copied();
                let expected = known.ok_or(Errno::ENOENT).map(|_| ());
                assert_eq!(self.actor.truncate(NAMES[name], size), expected);
                if let Some(ino) = known {
                    self.truncated(ino, size);
                }
            }
            Op::Read(slot, ..)
            | Op::Write(slot, ..)
            | Op::Ftruncate(slot, ..)
            | Op::Punch(slot, ..)
            | Op::Zero(slot, ..)
            | Op::Allocate(slot, ..)
            | Op::Map(slot, ..)
            | Op::Unmap(slot)
            | Op::Load(slot, ..)
            | Op::Store(slot, ..)
            | Op::Dma(slot, ..) => {
                if self.slots[slot].is_some() {
                    self.on_file(slot, op);
                    self.check(slot);
                }
            }
            Op::StoreTail(..) | Op::Grow(..) => unreachable!("relative"),
        }
        assert_eq!(self.lab.kernel.usage().free, self.free(), "after {op:?}");
    }

    fn truncated(&mut self, ino: Ino, size: u64) {
        let file = self.files.get_mut(&ino).unwrap();
        file.resize(size);
        file.blocks.retain(|block, _| *block < size.div_ceil(BLOCK));
    }

    fn on_file(&mut self, at: usize, op: &Op) {
        let Slot { fd, ino, map } = *self.slots[at].as_ref().unwrap();
        let mut file = self.files[&ino].clone();
        match *op {
            Op::Read(_, at, len) => {
                let mut found = vec![0xee; len as usize];
                let expected = &file.bytes[at.min(file.size) as usize..(at + len).min(file.size) as usize];
                assert_eq!(self.actor.read(fd, at, &mut found), Ok(expected.len()));
                assert!(found[..expected.len()] == *expected, "contents");
                return;
            }
            Op::Write(_, at, len, byte) => {
                let range = BlockRange::of_bytes(at, len);
                let written = self.actor.write(fd, at, &vec![byte; len as usize]).map(|n| assert_eq!(n as u64, len));
                let needed = if len == 0 { 0 } else { file.holes(range) };
                if !self.allocating(needed, written, Errno::ENOSPC) || len == 0 {
                    return;
                }
                if at + len > file.size {
                    file.resize(at + len);
                }
                file.bytes[at as usize..(at + len) as usize].fill(byte);
                (range.start..range.end).for_each(|block| _ = file.blocks.insert(block, true));
            }
            Op::Ftruncate(_, size) => {
                assert_eq!(self.actor.ftruncate(fd, size), Ok(()));
                return self.truncated(ino, size);
            }
            Op::Punch(_, at, len) => {
                let punched = self.actor.fallocate(fd, Mode::PunchHole, at, len);
                assert_eq!(punched, if len == 0 { Err(Errno::EINVAL) } else { Ok(()) });
                if len > 0 {
                    file.zero(at, at + len);
                    let (first, last) = (at.div_ceil(BLOCK), (at + len) / BLOCK);
                    file.blocks.retain(|block, _| !(first..last.max(first)).contains(block));
                }
            }
            Op::Zero(_, keep_size, at, len) | Op::Allocate(_, keep_size, at, len) => {
                let zero = matches!(op, Op::Zero(..));
                let mode = if zero { Mode::ZeroRange { keep_size } } else { Mode::Allocate { keep_size } };
                let done = self.actor.fallocate(fd, mode, at, len);
                if len == 0 {
                    return assert_eq!(done, Err(Errno::EINVAL));
                }
                let range = BlockRange::of_bytes(at, len);
                if !self.allocating(file.holes(range), done, Errno::ENOSPC) {
                    return;
                }
                file.allocate(range, false);
                if !keep_size && at + len > file.size {
                    file.resize(at + len);
                }
                if zero {
                    file.zero(at, at + len);
                    let (first, last) = (at.div_ceil(BLOCK), (at + len) / BLOCK);
                    (first..last).for_each(|block| _ = file.blocks.insert(block, false));
                }
            }
            Op::Map(_, offset, len) => {
                self.unmap(at);
                let va = self.actor.mmap(fd, offset, len, true).unwrap();
                self.slots[at].as_mut().unwrap().map = Some((va, offset, len));
                return;
            }
            Op::Unmap(_) => return self.unmap(at),
            Op::Load(_, within, len) => {
                // Behind its end lies another mapping, perhaps.
                let Some((va, offset, mapped)) = map.filter(|(_, _, mapped)| within < *mapped) else { return };
                let mut found = vec![0xee; len as usize];
                let loaded = self.actor.load(va + within, &mut found);
                let (from, to) = (offset + within, offset + within + len);
                if within + len > mapped {
                    return assert_eq!(loaded, Err(Errno::SIGSEGV));
                }
                let expected = if to <= file.bytes.len() as u64 { Ok(()) } else { Err(Errno::SIGBUS) };
                assert_eq!(loaded, expected);
                if loaded.is_ok() {
                    assert!(found == file.bytes[from as usize..to as usize], "contents through the mapping");
                }
                return;
            }
            Op::Store(_, within, len, byte) => {
                // Behind its end lies another mapping, perhaps.
                let Some((va, offset, mapped)) = map.filter(|(_, _, mapped)| within < *mapped) else { return };
                let stored = self.actor.store(va + within, &vec![byte; len as usize]);
                let (from, to) = (offset + within, offset + within + len);
                if within + len > mapped {
                    return assert_eq!(stored, Err(Errno::SIGSEGV));
                }
                if to.next_multiple_of(BLOCK) > file.bytes.len() as u64 {
                    return assert_eq!(stored, Err(Errno::SIGBUS));
                }
                let range = BlockRange::of_bytes(from, len);
                if !self.allocating(file.holes(range), stored, Errno::SIGBUS) {
                    return;
                }
                file.bytes[from as usize..to as usize].fill(byte);
                (range.start..range.end).for_each(|block| _ = file.blocks.insert(block, true));
            }
            Op::Dma(_, byte) => {
                let Some((_, offset, len)) = map else { return };
                if !common::can_pin(*self.lab.kernel.axes()) || common::needs_lease(*self.lab.kernel.axes()) {
                    return;
                }
                let blocks = BlockRange::of_bytes(offset, len);
                let (context, nic) = Nic::open(&self.actor);
                let region = nic.pins(&self.actor, fd, blocks.start..blocks.end);
                let done = region.as_ref().map(|_| ()).map_err(|errno| *errno);
                let fits = if blocks.end * BLOCK > file.bytes.len() as u64 {
                    assert_eq!(done, Err(Errno::EFAULT));
                    false
                } else {
                    self.allocating(file.holes(blocks), done, Errno::ENOSPC)
                };
                if fits {
                    let region = region.unwrap();
                    assert_eq!(region.dma_write(&self.lab.kernel, 1, &vec![byte; len as usize - 1]), Ok(()));
                    file.bytes[offset as usize + 1..(offset + len) as usize].fill(byte);
                    (blocks.start..blocks.end).for_each(|block| _ = file.blocks.insert(block, true));
                }
                self.actor.close(context).unwrap();
            }
            Op::Open { .. } | Op::Close(_) | Op::Unlink(_) | Op::Truncate(..) | Op::StoreTail(..) | Op::Grow(..) => {
                unreachable!("not on a slot, or relative")
            }
        }
        self.files.insert(ino, file);
    }

    /// What `stat` and `fiemap` say, and all the bytes.
    fn check(&self, slot: usize) {
        let Slot { fd, ino, .. } = *self.slots[slot].as_ref().unwrap();
        let file = &self.files[&ino];
        let stat = self.actor.stat(fd).unwrap();
        let expected = (file.size, file.blocks.len() as u64, u32::from(file.linked));
        assert_eq!((stat.size, stat.blocks, stat.links), expected);
        let mut blocks = BTreeMap::new();
        let extents = self.actor.fiemap(fd, BlockRange::ALL).unwrap();
        for extent in &extents {
            assert!(extent.length > 0 && !extent.shared);
            for block in 0..extent.length / BLOCK {
                assert_eq!(blocks.insert(extent.logical / BLOCK + block, !extent.unwritten), None);
            }
        }
        assert_eq!(blocks, file.blocks);
        assert!(extents.iter().rev().map(|extent| extent.last).eq((0..extents.len()).map(|n| n == 0)));
        let mut bytes = vec![0xee; file.size as usize + 1];
        assert_eq!(self.actor.read(fd, 0, &mut bytes), Ok(file.size as usize));
        assert!(bytes[..file.size as usize] == file.bytes[..file.size as usize], "contents");
    }

    fn end(self) {
        (0..SLOTS).filter(|slot| self.slots[*slot].is_some()).for_each(|slot| self.check(slot));
        for name in NAMES {
            let _gone = self.actor.unlink(name);
        }
        self.actor.exit();
        assert_eq!(self.lab.kernel.check_at_rest(), Vec::<String>::new());
        let usage = self.lab.kernel.usage();
        assert_eq!((usage.allocated, usage.free), (0, DEVICE_BLOCKS));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn files_are_byte_vectors(design in 0..presets().len(), ops in prop::collection::vec(op(), 40..160)) {
        let lab = Lab::on(DEVICE_BLOCKS * BLOCK, presets()[design].axes, |_| {});
        let actor = lab.actor();
        let slots = (0..SLOTS).map(|_| None).collect();
        let mut run = Run { lab, actor, files: BTreeMap::new(), names: BTreeMap::new(), slots };
        run.open(0, Flags::create());
        for op in &ops {
            run.step(op);
        }
        run.end();
    }
}
