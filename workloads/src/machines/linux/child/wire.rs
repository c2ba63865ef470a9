//! The messages between the driver and its child processes.
//!
//! It owns their form; [`crate::messages`] transports them. Invariant: a process that survives a
//! [`ChildRequest`] sends exactly one [`ChildReply::Done`] for it, and before that one
//! [`ChildReply::Began`] if the request can block. Kernel counterpart: unix(7).

use std::path::PathBuf;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::super::soft_roce::wire::{VerbsAnswer, VerbsFailure, VerbsRequest};

pub(crate) use crate::messages::{pair, receive, receive_bytes, send, send_bytes};

/// What a process must do. Descriptors are numbers of that process, `-1` for a closed one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ChildRequest {
    /// To the zygote: make a process. Carries the process's control socket and inbox.
    Spawn,
    /// Fork. Carries the child's control socket and inbox.
    Fork,
    /// Exit without an answer.
    Exit,
    /// Send a signal.
    Kill { pid: i32, signal: i32 },
    /// Set a disposition.
    Signal { signal: i32, disposition: ChildDisposition },
    /// Change user and capabilities.
    Credentials { uid: u32, cap_lease: bool },
    /// `dup(2)`.
    Dup { fd: i32 },
    /// `dup2(2)`.
    Dup2 { from: i32, to: i32 },
    /// `close(2)`.
    Close { fd: i32 },
    /// `sendmsg(2)` with the descriptor. Carries the inbox to send to.
    Send { fd: i32 },
    /// `recvmsg(2)` on the process's own inbox.
    Receive,
    /// `openat(2)` with these flags.
    Open { path: String, flags: i32 },
    /// `memfd_create(2)`, and `ftruncate(2)` to this size.
    Memfd { size: i64 },
    /// `openat(2)` with O_TMPFILE in this folder, and `ftruncate(2)` to this size.
    Tmpfile { folder: String, size: i64 },
    /// `pread(2)`.
    Read { fd: i32, offset: i64, len: u64 },
    /// `pwrite(2)`.
    Write { fd: i32, offset: i64, len: u64, byte: u8 },
    /// `truncate(2)`.
    Truncate { path: String, size: i64 },
    /// `ftruncate(2)`.
    Ftruncate { fd: i32, size: i64 },
    /// `fallocate(2)`.
    Fallocate { fd: i32, mode: i32, offset: i64, len: i64 },
    /// `unlink(2)`.
    Unlink { path: String },
    /// `rename(2)`.
    Rename { from: String, to: String },
    /// `link(2)`.
    Link { path: String, name: String },
    /// `chmod(2)` to the present mode.
    Chmod { path: String },
    /// `utimensat(2)` to now.
    Utime { path: String },
    /// `stat(2)`.
    Stat { path: String },
    /// `fstat(2)`.
    Fstat { fd: i32 },
    /// `fcntl(2)` with a number as its argument.
    Fcntl { fd: i32, command: i32, argument: i32 },
    /// `fcntl(2)` with F_SETDELEG.
    SetDelegation { fd: i32, kind: u16 },
    /// `fcntl(2)` with F_GETDELEG.
    GetDelegation { fd: i32 },
    /// `execve(2)`. An answer means failure; success closes the control socket.
    Exec { path: String },
    /// `mmap(2)` with these flags, such as MAP_SHARED. Without a descriptor it maps anonymous
    /// memory.
    Map { fd: Option<i32>, offset: u64, len: u64, write: bool, sharing: i32 },
    /// `openat(2)`, `mmap(2)` of a part of a device-DAX device, and zeros all over it.
    MapDeviceDax { path: PathBuf, offset: u64, len: u64 },
    /// `fsync(2)`.
    Fsync { fd: i32 },
    /// `msync(2)` with MS_SYNC.
    Msync { at: u64, len: u64 },
    /// `munmap(2)`.
    Unmap { at: u64, len: u64 },
    /// Loads through a mapping.
    Load { at: u64, len: u64 },
    /// Stores through a mapping.
    Store { at: u64, len: u64, byte: u8 },
    /// `vmsplice(2)` into a new pipe, of which the process keeps the end that is read.
    Vmsplice { at: u64, len: u64 },
    /// `read(2)` until a pipe is empty.
    Drain { fd: i32 },
    /// `socket(2)` and `setsockopt(2)` with XDP_UMEM_REG.
    Umem { at: u64, len: u64 },
    /// `io_uring_setup(2)` and `io_uring_register(2)` with IORING_REGISTER_BUFFERS.
    FixedBuffers { at: u64, len: u64 },
    /// `io_uring_enter(2)` with IORING_OP_READ_FIXED of `from` at `offset`, to the address `at`.
    RingRead { ring: i32, from: i32, offset: u64, at: u64, len: u64 },
    /// An ioctl(2) on the blocks of two files: of so many bytes.
    Remap { kind: TwoFileCall, from: FilePart, to: FilePart, len: u64 },
    /// `io_submit(2)` between a mapping and a disk.
    SubmitIo(MappedIo),
    /// `io_getevents(2)` for the I/O that the process has submitted under this number.
    CompleteIo { number: u32 },
    /// A call of verbs.
    Verbs(VerbsRequest),
    /// Report the signals handled since the last report.
    Handled,
}

/// What is done to the blocks of two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TwoFileCall {
    /// FICLONERANGE.
    Clone,
    /// FIDEDUPERANGE.
    Dedupe,
    /// XFS_IOC_EXCHANGE_RANGE.
    Exchange,
}

/// Where a range of an open file begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FilePart {
    pub(crate) fd: i32,
    pub(crate) offset: u64,
}

/// I/O between a mapping and a disk.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MappedIo {
    /// By which the driver names it.
    pub(crate) number: u32,
    /// The path of the disk's device.
    pub(crate) disk: String,
    pub(crate) write: bool,
    pub(crate) offset: i64,
    pub(crate) at: u64,
    pub(crate) len: u64,
}

/// What a signal does to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ChildDisposition {
    Handler,
    Ignore,
    Default,
}

/// What a process answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ChildReply {
    /// The process starts the request, which may block. Lists the signals handled before it.
    Began { handled: Vec<i32> },
    /// The request is finished. Lists the signals handled before this answer.
    Done { result: Result<ChildValue, ChildFailure>, handled: Vec<i32> },
}

/// The result of a request.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ChildValue {
    /// Success without a value.
    Nothing,
    /// A descriptor, a size, a pid or an address.
    Number(i64),
    /// The bytes that were read, as scenarios write them.
    Bytes(String),
    /// Whether two ranges have the same bytes.
    Same(bool),
    /// What a call of verbs has made or completed.
    Verbs(VerbsAnswer),
}

/// Why a request failed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ChildFailure {
    /// The errno of the system call.
    Errno(i32),
    /// The access raises this signal.
    Signal(i32),
    /// This kernel, or the file system, has no delegations of files or of directories.
    NoDelegations,
    /// This kernel, or the process, lacks what the operation needs.
    Lacks(String),
    /// I/O to a suspended disk ended all the same.
    NotHeld,
    /// A call of verbs failed.
    Verbs(VerbsFailure),
}

impl From<Errno> for ChildFailure {
    fn from(errno: Errno) -> Self {
        ChildFailure::Errno(errno.raw_os_error())
    }
}
