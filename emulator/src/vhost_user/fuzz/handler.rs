//! The vhost crate's own parser behind the relay, in the thread of the fuzzer.
//!
//! It owns a private socket, and what the daemon's handler would refuse. Invariant: a message that
//! the parser or the handler refuses is a panic. Counterpart: `VhostUserHandler` of the
//! vhost-user-backend crate, whose conditions [`StrictBackend`] repeats.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    FrontendReq, VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandler};

use super::super::daemon::{DaemonError, MessageHandler, check_reply, request_message};
use super::super::device::{features, protocol_features};
use super::super::queue::SIZE_MAX;
use super::super::table::FileId;
use super::super::wire::{MessageReader, WireMessage, WireRead, send};
use crate::runtime::sync::{Arc, Mutex};

/// See the module.
pub(super) struct ParsingHandler {
    handler: BackendReqHandler<StrictBackend>,
    socket: UnixStream,
}

impl ParsingHandler {
    /// For a device whose bytes lie in `own`.
    pub(super) fn new(own: FileId) -> std::io::Result<ParsingHandler> {
        let (socket, theirs) = UnixStream::pair()?;
        let backend = StrictBackend { own, state: Mutex::default() };
        let mut handler = ParsingHandler { handler: BackendReqHandler::from_stream(theirs, Arc::new(backend)), socket };
        let acknowledge = VhostUserProtocolFeatures::REPLY_ACK.bits().to_ne_bytes();
        for (request, body) in
            [(FrontendReq::GET_FEATURES, &[][..]), (FrontendReq::SET_PROTOCOL_FEATURES, &acknowledge[..])]
        {
            handler
                .ask(request, &request_message(request, body.to_vec(), Vec::new()))
                .map_err(std::io::Error::other)?;
        }
        Ok(handler)
    }
}

impl MessageHandler for ParsingHandler {
    fn ask(&mut self, request: FrontendReq, message: &WireMessage) -> std::result::Result<Vec<u8>, DaemonError> {
        let header = request_message(request, message.body.clone(), Vec::new()).header;
        let files: Vec<_> = message.files.iter().map(AsFd::as_fd).collect();
        send(self.socket.as_fd(), header, &message.body, &files, || Err(std::io::ErrorKind::WouldBlock.into()))?;
        if let Err(why) = self.handler.handle_request() {
            panic!("the daemon refuses {request:?} {:?}: {why}", message.body);
        }
        match MessageReader::default().read(self.socket.as_fd())? {
            WireRead::Message(reply) => check_reply(request, reply),
            other => panic!("no reply to {request:?}: {other:?}"),
        }
    }
}

#[derive(Default)]
struct BackendState {
    owned: bool,
    taken: u64,
    regions: Vec<VhostUserMemoryRegion>,
}

/// Refuses what the daemon's handler refuses, and what it would get wrong.
struct StrictBackend {
    own: FileId,
    state: Mutex<BackendState>,
}

fn check(right: bool) -> Result<()> {
    if right { Ok(()) } else { Err(Error::InvalidParam) }
}

impl VhostUserBackendReqHandler for StrictBackend {
    fn set_owner(&self) -> Result<()> {
        check(!std::mem::replace(&mut self.state.lock().owned, true))
    }

    fn reset_owner(&self) -> Result<()> {
        // The daemon would forget what was negotiated.
        Err(Error::InvalidParam)
    }

    fn reset_device(&self) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn get_features(&self) -> Result<u64> {
        Ok(features())
    }

    fn set_features(&self, taken: u64) -> Result<()> {
        self.state.lock().taken = taken;
        check(taken & !features() == 0)
    }

    fn set_mem_table(
        &self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        for (region, file) in regions.iter().zip(&files) {
            check(FileId::of(file).map_err(Error::ReqHandlerError)? != self.own)?;
            let len = file.metadata().map_err(Error::ReqHandlerError)?.len();
            check(region.mmap_offset.checked_add(region.memory_size).is_some_and(|end| end <= len))?;
            check(region.mmap_offset.is_multiple_of(4096))?;
        }
        self.state.lock().regions = regions.to_vec();
        Ok(None)
    }

    fn set_vring_num(&self, index: u32, size: u32) -> Result<()> {
        check(index == 0 && size.is_power_of_two() && size <= SIZE_MAX.into())
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
        let state = self.state.lock();
        let guest = |address: u64, bytes: u64| {
            state
                .regions
                .iter()
                .find_map(|region| {
                    let offset = address.checked_sub(region.user_addr)?;
                    (offset < region.memory_size).then_some((offset, region))
                })
                .and_then(|(offset, region)| {
                    (offset + bytes <= region.memory_size).then(|| region.guest_phys_addr + offset)
                })
        };
        let [Some(table), Some(avail), Some(used)] = [guest(table, 1), guest(avail, 1), guest(used, 4)] else {
            return Err(Error::InvalidParam);
        };
        check(index == 0 && table % 16 == 0 && avail % 2 == 0 && used % 4 == 0)
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        check(index == 0 && base <= u16::MAX.into())
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        check(index == 0)?;
        Ok(VhostUserVringState::new(0, 0))
    }

    fn set_vring_kick(&self, index: u8, kick: Option<File>) -> Result<()> {
        check(index == 0 && kick.is_some())
    }

    fn set_vring_call(&self, index: u8, _call: Option<File>) -> Result<()> {
        check(index == 0)
    }

    fn set_vring_err(&self, index: u8, _err: Option<File>) -> Result<()> {
        check(index == 0)
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        Ok(protocol_features())
    }

    fn set_protocol_features(&self, taken: u64) -> Result<()> {
        check(taken & !protocol_features().bits() == 0)
    }

    fn get_queue_num(&self) -> Result<u64> {
        Ok(1)
    }

    fn set_vring_enable(&self, index: u32, _enable: bool) -> Result<()> {
        check(index == 0 && self.state.lock().taken & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0)
    }

    fn get_config(&self, _offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Ok(vec![0; size as usize])
    }

    fn set_config(&self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Ok(())
    }

    fn set_gpu_socket(&self, _socket: GpuBackend) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn get_shared_object(&self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidParam)
    }

    fn get_inflight_fd(&self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidParam)
    }

    fn set_inflight_fd(&self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        Err(Error::InvalidParam)
    }

    fn add_mem_region(
        &self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        Err(Error::InvalidParam)
    }

    fn remove_mem_region(&self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn set_device_state_fd(
        &self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidParam)
    }

    fn check_device_state(&self) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        Ok(VhostUserShMemConfig::new(1, &[1 << 21]))
    }

    fn set_log_base(&self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidParam)
    }
}
