//! The directory: names, and the counts that keep an inode.
//!
//! It owns lookup, creation, and the drop of an inode's last name or last open file. Invariant: an
//! inode is evicted once, when both counts are zero. Kernel counterpart: fs/namei.c, `iput_final`.

use std::collections::BTreeMap;

use emulator::race_point;
use emulator::sync::atomic::Ordering;
use emulator::sync::{Arc, MutexGuard};

use crate::base::errno::Errno;
use crate::base::numbers::Ino;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::lifecycle::LastReference;
use crate::vfs::task::Task;

/// Locks the names of a mounted volume for a change. An unmount that begins later sees the change.
///
/// # Errors
/// ENODEV.
pub(crate) fn mounted_names(kernel: &Kernel) -> Result<MutexGuard<'_, BTreeMap<String, Arc<Inode>>>, Errno> {
    loop {
        // Waits for an unmount that is in progress; without the lock, which the unmount takes.
        kernel.mount.check()?;
        race_point!("names: mounted, not locked");
        let names = kernel.names.lock();
        if kernel.mount.is_mounted() {
            return Ok(names);
        }
    }
}

/// Drops one name; evicts the inode if nothing else kept it.
pub(crate) fn drop_link(kernel: &Arc<Kernel>, inode: &Arc<Inode>, last: LastReference<'_>) {
    let over = {
        let mut life = inode.life.lock();
        life.links -= 1;
        let over = life.links == 0 && life.opens == 0 && !life.evicted;
        life.evicted |= over;
        over
    };
    if over {
        kernel.lifecycle.evict(kernel, inode, last);
    }
}

/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;

/// The name of the directory itself.
pub const DIRECTORY_NAME: &str = ".";

/// The file called `name`, counted as open until [`drop_open`]. `last` says in whose call.
pub(crate) fn lookup(kernel: &Arc<Kernel>, name: &str, last: LastReference<'_>) -> Result<Arc<Inode>, Errno> {
    if name == DIRECTORY_NAME { Err(Errno::EISDIR) } else { lookup_any(kernel, name, last) }
}

/// As [`lookup`], but finds the directory too.
pub(crate) fn lookup_any(kernel: &Arc<Kernel>, name: &str, last: LastReference<'_>) -> Result<Arc<Inode>, Errno> {
    loop {
        kernel.mount.check()?;
        let inode = match name {
            DIRECTORY_NAME => Arc::clone(&kernel.directory),
            name => kernel.names.lock().get(name).cloned().ok_or(Errno::ENOENT)?,
        };
        race_point!("lookup: found, not counted");
        if inode.count_open() {
            // Checked again, now that it is counted: see `Mount::check`.
            let mounted = kernel.mount.check();
            return mounted.inspect_err(|_| drop_open(kernel, &inode, last)).map(|()| inode);
        }
        // A name is removed before the link that it counts for. So by now the name means another
        // file (a rename replaces it at once) or none, but not this inode.
    }
}

/// The inode called `name`, or a new one of the caller's user, counted as open; and whether it is
/// new. `None`: `may_create`, which is asked with the names locked, has said that the directory may
/// not change now.
pub(crate) fn lookup_or_create(
    task: &Task,
    name: &str,
    exclusive: bool,
    may_create: impl Fn() -> bool,
) -> Result<Option<(Arc<Inode>, bool)>, Errno> {
    let (kernel, last) = (task.kernel(), LastReference::Call(task));
    let uid = task.process().credentials().uid;
    loop {
        match lookup(kernel, name, last) {
            Ok(inode) if exclusive => {
                drop_open(kernel, &inode, last);
                return Err(Errno::EEXIST);
            }
            Ok(inode) => return Ok(Some((inode, false))),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        let inode = Arc::new(Inode::new(Ino(kernel.next_ino.fetch_add(1, Ordering::Relaxed)), uid));
        inode.life.lock().opens = 1;
        let mut names = mounted_names(kernel)?;
        if !names.contains_key(name) {
            if !may_create() {
                return Ok(None);
            }
            names.insert(name.to_owned(), Arc::clone(&inode));
            drop(names);
            kernel.inodes.insert(inode.ino(), Arc::clone(&inode));
            return Ok(Some((inode, true)));
        }
    }
}

fn drop_open_count(_kernel: &Kernel, inode: &Inode) -> bool {
    let mut life = inode.life.lock();
    life.opens -= 1;
    let over = life.opens == 0 && life.links == 0 && !life.evicted;
    life.evicted |= over;
    over
}

/// Drops one open file (or call by path); evicts the inode if nothing else kept it.
pub(crate) fn drop_open(kernel: &Arc<Kernel>, inode: &Arc<Inode>, last: LastReference<'_>) {
    if drop_open_count(kernel, inode) {
        kernel.lifecycle.evict(kernel, inode, last);
    }
}
