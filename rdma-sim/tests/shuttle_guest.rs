//! A guest that has mapped an exported file, raced against `truncate` and against the end of its
//! server, on schedules drawn from a seed.
//!
//! Run with `RUSTFLAGS="--cfg daxlab_shuttle" cargo test -p rdma-sim --test shuttle_guest
//! --release`; the settings are those of `shuttle_reg_mr`.
#![cfg(daxlab_shuttle)]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod schedules;

use emulator::World;
use emulator::device::Device;
use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, thread};
use fs_sim::design::{PinGate, presets};
use fs_sim::pinning::guest_export::{Exposure, GuestMapping};
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{Errno, Kernel, KernelConfig, Sabotage};
use schedules::{failure, seeds};

const PAGE: u64 = 4096;
const BLOCKS: u64 = 2;

#[derive(Default)]
struct Frontend(AtomicU64);

impl GuestMapping for Frontend {
    fn unmap(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn describe(&self) -> String {
        "a guest".to_owned()
    }
}

impl Frontend {
    fn demands(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What the schedule does to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RaceEvent {
    Truncate,
    Exit,
}

/// The race under a preset.
fn body(event: RaceEvent, preset: &str, sabotage: Sabotage) -> impl Fn() + Send + Sync + 'static {
    let axes = presets().iter().find(|found| found.name == preset).expect("a preset").axes;
    let config = KernelConfig::new(axes).sabotaged_for_tests(sabotage);
    move || guest_against(event, config)
}

/// A server exports its file and a guest maps it for a while. Meanwhile a stranger truncates the
/// file, or another thread ends the server. While the guest has the blocks mapped they belong to
/// the file.
fn guest_against(event: RaceEvent, config: KernelConfig) {
    let leases = usize::from(matches!(config.axes.pin_gate, PinGate::Lease | PinGate::Unbreakable));
    let device = Device::memory(2 << 20).unwrap();
    let kernel = Kernel::new(Arc::new(World::manual(1)), device, config).unwrap();
    let server = kernel.spawn();
    server.process().set_disposition(Signal::Sigio, Disposition::Ignore);
    let fd = server.open("data", OpenFlags::create()).unwrap();
    server.write(fd, 0, &[1; (BLOCKS * PAGE) as usize]).unwrap();

    let (stranger, another) = (kernel.spawn(), server.thread());
    let happening = thread::spawn(move || {
        if event == RaceEvent::Truncate {
            let truncated = stranger.truncate("data", 0);
            assert!(matches!(truncated, Ok(()) | Err(Errno::ETXTBSY)), "{truncated:?}");
        } else {
            another.exit();
        }
        stranger.exit();
    });

    let frontend = Arc::new(Frontend::default());
    let exported = server.export_to_guest_mapped(fd, Arc::clone(&frontend) as Arc<dyn GuestMapping>);
    if let Ok((_, export)) = exported {
        let mapped = export.pieces(&kernel);
        assert!(mapped.is_empty() || mapped.iter().map(|piece| piece.len).sum::<u64>() == BLOCKS * PAGE);
        assert_eq!(export.exposure(&kernel), Exposure::default(), "while it is mapped");
        if !export.is_revoked() {
            assert!(matches!(export.flush(&kernel), Ok(()) | Err(Errno::EIO)));
        }
        assert_eq!(export.exposure(&kernel), Exposure::default(), "while it is mapped");
        if event == RaceEvent::Exit {
            server.exit();
            happening.join().unwrap();
            let held = kernel.named("data").unwrap().leases().len();
            let expected = if mapped.is_empty() { (frontend.demands(), 0) } else { (1, leases) };
            assert_eq!(
                (frontend.demands(), held),
                expected,
                "revocation is demanded, and the lease stays until the guest has unmapped"
            );
            export.unmapped(&kernel);
            assert_eq!(kernel.check_at_rest(), Vec::<String>::new());
            return;
        }
        export.unmapped(&kernel);
        assert_eq!(export.pieces(&kernel), []);
    }
    happening.join().unwrap();
    server.exit();
    assert!(frontend.demands() <= 1, "revocation is demanded at most once");
    assert_eq!(kernel.counters.stale_dma.get(), 0, "stale: {:?}", kernel.findings());
    assert_eq!(kernel.check_at_rest(), Vec::<String>::new());
}

#[test]
fn no_schedule_exposes_what_a_guest_has_mapped() {
    for preset in ["odp", "revoke", "man-page"] {
        for seed in seeds() {
            for event in [RaceEvent::Truncate, RaceEvent::Exit] {
                if let Some(what) = failure(seed, body(event, preset, Sabotage::default())) {
                    panic!("{preset}, {event:?}, DAXLAB_SEED={seed}: {what}");
                }
            }
        }
    }
}

#[test]
fn without_the_unmapping_a_schedule_fails() {
    let broken = || body(RaceEvent::Truncate, "odp", Sabotage { no_unmap: true, ..Sabotage::default() });
    let (seed, first) = (0..50_000)
        .find_map(|seed| failure(seed, broken()).map(|what| (seed, what)))
        .expect("a mapping that is never removed meets a truncate in some schedule");
    assert!(first.contains("while it is mapped"), "seed {seed}: {first}");
    assert_eq!(
        failure(seed, body(RaceEvent::Truncate, "odp", Sabotage::default())),
        None,
        "the unmapping is what it lacked"
    );
}
