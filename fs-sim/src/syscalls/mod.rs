//! System calls, one file a family.
//!
//! It owns the checks of arguments, in Linux's order, as methods of [`crate::vfs::task::Task`];
//! each call then uses one layer below. Invariant: no rule of a design is decided here. Kernel
//! counterpart: the `SYSCALL_DEFINE`s of fs/open.c, fs/read_write.c, fs/fcntl.c, mm/mmap.c.

mod af_xdp;
mod block_layout;
pub mod descriptors;
pub mod direct_io;
pub mod exec;
pub mod fallocate;
mod guest_export;
mod held_memory;
pub mod io_uring;
mod layout_leases;
mod memory;
pub mod memory_file;
mod names;
pub mod open;
mod posix_leases;
mod processes;
mod provision;
pub mod ram_disk;
mod read_write;
mod register;
mod remap;
pub mod stat;
mod sync;
mod truncate;
pub mod vmsplice;
pub mod zero_copy;
