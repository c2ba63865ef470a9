//! Commands to the kernel about a context.
//!
//! It owns their form: one ioctl(2), whose attributes carry what a write(2) of the older interface
//! would (`UVERBS_METHOD_INVOKE_WRITE`). Unlike a write(2), it is let through for a process that
//! has inherited the context, as its credentials are not those that opened it. Kernel counterpart:
//! drivers/infiniband/core/uverbs_ioctl.c, uverbs_cmd.c.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::uapi::{Buffer, Uapi};

/// The commands, by the numbers of `enum ib_uverbs_write_cmds`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum UverbsCommand {
    AllocatePd = 3,
    Register = 9,
    Reregister = 11,
    Deregister = 13,
    AllocateWindow = 14,
    DeallocateWindow = 16,
    CreateChannel = 17,
    CreateCq = 18,
    NotifyCq = 23,
    CreateQp = 24,
    ModifyQp = 26,
    PostSend = 28,
    /// An extended one.
    QueryDevice = 0x8000_0000 | 1,
}

const RDMA_VERBS_IOCTL: libc::c_ulong = 0xc018_1b01;
const RDMA_DRIVER_RXE: u32 = 14;
const UVERBS_OBJECT_DEVICE: u16 = 0;
const UVERBS_OBJECT_MR: u16 = 7;
const UVERBS_METHOD_INVOKE_WRITE: u16 = 0;
const UVERBS_METHOD_GET_CONTEXT: u16 = 3;
const UVERBS_METHOD_ADVISE_MR: u16 = 2;
const UVERBS_ATTR_F_MANDATORY: u16 = 1;

const CORE_IN: u16 = 0;
const CORE_OUT: u16 = 1;
const WRITE_CMD: u16 = 2;
const DRIVER_OUT: u16 = (1 << 12) + 1;

/// `struct ib_uverbs_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Attribute {
    id: u16,
    len: u16,
    flags: u16,
    reserved: u16,
    data: u64,
}

/// `struct ib_uverbs_ioctl_hdr`, with room for the attributes.
#[repr(C)]
#[derive(Debug)]
struct VerbsMessage {
    length: u16,
    object: u16,
    method: u16,
    count: u16,
    reserved1: u64,
    driver: u32,
    reserved2: u32,
    attributes: [Attribute; ATTRIBUTES_MAX],
}

const ATTRIBUTES_MAX: usize = 4;
const HEADER: usize = 24;
const _: () = assert!(size_of::<VerbsMessage>() == HEADER + ATTRIBUTES_MAX * 16);

impl VerbsMessage {
    fn new(object: u16, method: u16) -> VerbsMessage {
        let none = Attribute { id: 0, len: 0, flags: 0, reserved: 0, data: 0 };
        VerbsMessage {
            length: HEADER as u16,
            object,
            method,
            count: 0,
            reserved1: 0,
            driver: RDMA_DRIVER_RXE,
            reserved2: 0,
            attributes: [none; ATTRIBUTES_MAX],
        }
    }

    fn add(&mut self, id: u16, len: usize, data: u64) {
        self.attributes[usize::from(self.count)] =
            Attribute { id, len: len as u16, flags: UVERBS_ATTR_F_MANDATORY, reserved: 0, data };
        self.count += 1;
        self.length += size_of::<Attribute>() as u16;
    }

    /// What the kernel reads: in the attribute itself if it fits there.
    fn input(&mut self, id: u16, bytes: &[u8]) {
        let mut inline = [0; 8];
        match bytes.len() {
            0 => {}
            len @ 1..=8 => {
                inline[..len].copy_from_slice(bytes);
                self.add(id, len, u64::from_ne_bytes(inline));
            }
            len => self.add(id, len, bytes.as_ptr() as u64),
        }
    }

    /// What the kernel writes.
    fn output(&mut self, id: u16, bytes: &mut [u8]) {
        if !bytes.is_empty() {
            self.add(id, bytes.len(), bytes.as_mut_ptr() as u64);
        }
    }

    /// # Safety
    /// Every address in the attributes is that of memory of its length, which lives across the call
    /// and, for an output, is not used meanwhile.
    unsafe fn send(&mut self, context: BorrowedFd<'_>) -> Result<(), Errno> {
        // SAFETY: the message lives across the call and has the length that it says; the caller
        // promises the rest.
        match unsafe { libc::ioctl(context.as_raw_fd(), RDMA_VERBS_IOCTL, std::ptr::from_mut(self)) } {
            -1 => Err(std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)),
            _ => Ok(()),
        }
    }
}

/// Makes an open device a context.
pub(super) fn start(device: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: there are no attributes.
    unsafe { VerbsMessage::new(UVERBS_OBJECT_DEVICE, UVERBS_METHOD_GET_CONTEXT).send(device) }
}

/// Makes a command; returns what the kernel and, in the second value, the driver answer.
pub(super) fn call<Answer: Uapi, Driver: Uapi>(
    context: BorrowedFd<'_>,
    command: UverbsCommand,
    request: &impl Uapi,
) -> Result<(Answer, Driver), Errno> {
    let (mut answer, mut driver) = (Answer::zeroed(), Driver::zeroed());
    let mut message = VerbsMessage::new(UVERBS_OBJECT_DEVICE, UVERBS_METHOD_INVOKE_WRITE);
    message.input(WRITE_CMD, &(command as u64).to_ne_bytes());
    message.input(CORE_IN, request.bytes());
    message.output(CORE_OUT, answer.bytes_mut());
    message.output(DRIVER_OUT, driver.bytes_mut());
    // SAFETY: all three live to the end of this function, and are used by nothing else before.
    unsafe { message.send(context)? };
    Ok((answer, driver))
}

/// Faults a part of an on-demand region in, and waits for it.
pub(super) fn advise(context: BorrowedFd<'_>, pd: u32, write: bool, part: Buffer) -> Result<(), Errno> {
    const PD: u16 = 0;
    const ADVICE: u16 = 1;
    const FLAGS: u16 = 2;
    const PARTS: u16 = 3;
    const PREFETCH: u64 = 0;
    const PREFETCH_WRITE: u64 = 1;
    const WAIT: u32 = 1;
    let mut message = VerbsMessage::new(UVERBS_OBJECT_MR, UVERBS_METHOD_ADVISE_MR);
    // An object's number stands in the attribute, whose length is 0.
    message.add(PD, 0, pd.into());
    message.input(ADVICE, &if write { PREFETCH_WRITE } else { PREFETCH }.to_ne_bytes());
    message.input(FLAGS, &WAIT.to_ne_bytes());
    message.input(PARTS, part.bytes());
    // SAFETY: `part` lives to the end of this function.
    unsafe { message.send(context) }
}
