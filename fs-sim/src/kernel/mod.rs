//! The composition root: a kernel is built, ends, and is recovered here.
//!
//! It owns the wiring of the layers below: [`boot`] builds a [`Kernel`](crate::vfs::kernel::Kernel)
//! from its parts, `lifecycle` says what happens when a file, a process or an inode ends.
//! Invariant: no layer below imports this one. Kernel counterpart: init/main.c, fs/super.c.

pub(crate) mod administration;
pub mod boot;
mod lifecycle;
mod media_errors;
pub mod power;
mod unmount;
mod write_back;
