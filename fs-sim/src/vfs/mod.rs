//! Files, processes and the tasks that make system calls.
//!
//! It owns inode identity and published layouts, names, open files, descriptor tables, address
//! spaces, signals, and [`kernel::Kernel`], the state that all processes share. Layers above keep
//! their own state with an inode, a process or the kernel by `attachments`, and act when an
//! object ends through the trait `lifecycle::Lifecycle`. Invariant: nothing here looks into
//! a lease or a pin. Kernel counterpart: fs/inode.c, fs/file_table.c, fs/namei.c,
//! kernel/fork.c, kernel/signal.c, mm/mmap.c.
//!
//! Files of this folder import each other in circles: a task refers to its kernel and process, the
//! kernel lists processes and inodes, an inode's turn blocks a task, as the structures of Linux do.

pub mod address_space;
pub mod anon;
pub(crate) mod attachments;
pub mod change_state;
pub mod credentials;
pub mod fd_holders;
pub mod fd_table;
pub mod inode;
pub mod kernel;
pub(crate) mod layout_turn;
pub(crate) mod lifecycle;
pub mod memory_file;
pub mod names;
pub mod open_file;
pub mod page_run;
pub mod private_pages;
pub mod process;
pub(crate) mod signal_owner;
pub mod signals;
pub mod task;
