//! Dialogues about the report of which process blocks which change, and about cycles of waits.
//! `docs/semantics.md`, section 8 (invariant 6) and the scenarios S22, S30, S31, S48.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::time::Duration;

use common::{
    Actor, BREAK_TIME, Lab, every_preset, every_preset_with, exclusive, needs_lease, patient, preset, rule_of,
};
use fs_sim::base::numbers::{Fd, Ino};
use fs_sim::design::{Axes, BusyScope, ChangeRule, GateScope, LastCloseRule, LeaseRules, PinGate, UnlockRule};
use fs_sim::holders::block_layout::IoMode;
use fs_sim::holders::in_flight_io::Transfer;
use fs_sim::inspect::blockers::{Blocker, Blockers, Cause, Effect, FileBlocks, Releaser};
use fs_sim::inspect::changes::PendingChange;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::descriptors::Received;
use fs_sim::{BLOCK, BlockRange, Errno};

const ALL: BlockRange = BlockRange::ALL;

fn ask(lab: &Lab, ino: Ino) -> Blockers {
    lab.kernel.blockers(ino).expect("the inode is there")
}

fn releaser(who: &Actor, fd: Fd) -> Releaser {
    Releaser { pid: who.pid().0, fd: Some(fd.0) }
}

fn leases(blockers: &[Blocker]) -> Vec<&Blocker> {
    blockers.iter().filter(|blocker| matches!(blocker.cause, Cause::Lease { .. })).collect()
}

fn pins(blockers: &[Blocker]) -> Vec<&Blocker> {
    blockers.iter().filter(|blocker| matches!(blocker.cause, Cause::Pin { .. })).collect()
}

fn pins_of(found: &Blockers) -> Vec<&Blocker> {
    pins(&found.stranger)
}

fn effect_of(rule: ChangeRule) -> Effect {
    match rule {
        ChangeRule::Fail => Effect::Refuses,
        ChangeRule::Wait => Effect::WaitedFor,
        ChangeRule::Revoke => Effect::Revoked,
        ChangeRule::Orphan => Effect::Orphaned,
        ChangeRule::Proceed => Effect::Ignored,
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// The list of pending changes: that of `first` waits for `reason` since a second, that of `second`
/// stands behind it.
fn two_changes_are_pending(lab: &Lab, ino: Ino, (first, reason): (&Actor, &str), second: &Actor) {
    lab.advance(SECOND);
    let changes = lab.kernel.pending_changes(ino).expect("the inode is there");
    let [change, behind] = &changes[..] else { panic!("two changes: {changes:?}") };
    let who = |change: &PendingChange| (change.pid, change.task);
    assert_eq!(who(change), (Some(first.pid().0), first.waiter().id().0));
    assert_eq!(who(behind), (Some(second.pid().0), second.waiter().id().0));
    assert_eq!((change.state, behind.state), ("waiting", "queued"));
    assert_eq!(change.ranges, [FileBlocks { start: 2, end: None }]);
    assert_eq!((change.has_turn, behind.has_turn, change.holds_inode), (false, false, false));
    assert_eq!((change.behind.as_slice(), behind.behind.as_slice()), ([].as_slice(), [change.task].as_slice()));
    let reasons = [change, behind].map(|change| change.sleep.as_ref().map(|sleep| sleep.reason.as_str()));
    assert_eq!(reasons, [Some(reason), Some("layout change ahead")]);
    assert_eq!((pins(&change.blockers).len(), behind.blockers.len()), (1, 0));
    let second = SECOND.as_nanos() as u64;
    let ages = [change, behind].map(|change| (change.now_ns - change.since_ns, change.now_ns - change.arrived_ns));
    assert_eq!(ages, [(2 * second, 2 * second), (second, second)]);
    let text = change.to_string() + &behind.to_string();
    assert!(text.contains(": waiting for 2.000 s, came 2.000 s ago\n  sleeps: "), "{text}");
    assert!(text.contains(&format!("\n  stands behind task {}\n", change.task)), "{text}");
    assert!(
        text.contains("\n  meets test region, pin number 1 of process 1, blocks 0..4 (16 KiB): is waited for; "),
        "{text}"
    );
}

/// S30: the report names inode, range, lease, process, descriptor and pin, under every design that
/// allows a pin.
#[test]
fn s30_lease_and_pin_are_named_with_process_and_descriptor() {
    every_preset(|axes| {
        let Some((lab, file)) = Lab::pinned(axes, 4, 1..3) else { return };
        let a = &file.who;
        let inode = a.inode_of(file.fd);
        let found = ask(&lab, inode.ino());
        let pins = pins(&found.stranger);
        assert_eq!(pins.len(), 1);
        assert_eq!((pins[0].ino, pins[0].range), (inode.ino().0, FileBlocks { start: 1, end: Some(3) }));
        assert_eq!(pins[0].effect, effect_of(axes.stranger_change));
        assert_eq!(pins[0].releasers, [releaser(a, file.nic_fd)]);
        let Cause::Pin { kind, registrant, leases: under, .. } = &pins[0].cause else { unreachable!() };
        assert_eq!((*kind, *registrant, under.len()), ("test region", a.pid().0, usize::from(needs_lease(axes))));
        let leases = leases(&found.stranger);
        assert_eq!(leases.len(), usize::from(needs_lease(axes)));
        for lease in leases {
            let Cause::Lease { lease: number, kind, state, taker, pins } = &lease.cause else { unreachable!() };
            assert_eq!((kind.as_str(), *state, *taker), (exclusive(axes).to_string().as_str(), "held", a.pid().0));
            assert_eq!((under.as_slice(), pins.len()), ([*number].as_slice(), 1), "each names the other");
            assert_eq!(lease.releasers, [releaser(a, file.fd)]);
            assert_eq!(lease.effect, effect_of_lease(axes));
        }
        assert!(found.blocked.is_none() && found.queued.is_empty() && found.others.is_empty());
        assert_eq!(found.asked, FileBlocks { start: 0, end: None });

        let elsewhere = lab.kernel.blockers_of(inode.ino(), BlockRange::new(3, 4)).unwrap();
        assert!(pins_of(&elsewhere).is_empty(), "block 3 is not pinned");
        lab.end([a]);
    });
}

/// The effect of an exclusive lease on a stranger's change.
fn effect_of_lease(axes: Axes) -> Effect {
    match axes.stranger_change {
        ChangeRule::Orphan | ChangeRule::Proceed => Effect::Ignored,
        rule => effect_of(rule),
    }
}

/// S30 for a zombie lease: the report names the lease, the pins that keep it, and the processes
/// that could drop those pins, wherever the context is now.
#[test]
fn s30_zombies_and_passed_contexts_are_named_by_their_fd_holders() {
    every_preset(|axes| {
        let Some((lab, file)) = Lab::pinned(axes, 4, 0..4) else { return };
        let (a, b) = (&file.who, lab.actor());
        let ino = a.inode_of(file.fd).ino();
        a.send_fd(b.pid(), file.nic_fd).unwrap();
        let in_flight = ask(&lab, ino);
        assert_eq!(pins(&in_flight.stranger)[0].queued, 1, "unread in a queue");
        a.exit();
        let orphaned = ask(&lab, ino);
        let pins_now = pins(&orphaned.stranger);
        if axes.last_close_while_pinned == Some(LastCloseRule::Revoke) {
            assert_eq!(pins_now, Vec::<&Blocker>::new(), "revoked with the last close");
            return lab.end([a, &b]);
        }
        assert_eq!((pins_now[0].releasers.as_slice(), pins_now[0].queued), ([].as_slice(), 1), "a reader only");
        assert!(
            orphaned.to_string().contains("a process that reads it from 1 queue(s) could release it"),
            "{orphaned}"
        );

        let Ok(Received::Fd(fd)) = b.recv_fd() else { panic!("a descriptor") };
        let passed = ask(&lab, ino);
        let pins_now = pins(&passed.stranger);
        assert_eq!((pins_now[0].releasers.as_slice(), pins_now[0].queued), ([releaser(&b, fd)].as_slice(), 0));
        let Cause::Pin { registrant, holder, .. } = &pins_now[0].cause else { unreachable!() };
        assert_eq!(*registrant, a.pid().0, "and who registered it, though dead");
        let zombies: Vec<_> = leases(&passed.stranger);
        let keeps = matches!(axes.last_close_while_pinned, Some(LastCloseRule::Zombie | LastCloseRule::WaitKillable))
            && needs_lease(axes);
        let held = axes.mr_holds_lease == Some(true) && needs_lease(axes);
        assert_eq!(zombies.len(), usize::from(keeps || held));
        for zombie in zombies {
            let Cause::Lease { state, pins, taker, .. } = &zombie.cause else { unreachable!() };
            assert_eq!(*state, if held { "held" } else { "zombie" });
            assert_eq!((pins.as_slice(), *taker), ([*holder].as_slice(), a.pid().0));
            assert_eq!(zombie.releasers, [releaser(&b, fd)], "the process that has the context");
            assert_eq!(zombie.effect, effect_of_lease(axes));
        }
        lab.end([a, &b]);
    });
}

/// S30: a lease without a descriptor is reported with the processes that keep its open file alive:
/// through regions where the design says so, always through a guest export. A region that is only
/// pinned under the lease cannot release it.
#[test]
fn s30_who_keeps_the_file_open_could_release_its_lease() {
    let keeping = Axes { pin_gate: PinGate::Open, mr_holds_lease: Some(true), ..preset("man-page") };
    let (lab, [a]) = Lab::cast(keeping);
    let f = a.writes_file("data", 2, 1);
    let ino = a.inode_of(f).ino();
    let (nic_fd, nic) = common::Nic::open(&a);
    let _region = nic.pins(&a, f, 0..2).unwrap();
    a.lease(f, LeaseKind::READ_U, ALL).unwrap();
    a.close(f).unwrap();
    let found = ask(&lab, ino);
    assert_eq!(leases(&found.stranger)[0].releasers, [releaser(&a, nic_fd)]);
    lab.end([&a]);

    let (lab, [a]) = Lab::cast(preset("man-page"));
    let f = a.writes_file("disk", 2, 1);
    let ino = a.inode_of(f).ino();
    let (guest, _export) = a.export_to_guest(f).unwrap();
    let (_, nic) = common::Nic::open(&a);
    let _region = nic.pins(&a, f, 0..2).unwrap();
    a.close(f).unwrap();
    let found = ask(&lab, ino);
    assert_eq!(pins(&found.stranger).len(), 2);
    let lease = leases(&found.stranger)[0];
    let Cause::Lease { pins, .. } = &lease.cause else { unreachable!() };
    assert_eq!((lease.releasers.as_slice(), pins.len()), ([releaser(&a, guest)].as_slice(), 2));
    lab.end([&a]);
}

/// S30: a change that waits, the changes that queue behind it, and a lease request that waits with
/// them.
#[test]
fn s30_who_waits_for_whom_and_why() {
    every_preset(|axes| {
        let Some((lab, file)) = Lab::pinned(axes, 4, 0..4) else { return };
        if rule_of(axes, false) != ChangeRule::Wait {
            return lab.end([&file.who]);
        }
        let (b, c, d) = (lab.actor(), lab.actor(), lab.actor());
        let ino = file.who.inode_of(file.fd).ino();
        let fd = d.opens("data");
        let reason = if needs_lease(axes) { "exclusive lease" } else { "long-term pins" };
        let change = b.blocks(reason, |task| task.truncate("data", 2 * BLOCK));
        lab.advance(SECOND);
        let behind = c.blocks("layout change ahead", |task| task.truncate("data", BLOCK));
        let asks = (axes.lease_rules == LeaseRules::Chinner)
            .then(|| d.blocks("layout change that broke the lease", move |task| task.lease(fd, LeaseKind::READ, ALL)));
        let found = ask(&lab, ino);
        let blocked = found.blocked.as_ref().expect("a blocked change");
        assert_eq!((blocked.who.pid, blocked.who.reason.as_str()), (b.pid().0, reason));
        assert_eq!((blocked.who.task, blocked.who.needs.len()), (b.waiter().id().0, 1));
        assert_eq!(blocked.who.needs, [format!("process {}", file.who.pid())]);
        assert_eq!(blocked.range, FileBlocks { start: 2, end: None });
        assert!(blocked.blockers.iter().all(|blocker| blocker.effect == Effect::WaitedFor));
        assert_eq!(
            (leases(&blocked.blockers).len(), pins(&blocked.blockers).len()),
            (usize::from(needs_lease(axes)), 1)
        );
        assert_eq!(found.queued.iter().map(|waiting| waiting.pid).collect::<Vec<_>>(), [c.pid().0]);
        assert_eq!(found.queued[0].needs, [format!("task {}", b.waiter().id().0)]);
        let others: Vec<u32> = found.others.iter().map(|waiting| waiting.pid).collect();
        assert_eq!(others, asks.iter().map(|_| d.pid().0).collect::<Vec<_>>());
        two_changes_are_pending(&lab, ino, (&b, reason), &c);
        let text = found.to_string();
        assert!(
            text.contains(&format!("blocked change of blocks 2.. (from 8 KiB on), task {}", b.waiter().id().0)),
            "{text}"
        );
        assert!(
            text.contains(
                "test region, pin number 1 of process 1, blocks 0..4 (16 KiB): is waited for; process 1 (fd "
            ),
            "{text}"
        );
        file.who.exit();
        assert_eq!(change.finish(), Ok(()));
        if let Some(asks) = asks {
            // The request is granted before or after the next change. If before, that change breaks
            // it.
            asks.finish().unwrap();
            d.unlock(fd, ALL).unwrap();
        }
        assert_eq!(behind.finish(), Ok(()));
        assert_eq!(lab.kernel.pending_changes(ino), Some(Vec::new()));
        assert_eq!(ask(&lab, ino).blocked, None);
        lab.end([&file.who, &b, &c, &d]);
    });
}

/// A breakable lease with its deadline, one that only a mapping holds, and a block-layout client.
#[test]
fn broken_leases_mapped_ones_and_clients_are_named() {
    every_preset_with(LeaseRules::ManPage, |axes| {
        let (lab, [a, b, c]) = Lab::cast(axes);
        let f = a.writes_file("data", 4, 1);
        let ino = a.inode_of(f).ino();
        a.lease(f, LeaseKind::READ, BlockRange::new(0, 2)).unwrap();
        a.mmap(f, 0, BLOCK, false).unwrap();
        a.close(f).unwrap();
        let mapped = ask(&lab, ino);
        assert_eq!(mapped.stranger[0].releasers, [Releaser { pid: a.pid().0, fd: None }], "only a mapping is left");
        assert_eq!(mapped.stranger[0].effect, Effect::Broken);
        let g = c.opens("data");
        let (layout_fd, _) = c.layoutget(g, BlockRange::new(1, 4), IoMode::Read).unwrap();
        let change = b.blocks("lease break", |task| task.truncate("data", 0));
        let found = ask(&lab, ino);
        let deadline = Some(lab.world.now().after(BREAK_TIME).0);
        let blocked = found.blocked.unwrap();
        let told: Vec<_> = blocked.blockers.iter().map(|b| (b.effect, b.deadline_ns, b.releasers.clone())).collect();
        let mapper = vec![Releaser { pid: a.pid().0, fd: None }];
        assert_eq!(told, [(Effect::Broken, deadline, mapper), (Effect::Broken, None, vec![releaser(&c, layout_fd)])]);
        assert_eq!(blocked.who.deadline_ns, deadline);
        let Cause::Lease { state, .. } = &blocked.blockers[0].cause else { unreachable!() };
        assert_eq!(*state, "breaking");
        lab.advance(BREAK_TIME);
        change.expect_blocked("block layout recall");
        let found = ask(&lab, ino).blocked.unwrap();
        let client = Cause::BlockLayout { client: c.pid().0, recalled: true };
        assert_eq!(found.blockers.iter().map(|b| &b.cause).collect::<Vec<_>>(), [&client]);
        assert_eq!(found.blockers[0].deadline_ns, Some(lab.world.now().after(BREAK_TIME * 2).0));
        c.layoutreturn(layout_fd).unwrap();
        assert_eq!(change.finish(), Ok(()));
        lab.end([&a, &b, &c]);
    });
}

/// S31: the report names the process that keeps an exclusive lease. Its death removes the lease.
#[test]
fn s31_the_process_that_keeps_a_lease_is_named() {
    every_preset(|axes| {
        if axes.lease_rules == LeaseRules::None {
            return;
        }
        let (lab, [a]) = Lab::cast(axes);
        let f = a.writes_file("data", 1, 1);
        let ino = a.inode_of(f).ino();
        a.lease(f, exclusive(axes), ALL).unwrap();
        let child = a.child();
        let found = ask(&lab, ino);
        assert_eq!(found.stranger[0].releasers, [releaser(&a, f), releaser(&child, f)], "the child has it too");
        let blocks = matches!(axes.stranger_change, ChangeRule::Fail | ChangeRule::Wait);
        assert_eq!(found.against_stranger().count(), usize::from(blocks));
        a.exit();
        assert_eq!(ask(&lab, ino).stranger[0].releasers, [releaser(&child, f)]);
        child.exit();
        assert_eq!(ask(&lab, ino).stranger, []);
        lab.end([&a, &child]);
    });
}

/// Small holders are reported like the others (S36), and the report can be serialised.
#[test]
fn s36_small_holders_are_named_and_the_answer_is_json() {
    every_preset(|axes| {
        if !common::can_pin(axes) || axes.gate_scope != GateScope::All {
            return;
        }
        let (lab, [a]) = Lab::cast(axes);
        let f = a.writes_file("data", 2, 1);
        if needs_lease(axes) {
            a.lease(f, exclusive(axes), ALL).unwrap();
        }
        let va = a.mmap(f, 0, 2 * BLOCK, true).unwrap();
        let (xdp, _) = a.xdp_socket().unwrap();
        a.register_umem(xdp, va, BLOCK).unwrap();
        let found = ask(&lab, a.inode_of(f).ino());
        let pins = pins(&found.stranger);
        assert_eq!(pins[0].releasers, [releaser(&a, xdp)]);
        assert!(
            pins[0].to_string().starts_with("AF_XDP umem, pin number 1 of process 1, blocks 0..1 (4 KiB): "),
            "{}",
            pins[0]
        );
        let json = serde_json::to_value(&found).unwrap();
        let last = json["stranger"].as_array().unwrap().last().unwrap();
        assert_eq!(last["what"], "pin");
        assert_eq!(last["kind"], "AF_XDP umem");
        assert_eq!(last["range"], serde_json::json!({ "start": 0, "end": 1 }));
        assert_eq!(last["releasers"], serde_json::json!([{ "pid": a.pid().0, "fd": xdp.0 }]));
        assert_eq!(json["asked"]["end"], serde_json::Value::Null);
        lab.end([&a]);
    });
}

/// S48 and invariant 6: a wait that is refused because it would close a cycle is recorded with all
/// participants of the cycle.
#[test]
fn s48_a_cycle_is_recorded_with_its_participants() {
    let axes =
        patient(Axes { stranger_change: ChangeRule::Wait, holder_change: ChangeRule::Wait, ..preset("man-page") });
    let (lab, [a, b]) = Lab::cast(axes);
    let (fa, fb) = (a.writes_file("one", 2, 1), b.writes_file("two", 2, 1));
    a.lease(fa, LeaseKind::READ_U, ALL).unwrap();
    b.lease(fb, LeaseKind::READ_U, ALL).unwrap();
    let blocked = a.blocks("exclusive lease", |task| task.truncate("two", 0));
    assert_eq!((lab.kernel.deadlocks(), lab.kernel.stuck()), (vec![], vec![]), "b is awake");
    assert_eq!(b.truncate("one", 0), Err(Errno::EDEADLK));
    let deadlocks = lab.kernel.deadlocks();
    let members: Vec<_> = deadlocks[0].participants.iter().map(|p| (p.task, p.pid, p.reason)).collect();
    assert_eq!(
        members,
        [(b.waiter().id(), b.pid(), "exclusive lease"), (a.waiter().id(), a.pid(), "exclusive lease")],
        "the refused one first"
    );
    assert_eq!(deadlocks.len() as u64, lab.kernel.counters.deadlocks.get());
    assert!(lab.kernel.stuck().is_empty(), "it was refused, so no task is stuck");
    b.unlock(fb, ALL).unwrap();
    assert_eq!(blocked.finish(), Ok(()));
    lab.end([&a, &b]);
}

/// A process that would wait for itself is a cycle of one. All such refusals are counted; the first
/// of them are kept.
#[test]
fn waiting_for_oneself_is_a_cycle_of_one() {
    let (lab, file) =
        Lab::pinned(Axes { unlock_while_pinned: Some(UnlockRule::Wait), ..preset("man-page") }, 2, 0..2).unwrap();
    let a = &file.who;
    for _ in 0..fs_sim::deadlock::graph::DEADLOCKS_MAX + 3 {
        assert_eq!(a.unlock(file.fd, ALL), Err(Errno::EDEADLK));
    }
    let deadlocks = lab.kernel.deadlocks();
    assert_eq!(deadlocks.len(), fs_sim::deadlock::graph::DEADLOCKS_MAX, "bounded");
    assert_eq!(lab.kernel.counters.deadlocks.get(), fs_sim::deadlock::graph::DEADLOCKS_MAX as u64 + 3);
    let [only] = &deadlocks[0].participants[..] else { panic!("a cycle of one") };
    assert_eq!((only.pid, only.reason), (a.pid(), "unlock while pinned"));
    assert_eq!(only.needs[0].any_of, [a.pid()]);
    lab.end([a]);
}

/// Direct I/O in flight blocks a change too. The report names the process that could complete the
/// I/O.
#[test]
fn io_in_flight_is_named() {
    every_preset(|axes| {
        let (lab, [a, b]) = Lab::cast(axes);
        let f = a.writes_file("data", 4, 1);
        let io = a.submit_direct_io(f, BLOCK, 2 * BLOCK, Transfer::Read).unwrap();
        let ino = a.inode_of(f).ino();
        let ignored = axes.stranger_change == ChangeRule::Proceed && axes.holder_change == ChangeRule::Proceed;
        let expected = Blocker {
            cause: Cause::DirectIo { process: a.pid().0 },
            ino: ino.0,
            range: FileBlocks { start: 1, end: Some(3) },
            effect: if ignored { Effect::Ignored } else { Effect::WaitedFor },
            deadline_ns: None,
            releasers: vec![releaser(&a, f)],
            queued: 0,
        };
        let found = ask(&lab, ino);
        assert_eq!(found.stranger, std::slice::from_ref(&expected));
        assert!(found.blocked.is_none());
        let elsewhere = lab.kernel.blockers_of(ino, BlockRange::new(0, 1)).unwrap().stranger;
        // Where pins anywhere in the file stand in the way, they are named for block 0 too.
        assert_eq!(elsewhere.is_empty(), ignored || axes.busy_scope == BusyScope::Range, "block 0 has none");
        if !ignored {
            let blocked = b.blocks("pins draining", |task| task.truncate("data", BLOCK));
            let found = ask(&lab, ino);
            let change = found.blocked.expect("the change that waits");
            assert_eq!((change.who.pid, change.who.needs), (b.pid().0, vec![format!("process {}", a.pid())]));
            assert_eq!(change.range, FileBlocks { start: 1, end: None });
            assert_eq!(change.blockers, [expected]);
            io.complete(&a, &mut [0; 2 * BLOCK as usize]).unwrap();
            blocked.finish().unwrap();
        } else {
            io.complete(&a, &mut [0; 2 * BLOCK as usize]).unwrap();
        }
        assert!(ask(&lab, ino).stranger.is_empty(), "nothing in flight");
        lab.end([&a, &b]);
    });
}
