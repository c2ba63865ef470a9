//! io_uring calls: the ring, its fixed buffers, reads and writes on them.
//!
//! It owns the checks of their arguments. Kernel counterpart: io_uring/register.c, io_uring/rw.c.

use emulator::sync::atomic::AtomicBool;
use emulator::sync::{Arc, Mutex};

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::holders::holder::PinHolder;
use crate::pinning::admission::LongTermUser;
use crate::pinning::fixed_buffers::{BUFFER_MAX, BUFFERS_MAX, BufferTable, FixedBuffer, Ring, RingState, STEP};
use crate::pinning::registered_memory::RegisteredMemory;
use crate::pinning::registration::PinRequest;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::{Deferred, OpenObject, downcast};
use crate::vfs::task::Task;

impl Task {
    /// Makes a ring: `io_uring_setup`.
    ///
    /// # Errors
    /// EMFILE.
    pub fn io_uring(&self) -> Result<(Fd, Arc<Ring>), Errno> {
        let (fd, object) = self.install_object(|fd_holders| {
            Arc::new(Ring { fd_holders, state: Mutex::new(RingState::Open(None)) }) as Arc<dyn OpenObject>
        })?;
        Ok((fd, downcast(object)?))
    }

    /// Registers mapped memory, as (address, length), as the ring's buffers:
    /// `IORING_REGISTER_BUFFERS`. All or none.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a ring; no buffer, or more than [`BUFFERS_MAX`]), EFAULT (longer than
    /// [`BUFFER_MAX`]), EBUSY (there is a table), and what [`Task::register`] says to a long-term
    /// user other than RDMA.
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
        let table = Arc::new(BufferTable {
            fd_holders: Arc::clone(&ring.fd_holders),
            registrant: Arc::clone(self.process()),
            buffers: memory.iter().map(|(_, len)| (RegisteredMemory::new(*len), *len)).collect(),
            revoked: AtomicBool::new(false),
        });
        let mut deferred = Deferred::default();
        let registered = memory.iter().zip(&table.buffers).try_for_each(|((va, len), (region, _))| {
            let request = PinRequest { va: *va, len: *len, write: true, user: LongTermUser::FixedBuffers };
            let registration = self.register(request, Arc::clone(&table) as Arc<dyn PinHolder>)?;
            region.install(self.kernel(), registration, &mut deferred);
            Ok(())
        });
        let installed = registered.and_then(|()| match &mut *ring.state.lock() {
            RingState::Open(slot @ None) => {
                *slot = Some(Arc::clone(&table));
                Ok(())
            }
            // Another thread was first, or closed the ring.
            RingState::Open(Some(_)) => Err(Errno::EBUSY),
            RingState::Closed => Err(Errno::EBADF),
        });
        if installed.is_err() {
            table.close(self.kernel(), &mut deferred);
        }
        self.run_deferred(deferred);
        installed
    }

    /// Gives the ring's buffers back: `IORING_UNREGISTER_BUFFERS`.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a ring), ENXIO (no table).
    pub fn unregister_buffers(&self, fd: Fd) -> Result<(), Errno> {
        let ring: Arc<Ring> = downcast(self.object(fd)?)?;
        let table = match &mut *ring.state.lock() {
            RingState::Open(table) => table.take().ok_or(Errno::ENXIO)?,
            RingState::Closed => return Err(Errno::EBADF),
        };
        let mut deferred = Deferred::default();
        table.close(self.kernel(), &mut deferred);
        self.run_deferred(deferred);
        Ok(())
    }

    /// Reads from byte `at` of the file open as `file` into a fixed buffer of the ring `fd`:
    /// `IORING_OP_READ_FIXED`, submitted and completed. The number of bytes, short at the end of
    /// the file.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a ring), EFAULT (outside the buffer, or no such buffer), ECANCELED (it
    /// was taken away), EIO, and what [`Task::read`] says. What was moved before an error stays
    /// moved.
    pub fn read_fixed(&self, fd: Fd, buffer: FixedBuffer, file: Fd, at: u64) -> Result<u64, Errno> {
        self.move_fixed(fd, buffer, |kernel, region, done, piece| {
            let read = self.read(file, at.saturating_add(done), piece)?;
            let written = region.write(kernel, buffer.offset + done, &piece[..read]);
            written.unwrap_or(Err(Errno::ECANCELED)).map(|()| read)
        })
    }

    /// Writes a fixed buffer of the ring `fd` to byte `at` of the file open as `file`:
    /// `IORING_OP_WRITE_FIXED`.
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
        step: impl Fn(&Arc<Kernel>, &RegisteredMemory, u64, &mut [u8]) -> Result<usize, Errno>,
    ) -> Result<u64, Errno> {
        let ring: Arc<Ring> = downcast(self.object(fd)?)?;
        let table = ring.table()?.ok_or(Errno::EFAULT)?;
        let (region, len) = table.buffers.get(buffer.index).ok_or(Errno::EFAULT)?;
        if buffer.offset.checked_add(buffer.len).is_none_or(|end| end > *len) {
            return Err(Errno::EFAULT);
        }
        if region.is_closed() {
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
