//! Looks at the simulated machine, in the words of scenarios.
//!
//! It owns the translation of the kernel's answers: processes by their names, things by the names that the scenario gave them.

use emulator::sync::Arc;
use fs_sim::inode::Inode;
use fs_sim::inspect::LeaseState;
use fs_sim::process::Pid;
use fs_sim::range::BlockRange;

use super::Simulation;
use super::things::{Thing, signal_word};
use crate::scenario::machine::Trouble;
use crate::scenario::{Actor, Query, Subject};

impl Simulation {
    pub(super) fn look(&mut self, query: &Query) -> Result<String, Trouble> {
        let of = query.of.as_str();
        Ok(match query.subject {
            Subject::Signals => {
                self.process(of)?;
                let handled = self.handled.remove(of).unwrap_or_default();
                list(handled.into_iter().map(|signal| signal_word(signal).to_owned()).collect(), " ")
            }
            Subject::Process => {
                let dead = self.process(of)?.process().is_dying();
                if dead { "dead" } else { "alive" }.to_owned()
            }
            Subject::Blocked => {
                let actors = self.crew.all().filter(|(actor, _, busy)| *busy && actor.process == of);
                let actors: Vec<Actor> = actors.map(|(actor, _, _)| actor.clone()).collect();
                match actors.is_empty() {
                    true => "no".to_owned(),
                    false => actors.iter().map(|actor| self.reason(actor)).collect::<Vec<_>>().join("; "),
                }
            }
            Subject::Leases => self.leases(&*self.inode(of)?),
            Subject::Pins => {
                let pages: u64 = self.inode(of)?.holders().iter().map(|holder| holder.range.len()).sum();
                pages.to_string()
            }
            Subject::Blockers => self.blockers(&*self.inode(of)?),
            Subject::Orphans => self.kernel.usage().orphaned.to_string(),
            Subject::Stale => {
                let stale = self.kernel.counters.stale_dma.get() > 0;
                if stale { "some" } else { "none" }.to_owned()
            }
            Subject::Locked => self.process(of)?.process().locked_pages().to_string(),
            Subject::Size => fs_sim::input::Size(self.inode(of)?.layout(|layout| layout.size())).to_string(),
            Subject::Blocks => self.inode(of)?.layout(|layout| layout.mapped_blocks()).to_string(),
        })
    }

    fn inode(&self, name: &str) -> Result<Arc<Inode>, Trouble> {
        self.kernel.named(name).ok_or_else(|| Trouble::Script(format!("there is no file `{name}` now")))
    }

    /// What an actor's call sleeps on.
    pub(super) fn reason(&self, actor: &Actor) -> String {
        let id = self.crew.task(actor).map(|task| task.waiter().id());
        let sleepers = self.world.sleepers();
        let sleeper = sleepers.iter().find(|sleeper| Some(sleeper.waiter) == id);
        sleeper.map_or(String::new(), |sleeper| sleeper.reason.to_owned())
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
                    LeaseState::Held => "",
                    LeaseState::Breaking => ":breaking",
                    LeaseState::Zombie => ":zombie",
                };
                format!("{}:{}{}{state}", self.process_name(lease.pid), lease.kind, part(lease.range))
            })
            .collect();
        words.sort();
        list(words, " ")
    }

    /// Leases and pins that stand against a change of the whole file, by the names of the scenario.
    fn blockers(&self, inode: &Inode) -> String {
        let mut words = match self.leases(inode).as_str() {
            "none" => Vec::new(),
            leases => leases.split(' ').map(str::to_owned).collect(),
        };
        for holder in inode.holders() {
            let info = holder.object.describe();
            let who: Vec<String> = info.processes.iter().map(|pid| self.process_name(*pid)).collect();
            let name = |found: Option<&String>| found.cloned().unwrap_or_else(|| "?".to_owned());
            let context = self.names.iter().find(|(_, thing)| match thing {
                Thing::Context(context) => Some(context.context.number()) == info.context,
                _ => false,
            });
            let region = self.names.iter().find(|(_, thing)| match thing {
                Thing::Region(mr) => Some(mr.rkey()) == info.region,
                _ => false,
            });
            let (context, region) = (name(context.map(|(name, _)| name)), name(region.map(|(name, _)| name)));
            words.push(format!("{}:{context}:{region}", list(who, "+")));
        }
        words.sort();
        list(words, " ")
    }

    /// Leases, pins and blocked calls, for a report.
    pub(super) fn portrait(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (ino, inode) in self.kernel.inodes() {
            lines.push(format!("inode {}: leases {}; pins {}", ino.0, self.leases(&inode), self.blockers(&inode)));
        }
        for (actor, _, busy) in self.crew.all() {
            if busy {
                lines.push(format!("{actor} is blocked: {}", self.reason(actor)));
            }
        }
        lines.extend(self.kernel.blocked());
        lines
    }
}

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
