//! Where the NIC meets the guest: RDMA regions over the files that guests have mapped.
//!
//! It owns the regions registered by ctl. A region belongs to the process that has the file for a
//! guest: that process's lease covers it, its pins are that process's, and it ends with it. The
//! client that reads and writes is made for each request: a process of its own with a queue pair
//! connected to one of the region's context. Invariant: a region is listed from its registration
//! until it was deregistered or its process has ended. Counterpart: a storage server that gives a
//! guest and its RDMA clients the same memory.

use std::collections::BTreeMap;

use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};
use fs_sim::base::numbers::{Fd, Pid};
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::{Errno, Task};
use rdma_sim::{AccessFlags, Context, Mr, Pd, Qp, QpConfig, Sge, WorkOperation, WorkRequest, WorkStatus};

/// The most regions at once.
const REGIONS_MAX: usize = 64;
/// The longest read, in bytes.
pub(super) const READ_MAX: u64 = 1 << 20;
/// How many work requests and completions a client's queues hold.
const DEPTH: u32 = 4;

/// See the module.
#[derive(Default)]
pub(super) struct Regions {
    next: AtomicU64,
    list: Mutex<BTreeMap<u64, Arc<Region>>>,
}

/// A region over a file.
pub(super) struct Region {
    pub(super) file: String,
    pub(super) mr: Arc<Mr>,
    context: Arc<Context>,
    context_fd: Fd,
    pd: Arc<Pd>,
    /// A thread of the process that has the file.
    task: Task,
}

/// Why an access brought nothing.
#[derive(Debug)]
pub(super) enum AccessFailure {
    /// A call failed, such as the making of a queue pair on a context that was aborted.
    Errno(Errno),
    /// The completion says so.
    Status(WorkStatus),
}

impl From<Errno> for AccessFailure {
    fn from(errno: Errno) -> Self {
        AccessFailure::Errno(errno)
    }
}

impl Regions {
    /// Registers the whole of `file` in the process of `owner`; the region's number.
    ///
    /// # Errors
    /// Whatever the calls on the way say; EMFILE: [`REGIONS_MAX`] are there.
    pub(super) fn register(&self, owner: &Task, file: &str) -> Result<(u64, Arc<Region>), Errno> {
        if self.list.lock().len() >= REGIONS_MAX {
            return Err(Errno::EMFILE);
        }
        let task = owner.thread();
        let fd = task.open(file, OpenFlags::open(AccessMode::BOTH))?;
        let len = task.stat(fd).map(|stat| stat.size);
        let mapped = len.and_then(|len| task.mmap(fd, 0, len, true).map(|va| (va, len)));
        // The mapping holds the file.
        task.close(fd)?;
        let (va, len) = mapped?;
        let region = Region::register(task, file, va, len)?;
        // ORDERING: Relaxed: a number.
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let region = Arc::new(region);
        self.list.lock().insert(number, Arc::clone(&region));
        Ok((number, region))
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<Region>> {
        self.list.lock().get(&number).cloned()
    }

    /// The regions that are there, by number.
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.list.lock().keys().copied().collect()
    }

    /// Takes a region off the list.
    pub(super) fn remove(&self, number: u64) -> Option<Arc<Region>> {
        self.list.lock().remove(&number)
    }

    /// The process is about to exit, and its regions with it.
    pub(super) fn forget(&self, owner: Pid) {
        let forgotten: Vec<_> = {
            let mut list = self.list.lock();
            let (gone, kept) =
                std::mem::take(&mut *list).into_iter().partition(|(_, region)| region.task.pid() == owner);
            *list = kept;
            let gone: BTreeMap<u64, Arc<Region>> = gone;
            gone.into_values().collect()
        };
        // Their tasks end here, with no lock held.
        drop(forgotten);
    }
}

impl Region {
    fn register(task: Task, file: &str, va: u64, len: u64) -> Result<Region, Errno> {
        let made = (|| {
            let (context_fd, context) = Context::open(&task)?;
            let registered = (|| {
                let pd = context.alloc_pd(&task)?;
                let mr = context.reg_mr(&task, &pd, va, len, AccessFlags::ALL)?;
                Ok((pd, mr))
            })();
            match registered {
                Ok((pd, mr)) => Ok((context_fd, context, pd, mr)),
                Err(errno) => {
                    let _released = task.close(context_fd);
                    Err(errno)
                }
            }
        })();
        match made {
            Ok((context_fd, context, pd, mr)) => {
                Ok(Region { file: file.to_owned(), mr, context, context_fd, pd, task })
            }
            Err(errno) => {
                let _unmapped = task.munmap(va, len.next_multiple_of(fs_sim::BLOCK));
                Err(errno)
            }
        }
    }

    /// The process that it is registered by.
    pub(super) fn owner(&self) -> Pid {
        self.task.pid()
    }

    /// Deregisters it, and destroys the objects it was made with.
    ///
    /// # Errors
    /// The errors of [`Context::dereg_mr`]; the region is gone from the list in any case, and ends
    /// with its process at the latest.
    pub(super) fn deregister(&self) -> Result<(), Errno> {
        let server = self.task.thread();
        let deregistered = self.context.dereg_mr(&server, &self.mr);
        let closed = server.close(self.context_fd);
        let unmapped = server.munmap(self.mr.va(), self.mr.len().next_multiple_of(fs_sim::BLOCK));
        deregistered.and(closed).and(unmapped)
    }

    /// A client's RDMA WRITE of `bytes` at byte `offset` of the region.
    ///
    /// # Errors
    /// [`AccessFailure`].
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), AccessFailure> {
        self.transfer(WorkOperation::Write, offset, bytes.len() as u64, Some(bytes)).map(|_| ())
    }

    /// A client's RDMA READ of `len` bytes (at most [`READ_MAX`]) at byte `offset` of the region.
    ///
    /// # Errors
    /// [`AccessFailure`].
    pub(super) fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, AccessFailure> {
        self.transfer(WorkOperation::Read, offset, len.min(READ_MAX), None)
    }

    fn transfer(
        &self,
        op: WorkOperation,
        offset: u64,
        len: u64,
        from: Option<&[u8]>,
    ) -> Result<Vec<u8>, AccessFailure> {
        let client = self.task.kernel().spawn();
        let done = self.transfer_by(&client, op, offset, len, from);
        // With it goes whatever it made.
        client.exit();
        done
    }

    fn transfer_by(
        &self,
        client: &Task,
        op: WorkOperation,
        offset: u64,
        len: u64,
        from: Option<&[u8]>,
    ) -> Result<Vec<u8>, AccessFailure> {
        let (_fd, context) = Context::open(client)?;
        let pd = context.alloc_pd(client)?;
        let (va, memory) = client.mmap_anonymous(len.max(1))?;
        if let Some(bytes) = from {
            memory.write(0, bytes)?;
        }
        let local = context.reg_mr(client, &pd, va, len.max(1), AccessFlags::LOCAL_WRITE)?;
        let qp = queue_pair(client, &context, &pd)?;
        // One task is driven by one thread at a time, and askers are many.
        let server = self.task.thread();
        let served = queue_pair(&server, &self.context, &self.pd)?;
        let request = WorkRequest {
            wr_id: 1,
            op,
            local: Sge { lkey: local.lkey(), addr: va, len: len as u32 },
            remote_addr: self.mr.va().wrapping_add(offset),
            rkey: self.mr.rkey(),
            signaled: true,
        };
        let done = Qp::connect(&qp, &served).map_err(|_| Errno::EIO).and_then(|()| {
            qp.post_send(request).map_err(|error| error.errno())?;
            // A queue pair with one user executes what is posted before the call returns.
            qp.send_cq().poll_one().ok_or(Errno::EAGAIN)
        });
        // They may be gone with their context.
        let _destroyed = self.context.destroy_qp(&server, &served);
        let _destroyed = self.context.destroy_cq(&server, served.send_cq());
        match done?.status {
            WorkStatus::Success => {
                let mut bytes = vec![0; len as usize];
                memory.read(0, &mut bytes)?;
                Ok(bytes)
            }
            failed => Err(AccessFailure::Status(failed)),
        }
    }
}

fn queue_pair(task: &Task, context: &Arc<Context>, pd: &Arc<Pd>) -> Result<Arc<Qp>, Errno> {
    let cq = context.create_cq(task, DEPTH)?;
    let config = QpConfig { send_cq: Arc::clone(&cq), recv_cq: cq, max_send: DEPTH, max_recv: DEPTH };
    context.create_qp(task, pd, config)
}
