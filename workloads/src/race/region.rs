//! A memory region as the actors know it: where it lies, and by which key it is reached.
//!
//! It owns plain values. Invariant: a region with a window is reached by the window's key alone.
//! Kernel counterpart: none; a program sends these values to its peer.

use emulator::sync::Arc;
use rdma_sim::{Mr, Mw};

use super::op_stream::WindowKind;
use super::oracle::PayloadFile;
use super::stats::TimedCall;

/// A memory region as its users know it: what a program tells its peer.
#[derive(Clone, Debug)]
pub(super) struct RegionHandle {
    pub(super) mr: Arc<Mr>,
    /// The inode, also as payload names it, and the byte offset in it, that the region was
    /// registered for.
    pub(super) ino: u64,
    pub(super) file: PayloadFile,
    pub(super) offset: u64,
    /// Whether remote writes and atomics are allowed.
    pub(super) writable: bool,
    /// Whether its pages are faulted in at each access.
    pub(super) on_demand: bool,
    /// The window through which it is reached, if it has one.
    pub(super) window: Option<Arc<RegionWindow>>,
}

impl RegionHandle {
    /// What another process is told. A window of type 2 opens only for the queue pair that bound
    /// it: others use the region's key.
    pub(super) fn for_others(&self) -> RegionHandle {
        let window = self.window.clone().filter(|window| !window.kind.type2);
        RegionHandle { window, ..self.clone() }
    }

    /// Where in the region requests go: the first byte, the length, and the key.
    pub(super) fn reached(&self) -> (u64, u64, u32) {
        match &self.window {
            Some(window) => (window.at, window.len, window.rkey),
            None => (0, self.mr.len(), self.mr.rkey()),
        }
    }

    /// As what its requests are counted besides `dma`.
    pub(super) fn counted_as(&self) -> &'static [TimedCall] {
        match (self.on_demand, self.window.is_some()) {
            (false, false) => &[],
            (true, false) => &[TimedCall::DmaOnDemand],
            (false, true) => &[TimedCall::DmaWindow],
            (true, true) => &[TimedCall::DmaOnDemand, TimedCall::DmaWindow],
        }
    }
}

/// A window that is bound to a part of a region.
#[derive(Debug)]
pub(super) struct RegionWindow {
    pub(super) mw: Arc<Mw>,
    pub(super) kind: WindowKind,
    /// Where the part begins in the region, and how long it is.
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) rkey: u32,
}
