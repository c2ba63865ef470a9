//! State that the layers above keep with an inode, a process or the kernel.
//!
//! It owns one slot for each kind of such state, so that an inode carries its lease table without
//! this layer knowing leases. Invariants: a slot holds one type, which names the slot
//! ([`Attachment::SLOT`]); the state is made empty when it is first asked for and lives as long as
//! its object; an unused slot costs three words. Kernel counterpart: `inode->i_flctx`,
//! `inode->i_security`.

use std::any::Any;

use emulator::sync::OnceLock;

/// Which state of the layers above a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// On an inode: committed holders that pin its pages.
    PinHolders,
    /// On an inode: holders without pins that must be told before its pages change.
    NotifyOnlyHolders,
    /// On an inode: layouts of block-layout clients.
    BlockLayouts,
    /// On an inode: layout leases.
    LayoutLeases,
    /// On an inode: ordinary fcntl leases, and the counts of opens that they look at.
    PosixLeases,
    /// On a process: direct I/O submitted and not completed, and pages in its pipes.
    InFlightIo,
    /// On a process: programs that it runs.
    Programs,
    /// On the kernel: how many bytes its plain disks have.
    DiskBytes,
    /// On the kernel: how many bytes the pages of its memory files have.
    MemoryFileBytes,
    /// On the kernel: requests in flight that no process ends.
    OwnerlessIo,
    /// On the kernel: the inodes on which tasks wait, with all pages open, for I/O in flight.
    OpenPageWaits,
    /// On the kernel: the watch over blocks that guests may still reach.
    StaleWatch,
    /// On the kernel: stale accesses found.
    StaleFindings,
}

const SLOTS: usize = Slot::StaleFindings as usize + 1;

/// State of a layer above, kept in the slot [`Attachment::SLOT`].
pub(crate) trait Attachment: Any + Send + Sync + Default {
    /// The slot, used by no other type.
    const SLOT: Slot;
}

/// The slots of one object.
#[derive(Default)]
pub(crate) struct Attachments([OnceLock<Box<dyn Any + Send + Sync>>; SLOTS]);

impl std::fmt::Debug for Attachments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachments").finish_non_exhaustive()
    }
}

impl Attachments {
    /// The state of type `A`, made empty if there is none yet.
    pub(crate) fn get<A: Attachment>(&self) -> &A {
        let state = self.0[A::SLOT as usize].get_or_init(|| Box::<A>::default());
        state.downcast_ref().expect("a slot is used by the one type that names it")
    }
}
