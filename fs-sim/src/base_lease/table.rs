//! The base leases of one inode, who has it open, and whom to signal.
//!
//! It owns the counts of opens and the leases as one value under one lock. Invariants: either somebody has the file open for
//! writing or somebody denies writing, never both; a description has at most one lease; a lease being broken to nothing never
//! gets rid of that but by going. Kernel counterpart: `i_writecount`, `i_readcount`, `struct file_lock_context`, `struct
//! fown_struct`; [`Books::begin_break`] is the first half of `__break_lease`.

use std::collections::BTreeMap;

use emulator::runtime::clock::Nanos;
use emulator::sync::{Arc, Mutex, MutexGuard};
use emulator::wait::WaitQueue;

use super::{Request, Type};
use crate::errno::Errno;
use crate::process::custody::Custody;
use crate::process::description::{Access, Description, DescriptionId};
use crate::process::signals::Signal;
use crate::process::{Credentials, Pid};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct BaseLeases {
    books: Mutex<Books>,
    /// Those who wait for a break to end.
    pub(crate) changed: WaitQueue,
}

impl BaseLeases {
    /// The books, locked. Never wait or signal with them in hand.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock()
    }
}

/// What the lock protects.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// Open descriptions with write access, and calls that write by path.
    writers: u64,
    /// Running programs, which deny writing.
    programs: u64,
    /// Open descriptions with read access alone.
    readers: u64,
    leases: Vec<Entry>,
    /// Whom to signal and how, by description; F_SETOWN and F_SETSIG may come before the lease.
    owners: BTreeMap<DescriptionId, Owner>,
}

/// One lease.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) file: DescriptionId,
    pub(crate) custody: Arc<Custody>,
    pub(crate) setter: Pid,
    pub(crate) held: Type,
    /// A break to read is pending (`FL_DOWNGRADE_PENDING`).
    downgrading: bool,
    /// When the kernel last said that it would downgrade. Outlives the break: Linux never clears `fl_downgrade_time` either.
    downgrade_at: Option<Nanos>,
    /// A break to nothing is pending (`FL_UNLOCK_PENDING`).
    unlocking: bool,
    /// When the kernel removes the lease.
    unlock_at: Option<Nanos>,
}

/// Whom breaks of a description's lease are told to.
#[derive(Clone, Copy, Debug, Default)]
struct Owner {
    /// The process, and the user on whose behalf it is signalled.
    to: Option<(Pid, u32)>,
    /// None: SIGIO.
    signal: Option<Signal>,
}

/// A signal owed because a break began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notice {
    pub(crate) to: Option<(Pid, u32)>,
    pub(crate) signal: Signal,
}

impl Entry {
    /// Whether a break is pending.
    pub(crate) fn is_breaking(&self) -> bool {
        self.downgrading || self.unlocking
    }

    /// What `F_GETLEASE` reports. Kernel: `target_leasetype`.
    pub(crate) fn left(&self) -> Option<Type> {
        match (self.unlocking, self.downgrading) {
            (true, _) => None,
            (false, true) => Some(Type::Read),
            (false, false) => Some(self.held),
        }
    }

    /// Kernel: `locks_conflict`.
    pub(crate) fn conflicts_with(&self, breaker: Type) -> bool {
        self.held == Type::Write || breaker == Type::Write
    }

    /// How long `breaker` sleeps at most before it looks for what is over. A writer waits for the removal: a downgrade, perhaps
    /// of an earlier break, does not help it. A reader would be helped by the downgrade, but as in Linux it sleeps until the
    /// removal as soon as one is pending (`fl_break_time`), unless somebody else looks at the lease meanwhile.
    pub(crate) fn forced_at(&self, breaker: Type) -> Option<Nanos> {
        let unlock_at = self.unlock_at.filter(|_| self.unlocking);
        match breaker {
            Type::Write => unlock_at,
            Type::Read => unlock_at.or(self.downgrade_at),
        }
    }

    /// The next deadline of what is pending.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        let downgrade_at = self.downgrade_at.filter(|_| self.downgrading);
        let unlock_at = self.unlock_at.filter(|_| self.unlocking);
        [downgrade_at, unlock_at].into_iter().flatten().min()
    }

    /// Kernel: `lease_modify` with a type other than `F_UNLCK`: a read lease has been downgraded as a break to read asked, but
    /// a break to nothing stays pending, whatever the type.
    fn convert(&mut self, to: Type) {
        self.held = to;
        self.downgrading &= to == Type::Write;
    }
}

impl Books {
    /// Counts an open description. Kernel: `i_readcount_inc` or `get_write_access`, as `do_dentry_open` does.
    ///
    /// # Errors
    /// ETXTBSY (for writing, while a program runs from the file).
    pub(crate) fn enter(&mut self, access: Access) -> Result<(), Errno> {
        if access.write && self.programs > 0 {
            return Err(Errno::ETXTBSY);
        }
        self.writers += u64::from(access.write);
        self.readers += u64::from(access.read && !access.write);
        Ok(())
    }

    /// The end of what [`Books::enter`] counted.
    pub(crate) fn leave(&mut self, access: Access) {
        self.writers -= u64::from(access.write);
        self.readers -= u64::from(access.read && !access.write);
    }

    /// A program is to run from the file. Kernel: `exe_file_deny_write_access`.
    ///
    /// # Errors
    /// ETXTBSY (somebody has it open for writing).
    pub(crate) fn deny_writing(&mut self) -> Result<(), Errno> {
        if self.writers > 0 {
            return Err(Errno::ETXTBSY);
        }
        self.programs += 1;
        Ok(())
    }

    /// A program that ran from the file is over.
    pub(crate) fn allow_writing(&mut self) {
        self.programs -= 1;
    }

    /// The leases.
    pub(crate) fn leases(&self) -> &[Entry] {
        &self.leases
    }

    /// Those that stand in the way of an open.
    pub(crate) fn in_the_way(&self, breaker: Type) -> impl Iterator<Item = &Entry> {
        self.leases.iter().filter(move |entry| entry.conflicts_with(breaker))
    }

    /// What `F_GETLEASE` on this description reports.
    pub(crate) fn left_to(&self, file: DescriptionId) -> Option<Type> {
        self.leases.iter().find(|entry| entry.file == file).and_then(Entry::left)
    }

    /// Who is told of a break of this description's lease.
    pub(crate) fn owner_of(&self, file: DescriptionId) -> Option<Pid> {
        self.owners.get(&file).and_then(|owner| owner.to).map(|(pid, _)| pid)
    }

    /// `F_SETOWN`.
    pub(crate) fn set_owner(&mut self, file: DescriptionId, to: Option<(Pid, u32)>) {
        self.owners.entry(file).or_default().to = to;
    }

    /// `F_SETSIG`.
    pub(crate) fn set_signal(&mut self, file: DescriptionId, signal: Option<Signal>) {
        self.owners.entry(file).or_default().signal = signal;
    }

    /// Whether nothing is left of any open file.
    pub(crate) fn is_empty(&self) -> bool {
        let Books { writers, programs, readers, leases, owners } = self;
        *writers == 0 && *programs == 0 && *readers == 0 && leases.is_empty() && owners.is_empty()
    }

    /// `F_SETLEASE`, permissions aside. Kernel: `generic_add_lease`, `generic_delete_lease`.
    ///
    /// # Errors
    /// EAGAIN: other opens or a pending break don't allow it, or nothing is held that could be given back.
    pub(crate) fn set(
        &mut self,
        description: &Description,
        access: Access,
        request: Request,
        setter: (Pid, Credentials),
    ) -> Result<(), Errno> {
        let file = description.id();
        let Request::Take(asked) = request else {
            return if self.remove(file) { Ok(()) } else { Err(Errno::EAGAIN) };
        };
        self.check_opens(access, asked)?;
        let others = self.leases.iter().filter(|entry| entry.file != file);
        // Nobody gets in beside a lease that is being broken to nothing.
        if others.into_iter().any(|entry| asked == Type::Write || entry.unlocking) {
            return Err(Errno::EAGAIN);
        }
        match self.leases.iter_mut().find(|entry| entry.file == file) {
            Some(own) => own.convert(asked),
            None => self.leases.push(Entry {
                file,
                custody: Arc::clone(description.custody()),
                setter: setter.0,
                held: asked,
                downgrading: false,
                downgrade_at: None,
                unlocking: false,
                unlock_at: None,
            }),
        }
        // Whom F_SETOWN or an earlier lease named stays named.
        self.owners.entry(file).or_default().to.get_or_insert((setter.0, setter.1.uid));
        Ok(())
    }

    /// Kernel: `check_conflicting_open`.
    fn check_opens(&self, access: Access, asked: Type) -> Result<(), Errno> {
        let own = |counted: bool| u64::from(counted);
        let free = match asked {
            Type::Read => self.writers == 0,
            Type::Write => {
                let sole_writer = self.writers == own(access.write) && self.programs == 0;
                sole_writer && self.readers == own(access.read && !access.write)
            }
        };
        if free { Ok(()) } else { Err(Errno::EAGAIN) }
    }

    /// Takes a description's lease away, and forgets whom to signal; whether there was one.
    fn remove(&mut self, file: DescriptionId) -> bool {
        let before = self.leases.len();
        self.leases.retain(|entry| entry.file != file);
        let removed = self.leases.len() < before;
        if removed {
            self.owners.remove(&file);
        }
        removed
    }

    /// An open description is gone: its lease, its count, its owner.
    pub(crate) fn release(&mut self, file: DescriptionId, access: Access) {
        self.remove(file);
        self.owners.remove(&file);
        self.leave(access);
    }

    /// Carries out the breaks whose time is over; how many leases that changed. As in Linux no timer does this, but whoever
    /// asks for a lease, breaks one or looks at one. Kernel: `time_out_leases`.
    pub(crate) fn time_out(&mut self, now: Nanos) -> u64 {
        let past = |at: Option<Nanos>| at.is_some_and(|at| now >= at);
        let mut forced = 0;
        for entry in &mut self.leases {
            if past(entry.downgrade_at) && entry.held == Type::Write {
                entry.convert(Type::Read);
                forced += 1;
            }
        }
        let over = |entry: &&Entry| entry.unlocking && past(entry.unlock_at);
        let gone: Vec<DescriptionId> = self.leases.iter().filter(over).map(|entry| entry.file).collect();
        for file in gone {
            self.remove(file);
            forced += 1;
        }
        forced
    }

    /// Marks what stands in the way of `breaker` as being broken until `deadline`; whom to tell of it.
    pub(crate) fn begin_break(&mut self, breaker: Type, deadline: Option<Nanos>) -> Vec<Notice> {
        let mut notices = Vec::new();
        for entry in self.leases.iter_mut().filter(|entry| entry.conflicts_with(breaker)) {
            match breaker {
                Type::Write if entry.unlocking => continue,
                Type::Write => (entry.unlocking, entry.unlock_at) = (true, deadline),
                Type::Read if entry.is_breaking() => continue,
                Type::Read => (entry.downgrading, entry.downgrade_at) = (true, deadline),
            }
            let owner = self.owners.get(&entry.file).copied().unwrap_or_default();
            notices.push(Notice { to: owner.to, signal: owner.signal.unwrap_or(Signal::Sigio) });
        }
        notices
    }
}
