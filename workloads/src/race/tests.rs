//! Small races: steps, outcomes, verdicts.

use super::job::Job;
use super::op_stream::OpStream;
use super::run::{new_machine, run_sabotaged};
use super::shared::{RaceShared, RunLimits};
use super::supervisor::{TakenSteps, supervise};
use super::*;
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, thread};
use emulator::wait::{WaitFor, WaitQueue};
use fs_sim::Sabotage;
use fs_sim::design::{ChangeRule, LastCloseRule, PinGate, UnlockRule, presets};
use reports::{DesignResult, RaceVerdict};
use std::task::Poll;
use std::time::Duration;

/// Longer than any test runs, so that something else always ends the run.
const NEVER: Duration = Duration::from_secs(3600);

fn preset(name: &str) -> DesignRun {
    let preset = presets().iter().find(|preset| preset.name == name).expect("a preset");
    let negative_control = preset.axes.stranger_change == ChangeRule::Proceed;
    DesignRun { name: name.to_owned(), axes: preset.axes, negative_control }
}

/// A run that ends when every actor has taken `choices_max` steps.
fn limited(design: &DesignRun, seed: u64, choices_max: u64) -> DesignResult {
    let limits = RunLimits { choices_max, ..RunLimits::default() };
    let shared = new_machine(&Job::built_in(), design, seed, Sabotage::default(), limits).expect("a machine");
    let ended = supervise(&shared, NEVER, &StopFlag::new(), &mut |_| {}, None);
    assert!(!ended.interrupted);
    outcome::judge(&shared, design, ended).0
}

fn timed(designs: Vec<DesignRun>, seed: u64, sabotage: Sabotage) -> RaceReport {
    let job = Job::built_in().quick();
    let duration_per_design = job.duration;
    let config = RaceConfig { job, designs, seed, duration_per_design, threads: None };
    run_sabotaged(config, sabotage, &Quiet, &StopFlag::new()).expect("a race")
}

/// Seed 7 under two very different designs: one fails changes, the other lets many tasks wait and
/// many processes be killed.
#[test]
fn two_runs_with_one_seed_take_the_same_10000_steps_whatever_their_outcome() {
    const CHOICES: u64 = 10_000;
    let job = Job::built_in();
    let take = |name: &str| {
        let taken = Arc::new(TakenSteps::default());
        let limits = RunLimits { choices_max: CHOICES, ..RunLimits::default() };
        let shared = new_machine(&job, &preset(name), 7, Sabotage::default(), limits).unwrap();
        let ended = supervise(&shared, NEVER, &StopFlag::new(), &mut |_| {}, Some(&taken));
        assert_eq!(ended.broken, [""; 0]);
        std::mem::take(&mut *taken.lock())
    };
    let (first, second) = (take("rfc-v2"), take("chinner-2025"));
    assert_eq!(first.len(), job.actors().len());
    for (actor, role) in job.actors().into_iter().enumerate() {
        assert_eq!(first[&actor].len() as u64, CHOICES, "actor {actor}");
        assert!(first[&actor] == second[&actor], "actor {actor} took other steps in the second run");
        let drawn: Vec<_> = OpStream::new(7, &job, actor as u64, role).take(CHOICES as usize).collect();
        assert!(first[&actor] == drawn, "actor {actor} took other steps than its stream says");
    }
}

#[test]
fn every_preset_comes_to_the_verdict_that_its_axes_imply_and_breaks_nothing() {
    for preset in presets() {
        let name = preset.name;
        let design = self::preset(name);
        let result = limited(&design, 3, 4_000);
        assert_eq!(result.violations, [""; 0], "{name}");
        let counters = &result.counters;
        let axes = &preset.axes;
        let expected = match () {
            () if axes.stranger_change == ChangeRule::Proceed => RaceVerdict::Corrupts,
            () if axes.pin_gate == PinGate::Refuse => RaceVerdict::Refuses,
            () if axes.last_close_while_pinned == Some(LastCloseRule::WaitKillable) => RaceVerdict::Stalls,
            // An unlock waits if another process holds the context too, and could deregister: in so
            // short a race by chance.
            () if axes.unlock_while_pinned == Some(UnlockRule::Wait) && result.verdict == RaceVerdict::Stalls => {
                RaceVerdict::Stalls
            }
            () => RaceVerdict::Safe,
        };
        assert_eq!(result.verdict, expected, "{name}: {counters:?}");
        assert_eq!(counters.stale_dma > 0, expected == RaceVerdict::Corrupts, "{name}");
        assert!(counters.truncate_done > 0 && counters.punch_done > 0, "{name}: {counters:?}");
        assert!(counters.reads > 0 && counters.writes > 0 && counters.extends > 0, "{name}: {counters:?}");
        assert!(counters.pin_retries > 0, "{name}: no pin met a change");
        let refuses = expected == RaceVerdict::Refuses;
        assert_eq!(counters.registrations_granted == 0, refuses, "{name}: {counters:?}");
        assert_eq!(counters.dma_operations == 0, refuses, "{name}: {counters:?}");
        let killable = axes.last_close_while_pinned == Some(LastCloseRule::WaitKillable);
        assert_eq!(counters.processes_killed > 0, killable, "{name}: {counters:?}");
        if expected != RaceVerdict::Corrupts {
            assert!(counters.closes_met_pin > 0, "{name}: no close met a pin");
        }
        let times = &result.latency_ns;
        assert_eq!(times["truncate"].count, counters.truncate_done, "{name}");
        assert_eq!(times["register"].count, counters.registrations_granted, "{name}");
        assert_eq!(times["dma"].count, counters.dma_operations, "{name}");
        assert_eq!(result.operations, counters.operations);
    }
}

/// A change that waits only for an earlier change can't be part of a deadlock.
#[test]
fn without_leases_or_pins_no_deadlock_is_reported() {
    let result = limited(&preset("mainline"), 5, 40_000);
    assert_eq!(result.counters.deadlocks, 0);
    assert!(result.counters.truncate_waited > 0, "changes did meet: {:?}", result.counters);
}

#[test]
fn a_rule_broken_on_purpose_is_found_on_4_of_5_seeds_and_nothing_is_found_without() {
    let failures =
        |sabotage: Sabotage| (1..=5).filter(|seed| timed(vec![preset("rfc-v2")], *seed, sabotage).failed).count();
    assert_eq!(failures(Sabotage::default()), 0);
    let (no_recheck, free_without_close) = (true, true);
    assert!(failures(Sabotage { no_recheck, ..Sabotage::default() }) >= 4);
    assert!(failures(Sabotage { free_without_close, ..Sabotage::default() }) >= 4);
}

#[test]
fn a_negative_control_that_shows_nothing_is_a_violation() {
    let design = DesignRun { negative_control: true, ..preset("rfc-v2") };
    let result = limited(&design, 1, 200);
    assert_eq!(result.violations, ["the negative control showed no stale DMA: the detectors saw nothing"]);
    assert!(result.expected_corruption);
}

#[test]
fn unexpected_corruption_is_a_violation_with_evidence() {
    let design = DesignRun { negative_control: false, ..preset("unsafe") };
    let result = limited(&design, 1, 2_000);
    assert!(result.violations.iter().any(|what| what.starts_with("invariant 2: ")), "{:?}", result.violations);
    assert!(!result.findings.is_empty());
    assert_eq!(result.finding_count(), result.counters.stale_dma);
    assert!(
        result.findings.iter().any(|finding| !finding.trace.is_empty() && finding.region.starts_with("RDMA region"))
    );
}

#[test]
fn the_stop_flag_ends_a_race_which_is_reported_as_far_as_it_came() {
    struct StopAtFirstSight<'a>(&'a StopFlag);
    impl RaceProgress for StopAtFirstSight<'_> {
        fn snapshot(&self, snapshot: &Snapshot) {
            assert!(snapshot.operations >= snapshot.dma);
            self.0.stop();
        }
    }
    let stop = StopFlag::new();
    let config = RaceConfig {
        job: Job::built_in(),
        designs: vec![preset("rfc-v2"), preset("kara")],
        seed: 2,
        duration_per_design: NEVER,
        threads: Some(4),
    };
    let report = run(config, &StopAtFirstSight(&stop), &stop).unwrap();
    assert!(report.result.interrupted && !report.failed, "{:?}", report.result.designs[0].violations);
    let names: Vec<&str> = report.result.designs.iter().map(|design| design.name.as_str()).collect();
    assert_eq!(names, ["rfc-v2"], "the second design did not begin");
    assert_eq!(report.result.job.threads, 4);
    assert!(report.result.designs[0].operations > 0);
    assert_eq!(report.latencies.len(), 1);
}

/// A thread that sleeps for `how` as one more actor, and what ends its sleep.
struct Sleepless {
    queue: Arc<WaitQueue>,
    over: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Sleepless {
    fn join(shared: &Arc<RaceShared>, how: WaitFor) -> Sleepless {
        shared.running.fetch_add(1, Ordering::SeqCst);
        let process = shared.spawn();
        let (queue, over) = (Arc::new(WaitQueue::new()), Arc::new(AtomicBool::new(false)));
        let (shared, sleeps_on, ends) = (Arc::clone(shared), Arc::clone(&queue), Arc::clone(&over));
        let thread = thread::spawn(move || {
            let ready = || if ends.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending };
            let _interrupted = sleeps_on.wait(shared.kernel.world(), process.waiter(), how, ready);
            drop(process);
            shared.finished();
        });
        Sleepless { queue, over, thread }
    }

    fn end(self) {
        self.over.store(true, Ordering::SeqCst);
        self.queue.wake_all();
        self.thread.join().expect("no panic");
    }
}

/// Whether an actor was left behind, and the result, of a run in which one more actor sleeps for
/// `how`.
fn with_a_sleeper(how: WaitFor) -> (bool, DesignResult) {
    let (standstill, watchdog) = (Duration::from_millis(200), Duration::from_millis(600));
    let limits = RunLimits { choices_max: 50, standstill, watchdog };
    let design = preset("rfc-v2");
    let shared = new_machine(&Job::built_in(), &design, 1, Sabotage::default(), limits).expect("a machine");
    let sleeper = Sleepless::join(&shared, how);
    let ended = supervise(&shared, NEVER, &stopped(), &mut |_| {}, None);
    let left_behind = ended.left_behind;
    let (result, _) = outcome::judge(&shared, &design, ended);
    sleeper.end();
    (left_behind, result)
}

#[test]
fn a_sleeper_without_a_waker_is_reported_and_killed() {
    let (left_behind, result) = with_a_sleeper(WaitFor::interruptible("something that never comes"));
    assert!(!left_behind, "a signal ends this sleep");
    let said = |what: &str| result.violations.iter().any(|violation| violation.contains(what));
    assert!(said("no task is left to wake them") && said("something that never comes"), "{:?}", result.violations);
    assert_eq!(result.violations.len(), 2, "all else is in order: {:?}", result.violations);
    assert_eq!(result.counters.processes_killed, 0, "not by the design");
}

/// Two actors wake each other again and again, and sleep for the same reason each time, for three
/// times the standstill time. At every moment one of them is awake or woken: that is slow, and no
/// standstill.
#[test]
fn actors_that_look_again_and_again_are_no_standstill() {
    let limits =
        RunLimits { choices_max: 50, standstill: Duration::from_millis(200), watchdog: Duration::from_secs(60) };
    let shared = new_machine(&Job::built_in(), &preset("rfc-v2"), 1, Sabotage::default(), limits).expect("a machine");
    let end = shared.kernel.world().now().after(3 * limits.standstill);
    let queues = [(); 2].map(|()| Arc::new(WaitQueue::new()));
    let actors = [0, 1].map(|own| {
        shared.running.fetch_add(1, Ordering::SeqCst);
        let (shared, queues, process) = (Arc::clone(&shared), queues.clone(), shared.spawn());
        thread::spawn(move || {
            let ready = || {
                queues[1 - own].wake_all();
                let over = shared.kernel.world().now() >= end;
                if over { Poll::Ready(()) } else { Poll::Pending }
            };
            let how = WaitFor::interruptible("something slow");
            let waited = queues[own].wait(shared.kernel.world(), process.waiter(), how, ready);
            queues[1 - own].wake_all();
            drop(process);
            shared.finished();
            waited.is_ok()
        })
    });
    let ended = supervise(&shared, NEVER, &stopped(), &mut |_| {}, None);
    assert!(!ended.left_behind && ended.broken.is_empty(), "{:?}", ended.broken);
    assert!(actors.into_iter().all(|actor| actor.join().expect("no panic")), "none was killed");
}

#[test]
fn a_sleeper_that_no_signal_wakes_is_reported_and_left_behind() {
    let (left_behind, result) = with_a_sleeper(WaitFor::uninterruptible("something that never comes"));
    assert!(left_behind);
    let said = |what: &str| result.violations.iter().any(|violation| violation.contains(what));
    assert!(said("something that never comes"), "{:?}", result.violations);
    assert!(said("1 actors did not end, none of them within 600ms"), "{:?}", result.violations);
}

fn stopped() -> StopFlag {
    let stop = StopFlag::new();
    stop.stop();
    stop
}

#[test]
fn what_cannot_be_run_is_an_error() {
    let config =
        |designs, threads| RaceConfig { job: Job::built_in(), designs, seed: 1, duration_per_design: NEVER, threads };
    let error = |config| run(config, &Quiet, &stopped()).unwrap_err().to_string();
    assert!(error(config(Vec::new(), None)).starts_with("a race needs a design"));
    assert!(error(config(vec![preset("kara")], Some(1))).starts_with("a race needs from 2 threads"));
}
