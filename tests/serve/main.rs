//! `daxlab serve` and `daxlab ctl`: the real binary, with the vhost crate's frontend as the guest.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]
#![allow(unreachable_pub, dead_code, reason = "a helper of one file is no interface")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../emulator/tests/vhost_user/guest.rs"]
mod guest;
#[path = "../../emulator/tests/vhost_user/page_cache.rs"]
mod page_cache;

mod adversity;
mod attached;
mod bad_input;
mod control;
mod designs;
mod ends;
mod frontends;
mod image;
mod killed;
mod peers;
mod read_only;
mod recipes;
mod server;
mod steering;
mod trace;
mod try_guest;
