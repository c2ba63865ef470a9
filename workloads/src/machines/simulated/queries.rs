//! Looks at the simulated machine, in the words of scenarios.
//!
//! It owns the translation of the kernel's answers: processes by their names, things by the names
//! that the scenario gave them.

use emulator::sync::Arc;
use fs_sim::BlockRange;
use fs_sim::base::numbers::{Fd, Pid};
use fs_sim::inspect::blockers::{Blocker, Cause};
use fs_sim::inspect::books::LeaseStatus;
use fs_sim::vfs::inode::Inode;

use super::Simulation;
use super::bindings::{Thing, signal_word};
use crate::language::{Actor, Query, QuerySubject};
use crate::machines::machine::Trouble;
use crate::ops::BindingKind;

impl Simulation {
    pub(super) fn look(&mut self, query: &Query) -> Result<String, Trouble> {
        let of = query.of.as_str();
        Ok(match query.subject {
            QuerySubject::Signals => {
                self.process(of)?;
                let handled = self.handled.remove(of).unwrap_or_default();
                list(handled.into_iter().map(|signal| signal_word(signal).to_owned()).collect(), " ")
            }
            QuerySubject::Poisoned => {
                self.process(of)?;
                let addresses = self.bad_addresses.remove(of).unwrap_or_default();
                list(addresses.into_iter().map(|address| self.place(of, address)).collect(), " ")
            }
            QuerySubject::Badblocks => {
                list(self.kernel.bad_blocks(&*self.inode(of)?).into_iter().map(part).collect(), " ")
            }
            QuerySubject::Process => {
                // A process that SIGKILL can't end yet is still there.
                let dead = !self.kernel.exists(self.process(of)?.pid());
                if dead { "dead" } else { "alive" }.to_owned()
            }
            QuerySubject::Blocked => {
                let actors = self.threads.all().filter(|(actor, _, busy)| *busy && actor.process == of);
                let actors: Vec<Actor> = actors.map(|(actor, _, _)| actor.clone()).collect();
                match actors.is_empty() {
                    true => "no".to_owned(),
                    false => actors.iter().map(|actor| self.reason(actor)).collect::<Vec<_>>().join("; "),
                }
            }
            QuerySubject::Leases => self.leases(&*self.inode(of)?),
            QuerySubject::Pins => {
                let pages: u64 = self.inode(of)?.holders().iter().map(|holder| holder.range.len()).sum();
                pages.to_string()
            }
            QuerySubject::Blockers => self.blockers(&*self.inode(of)?),
            QuerySubject::Orphans => self.kernel.usage().orphaned.to_string(),
            QuerySubject::Stale => {
                let stale = self.kernel.counters.stale_dma.get() > 0;
                if stale { "some" } else { "none" }.to_owned()
            }
            QuerySubject::BrokenExclusivity => self.kernel.counters.broken_exclusivity.get().to_string(),
            QuerySubject::Locked => self.process(of)?.process().locked_pages().to_string(),
            QuerySubject::Unflushed => self.kernel.unflushed_lines(&*self.inode(of)?).to_string(),
            QuerySubject::Size => crate::input::Size(self.inode(of)?.layout(|layout| layout.size())).to_string(),
            QuerySubject::Blocks => self.inode(of)?.layout(|layout| layout.mapped_blocks()).to_string(),
        })
    }

    fn inode(&self, name: &str) -> Result<Arc<Inode>, Trouble> {
        self.kernel.named(name).ok_or_else(|| Trouble::Script(format!("there is no file `{name}` now")))
    }

    /// What an actor's call sleeps on.
    pub(super) fn reason(&self, actor: &Actor) -> String {
        let id = self.threads.task(actor).map(|task| task.waiter().id());
        let sleepers = self.world.sleepers();
        let sleeper = sleepers.iter().find(|sleeper| Some(sleeper.waiter) == id);
        sleeper.map_or(String::new(), |sleeper| sleeper.reason.to_owned())
    }

    /// An address by a mapping of the process, as `m+4KiB`. The mapping's name is one that the
    /// process gave, or else its parent, and so on.
    fn place(&self, process: &str, address: u64) -> String {
        let mut namer = process;
        // A name can be given to a process anew, so the chain of parents could close.
        for _ in 0..=self.parents.len() {
            let given = |name: &String| self.namers.get(name).is_some_and(|by| by == namer);
            for (name, thing) in self.names.iter().filter(|(name, _)| given(name)) {
                let Thing::Map { va, len } = thing else { continue };
                match address.checked_sub(*va).filter(|offset| offset < len) {
                    Some(0) => return name.clone(),
                    Some(offset) => return format!("{name}+{}", crate::input::Size(offset)),
                    None => {}
                }
            }
            let Some(parent) = self.parents.get(namer) else { break };
            namer = parent;
        }
        format!("{address:#x}")
    }

    fn process_name(&self, pid: Pid) -> String {
        self.pids.get(&pid).cloned().unwrap_or_else(|| format!("process {pid}"))
    }

    fn leases(&self, inode: &Inode) -> String {
        let mut words: Vec<String> = inode
            .leases()
            .iter()
            .map(|lease| {
                let state = match lease.state {
                    LeaseStatus::Held => "",
                    LeaseStatus::Breaking => ":breaking",
                    LeaseStatus::Zombie => ":zombie",
                };
                format!("{}:{}{}{state}", self.process_name(lease.pid), lease.kind, part(lease.range))
            })
            .collect();
        words.sort();
        list(words, " ")
    }

    /// What stands against the change that is blocked, or against a stranger's change of the whole
    /// file, by the names of the scenario: `A:f:read+U`, `B:ctx:mr[0..512)`.
    fn blockers(&self, inode: &Inode) -> String {
        let Some(found) = self.kernel.blockers(inode.ino()) else { return "none".to_owned() };
        let blocking = match &found.blocked {
            Some(change) => &change.blockers,
            None => &found.stranger,
        };
        let mut words: Vec<String> =
            blocking.iter().filter(|blocker| blocker.effect.blocks()).map(|blocker| self.blocker(blocker)).collect();
        words.sort();
        list(words, " ")
    }

    fn blocker(&self, blocker: &Blocker) -> String {
        let end = blocker.range.end.unwrap_or(u64::MAX);
        let range = part(BlockRange::new(blocker.range.start, end));
        let via = |kinds: &[BindingKind]| {
            let who: Vec<String> = blocker
                .releasers
                .iter()
                .map(|releaser| {
                    let process = self.process_name(Pid(releaser.pid));
                    let fd = releaser.fd.map_or("-".to_owned(), |fd| self.descriptor(&process, Fd(fd), kinds));
                    format!("{process}:{fd}")
                })
                .chain((blocker.queued > 0).then(|| "queue:-".to_owned()))
                .collect();
            if who.is_empty() { "nobody:-".to_owned() } else { who.join("+") }
        };
        match &blocker.cause {
            Cause::Lease { kind, state, taker, .. } => {
                let state = if *state == "held" { String::new() } else { format!(":{state}") };
                let (taker, via) = (self.process_name(Pid(*taker)), via(&LEASE_KEEPERS));
                let own = via.strip_prefix(&format!("{taker}:")).filter(|rest| !rest.contains('+'));
                match own {
                    Some(fd) => format!("{taker}:{fd}:{kind}{range}{state}"),
                    None => format!("{taker}({via}):{kind}{range}{state}"),
                }
            }
            Cause::Pin { kind, region, .. } => {
                let region = self.names.iter().find(|(_, thing)| match thing {
                    Thing::Region(mr) => Some(mr.rkey()) == *region,
                    _ => false,
                });
                let what = region.map_or(kind.replace(' ', "-"), |(name, _)| name.clone());
                format!(
                    "{}:{what}{range}",
                    via(&[BindingKind::Context, BindingKind::Umem, BindingKind::Ring, BindingKind::Guest])
                )
            }
            Cause::DirectIo { .. } => format!("{}:direct-io{range}", via(&[BindingKind::Fd])),
            Cause::PipePages { .. } => format!("{}:pipe{range}", via(&[])),
            Cause::IoBuffer { process } => format!("{}:io-buffer{range}", self.process_name(Pid(*process))),
            Cause::SentPages { process } => format!("{}:sent{range}", self.process_name(Pid(*process))),
            Cause::BlockLayout { recalled, .. } => {
                let state = if *recalled { ":recalled" } else { "" };
                format!("{}:layout{range}{state}", via(&[BindingKind::BlockLayout]))
            }
        }
    }

    /// The name of a descriptor of `process`: one that it gave itself, if it can be told.
    fn descriptor(&self, process: &str, fd: Fd, kinds: &[BindingKind]) -> String {
        let fits = |thing: &Thing| thing.fd() == Some(fd) && kinds.contains(&thing.kind());
        let mut names = self.names.iter().filter(|(_, thing)| fits(thing)).map(|(name, _)| name);
        let own = names.clone().find(|name| self.namers.get(*name).is_some_and(|namer| namer == process));
        own.or(names.next()).cloned().unwrap_or_else(|| format!("fd{}", fd.0))
    }

    /// Leases, pins and blocked calls, for a report.
    pub(super) fn state_report(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (ino, inode) in self.kernel.inodes() {
            let pages: u64 = inode.holders().iter().map(|holder| holder.range.len()).sum();
            lines.push(format!("inode {}: leases {}; {pages} pages pinned", ino.0, self.leases(&inode)));
            lines.extend(
                self.kernel
                    .blockers(ino)
                    .iter()
                    .flat_map(|found| found.to_string().lines().skip(1).map(str::to_owned).collect::<Vec<_>>()),
            );
        }
        for (actor, _, busy) in self.threads.all() {
            if busy {
                lines.push(format!("{actor} is blocked: {}", self.reason(actor)));
            }
        }
        lines.extend(self.kernel.deadlocks().iter().map(|deadlock| format!("EDEADLK: {deadlock}")));
        lines
    }
}

/// What can keep a lease: its open file, or the holders of pins that outlive every descriptor of
/// it.
const LEASE_KEEPERS: [BindingKind; 5] =
    [BindingKind::Fd, BindingKind::Context, BindingKind::Umem, BindingKind::Ring, BindingKind::Guest];

fn list(words: Vec<String>, between: &str) -> String {
    if words.is_empty() { "none".to_owned() } else { words.join(between) }
}

/// A lease's range, unless it is the whole file.
fn part(range: BlockRange) -> String {
    match range {
        BlockRange::ALL => String::new(),
        BlockRange { start, end: u64::MAX } => format!("[{start}..)"),
        BlockRange { start, end } => format!("[{start}..{end})"),
    }
}
