//! Inodes: identity, published layout, generation, and the turn for layout changes.
//!
//! It owns what every layer above needs of a file. Invariants: the layout is published as one
//! value ([`Published`]), under `map_lock`; the generation changes
//! whenever a block joins, leaves or moves, before a block that left can be reused, and never
//! takes a value twice; no task waits with an inode's mutex held. Kernel counterpart: `struct
//! inode`; the turn stands for `i_rwsem` and `invalidate_lock`, but is not a lock held across
//! waits.

use emulator::ledger::Published;
use emulator::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};

use crate::base::numbers::Ino;
use crate::extent_map::Layout;
use crate::vfs::attachments::{Attachment, Attachments};
use crate::vfs::credentials::Credentials;
use crate::vfs::layout_turn::LayoutTurn;

/// See the module.
#[derive(Debug)]
pub struct Inode {
    ino: Ino,
    /// The user that created it.
    uid: u32,
    /// Its permission bits.
    mode: AtomicU32,
    /// How often a layout was published.
    publications: AtomicU64,
    layout: Published<Layout>,
    /// Serialises publications of the layout with each other, each together with its commit to the
    /// journal. (Turning unwritten blocks written needs no turn.)
    pub(crate) map_lock: Mutex<()>,
    pub(crate) life: Mutex<InodeLife>,
    pub(crate) turn: LayoutTurn,
    /// Whether it was ever mapped privately: set before the mapping exists.
    pub(crate) mapped_private: AtomicBool,
    /// What the layers above keep with it.
    attached: Attachments,
}

/// The permission bits of a new file: all rights for all users **\[chosen\]**.
const MODE_NEW: u32 = 0o777;

/// What keeps an inode from being evicted.
#[derive(Debug)]
pub(crate) struct InodeLife {
    pub(crate) links: u32,
    pub(crate) opens: u64,
    pub(crate) evicted: bool,
}

impl Inode {
    pub(crate) fn new(ino: Ino, uid: u32) -> Inode {
        Inode {
            ino,
            uid,
            mode: AtomicU32::new(MODE_NEW),
            publications: AtomicU64::new(0),
            layout: Published::new(Layout::default()),
            map_lock: Mutex::new(()),
            life: Mutex::new(InodeLife { links: 1, opens: 0, evicted: false }),
            turn: LayoutTurn::default(),
            mapped_private: AtomicBool::new(false),
            attached: Attachments::default(),
        }
    }

    /// The directory of a volume. It has no blocks, and it is never evicted.
    pub(crate) fn directory() -> Inode {
        Inode::new(Ino::DIRECTORY, 0)
    }

    /// Whether it is the directory.
    pub fn is_directory(&self) -> bool {
        self.ino == Ino::DIRECTORY
    }

    /// What a layer above keeps with it.
    pub(crate) fn attached<A: Attachment>(&self) -> &A {
        self.attached.get()
    }

    /// Counts one more open file (or call by path). False if the inode was evicted.
    pub(crate) fn count_open(&self) -> bool {
        let mut life = self.life.lock();
        if life.evicted {
            return false;
        }
        life.opens += 1;
        true
    }

    /// Its number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// The user that owns it.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its permission bits.
    pub fn mode(&self) -> u32 {
        self.mode.load(Ordering::Relaxed)
    }

    pub(crate) fn set_mode(&self, mode: u32) {
        self.mode.store(mode & 0o7777, Ordering::Relaxed);
    }

    /// Whether the mode allows all of `wanted` (4 read, 2 write, 1 execute). Root may read and
    /// write any file, and execute a file that any user may execute. Kernel: `inode_permission`,
    /// `generic_permission`; there are no groups here.
    pub(crate) fn permits(&self, credentials: Credentials, wanted: u32) -> bool {
        let mode = self.mode();
        let allowed = match credentials.uid {
            0 => 6 | u32::from(mode & 0o111 != 0),
            uid if uid == self.uid => mode >> 6,
            _ => mode,
        };
        wanted & !allowed == 0
    }

    /// Its number and its published layout, as the journal commits them. The caller holds
    /// `map_lock` since it published the layout.
    pub(crate) fn to_commit(&self) -> (Ino, Layout) {
        (self.ino, self.layout(Layout::clone))
    }

    /// Runs `look` on the current layout, without a lock. `look` must not block.
    pub fn layout<R>(&self, look: impl FnOnce(&Layout) -> R) -> R {
        self.layout.read(look)
    }

    /// The published layout with its generation: what a pinner looks at.
    pub(crate) fn published(&self) -> &Published<Layout> {
        &self.layout
    }

    /// The current generation.
    pub(crate) fn generation(&self) -> u64 {
        self.layout.generation()
    }

    /// Publishes a layout with other blocks than before: [`Published::publish`]. Serialised by
    /// `map_lock`.
    pub(crate) fn publish(&self, layout: Layout) {
        self.layout.publish(layout);
        self.count_publication();
    }

    /// Publishes a layout with the same blocks in the same places; the generation stays.
    /// Serialised by `map_lock`.
    pub(crate) fn publish_same_blocks(&self, layout: Layout) {
        self.layout.publish_same_blocks(layout);
        self.count_publication();
    }

    fn count_publication(&self) {
        // ORDERING: SeqCst, after the map: a change that reads the number and then the map reads a
        // map at least as new.
        self.publications.fetch_add(1, Ordering::SeqCst);
    }

    /// How often a layout was published.
    pub(crate) fn publications(&self) -> u64 {
        self.publications.load(Ordering::SeqCst)
    }
}

/// How [`Inode`]s are shared.
pub type InodeRef = Arc<Inode>;
