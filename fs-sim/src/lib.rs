//! The simulated kernel: processes, files, extents, layout leases, and the designs that decide
//! between them.
//!
//! It owns the meaning of the emulator's pages: which file they belong to, which tasks may pin
//! them, what a truncate has to wait for. It knows no RDMA: a holder of long-term pins answers
//! through [`holders::holder::PinHolder`], an object in a descriptor table through
//! [`vfs::open_file::OpenObject`].
//!
//! A program drives one [`Task`] for each simulated thread; system calls are its methods.
//!
//! # Layers, bottom first
//! 1. [`base`]: error numbers, object numbers, ranges, units, counters.
//! 2. [`design`]: a design as a value: its axes, the presets, the volume's options.
//! 3. [`extent_map`]: a file's layout: which device block holds which block of the file.
//! 4. [`volume`]: free space, shared and orphaned blocks, the journal, whether it is mounted.
//! 5. [`deadlock`]: the wait graph; where EDEADLK is decided.
//! 6. [`vfs`]: inodes, names, open files, processes, tasks, and the state that they share.
//! 7. [`holders`]: who pins what: the records and the traits by which a holder is asked.
//! 8. [`leases`]: layout leases and ordinary fcntl leases.
//! 9. [`layout_change`]: a change of a file's layout, from its turn to the freed page.
//! 10. [`pinning`]: pins, registrations, copies, and the long-term users inside this crate.
//! 11. [`syscalls`]: one file a family: checks arguments and calls one layer below.
//! 12. [`kernel`]: the composition root: boot, end of files and processes, power cuts, recovery.
//! 13. [`inspect`]: who leases, who pins, who blocks; the check at the end of a run.

pub mod base;
pub mod deadlock;
pub mod design;
pub mod extent_map;
pub mod holders;
pub mod inspect;
pub mod kernel;
pub mod layout_change;
pub mod leases;
pub mod pinning;
pub mod syscalls;
pub mod vfs;
pub mod volume;

pub use base::errno::Errno;
pub use base::range::BlockRange;
pub use base::units::{ANON_MAX, BLOCK, FILE_MAX, round_up};
#[doc(hidden)]
pub use vfs::kernel::Sabotage;
pub use vfs::kernel::{Kernel, KernelConfig};
pub use vfs::task::Task;
