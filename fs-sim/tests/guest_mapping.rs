//! Dialogues with guests that have an exported file mapped: which calls wait for the guest, what
//! stays mapped meanwhile, and what each design does with a change of mapped blocks. A frontend
//! acknowledges when a test tells it to. That a call waits for it is read from the register of
//! sleepers.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use common::changes::{CHANGES, NO_CHANGES, canvas, scattered};
use common::watchdog::{soon, spawn};
use common::{Actor, Blocked, Lab, needs_lease, preset};
use emulator::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};
use fs_sim::base::numbers::Fd;
use fs_sim::design::{Axes, ChangeRule, GateScope, PinGate, presets};
use fs_sim::layout_change::defragment::Defragmented;
use fs_sim::pinning::guest_export::{Exposure, GuestExport, GuestMapping, GuestPiece};
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{BLOCK, BlockRange, Errno, Kernel, KernelConfig, Sabotage, Task};

const ALL: BlockRange = BlockRange::ALL;
/// Why a change waits for a mapping.
const UNMAPPING: &str = "guest to be unmapped";
const GUEST: &str = "guest at /run/a.sock, QEMU process 4711";

/// A frontend that unmaps from inside the demand, or when it is told to.
#[derive(Default)]
struct Frontend {
    demands: AtomicU64,
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
        GUEST.to_owned()
    }
}

/// A process that serves a file to a guest.
struct Served {
    server: Actor,
    file: Fd,
    fd: Fd,
    export: Arc<GuestExport>,
    frontend: Arc<Frontend>,
}

impl Served {
    /// The file "data" of written blocks.
    fn new(lab: &Lab, blocks: u64) -> Result<Served, Errno> {
        let server = lab.actor();
        let file = server.writes_file("data", blocks, 1);
        Served::over(server, file)
    }

    fn over(server: Actor, file: Fd) -> Result<Served, Errno> {
        let frontend = Arc::new(Frontend::default());
        let (fd, export) = server.export_to_guest_mapped(file, Arc::clone(&frontend) as Arc<dyn GuestMapping>)?;
        Ok(Served { server, file, fd, export, frontend })
    }

    /// Maps everything. Returns how many bytes a guest has mapped then.
    fn maps(&self) -> u64 {
        self.export.pieces(self.server.kernel()).iter().map(|piece| piece.len).sum()
    }

    fn unmapped(&self) {
        self.export.unmapped(self.server.kernel());
    }

    fn demands(&self) -> u64 {
        self.frontend.demands.load(Ordering::SeqCst)
    }

    fn exposure(&self) -> Exposure {
        self.export.exposure(self.server.kernel())
    }

    /// What the export holds of the file: its leases, and its pins.
    fn holds(&self) -> (usize, usize) {
        let inode = self.server.kernel().named("data").expect("data");
        (inode.leases().len(), inode.holders().len())
    }

    /// Whether the export was revoked: flushes fail, and there is nothing to map.
    fn is_dead(&self) -> bool {
        let kernel = self.server.kernel();
        let dead = self.export.flush(kernel) == Err(Errno::EIO);
        assert_eq!(self.export.is_revoked(), dead);
        assert_eq!(self.export.pieces(kernel).is_empty(), dead);
        assert_eq!(self.export.write(kernel, 0, &[1]).is_err(), dead);
        dead
    }
}

fn blocks(n: u64) -> u64 {
    n * BLOCK
}

/// What a preset does with a guest that has a file mapped when a stranger truncates the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// There is no such guest.
    NotServed(Errno),
    /// The truncate fails and the guest goes on.
    Refused(Errno),
    /// The truncate waits, for this reason, until the guest is gone.
    WaitsForTheEnd(&'static str),
    /// The truncate waits until the guest is unmapped, and the guest's flushes fail.
    Unmaps,
    /// The truncate succeeds at once, beneath the guest.
    Exposes,
}

/// The ten presets at this edge: the table of docs/attach-qemu.md.
#[test]
fn every_preset_under_a_guest() {
    use Outcome::{Exposes, NotServed, Refused, Unmaps, WaitsForTheEnd};
    let table = [
        ("unsafe", Exposes),
        ("mainline", NotServed(Errno::EOPNOTSUPP)),
        ("rfc-v2", NotServed(Errno::EOPNOTSUPP)),
        ("man-page", Refused(Errno::ETXTBSY)),
        ("chinner-2019", Refused(Errno::ETXTBSY)),
        ("chinner-2025", WaitsForTheEnd("exclusive lease")),
        ("kara", Refused(Errno::ETXTBSY)),
        ("gunthorpe", Refused(Errno::ETXTBSY)),
        ("odp", Unmaps),
        ("revoke", Unmaps),
    ];
    assert_eq!(table.map(|(name, _)| name).to_vec(), presets().iter().map(|preset| preset.name).collect::<Vec<_>>());
    for (name, outcome) in table {
        let (lab, [b]) = Lab::cast(preset(name));
        let served = match (Served::new(&lab, 4), outcome) {
            (Err(errno), NotServed(expected)) => {
                assert_eq!(errno, expected, "{name}");
                continue;
            }
            (served, _) => served.unwrap_or_else(|errno| panic!("{name}: {errno}")),
        };
        assert_eq!(served.maps(), 4 * BLOCK, "{name}");
        let pins = usize::from(name != "odp");
        assert_eq!(served.holds(), (usize::from(needs_lease(preset(name))), pins), "{name}");
        let truncate = |task: &Task| task.truncate("data", BLOCK);
        match outcome {
            NotServed(_) => panic!("{name}: it is served"),
            Refused(errno) => {
                assert_eq!(truncate(&b), Err(errno), "{name}");
                assert!(!served.is_dead(), "{name}");
            }
            WaitsForTheEnd(reason) => {
                let blocked = b.blocks(reason, truncate);
                assert!(!served.is_dead(), "{name}");
                assert_eq!(served.demands(), 0, "{name}");
                served.unmapped();
                served.server.close(served.fd).unwrap();
                assert_eq!(blocked.finish(), Ok(()), "{name}");
            }
            Unmaps => {
                let blocked = b.blocks(UNMAPPING, truncate);
                assert_eq!((served.demands(), served.is_dead()), (1, true), "{name}");
                assert_eq!((served.server.stat(served.file).unwrap().blocks, blocked.is_over()), (4, false), "{name}");
                assert_eq!(served.exposure(), Exposure::default(), "{name}");
                served.unmapped();
                assert_eq!(blocked.finish(), Ok(()), "{name}");
                // A revocation has cut the range of the change out of the lease.
                assert_eq!(served.holds(), (usize::from(name == "revoke"), 0), "{name}");
            }
            Exposes => {
                assert_eq!(truncate(&b), Ok(()), "{name}");
                assert!(!served.is_dead(), "{name}");
                assert_eq!(served.exposure().exposed_bytes, 3 * BLOCK, "{name}");
                served.unmapped();
                assert_eq!(served.exposure(), Exposure::default(), "{name}: nothing is mapped");
                continue;
            }
        }
        assert_eq!(served.exposure(), Exposure::default(), "{name}");
        served.unmapped();
        lab.end([&served.server, &b]);
    }
}

/// A revocation sends one demand. It takes flushes and pieces away at once, and the pins when the
/// guest has unmapped them, also if the guest says so twice.
#[test]
fn a_revoked_guest_keeps_its_pins_until_it_is_unmapped() {
    let lab = Lab::new(preset("revoke"));
    let served = Served::new(&lab, 4).unwrap();
    let (b, c) = (lab.actor(), lab.actor());
    assert_eq!(served.maps(), 4 * BLOCK);
    assert!(!served.is_dead());
    let blocked = b.blocks(UNMAPPING, |task| task.truncate("data", 0));
    assert_eq!((served.demands(), served.is_dead()), (1, true));
    assert_eq!(served.holds().1, 1, "still mapped, still pinned");
    assert_eq!(c.bytes_of(c.opens("data")), [1, 2, 3, 4], "who reads does not wait");

    // The interrupted truncate has changed nothing, but the guest has lost the file.
    b.kill(b.pid(), Signal::Sigusr1).unwrap();
    assert_eq!(blocked.finish(), Err(Errno::EINTR));
    b.take_signals();
    assert_eq!((served.holds().1, served.server.stat(served.file).unwrap().blocks), (1, 4));
    let blocked = b.blocks(UNMAPPING, |task| task.truncate("data", 0));
    assert_eq!(served.demands(), 1, "demanded once");
    served.unmapped();
    assert_eq!(blocked.finish(), Ok(()));
    served.unmapped();
    assert_eq!((served.holds(), served.is_dead()), ((0, 0), true));
    lab.end([&served.server, &b, &c]);
}

/// A change does not wait for a guest that has mapped nothing, that acknowledges from inside the
/// demand, or that had unmapped before.
#[test]
fn a_guest_without_mappings_is_not_waited_for() {
    for name in ["revoke", "odp"] {
        for case in ["never mapped", "unmapped before", "prompt"] {
            let lab = Lab::new(preset(name));
            let served = Served::new(&lab, 4).unwrap();
            let b = lab.actor();
            let before = served.holds();
            match case {
                "unmapped before" => {
                    assert_eq!(served.maps(), 4 * BLOCK);
                    served.unmapped();
                    assert_eq!(served.holds(), before, "{name}, {case}: what is not taken away stays");
                    assert_eq!(served.maps(), 0, "{name}, {case}: and is not mapped again");
                    assert_eq!(served.export.flush(&lab.kernel), Ok(()), "{name}, {case}");
                }
                "prompt" => {
                    *served.frontend.prompt.lock() = Some((Arc::clone(&lab.kernel), Arc::clone(&served.export)));
                    assert_eq!(served.maps(), 4 * BLOCK);
                }
                _ => {}
            }
            assert_eq!(b.truncate("data", 0), Ok(()), "{name}, {case}");
            assert!(served.is_dead(), "{name}, {case}");
            assert_eq!((served.demands(), served.holds()), (1, (0, 0)), "{name}, {case}: told all the same");
            *served.frontend.prompt.lock() = None;
            lab.end([&served.server, &b]);
        }
    }
}

/// The end of the descriptor sends a demand. Lease, pins and the open file stay until the guest has
/// unmapped. A guest that had unmapped before leaves nothing behind.
#[test]
fn a_descriptor_that_ends_takes_the_mapping_with_it() {
    type End = fn(&Served);
    let ends: [(&str, End); 3] = [
        ("close", |served| served.server.close(served.fd).unwrap()),
        ("exit", |served| served.server.exit()),
        ("kill", |served| served.server.kill(served.server.pid(), Signal::Sigkill).unwrap()),
    ];
    for preset_of in presets() {
        let name = preset_of.name;
        for (how, end) in ends {
            for first in [false, true] {
                let lab = Lab::new(preset_of.axes);
                let Ok(served) = Served::new(&lab, 4) else { continue };
                let what = format!("{name}, {how}, {}", if first { "unmapped first" } else { "still mapped" });
                assert_eq!(served.maps(), 4 * BLOCK);
                let before = served.holds();
                if first {
                    served.unmapped();
                }
                end(&served);
                soon("the end", || served.export.is_revoked().then_some(()));
                assert!(served.is_dead(), "{what}");
                if !first {
                    assert_eq!((served.demands(), served.holds()), (1, before), "{what}: nothing goes");
                    let found = lab.kernel.blockers(served.export.ino()).unwrap();
                    assert!(found.stranger.iter().any(|b| b.to_string().contains(GUEST)), "{what}: {found}");
                    served.unmapped();
                }
                assert_eq!(served.holds(), (0, 0), "{what}");
                assert_eq!(served.demands(), u64::from(!first), "{what}");
                lab.end([&served.server]);
            }
        }
    }
}

/// A file that is unlinked and closed stays until the guest has unmapped it: eviction meets no
/// mapping.
#[test]
fn an_unlinked_file_goes_with_its_guest() {
    for name in ["revoke", "odp", "man-page"] {
        let lab = Lab::new(preset(name));
        let served = Served::new(&lab, 4).unwrap();
        assert_eq!(served.maps(), 4 * BLOCK);
        served.server.unlink("data").unwrap();
        served.server.close(served.file).unwrap();
        served.server.exit();
        assert_eq!((served.demands(), lab.kernel.usage().allocated), (1, 4), "{name}");
        assert_eq!(served.exposure(), Exposure::default());
        served.unmapped();
        assert_eq!(lab.kernel.usage().allocated, 0, "{name}");
        lab.end([&served.server]);
    }
}

type TwoFileCall = fn(&Task, Fd, Fd) -> Result<(), Errno>;

/// Changes of two files, which [`CHANGES`] does not have: "data", which a guest has mapped, and
/// "other".
fn two_file_changes() -> [(&'static str, TwoFileCall); 4] {
    [
        ("reflink from it", |t, data, other| t.reflink(data, 0, other, 0, 2 * BLOCK)),
        ("reflink over it", |t, data, other| t.reflink(other, 0, data, 0, 2 * BLOCK)),
        ("dedupe", |t, data, other| t.dedupe(other, 0, data, 0, 2 * BLOCK).map(|_| ())),
        ("exchange", |t, data, other| t.exchange_range(other, 0, data, 0, 2 * BLOCK)),
    ]
}

/// The change waits if and only if `unmaps`, and never exposes a block.
fn meets_the_guest(
    served: &Served,
    b: &Actor,
    what: &str,
    unmaps: bool,
    call: impl FnOnce(&Task) -> Result<(), Errno> + Send + 'static,
) {
    assert_eq!(served.maps(), 6 * BLOCK, "{what}");
    if !unmaps {
        assert_eq!(call(b), Ok(()), "{what}");
        assert_eq!((served.demands(), served.is_dead()), (0, false), "{what}");
        served.unmapped();
        return;
    }
    let state_report = b.state_report(b.opens("data"));
    let blocked: Blocked<_> = b.blocks(UNMAPPING, call);
    assert_eq!((served.demands(), served.is_dead()), (1, true), "{what}");
    assert_eq!(served.server.state_report(served.file), state_report, "{what}: nothing has changed yet");
    assert_eq!(served.exposure(), Exposure::default(), "{what}");
    served.unmapped();
    assert_eq!(blocked.finish(), Ok(()), "{what}");
}

/// Under `fault` a guest holds no pins. A change that takes blocks away, moves them, shares them or
/// turns them unwritten first has the guest unmapped and waits. Any other change leaves the guest
/// alone.
#[test]
fn under_fault_every_change_of_its_blocks_unmaps_a_guest_first() {
    let odp = preset("odp");
    // The guest has blocks 0..6 of the canvas mapped, all written. An allocation behind them does
    // not concern it.
    let harmless = ["growing ftruncate", "allocate", "allocate behind the end", "write into a hole", "extending write"];
    for (what, call) in CHANGES.into_iter().chain(NO_CHANGES) {
        let unmaps = match what {
            "zero range over a hole" | "zero range over written blocks" | "punch a hole" => true,
            _ if NO_CHANGES.iter().any(|(name, _)| *name == what) => false,
            _ => !harmless.contains(&what),
        };
        let (lab, [server, b]) = Lab::cast(odp);
        let file = canvas(&server);
        let served = Served::over(server, file).unwrap();
        assert_eq!((served.holds(), served.server.process().locked_pages()), ((0, 0), 0), "neither lease nor pins");
        let fd = b.opens("data");
        meets_the_guest(&served, &b, what, unmaps, move |task| call(task, fd));
        lab.end([&served.server, &b]);
    }
    for (what, call) in two_file_changes() {
        let (lab, [server, b]) = Lab::cast(odp);
        let (file, other) = (server.writes_file("data", 6, 1), b.writes_file("other", 2, 1));
        let served = Served::over(server, file).unwrap();
        let fd = b.opens("data");
        meets_the_guest(&served, &b, what, true, move |task| call(task, fd, other));
        lab.end([&served.server, &b]);
    }
}

/// Blocks that a guest gets belong to its file alone, so no copy on write takes a block from it.
#[test]
fn shared_blocks_are_copied_before_a_guest_maps_them() {
    let (lab, [server, b]) = Lab::cast(preset("odp"));
    let (file, clone) = (server.writes_file("data", 4, 1), b.creates("clone"));
    let data = b.opens("data");
    b.reflink(data, 0, clone, 0, 4 * BLOCK).unwrap();
    let served = Served::over(server, file).unwrap();
    assert_eq!(served.maps(), 4 * BLOCK);
    assert_eq!(served.export.write(&lab.kernel, 0, &[9; BLOCK as usize]), Ok(()));
    assert_eq!((b.bytes_of(data), b.bytes_of(clone)), (vec![9, 2, 3, 4], vec![1, 2, 3, 4]));
    b.fills(data, 1, 8).unwrap();
    b.ftruncate(clone, 0).unwrap();
    assert_eq!((served.demands(), served.is_dead()), (0, false));
    let mut byte = [0];
    assert_eq!((served.export.read(&lab.kernel, BLOCK, &mut byte), byte), (Ok(()), [8]));
    served.unmapped();
    lab.end([&served.server, &b]);
}

/// Defragmentation skips extents that a guest has mapped: it never waits, and moving them would
/// disconnect the guest.
#[test]
fn defragmentation_leaves_a_guest_alone() {
    let lab = Lab::new(preset("odp"));
    let (server, file) = scattered(&lab, 4);
    let served = Served::over(server, file).unwrap();
    assert_eq!(served.export.pieces(&lab.kernel).len(), 4);
    assert_eq!(lab.kernel.defragment_politely("data"), Ok(Defragmented { moved: 0, skipped: 4 }));
    assert_eq!((served.demands(), served.is_dead()), (0, false));
    served.unmapped();
    served.server.close(served.fd).unwrap();
    assert_eq!(lab.kernel.defragment_politely("data"), Ok(Defragmented { moved: 4, skipped: 0 }));
    let again = Served::over(served.server.clone(), served.file).unwrap();
    let pieces = again.export.pieces(&lab.kernel);
    assert_eq!(pieces.iter().map(|piece| (piece.file_offset, piece.len)).collect::<Vec<_>>(), [(0, 4 * BLOCK)]);
    again.unmapped();
    lab.end([&served.server]);
}

/// Requests while a change waits for a guest, and the processes that the wait names.
#[test]
fn requests_while_a_change_waits_for_a_guest() {
    for name in ["odp", "revoke"] {
        let lab = Lab::new(preset(name));
        let served = Served::new(&lab, 4).unwrap();
        let (b, c) = (lab.actor(), lab.actor());
        assert_eq!(served.maps(), 4 * BLOCK);
        let ino = served.export.ino();
        let told = lab.kernel.blockers(ino).unwrap().to_string();
        let kind = if name == "odp" { "mapping" } else { "pin" };
        let line = format!("guest export ({GUEST}), {kind} number 1 of process {}", served.server.pid());
        assert!(told.contains(&line), "{told}");
        let blocked = b.blocks(UNMAPPING, |task| task.truncate("data", 0));
        let found = lab.kernel.blockers(ino).unwrap();
        let change = found.blocked.as_ref().expect("a blocked change");
        assert_eq!(change.who.needs, [GUEST], "{name}");
        assert!(change.blockers.iter().any(|blocker| blocker.to_string().contains(&line)), "{found}");
        let json = serde_json::to_string(&found).unwrap();
        assert!(json.contains(&format!("\"guest\":\"{GUEST}\"")), "{json}");
        let data = c.opens("data");
        let mapping = Arc::new(Frontend::default());
        assert_eq!(c.export_to_guest_mapped(data, mapping).err(), Some(Errno::EAGAIN), "{name}: another guest");
        assert_eq!(lab.kernel.stuck(), [], "{name}: the guest could end it");
        // The server's only task closes a descriptor that it cannot unmap: that ends no wait and
        // closes no cycle.
        served.server.close(served.fd).unwrap();
        blocked.expect_blocked(UNMAPPING);
        served.unmapped();
        assert_eq!(blocked.finish(), Ok(()));
        assert_eq!(lab.kernel.counters.deadlocks.get(), 0);
        lab.end([&served.server, &b, &c]);
    }
}

/// The server's own change is judged as the holder's. It waits for its guest like any other change,
/// although the server has one thread only.
#[test]
fn the_servers_own_truncate_waits_for_its_guest() {
    let reverse = |name: &str| preset(name).holder_change;
    for preset_of in presets() {
        let lab = Lab::new(preset_of.axes);
        let Ok(served) = Served::new(&lab, 4) else { continue };
        let name = preset_of.name;
        assert_eq!(served.maps(), 4 * BLOCK);
        let truncate = |task: &Task| task.truncate("data", BLOCK);
        if name == "odp" || reverse(name) == ChangeRule::Revoke {
            // The server is signalled about its own lease as any owner is. The signal must not
            // interrupt it.
            served.server.process().set_disposition(Signal::Sigio, Disposition::Ignore);
            let blocked = served.server.blocks(UNMAPPING, truncate);
            served.unmapped();
            assert_eq!(blocked.finish(), Ok(()), "{name}");
            lab.end([&served.server]);
            continue;
        }
        match reverse(name) {
            ChangeRule::Fail => assert_eq!(truncate(&served.server), Err(Errno::ETXTBSY), "{name}"),
            ChangeRule::Orphan => {
                assert_eq!(truncate(&served.server), Ok(()), "{name}");
                let kept = Exposure { orphaned_bytes: blocks(3), ..Exposure::default() };
                assert_eq!(served.exposure(), kept, "{name}: left to the guest, harming no file");
            }
            ChangeRule::Proceed => {
                assert_eq!(truncate(&served.server), Ok(()), "{name}");
                assert_eq!(served.exposure().exposed_bytes, blocks(3), "{name}");
            }
            ChangeRule::Wait | ChangeRule::Revoke => unreachable!("{name}"),
        }
        served.unmapped();
        assert_eq!(served.exposure(), Exposure::default());
        lab.end([&served.server]);
    }
}

/// `fault` refuses a guest that cannot be unmapped. A gate that is not for guests refuses every
/// guest.
#[test]
fn the_gates_that_refuse_guests() {
    let odp = preset("odp");
    let (lab, [a]) = Lab::cast(odp);
    let file = a.writes_file("data", 4, 1);
    assert_eq!(a.export_to_guest(file).err(), Some(Errno::EOPNOTSUPP), "no frontend can unmap it");
    let empty = a.creates("empty");
    assert_eq!(Served::over(a.clone(), empty).err(), Some(Errno::EINVAL));
    lab.end([&a]);
    for axes in [Axes { gate_scope: GateScope::RdmaOnly, ..odp }, Axes { pin_gate: PinGate::Refuse, ..odp }] {
        assert_eq!(Served::new(&Lab::new(axes), 4).err(), Some(Errno::EOPNOTSUPP));
    }
}

/// Where changes proceed over pins, a change does not wait for a guest without pins, and still
/// frees no mapped block.
#[test]
fn fault_protects_a_guest_whatever_the_other_axes_say() {
    for rule in [ChangeRule::Proceed, ChangeRule::Orphan, ChangeRule::Wait, ChangeRule::Revoke] {
        let lab = Lab::new(Axes { stranger_change: rule, holder_change: rule, ..preset("odp") });
        let served = Served::new(&lab, 4).unwrap();
        let b = lab.actor();
        assert_eq!(served.maps(), 4 * BLOCK);
        let blocked = b.blocks(UNMAPPING, |task| task.truncate("data", 0));
        assert_eq!((served.exposure(), lab.kernel.usage().allocated), (Exposure::default(), 4), "{rule:?}");
        served.unmapped();
        assert_eq!(blocked.finish(), Ok(()), "{rule:?}");
        assert_eq!(lab.kernel.usage().allocated, 0);
        lab.end([&served.server, &b]);
    }
}

/// If guests were not unmapped, the exposure counts would show it: the zeros in the other tests are
/// not zeros by default.
#[test]
fn a_change_that_does_not_unmap_exposes() {
    let lab = Lab::with(preset("odp"), |config| {
        *config = config.sabotaged_for_tests(Sabotage { no_unmap: true, ..Sabotage::default() });
    });
    let served = Served::new(&lab, 4).unwrap();
    let b = lab.actor();
    assert_eq!(served.maps(), 4 * BLOCK);
    assert_eq!(b.truncate("data", 0), Ok(()));
    assert_eq!((served.demands(), served.exposure().exposed_bytes), (0, blocks(4)));
    assert_eq!(served.export.write(&lab.kernel, 0, &[1]), Ok(()));
    assert_eq!(lab.stale(), 1, "a store that can be seen");
    served.unmapped();
    assert_eq!(served.exposure(), Exposure::default());
}

/// Exposure is counted block by block and reports the blocks.
#[test]
fn exposure_is_exact() {
    let lab = Lab::new(preset("unsafe"));
    let (server, file) = scattered(&lab, 6);
    let served = Served::over(server, file).unwrap();
    let b = lab.actor();
    let pieces = served.export.pieces(&lab.kernel);
    assert_eq!((pieces.len(), served.exposure()), (6, Exposure::default()));
    let fd = b.opens("data");
    b.fallocate(fd, FallocateMode::PunchHole, BLOCK, 2 * BLOCK).unwrap();
    b.truncate("data", 5 * BLOCK).unwrap();
    let gone = [pieces[1], pieces[2], pieces[5]];
    let found = Exposure { exposed_bytes: blocks(3), orphaned_bytes: 0, pieces: gone.to_vec() };
    assert_eq!(served.exposure(), found);
    // A moved block is exposed like a freed one: the guest writes at an offset of another block.
    b.fallocate(fd, FallocateMode::CollapseRange, 0, BLOCK).unwrap();
    assert_eq!(served.exposure(), Exposure { exposed_bytes: blocks(6), pieces: pieces.clone(), ..Exposure::default() });
    served.unmapped();
    assert_eq!(served.exposure(), Exposure::default());
    // A new export sees the file as it is now.
    let again = Served::over(b.clone(), fd).unwrap();
    assert_eq!((again.maps(), again.exposure()), (4 * BLOCK, Exposure::default()));
    again.unmapped();
    lab.end([&served.server, &b]);
}

/// Neighbouring blocks that were freed at different times are reported as one piece.
#[test]
fn exposed_neighbours_are_one_piece() {
    let lab = Lab::new(preset("unsafe"));
    let served = Served::new(&lab, 8).unwrap();
    let [whole] = served.export.pieces(&lab.kernel)[..] else { panic!("not in one piece") };
    for block in [3, 5, 4] {
        served.server.fallocate(served.file, FallocateMode::PunchHole, blocks(block), BLOCK).unwrap();
    }
    let (file_offset, len) = (blocks(3), blocks(3));
    let device_offset = whole.device_offset + file_offset;
    assert_eq!(served.exposure().pieces, [GuestPiece { file_offset, device_offset, len }]);
    served.unmapped();
    lab.end([&served.server]);
}

/// Neighbours in the file that are neighbours on the device are one piece.
#[test]
fn pieces_are_joined() {
    let (lab, [a]) = Lab::cast(preset("unsafe"));
    for (name, runs) in [("one", 1), ("three", 3)] {
        a.provision(name, 64 * BLOCK, Some(runs)).unwrap();
        let fd = a.opens(name);
        // An extent of its own in between, as long as it is unwritten; the export writes it.
        a.fallocate(fd, FallocateMode::ZeroRange { keep_size: true }, 2 * BLOCK, BLOCK).unwrap();
        let served = Served::over(a.clone(), fd).unwrap();
        let pieces = served.export.pieces(&lab.kernel);
        assert_eq!((pieces.len() as u64, served.maps()), (runs, 64 * BLOCK), "{name}");
        assert_eq!(pieces, joined(&a, fd), "{name}");
        served.unmapped();
        served.server.close(served.fd).unwrap();
    }
    lab.end([&a]);
}

/// What fiemap says, joined.
fn joined(a: &Actor, fd: Fd) -> Vec<GuestPiece> {
    let mut pieces: Vec<GuestPiece> = Vec::new();
    for extent in a.fiemap(fd, ALL).unwrap() {
        match pieces.last_mut() {
            Some(last) if last.device_offset + last.len == extent.physical => last.len += extent.length,
            _ => pieces.push(GuestPiece {
                file_offset: extent.logical,
                device_offset: extent.physical,
                len: extent.length,
            }),
        }
    }
    pieces
}

/// Cache lines that a guest stores to after they were freed, on a machine that watches for stale
/// stores. A store by the new owner of a block is not counted as a store of the guest.
#[test]
fn stale_lines_are_counted() {
    let lab = Lab::new(preset("unsafe"));
    let served = Served::new(&lab, 4).unwrap();
    let b = lab.actor();
    let (kernel, device) = (&lab.kernel, lab.kernel.device());
    let pieces = served.export.pieces(kernel);
    assert_eq!(pieces.len(), 1);
    // The guest stores through the device, where no check sees it.
    let store =
        |block: u64, line: u64| device.write(pieces[0].device_offset + block * BLOCK + line * 64 + 7, &[1]).unwrap();
    kernel.watch_stale_guests();
    store(0, 0);
    assert_eq!(b.truncate("data", 2 * BLOCK), Ok(()));
    assert_eq!(kernel.stale_guest_changed_lines(), 0, "freed, and not stored to");
    store(1, 1);
    assert_eq!(kernel.stale_guest_changed_lines(), 0, "its own still");
    store(2, 5);
    store(2, 5);
    store(3, 0);
    store(3, 63);
    assert_eq!(kernel.stale_guest_changed_lines(), 3);
    // All free blocks have an owner now, which writes them: the count stays the same.
    let filler = b.creates("filler");
    while b.fills(filler, b.stat(filler).unwrap().size / BLOCK, 9).is_ok() {}
    assert_eq!(kernel.stale_guest_changed_lines(), 3);
    store(2, 9);
    assert_eq!(kernel.stale_guest_changed_lines(), 3, "a lower bound");
    // The blocks are freed again while the guest still has them mapped: they are watched again.
    b.ftruncate(filler, 0).unwrap();
    assert_eq!(kernel.stale_guest_changed_lines(), 3);
    store(2, 9);
    assert_eq!(kernel.stale_guest_changed_lines(), 4);
    served.unmapped();
    b.truncate("data", 0).unwrap();
    store(0, 1);
    assert_eq!(kernel.stale_guest_changed_lines(), 4, "freed when no guest had it");
    lab.end([&served.server, &b]);
}

/// Without a watch no block is filled. With one, only blocks that a guest still has mapped are
/// filled.
#[test]
fn only_blocks_that_a_guest_maps_are_filled() {
    for (watched, name) in [(false, "unsafe"), (true, "unsafe"), (true, "odp")] {
        let lab = Lab::new(preset(name));
        let served = Served::new(&lab, 4).unwrap();
        let b = lab.actor();
        let pieces = served.export.pieces(&lab.kernel);
        if watched {
            lab.kernel.watch_stale_guests();
        }
        *served.frontend.prompt.lock() = Some((Arc::clone(&lab.kernel), Arc::clone(&served.export)));
        b.truncate("data", 0).unwrap();
        let mut byte = [0];
        lab.kernel.device().read(pieces[0].device_offset, &mut byte).unwrap();
        let filled = watched && name == "unsafe";
        assert_eq!(byte, [if filled { fs_sim::holders::stale_watch::STALE_FILL } else { 1 }], "{name} {watched}");
        *served.frontend.prompt.lock() = None;
        served.unmapped();
        lab.end([&served.server, &b]);
    }
}

/// The removal of a device revokes its guests, and ends when they have unmapped it.
#[test]
fn removal_waits_for_a_mapped_guest() {
    for name in ["man-page", "odp"] {
        let lab = Lab::new(preset(name));
        let served = Served::new(&lab, 4).unwrap();
        assert_eq!(served.maps(), 4 * BLOCK);
        let kernel = Arc::clone(&lab.kernel);
        let removal = spawn(move || kernel.remove_device());
        soon("the demand", || (served.demands() == 1).then_some(()));
        assert!(served.is_dead(), "{name}");
        soon("the wait", || lab.world.sleepers().iter().any(|s| s.reason == "device removal").then_some(()));
        let mut byte = [0];
        assert_eq!(lab.kernel.device().read(0, &mut byte), Ok(()), "{name}: it is still there");
        served.unmapped();
        soon("the end of the removal", || removal.is_over().then_some(()));
        assert!(lab.kernel.device().read(0, &mut byte).is_err(), "{name}");
        lab.end([&served.server]);
    }
}

/// A power cut sends the demand too. The recovered kernel has the file, whether or not the guest
/// has unmapped the old one.
#[test]
fn a_power_cut_under_a_mapped_guest() {
    for name in ["man-page", "odp"] {
        let lab = Lab::new(preset(name));
        let served = Served::new(&lab, 4).unwrap();
        assert_eq!(served.maps(), 4 * BLOCK);
        let durable = lab.kernel.power_cut().unwrap();
        assert_eq!((served.demands(), served.is_dead()), (1, true), "{name}");
        let (kernel, _) = Kernel::recover(Arc::clone(&lab.world), durable, KernelConfig::new(preset(name))).unwrap();
        served.unmapped();
        let a = Actor::adopt(kernel.spawn());
        assert_eq!(a.bytes_of(a.opens("data")), [1, 2, 3, 4], "{name}");
        a.exit();
        assert_eq!(kernel.check_at_rest(), Vec::<String>::new(), "{name}");
    }
}

/// Guests attach and detach while the file shrinks and grows: at no moment has a guest a block
/// mapped that has left the file.
#[test]
fn nothing_is_exposed_while_guests_come_and_go() {
    for name in ["odp", "revoke"] {
        let (lab, [server, b]) = Lab::cast(preset(name));
        // The server is signalled for every lease that it loses.
        server.process().set_disposition(Signal::Sigio, Disposition::Ignore);
        let file = server.writes_file("data", 8, 1);
        let done = Arc::new(AtomicBool::new(false));
        let (over, changer) = (Arc::clone(&done), b.clone());
        let changing = spawn(move || {
            let fd = changer.opens("data");
            for round in 0u64.. {
                let changed = match round % 2 {
                    0 => changer.truncate("data", 2 * BLOCK),
                    _ => changer.fallocate(fd, FallocateMode::Allocate { keep_size: false }, 0, 8 * BLOCK),
                };
                assert!(matches!(changed, Ok(()) | Err(Errno::ETXTBSY)), "{changed:?}");
                if over.load(Ordering::SeqCst) && round > 100 {
                    return;
                }
            }
        });
        let mut mapped = 0;
        soon("guests enough", || {
            let served = match Served::over(server.clone(), file) {
                Ok(served) => served,
                // A change waits; a change is in progress; the file shrank since its size was read;
                // its lease was lost already.
                Err(Errno::EAGAIN | Errno::ETXTBSY | Errno::EFAULT | Errno::EPERM) => return None,
                Err(errno) => panic!("{name}: {errno}"),
            };
            mapped += u64::from(served.maps() > 0);
            for _ in 0..50 {
                assert_eq!(served.exposure(), Exposure::default(), "{name}");
            }
            served.unmapped();
            served.server.close(served.fd).unwrap();
            (mapped == 100).then_some(())
        });
        done.store(true, Ordering::SeqCst);
        changing.join();
        lab.end([&server, &b]);
    }
}
