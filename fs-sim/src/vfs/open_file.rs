//! Open files, and the releases that wait for the end of a system call.
//!
//! It owns the count of references (descriptors, mappings, queued messages, regions that hold
//! their file) of every open file. Invariants: the release runs exactly once, after the last
//! reference; it runs from [`Kernel::run_deferred`] with no lock held, never inside the code that
//! dropped the reference, so a release may drop further references (S21) without recursion. Kernel
//! counterpart: `struct file`, `fput` and `task_work_add` (fs/file_table.c).

use std::any::Any;

use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicU64, Ordering};

use crate::base::errno::Errno;
use crate::base::numbers::{DescriptionId, Pid};
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::lifecycle::LastReference;
use crate::vfs::signal_owner::SignalOwner;

/// The object as the type that a call wants.
///
/// # Errors
/// EINVAL: it has another type.
pub(crate) fn downcast<T: Any + Send + Sync>(object: Arc<dyn OpenObject>) -> Result<Arc<T>, Errno> {
    object.as_any().downcast::<T>().map_err(|_| Errno::EINVAL)
}

/// How an open file travels to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passing {
    /// Sent in a message: judged at `sendmsg`.
    Send,
    /// Received by this process: judged at `recvmsg`.
    Receive(Pid),
    /// Inherited by a forked child.
    Fork,
}

/// Something other than a file that lives in a descriptor table, such as an RDMA context.
pub trait OpenObject: Send + Sync + 'static {
    /// The last reference is gone. Called once, with no lock held. References that it drops in
    /// turn go to `deferred`.
    fn release(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred);

    /// Whether the open file may travel so. The caller turns a refusal into EPERM, MSG_CTRUNC, or
    /// no inheritance.
    fn may_pass(&self, kernel: &Kernel, pass: Passing) -> bool;

    /// The object itself, for the crate that made it.
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// How a file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessMode {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
}

impl AccessMode {
    /// `O_RDONLY`.
    pub const READ: AccessMode = AccessMode { read: true, write: false };

    /// `O_WRONLY`.
    pub const WRITE: AccessMode = AccessMode { read: false, write: true };

    /// `O_RDWR`.
    pub const BOTH: AccessMode = AccessMode { read: true, write: true };

    /// `O_PATH`: only names the file.
    pub const PATH: AccessMode = AccessMode { read: false, write: false };

    /// Whether the file was opened at all, not just named by `O_PATH`.
    pub(crate) fn is_open(self) -> bool {
        self.read || self.write
    }
}

/// What is open.
pub enum OpenTarget {
    /// A file, or the directory.
    File {
        /// Its inode.
        inode: Arc<Inode>,
        /// How it was opened.
        access: AccessMode,
    },
    /// An object of a crate above.
    Object(Arc<dyn OpenObject>),
}

/// See the module.
pub struct Description {
    id: DescriptionId,
    open: OpenTarget,
    references: AtomicU64,
    fd_holders: Arc<FdHolders>,
    signal_owner: Arc<SignalOwner>,
}

impl std::fmt::Debug for Description {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Description").field("id", &self.id).field("references", &self.references).finish()
    }
}

impl Description {
    /// An open file with one reference, the caller's.
    pub(crate) fn new(id: DescriptionId, open: OpenTarget, fd_holders: Arc<FdHolders>) -> Arc<Description> {
        let signal_owner = Arc::default();
        Arc::new(Description { id, open, references: AtomicU64::new(1), fd_holders, signal_owner })
    }

    /// Its number.
    pub fn id(&self) -> DescriptionId {
        self.id
    }

    /// What is open.
    pub fn open(&self) -> &OpenTarget {
        &self.open
    }

    /// The processes and queues that hold it.
    pub fn fd_holders(&self) -> &Arc<FdHolders> {
        &self.fd_holders
    }

    /// Whom it signals when its leases are broken.
    pub(crate) fn signal_owner(&self) -> &Arc<SignalOwner> {
        &self.signal_owner
    }

    /// The file, if it is one.
    pub fn file(&self) -> Option<(&Arc<Inode>, AccessMode)> {
        self.inode().filter(|(inode, _)| !inode.is_directory())
    }

    /// The file, for a call that works on its contents.
    ///
    /// # Errors
    /// EINVAL (no file), EISDIR, EBADF (only named by `O_PATH`).
    pub(crate) fn opened_file(&self) -> Result<(&Arc<Inode>, AccessMode), Errno> {
        match self.inode().ok_or(Errno::EINVAL)? {
            (inode, _) if inode.is_directory() => Err(Errno::EISDIR),
            (_, access) if !access.is_open() => Err(Errno::EBADF),
            file => Ok(file),
        }
    }

    /// The file or the directory, if it is one of them.
    pub fn inode(&self) -> Option<(&Arc<Inode>, AccessMode)> {
        match &self.open {
            OpenTarget::File { inode, access } => Some((inode, *access)),
            OpenTarget::Object(_) => None,
        }
    }

    /// Takes one more reference. The caller must hold one (directly, or by the lock of the table it
    /// found it in).
    pub(crate) fn get(self: &Arc<Self>) -> Arc<Description> {
        self.references.fetch_add(1, Ordering::Relaxed);
        Arc::clone(self)
    }

    /// Drops one reference; the last one schedules the release.
    pub(crate) fn put(self: Arc<Self>, deferred: &mut Deferred) {
        if self.put_is_last() {
            deferred.0.push(self);
        }
    }

    /// Drops one reference; true if it was the last, in which case the caller runs the release
    /// itself.
    pub(crate) fn put_is_last(&self) -> bool {
        // ORDERING: AcqRel, as in any reference count: the release sees everything done under any
        // reference.
        self.references.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// Descriptions whose last reference is gone and whose release is still to run.
#[derive(Debug, Default)]
#[must_use = "hand it to Kernel::run_deferred"]
pub struct Deferred(Vec<Arc<Description>>);

impl Deferred {
    /// Whether nothing is to be released.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Kernel {
    /// Runs deferred releases, and those that they schedule in turn, outside of a task's call.
    /// Called with no lock held; never waits.
    pub fn run_deferred(self: &Arc<Self>, deferred: Deferred) {
        self.run_deferred_of(deferred, LastReference::Kernel);
    }

    pub(crate) fn run_deferred_of(self: &Arc<Self>, mut deferred: Deferred, last: LastReference<'_>) {
        while let Some(description) = deferred.0.pop() {
            match self.sabotage.no_nested_release {
                true => self.release(&description, &mut Deferred::default(), last),
                false => self.release(&description, &mut deferred, last),
            }
        }
    }

    fn release(self: &Arc<Self>, description: &Arc<Description>, deferred: &mut Deferred, last: LastReference<'_>) {
        match &description.open {
            OpenTarget::File { inode, access } => {
                self.lifecycle.file_released(self, inode, (description.id, *access), last);
            }
            OpenTarget::Object(object) => object.release(self, deferred),
        }
    }
}
