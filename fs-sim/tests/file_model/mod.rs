//! A plain model of the file system: per file a byte vector and a map of blocks. Blocks have names,
//! so files can share them.
//!
//! It owns the calls ([`Op`]), and [`ModelRun`], which makes each call on a simulated kernel and in
//! the model and compares result, contents, extents and free blocks. `tests/model.rs` makes the
//! calls from random numbers, the fuzzer `file_system` from bytes. Invariants 3, 4 and 8 of
//! `docs/semantics.md`, section 8, and invariant 7 for one process.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

use std::collections::{BTreeMap, BTreeSet};

use crate::common::{self, Actor, Lab, Nic};
use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicU64, Ordering};
use fs_sim::base::numbers::{Fd, Ino};
use fs_sim::design::{Axes, Platform};
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::{BLOCK, BlockRange, Errno, Kernel, KernelConfig};

/// The names of files.
pub(crate) const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// The most files that are open at once.
pub(crate) const SLOTS: usize = 6;
/// 2 MiB: the smallest device.
const DEVICE_BLOCKS: u64 = 512;

/// What a file is.
#[derive(Clone, Debug, Default)]
struct Model {
    size: u64,
    /// Up to the end of the last block that the size reaches into: what a mapping sees.
    bytes: Vec<u8>,
    /// Allocated blocks: which, and whether they are written.
    blocks: BTreeMap<u64, (u64, bool)>,
    linked: bool,
}

/// A number for a block of the device: which one it is, the kernel decides.
fn fresh() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The block that byte `size` lies in, if it lies within one.
fn tail(size: u64) -> BlockRange {
    BlockRange::new(size / BLOCK, size.div_ceil(BLOCK))
}

/// The blocks that hold a part of a byte range.
fn edges(at: u64, end: u64) -> BTreeSet<u64> {
    let first = (!at.is_multiple_of(BLOCK)).then_some(at / BLOCK);
    let last = (!end.is_multiple_of(BLOCK)).then_some(end / BLOCK);
    first.into_iter().chain(last).collect()
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
            self.blocks.entry(block).or_insert_with(|| (fresh(), written));
        }
    }

    /// Those of `blocks` that other mappings share.
    fn shared(&self, mapped: &Mapped, blocks: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
        let shared = |block: &u64| self.blocks.get(block).is_some_and(|(id, _)| mapped[id] > 1);
        blocks.into_iter().filter(shared).collect()
    }

    /// Gives each of `blocks` that is mapped, a block of its own.
    fn copy(&mut self, blocks: &BTreeSet<u64>) {
        for block in blocks {
            self.blocks.entry(*block).and_modify(|(id, _)| *id = fresh());
        }
    }

    fn write(&mut self, range: BlockRange) {
        self.allocate(range, true);
        self.blocks.range_mut(range.start..range.end).for_each(|(_, (_, written))| *written = true);
    }

    /// The blocks and bytes in a range of blocks.
    fn cut(&self, range: BlockRange) -> (Vec<Option<(u64, bool)>>, Vec<u8>) {
        let blocks = (range.start..range.end).map(|block| self.blocks.get(&block).copied()).collect();
        (blocks, self.bytes[(range.start * BLOCK) as usize..(range.end * BLOCK) as usize].to_vec())
    }

    fn paste(&mut self, at: u64, (blocks, bytes): (Vec<Option<(u64, bool)>>, Vec<u8>)) {
        for (block, what) in (at..).zip(blocks) {
            match what {
                Some(what) => _ = self.blocks.insert(block, what),
                None => _ = self.blocks.remove(&block),
            }
        }
        let from = (at * BLOCK) as usize;
        self.bytes[from..from + bytes.len()].copy_from_slice(&bytes);
    }
}

/// How often each block is mapped.
type Mapped = BTreeMap<u64, u64>;

/// A random call. Offsets and lengths are in bytes; slots and names by number.
#[derive(Clone, Debug)]
pub(crate) enum Op {
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
    /// A store through a mapping of the last block, from the end of the file to the end of the
    /// block.
    StoreTail(usize, u8),
    /// One of the calls above, from so many bytes behind the end of the file on.
    Grow(usize, u8, u64, u64),
    Unshare(usize, bool, u64, u64),
    Collapse(usize, u64, u64),
    Insert(usize, u64, u64),
    Defragment(usize),
    /// From one slot and offset to another, so many bytes; true: to the end of the first file.
    Reflink((usize, u64), (usize, u64), u64, bool),
    Dedupe((usize, u64), (usize, u64), u64, bool),
    Exchange((usize, u64), (usize, u64), u64, bool),
}

struct Slot {
    fd: Fd,
    ino: Ino,
    /// Address, file offset, length.
    map: Option<(u64, u64, u64)>,
}

/// A simulated kernel and the model of its files.
pub(crate) struct ModelRun {
    lab: Lab,
    actor: Actor,
    files: BTreeMap<Ino, Model>,
    names: BTreeMap<usize, Ino>,
    slots: Vec<Option<Slot>>,
}

impl ModelRun {
    /// A volume of [`DEVICE_BLOCKS`] under a design, with one file, which is open.
    pub(crate) fn start(axes: Axes) -> ModelRun {
        ModelRun::start_on(Platform::Eadr, axes)
    }

    /// As [`ModelRun::start`], on a platform that may lose what CPU caches hold.
    pub(crate) fn start_on(platform: Platform, axes: Axes) -> ModelRun {
        let lab = Lab::on(DEVICE_BLOCKS * BLOCK, axes, |config| config.options.platform = platform);
        let actor = lab.actor();
        let slots = (0..SLOTS).map(|_| None).collect();
        let mut run = ModelRun { lab, actor, files: BTreeMap::new(), names: BTreeMap::new(), slots };
        run.open(0, OpenFlags::create());
        run
    }

    /// Makes each call in turn, then closes and removes everything.
    ///
    /// # Panics
    /// Kernel and model differ.
    pub(crate) fn check_all(mut self, ops: &[Op]) {
        for (n, op) in ops.iter().enumerate() {
            self.step(op);
            if n % 8 == 0 {
                self.check_identities();
            }
        }
        self.end();
    }

    /// Makes each call in turn, and `fsync` of each file; then the power fails. Every named file
    /// must be as the model has it.
    ///
    /// # Panics
    /// Kernel and model differ, or a file has lost bytes.
    #[allow(dead_code, reason = "the replay of the fuzzer's corpus cuts no power")]
    pub(crate) fn check_power_cut(mut self, ops: &[Op]) {
        ops.iter().for_each(|op| self.step(op));
        let mut config = KernelConfig::new(*self.lab.kernel.axes());
        config.options.platform = Platform::Adr;
        for name in self.names.keys() {
            let fd = self.actor.open(NAMES[*name], OpenFlags::open(AccessMode::READ)).unwrap();
            self.actor.fsync(fd).unwrap();
            self.actor.close(fd).unwrap();
        }
        let durable = self.lab.kernel.power_cut().unwrap();
        let (kernel, recovered) = Kernel::recover(Arc::clone(&self.lab.world), durable, config).unwrap();
        assert!(recovered.lost_lines.is_some());
        let lab = Lab::over(kernel, Arc::clone(&self.lab.world));
        let reader = lab.actor();
        for (name, ino) in &self.names {
            let model = &self.files[ino];
            let fd = reader.open(NAMES[*name], OpenFlags::open(AccessMode::READ)).unwrap();
            let mut bytes = vec![0; model.size as usize];
            assert_eq!(reader.read(fd, 0, &mut bytes), Ok(bytes.len()), "the size of {}", NAMES[*name]);
            let wrong = bytes.iter().zip(&model.bytes).position(|(read, wrote)| read != wrote);
            assert_eq!(wrong, None, "{} has lost bytes", NAMES[*name]);
        }
        lab.end([&reader]);
    }

    fn free(&self) -> u64 {
        DEVICE_BLOCKS - self.mapped().len() as u64
    }

    fn mapped(&self) -> Mapped {
        let mut mapped = Mapped::new();
        for (id, _) in self.files.values().flat_map(|file| file.blocks.values()) {
            *mapped.entry(*id).or_default() += 1;
        }
        mapped
    }

    /// Forgets files that nothing keeps.
    fn evict(&mut self) {
        let slots = &self.slots;
        self.files.retain(|ino, file| file.linked || slots.iter().flatten().any(|slot| slot.ino == *ino));
    }

    fn open(&mut self, name: usize, flags: OpenFlags) {
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

    /// Runs a call that needs `blocks` new ones: it fails with `full` and changes nothing, or
    /// succeeds.
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
                self.open(name, OpenFlags { create, exclusive, truncate, ..OpenFlags::open(AccessMode::BOTH) });
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
                let truncated = self.actor.truncate(NAMES[name], size);
                match known {
                    Some(ino) => self.truncated(ino, size, truncated),
                    None => assert_eq!(truncated, Err(Errno::ENOENT)),
                }
            }
            Op::Defragment(name) => {
                let done = self.lab.kernel.defragment_politely(NAMES[name]);
                let Some(ino) = self.names.get(&name) else {
                    return assert_eq!(done, Err(Errno::ENOENT));
                };
                match done {
                    Ok(done) => {
                        let all = self.files[ino].blocks.len() as u64;
                        assert!([0, all].contains(&(done.moved + done.skipped)), "{done:?} of {all}");
                    }
                    Err(errno) => assert_eq!(errno, Errno::ENOSPC),
                }
            }
            Op::Reflink(from, to, len, end) => self.remap(from, to, len, end, false),
            Op::Dedupe(from, to, len, end) => self.remap(from, to, len, end, true),
            Op::Exchange(a, b, len, end) => self.exchange(a, b, len, end),
            Op::Read(slot, ..)
            | Op::Write(slot, ..)
            | Op::Ftruncate(slot, ..)
            | Op::Punch(slot, ..)
            | Op::Zero(slot, ..)
            | Op::Allocate(slot, ..)
            | Op::Unshare(slot, ..)
            | Op::Collapse(slot, ..)
            | Op::Insert(slot, ..)
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

    fn truncated(&mut self, ino: Ino, size: u64, result: Result<(), Errno>) {
        let mut file = self.files[&ino].clone();
        let gone = file.blocks.range(size.div_ceil(BLOCK)..).next().is_some();
        let blocks = tail(size.min(file.size));
        let copies = if size == file.size && !gone {
            BTreeSet::new()
        } else {
            file.shared(&self.mapped(), blocks.start..blocks.end)
        };
        if self.allocating(copies.len() as u64, result, Errno::ENOSPC) {
            file.copy(&copies);
            file.resize(size);
            file.blocks.retain(|block, _| *block < size.div_ceil(BLOCK));
            self.files.insert(ino, file);
        }
    }

    /// Reflink, or dedupe.
    fn remap(&mut self, from: (usize, u64), to: (usize, u64), len: u64, to_end: bool, compare: bool) {
        let (Some(a), Some(b)) = (&self.slots[from.0], &self.slots[to.0]) else { return };
        let ((fd_a, ino_a), (fd_b, ino_b)) = ((a.fd, a.ino), (b.fd, b.ino));
        let (source, target) = (self.files[&ino_a].clone(), self.files[&ino_b].clone());
        let len = if to_end { source.size.saturating_sub(from.1) } else { len };
        let done = match compare {
            true => self.actor.dedupe(fd_a, from.1, fd_b, to.1, len).map(|same| same.is_some()),
            false => self.actor.reflink(fd_a, from.1, fd_b, to.1, len).map(|()| true),
        };
        let asked = if len == 0 && !compare { source.size.checked_sub(from.1) } else { Some(len) };
        let aligned = from.1.is_multiple_of(BLOCK) && to.1.is_multiple_of(BLOCK);
        let Some(asked) = asked.filter(|_| aligned) else {
            return assert_eq!(done, Err(Errno::EINVAL));
        };
        if asked == 0 {
            return assert_eq!(done, Ok(true));
        }
        let (end_a, end_b) = (from.1 + asked, to.1 + asked);
        let both_end = end_a == source.size && if compare { end_b == target.size } else { end_b >= target.size };
        let len = match asked % BLOCK {
            part if part > 0 && !both_end && compare => asked - part,
            _ => asked,
        };
        let range = |at: u64| BlockRange::of_bytes(at, len);
        let beyond = end_a > source.size || (compare && end_b > target.size);
        if beyond
            || (!len.is_multiple_of(BLOCK) && !both_end)
            || (ino_a == ino_b && range(from.1).overlaps(range(to.1)))
        {
            return assert_eq!(done, Err(Errno::EINVAL), "{from:?} {to:?} {asked}");
        }
        let same = || {
            source.bytes[from.1 as usize..(from.1 + len) as usize] == target.bytes[to.1 as usize..(to.1 + len) as usize]
        };
        if compare && !same() {
            return assert_eq!(done, Ok(false));
        }
        let mut copies = BTreeSet::new();
        if !compare && to.1 > target.size {
            let tail = tail(target.size);
            copies = target.shared(&self.mapped(), tail.start..tail.end);
        }
        if !self.allocating(copies.len() as u64, done.map(|same| assert!(same)), Errno::ENOSPC) {
            return;
        }
        let mut target = target;
        if !compare && to.1 + len > target.size {
            target.resize(to.1 + len);
        }
        target.copy(&copies);
        // Within one file what is cloned is the block that the zeroing of the tail has left there.
        let source = if ino_a == ino_b { target.clone() } else { source };
        let (mut blocks, bytes) = source.cut(range(from.1));
        // An unwritten block is not shared.
        blocks.iter_mut().for_each(|block| *block = block.filter(|(_, written)| *written));
        target.paste(range(to.1).start, (blocks, bytes));
        self.files.insert(ino_b, target);
        self.check(from.0);
        self.check(to.0);
    }

    fn exchange(&mut self, a: (usize, u64), b: (usize, u64), len: u64, to_end: bool) {
        let (Some(one), Some(other)) = (&self.slots[a.0], &self.slots[b.0]) else { return };
        let ((fd_a, ino_a), (fd_b, ino_b)) = ((one.fd, one.ino), (other.fd, other.ino));
        let (file_a, file_b) = (self.files[&ino_a].clone(), self.files[&ino_b].clone());
        let len = if to_end { file_a.size.saturating_sub(a.1) } else { len };
        let done = self.actor.exchange_range(fd_a, a.1, fd_b, b.1, len);
        let aligned = a.1.is_multiple_of(BLOCK) && b.1.is_multiple_of(BLOCK);
        if aligned && len == 0 {
            return assert_eq!(done, Ok(()));
        }
        let both_end = a.1 + len == file_a.size && b.1 + len == file_b.size;
        let inside = a.1 + len <= file_a.size && b.1 + len <= file_b.size;
        let (range_a, range_b) = (BlockRange::of_bytes(a.1, len), BlockRange::of_bytes(b.1, len));
        if !aligned
            || !inside
            || !(len.is_multiple_of(BLOCK) || both_end)
            || (ino_a == ino_b && range_a.overlaps(range_b))
        {
            return assert_eq!(done, Err(Errno::EINVAL));
        }
        assert_eq!(done, Ok(()));
        let (from_a, from_b) = (file_a.cut(range_a), file_b.cut(range_b));
        self.files.get_mut(&ino_a).unwrap().paste(range_a.start, from_b);
        self.files.get_mut(&ino_b).unwrap().paste(range_b.start, from_a);
        self.check(a.0);
        self.check(b.0);
    }

    fn on_file(&mut self, at: usize, op: &Op) {
        let Slot { fd, ino, map } = *self.slots[at].as_ref().unwrap();
        let mut file = self.files[&ino].clone();
        let mapped = self.mapped();
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
                let mut copies = file.shared(&mapped, range.start..range.end);
                if at + len > file.size {
                    let tail = tail(file.size);
                    copies.extend(file.shared(&mapped, tail.start..tail.end));
                }
                let needed = if len == 0 { 0 } else { file.holes(range) + copies.len() as u64 };
                if !self.allocating(needed, written, Errno::ENOSPC) || len == 0 {
                    return;
                }
                file.copy(&copies);
                if at + len > file.size {
                    file.resize(at + len);
                }
                file.bytes[at as usize..(at + len) as usize].fill(byte);
                file.write(range);
            }
            Op::Ftruncate(_, size) => {
                let truncated = self.actor.ftruncate(fd, size);
                return self.truncated(ino, size, truncated);
            }
            Op::Punch(_, at, len) => {
                let punched = self.actor.fallocate(fd, FallocateMode::PunchHole, at, len);
                if len == 0 {
                    return assert_eq!(punched, Err(Errno::EINVAL));
                }
                let copies = file.shared(&mapped, edges(at, at + len));
                if self.allocating(copies.len() as u64, punched, Errno::ENOSPC) {
                    file.copy(&copies);
                    file.zero(at, at + len);
                    let (first, last) = (at.div_ceil(BLOCK), (at + len) / BLOCK);
                    file.blocks.retain(|block, _| !(first..last.max(first)).contains(block));
                }
            }
            Op::Zero(_, keep_size, at, len)
            | Op::Allocate(_, keep_size, at, len)
            | Op::Unshare(_, keep_size, at, len) => {
                let zero = matches!(op, Op::Zero(..));
                let mode = match op {
                    Op::Zero(..) => FallocateMode::ZeroRange { keep_size },
                    Op::Allocate(..) => FallocateMode::Allocate { keep_size },
                    _ => FallocateMode::UnshareRange { keep_size },
                };
                let done = self.actor.fallocate(fd, mode, at, len);
                if len == 0 {
                    return assert_eq!(done, Err(Errno::EINVAL));
                }
                let range = BlockRange::of_bytes(at, len);
                let grows = !keep_size && at + len > file.size;
                let mut copies = BTreeSet::new();
                if !matches!(op, Op::Allocate(..)) {
                    copies = file.shared(&mapped, range.start..range.end);
                }
                if grows {
                    let tail = tail(file.size);
                    copies.extend(file.shared(&mapped, tail.start..tail.end));
                }
                if !self.allocating(file.holes(range) + copies.len() as u64, done, Errno::ENOSPC) {
                    return;
                }
                file.copy(&copies);
                file.allocate(range, false);
                if grows {
                    file.resize(at + len);
                }
                if zero {
                    file.zero(at, at + len);
                    let (first, last) = (at.div_ceil(BLOCK), (at + len) / BLOCK);
                    (first..last)
                        .for_each(|block| _ = file.blocks.entry(block).and_modify(|(_, written)| *written = false));
                }
            }
            Op::Collapse(_, at, len) => {
                let done = self.actor.fallocate(fd, FallocateMode::CollapseRange, at, len);
                if len == 0 || !at.is_multiple_of(BLOCK) || !len.is_multiple_of(BLOCK) || at + len >= file.size {
                    return assert_eq!(done, Err(Errno::EINVAL));
                }
                assert_eq!(done, Ok(()));
                let (first, end) = (at / BLOCK, (at + len) / BLOCK);
                let behind = file.blocks.split_off(&end);
                file.blocks.split_off(&first);
                file.blocks.extend(behind.into_iter().map(|(block, what)| (block - (end - first), what)));
                file.bytes.drain(at as usize..(at + len) as usize);
                file.size -= len;
            }
            Op::Insert(_, at, len) => {
                if file.size + len > 2 * DEVICE_BLOCKS * BLOCK {
                    return;
                }
                let done = self.actor.fallocate(fd, FallocateMode::InsertRange, at, len);
                if len == 0 || !at.is_multiple_of(BLOCK) || !len.is_multiple_of(BLOCK) || at >= file.size {
                    return assert_eq!(done, Err(Errno::EINVAL));
                }
                assert_eq!(done, Ok(()));
                let behind = file.blocks.split_off(&(at / BLOCK));
                file.blocks.extend(behind.into_iter().map(|(block, what)| (block + len / BLOCK, what)));
                file.bytes.splice(at as usize..at as usize, std::iter::repeat_n(0, len as usize));
                file.size += len;
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
                let Some((va, offset, room)) = map.filter(|(_, _, room)| within < *room) else { return };
                let mut found = vec![0xee; len as usize];
                let loaded = self.actor.load(va + within, &mut found);
                let (from, to) = (offset + within, offset + within + len);
                if within + len > room {
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
                let Some((va, offset, room)) = map.filter(|(_, _, room)| within < *room) else { return };
                let stored = self.actor.store(va + within, &vec![byte; len as usize]);
                let (from, to) = (offset + within, offset + within + len);
                if within + len > room {
                    return assert_eq!(stored, Err(Errno::SIGSEGV));
                }
                if to.next_multiple_of(BLOCK) > file.bytes.len() as u64 {
                    return assert_eq!(stored, Err(Errno::SIGBUS));
                }
                let range = BlockRange::of_bytes(from, len);
                let copies = file.shared(&mapped, range.start..range.end);
                if !self.allocating(file.holes(range) + copies.len() as u64, stored, Errno::SIGBUS) {
                    return;
                }
                file.bytes[from as usize..to as usize].fill(byte);
                file.copy(&copies);
                file.write(range);
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
                let copies = file.shared(&mapped, blocks.start..blocks.end);
                let fits = if blocks.end * BLOCK > file.bytes.len() as u64 {
                    assert_eq!(done, Err(Errno::EFAULT));
                    false
                } else {
                    self.allocating(file.holes(blocks) + copies.len() as u64, done, Errno::ENOSPC)
                };
                if fits {
                    let region = region.unwrap();
                    assert_eq!(region.dma_write(&self.lab.kernel, 1, &vec![byte; len as usize - 1]), Ok(()));
                    file.bytes[offset as usize + 1..(offset + len) as usize].fill(byte);
                    file.copy(&copies);
                    file.write(blocks);
                }
                self.actor.close(context).unwrap();
            }
            _ => unreachable!("not on a slot, or relative"),
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
        let extents = self.actor.fiemap(fd, BlockRange::ALL).unwrap();
        let mapped = self.mapped();
        let mut blocks = BTreeMap::new();
        for extent in &extents {
            assert!(extent.length > 0 && !(extent.shared && extent.unwritten));
            for nth in 0..extent.length / BLOCK {
                let block = extent.logical / BLOCK + nth;
                let (id, _) = file.blocks[&block];
                assert!(extent.shared || mapped[&id] == 1, "block {block} is shared, and not marked so");
                assert_eq!(blocks.insert(block, (id, !extent.unwritten)), None);
            }
        }
        assert_eq!(blocks, file.blocks);
        assert!(extents.iter().rev().map(|extent| extent.last).eq((0..extents.len()).map(|n| n == 0)));
        let mut bytes = vec![0xee; file.size as usize + 1];
        assert_eq!(self.actor.read(fd, 0, &mut bytes), Ok(file.size as usize));
        assert!(bytes[..file.size as usize] == file.bytes[..file.size as usize], "contents");
    }

    /// What the model takes for one block is one on the device, and the other way round.
    fn check_identities(&self) {
        let (mut device, mut model) = (BTreeMap::new(), BTreeMap::new());
        for Slot { fd, ino, .. } in self.slots.iter().flatten() {
            for extent in self.actor.fiemap(*fd, BlockRange::ALL).unwrap() {
                for nth in 0..extent.length / BLOCK {
                    let (id, _) = self.files[ino].blocks[&(extent.logical / BLOCK + nth)];
                    let page = extent.physical / BLOCK + nth;
                    assert_eq!(*device.entry(id).or_insert(page), page);
                    assert_eq!(*model.entry(page).or_insert(id), id);
                }
            }
        }
    }

    fn end(self) {
        self.check_identities();
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
