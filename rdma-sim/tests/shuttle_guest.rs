//! A guest that has mapped an exported file, raced against `truncate` and against the end of its
//! server, on schedules drawn from a seed.
//!
//! Run with `RUSTFLAGS="--cfg daxlab_shuttle" cargo test -p rdma-sim --test shuttle_guest
//! --release`; the settings are those of `shuttle_reg_mr`.
#![cfg(daxlab_shuttle)]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use emulator::World;
use emulator::device::Device;
use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, thread};
use fs_sim::design::{PinGate, presets};
use fs_sim::pinning::guest_export::{Exposure, GuestMapping};
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{Errno, Kernel, KernelConfig, Sabotage};
use shuttle::Runner;
use shuttle::scheduler::{PctScheduler, RandomScheduler};

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
enum QpEvent {
    Truncate,
    Exit,
}

fn config(preset: &str, sabotage: Sabotage) -> KernelConfig {
    let axes = presets().iter().find(|found| found.name == preset).expect("a preset").axes;
    KernelConfig::new(axes).sabotaged_for_tests(sabotage)
}

/// A server exports its file and a guest maps it for a while. Meanwhile a stranger truncates the
/// file, or another thread ends the server. While the guest has the blocks mapped they belong to
/// the file.
fn guest_against(event: QpEvent, config: KernelConfig) {
    let leases = usize::from(matches!(config.axes.pin_gate, PinGate::Lease | PinGate::Unbreakable));
    let device = Device::memory(2 << 20).unwrap();
    let kernel = Kernel::new(Arc::new(World::manual(1)), device, config).unwrap();
    let server = kernel.spawn();
    server.process().set_disposition(Signal::Sigio, Disposition::Ignore);
    let fd = server.open("data", OpenFlags::create()).unwrap();
    server.write(fd, 0, &[1; (BLOCKS * PAGE) as usize]).unwrap();

    let (stranger, another) = (kernel.spawn(), server.thread());
    let happening = thread::spawn(move || {
        if event == QpEvent::Truncate {
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
        if event == QpEvent::Exit {
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

/// How often a priority schedule changes priorities.
const CHANGES: usize = 3;

/// The message of the schedule of `seed`, if it fails; see `shuttle_reg_mr`.
fn failure(seed: u64, event: QpEvent, config: KernelConfig) -> Option<String> {
    let run = || {
        let mut settings = shuttle::Config::new();
        settings.failure_persistence = shuttle::FailurePersistence::None;
        let body = move || guest_against(event, config);
        if seed.is_multiple_of(2) {
            Runner::new(RandomScheduler::new_from_seed(seed, 1), settings).run(body);
        } else {
            Runner::new(PctScheduler::new_from_seed(seed, CHANGES, 2), settings).run(body);
        }
    };
    let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

#[test]
fn no_schedule_exposes_what_a_guest_has_mapped() {
    let schedules = setting("DAXLAB_SCHEDULES").unwrap_or(2_000);
    let seeds = setting("DAXLAB_SEED").map_or(0..schedules, |seed| seed..seed + 1);
    for preset in ["odp", "revoke", "man-page"] {
        for seed in seeds.clone() {
            for event in [QpEvent::Truncate, QpEvent::Exit] {
                if let Some(what) = failure(seed, event, config(preset, Sabotage::default())) {
                    panic!("{preset}, {event:?}, DAXLAB_SEED={seed}: {what}");
                }
            }
        }
    }
}

#[test]
fn without_the_unmapping_a_schedule_fails() {
    let broken = || config("odp", Sabotage { no_unmap: true, ..Sabotage::default() });
    let (seed, first) = (0..50_000)
        .find_map(|seed| failure(seed, QpEvent::Truncate, broken()).map(|what| (seed, what)))
        .expect("a mapping that is never removed meets a truncate in some schedule");
    assert!(first.contains("while it is mapped"), "seed {seed}: {first}");
    assert_eq!(
        failure(seed, QpEvent::Truncate, config("odp", Sabotage::default())),
        None,
        "the unmapping is what it lacked"
    );
}
