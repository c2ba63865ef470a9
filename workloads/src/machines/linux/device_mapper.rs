//! Devices of the device mapper whose I/O is held back.
//!
//! It owns the calls on /dev/mapper/control. Invariant: a [`HeldDevice`] is suspended, so that what
//! is submitted to it stays in flight; dropping it lets that go on, and removes the device once
//! it is closed everywhere. Kernel counterpart: drivers/md/dm-ioctl.c,
//! include/uapi/linux/dm-ioctl.h.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use rustix::fs::minor;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};

const CONTROL: &str = "/dev/mapper/control";
const NAME_LEN: usize = 128;
/// What a call takes beyond the header: one target with its parameters.
const ROOM: usize = 128;

const DM_SUSPEND_FLAG: u32 = 1 << 1;
const DM_SKIP_LOCKFS_FLAG: u32 = 1 << 10;
const DM_NOFLUSH_FLAG: u32 = 1 << 11;
const DM_DEFERRED_REMOVE: u32 = 1 << 17;

/// The kernel's `struct dm_ioctl`.
#[repr(C)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event: u32,
    padding: u32,
    device: u64,
    name: [u8; NAME_LEN],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// The kernel's `struct dm_target_spec`, and its parameters.
#[repr(C)]
struct Target {
    start: u64,
    sectors: u64,
    status: i32,
    next: u32,
    kind: [u8; 16],
    parameters: [u8; ROOM],
}

#[repr(C)]
struct MapperMessage {
    header: Header,
    target: Target,
}

#[derive(Clone, Copy)]
enum MapperCommand {
    Create = 3,
    Remove = 4,
    Suspend = 6,
    LoadTable = 9,
}

impl MapperCommand {
    fn opcode(self) -> Opcode {
        opcode::read_write::<Header>(0xfd, self as u8)
    }
}

/// The device mapper of this kernel.
#[derive(Clone, Debug)]
pub(super) struct DeviceMapper(Rc<File>);

/// A suspended device; see the module.
#[derive(Debug)]
pub(super) struct HeldDevice {
    mapper: DeviceMapper,
    name: String,
    minor: u32,
}

impl DeviceMapper {
    /// # Errors
    /// The kernel has no device mapper, or this process may not use it.
    pub(super) fn open() -> std::io::Result<DeviceMapper> {
        Ok(DeviceMapper(Rc::new(File::options().read(true).write(true).open(CONTROL)?)))
    }

    /// Makes a device with the name `name` that stands for the first `sectors` of the device
    /// `below` (its two numbers), and suspends it.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn hold(&self, name: &str, below: (u32, u32), sectors: u64) -> Result<HeldDevice, Errno> {
        let created = self.call(MapperCommand::Create, name, 0, None)?;
        let device = HeldDevice { mapper: self.clone(), name: name.to_owned(), minor: minor(created) };
        self.call(MapperCommand::LoadTable, name, 0, Some((sectors, &format!("{}:{} 0", below.0, below.1))))?;
        // The table takes effect when the device, which starts suspended, is resumed.
        self.call(MapperCommand::Suspend, name, 0, None)?;
        self.call(MapperCommand::Suspend, name, DM_SUSPEND_FLAG | DM_NOFLUSH_FLAG | DM_SKIP_LOCKFS_FLAG, None)?;
        Ok(device)
    }

    /// Returns the number of the device that the call tells.
    fn call(&self, command: MapperCommand, name: &str, flags: u32, linear: Option<(u64, &str)>) -> Result<u64, Errno> {
        let (sectors, parameters) = linear.unwrap_or_default();
        let mut message = MapperMessage {
            header: Header {
                version: [4, 0, 0],
                data_size: size_of::<MapperMessage>() as u32,
                data_start: size_of::<Header>() as u32,
                target_count: u32::from(linear.is_some()),
                open_count: 0,
                flags,
                event: 0,
                padding: 0,
                device: 0,
                name: text(name)?,
                uuid: [0; 129],
                data: [0; 7],
            },
            target: Target {
                start: 0,
                sectors,
                status: 0,
                next: size_of::<Target>() as u32,
                kind: text("linear")?,
                parameters: text(parameters)?,
            },
        };
        // SAFETY: `message` has the kernel's layout and the size that its header tells, and lives
        // across the call; the number is converted to what the C library takes, the same 32 bits.
        let done = unsafe {
            libc::ioctl(self.0.as_raw_fd(), command.opcode() as libc::Ioctl, std::ptr::from_mut(&mut message))
        };
        match done {
            -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
            _ => Ok(message.header.device),
        }
    }
}

impl HeldDevice {
    /// Its path.
    pub(super) fn path(&self) -> String {
        format!("/dev/dm-{}", self.minor)
    }
}

impl Drop for HeldDevice {
    fn drop(&mut self) {
        // Both fail only for a device that is gone.
        let _ = self.mapper.call(MapperCommand::Suspend, &self.name, 0, None);
        let _ = self.mapper.call(MapperCommand::Remove, &self.name, DM_DEFERRED_REMOVE, None);
    }
}

/// A text that ends with a zero in a field of a fixed size.
fn text<const LEN: usize>(text: &str) -> Result<[u8; LEN], Errno> {
    let mut field = [0; LEN];
    match text.len() < LEN {
        true => field[..text.len()].copy_from_slice(text.as_bytes()),
        false => return Err(Errno::NAMETOOLONG),
    }
    Ok(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!((size_of::<Header>(), std::mem::offset_of!(MapperMessage, target)), (312, 312));
        assert_eq!(std::mem::offset_of!(Target, parameters), 40);
        assert_eq!(MapperCommand::Create.opcode(), 0xc138_fd03);
        assert_eq!(text::<4>("abcd"), Err(Errno::NAMETOOLONG));
    }
}
