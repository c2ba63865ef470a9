//! Layout changes of one inode, on ranges that overlap or do not, against each other and against
//! pinners, on schedules drawn from a seed.
//!
//! # The oracle
//! The calls of a schedule must have an order in which a plain model of the file gives every call
//! the result that it had, and the file its final contents. A call that the design refused has no
//! effect.

use crate::schedules::{SmallNic, assert_at_rest, explore, kernel};
use emulator::sync::thread;
use fs_sim::base::numbers::Fd;
use fs_sim::design::{Axes, ChangeRule, presets};
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::{BLOCK, Errno, Task};

/// The blocks of the file at first. Block `n` holds `n + 1`.
const BLOCKS: u64 = 4;

/// A call on the file, by block numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Punch(u64),
    Zero(u64),
    Allocate(u64),
    Truncate(u64),
    Collapse(u64),
    Insert(u64),
    Exchange(u64, u64),
    /// The second block becomes shared with the first.
    Clone(u64, u64),
    Write(u64, u8),
    Read(u64),
    /// A registration of the block, a DMA write, and the end of the registration.
    Dma(u64, u8),
}

/// What a call returned: the byte, of a read.
type Returned = Result<u8, Errno>;

fn perform(task: &Task, fd: Fd, call: Call) -> Returned {
    let at = |block: u64| block * BLOCK;
    let fallocate = |mode, block| task.fallocate(fd, mode, at(block), BLOCK);
    match call {
        Call::Punch(block) => fallocate(FallocateMode::PunchHole, block),
        Call::Zero(block) => fallocate(FallocateMode::ZeroRange { keep_size: true }, block),
        Call::Allocate(block) => fallocate(FallocateMode::Allocate { keep_size: true }, block),
        Call::Truncate(blocks) => task.ftruncate(fd, at(blocks)),
        Call::Collapse(block) => fallocate(FallocateMode::CollapseRange, block),
        Call::Insert(block) => fallocate(FallocateMode::InsertRange, block),
        Call::Exchange(a, b) => task.exchange_range(fd, at(a), fd, at(b), BLOCK),
        Call::Clone(from, to) => task.reflink(fd, at(from), fd, at(to), BLOCK),
        Call::Write(block, byte) => task.write(fd, at(block), &[byte; BLOCK as usize]).map(|_| ()),
        Call::Read(block) => {
            let mut bytes = [0; BLOCK as usize];
            let len = task.read(fd, at(block), &mut bytes)?;
            assert!(bytes[..len].iter().all(|byte| *byte == bytes[0]), "a block of mixed bytes");
            return Ok(bytes[0]);
        }
        Call::Dma(block, byte) => dma(task, fd, block, byte),
    }
    .map(|()| 0)
}

fn dma(task: &Task, fd: Fd, block: u64, byte: u8) -> Result<(), Errno> {
    let (nic_fd, nic) = SmallNic::open(task);
    let done = nic.pins(task, fd, block..block + 1).and_then(|region| {
        let written = region.access(|pinned| pinned.dma_write(task.kernel(), 0, &[byte; BLOCK as usize]));
        region.release(task.kernel());
        // Its pins were taken away before the access: the design refused it.
        written.map_err(|_| Errno::EPERM)
    });
    task.close(nic_fd).unwrap();
    done
}

/// The file as a plain list of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PlainFile(Vec<u8>);

impl PlainFile {
    /// What the call returns, and its effect.
    fn apply(&mut self, call: Call) -> Returned {
        let len = self.0.len() as u64;
        let inside = |blocks: &[u64]| if blocks.iter().all(|block| *block < len) { Ok(()) } else { Err(Errno::EINVAL) };
        let mut set = |block: u64, byte: u8| {
            if let Some(found) = self.0.get_mut(block as usize) {
                *found = byte;
            }
        };
        match call {
            Call::Punch(block) | Call::Zero(block) => set(block, 0),
            Call::Allocate(_) => {}
            Call::Truncate(blocks) => self.0.resize(blocks as usize, 0),
            Call::Collapse(block) => {
                inside(&[block + 1])?;
                self.0.remove(block as usize);
            }
            Call::Insert(block) => {
                inside(&[block])?;
                self.0.insert(block as usize, 0);
            }
            Call::Exchange(a, b) => {
                inside(&[a, b])?;
                self.0.swap(a as usize, b as usize);
            }
            Call::Clone(from, to) => {
                inside(&[from])?;
                self.0.resize(len.max(to + 1) as usize, 0);
                self.0[to as usize] = self.0[from as usize];
            }
            Call::Write(block, byte) => {
                self.0.resize(len.max(block + 1) as usize, 0);
                self.0[block as usize] = byte;
            }
            Call::Read(block) => return Ok(self.0.get(block as usize).copied().unwrap_or(0)),
            Call::Dma(block, byte) => {
                inside(&[block]).map_err(|_| Errno::EFAULT)?;
                set(block, byte);
            }
        }
        Ok(0)
    }
}

/// A call that returned. `refused`: by the design, so that it has no effect.
#[derive(Clone, Copy, Debug)]
struct Done {
    call: Call,
    returned: Returned,
}

impl Done {
    fn is_refused(&self) -> bool {
        matches!(self.returned, Err(Errno::ETXTBSY | Errno::EAGAIN | Errno::EPERM))
    }
}

/// Whether the rest of the calls, from `at` on for each thread, has an order that the model agrees
/// with. `loses`: a DMA may have gone to a block that had left the file.
fn has_order(file: &PlainFile, threads: &[Vec<Done>], at: &mut [usize], last: &PlainFile, loses: bool) -> bool {
    if threads.iter().zip(at.iter()).all(|(calls, at)| *at == calls.len()) {
        return file == last;
    }
    for n in 0..threads.len() {
        let Some(done) = threads[n].get(at[n]) else { continue };
        let mut next = file.clone();
        let agrees = done.is_refused() || next.apply(done.call) == done.returned;
        at[n] += 1;
        let found = (agrees && has_order(&next, threads, at, last, loses))
            || (loses && matches!(done.call, Call::Dma(..)) && has_order(file, threads, at, last, loses));
        at[n] -= 1;
        if found {
            return true;
        }
    }
    false
}

/// Draws from a seed (splitmix64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A change within the two blocks from `first` on, which leaves the rest of the file alone.
    fn local_change(&mut self, first: u64) -> Call {
        let block = first + self.below(2);
        match self.below(6) {
            0 => Call::Punch(block),
            1 => Call::Zero(block),
            2 => Call::Allocate(block),
            3 => Call::Clone(first, first + 1),
            4 => Call::Write(block, 0x10 + block as u8),
            _ => Call::Exchange(first, first + 1),
        }
    }

    /// A change anywhere.
    fn change(&mut self) -> Call {
        let block = self.below(BLOCKS);
        match self.below(5) {
            0 => Call::Truncate(block),
            1 => Call::Collapse(block),
            2 => Call::Insert(block),
            3 => Call::Exchange(block, (block + 1 + self.below(BLOCKS - 1)) % BLOCKS),
            _ => self.local_change(self.0 % (BLOCKS - 1)),
        }
    }

    /// An access to a block.
    fn access(&mut self, block: u64) -> Call {
        match self.below(4) {
            0 => Call::Read(block),
            1 => Call::Write(block, 0x20 + block as u8),
            _ => Call::Dma(block, 0x30 + block as u8),
        }
    }

    /// A design without a gate for pins: what a change does about a pin is drawn.
    fn axes(&mut self) -> Axes {
        let rule = self.of(&[ChangeRule::Fail, ChangeRule::Wait, ChangeRule::Revoke, ChangeRule::Orphan]);
        let open = presets().iter().find(|preset| preset.name == "unsafe").expect("a preset").axes;
        Axes { stranger_change: rule, holder_change: rule, ..open }
    }
}

/// Each list of calls is one process's. They run at once, after the owner's calls `before`.
fn run(axes: Axes, before: &[Call], threads: &[Vec<Call>]) {
    let kernel = kernel(axes);
    let owner = kernel.spawn();
    let fd = owner.open("data", OpenFlags::create()).unwrap();
    let bytes: Vec<u8> = (1..=BLOCKS as u8).flat_map(|byte| [byte; BLOCK as usize]).collect();
    owner.write(fd, 0, &bytes).unwrap();
    let mut first = PlainFile((1..=BLOCKS as u8).collect());
    for call in before {
        assert_eq!(perform(&owner, fd, *call), first.apply(*call));
    }
    // What all processes do alike, they do before and after the race: its steps are the calls'.
    let start = |calls: &Vec<Call>| {
        let (task, calls) = (kernel.spawn(), calls.clone());
        let fd = task.open("data", OpenFlags::create()).unwrap();
        thread::spawn(move || {
            let done = calls.iter().map(|call| Done { call: *call, returned: perform(&task, fd, *call) }).collect();
            (task, done)
        })
    };
    let running: Vec<_> = threads.iter().map(start).collect();
    let (tasks, done): (Vec<Task>, Vec<Vec<Done>>) = running.into_iter().map(|thread| thread.join().unwrap()).unzip();
    let size = owner.stat(fd).unwrap().size;
    let mut bytes = vec![0xee; size as usize];
    assert_eq!(owner.read(fd, 0, &mut bytes), Ok(bytes.len()));
    let last = PlainFile(bytes.chunks(BLOCK as usize).map(|block| block[0]).collect());
    tasks.iter().chain([&owner]).for_each(Task::exit);
    assert_at_rest(&kernel);
    let loses = axes.stranger_change == ChangeRule::Orphan;
    let found = has_order(&first, &done, &mut vec![0; done.len()], &last, loses);
    assert!(found, "under {:?} no order explains {done:?} and the end {last:?}", axes.stranger_change);
}

/// Two changers in two halves of the file, and pinners of both halves.
fn disjoint(seed: u64) {
    let mut draw = Draw(seed);
    let axes = draw.axes();
    let changers = [0, 2].map(|first| vec![draw.local_change(first), draw.local_change(first)]);
    let pinner = vec![draw.access(draw.0 % BLOCKS), draw.access(draw.0 % BLOCKS)];
    run(axes, &[], &[&changers[..], &[pinner]].concat());
}

/// Two changers anywhere in the file, and a pinner.
fn overlapping(seed: u64) {
    let mut draw = Draw(seed);
    let axes = draw.axes();
    let changers = [(); 2].map(|()| vec![draw.change(), draw.change()]);
    let pinner = vec![draw.access(draw.0 % BLOCKS)];
    run(axes, &[], &[&changers[..], &[pinner]].concat());
}

/// A block leaves its place and comes back, or is replaced by a copy while another place keeps it,
/// and two pinners are about to pin it.
fn leaving_and_returning(seed: u64) {
    let mut draw = Draw(seed);
    let axes = draw.axes();
    let (before, changer) = match draw.below(4) {
        0 => (vec![], vec![Call::Collapse(1), Call::Insert(1)]),
        1 => (vec![], vec![Call::Punch(0), Call::Write(0, 0x40)]),
        2 => (vec![], vec![Call::Exchange(0, 1), Call::Exchange(0, 1)]),
        _ => (vec![Call::Clone(0, 1)], vec![Call::Write(0, 0x40), Call::Write(1, 0x41)]),
    };
    run(axes, &before, &[changer, vec![Call::Read(0)], vec![draw.access(0)]]);
}

#[test]
fn disjoint_changes_have_an_order() {
    explore("disjoint changes", 40, 0, disjoint);
}

#[test]
fn disjoint_changes_have_an_order_on_the_other_seeds() {
    explore("disjoint changes", 40, 1, disjoint);
}

#[test]
fn overlapping_changes_have_an_order() {
    explore("overlapping changes", 40, 0, overlapping);
}

#[test]
fn overlapping_changes_have_an_order_on_the_other_seeds() {
    explore("overlapping changes", 40, 1, overlapping);
}

#[test]
fn what_left_and_came_back_is_never_stale() {
    explore("a block that left and came back", 20, 0, leaving_and_returning);
}

#[test]
fn what_left_and_came_back_is_never_stale_on_the_other_seeds() {
    explore("a block that left and came back", 20, 1, leaving_and_returning);
}
