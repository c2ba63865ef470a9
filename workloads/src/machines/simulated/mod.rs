//! The simulated machine that scenarios run on.
//!
//! It owns one simulated kernel with a virtual clock, the processes of one scenario, and the names
//! that the scenario has given to things. Invariant: between two steps the machine is quiescent
//! (see `threads`), so what a step sees follows from the steps before it alone. Kernel counterpart:
//! none; it is the user's side of the system call boundary.
//!
//! A signal that finds a process outside a call runs its handler at once, as on a real machine; one
//! that finds all of its threads in calls stays pending, and ends those that a signal ends.
//!
//! The files of this folder import each other: [`Simulation`] makes a `Call` of a step, and each
//! kind of call is performed by a file of its own, with the state of the simulation.

mod bindings;
mod calls;
mod files;
mod holders;
mod posted;
mod processes;
mod queries;
mod queue_pairs;
mod rdma;
mod regions;
mod requests;
mod threads;
mod windows;

use std::collections::BTreeMap;
use std::time::Duration;

use emulator::World;
use emulator::device::DevicePool;
use emulator::sync::Arc;
use fs_sim::base::numbers::Pid;
use fs_sim::design::Axes;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::signals::{Disposition, SigInfo, Signal};
use fs_sim::{Errno, Kernel, KernelConfig, Sabotage, Task};
use rdma_sim::Nic;

use self::bindings::{Made, Thing};
use self::calls::Call;
use self::threads::{IdleThreads, ThreadPool};
use crate::language::{Actor, Contents, FileSetup, Query, Setup, processes_named};
use crate::machines::machine::{Machine, Progress, Trouble};
use crate::ops::Op;

/// What machines that follow one another use again: to make it costs more than most scenarios.
#[derive(Default)]
pub(crate) struct ReusedParts {
    devices: DevicePool,
    threads: IdleThreads,
}

/// See the module.
pub struct Simulation {
    kernel: Arc<Kernel>,
    config: KernelConfig,
    world: Arc<World>,
    /// Real time, for the limit on a call that neither ends nor sleeps.
    clock: World,
    threads: ThreadPool,
    pids: BTreeMap<Pid, String>,
    names: BTreeMap<String, Thing>,
    /// The process that gave each name.
    namers: BTreeMap<String, String>,
    /// The parent of each forked process.
    parents: BTreeMap<String, String>,
    /// Outcomes of calls that had blocked and have ended since.
    returned: BTreeMap<Actor, String>,
    /// Signals handled, by process, and not looked at yet.
    handled: BTreeMap<String, Vec<Signal>>,
    /// The addresses that SIGBUS told, by process, and not looked at yet.
    bad_addresses: BTreeMap<String, Vec<u64>>,
    wrong: Vec<String>,
}

impl Simulation {
    /// A machine for a scenario under a design.
    ///
    /// # Errors
    /// [`Trouble::CannotRun`] if its memory can't be mapped; [`Trouble::Script`] if its files don't
    /// fit.
    pub fn new(setup: &Setup, axes: Axes) -> Result<Simulation, Trouble> {
        Simulation::made_of(&ReusedParts::default(), setup, axes, Sabotage::default())
    }

    /// The same with device and threads of `parts`, and with rules of the kernel broken. Only tests
    /// break one.
    ///
    /// # Errors
    /// As [`Simulation::new`].
    pub(crate) fn made_of(
        parts: &ReusedParts,
        setup: &Setup,
        axes: Axes,
        sabotage: Sabotage,
    ) -> Result<Simulation, Trouble> {
        let cannot = |error: std::io::Error| Trouble::CannotRun(format!("no simulated device: {error}"));
        let world = Arc::new(World::in_turns(1));
        let device = parts.devices.memory(setup.device).map_err(|error| Trouble::CannotRun(error.to_string()))?;
        let memlock_pages = setup.memlock.map_or(u64::MAX / 2, |bytes| bytes / fs_sim::BLOCK);
        let mut config = KernelConfig::new(axes).sabotaged_for_tests(sabotage);
        config.options = setup.options;
        config.memlock_pages = memlock_pages;
        let kernel = Kernel::new(Arc::clone(&world), device, config).map_err(cannot)?;
        let maker = kernel.spawn();
        for file in &setup.files {
            make_file(&maker, file).map_err(|errno| {
                let size = crate::input::Size(file.size);
                Trouble::Script(format!("the file `{}` of {size} could not be made: {errno}", file.name))
            })?;
        }
        maker.exit();
        Ok(Simulation {
            kernel,
            config,
            world,
            clock: World::real(1),
            threads: ThreadPool::new(parts.threads.clone()),
            pids: BTreeMap::new(),
            names: BTreeMap::new(),
            namers: BTreeMap::new(),
            parents: BTreeMap::new(),
            returned: BTreeMap::new(),
            handled: BTreeMap::new(),
            bad_addresses: BTreeMap::new(),
            wrong: Vec::new(),
        })
    }

    /// Makes sure that the actor exists.
    fn create_actor(&mut self, actor: &Actor) -> Result<(), Trouble> {
        if self.threads.task(actor).is_some() {
            return Ok(());
        }
        let task = match self.threads.task_of(&actor.process) {
            Some(task) => task.thread(),
            None if actor.thread == 1 => self.kernel.spawn(),
            None => return Err(Trouble::Script(format!("{} does not exist yet", actor.process))),
        };
        if actor.thread == 1 {
            for signal in [Signal::Sigio, Signal::Sigusr1] {
                task.process().set_disposition(signal, Disposition::Handler);
            }
        }
        self.spawn(actor.clone(), task)
    }

    fn spawn(&mut self, actor: Actor, task: Task) -> Result<(), Trouble> {
        self.pids.insert(task.pid(), actor.process.clone());
        self.threads.spawn(actor, task)
    }

    /// Waits for quiescence, notes what has ended, runs signal handlers.
    fn settle(&mut self) -> Result<(), Trouble> {
        loop {
            for finished in self.threads.settle(&self.world, &self.clock)? {
                match (finished.done.made, finished.bind) {
                    (Some(Made::Thing(thing)), Some(name)) => {
                        self.namers.insert(name.clone(), finished.actor.process.clone());
                        self.names.insert(name, thing);
                    }
                    (Some(Made::Process(task)), Some(name)) => {
                        self.parents.insert(name.clone(), finished.actor.process.clone());
                        self.spawn(Actor { process: name, thread: 1 }, task)?;
                    }
                    _ => {}
                }
                self.returned.insert(finished.actor, finished.done.outcome);
            }
            if !self.run_handlers() {
                self.note_stuck();
                return Ok(());
            }
        }
    }

    /// Runs the handlers of processes that have a thread outside a call. True if one ran: others
    /// may have something to do now.
    fn run_handlers(&mut self) -> bool {
        let mut ran = false;
        let free: Vec<(String, Arc<Task>)> = self
            .threads
            .all()
            .filter(|(_, _, busy)| !busy)
            .map(|(actor, task, _)| (actor.process.clone(), Arc::clone(task)))
            .collect();
        for (process, task) in free {
            let signals = task.take_signals();
            ran |= !signals.is_empty();
            // Of a standard signal that is pending twice the handler runs once.
            let mut pending: Vec<Signal> = Vec::new();
            for info in signals {
                if !pending.contains(&info.signal) {
                    pending.push(info.signal);
                    let address = info.address.filter(|_| info.signal == Signal::Sigbus);
                    self.bad_addresses.entry(process.clone()).or_default().extend(address);
                }
            }
            self.handled.entry(process).or_default().extend(pending);
        }
        ran
    }

    /// Every thread is at rest: a task that waits forever now is in a deadlock that was not
    /// refused. Of tasks in waits that can't be refused, and of those behind them, the script must
    /// state that they are stuck.
    fn note_stuck(&mut self) {
        let stuck = self.kernel.unrefused_deadlock();
        if stuck.is_empty() {
            return;
        }
        let who: Vec<String> = stuck.iter().map(ToString::to_string).collect();
        let finding = format!("invariant 6: a deadlock: {}", who.join("; "));
        if !self.wrong.contains(&finding) {
            self.wrong.push(finding);
        }
    }

    /// The power fails under `actor`'s call, and the machine boots again.
    fn power_cut(&mut self) -> Result<Progress, Trouble> {
        let cannot = |error: String| Trouble::CannotRun(format!("no power cut: {error}"));
        let durable = self.kernel.power_cut().map_err(|error| cannot(error.to_string()))?;
        let in_calls = self.threads.all().filter(|(_, _, busy)| *busy).map(|(actor, _, _)| actor.clone());
        self.returned = in_calls.map(|actor| (actor, "killed".to_owned())).collect();
        self.wrong.extend(self.threads.shut_down(&self.kernel, &self.world, &self.clock));
        self.names.clear();
        self.namers.clear();
        self.parents.clear();
        self.pids.clear();
        self.wrong.extend(self.kernel.violations());
        let recovered = Kernel::recover(Arc::clone(&self.world), durable, self.config);
        let (kernel, recovered) = recovered.map_err(|error| cannot(error.to_string()))?;
        self.kernel = kernel;
        let (pending, removed) = (recovered.freed_pending, recovered.removed_inodes);
        let lost = recovered.lost_lines.map_or(String::new(), |lines| format!(" lost:{lines}"));
        Ok(Progress::Done(format!("ok pending:{pending} removed:{removed}{lost}")))
    }

    fn process(&self, name: &str) -> Result<&Arc<Task>, Trouble> {
        self.threads.task_of(name).ok_or_else(|| Trouble::Script(format!("{name} does not exist yet")))
    }

    fn where_it_stands(&mut self, actor: &Actor) -> Progress {
        match self.returned.remove(actor) {
            Some(outcome) => Progress::Done(outcome),
            None => Progress::Blocked(self.reason(actor)),
        }
    }
}

/// A file of the setup, made by a process of its own.
fn make_file(maker: &Task, file: &FileSetup) -> Result<(), Errno> {
    let fd = maker.open(&file.name, OpenFlags::create())?;
    let whole = file.size > 0;
    match file.contents {
        Contents::Hole => maker.ftruncate(fd, file.size)?,
        Contents::Unwritten if whole => {
            maker.fallocate(fd, FallocateMode::Allocate { keep_size: false }, 0, file.size)?;
        }
        Contents::Byte(byte) => {
            let bytes = vec![byte; file.size.min(1 << 20) as usize];
            let mut at = 0;
            while at < file.size {
                let len = (file.size - at).min(bytes.len() as u64);
                maker.write(fd, at, &bytes[..len as usize])?;
                at += len;
            }
        }
        Contents::Unwritten => {}
    }
    maker.close(fd)
}

impl Machine for Simulation {
    fn perform(&mut self, actor: &Actor, op: &Op, bind: Option<&str>) -> Result<Progress, Trouble> {
        self.create_actor(actor)?;
        let task = Arc::clone(self.process(&actor.process)?);
        if task.process().is_dying() {
            return Err(Trouble::Script(format!("{} is dead", actor.process)));
        }
        if self.threads.is_busy(actor) {
            return Err(Trouble::Script(format!("{actor} is still in a call")));
        }
        if *op == (Op::PowerCut {}) {
            return self.power_cut();
        }
        for process in processes_named(op) {
            self.create_actor(&Actor { process, thread: 1 })?;
        }
        let call = Call::new(op, bind, self)?;
        self.returned.remove(actor);
        self.threads.begin(actor, bind.map(str::to_owned), Box::new(move |task| call.run(task)))?;
        self.settle()?;
        Ok(self.where_it_stands(actor))
    }

    fn progress(&mut self, actor: &Actor) -> Result<Progress, Trouble> {
        Ok(self.where_it_stands(actor))
    }

    fn kill(&mut self, process: &str, signal: &'static str) -> Result<(), Trouble> {
        let task = self.process(process)?;
        if task.process().is_dying() {
            return Err(Trouble::Script(format!("{process} is dead")));
        }
        let pid = task.pid();
        self.kernel.send_signal(pid, SigInfo::of(bindings::signal(signal)));
        self.settle()
    }

    fn advance(&mut self, span: Duration) -> Result<(), Trouble> {
        let end = self.world.now().after(span);
        // I/O that ends by itself on the way ends at its own moment.
        while let Some(due) = self.kernel.next_io_due().filter(|due| *due <= end) {
            self.world.advance(Duration::from_nanos(due.since(self.world.now())));
            self.kernel.complete_due_io();
            self.settle()?;
        }
        self.world.advance(Duration::from_nanos(end.since(self.world.now())));
        self.settle()
    }

    fn ask(&mut self, query: &Query) -> Result<String, Trouble> {
        self.look(query)
    }

    fn state(&self) -> Vec<String> {
        self.state_report()
    }

    fn finish(mut self: Box<Self>) -> Vec<String> {
        let mut wrong = std::mem::take(&mut self.wrong);
        self.names.clear();
        wrong.extend(self.threads.shut_down(&self.kernel, &self.world, &self.clock));
        wrong.extend(self.kernel.check_at_rest());
        let regions = Nic::of(&self.kernel).live_regions();
        if regions > 0 {
            wrong.push(format!("invariant 3: {regions} memory regions live on after their contexts"));
        }
        wrong
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        self.threads.shut_down(&self.kernel, &self.world, &self.clock);
    }
}
