//! Linux guests under QEMU: what they are made of, booting them, and running commands in them.
//!
//! It owns the way from `scripts/guest-packages`, which fetches QEMU, kernels and programs without
//! root, to a shell script that ran in a guest and what it said. Invariants: a guest's process ends
//! with its value; every wait has a limit, and its error carries the end of the guest's console.
//!
//! # Layers, bottom first
//! 1. [`packages`]: what was fetched, and from where.
//! 2. [`initramfs`]: the first file system of a guest, with kernel modules in order.
//! 3. [`vm`]: a machine, its boots, and the guests that run.

pub mod initramfs;
pub mod packages;
pub mod vm;
