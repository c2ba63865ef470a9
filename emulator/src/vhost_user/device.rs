//! The device as the vhost-user-backend crate runs it: features, configuration space, requests.
//!
//! It owns the request queue of one connection. Invariants: no call of the crate's waits for the
//! frontend; a panic behind a request ends the connection and no thread of the crate. Counterparts:
//! `VhostUserBackend` of the crate; QEMU's hw/virtio/virtio-pmem.c.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;

use super::mapping::PieceMapping;
use super::pmem::{self, PmemConfig};
use super::queue::{BufferChain, RequestQueue, SIZE_MAX};
use super::vring::{PmemVring, SharedMemory};
use super::wake::BackendWaits;
use super::{FlushError, Medium};
use crate::runtime::sync::atomic::{AtomicU64, Ordering};
use crate::runtime::sync::{Arc, Mutex};

/// The event by which the queue's thread is told to end. The crate has numbers 0 (the queue) and 1
/// (its own) for itself.
pub(super) const END_EVENT: u16 = 2;

/// What a driver may take.
pub(super) fn features() -> u64 {
    let standard = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
    standard | pmem::F_SHMEM_REGION | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

/// What a frontend may take. `CONFIGURE_MEM_SLOTS` is not among it: with it, QEMU 11.1 dies at a
/// guest's reset, because it removes regions that the reset has already unmapped
/// (`send_remove_regions` in hw/virtio/vhost-user.c).
pub(super) fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::SHMEM
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::BACKEND_SEND_FD
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::MQ
}

/// See the module.
pub(super) struct PmemDevice {
    bytes: u64,
    /// Where the guest has the device, once it is known. Kept over resets: some guests read it
    /// before the memory table comes again, and QEMU puts the device at the same address.
    start: AtomicU64,
    medium: Arc<dyn Medium>,
    mapping: Arc<PieceMapping>,
    queue: RequestQueue,
    waits: Arc<BackendWaits>,
    /// Scratch of the queue's thread.
    batch: Mutex<Vec<BufferChain>>,
    /// Called once if answering requests panicked.
    panicked: Box<dyn Fn() + Send + Sync>,
}

impl PmemDevice {
    /// A device of `bytes`, of which `mapping` knows what the guest can reach.
    pub(super) fn new(
        bytes: u64,
        medium: Arc<dyn Medium>,
        mapping: Arc<PieceMapping>,
        queue: RequestQueue,
        waits: Arc<BackendWaits>,
        panicked: Box<dyn Fn() + Send + Sync>,
    ) -> PmemDevice {
        let (start, batch) = (AtomicU64::new(0), Mutex::default());
        PmemDevice { bytes, start, medium, mapping, queue, waits, batch, panicked }
    }

    /// The guest has the device at this address.
    pub(super) fn set_start(&self, start: u64) {
        // ORDERING: relaxed; the thread that reads it is sent a message afterwards.
        self.start.store(start, Ordering::Relaxed);
    }

    /// The connection ended: nothing more is answered.
    pub(super) fn end(&self) {
        self.queue.end();
    }

    /// A flush for a guest that has its device.
    fn flush(&self) -> Result<(), FlushError> {
        self.mapping.admit_flush()?;
        self.medium.flush()
    }

    fn answer(&self, vring: &PmemVring) {
        // Only the queue's thread takes it.
        let mut batch = std::mem::take(&mut *self.batch.lock());
        self.queue.drain(vring, &|| self.flush(), &mut batch);
        *self.batch.lock() = batch;
    }
}

impl VhostUserBackend for PmemDevice {
    type Bitmap = ();
    type Vring = PmemVring;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        SIZE_MAX.into()
    }

    fn features(&self) -> u64 {
        features()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        protocol_features()
    }

    /// The crate has told the queue.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // ORDERING: relaxed: see where it is written.
        let config = PmemConfig { start: self.start.load(Ordering::Relaxed), size: self.bytes };
        // Too few bytes are an error to the crate.
        config.read(offset, size).unwrap_or_default()
    }

    fn set_config(&self, _offset: u32, _bytes: &[u8]) -> io::Result<()> {
        // A guest may write to it, and nothing changes (VirtIO 1.3 section 5.19.4: both fields are
        // the device's).
        Ok(())
    }

    /// The queue has the same object.
    fn update_memory(&self, _memory: SharedMemory) -> io::Result<()> {
        Ok(())
    }

    /// The crate has stopped the queue.
    fn stop_vring(&self, _index: u32) -> io::Result<()> {
        self.queue.stop(&self.waits);
        Ok(())
    }

    fn handle_event(&self, event: u16, _set: EventSet, vrings: &[PmemVring], _thread: usize) -> io::Result<()> {
        if event == END_EVENT {
            return Err(io::Error::other("the connection ended"));
        }
        for vring in vrings {
            if catch_unwind(AssertUnwindSafe(|| self.answer(vring))).is_err() {
                self.queue.abandon();
                (self.panicked)();
            }
        }
        Ok(())
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        let regions = pmem::shmem_regions(self.bytes);
        Ok(VhostUserShMemConfig::new(regions.len() as u32, &regions))
    }
}
