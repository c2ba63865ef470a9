//! The virtio-pmem device as bytes: its request, its answer, its configuration space, its features.
//!
//! It owns the formats and decides nothing else; no memory, no queue. Invariant: every request that
//! fits has exactly one answer. Counterparts: `struct virtio_pmem_req`, `struct virtio_pmem_resp`
//! and `struct virtio_pmem_config` of <uapi/linux/virtio_pmem.h>; VirtIO 1.3 sections 5.19.4 to
//! 5.19.7.

/// Bytes of a request: le32 type.
pub const REQUEST_BYTES: usize = 4;
/// Bytes of an answer: le32 ret.
pub const RESPONSE_BYTES: usize = 4;
/// Bytes of the configuration space: le64 start, le64 size.
pub const CONFIG_BYTES: usize = 16;
/// `VIRTIO_PMEM_F_SHMEM_REGION`: the guest finds its memory in shared memory region
/// [`SHMEM_REGION`], and not by `start`.
pub const F_SHMEM_REGION: u64 = 1 << 0;
/// `VIRTIO_PMEM_SHMEM_REGION_ID`.
pub const SHMEM_REGION: u8 = 0;

/// `VIRTIO_PMEM_REQ_TYPE_FLUSH`.
const TYPE_FLUSH: u32 = 0;

/// What a guest asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmemRequest {
    /// Make durable whatever was stored before.
    Flush,
    /// A type that no version of the standard knows.
    Unknown(u32),
}

impl PmemRequest {
    /// The request that begins `bytes`; none if they are too few to say. More bytes than a request
    /// has are no error: a later version may append to it.
    pub fn parse(bytes: &[u8]) -> Option<PmemRequest> {
        let kind = u32::from_le_bytes(*bytes.first_chunk::<REQUEST_BYTES>()?);
        Some(if kind == TYPE_FLUSH { PmemRequest::Flush } else { PmemRequest::Unknown(kind) })
    }
}

/// What a guest is answered. Linux turns anything but 0 into EIO (`virtio_pmem_flush` in
/// drivers/nvdimm/nd_virtio.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmemAnswer {
    /// Everything is durable.
    Done,
    /// Nothing is known to be (`VIRTIO_PMEM_RESP_TYPE_EIO`).
    Failed,
}

impl PmemAnswer {
    /// What stands in the answer's `ret`.
    pub fn to_bytes(self) -> [u8; RESPONSE_BYTES] {
        let ret: u32 = match self {
            PmemAnswer::Done => 0,
            PmemAnswer::Failed => 1,
        };
        ret.to_le_bytes()
    }
}

/// The answer to `request` (none: it was too short to say what it is), where a flush for it would
/// end as `flushed` says.
///
/// QEMU's own device looks at no type and flushes for whatever it is sent (`virtio_pmem_flush` in
/// hw/virtio/virtio-pmem.c). Here an unknown one fails: the driver meant another request and must
/// not take 0 for success.
pub fn answer(request: Option<PmemRequest>, flushed: bool) -> PmemAnswer {
    match request {
        Some(PmemRequest::Flush) if flushed => PmemAnswer::Done,
        Some(PmemRequest::Flush | PmemRequest::Unknown(_)) | None => PmemAnswer::Failed,
    }
}

/// The configuration space, for guests that do not take [`F_SHMEM_REGION`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmemConfig {
    /// The guest-physical address of the device's first byte. 0 until the frontend sets it: a guest
    /// that reads that finds its own memory there and refuses the device.
    pub start: u64,
    /// Bytes of the device; never 0, which would make Linux compute a range that ends before it
    /// starts.
    pub size: u64,
}

impl PmemConfig {
    /// The space's bytes.
    pub fn to_bytes(self) -> [u8; CONFIG_BYTES] {
        let mut bytes = [0; CONFIG_BYTES];
        bytes[..8].copy_from_slice(&self.start.to_le_bytes());
        bytes[8..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    /// `len` bytes at `offset` of the space; none unless they lie within it.
    pub fn read(self, offset: u32, len: u32) -> Option<Vec<u8>> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(usize::try_from(len).ok()?)?;
        self.to_bytes().get(offset..end).map(<[u8]>::to_vec)
    }
}

/// The sizes of the shared memory regions of a device of `size` bytes: the guest's, and an unused
/// filler where needed, because QEMU makes one PCI BAR of all of them and a BAR's size is a power
/// of two.
pub fn shmem_regions(size: u64) -> Vec<u64> {
    let whole = size.checked_next_power_of_two().unwrap_or(size);
    if whole == size { vec![size] } else { vec![size, whole - size] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_what_they_are_answered() {
        // Bytes of the request, whether a flush would succeed, bytes of the answer.
        let table: &[(&[u8], bool, [u8; 4])] = &[
            (&[0, 0, 0, 0], true, [0, 0, 0, 0]),
            (&[0, 0, 0, 0], false, [1, 0, 0, 0]),
            (&[0, 0, 0, 0, 9, 9, 9, 9, 9], true, [0, 0, 0, 0]),
            (&[1, 0, 0, 0], true, [1, 0, 0, 0]),
            (&[0, 0, 0, 1], true, [1, 0, 0, 0]),
            (&[255, 255, 255, 255], true, [1, 0, 0, 0]),
            (&[0, 0, 0], true, [1, 0, 0, 0]),
            (&[], true, [1, 0, 0, 0]),
        ];
        for (request, flushed, expected) in table {
            assert_eq!(answer(PmemRequest::parse(request), *flushed).to_bytes(), *expected, "{request:?}");
        }
    }

    #[test]
    fn a_type_is_read_in_the_standards_byte_order() {
        assert_eq!(PmemRequest::parse(&[4, 3, 2, 1]), Some(PmemRequest::Unknown(0x0102_0304)));
    }

    #[test]
    fn configuration_space_is_two_little_endian_words() {
        let config = PmemConfig { start: 0x1_2345_6000, size: 0x20_0000 };
        let bytes = [0x00, 0x60, 0x45, 0x23, 1, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0];
        assert_eq!(config.to_bytes(), bytes);
        assert_eq!(config.read(0, 16).as_deref(), Some(&bytes[..]));
        assert_eq!(config.read(8, 8).as_deref(), Some(&bytes[8..]));
        for (offset, len) in [(0, 17), (16, 1), (9, 8), (u32::MAX, u32::MAX)] {
            assert_eq!(config.read(offset, len), None, "{len} bytes at {offset}");
        }
    }

    #[test]
    fn regions_sum_up_to_a_power_of_two() {
        for folios in 1..200_u64 {
            let size = folios << 21;
            let regions = shmem_regions(size);
            assert_eq!(regions[0], size);
            assert!(regions.iter().sum::<u64>().is_power_of_two());
            assert!(regions.iter().all(|bytes| *bytes > 0));
        }
    }
}
