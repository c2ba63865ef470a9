//! The watchdog: a test that makes no progress fails and names its sleepers; it never hangs.
//!
//! It owns the register of a test's threads. Invariant: a thread of a test is started by [`spawn`]
//! or [`spawn_in`], so the register knows how many threads there are. A test is stuck when every
//! thread of it sleeps in the simulated kernel, or waits for such a thread to end, and no sleeper
//! has been woken. That is an exact fact ([`World::rest`]), so the test fails at once. Spins are
//! not sleeps: for them a limit in real time is the last resort ([`PATIENCE`]).

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "it watches real threads in real time")]

use std::fmt::Write as _;
use std::sync::Weak;
use std::time::{Duration, Instant};

use emulator::World;
use emulator::runtime::world::{Rest, Sleeper};
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::thread::{self, JoinHandle, Scope, ScopedJoinHandle};
use emulator::sync::{Arc, Mutex};
use fs_sim::Kernel;

/// A test ends when nothing has changed for so long in what is blocked.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the watchdog's own thread looks, and after how many looks in a row it gives up a stuck
/// test. A thread that waits in [`Spawned::join`] finds out first, and fails with a panic of its
/// own.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const STUCK_LOOKS: u32 = 25;

/// The world of a lab, whether its clock is virtual, and its kernel.
struct WatchedKernel {
    world: Weak<World>,
    is_virtual: bool,
    kernel: Weak<Kernel>,
}

#[derive(Default)]
struct GroupState {
    /// Threads that have been started and have not ended, the test's own among them.
    live: usize,
    /// For each thread that waits in `join`: whether the thread that it waits for has ended.
    joins: Vec<Arc<AtomicBool>>,
    watched: Vec<WatchedKernel>,
    /// Grows with every step that the test takes through this module.
    steps: u64,
}

/// The threads of one test.
pub(crate) struct ThreadGroup {
    test: String,
    state: Mutex<GroupState>,
}

thread_local! {
    static GROUP: std::cell::OnceCell<Arc<ThreadGroup>> = const { std::cell::OnceCell::new() };
}

/// The group of the calling thread. The first call in a test starts its watchdog.
pub(crate) fn group() -> Arc<ThreadGroup> {
    GROUP.with(|group| Arc::clone(group.get_or_init(ThreadGroup::start)))
}

/// Watches `kernel`, which runs on `world`.
pub(crate) fn watch(world: &Arc<World>, kernel: &Arc<Kernel>, is_virtual: bool) {
    let group = group();
    let mut state = group.state.lock();
    state.watched.retain(|watched| watched.kernel.strong_count() > 0);
    state.watched.push(WatchedKernel { world: Arc::downgrade(world), is_virtual, kernel: Arc::downgrade(kernel) });
    state.steps += 1;
}

impl ThreadGroup {
    fn start() -> Arc<ThreadGroup> {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let group = Arc::new(ThreadGroup { test, state: Mutex::new(GroupState { live: 1, ..GroupState::default() }) });
        let watched = Arc::downgrade(&group);
        std::thread::spawn(move || keep_watch(&watched));
        group
    }

    /// Whether no thread can go on, with the names of those asleep. `looking` counts threads that
    /// only look and wake none: the caller, if it calls from a loop that waits for something.
    pub(crate) fn stuck(&self, looking: usize) -> Option<String> {
        // Nothing here begins, ends or is joined while the lock is held.
        let state = self.state.lock();
        let joining = state.joins.iter().filter(|ended| !ended.load(Ordering::SeqCst)).count();
        let asleep = state.live.checked_sub(joining + looking)?;
        let quiet = state.watched.iter().any(|watched| {
            watched.world.upgrade().is_some_and(|world| {
                let timed = !watched.is_virtual && world.sleepers().iter().any(|sleeper| sleeper.deadline.is_some());
                !timed && world.rest(asleep) == Rest::Quiet
            })
        });
        quiet.then(|| report(&state.watched, "every thread of it sleeps, and none has been woken"))
    }

    /// What must change from time to time.
    fn signs_of_life(&self) -> (u64, Vec<Sleeper>) {
        let state = self.state.lock();
        let worlds = state.watched.iter().filter_map(|watched| watched.world.upgrade());
        (state.steps, worlds.flat_map(|world| world.sleepers()).collect())
    }

    /// Ends the whole process: the test's own thread may be the one that sleeps.
    fn give_up(&self, report: &str) -> ! {
        eprintln!("test {} {report}", self.test);
        std::process::exit(101);
    }
}

/// The failure's text: all that is asleep, why, and what it needs.
fn report(watched: &[WatchedKernel], why: &str) -> String {
    let mut text = format!("makes no progress: {why}");
    let mut seen: Vec<Arc<World>> = Vec::new();
    for watched in watched {
        let (Some(world), Some(kernel)) = (watched.world.upgrade(), watched.kernel.upgrade()) else { continue };
        let blocked = kernel.blocked();
        for line in &blocked {
            let _written = write!(text, "\n  {line}");
        }
        if seen.iter().any(|other| Arc::ptr_eq(other, &world)) {
            continue;
        }
        for sleeper in world.sleepers() {
            let Sleeper { waiter, reason, deadline } = sleeper;
            if !blocked.iter().any(|line| line.starts_with(&format!("task {} of ", waiter.0))) {
                let _written = write!(text, "\n  task {}: {reason}, needs no process that is known", waiter.0);
            }
            if let Some(deadline) = deadline {
                let _written = write!(text, "\n  task {}: until {deadline:?}", waiter.0);
            }
        }
        for stuck in kernel.stuck() {
            let _written = write!(text, "\n  in a cycle: {stuck}");
        }
        seen.push(world);
    }
    if seen.is_empty() || seen.iter().all(|world| world.sleepers().is_empty()) {
        text += "\n  nothing sleeps in the kernel";
    }
    text
}

fn keep_watch(group: &std::sync::Weak<ThreadGroup>) {
    let mut stuck_looks = 0;
    let mut last = (Instant::now(), (0, Vec::new()));
    loop {
        std::thread::sleep(LOOK_EVERY);
        let Some(group) = group.upgrade() else { return };
        match group.stuck(0) {
            Some(report) if stuck_looks == STUCK_LOOKS => group.give_up(&report),
            Some(_) => stuck_looks += 1,
            None => stuck_looks = 0,
        }
        let now = group.signs_of_life();
        if last.1 != now {
            last = (Instant::now(), now);
        } else if last.0.elapsed() > PATIENCE {
            let why = format!("for {PATIENCE:?} nothing has changed in what is blocked");
            group.give_up(&report(&group.state.lock().watched, &why));
        }
    }
}

/// Notes the end of a thread, whichever way it ends.
struct EndOfThread {
    group: Arc<ThreadGroup>,
    ended: Arc<AtomicBool>,
}

impl Drop for EndOfThread {
    fn drop(&mut self) {
        let mut state = self.group.state.lock();
        state.live -= 1;
        state.steps += 1;
        self.ended.store(true, Ordering::SeqCst);
    }
}

/// Counts a thread that is about to start. Returns what it runs.
fn enrolled<R>(call: impl FnOnce() -> R) -> (Arc<AtomicBool>, impl FnOnce() -> R) {
    let group = group();
    let ended = Arc::new(AtomicBool::new(false));
    let end = EndOfThread { group: Arc::clone(&group), ended: Arc::clone(&ended) };
    {
        let mut state = group.state.lock();
        state.live += 1;
        state.steps += 1;
    }
    let run = move || {
        GROUP.with(|own| own.set(group).unwrap_or_else(|_| panic!("a new thread is in no group")));
        let _end = end;
        call()
    };
    (ended, run)
}

/// Waits until a thread of the test has ended. Fails as soon as it never can.
fn wait_for_end(ended: &Arc<AtomicBool>) {
    let group = group();
    group.state.lock().joins.push(Arc::clone(ended));
    let mut stuck = None;
    while !ended.load(Ordering::SeqCst) && stuck.is_none() {
        stuck = group.stuck(0);
        thread::yield_now();
    }
    {
        let mut state = group.state.lock();
        if let Some(at) = state.joins.iter().position(|other| Arc::ptr_eq(other, ended)) {
            state.joins.swap_remove(at);
        }
        state.steps += 1;
    }
    if let Some(report) = stuck {
        panic!("{} {report}", group.test);
    }
}

/// A thread of the test.
pub(crate) struct Spawned<R> {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<R>,
}

/// Starts a thread of the test.
pub(crate) fn spawn<R: Send + 'static>(call: impl FnOnce() -> R + Send + 'static) -> Spawned<R> {
    let (ended, run) = enrolled(call);
    Spawned { ended, thread: thread::spawn(run) }
}

impl<R> Spawned<R> {
    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Its result. Fails, with the names of the sleepers, if the thread can never end.
    pub(crate) fn join(self) -> R {
        wait_for_end(&self.ended);
        self.thread.join().expect("the thread panicked")
    }
}

/// A thread of the test that borrows from it.
pub(crate) struct ScopedThread<'scope, R> {
    ended: Arc<AtomicBool>,
    thread: ScopedJoinHandle<'scope, R>,
}

/// Starts a thread of the test in `scope`. It must be joined before the scope ends.
pub(crate) fn spawn_in<'scope, R: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    call: impl FnOnce() -> R + Send + 'scope,
) -> ScopedThread<'scope, R> {
    let (ended, run) = enrolled(call);
    ScopedThread { ended, thread: scope.spawn(run) }
}

impl<R> ScopedThread<'_, R> {
    /// As [`Spawned::join`], but a thread that can never end ends the process: the scope would wait
    /// for it.
    pub(crate) fn join(self) -> R {
        let waiting = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for_end(&self.ended)));
        if waiting.is_err() {
            // The panic's message is out.
            std::process::exit(101);
        }
        self.thread.join().expect("the thread panicked")
    }
}

/// For how long `soon` lets a quiet test be quiet: what it asks may have an effect of its own.
const QUIET_MAX: Duration = Duration::from_secs(2);

/// Repeats `found` until it finds something. Fails, with the names of the sleepers, if every other
/// thread of the test sleeps and it still finds nothing.
pub(crate) fn soon<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let group = group();
    let mut quiet_since: Option<Instant> = None;
    loop {
        for _ in 0..100 {
            if let Some(found) = found() {
                group.state.lock().steps += 1;
                return found;
            }
            thread::yield_now();
        }
        match (group.stuck(1), quiet_since) {
            (None, _) => quiet_since = None,
            (Some(_), None) => quiet_since = Some(Instant::now()),
            (Some(report), Some(since)) if since.elapsed() > QUIET_MAX => {
                panic!("never came: {what}; {} {report}", group.test);
            }
            (Some(_), Some(_)) => {}
        }
    }
}

/// Repeats `holds`, which only looks, until it holds. Fails as soon as it never can.
pub(crate) fn observe(what: &str, mut holds: impl FnMut() -> bool) {
    let group = group();
    while !holds() {
        if let Some(report) = group.stuck(1) {
            // While all sleep, nothing changes any more: this look is the last word.
            assert!(holds(), "never came: {what}; {} {report}", group.test);
            return;
        }
        thread::yield_now();
    }
}
