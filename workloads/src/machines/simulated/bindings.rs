//! What names stand for, and words for the machine's own values.
//!
//! It owns nothing but the translation.

use emulator::sync::atomic::AtomicU32;
use emulator::sync::{Arc, Mutex};
use fs_sim::base::numbers::Fd;
use fs_sim::holders::block_layout::BlockLayout;
use fs_sim::pinning::af_xdp::XdpSocket;
use fs_sim::pinning::fixed_buffers::Ring;
use fs_sim::pinning::guest_export::GuestExport;
use fs_sim::syscalls::direct_io::InFlightIo;
use fs_sim::syscalls::exec::Program;
use fs_sim::syscalls::ram_disk::RamDisk;
use fs_sim::syscalls::vmsplice::PipePages;
use fs_sim::syscalls::zero_copy::SentPages;
use fs_sim::vfs::open_file::OpenObject;
use fs_sim::vfs::signals::Signal;
use fs_sim::{BlockRange, Task};
use rdma_sim::{Context, Cq, Mr, Mw, Pd, Qp};

use super::posted::WorkTable;
use crate::ops::{BindingKind, ByteRange};

/// What a name stands for. A descriptor's number means something in every process that has it.
#[derive(Clone)]
pub(super) enum Thing {
    Fd(Fd),
    Context(OpenContext),
    Map {
        va: u64,
        len: u64,
    },
    Region(Arc<Mr>),
    Window(Window),
    Qp(QpEnd),
    /// A posted request: its context has it.
    Work,
    Io(Arc<Io>),
    Program(Arc<Mutex<Option<Program>>>),
    Pipe(Arc<Mutex<Option<PipePages>>>),
    Sent(Arc<Mutex<Option<SentPages>>>),
    Disk(Fd, Arc<RamDisk>),
    Umem(Fd, Arc<XdpSocket>),
    Ring(Fd, Arc<Ring>),
    BlockLayout(Fd, Arc<BlockLayout>),
    Guest(Fd, Arc<GuestExport>),
}

/// A memory window.
#[derive(Clone)]
pub(super) struct Window {
    pub(super) mw: Arc<Mw>,
    pub(super) context: Arc<Context>,
    /// The key that the consumer gave it last.
    pub(super) key: Arc<AtomicU32>,
}

/// Direct I/O in flight, until it is completed.
pub(super) struct Io {
    pub(super) request: Mutex<Option<InFlightIo>>,
    /// How many bytes a read asked for; none for a write.
    pub(super) reads: Option<usize>,
}

/// An RDMA context with the domain and the queue that everything of a scenario uses, and the
/// requests posted on it.
#[derive(Clone)]
pub(super) struct OpenContext {
    pub(super) fd: Fd,
    pub(super) context: Arc<Context>,
    pub(super) pd: Arc<Pd>,
    pub(super) cq: Arc<Cq>,
    pub(super) work: Arc<WorkTable>,
}

/// One end of a connection.
#[derive(Clone)]
pub(super) struct QpEnd {
    pub(super) own: OpenContext,
    pub(super) qp: Arc<Qp>,
    /// The context and the queue pair of the other end.
    pub(super) peer: OpenContext,
    pub(super) peer_qp: Arc<Qp>,
}

impl Thing {
    /// The descriptor, if it is one.
    pub(super) fn fd(&self) -> Option<Fd> {
        match self {
            Thing::Fd(fd) => Some(*fd),
            Thing::Context(context) => Some(context.fd),
            Thing::Umem(fd, _)
            | Thing::Ring(fd, _)
            | Thing::BlockLayout(fd, _)
            | Thing::Guest(fd, _)
            | Thing::Disk(fd, _) => Some(*fd),
            _ => None,
        }
    }

    /// What it is.
    pub(super) fn kind(&self) -> BindingKind {
        match self {
            Thing::Fd(_) => BindingKind::Fd,
            Thing::Context(_) => BindingKind::Context,
            Thing::Map { .. } => BindingKind::Map,
            Thing::Region(_) => BindingKind::Region,
            Thing::Window(_) => BindingKind::Window,
            Thing::Qp(_) => BindingKind::Qp,
            Thing::Work => BindingKind::Work,
            Thing::Io(_) => BindingKind::Io,
            Thing::Program(_) => BindingKind::Program,
            Thing::Pipe(_) => BindingKind::Pipe,
            Thing::Sent(_) => BindingKind::Sent,
            Thing::Disk(..) => BindingKind::Disk,
            Thing::Umem(..) => BindingKind::Umem,
            Thing::Ring(..) => BindingKind::Ring,
            Thing::BlockLayout(..) => BindingKind::BlockLayout,
            Thing::Guest(..) => BindingKind::Guest,
        }
    }

    /// Whether its descriptor is of this very object.
    pub(super) fn is(&self, object: &Arc<dyn OpenObject>) -> bool {
        fn same<T>(own: &Arc<T>, object: &Arc<dyn OpenObject>) -> bool {
            std::ptr::addr_eq(Arc::as_ptr(own), Arc::as_ptr(object))
        }
        match self {
            Thing::Context(own) => same(&own.context, object),
            Thing::Umem(_, socket) => same(socket, object),
            Thing::Ring(_, ring) => same(ring, object),
            Thing::BlockLayout(_, layout) => same(layout, object),
            Thing::Guest(_, guest) => same(guest, object),
            Thing::Disk(_, disk) => same(disk, object),
            _ => false,
        }
    }

    /// The same thing under another descriptor.
    pub(super) fn at(&self, fd: Fd) -> Thing {
        match self {
            Thing::Context(context) => Thing::Context(OpenContext { fd, ..context.clone() }),
            Thing::Umem(_, socket) => Thing::Umem(fd, Arc::clone(socket)),
            Thing::Ring(_, ring) => Thing::Ring(fd, Arc::clone(ring)),
            Thing::BlockLayout(_, layout) => Thing::BlockLayout(fd, Arc::clone(layout)),
            Thing::Guest(_, guest) => Thing::Guest(fd, Arc::clone(guest)),
            Thing::Disk(_, disk) => Thing::Disk(fd, Arc::clone(disk)),
            _ => Thing::Fd(fd),
        }
    }
}

/// What a call made.
pub(super) enum Made {
    Thing(Thing),
    Process(Task),
}

/// A signal by its word, which the operation's signature has checked.
pub(super) fn signal(word: &str) -> Signal {
    match word {
        "SIGIO" => Signal::Sigio,
        "SIGUSR1" => Signal::Sigusr1,
        "SIGUSR2" => Signal::Sigusr2,
        "SIGTERM" => Signal::Sigterm,
        "SIGBUS" => Signal::Sigbus,
        _ => Signal::Sigkill,
    }
}

/// A signal's word.
pub(super) fn signal_word(signal: Signal) -> &'static str {
    match signal {
        Signal::Sigio => "SIGIO",
        Signal::Sigusr1 => "SIGUSR1",
        Signal::Sigusr2 => "SIGUSR2",
        Signal::Sigterm => "SIGTERM",
        Signal::Sigkill => "SIGKILL",
        Signal::Sigbus => "SIGBUS",
    }
}

/// The blocks of a range of bytes, rounded outward; all of them for none.
pub(super) fn blocks(range: Option<ByteRange>) -> BlockRange {
    match range {
        None => BlockRange::ALL,
        Some(ByteRange { offset, len: u64::MAX }) => BlockRange::from(offset / fs_sim::BLOCK),
        Some(ByteRange { offset, len }) => BlockRange::of_bytes(offset, len),
    }
}

/// `RemoteAccessError { … }` as `remote_access_error`: the words of scenarios are the names of the
/// code.
pub(super) fn snake(debug: &str) -> String {
    let mut word = String::new();
    for c in debug.chars().take_while(|c| c.is_alphanumeric()) {
        if c.is_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.extend(c.to_lowercase());
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_code_become_words() {
        assert_eq!(snake("QpAccess { qp_num: 3 }"), "qp_access");
        assert_eq!(snake("Fatal"), "fatal");
    }

    #[test]
    fn ranges_round_outward() {
        assert_eq!(blocks(Some(ByteRange { offset: 4095, len: 2 })), BlockRange::new(0, 2));
        assert_eq!(blocks(Some(ByteRange { offset: 8192, len: u64::MAX })), BlockRange::from(2));
    }
}
