//! A guest and its frontend, without a machine: memory, a driver's half of the request queue, the
//! messages QEMU sends.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use emulator::sync::{Arc, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserMMap, VhostUserProtocolFeatures, VhostUserShMemConfig};
use vhost::vhost_user::{Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

pub const RAM: u64 = 1 << 20;
pub const TABLE: u64 = 0x1000;
pub const AVAIL: u64 = 0x4000;
pub const USED: u64 = 0x6000;
/// Where the frontend pretends to have the guest's memory mapped.
pub const FRONTEND: u64 = 0x7f00_0000_0000;
/// Where the guest has its device.
pub const DEVICE: u64 = 0x1_0000_0000;
pub const SIZE: u16 = 16;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const PROTOCOL: u64 = 1 << 30;
pub const SHMEM_REGION: u64 = 1;
pub const ALL: u64 = VERSION_1 | EVENT_IDX | INDIRECT_DESC | PROTOCOL | SHMEM_REGION;

pub fn memfd(bytes: u64) -> File {
    let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, bytes).unwrap();
    fd.into()
}

/// Waits until `fd` is readable; a test that waits a minute has failed.
pub fn await_readable(fd: impl AsFd, what: &str) {
    assert!(readable_within(fd, 60), "nothing came: {what}");
}

pub fn readable_within(fd: impl AsFd, seconds: i64) -> bool {
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap() > 0
}

pub fn borrow(fd: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: it is open as long as what has it.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// What the frontend was asked on the backend channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Offset in the device, offset in the file, length.
    Map(u64, u64, u64),
    Unmap(u64, u64, u64),
}

/// How it answers: the error, if any.
pub type Policy = Box<dyn FnMut(Asked) -> Result<(), i32> + Send>;

struct Answering {
    policy: Mutex<Policy>,
    file: Arc<Mutex<Option<File>>>,
    asked: Mutex<Sender<Asked>>,
}

impl Answering {
    fn handle(&self, asked: Asked) -> HandlerResult<u64> {
        let answer = (self.policy.lock())(asked);
        let _nobody_listens = self.asked.lock().send(asked);
        answer.map(|()| 0).map_err(std::io::Error::from_raw_os_error)
    }
}

impl VhostUserFrontendReqHandler for Answering {
    fn shmem_map(&self, req: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        assert!(fd.as_raw_fd() >= 0);
        assert_eq!(req.shmid, 0);
        let file = duplicate(fd.as_raw_fd());
        let mode = rustix::fs::fcntl_getfl(&file).unwrap() & rustix::fs::OFlags::RWMODE;
        assert_eq!({ req.flags } == 1, mode == rustix::fs::OFlags::RDWR, "it is told what it can do");
        *self.file.lock() = Some(file.into());
        self.handle(Asked::Map(req.shm_offset, req.fd_offset, req.len))
    }

    fn shmem_unmap(&self, req: &VhostUserMMap) -> HandlerResult<u64> {
        self.handle(Asked::Unmap(req.shm_offset, req.fd_offset, req.len))
    }
}

/// A frontend with its guest.
pub struct Guest {
    pub frontend: Frontend,
    pub memory: GuestMemoryMmap,
    pub ram: File,
    pub kick: EventFd,
    pub call: EventFd,
    pub asked: Receiver<Asked>,
    /// The file of the last piece that was to be mapped.
    pub file: Arc<Mutex<Option<File>>>,
    answering: Option<(JoinHandle<()>, OwnedFd)>,
    socket: UnixStream,
    /// Requests made available so far.
    pub avail: u16,
    /// Answers seen so far.
    pub used: u16,
    pub features: u64,
}

fn duplicate(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller's descriptor is open while this runs.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    fd.try_clone_to_owned().unwrap()
}

impl Guest {
    /// Connects, and no more.
    pub fn connect(path: &Path) -> Guest {
        Guest::over(UnixStream::connect(path).unwrap())
    }

    pub fn over(socket: UnixStream) -> Guest {
        let ram = memfd(RAM);
        let range = (GuestAddress(0), RAM as usize, Some(FileOffset::new(ram.try_clone().unwrap(), 0)));
        let frontend = Frontend::from_stream(socket.try_clone().unwrap(), 1);
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        Guest {
            frontend,
            memory: GuestMemoryMmap::from_ranges_with_files([range]).unwrap(),
            ram,
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(0).unwrap(),
            asked: channel().1,
            file: Arc::default(),
            answering: None,
            socket,
            avail: 0,
            used: 0,
            features: ALL,
        }
    }

    /// What QEMU 11.1 sends when the device is realised. Its requests on the channel are answered
    /// as `policy` says.
    pub fn realise(&mut self, policy: Policy) -> VhostUserShMemConfig {
        self.negotiate(VhostUserProtocolFeatures::all());
        self.give_channel(policy);
        self.frontend.get_shmem_config().unwrap()
    }

    /// Takes all protocol features that are offered and in `wanted`.
    pub fn negotiate(&mut self, wanted: VhostUserProtocolFeatures) {
        assert_eq!(self.frontend.get_features().unwrap(), ALL);
        let offered = self.frontend.get_protocol_features().unwrap();
        self.frontend.set_protocol_features(offered & wanted).unwrap();
        self.frontend.set_owner().unwrap();
    }

    pub fn give_channel(&mut self, policy: Policy) {
        let (sender, asked) = channel();
        self.asked = asked;
        let answering =
            Arc::new(Answering { policy: Mutex::new(policy), file: Arc::clone(&self.file), asked: Mutex::new(sender) });
        let mut handler = FrontendReqHandler::new(answering).unwrap();
        handler.set_reply_ack_flag(true);
        // SAFETY: the handler owns it, and outlives the call.
        let theirs = unsafe { std::os::fd::BorrowedFd::borrow_raw(handler.get_tx_raw_fd()) };
        self.frontend.set_backend_request_fd(&theirs).unwrap();
        let ours = duplicate(handler.as_raw_fd());
        let thread = std::thread::spawn(move || {
            loop {
                // A refusal is an error here too; the end of the channel is another one.
                match handler.handle_request() {
                    Ok(_) | Err(vhost::vhost_user::Error::ReqHandlerError(_)) => {}
                    Err(_) => return,
                }
            }
        });
        self.answering = Some((thread, ours));
    }

    /// What QEMU sends when a driver took the device, up to the queue's start.
    pub fn start(&mut self) {
        self.frontend.set_features(self.features).unwrap();
        self.frontend.set_mem_table(&[self.ram_region()]).unwrap();
        self.start_queue();
    }

    /// As [`Guest::start`] of a machine that was stopped and not reset: it still has the first
    /// `bytes` of its device, and tells them among its memory.
    pub fn go_on(&mut self, bytes: u64) {
        self.frontend.set_features(self.features).unwrap();
        let file = self.file.lock().as_ref().unwrap().try_clone().unwrap();
        let device = region(DEVICE, bytes, FRONTEND + DEVICE, 0, &file);
        self.frontend.set_mem_table(&[self.ram_region(), device]).unwrap();
        self.start_queue();
    }

    pub fn start_queue(&mut self) {
        self.start_queue_at(self.avail);
    }

    pub fn start_queue_at(&mut self, base: u16) {
        self.frontend.set_vring_num(0, SIZE).unwrap();
        self.frontend.set_vring_base(0, base).unwrap();
        self.frontend.set_vring_addr(0, &rings()).unwrap();
        self.frontend.set_vring_kick(0, &self.kick).unwrap();
        self.frontend.set_vring_call(0, &self.call).unwrap();
        self.frontend.set_vring_enable(0, true).unwrap();
    }

    pub fn ram_region(&self) -> VhostUserMemoryRegionInfo {
        region(0, RAM, FRONTEND, 0, &self.ram)
    }

    /// The driver resets the device: its rings are empty again, and QEMU stopped them.
    pub fn reset(&mut self) {
        self.frontend.get_vring_base(0).unwrap();
        for address in (TABLE..TABLE + 0x8000).step_by(8) {
            self.memory.write_obj(0_u64, GuestAddress(address)).unwrap();
        }
        (self.avail, self.used) = (0, 0);
    }

    /// Hangs up, as a killed QEMU does.
    pub fn hang_up(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        self.close_channel();
    }

    pub fn close_channel(&mut self) {
        if let Some((thread, socket)) = self.answering.take() {
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
            let _ = thread.join();
        }
    }

    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    // The driver's half of the queue.

    pub fn descriptor(&self, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_in(TABLE, at, addr, len, flags, next);
    }

    pub fn descriptor_in(&self, table: u64, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = table + u64::from(at) * 16;
        self.memory.write_obj(addr, GuestAddress(at)).unwrap();
        self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes the chain that begins at `head` available, without a kick.
    pub fn offer(&mut self, head: u16) {
        let slot = AVAIL + 4 + u64::from(self.avail % SIZE) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.memory.store(self.avail, GuestAddress(AVAIL + 2), Ordering::Release).unwrap();
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Offers an ordinary request of type `kind` in descriptors 2`slot` and 2`slot` + 1.
    pub fn request(&mut self, slot: u16, kind: u32) {
        let (request, response) = (buffer(slot), buffer(slot) + 8);
        self.memory.write_obj(kind, GuestAddress(request)).unwrap();
        self.memory.write_obj(0xdead_beef_u32, GuestAddress(response)).unwrap();
        self.descriptor(2 * slot, request, 4, NEXT, 2 * slot + 1);
        self.descriptor(2 * slot + 1, response, 4, WRITE, 0);
        self.offer(2 * slot);
    }

    pub fn ret(&self, slot: u16) -> u32 {
        self.memory.read_obj(GuestAddress(buffer(slot) + 8)).unwrap()
    }

    pub fn used_index(&self) -> u16 {
        self.memory.load(GuestAddress(USED + 2), Ordering::Acquire).unwrap()
    }

    /// The next answer: head and length. Waits for it.
    pub fn answer(&mut self) -> (u32, u32) {
        while self.used_index() == self.used {
            await_readable(borrow(&self.call), "an answer");
            // A frontend's descriptor is non-blocking once the backend has it.
            let _ = self.call.read();
        }
        let slot = USED + 4 + u64::from(self.used % SIZE) * 8;
        self.used = self.used.wrapping_add(1);
        // With event-idx, the driver says from which answer on it wants to be told.
        self.memory.store(self.used, GuestAddress(AVAIL + 4 + u64::from(SIZE) * 2), Ordering::Release).unwrap();
        std::sync::atomic::fence(Ordering::SeqCst);
        let head = self.memory.read_obj(GuestAddress(slot)).unwrap();
        (head, self.memory.read_obj(GuestAddress(slot + 4)).unwrap())
    }

    /// A FLUSH and its answer.
    pub fn flush(&mut self) -> u32 {
        self.request(0, 0);
        self.kick();
        assert_eq!(self.answer(), (0, 4));
        self.ret(0)
    }

    /// The next thing that was asked on the channel.
    pub fn was_asked(&self) -> Asked {
        self.asked.recv_timeout(std::time::Duration::from_secs(60)).unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where an ordinary request of `slot` has its bytes.
pub fn buffer(slot: u16) -> u64 {
    0x10000 + u64::from(slot) * 64
}

pub fn rings() -> VringConfigData {
    VringConfigData {
        queue_max_size: 1024,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: FRONTEND + TABLE,
        used_ring_addr: FRONTEND + USED,
        avail_ring_addr: FRONTEND + AVAIL,
        log_addr: None,
    }
}

pub fn region(guest: u64, size: u64, frontend: u64, offset: u64, file: &File) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: guest,
        memory_size: size,
        userspace_addr: frontend,
        mmap_offset: offset,
        mmap_handle: file.as_raw_fd(),
    }
}

/// Answers that everything was done.
pub fn willing() -> Policy {
    Box::new(|_| Ok(()))
}

/// For descriptors that a test hands over raw.
pub fn into_file(fd: OwnedFd) -> File {
    // SAFETY: it was owned, and is given away once.
    unsafe { File::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(fd)) }
}
