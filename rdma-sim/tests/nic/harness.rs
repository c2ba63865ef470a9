//! Two programs, each with a context, a domain, a completion queue and one end of a connected queue
//! pair.

use emulator::World;
use emulator::device::Device;
use emulator::sync::{Arc, thread};
use fs_sim::base::numbers::Fd;
use fs_sim::design::{Axes, RevokeScope, presets};
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::anon::AnonMemory;
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{BlockRange, Errno, Kernel, KernelConfig, Task};
use rdma_sim::transport::{InProcess, Transport};
use rdma_sim::{
    AccessFlags, Completion, Context, Cq, Mr, Nic, Pd, Qp, QpConfig, QpState, ReceiveRequest, Sge, WorkOpcode,
    WorkOperation, WorkRequest, WorkStatus,
};

pub(crate) const PAGE: u64 = 4096;

/// The axes of a preset.
pub(crate) fn axes(preset: &str) -> Axes {
    presets().iter().find(|found| found.name == preset).unwrap_or_else(|| panic!("no preset {preset}")).axes
}

/// The preset `revoke`, where a revocation takes the whole context.
pub(crate) fn whole_context() -> Axes {
    Axes { revoke_scope: Some(RevokeScope::Context), ..axes("revoke") }
}

/// A machine under the axes of a preset.
pub(crate) fn machine(preset: &str) -> Arc<Kernel> {
    machine_with(axes(preset))
}

/// A machine with a stopped clock and a device of 16 MiB.
pub(crate) fn machine_with(axes: Axes) -> Arc<Kernel> {
    let device = Device::memory(16 << 20).unwrap();
    Kernel::new(Arc::new(World::manual(1)), device, KernelConfig::new(axes)).unwrap()
}

/// A program: a task with an open context and one queue pair.
pub(crate) struct Side {
    pub(crate) task: Task,
    pub(crate) fd: Fd,
    pub(crate) ctx: Arc<Context>,
    pub(crate) pd: Arc<Pd>,
    pub(crate) cq: Arc<Cq>,
    pub(crate) qp: Arc<Qp>,
}

/// Registered anonymous memory.
pub(crate) struct Buffer {
    pub(crate) memory: Arc<AnonMemory>,
    pub(crate) mr: Arc<Mr>,
}

/// A registered mapping of a whole file.
pub(crate) struct FileMap {
    pub(crate) fd: Fd,
    pub(crate) va: u64,
    pub(crate) mr: Arc<Mr>,
}

/// Memory in which a work request can name an address.
pub(crate) trait At {
    fn mr(&self) -> &Arc<Mr>;

    /// `len` bytes from byte `at` of it, for a work request's local end.
    fn sge(&self, at: u64, len: u32) -> Sge {
        Sge { lkey: self.mr().lkey(), addr: self.mr().va() + at, len }
    }

    /// Address and key of its byte `at`, for a peer.
    fn remote(&self, at: u64) -> (u64, u32) {
        (self.mr().va() + at, self.mr().rkey())
    }
}

impl At for Buffer {
    fn mr(&self) -> &Arc<Mr> {
        &self.mr
    }
}

impl At for FileMap {
    fn mr(&self) -> &Arc<Mr> {
        &self.mr
    }
}

impl At for Arc<Mr> {
    fn mr(&self) -> &Arc<Mr> {
        self
    }
}

/// A program with an open context and a queue pair in RESET.
pub(crate) fn side(kernel: &Arc<Kernel>, depth: u32) -> Side {
    side_of(kernel.spawn(), depth)
}

pub(crate) fn side_of(task: Task, depth: u32) -> Side {
    task.process().set_disposition(Signal::Sigio, Disposition::Handler);
    let (fd, ctx) = Context::open(&task).unwrap();
    let pd = ctx.alloc_pd(&task).unwrap();
    let cq = ctx.create_cq(&task, depth).unwrap();
    let config = QpConfig { send_cq: Arc::clone(&cq), recv_cq: Arc::clone(&cq), max_send: 8, max_recv: 8 };
    let qp = ctx.create_qp(&task, &pd, config).unwrap();
    Side { task, fd, ctx, pd, cq, qp }
}

/// Two programs, connected.
pub(crate) fn pair(kernel: &Arc<Kernel>) -> (Side, Side) {
    let (a, b) = (side(kernel, 16), side(kernel, 16));
    Qp::connect(&a.qp, &b.qp).unwrap();
    (a, b)
}

/// Starts a dialogue under the axes of a preset: a machine and two programs, connected. End it with
/// [`end_dialogue`].
pub(crate) fn dialogue(preset: &str) -> (Arc<Kernel>, Side, Side) {
    dialogue_with(axes(preset))
}

/// Two programs under these axes; see [`pair`].
pub(crate) fn dialogue_with(axes: Axes) -> (Arc<Kernel>, Side, Side) {
    let kernel = machine_with(axes);
    let (a, b) = pair(&kernel);
    (kernel, a, b)
}

/// Ends both programs and checks that nothing is left: see [`expect_rest`].
#[track_caller]
pub(crate) fn end_dialogue(a: &Side, b: &Side) {
    expect_rest(a.task.kernel(), &[&a.task, &b.task]);
}

/// Connects two programs; what `a` sends goes over `transport`.
pub(crate) fn connect_through(a: &Side, b: &Side, transport: impl Transport) {
    for side in [a, b] {
        side.qp.initialise().unwrap();
    }
    a.qp.attach(&b.qp, Arc::new(transport)).unwrap();
    b.qp.attach(&a.qp, Arc::new(InProcess)).unwrap();
    for side in [a, b] {
        side.qp.start().unwrap();
    }
}

/// Returns once a task sleeps for `reason`.
pub(crate) fn until_asleep(kernel: &Kernel, reason: &str) {
    while !kernel.world().sleepers().iter().any(|sleeper| sleeper.reason == reason) {
        thread::yield_now();
    }
}

impl Side {
    pub(crate) fn anon(&self, len: u64, access: AccessFlags) -> Buffer {
        let (va, memory) = self.task.mmap_anonymous(len).unwrap();
        let mr = self.ctx.reg_mr(&self.task, &self.pd, va, len, access).unwrap();
        Buffer { memory, mr }
    }

    /// Makes a file of `len` allocated bytes under an exclusive lease (where the rules know one)
    /// and maps it. Returns descriptor and address.
    pub(crate) fn leased(&self, name: &str, len: u64) -> (Fd, u64) {
        let fd = self.task.open(name, OpenFlags::create()).unwrap();
        self.task.fallocate(fd, FallocateMode::Allocate { keep_size: false }, 0, len).unwrap();
        self.lease(fd).unwrap();
        (fd, self.task.mmap(fd, 0, len, true).unwrap())
    }

    /// Takes the lease that the design's gate asks for, if it asks for one.
    pub(crate) fn lease(&self, fd: Fd) -> Result<(), Errno> {
        match self.task.kernel().axes().get(fs_sim::design::Axis::LeaseRules) {
            "man-page" => self.task.lease(fd, LeaseKind::READ_U, BlockRange::ALL),
            "chinner" => self.task.lease(fd, LeaseKind::WRITE, BlockRange::ALL),
            _ => Ok(()),
        }
    }

    pub(crate) fn reg(&self, va: u64, len: u64, access: AccessFlags) -> Result<Arc<Mr>, Errno> {
        self.ctx.reg_mr(&self.task, &self.pd, va, len, access)
    }

    pub(crate) fn file(&self, name: &str, len: u64, access: AccessFlags) -> FileMap {
        let (fd, va) = self.leased(name, len);
        FileMap { fd, va, mr: self.reg(va, len, access).unwrap() }
    }

    /// Posts a signaled request.
    pub(crate) fn post(&self, wr_id: u64, op: WorkOperation, local: Sge, remote: (u64, u32)) {
        let (remote_addr, rkey) = remote;
        self.qp.post_send(WorkRequest { wr_id, op, local, remote_addr, rkey, signaled: true }).unwrap();
    }

    pub(crate) fn send(&self, wr_id: u64, local: Sge) {
        self.post(wr_id, WorkOperation::Send, local, (0, 0));
    }

    pub(crate) fn recv(&self, wr_id: u64, local: Sge) {
        self.qp.post_recv(ReceiveRequest { wr_id, local }).unwrap();
    }

    /// The next completion is of `wr_id` and says `status`.
    #[track_caller]
    pub(crate) fn expect(&self, wr_id: u64, status: WorkStatus) -> Completion {
        let found = self.cq.poll_one().unwrap_or_else(|| panic!("no completion, wanted {wr_id}: {status:?}"));
        assert_eq!((found.wr_id, found.status), (wr_id, status), "{found:?}");
        assert_eq!(found.qp_num, self.qp.number());
        found
    }

    /// The next completion is a success of this operation and so many bytes.
    #[track_caller]
    pub(crate) fn expect_done(&self, wr_id: u64, opcode: WorkOpcode, byte_len: u32) {
        let found = self.expect(wr_id, WorkStatus::Success);
        assert_eq!((found.opcode, found.byte_len), (opcode, byte_len));
    }

    #[track_caller]
    pub(crate) fn expect_nothing(&self) {
        assert_eq!(self.cq.poll(16), []);
    }

    #[track_caller]
    pub(crate) fn expect_state(&self, state: QpState) {
        assert_eq!(self.qp.state(), state);
    }
}

/// `len` bytes that depend on their position and on `salt`.
pub(crate) fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8).wrapping_add(salt)).collect()
}

impl Buffer {
    pub(crate) fn fill(&self, at: u64, bytes: &[u8]) {
        self.memory.write(at, bytes).unwrap();
    }

    pub(crate) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(at, &mut bytes).unwrap();
        bytes
    }
}

/// The bytes that `task` reads from an open file.
pub(crate) fn contents(task: &Task, fd: Fd, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    assert_eq!(task.read(fd, at, &mut bytes).unwrap(), len);
    bytes
}

/// Ends all programs and checks that nothing is left (no pin, lease, holder, region) and that no
/// DMA was stale.
#[track_caller]
pub(crate) fn expect_rest(kernel: &Arc<Kernel>, tasks: &[&Task]) {
    for task in tasks {
        task.exit();
    }
    assert_eq!(kernel.check_at_rest(), Vec::<String>::new());
    assert_eq!(Nic::of(kernel).live_regions(), 0);
    assert_eq!(kernel.counters.stale_dma.get(), 0);
}
