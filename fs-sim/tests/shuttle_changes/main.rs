//! Layout changes on schedules drawn from a seed: against each other, against pinners, and against
//! tasks that come late to a cycle of waits.
//!
//! Run with `RUSTFLAGS="--cfg daxlab_shuttle" cargo test -p fs-sim --test shuttle_changes
//! --release`. `DAXLAB_CHANGE_SCHEDULES` sets how many schedules the layout changes run, 200,000 if
//! it is not set; the late joiners run a tenth as many more. A schedule that fails prints its seed;
//! `DAXLAB_SEED` runs the seed's schedules again.
#![cfg(daxlab_shuttle)]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod forks;
mod late_joiners;
mod layout_changes;
mod schedules;
