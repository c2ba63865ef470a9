//! Requests of a send queue, as rdma_rxe reads them.
//!
//! It owns their opcodes and operands, the memory of this side that they use, and what their
//! completions mean. Kernel counterpart: `enum ib_wr_opcode`, `enum ib_wc_status`
//! (include/rdma/ib_verbs.h), drivers/infiniband/sw/rxe/rxe_req.c.

use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::uapi::{Buffer, Data, SendElement, Uapi, pair_of};
use super::wire::Work;
use crate::ops::describe_bytes;

const RDMA_WRITE: u32 = 0;
const SEND: u32 = 2;
const RDMA_READ: u32 = 4;
const COMPARE_SWAP: u32 = 5;
const FETCH_ADD: u32 = 6;
const LOCAL_INVALIDATE: u32 = 7;
const BIND_WINDOW: u32 = 8;
const SEND_INVALIDATE: u32 = 9;
const FLUSH: u32 = 14;
const ATOMIC_WRITE: u32 = 15;

/// The most bytes that a request carries, as those of an access through a mapping.
const BYTES_MAX: u64 = 64 << 20;

const SIGNALED: u32 = 2;
const FLUSH_GLOBAL: u64 = 1;
const FLUSH_PERSISTENT: u64 = 2;

/// What a window lets the peer do: REMOTE_WRITE, REMOTE_READ, REMOTE_ATOMIC.
const WINDOW_ACCESS: u32 = 2 | 4 | 8;

/// Memory of this side that a request uses.
#[derive(Debug)]
pub(super) struct WorkBuffer {
    at: NonNull<u8>,
    len: usize,
}

impl WorkBuffer {
    pub(super) fn new(len: u64, byte: u8) -> Result<WorkBuffer, Errno> {
        if len > BYTES_MAX {
            return Err(Errno::NOMEM);
        }
        let len = len as usize;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?
        };
        let at: NonNull<u8> = NonNull::new(at.cast()).ok_or(Errno::FAULT)?;
        // SAFETY: the mapping has this length, and nothing else knows it yet.
        unsafe { at.write_bytes(byte, len) };
        Ok(WorkBuffer { at, len })
    }

    pub(super) fn place(&self) -> (u64, u64) {
        (self.at.as_ptr() as u64, self.len as u64)
    }

    /// Its bytes, after the request that used it was completed.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        // SAFETY: the mapping has this length. The device has completed the request, and writes no
        // more.
        unsafe { self.at.copy_to_nonoverlapping(NonNull::from(&mut bytes[..]).cast(), self.len) };
        bytes
    }
}

impl Drop for WorkBuffer {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more. It fails for no mapping that was made.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// The memory that `work` needs on this side: its length, and the byte that fills it.
pub(super) fn buffer_of(work: &Work) -> Option<(u64, u8)> {
    match work {
        Work::Write { len, byte, .. } | Work::Send { len, byte, .. } => Some((*len, *byte)).filter(|(len, _)| *len > 0),
        Work::Read { len, .. } => Some((*len, 0)).filter(|(len, _)| *len > 0),
        Work::FetchAdd { .. } | Work::CompareSwap { .. } => Some((8, 0)),
        Work::AtomicWrite { .. } | Work::Flush { .. } | Work::Bind { .. } | Work::Invalidate { .. } => None,
    }
}

/// The element of the queue for `work`, whose memory on this side is `local`.
pub(super) fn element(id: u64, work: &Work, local: Option<Buffer>) -> Result<SendElement, Errno> {
    let empty =
        SendElement { id, flags: SIGNALED, data: local.map_or(Data::zeroed(), Data::of), ..SendElement::zeroed() };
    let (opcode, operands): (u32, &[u64]) = match work {
        Work::Write { to, .. } => (RDMA_WRITE, &[to.at, pair_of(to.key, 0)]),
        Work::Read { from, .. } => (RDMA_READ, &[from.at, pair_of(from.key, 0)]),
        Work::Send { invalidate, .. } => {
            let opcode = if invalidate.is_some() { SEND_INVALIDATE } else { SEND };
            return Ok(SendElement { opcode, invalidate: invalidate.unwrap_or_default(), ..empty });
        }
        Work::FetchAdd { at, add } => (FETCH_ADD, &[at.at, *add, 0, pair_of(at.key, 0)]),
        Work::CompareSwap { at, compare, swap } => (COMPARE_SWAP, &[at.at, *compare, *swap, pair_of(at.key, 0)]),
        Work::AtomicWrite { to, value } => {
            // The bytes stand where a buffer would.
            let data = Data { buffer: Buffer { at: *value, len: 0, lkey: 0 }, ..Data::bytes_of_message(8) };
            return Ok(SendElement {
                opcode: ATOMIC_WRITE,
                address: to.at,
                data,
                ..with_operands(empty, &[to.at, pair_of(to.key, 0)])
            });
        }
        Work::Flush { at, len, persistent, whole } => {
            let len = u32::try_from(*len).map_err(|_| Errno::INVAL)?;
            let placement = if *persistent { FLUSH_PERSISTENT } else { FLUSH_GLOBAL };
            // Two bytes: the placement, and 1 for the whole region.
            let kind = (placement | u64::from(*whole) << 8).to_le();
            let data = Data::bytes_of_message(len);
            let operands = [at.at, pair_of(len, at.key), kind];
            return Ok(SendElement { opcode: FLUSH, address: at.at, data, ..with_operands(empty, &operands) });
        }
        Work::Bind { key, new_key, lkey, at, len } => {
            (BIND_WINDOW, &[*at, *len, pair_of(*lkey, *key), pair_of(*new_key, WINDOW_ACCESS)])
        }
        Work::Invalidate { key } => return Ok(SendElement { opcode: LOCAL_INVALIDATE, invalidate: *key, ..empty }),
    };
    Ok(SendElement { opcode, address: operands[0], ..with_operands(empty, operands) })
}

fn with_operands(element: SendElement, operands: &[u64]) -> SendElement {
    let mut all = [0; 15];
    all[..operands.len()].copy_from_slice(operands);
    SendElement { operands: all, ..element }
}

/// What a request that succeeded has read.
pub(super) fn value(work: &Work, local: Option<&WorkBuffer>) -> Option<String> {
    match work {
        Work::Read { .. } => {
            let bytes = local.map(WorkBuffer::bytes).unwrap_or_default();
            Some(describe_bytes(&bytes, bytes.len()))
        }
        Work::FetchAdd { .. } | Work::CompareSwap { .. } => {
            let word: [u8; 8] = local?.bytes().try_into().ok()?;
            Some(u64::from_ne_bytes(word).to_string())
        }
        _ => None,
    }
}

/// How a completion says that it went (`enum ib_wc_status`), in the words of scenarios.
pub(super) fn status(number: u32) -> String {
    let word = match number {
        0 => "success",
        1 => "local_length_error",
        2 => "local_operation_error",
        4 => "local_protection_error",
        5 => "flushed",
        6 => "memory_window_bind_error",
        9 => "remote_invalid_request",
        10 => "remote_access_error",
        11 => "remote_operation_error",
        12 => "retry_exceeded",
        13 => "rnr_retry_exceeded",
        other => return format!("status {other}"),
    };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::wire::RemotePlace;
    use super::*;

    fn bytes(work: &Work) -> Vec<u8> {
        element(3, work, None).unwrap().bytes().to_vec()
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn half(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// The offsets are those that a C compiler gives for `struct rxe_send_wqe`.
    #[test]
    fn operands_stand_where_rxe_reads_them() {
        let at = RemotePlace { at: 0x1000, key: 7 };
        let cas = bytes(&Work::CompareSwap { at, compare: 4, swap: 5 });
        assert_eq!((word(&cas, 0), half(&cas, 12), half(&cas, 16)), (3, COMPARE_SWAP, SIGNALED));
        assert_eq!((word(&cas, 24), word(&cas, 32), word(&cas, 40), half(&cas, 48)), (0x1000, 4, 5, 7));
        assert_eq!(word(&cas, 152), 0x1000, "iova");
        let flush = bytes(&Work::Flush { at, len: 0x2000, persistent: true, whole: true });
        assert_eq!((half(&flush, 32), half(&flush, 36), flush[40], flush[41]), (0x2000, 7, 2, 1));
        assert_eq!((half(&flush, 184), half(&flush, 188)), (0x2000, 0x2000), "dma.length, dma.resid");
        let write = bytes(&Work::AtomicWrite { to: at, value: 9 });
        assert_eq!((word(&write, 24), half(&write, 32), word(&write, 208)), (0x1000, 7, 9));
        let bind = bytes(&Work::Bind { key: 1, new_key: 2, lkey: 3, at: 0x3000, len: 0x4000 });
        assert_eq!((word(&bind, 24), word(&bind, 32)), (0x3000, 0x4000));
        assert_eq!([half(&bind, 40), half(&bind, 44), half(&bind, 48), half(&bind, 52)], [3, 1, 2, WINDOW_ACCESS]);
        let local =
            element(0, &Work::Read { from: at, len: 16, bad_key: false }, Some(Buffer { at: 5, len: 16, lkey: 6 }));
        let read = local.unwrap().bytes().to_vec();
        assert_eq!((half(&read, 196), word(&read, 208), half(&read, 216), half(&read, 220)), (1, 5, 16, 6));
    }
}
