//! System calls on files, one file a family, and the one driver of all layout changes.
//!
//! It owns the path from a call to a published layout. Invariants: whatever alters a file's map or size goes through
//! [`change`]; whatever copies bytes holds short-term pins, or the ticket and blocks nobody else can reach.

pub mod change;
pub mod defragment;
mod departing;
pub mod direct_io;
pub mod fallocate;
pub mod moves;
pub mod names;
pub mod open;
mod pages;
pub(crate) mod plan;
pub mod poison;
pub mod provision;
pub mod rw;
pub mod sharing;
pub mod stat;
pub mod truncate;
mod unmap;

pub(crate) use pages::{merge, without};
