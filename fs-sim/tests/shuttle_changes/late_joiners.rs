//! Two changes that wait for each other's pins, and helpers that could drop the pins: a forked
//! child, a process that receives the descriptor, a second thread. They come and go at any moment
//! of the waits, on schedules drawn from a seed.
//!
//! While a helper is there, no wait is refused. When the last one goes without help, one of the two
//! waits is refused, and only one. A schedule in which no thread can go on fails.

use crate::schedules::{SmallNic, SmallRegion, assert_at_rest, explore, kernel};
use emulator::sync::{Arc, thread};
use fs_sim::base::numbers::Fd;
use fs_sim::design::{Axes, ChangeRule, presets};
use fs_sim::syscalls::descriptors::Received;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::{BLOCK, Errno, Kernel, Task};

/// How a helper comes to the process whose region it can drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joins {
    Forked,
    Received,
    SecondThread,
}

const JOINS: [Joins; 3] = [Joins::Forked, Joins::Received, Joins::SecondThread];

/// What a helper does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// It drops the region's pins, and goes.
    Helps,
    /// It goes.
    Goes,
    /// A helper that came by way of it does it, after it has gone itself.
    HandsOn(Joins, bool),
}

impl Does {
    fn helps(self) -> bool {
        matches!(self, Does::Helps | Does::HandsOn(_, true))
    }
}

/// A helper: a task of a process, and the context's descriptor there. One that has been sent the
/// descriptor and has not taken it from its inbox has none.
struct Helper {
    task: Task,
    nic_fd: Option<Fd>,
    is_process: bool,
}

impl Helper {
    /// A new helper by way of `task`, which has the context open as `nic_fd`.
    fn join(kernel: &Arc<Kernel>, task: &Task, nic_fd: Fd, joins: Joins) -> Helper {
        match joins {
            Joins::Forked => Helper { task: task.fork().unwrap(), nic_fd: Some(nic_fd), is_process: true },
            Joins::SecondThread => Helper { task: task.thread(), nic_fd: Some(nic_fd), is_process: false },
            Joins::Received => {
                let receiver = kernel.spawn();
                task.send_fd(receiver.pid(), nic_fd).unwrap();
                Helper { task: receiver, nic_fd: None, is_process: true }
            }
        }
    }

    fn act(self, kernel: &Arc<Kernel>, region: &SmallRegion, does: Does) {
        match does {
            Does::Helps => region.release(kernel),
            Does::Goes => {}
            Does::HandsOn(joins, helps) => {
                let nic_fd = self.nic_fd.unwrap_or_else(|| match self.task.recv_fd() {
                    Ok(Received::Fd(fd)) => fd,
                    other => panic!("no descriptor: {other:?}"),
                });
                let next = Helper::join(kernel, &self.task, nic_fd, joins);
                if joins == Joins::SecondThread {
                    // Its process goes with the other thread.
                    let next = Helper { is_process: self.is_process, ..next };
                    drop(self);
                    return next.act(kernel, region, if helps { Does::Helps } else { Does::Goes });
                }
                self.goes();
                return next.act(kernel, region, if helps { Does::Helps } else { Does::Goes });
            }
        }
        self.goes();
    }

    fn goes(self) {
        if self.is_process {
            self.task.exit();
        }
    }
}

/// A process with a file of one block, which its region pins.
struct PinningProcess {
    task: Task,
    nic_fd: Fd,
    region: Arc<SmallRegion>,
}

impl PinningProcess {
    fn new(kernel: &Arc<Kernel>, name: &str) -> PinningProcess {
        let task = kernel.spawn();
        let fd = task.open(name, OpenFlags::create()).unwrap();
        task.write(fd, 0, &[1; BLOCK as usize]).unwrap();
        let (nic_fd, nic) = SmallNic::open(&task);
        let region = nic.pins(&task, fd, 0..1).unwrap();
        PinningProcess { task, nic_fd, region }
    }

    /// Truncates the other process's file, which is pinned, and then drops its own pins.
    fn truncates(&self, name: &str) -> Result<(), Errno> {
        let done = self.task.truncate(name, 0);
        self.region.release(self.task.kernel());
        done
    }
}

/// The helpers of one schedule: the first comes before its process waits; the other process may
/// wait already.
fn helpers_of(seed: u64) -> Vec<(Joins, Does)> {
    let mut left = seed;
    let mut draw = |end: u64| {
        let drawn = left % end;
        left /= end;
        drawn as usize
    };
    let helpers = 1 + draw(2);
    let mut helper = || {
        let joins = JOINS[draw(3)];
        let does = match draw(4) {
            0 => Does::Helps,
            1 => Does::Goes,
            n => Does::HandsOn(JOINS[draw(3)], n == 2),
        };
        (joins, does)
    };
    (0..helpers).map(|_| helper()).collect()
}

fn late_joiners(seed: u64) {
    let open = presets().iter().find(|preset| preset.name == "unsafe").expect("a preset").axes;
    let axes = Axes { stranger_change: ChangeRule::Wait, holder_change: ChangeRule::Wait, ..open };
    let kernel = kernel(axes);
    let (a, b) = (PinningProcess::new(&kernel, "one"), PinningProcess::new(&kernel, "two"));
    // An odd seed takes random priorities: both kinds of schedule see the same helpers.
    let helpers = helpers_of(seed / 2);
    let helped = helpers.iter().any(|(_, does)| does.helps());

    let first = thread::spawn(move || (a.truncates("two"), a));
    let mut acting = Vec::new();
    for (joins, does) in helpers.clone() {
        let helper = Helper::join(&kernel, &b.task, b.nic_fd, joins);
        let (kernel, region) = (Arc::clone(&kernel), Arc::clone(&b.region));
        acting.push(thread::spawn(move || helper.act(&kernel, &region, does)));
    }
    let second = b.truncates("one");
    let (first, a) = first.join().unwrap();
    for helper in acting {
        helper.join().unwrap();
    }
    let mut results = [first, second];
    results.sort_by_key(Result::is_err);
    let expected = if helped { [Ok(()), Ok(())] } else { [Ok(()), Err(Errno::EDEADLK)] };
    assert_eq!(results, expected, "{helpers:?}: {:?}", kernel.deadlocks());
    assert_eq!(kernel.deadlocks().len(), usize::from(!helped), "{helpers:?}");
    for process in [a, b] {
        process.task.exit();
    }
    assert_at_rest(&kernel);
}

#[test]
fn helpers_that_come_late_count_until_they_go() {
    explore("late joiners", 10, 0, late_joiners);
}

#[test]
fn helpers_that_come_late_count_until_they_go_on_the_other_seeds() {
    explore("late joiners", 10, 1, late_joiners);
}
