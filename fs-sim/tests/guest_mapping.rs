//! Dialogues with guests that have an exported file mapped: what a revocation waits for, what stays mapped meanwhile, and what
//! each design makes of a change beneath them.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use common::{Actor, Lab, exclusive, needs_lease, preset};
use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};
use fs_sim::design::{Axes, PinGate};
use fs_sim::holders::guest::{Exposure, GuestExport, GuestMapping, GuestPiece};
use fs_sim::process::fd_table::Fd;
use fs_sim::range::BlockRange;
use fs_sim::{BLOCK, Errno, Kernel};

/// The reasons for which a change waits for a mapping: behind shut doors for pins, with open doors for what pins nothing.
const DRAINING: &str = "pins draining";
const UNMAPPING: &str = "guest to be unmapped";

/// A frontend that unmaps at once, or when it is told to.
#[derive(Default)]
struct Frontend {
    demands: AtomicU64,
    /// Acknowledges from inside the demand.
    prompt: Mutex<Option<(Arc<Kernel>, Arc<GuestExport>)>>,
}

impl GuestMapping for Frontend {
    fn unmap(&self) {
        self.demands.fetch_add(1, Ordering::SeqCst);
        let prompt = self.prompt.lock().clone();
        if let Some((kernel, export)) = prompt {
            export.unmapped(&kernel);
        }
    }

    fn describe(&self) -> String {
        "guest at /run/a.sock, QEMU process 4711".to_owned()
    }
}

impl Frontend {
    fn demands(&self) -> u64 {
        self.demands.load(Ordering::SeqCst)
    }
}

/// A process that serves a file of written blocks to a guest.
struct Served {
    server: Actor,
    file: Fd,
    fd: Fd,
    export: Arc<GuestExport>,
    frontend: Arc<Frontend>,
}

impl Served {
    fn new(lab: &Lab, blocks: u64) -> Result<Served, Errno> {
        let server = lab.actor();
        let file = server.writes_file("data", blocks, 1);
        let frontend = Arc::new(Frontend::default());
        let (fd, export) = server.export_to_guest_mapped(file, Arc::clone(&frontend) as Arc<dyn GuestMapping>)?;
        Ok(Served { server, file, fd, export, frontend })
    }

    /// Maps everything: the bytes that a guest has then.
    fn maps(&self, lab: &Lab) -> u64 {
        self.export.pieces(&lab.kernel).iter().map(|piece| piece.len).sum()
    }
}

#[test]
fn a_revoked_guest_keeps_its_pins_until_it_is_unmapped() {
    let lab = Lab::new(preset("revoke"));
    let served = Served::new(&lab, 4).unwrap();
    let b = lab.actor();
    assert_eq!(served.maps(&lab), 4 * BLOCK);
    assert_eq!(served.export.flush(&lab.kernel), Ok(()));
    let blocked = b.blocks(DRAINING, |task| task.truncate("data", 0));
    assert_eq!(served.frontend.demands(), 1);
    assert_eq!(served.export.flush(&lab.kernel), Err(Errno::EIO), "at once");
    assert_eq!(served.export.pieces(&lab.kernel), [], "at once");
    assert_eq!(served.export.write(&lab.kernel, 0, &[1]), Err(Errno::EIO));
    assert_eq!(served.server.inode_of(served.file).holders().len(), 1, "still mapped, still pinned");
    assert_eq!(served.export.exposure(&lab.kernel), Exposure::default());
    assert!(!blocked.is_over());
    served.export.unmapped(&lab.kernel);
    assert_eq!(blocked.finish(), Ok(()));
    assert_eq!(served.export.exposure(&lab.kernel), Exposure::default());
    served.export.unmapped(&lab.kernel);
    assert_eq!((served.server.inode_of(served.file).holders().len(), served.frontend.demands()), (0, 1));
    lab.end([&served.server, &b]);
}

#[test]
fn under_fault_a_change_waits_until_the_guest_is_unmapped() {
    let lab = Lab::new(preset("odp"));
    let served = Served::new(&lab, 4).unwrap();
    let b = lab.actor();
    assert_eq!(served.maps(&lab), 4 * BLOCK);
    assert_eq!((served.server.held(served.file), served.server.process().locked_pages()), (vec![], 0));
    let blocked = b.blocks(UNMAPPING, |task| task.truncate("data", 0));
    assert_eq!((served.frontend.demands(), served.export.pieces(&lab.kernel)), (1, vec![]));
    assert_eq!(served.server.bytes_of(served.file), [1, 2, 3, 4], "nothing has gone");
    served.export.unmapped(&lab.kernel);
    assert_eq!(blocked.finish(), Ok(()));
    assert_eq!(served.export.exposure(&lab.kernel), Exposure::default());
    lab.end([&served.server, &b]);
}
