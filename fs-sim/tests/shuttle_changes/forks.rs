//! A fork against a truncate, on schedules drawn from a seed: the child's private mapping shows no
//! bytes of a copy that lies behind the new end of the file.

use crate::schedules::{assert_at_rest, explore, kernel};
use emulator::sync::thread;
use fs_sim::design::presets;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::{BLOCK, Errno, Task};

/// The first byte of block 1 of the mapping at `va`.
fn second_block(task: &Task, va: u64) -> Result<u8, Errno> {
    let mut byte = [0];
    task.load(va + BLOCK, &mut byte).map(|()| byte[0])
}

fn fork_beside_a_truncate() {
    let kernel = kernel(presets()[0].axes);
    let parent = kernel.spawn();
    let fd = parent.open("f", OpenFlags::create()).unwrap();
    parent.write(fd, 0, &[1; 2 * BLOCK as usize]).unwrap();
    let va = parent.mmap_private(fd, 0, 2 * BLOCK, true).unwrap();
    parent.store(va + BLOCK, &[7]).unwrap();
    let other = kernel.spawn();
    let truncating = thread::spawn(move || {
        other.truncate("f", BLOCK).unwrap();
        other.truncate("f", 2 * BLOCK).unwrap();
        other
    });
    let child = parent.fork().unwrap();
    // A child of the child is truncated as well.
    let grandchild = child.fork().unwrap();
    let other = truncating.join().unwrap();
    for task in [&parent, &child, &grandchild] {
        assert_eq!(second_block(task, va), Ok(0), "process {}: a copy that the truncate missed", task.pid());
    }
    for task in [parent, child, grandchild, other] {
        task.exit();
    }
    assert_at_rest(&kernel);
}

#[test]
fn a_fork_beside_a_truncate() {
    explore("a fork beside a truncate", 2, 0, |_| fork_beside_a_truncate());
}
