//! The ordinary leases and delegations of one inode, and the counts of its opens.
//!
//! It owns the counts and the leases as one value under one lock. Invariants: a file is never open
//! for writing and run as a program at the same time; an open file has at most one lease; a lease
//! with a pending break to nothing can only be removed. Kernel counterpart: `i_writecount`,
//! `i_readcount`, `struct file_lock_context`;
//! [`PosixLeaseBooks::begin_break`] is the first half of `__break_lease`.

use emulator::runtime::clock::Nanos;
use emulator::sync::{Arc, Mutex, MutexGuard};
use emulator::wait::WaitQueue;

use crate::base::errno::Errno;
use crate::base::numbers::{DescriptionId, Pid};
use crate::leases::posix::request::{PosixLeaseFlavor, PosixLeaseRequest, PosixLeaseType};
use crate::vfs::attachments::{Attachment, Slot};
use crate::vfs::credentials::Credentials;
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::inode::Inode;
use crate::vfs::open_file::{AccessMode, Description};
use crate::vfs::signal_owner::{BreakNotice, SignalOwner};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct PosixLeases {
    books: Mutex<PosixLeaseBooks>,
    /// Tasks that wait for a break to end.
    pub(crate) changed: WaitQueue,
}

impl Attachment for PosixLeases {
    const SLOT: Slot = Slot::PosixLeases;
}

impl PosixLeases {
    /// The ordinary leases of `inode`.
    pub(crate) fn of(inode: &Inode) -> &PosixLeases {
        inode.attached()
    }

    /// Locks the books. The caller neither waits nor signals while it holds the lock.
    pub(crate) fn lock(&self) -> MutexGuard<'_, PosixLeaseBooks> {
        self.books.lock()
    }
}

/// What the lock protects.
#[derive(Debug, Default)]
pub(crate) struct PosixLeaseBooks {
    /// Open files with write access, and calls that write by path.
    writers: u64,
    /// Running programs, which deny write access.
    programs: u64,
    /// Open files with read access only.
    readers: u64,
    leases: Vec<PosixLease>,
}

/// What breaks leases: an open, a truncate by path, or a change that delegations are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseBreaker {
    /// `Read` leaves read leases alone.
    access: PosixLeaseType,
    /// `Delegation`: it breaks delegations only. `Lease`: it breaks both.
    flavor: PosixLeaseFlavor,
}

impl LeaseBreaker {
    /// An open for reading. Kernel: `break_lease` with `O_RDONLY`.
    pub(crate) const READER: LeaseBreaker =
        LeaseBreaker { access: PosixLeaseType::Read, flavor: PosixLeaseFlavor::Lease };

    /// An open for writing, a truncate by path. Kernel: `break_lease` with `O_WRONLY`.
    pub(crate) const WRITER: LeaseBreaker =
        LeaseBreaker { access: PosixLeaseType::Write, flavor: PosixLeaseFlavor::Lease };

    /// A change of attributes or names. Kernel: `break_deleg`.
    pub(crate) const CHANGE: LeaseBreaker =
        LeaseBreaker { access: PosixLeaseType::Write, flavor: PosixLeaseFlavor::Delegation };

    /// Whether it breaks delegations only.
    pub(crate) fn is_change(self) -> bool {
        self.flavor == PosixLeaseFlavor::Delegation
    }
}

/// One lease or delegation.
#[derive(Clone, Debug)]
pub(crate) struct PosixLease {
    pub(crate) file: DescriptionId,
    pub(crate) fd_holders: Arc<FdHolders>,
    /// Whom the open file signals.
    pub(crate) signal_owner: Arc<SignalOwner>,
    pub(crate) setter: Pid,
    pub(crate) flavor: PosixLeaseFlavor,
    pub(crate) held: PosixLeaseType,
    /// A break to read is pending (`FL_DOWNGRADE_PENDING`).
    downgrading: bool,
    /// When the kernel last announced a downgrade. It outlives the break: Linux never clears
    /// `fl_downgrade_time` either.
    downgrade_at: Option<Nanos>,
    /// A break to nothing is pending (`FL_UNLOCK_PENDING`).
    unlocking: bool,
    /// When the kernel removes the lease.
    unlock_at: Option<Nanos>,
}

impl PosixLease {
    /// Whether a break is pending.
    pub(crate) fn is_breaking(&self) -> bool {
        self.downgrading || self.unlocking
    }

    /// What `F_GETLEASE` reports. Kernel: `target_leasetype`.
    pub(crate) fn left(&self) -> Option<PosixLeaseType> {
        match (self.unlocking, self.downgrading) {
            (true, _) => None,
            (false, true) => Some(PosixLeaseType::Read),
            (false, false) => Some(self.held),
        }
    }

    /// Kernel: `leases_conflict`. The breaker's process does not matter, even if it is the holder.
    pub(crate) fn conflicts_with(&self, breaker: LeaseBreaker) -> bool {
        let told = !breaker.is_change() || self.flavor == PosixLeaseFlavor::Delegation;
        told && (self.held == PosixLeaseType::Write || breaker.access == PosixLeaseType::Write)
    }

    /// How long `breaker` sleeps at most before it checks for time-outs. A writer waits for the
    /// removal; a downgrade, perhaps of an earlier break, does not help it. A reader would be
    /// helped by the downgrade, but as in Linux it sleeps until the removal once one is pending
    /// (`fl_break_time`), unless another task checks the lease meanwhile.
    pub(crate) fn forced_at(&self, breaker: LeaseBreaker) -> Option<Nanos> {
        let unlock_at = self.unlock_at.filter(|_| self.unlocking);
        match breaker.access {
            PosixLeaseType::Write => unlock_at,
            PosixLeaseType::Read => unlock_at.or(self.downgrade_at),
        }
    }

    /// The next deadline of a pending break.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        let downgrade_at = self.downgrade_at.filter(|_| self.downgrading);
        let unlock_at = self.unlock_at.filter(|_| self.unlocking);
        [downgrade_at, unlock_at].into_iter().flatten().min()
    }

    /// Kernel: `lease_modify` with a type other than `F_UNLCK`. A conversion to read ends a
    /// pending break to read; a break to nothing stays pending, whatever the type.
    fn convert(&mut self, to: PosixLeaseType) {
        self.held = to;
        self.downgrading &= to == PosixLeaseType::Write;
    }
}

impl PosixLeaseBooks {
    /// Counts an open file. Kernel: `i_readcount_inc` or `get_write_access`, as `do_dentry_open`
    /// does.
    ///
    /// # Errors
    /// ETXTBSY (for writing, while a program runs from the file).
    pub(crate) fn enter(&mut self, access: AccessMode) -> Result<(), Errno> {
        if access.write && self.programs > 0 {
            return Err(Errno::ETXTBSY);
        }
        self.writers += u64::from(access.write);
        self.readers += u64::from(access.read && !access.write);
        Ok(())
    }

    /// Takes back what [`PosixLeaseBooks::enter`] counted.
    pub(crate) fn leave(&mut self, access: AccessMode) {
        self.writers -= u64::from(access.write);
        self.readers -= u64::from(access.read && !access.write);
    }

    /// A program is about to run from the file. Kernel: `exe_file_deny_write_access`.
    ///
    /// # Errors
    /// ETXTBSY (the file is open for writing).
    pub(crate) fn deny_writing(&mut self) -> Result<(), Errno> {
        if self.writers > 0 {
            return Err(Errno::ETXTBSY);
        }
        self.programs += 1;
        Ok(())
    }

    /// A program that ran from the file has ended.
    pub(crate) fn allow_writing(&mut self) {
        self.programs -= 1;
    }

    /// The leases.
    pub(crate) fn leases(&self) -> &[PosixLease] {
        &self.leases
    }

    /// The leases that stand in the way of an open or a change.
    pub(crate) fn in_the_way(&self, breaker: LeaseBreaker) -> impl Iterator<Item = &PosixLease> {
        self.leases.iter().filter(move |entry| entry.conflicts_with(breaker))
    }

    /// What `F_GETLEASE` or `F_GETDELEG` on this open file reports.
    pub(crate) fn left_to(&self, file: DescriptionId, flavor: PosixLeaseFlavor) -> Option<PosixLeaseType> {
        let asked = |entry: &&PosixLease| entry.file == file && entry.flavor == flavor;
        self.leases.iter().find(asked).and_then(PosixLease::left)
    }

    /// Whether no open file is counted and no lease is left.
    pub(crate) fn is_empty(&self) -> bool {
        let PosixLeaseBooks { writers, programs, readers, leases } = self;
        *writers == 0 && *programs == 0 && *readers == 0 && leases.is_empty()
    }

    /// `F_SETLEASE` or `F_SETDELEG` without the permission checks. An open file has one lease of
    /// either flavor: a request of the other flavor converts or releases the one that is there, and
    /// leaves its flavor. Kernel: `generic_add_lease`, `generic_delete_lease`.
    ///
    /// # Errors
    /// EAGAIN: other opens or a pending break forbid it, or there is no lease to release.
    pub(crate) fn set(
        &mut self,
        description: &Description,
        access: AccessMode,
        (request, flavor): (PosixLeaseRequest, PosixLeaseFlavor),
        setter: (Pid, Credentials),
    ) -> Result<(), Errno> {
        let file = description.id();
        let PosixLeaseRequest::Take(asked) = request else {
            return if self.remove(file) { Ok(()) } else { Err(Errno::EAGAIN) };
        };
        self.check_opens(access, asked)?;
        let others = self.leases.iter().filter(|entry| entry.file != file);
        // No new lease is granted beside one with a pending break to nothing.
        if others.into_iter().any(|entry| asked == PosixLeaseType::Write || entry.unlocking) {
            return Err(Errno::EAGAIN);
        }
        match self.leases.iter_mut().find(|entry| entry.file == file) {
            Some(own) => own.convert(asked),
            None => self.leases.push(PosixLease {
                file,
                fd_holders: Arc::clone(description.fd_holders()),
                signal_owner: Arc::clone(description.signal_owner()),
                setter: setter.0,
                flavor,
                held: asked,
                downgrading: false,
                downgrade_at: None,
                unlocking: false,
                unlock_at: None,
            }),
        }
        description.signal_owner().posix_lease_set((setter.0, setter.1.uid));
        Ok(())
    }

    /// Kernel: `check_conflicting_open`.
    fn check_opens(&self, access: AccessMode, asked: PosixLeaseType) -> Result<(), Errno> {
        let own = |counted: bool| u64::from(counted);
        let free = match asked {
            PosixLeaseType::Read => self.writers == 0,
            PosixLeaseType::Write => {
                let sole_writer = self.writers == own(access.write) && self.programs == 0;
                sole_writer && self.readers == own(access.read && !access.write)
            }
        };
        if free { Ok(()) } else { Err(Errno::EAGAIN) }
    }

    /// Removes an open file's lease and forgets whom to signal; whether there was one.
    fn remove(&mut self, file: DescriptionId) -> bool {
        let Some(at) = self.leases.iter().position(|entry| entry.file == file) else { return false };
        self.leases.remove(at).signal_owner.posix_lease_gone();
        true
    }

    /// An open file has ended: its lease and its count go.
    pub(crate) fn release(&mut self, file: DescriptionId, access: AccessMode) {
        self.remove(file);
        self.leave(access);
    }

    /// Carries out the breaks that timed out; how many leases that changed. As in Linux no timer
    /// does this, but the next task that requests, breaks or checks a lease. Kernel:
    /// `time_out_leases`.
    pub(crate) fn time_out(&mut self, now: Nanos) -> u64 {
        let past = |at: Option<Nanos>| at.is_some_and(|at| now >= at);
        let mut forced = 0;
        for entry in &mut self.leases {
            if past(entry.downgrade_at) && entry.held == PosixLeaseType::Write {
                entry.convert(PosixLeaseType::Read);
                forced += 1;
            }
        }
        let over = |entry: &&PosixLease| entry.unlocking && past(entry.unlock_at);
        let gone: Vec<DescriptionId> = self.leases.iter().filter(over).map(|entry| entry.file).collect();
        for file in gone {
            self.remove(file);
            forced += 1;
        }
        forced
    }

    /// Marks the leases in the way of `breaker` as being broken until `deadline`. Returns the
    /// signals that are owed.
    pub(crate) fn begin_break(&mut self, breaker: LeaseBreaker, deadline: Option<Nanos>) -> Vec<BreakNotice> {
        let mut notices = Vec::new();
        for entry in self.leases.iter_mut().filter(|entry| entry.conflicts_with(breaker)) {
            match breaker.access {
                PosixLeaseType::Write if entry.unlocking => continue,
                PosixLeaseType::Write => (entry.unlocking, entry.unlock_at) = (true, deadline),
                PosixLeaseType::Read if entry.is_breaking() => continue,
                PosixLeaseType::Read => (entry.downgrading, entry.downgrade_at) = (true, deadline),
            }
            notices.push(entry.signal_owner.posix_notice());
        }
        notices
    }
}
