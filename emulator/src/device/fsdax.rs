//! The info block that makes an ACPI NVDIMM without labels an fsdax namespace.
//!
//! It owns the 4 KiB at byte 4096 of the namespace ([`OFFSET`]). A guest's `pmem` driver gives a
//! raw NVDIMM no `struct page`s, and a file system on it refuses dax, until this block says where
//! the pages' data begin: `ndctl create-namespace -m fsdax -M mem` writes it in the guest,
//! [`prepare`] writes the same from outside. Data, and so the guest's `/dev/pmem0`, begin at
//! [`DATA`]. (A virtio-pmem device needs none of this.) Invariants: a block that
//! [`InfoBlock::emit`] made passes every check of the guest's kernel; a device that holds anything
//! else in front of its data is never written to. Kernel counterpart: `struct nd_pfn_sb`
//! (drivers/nvdimm/pfn.h), `nd_pfn_validate` and `nd_pfn_init` (pfn_devs.c), `nd_sb_checksum`
//! (claim.c).
//!
//! | byte of the block | little-endian | holds |
//! |---|---|---|
//! | 0 | 16 bytes | `NVDIMM_PFN_INFO`, NUL |
//! | 16 | 16 bytes | the namespace's UUID |
//! | 32 | 16 bytes | its parent's: zero, there are no labels (`nd_dev_to_uuid`) |
//! | 48 | u32 | flags: 0 |
//! | 52, 54 | u16, u16 | version 1.4 |
//! | 56 | u64 | where the data begin, in bytes |
//! | 64 | u64 | 4 KiB pages of data |
//! | 72 | u32 | mode: 1, the `struct page`s live in RAM |
//! | 76, 80 | u32, u32 | bytes left out at the start and at the end: 0 |
//! | 84 | u32 | alignment of the mapping in bytes |
//! | 88 | u32 | page size in bytes |
//! | 92 | u16 | size of a `struct page` in bytes |
//! | 4088 | u64 | Fletcher-64 over the 32-bit words of the block, this field taken as 0 |

use std::ops::Range;

use crate::device::{AccessError, Device, FOLIO, PAGE};

/// Where in a namespace its info block lies, in bytes.
pub const OFFSET: u64 = 4096;
/// Bytes of an info block.
pub const BYTES: usize = 4096;
/// Where in a namespace the data begin, in bytes: the first multiple of the alignment behind the
/// block.
pub const DATA: u64 = FOLIO;

const SIGNATURE: &[u8; 16] = b"NVDIMM_PFN_INFO\0";
const VERSION: (u16, u16) = (1, 4);
const MODE_RAM: u32 = 1;
const MODE_PMEM: u32 = 2;
/// `MAX_STRUCT_PAGE_SIZE`, what the kernel writes.
const STRUCT_PAGE: u16 = 64;

mod field {
    use super::Range;

    pub(super) const SIGNATURE: Range<usize> = 0..16;
    pub(super) const UUID: Range<usize> = 16..32;
    pub(super) const PARENT: Range<usize> = 32..48;
    pub(super) const MAJOR: usize = 52;
    pub(super) const MINOR: usize = 54;
    pub(super) const DATA_OFFSET: usize = 56;
    pub(super) const PAGES: usize = 64;
    pub(super) const MODE: usize = 72;
    pub(super) const START_PAD: usize = 76;
    pub(super) const END_TRUNC: usize = 80;
    pub(super) const ALIGN: usize = 84;
    pub(super) const PAGE_SIZE: usize = 88;
    pub(super) const STRUCT_PAGE: usize = 92;
    pub(super) const CHECKSUM: usize = 4088;
}

/// What an info block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoBlock {
    /// The namespace's UUID.
    pub uuid: [u8; 16],
    /// Where its data begin, in bytes from its start.
    pub data_offset: u64,
    /// How many 4 KiB pages of data there are.
    pub pages: u64,
    /// What the mapping is aligned to, in bytes.
    pub align: u32,
}

/// Why bytes are no info block that a guest's kernel would take. "Absent" ones it ignores, and
/// offers a raw namespace; with the others it offers no device at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInfoBlock {
    /// It does not begin with the signature.
    #[error("no fsdax info block: it does not begin with NVDIMM_PFN_INFO")]
    Absent,
    /// The checksum does not fit.
    #[error("fsdax info block: checksum {found:#018x}, but its bytes have {computed:#018x}")]
    Checksum {
        /// What it says.
        found: u64,
        /// What it should say.
        computed: u64,
    },
    /// It was made for a namespace with labels.
    #[error("fsdax info block: it belongs to a namespace with labels, and a guest finds none here")]
    Parent,
    /// A field has a value that a guest's kernel refuses, or that does not fit the namespace's
    /// size.
    #[error("fsdax info block: {field} is {value}, which a namespace of {bytes} bytes can't have")]
    Field {
        /// Which one, by its name in `struct nd_pfn_sb`.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The namespace's size in bytes.
        bytes: u64,
    },
}

impl InfoBlock {
    /// What `ndctl` would write for a namespace of `bytes`.
    ///
    /// # Errors
    /// [`InvalidInfoBlock::Field`] for a size that is not a multiple of 2 MiB or leaves nothing for
    /// data (less than 4 MiB).
    pub fn new(bytes: u64, uuid: [u8; 16]) -> Result<InfoBlock, InvalidInfoBlock> {
        if !bytes.is_multiple_of(FOLIO) || bytes <= DATA {
            return Err(InvalidInfoBlock::Field { field: "dataoff", value: DATA, bytes });
        }
        Ok(InfoBlock { uuid, data_offset: DATA, pages: (bytes - DATA) / PAGE, align: FOLIO as u32 })
    }

    /// The block's bytes.
    pub fn emit(&self) -> [u8; BYTES] {
        let mut block = [0; BYTES];
        let mut put = |at: usize, value: &[u8]| block[at..at + value.len()].copy_from_slice(value);
        put(field::SIGNATURE.start, SIGNATURE);
        put(field::UUID.start, &self.uuid);
        put(field::MAJOR, &VERSION.0.to_le_bytes());
        put(field::MINOR, &VERSION.1.to_le_bytes());
        put(field::DATA_OFFSET, &self.data_offset.to_le_bytes());
        put(field::PAGES, &self.pages.to_le_bytes());
        put(field::MODE, &MODE_RAM.to_le_bytes());
        put(field::ALIGN, &self.align.to_le_bytes());
        put(field::PAGE_SIZE, &(PAGE as u32).to_le_bytes());
        put(field::STRUCT_PAGE, &STRUCT_PAGE.to_le_bytes());
        let sum = checksum(&block);
        block[field::CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
        block
    }

    /// What `block` says about a namespace of `bytes` without labels, if a guest's kernel would
    /// take it (`nd_pfn_validate`).
    ///
    /// # Errors
    /// The first check that fails, in the kernel's order.
    pub fn parse(block: &[u8; BYTES], bytes: u64) -> Result<InfoBlock, InvalidInfoBlock> {
        if block[field::SIGNATURE] != *SIGNATURE {
            return Err(InvalidInfoBlock::Absent);
        }
        let (found, computed) = (u64_at(block, field::CHECKSUM), checksum(block));
        if found != computed {
            return Err(InvalidInfoBlock::Checksum { found, computed });
        }
        if block[field::PARENT] != [0; 16] {
            return Err(InvalidInfoBlock::Parent);
        }
        let refused = |field, value| Err(InvalidInfoBlock::Field { field, value, bytes });
        // A field that came with a later version than the block's is taken as what it was before.
        let minor = u16_at(block, field::MINOR);
        let since = |version, at, before| if minor < version { before } else { u32_at(block, at) };
        let mode = u32_at(block, field::MODE);
        if ![MODE_RAM, MODE_PMEM].contains(&mode) {
            return refused("mode", u64::from(mode));
        }
        let data_offset = u64_at(block, field::DATA_OFFSET);
        let align = match since(2, field::ALIGN, 0) {
            0 => 1u64.checked_shl(data_offset.checked_ilog2().unwrap_or(0)).unwrap_or(0),
            align => u64::from(align),
        };
        let page_size = since(4, field::PAGE_SIZE, PAGE as u32);
        if u64::from(page_size) > PAGE && mode == MODE_PMEM {
            return refused("page_size", u64::from(page_size));
        }
        if !align.is_power_of_two() || align > bytes || u32::try_from(align).is_err() {
            return refused("align", align);
        }
        let (start_pad, end_trunc) = (since(1, field::START_PAD, 0), since(1, field::END_TRUNC, 0));
        let (pad, trunc) = (u64::from(start_pad), u64::from(end_trunc));
        if !pad.is_multiple_of(FOLIO) {
            return refused("start_pad", pad);
        }
        if !trunc.is_multiple_of(FOLIO) || pad + trunc >= bytes {
            return refused("end_trunc", trunc);
        }
        let begins = data_offset.checked_add(pad).filter(|begins| begins.is_multiple_of(align));
        let room = (bytes - pad - trunc).checked_sub(data_offset);
        let (Some(_), Some(room @ 1..)) = (begins, room) else { return refused("dataoff", data_offset) };
        if !data_offset.is_multiple_of(PAGE) || data_offset < OFFSET + BYTES as u64 {
            return refused("dataoff", data_offset);
        }
        // The kernel takes this number on trust when the pages live in RAM.
        let pages = u64_at(block, field::PAGES);
        if pages > room / PAGE {
            return refused("npfns", pages);
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&block[field::UUID]);
        Ok(InfoBlock { uuid, data_offset: data_offset + pad, pages, align: align as u32 })
    }
}

/// What [`prepare`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// A block that fits; it was left as it is.
    Found(InfoBlock),
    /// Zeros in front of the data; the block was written, and is durable.
    Written(InfoBlock),
}

/// Why a namespace was not prepared. It was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// There is a block, and it does not fit.
    #[error("{0}; an NVDIMM needs an image of its own: name one that does not exist yet")]
    InvalidInfoBlock(#[from] InvalidInfoBlock),
    /// Something else lies where the block goes: a file system of a device that was attached
    /// another way.
    #[error(
        "byte {at} is in use: the first 2 MiB of an NVDIMM hold its fsdax info block, and this image was made for a virtio-pmem device, whose data begin at 0; name an image that does not exist yet"
    )]
    InUse {
        /// The first byte that is not 0, from the start of the namespace.
        at: u64,
    },
    /// The device refused.
    #[error("fsdax info block: {0}")]
    Access(#[from] AccessError),
    /// The block is not durable.
    #[error("writing the fsdax info block: {0}")]
    Sync(#[from] std::io::Error),
}

/// Makes the `bytes` of `device` from `start` an fsdax namespace, if they are not yet.
///
/// # Errors
/// [`PrepareError`]; nothing was written then, except after [`PrepareError::Sync`].
pub fn prepare(device: &Device, start: u64, bytes: u64, uuid: [u8; 16]) -> Result<Prepared, PrepareError> {
    let fresh = InfoBlock::new(bytes, uuid)?;
    let place = start.checked_add(bytes).filter(|end| *end <= device.bytes());
    place.ok_or(AccessError::OutOfRange { offset: start, len: bytes, bytes: device.bytes() })?;
    let mut block = [0; BYTES];
    device.read(start + OFFSET, &mut block)?;
    match InfoBlock::parse(&block, bytes) {
        Ok(found) => return Ok(Prepared::Found(found)),
        Err(InvalidInfoBlock::Absent) => {}
        Err(error) => return Err(error.into()),
    }
    let mut piece = [0; BYTES];
    for at in (0..DATA).step_by(BYTES) {
        device.read(start + at, &mut piece)?;
        if let Some(used) = piece.iter().position(|byte| *byte != 0) {
            return Err(PrepareError::InUse { at: at + used as u64 });
        }
    }
    device.write(start + OFFSET, &fresh.emit())?;
    device.sync()?;
    Ok(Prepared::Written(fresh))
}

fn u16_at(block: &[u8; BYTES], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8; BYTES], at: usize) -> u32 {
    u32::from(u16_at(block, at)) | u32::from(u16_at(block, at + 2)) << 16
}

fn u64_at(block: &[u8; BYTES], at: usize) -> u64 {
    u64::from(u32_at(block, at)) | u64::from(u32_at(block, at + 4)) << 32
}

/// Fletcher-64 as libnvdimm has it (`nd_fletcher64`, drivers/nvdimm/core.c): sums modulo 2^32, not
/// 2^32 - 1. The checksum's own field counts as 0.
fn checksum(block: &[u8; BYTES]) -> u64 {
    let words = block[..field::CHECKSUM].as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    let (low, high) = words.chain([0, 0]).fold((0u32, 0u32), |(low, high), word| {
        let low = low.wrapping_add(word);
        (low, high.wrapping_add(low))
    });
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
