//! The device as the frontend's messages see it.
//!
//! It owns what was negotiated and the table of the guest's memory; a message that is wrong, or
//! comes before what it builds on, is an error, and the connection ends with it (there is no other
//! way to tell a frontend that did not ask for an answer). Invariant: nothing is done for a message
//! before all of it was checked. Counterparts: QEMU's docs/interop/vhost-user.rst, libvhost-user;
//! on the frontend's side hw/virtio/vhost-user.c.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandler};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::mapping::PieceMapping;
use super::memory::{FileId, MemoryTable, REGIONS_MAX, RegionInfo};
use super::pmem::{self, PmemConfig};
use super::queue::{RequestQueue, RingAddresses, SetupError};
use super::stats::VhostCounters;
use super::wake::BackendWaits;
use crate::runtime::sync::{Arc, Mutex};

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// What a driver may take.
pub(super) fn features() -> u64 {
    let standard = 1 << VIRTIO_F_VERSION_1 | EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
    standard | pmem::F_SHMEM_REGION | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

/// What a frontend may take.
fn protocol_features(memory_slots: bool) -> VhostUserProtocolFeatures {
    let slots =
        if memory_slots { VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS } else { VhostUserProtocolFeatures::empty() };
    slots
        | VhostUserProtocolFeatures::SHMEM
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::BACKEND_SEND_FD
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::MQ
}

/// Without these nothing is mapped: without an acknowledgement the backend cannot know that a piece
/// is unmapped.
fn needed_to_map() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::SHMEM | VhostUserProtocolFeatures::BACKEND_REQ | VhostUserProtocolFeatures::REPLY_ACK
}

#[derive(Debug)]
struct Negotiated {
    owned: bool,
    /// None until a driver took the device.
    features: Option<u64>,
    protocol: u64,
    /// A driver took the device, and its queue was not started since.
    starting: bool,
    memory: MemoryTable,
    /// Where the guest has the device, once it is known. Kept over resets: some guests read it
    /// before the memory table comes again, and QEMU puts the device at the same address.
    start: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct PmemBackend {
    bytes: u64,
    /// Whether a frontend may add and remove regions of its memory one by one; see
    /// [`super::PIECES_IN_TABLE`].
    memory_slots: bool,
    queue: Arc<RequestQueue>,
    mapping: Arc<PieceMapping>,
    counters: Arc<VhostCounters>,
    waits: Arc<BackendWaits>,
    /// Only the thread that handles messages looks at it.
    negotiated: Mutex<Negotiated>,
}

fn refused(why: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::ReqHandlerError(io::Error::other(why))
}

fn check(right: bool, what: &'static str) -> Result<()> {
    if right { Ok(()) } else { Err(Error::InvalidOperation(what)) }
}

fn region_info(region: &VhostUserMemoryRegion) -> RegionInfo {
    RegionInfo {
        guest_address: region.guest_phys_addr,
        size: region.memory_size,
        frontend_address: region.user_addr,
        file_offset: region.mmap_offset,
    }
}

/// A message that the backend refuses without ending the connection. It refuses a piece of the
/// device that the frontend announces as a region of guest memory. QEMU 11.1 removes every region
/// that the backend accepted, also one that the guest's reset has unmapped before, and aborts then
/// (`send_remove_regions` in hw/virtio/vhost-user.c). The refusal costs nothing: a piece is not
/// used for rings and buffers.
///
/// Pieces announced before the queue starts are accepted: a stopped machine still has them when it
/// continues, and a refusal would keep it from starting.
///
/// The backend also refuses impossible queue sizes and addresses. The guest chooses them and QEMU
/// passes them on. The connection must not end because of them: the guest would still have the
/// pieces mapped while the medium takes them for free.
#[derive(Debug, thiserror::Error)]
enum DeclinedMessage {
    #[error("a piece of the device is no memory for rings and buffers")]
    PmemPiece,
    #[error(transparent)]
    Queue(SetupError),
}

/// Whether `error` refuses one message; the connection goes on.
pub(super) fn is_declined(error: &Error) -> bool {
    matches!(error, Error::ReqHandlerError(why) if why.get_ref().is_some_and(|why| why.is::<DeclinedMessage>()))
}

impl PmemBackend {
    pub(super) fn new(
        bytes: u64,
        memory_slots: bool,
        own: FileId,
        queue: Arc<RequestQueue>,
        mapping: Arc<PieceMapping>,
        counters: Arc<VhostCounters>,
        waits: Arc<BackendWaits>,
    ) -> PmemBackend {
        let negotiated = Negotiated {
            owned: false,
            features: None,
            protocol: 0,
            starting: false,
            memory: MemoryTable::new(own),
            start: 0,
        };
        PmemBackend { bytes, memory_slots, queue, mapping, counters, waits, negotiated: Mutex::new(negotiated) }
    }

    /// Whether the frontend is able to map pieces, and to tell that it did.
    pub(super) fn can_map(&self) -> bool {
        let needed = needed_to_map().bits();
        self.negotiated.lock().protocol & needed == needed
    }

    /// The only queue there is.
    fn queue(&self, index: u32) -> Result<&RequestQueue> {
        check(index == 0, "there is one queue, number 0")?;
        Ok(&self.queue)
    }

    fn decline(&self, why: SetupError) -> Error {
        self.counters.problem(format!("the guest has no request queue: {why}"));
        refused(DeclinedMessage::Queue(why))
    }

    fn set_memory(&self, memory: MemoryTable) {
        self.queue.set_memory(memory.ram());
        self.note_start(&memory);
        let old = std::mem::replace(&mut self.negotiated.lock().memory, memory);
        // Unmapping takes its time: not under the lock.
        drop(old);
    }

    /// Remembers where the guest has its device, if `memory` shows it.
    fn note_start(&self, memory: &MemoryTable) {
        if let Some(start) = memory.device_start(&self.mapping.mapped()) {
            self.negotiated.lock().start = start;
        }
    }

    fn memory(&self) -> MemoryTable {
        self.negotiated.lock().memory.clone()
    }
}

impl VhostUserBackendReqHandler for PmemBackend {
    fn set_owner(&self) -> Result<()> {
        let mut negotiated = self.negotiated.lock();
        check(!negotiated.owned, "SET_OWNER twice")?;
        negotiated.owned = true;
        Ok(())
    }

    fn reset_owner(&self) -> Result<()> {
        // The protocol withdrew this message, because its effect was never specified. libvhost-user
        // disables the rings.
        self.negotiated.lock().owned = false;
        self.queue.set_enabled(false);
        Ok(())
    }

    fn reset_device(&self) -> Result<()> {
        Err(Error::InvalidOperation("RESET_DEVICE was not offered"))
    }

    fn get_features(&self) -> Result<u64> {
        Ok(features())
    }

    fn set_features(&self, taken: u64) -> Result<()> {
        check(taken & !features() == 0, "SET_FEATURES takes features that were not offered")?;
        let again = {
            let mut negotiated = self.negotiated.lock();
            negotiated.starting = true;
            negotiated.features.replace(taken).is_some()
        };
        self.queue.set_event_idx(taken & EVENT_IDX != 0);
        // A frontend without SET_VRING_ENABLE has its rings enabled from the start.
        if taken & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            self.queue.set_enabled(true);
        }
        self.counters.resets.add(u64::from(again));
        self.mapping.attach();
        // The frontend waits for the answer to this message before it lets the driver continue.
        self.mapping.await_asked(&self.waits);
        Ok(())
    }

    fn set_mem_table(
        &self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let regions = regions.iter().map(region_info).zip(files).collect();
        let memory = self.memory().replaced(regions).map_err(refused)?;
        self.set_memory(memory);
        Ok(None)
    }

    fn set_vring_num(&self, index: u32, size: u32) -> Result<()> {
        self.queue(index)?.set_size(size).map_err(|why| self.decline(why))
    }

    fn set_vring_addr(
        &self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        table: u64,
        used: u64,
        avail: u64,
        _log: u64,
    ) -> Result<()> {
        let queue = self.queue(index)?;
        let memory = self.memory();
        let [table, avail, used] = [table, avail, used].map(|address| memory.guest_address(address));
        let rings = table.zip(avail).zip(used).map(|((table, avail), used)| RingAddresses { table, avail, used });
        queue.set_rings(rings).map_err(|why| self.decline(why))
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        self.queue(index)?.set_base(base).map_err(refused)
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        let next = self.queue(index)?.stop(&self.waits);
        Ok(VhostUserVringState::new(index, u32::from(next)))
    }

    fn set_vring_kick(&self, index: u8, kick: Option<File>) -> Result<()> {
        let queue = self.queue(u32::from(index))?;
        let kick =
            kick.ok_or(Error::InvalidOperation("SET_VRING_KICK without a descriptor: the queue is not polled"))?;
        queue.start(OwnedFd::from(kick));
        self.negotiated.lock().starting = false;
        Ok(())
    }

    fn set_vring_call(&self, index: u8, call: Option<File>) -> Result<()> {
        self.queue(u32::from(index))?.set_call(call.map(OwnedFd::from)).map_err(Error::ReqHandlerError)
    }

    fn set_vring_err(&self, index: u8, err: Option<File>) -> Result<()> {
        self.queue(u32::from(index))?.set_err(err.map(OwnedFd::from)).map_err(Error::ReqHandlerError)
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        Ok(protocol_features(self.memory_slots))
    }

    fn set_protocol_features(&self, taken: u64) -> Result<()> {
        check(
            taken & !protocol_features(self.memory_slots).bits() == 0,
            "SET_PROTOCOL_FEATURES takes features that were not offered",
        )?;
        self.negotiated.lock().protocol = taken;
        Ok(())
    }

    fn get_queue_num(&self) -> Result<u64> {
        Ok(1)
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        self.queue(index)?.set_enabled(enable);
        Ok(())
    }

    fn get_config(&self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let config = PmemConfig { start: self.negotiated.lock().start, size: self.bytes };
        config.read(offset, size).ok_or(Error::InvalidOperation("GET_CONFIG outside the configuration space"))
    }

    fn set_config(&self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        // A guest may write to it, and nothing changes (VirtIO 1.3 section 5.19.4: both fields are
        // the device's).
        Ok(())
    }

    fn set_gpu_socket(&self, _socket: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("GPU_SET_SOCKET: this is no display"))
    }

    fn get_shared_object(&self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("GET_SHARED_OBJECT was not offered"))
    }

    fn get_inflight_fd(&self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("GET_INFLIGHT_FD was not offered"))
    }

    fn set_inflight_fd(&self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("SET_INFLIGHT_FD was not offered"))
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let mut memory = self.memory();
        let own = memory.is_own(&file).map_err(refused)?;
        memory.add(region_info(region), file).map_err(refused)?;
        if own && !self.negotiated.lock().starting {
            self.note_start(&memory);
            return Err(refused(DeclinedMessage::PmemPiece));
        }
        self.set_memory(memory);
        Ok(None)
    }

    fn remove_mem_region(&self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let mut memory = self.memory();
        memory.remove(region.guest_phys_addr, region.memory_size).map_err(refused)?;
        self.set_memory(memory);
        Ok(())
    }

    fn set_device_state_fd(
        &self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("SET_DEVICE_STATE_FD was not offered"))
    }

    fn check_device_state(&self) -> Result<()> {
        Err(Error::InvalidOperation("CHECK_DEVICE_STATE was not offered"))
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        let regions = pmem::shmem_regions(self.bytes);
        Ok(VhostUserShMemConfig::new(regions.len() as u32, &regions))
    }

    fn set_log_base(&self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("SET_LOG_BASE was not offered"))
    }
}
