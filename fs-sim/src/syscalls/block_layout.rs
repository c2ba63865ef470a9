//! Calls for a block-layout client: LAYOUTGET and LAYOUTRETURN.
//!
//! It owns the descriptor of a layout. Kernel counterpart: `nfsd4_layoutget`, `nfsd4_layoutreturn`
//! (fs/nfsd/nfs4proc.c).

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::base::range::BlockRange;
use crate::holders::block_layout::{BlockLayout, IoMode};
use crate::pinning::block_layout::grant_layout;
use crate::syscalls::open::open_again;
use crate::vfs::open_file::{AccessMode, Deferred, OpenObject, downcast};
use crate::vfs::task::Task;

impl Task {
    /// Gives a block-layout client the layout of `range` of the file open as `fd` (`LAYOUTGET`),
    /// in a descriptor of its own; the calling process stands for the client. For
    /// [`IoMode::ReadWrite`] holes are allocated as written zeros **\[chosen\]** and shared blocks
    /// copied first, which is a layout change by the client. What the client adds later is in none
    /// of the layouts it holds already: it asks again.
    ///
    /// # Errors
    /// EBADF; EINVAL (not a file; an empty range, or one that reaches beyond the last block of the
    /// file **\[chosen\]**); EACCES (open mode); EAGAIN while a layout change of the file waits;
    /// EMFILE; ENODEV (the device is being removed); the errors of an allocation.
    pub fn layoutget(&self, fd: Fd, range: BlockRange, mode: IoMode) -> Result<(Fd, Arc<BlockLayout>), Errno> {
        let file = open_again(self, fd, |access: AccessMode| access.read && (access.write || mode == IoMode::Read))?;
        let layout = grant_layout(self, &file, range, mode)?;
        // A remover of the device may have missed this layout.
        let installed = self.kernel().mount.check().and_then(|()| {
            self.install_object(|fd_holders| {
                let _first = layout.fd_holders.set(fd_holders);
                Arc::clone(&layout) as Arc<dyn OpenObject>
            })
        });
        match installed {
            Ok((fd, _)) => Ok((fd, layout)),
            Err(errno) => {
                // Released already, unless the process died first; twice does no harm.
                let mut deferred = Deferred::default();
                layout.release(self.kernel(), &mut deferred);
                self.run_deferred(deferred);
                Err(errno)
            }
        }
    }

    /// Returns a layout (`LAYOUTRETURN`): [`Task::close`] of its descriptor.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a layout).
    pub fn layoutreturn(&self, fd: Fd) -> Result<(), Errno> {
        let _is_one: Arc<BlockLayout> = downcast(self.object(fd)?)?;
        self.close(fd)
    }
}
