//! TODO

use std::collections::BTreeMap;

use emulator::race_point;
use emulator::sync::atomic::Ordering;
use emulator::sync::{Arc, MutexGuard};

use crate::base::errno::Errno;
use crate::base::numbers::Ino;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;

/// The names of a mounted volume, to be changed: an unmount that begins later looks at them only afterwards.
///
/// # Errors
/// ENODEV.
pub(crate) fn mounted_names(kernel: &Kernel) -> Result<MutexGuard<'_, BTreeMap<String, Arc<Inode>>>, Errno> {
    loop {
        // Waits for an unmount that is looking, so without the lock, which that one takes.
        kernel.mount.check()?;
        race_point!("names: mounted, not locked");
        let names = kernel.names.lock();
        if kernel.mount.is_mounted() {
            return Ok(names);
        }
    }
}

/// One name less; evicts the inode if that was the last thing that kept it.
pub(crate) fn drop_link(kernel: &Arc<Kernel>, inode: &Arc<Inode>) {
    let over = {
        let mut life = inode.life.lock();
        life.links -= 1;
        let over = life.links == 0 && life.opens == 0 && !life.evicted;
        life.evicted |= over;
        over
    };
    if over {
        kernel.lifecycle.evict(kernel, inode);
    }
}

/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;

/// The inode called `name`, counted as open until [`Kernel::drop_open`].
pub(crate) fn lookup(kernel: &Arc<Kernel>, name: &str) -> Result<Arc<Inode>, Errno> {
    loop {
        kernel.mount.check()?;
        let inode = kernel.names.lock().get(name).cloned().ok_or(Errno::ENOENT)?;
        race_point!("lookup: found, not counted");
        if inode.count_open() {
            // Again, now that it counts: see `Mount::check`.
            let mounted = kernel.mount.check();
            return mounted.inspect_err(|_| drop_open(kernel, &inode)).map(|()| inode);
        }
        // Names go before the links they count for, so by now the name means another file (a rename replaces at once) or
        // none. This one again it can't mean.
    }
}

/// The inode called `name` or a new one of `uid`'s, counted as open; and whether it is new.
pub(crate) fn lookup_or_create(
    kernel: &Arc<Kernel>,
    name: &str,
    exclusive: bool,
    uid: u32,
) -> Result<(Arc<Inode>, bool), Errno> {
    loop {
        match lookup(kernel, name) {
            Ok(inode) if exclusive => {
                drop_open(kernel, &inode);
                return Err(Errno::EEXIST);
            }
            Ok(inode) => return Ok((inode, false)),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        let inode = Arc::new(Inode::new(Ino(kernel.next_ino.fetch_add(1, Ordering::Relaxed)), uid));
        inode.life.lock().opens = 1;
        let mut names = mounted_names(kernel)?;
        if !names.contains_key(name) {
            names.insert(name.to_owned(), Arc::clone(&inode));
            drop(names);
            kernel.inodes.insert(inode.ino(), Arc::clone(&inode));
            return Ok((inode, true));
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

/// One open file (or call by path) less; evicts the inode if that was the last thing that kept it.
pub(crate) fn drop_open(kernel: &Arc<Kernel>, inode: &Arc<Inode>) {
    if drop_open_count(kernel, inode) {
        kernel.lifecycle.evict(kernel, inode);
    }
}
