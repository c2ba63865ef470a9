//! io_uring fixed buffers: memory that a ring's requests read and write without looking it up again.
//!
//! It owns a ring's table of buffers. Invariants: the table is registered as a whole or not at all, and there is at most one at
//! a time; revoked, it is unregistered as a whole **\[chosen\]**: requests on its buffers end in ECANCELED until the program
//! has unregistered it; the pins go with the ring's last close at the latest. Kernel counterpart: io_uring/rsrc.c
//! (`io_sqe_buffers_register`, `io_sqe_buffers_unregister`), whose pins are charged to the registering mm.

use std::any::Any;

use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, Mutex};

use super::region::Region;
use super::{HolderInfo, PinHolder, downcast};
use crate::Kernel;
use crate::errno::Errno;
use crate::gup::{LongTermUser, Want};
use crate::process::Process;
use crate::process::custody::Custody;
use crate::process::description::{Deferred, OpenObject, Pass};
use crate::process::fd_table::Fd;
use crate::process::task::Task;

/// How many buffers a table has at most. Linux: `IORING_MAX_REG_BUFFERS`.
pub const BUFFERS_MAX: usize = 1 << 14;

/// The longest buffer in bytes. Linux: `SZ_1G` in `io_buffer_validate`.
pub const BUFFER_MAX: u64 = 1 << 30;

/// How many bytes a request moves at a time.
const STEP: u64 = 64 << 10;

/// A ring; see the module.
#[derive(Debug)]
pub struct Ring {
    custody: Arc<Custody>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Open(Option<Arc<Table>>),
    Closed,
}

/// Registered buffers.
#[derive(Debug)]
struct Table {
    custody: Arc<Custody>,
    registrant: Arc<Process>,
    /// Each with its length in bytes.
    buffers: Vec<(Region, u64)>,
    /// Every buffer is a holder of its own, and the revocation of the first takes all of them away.
    revoked: AtomicBool,
}

impl Table {
    /// Takes all of them away.
    fn shut(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        for (region, _) in &self.buffers {
            region.shut(kernel, deferred);
        }
    }
}

impl PinHolder for Table {
    fn describe(&self) -> HolderInfo {
        HolderInfo::in_descriptor("io_uring fixed buffer", &self.custody, &self.registrant)
    }

    fn custody(&self) -> Option<Arc<Custody>> {
        Some(Arc::clone(&self.custody))
    }

    fn revoke(&self, kernel: &Arc<Kernel>) {
        // Somebody else may be at it still: whoever needs the pins gone waits for that anyway.
        if self.revoked.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut deferred = Deferred::default();
        self.shut(kernel, &mut deferred);
        kernel.run_deferred(deferred);
    }
}

impl OpenObject for Ring {
    fn release(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        let state = std::mem::replace(&mut *self.state.lock(), State::Closed);
        if let State::Open(Some(table)) = state {
            table.shut(kernel, deferred);
        }
    }

    /// A ring may always be passed: the axis `pass_context` speaks of RDMA contexts.
    fn may_pass(&self, _kernel: &Kernel, _pass: Pass) -> bool {
        true
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Ring {
    fn table(&self) -> Result<Option<Arc<Table>>, Errno> {
        match &*self.state.lock() {
            State::Open(table) => Ok(table.clone()),
            State::Closed => Err(Errno::EBADF),
        }
    }

    /// How many of its buffers were registered and not taken away.
    pub fn buffers(&self) -> usize {
        let table = self.table().ok().flatten();
        table.map_or(0, |table| table.buffers.iter().filter(|(region, _)| !region.is_shut()).count())
    }
}

/// A part of a fixed buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedBuffer {
    /// Its index in the table.
    pub index: usize,
    /// The first byte in it.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

impl Task {
    /// Makes a ring: `io_uring_setup`.
    ///
    /// # Errors
    /// EMFILE.
    pub fn io_uring(&self) -> Result<(Fd, Arc<Ring>), Errno> {
        let (fd, object) = self.install_object(|custody| {
            Arc::new(Ring { custody, state: Mutex::new(State::Open(None)) }) as Arc<dyn OpenObject>
        })?;
        Ok((fd, downcast(object)?))
    }

    /// Registers mapped memory, as (address, length), as the ring's buffers: `IORING_REGISTER_BUFFERS`. All or none.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a ring; no buffer, or more than [`BUFFERS_MAX`]), EFAULT (longer than [`BUFFER_MAX`]), EBUSY (there is
    /// a table), and what [`Task::register`] says to a long-term user other than RDMA.
    pub fn register_buffers(&self, fd: Fd, memory: &[(u64, u64)]) -> Result<(), Errno> {
        let ring: Arc<Ring> = downcast(self.object(fd)?)?;
        if memory.is_empty() || memory.len() > BUFFERS_MAX {
            return Err(Errno::EINVAL);
        }
        if memory.iter().any(|(_, len)| *len > BUFFER_MAX) {
            return Err(Errno::EFAULT);
        }
        if ring.table()?.is_some() {
            return Err(Errno::EBUSY);
        }
        let table = Arc::new(Table {
            custody: Arc::clone(&ring.custody),
            registrant: Arc::clone(self.process()),
            buffers: memory.iter().map(|(_, len)| (Region::new(*len), *len)).collect(),
            revoked: AtomicBool::new(false),
        });
        let mut deferred = Deferred::default();
        let registered = memory.iter().zip(&table.buffers).try_for_each(|((va, len), (region, _))| {
            let want = Want { va: *va, len: *len, write: true, user: LongTermUser::Other };
            let registration = self.register(want, Arc::clone(&table) as Arc<dyn PinHolder>)?;
            region.install(self.kernel(), registration, &mut deferred);
            Ok(())
        });
        let installed = registered.and_then(|()| match &mut *ring.state.lock() {
            State::Open(slot @ None) => {
                *slot = Some(Arc::clone(&table));
                Ok(())
            }
            // Another thread was first, or closed the ring.
            State::Open(Some(_)) => Err(Errno::EBUSY),
            State::Closed => Err(Errno::EBADF),
        });
        if installed.is_err() {
            table.shut(self.kernel(), &mut deferred);
        }
        self.kernel().run_deferred(deferred);
        installed
    }

    /// Gives the ring's buffers back: `IORING_UNREGISTER_BUFFERS`.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a ring), ENXIO (no table).
    pub fn unregister_buffers(&self, fd: Fd) -> Result<(), Errno> {
        let ring: Arc<Ring> = downcast(self.object(fd)?)?;
        let table = match &mut *ring.state.lock() {
            State::Open(table) => table.take().ok_or(Errno::ENXIO)?,
            State::Closed => return Err(Errno::EBADF),
        };
        let mut deferred = Deferred::default();
        table.shut(self.kernel(), &mut deferred);
        self.kernel().run_deferred(deferred);
        Ok(())
    }

    /// Reads from byte `at` of the file open as `file` into a fixed buffer of the ring `fd`: `IORING_OP_READ_FIXED`, submitted
    /// and completed. The number of bytes, short at the end of the file.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a ring), EFAULT (outside the buffer, or no such buffer), ECANCELED (it was taken away), EIO, and what
    /// [`Task::read`] says. What was moved before an error stays moved.
    pub fn read_fixed(&self, fd: Fd, buffer: FixedBuffer, file: Fd, at: u64) -> Result<u64, Errno> {
        self.move_fixed(fd, buffer, |kernel, region, done, piece| {
            let read = self.read(file, at.saturating_add(done), piece)?;
            let written = region.write(kernel, buffer.offset + done, &piece[..read]);
            written.unwrap_or(Err(Errno::ECANCELED)).map(|()| read)
        })
    }

    /// Writes a fixed buffer of the ring `fd` to byte `at` of the file open as `file`: `IORING_OP_WRITE_FIXED`.
    ///
    /// # Errors
    /// As [`Task::read_fixed`], and what [`Task::write`] says.
    pub fn write_fixed(&self, fd: Fd, buffer: FixedBuffer, file: Fd, at: u64) -> Result<u64, Errno> {
        self.move_fixed(fd, buffer, |kernel, region, done, piece| {
            region.read(kernel, buffer.offset + done, piece).unwrap_or(Err(Errno::ECANCELED))?;
            self.write(file, at.saturating_add(done), piece)
        })
    }

    fn move_fixed(
        &self,
        fd: Fd,
        buffer: FixedBuffer,
        step: impl Fn(&Arc<Kernel>, &Region, u64, &mut [u8]) -> Result<usize, Errno>,
    ) -> Result<u64, Errno> {
        let ring: Arc<Ring> = downcast(self.object(fd)?)?;
        let table = ring.table()?.ok_or(Errno::EFAULT)?;
        let (region, len) = table.buffers.get(buffer.index).ok_or(Errno::EFAULT)?;
        if buffer.offset.checked_add(buffer.len).is_none_or(|end| end > *len) {
            return Err(Errno::EFAULT);
        }
        if region.is_shut() {
            return Err(Errno::ECANCELED);
        }
        let mut bytes = vec![0; buffer.len.min(STEP) as usize];
        let mut done = 0;
        while done < buffer.len {
            let now = (buffer.len - done).min(STEP) as usize;
            let moved = step(self.kernel(), region, done, &mut bytes[..now])?;
            done += moved as u64;
            if moved < now {
                break;
            }
        }
        Ok(done)
    }
}
