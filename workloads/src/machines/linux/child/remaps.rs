//! The calls that share or exchange the blocks of two files.
//!
//! It owns the form of their arguments. Invariant: each is one ioctl(2), in which the driver sees
//! the process wait. Kernel counterpart: `struct file_clone_range` and `struct file_dedupe_range`
//! (include/uapi/linux/fs.h), `struct xfs_exchange_range` (fs/xfs/libxfs/xfs_fs.h), since 6.10.

use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};

use super::last_errno;
use super::wire::{ChildFailure, ChildValue, FilePart, TwoFileCall};

/// `FILE_DEDUPE_RANGE_SAME`; `FILE_DEDUPE_RANGE_DIFFERS` is 1, an errno is negative.
const SAME: i32 = 0;

/// The kernel's structure ends in an array of targets: its size does not count in the number of
/// the call.
#[repr(C)]
struct FileDedupeRange {
    from_offset: u64,
    len: u64,
    targets: u16,
    reserved: [u16; 3],
}

#[repr(C)]
struct FileDedupeTarget {
    to: i64,
    to_offset: u64,
    bytes_deduped: u64,
    status: i32,
    reserved: u32,
}

#[repr(C)]
struct DedupeOne {
    range: FileDedupeRange,
    target: FileDedupeTarget,
}

#[repr(C)]
struct XfsExchangeRange {
    file1: i32,
    padding: u32,
    file1_offset: u64,
    file2_offset: u64,
    len: u64,
    flags: u64,
}

const FIDEDUPERANGE: Opcode = opcode::read_write::<FileDedupeRange>(0x94, 54);
const XFS_IOC_EXCHANGE_RANGE: Opcode = opcode::write::<XfsExchangeRange>(b'X', 129);

/// Does to `len` bytes of two files what `kind` says.
pub(super) fn remap(kind: TwoFileCall, from: FilePart, to: FilePart, len: u64) -> Result<ChildValue, ChildFailure> {
    match kind {
        TwoFileCall::Clone => {
            let mut range = libc::file_clone_range {
                src_fd: from.fd.into(),
                src_offset: from.offset,
                src_length: len,
                dest_offset: to.offset,
            };
            ioctl(to.fd, libc::FICLONERANGE as Opcode, &mut range)?;
            Ok(ChildValue::Nothing)
        }
        TwoFileCall::Exchange => {
            let mut range = XfsExchangeRange {
                file1: from.fd,
                padding: 0,
                file1_offset: from.offset,
                file2_offset: to.offset,
                len,
                flags: 0,
            };
            ioctl(to.fd, XFS_IOC_EXCHANGE_RANGE, &mut range)?;
            Ok(ChildValue::Nothing)
        }
        TwoFileCall::Dedupe => {
            let mut one = DedupeOne {
                range: FileDedupeRange { from_offset: from.offset, len, targets: 1, reserved: [0; 3] },
                target: FileDedupeTarget {
                    to: to.fd.into(),
                    to_offset: to.offset,
                    bytes_deduped: 0,
                    status: 0,
                    reserved: 0,
                },
            };
            ioctl(from.fd, FIDEDUPERANGE, &mut one)?;
            match one.target.status {
                errno @ ..SAME => Err(ChildFailure::Errno(-errno)),
                status => Ok(ChildValue::Same(status == SAME)),
            }
        }
    }
}

fn ioctl<T>(fd: i32, which: Opcode, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: `argument` is the structure of `which` with the kernel's layout, and lives across the
    // call; `which` is converted to what the C library takes, the same 32 bits.
    match unsafe { libc::ioctl(fd, which as libc::Ioctl, std::ptr::from_mut(argument)) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_calls_are_the_kernels() {
        assert_eq!(FIDEDUPERANGE, 0xc018_9436);
        assert_eq!(XFS_IOC_EXCHANGE_RANGE, 0x4028_5881);
    }
}
