//! Pinning: the only way to a file's pages, for one access or for long.
//!
//! It owns the protocol between a pinner and a changer of the file's layout (`gup`), the design's
//! gate ([`admission`]), registrations, copies watched by the ledger ([`dma`]), and the kinds of
//! long-term users inside this crate. Invariant: a pin that returns holds the pages that the
//! published map names. Kernel counterpart: mm/gup.c, drivers/infiniband/core/umem.c.
//!
//! `registration`, `dma` and `on_demand` import each other: a request that pins nothing becomes an
//! on-demand translation, which copies by `dma`, as the pins of a registration do.

pub mod admission;
pub mod af_xdp;
pub mod anon_range;
pub(crate) mod block_layout;
pub(crate) mod direct_io;
pub mod dma;
pub mod fixed_buffers;
pub mod guest_export;
pub(crate) mod gup;
pub(crate) mod held_memory;
pub(crate) mod locked_memory;
pub mod on_demand;
pub(crate) mod registered_memory;
pub mod registration;
