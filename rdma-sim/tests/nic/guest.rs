//! A region over a file that a guest has mapped.

use emulator::sync::{Arc, Mutex};
use fs_sim::design::{Axis, presets};
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::pinning::guest_export::{Exposure, GuestExport, GuestMapping};
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{BlockRange, Errno, Kernel};
use rdma_sim::{AccessFlags, WorkOperation, WorkStatus};

use crate::harness::*;

const ALL: AccessFlags = AccessFlags::ALL;
const GUEST: &str = "guest at /run/a.sock, QEMU process 4711";
const PAGES: u64 = 4;

/// Acknowledges a revocation at once, inside the call that demands it.
#[derive(Default)]
struct Frontend(Mutex<Option<(Arc<Kernel>, Arc<GuestExport>)>>);

impl GuestMapping for Frontend {
    fn unmap(&self) {
        let export = self.0.lock().take();
        if let Some((kernel, export)) = export {
            export.unmapped(&kernel);
        }
    }

    fn describe(&self) -> String {
        GUEST.to_owned()
    }
}

/// The guest's mapping: the guest accesses the device's memory directly.
struct Mapped(Arc<Kernel>, Arc<GuestExport>);

impl Mapped {
    fn device_offset(&self, at: u64) -> u64 {
        let pieces = self.1.pieces(&self.0);
        let piece = pieces.iter().find(|piece| piece.file_offset <= at && at < piece.file_offset + piece.len);
        piece.map(|piece| piece.device_offset + (at - piece.file_offset)).expect("mapped")
    }

    fn load(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.device().read(self.device_offset(at), &mut bytes).unwrap();
        bytes
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        self.0.device().write(self.device_offset(at), bytes).unwrap();
    }
}

/// The NIC and the guest see each other's bytes, `blockers` names both, and a stranger's truncate
/// has to deal with both.
#[test]
fn the_nic_and_a_guest_share_a_file() {
    for preset in presets() {
        let kernel = machine_with(preset.axes);
        let (a, b) = pair(&kernel);
        let server = kernel.spawn();
        server.process().set_disposition(Signal::Sigio, Disposition::Ignore);
        // No run is adjacent to the next.
        server.provision("data", PAGES * PAGE, Some(PAGES)).unwrap();
        let file = server.open("data", fs_sim::syscalls::open::OpenFlags::create()).unwrap();
        let frontend = Arc::new(Frontend::default());
        let exported = server.export_to_guest_mapped(file, Arc::clone(&frontend) as Arc<dyn GuestMapping>);
        let (_, export) = match exported {
            Ok(exported) => exported,
            Err(errno) => {
                assert!(["mainline", "rfc-v2"].contains(&preset.name), "{}: {errno}", preset.name);
                continue;
            }
        };
        *frontend.0.lock() = Some((Arc::clone(&kernel), Arc::clone(&export)));
        let guest = Mapped(Arc::clone(&kernel), Arc::clone(&export));

        let fd = b.task.open("data", fs_sim::syscalls::open::OpenFlags::create()).unwrap();
        let faults = kernel.axes().get(Axis::PinGate) == "fault";
        match kernel.axes().get(Axis::LeaseRules) {
            // An exclusive lease alone would already stop the truncate.
            _ if faults => {}
            // The guest holds a write lease, which excludes every other lease.
            "chinner" => b.task.lease(fd, LeaseKind::READ, BlockRange::ALL).unwrap(),
            _ => b.lease(fd).unwrap(),
        }
        let va = b.task.mmap(fd, 0, PAGES * PAGE, true).unwrap();
        let target = b.reg(va, PAGES * PAGE, ALL).unwrap();
        let local = a.anon(PAGES * PAGE, ALL);
        let len = 2 * PAGE as usize + 10;
        local.fill(0, &pattern(len, 7));
        a.post(1, WorkOperation::Write, local.sge(0, len as u32), target.remote(PAGE - 5));
        a.expect(1, WorkStatus::Success);
        let read: Vec<u8> = [(PAGE - 5, 5), (PAGE, PAGE as usize), (2 * PAGE, PAGE as usize), (3 * PAGE, 5)]
            .into_iter()
            .flat_map(|(at, len)| guest.load(at, len))
            .collect();
        assert_eq!(read, pattern(len, 7), "{}: the guest reads what the NIC wrote", preset.name);
        guest.store(3 * PAGE - 3, b"gue");
        guest.store(3 * PAGE, b"st");
        a.post(2, WorkOperation::Read, local.sge(0, 5), target.remote(3 * PAGE - 3));
        a.expect(2, WorkStatus::Success);
        assert_eq!(local.bytes(0, 5), b"guest", "{}: and the reverse", preset.name);

        let found = kernel.blockers(export.ino()).unwrap().to_string();
        let nic = format!("RDMA region {:#x}", target.rkey());
        assert!(found.contains(&format!("guest export ({GUEST})")), "{}: {found}", preset.name);
        assert_eq!(found.contains(&nic), !faults, "{}: a region that faults holds nothing: {found}", preset.name);

        let admin = kernel.spawn();
        if faults || kernel.axes().get(Axis::StrangerChange) == "revoke" {
            admin.truncate("data", 0).unwrap();
            assert!(export.is_revoked() && export.flush(&kernel) == Err(Errno::EIO), "{}", preset.name);
            a.post(3, WorkOperation::Write, local.sge(0, 8), target.remote(0));
            a.expect(3, WorkStatus::RemoteAccessError);
        } else if kernel.axes().get(Axis::StrangerChange) == "fail" {
            assert_eq!(admin.truncate("data", 0), Err(Errno::ETXTBSY), "{}", preset.name);
            assert_eq!(export.flush(&kernel), Ok(()));
        }
        assert_eq!(export.exposure(&kernel), Exposure::default(), "{}", preset.name);
        *frontend.0.lock() = None;
        export.unmapped(&kernel);
        expect_rest(&kernel, &[&a.task, &b.task, &server, &admin]);
    }
}
