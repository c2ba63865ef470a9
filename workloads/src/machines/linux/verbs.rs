//! Verbs on the driver's side.
//!
//! It owns what the names of contexts, regions, windows and queue pairs stand for, and the way from
//! an operation to requests: a connection is made by requests to both of its processes, to whom the
//! driver gives each other's queue pair numbers. Invariant: a call of verbs is made whole before
//! the driver goes on: on a file system with DAX it neither blocks nor wakes another process.
//! Kernel counterpart: none; a program does this by rdma_cm or by a socket.

use super::child::wire::{ChildFailure, ChildRequest, ChildValue};
use super::machine::LinuxMachine;
use super::names::{LinuxRegion, LinuxWindow, NamedThing, PairEnd, ScenarioNames};
use super::registrants;
use super::request::errno_name;
use super::soft_roce::wire::{Completed, RemotePlace, VerbsAnswer, VerbsFailure, VerbsRequest, Work};
use crate::machines::machine::Trouble;
use crate::ops::{ByteRange, FlushScope, Op, RegisterFlags};

/// A request's answer, or the outcome that it ended with.
type Answered = Result<VerbsAnswer, String>;

impl LinuxMachine {
    /// Performs an operation of verbs; none if `op` is another one.
    pub(super) fn verbs(&mut self, who: &str, op: &Op, bind: Option<&str>) -> Result<Option<String>, Trouble> {
        let outcome = match op {
            Op::RdmaOpen {} => match self.answer(who, VerbsRequest::Open)? {
                Ok(VerbsAnswer::Context(fd)) => self.made(bind, NamedThing::Context { fd, owner: who.to_owned() }),
                other => told(other),
            },
            Op::RegMr { context, map, range, flags } => {
                let context = self.names.fd(context)?;
                let (at, len) = self.address(who, map, *range)?;
                self.register(
                    who,
                    bind,
                    VerbsRequest::Register { context, at, len, access: (*flags).into() },
                    (at, len),
                )?
            }
            Op::ReregMr { mr, map, range } => {
                let translation = self.address(who, map, *range)?;
                self.reregister(who, bind, mr, Some(translation), None)?
            }
            Op::ReregAccess { mr, flags } => self.reregister(who, bind, mr, None, Some(*flags))?,
            Op::DeregMr { mr } => {
                let LinuxRegion { context, number, .. } = *self.names.region(mr)?;
                told(self.answer(who, VerbsRequest::Deregister { context, region: number })?)
            }
            Op::Prefetch { context, mr, range, flags } => {
                let (context, region) = (self.names.fd(context)?, self.names.region(mr)?);
                let (lkey, at) = (region.lkey, region.at.wrapping_add(range.offset));
                // The length in a request has 32 bits.
                let Ok(len) = u32::try_from(range.len) else { return Ok(Some("EINVAL".to_owned())) };
                told(self.answer(who, VerbsRequest::Prefetch { context, lkey, at, len, write: flags.write })?)
            }
            Op::AllocMw { context, flags } => {
                let context = self.names.fd(context)?;
                match self.answer(who, VerbsRequest::AllocateWindow { context, type2: flags.type2 })? {
                    Ok(VerbsAnswer::Window { number, key }) => {
                        self.made(bind, NamedThing::Window(LinuxWindow { context, number, key, at: 0 }))
                    }
                    other => told(other),
                }
            }
            Op::DeallocMw { window } => {
                let LinuxWindow { context, number, .. } = *self.names.window(window)?;
                told(self.answer(who, VerbsRequest::DeallocateWindow { context, window: number })?)
            }
            Op::Connect { own, peer, flags } => self.connect(who, bind, own, peer, flags.rnr_wait)?,
            Op::Accept { qp } => {
                let peer = self.names.pair(qp)?.peer;
                match self.names.pairs.get(peer).is_some_and(|end| end.owner == who) {
                    true => self.made(bind, NamedThing::Pair(peer)),
                    false => "EBADF".to_owned(),
                }
            }
            Op::PostRecv { qp, mr, range } => self.post_receive(who, bind, (qp, mr), (range.offset, range.len))?,
            Op::Poll { context } => {
                let context = self.names.fd(context)?;
                match self.answer(who, VerbsRequest::Poll { context })? {
                    Ok(VerbsAnswer::Completed(completed)) => self.polled(completed),
                    other => told(other),
                }
            }
            Op::Memlock { limit } => told(self.answer(who, VerbsRequest::LimitLocked { bytes: limit.0 })?),
            op => match self.work(op)? {
                Some((qp, work)) => self.send_work(who, op, bind, qp, work)?,
                None => return Ok(None),
            },
        };
        Ok(Some(outcome))
    }

    /// Limits what `who` may lock.
    pub(super) fn limit_locked(&mut self, who: &str, bytes: u64) -> Result<(), Trouble> {
        match self.answer(who, VerbsRequest::LimitLocked { bytes })? {
            Err(outcome) if outcome != "ok" => {
                Err(Trouble::CannotRun(format!("the limit of locked memory of {who} can't be set: {outcome}")))
            }
            _ => Ok(()),
        }
    }

    /// Sends a request to `who`, and waits for the answer.
    fn answer(&mut self, who: &str, request: VerbsRequest) -> Result<Answered, Trouble> {
        match self.ask_process(who, &ChildRequest::Verbs(request))? {
            Ok(ChildValue::Verbs(answer)) => Ok(Ok(answer)),
            Ok(_) => Ok(Err("ok".to_owned())),
            Err(ChildFailure::Verbs(VerbsFailure::Errno(number))) => Ok(Err(errno_name(number))),
            Err(ChildFailure::Verbs(VerbsFailure::Lacks(why))) => Err(Trouble::CannotRun(why)),
            Err(ChildFailure::Verbs(VerbsFailure::Unfinished(why))) => Err(Trouble::Inconclusive(why)),
            Err(other) => Err(Trouble::Inconclusive(format!("{who} says {other:?}"))),
        }
    }

    /// The outcome of an operation that has made `thing`.
    fn made(&mut self, bind: Option<&str>, thing: NamedThing) -> String {
        if let Some(bind) = bind {
            self.names.things.insert(bind.to_owned(), thing);
        }
        "ok".to_owned()
    }

    /// The address and the length of a part of a mapping of `who`, and of the inaccessible page
    /// behind it, where the kernel finds nothing.
    fn address(&self, who: &str, map: &str, part: ByteRange) -> Result<(u64, u64), Trouble> {
        match self.names.get(map)? {
            NamedThing::Map { at, len, owners } if owners.contains(who) => {
                let behind = at + len.next_multiple_of(fs_sim::BLOCK);
                let place = registrants::memory(&self.names, who, map, part)?;
                Ok(place.unwrap_or_else(|| (behind, part.len.min(fs_sim::BLOCK))))
            }
            NamedThing::Map { .. } => Err(Trouble::Script(format!("{who} has no mapping `{map}`"))),
            _ => Err(Trouble::Script(format!("`{map}` is not a mapping"))),
        }
    }

    fn register(
        &mut self,
        who: &str,
        bind: Option<&str>,
        request: VerbsRequest,
        (at, len): (u64, u64),
    ) -> Result<String, Trouble> {
        let context = match request {
            VerbsRequest::Register { context, .. } | VerbsRequest::Reregister { context, .. } => context,
            _ => return Err(Trouble::Script("this registers nothing".to_owned())),
        };
        match self.answer(who, request)? {
            Ok(VerbsAnswer::Region { number, lkey, rkey }) => {
                Ok(self.made(bind, NamedThing::Region(LinuxRegion { context, number, lkey, rkey, at, len })))
            }
            other => Ok(told(other)),
        }
    }

    fn reregister(
        &mut self,
        who: &str,
        bind: Option<&str>,
        mr: &str,
        translation: Option<(u64, u64)>,
        access: Option<RegisterFlags>,
    ) -> Result<String, Trouble> {
        let LinuxRegion { context, number, at, len, .. } = *self.names.region(mr)?;
        let access = access.map(Into::into);
        let request = VerbsRequest::Reregister { context, region: number, translation, access };
        self.register(who, bind, request, translation.unwrap_or((at, len)))
    }

    /// Makes a queue pair on each of two contexts, and connects them.
    fn connect(
        &mut self,
        who: &str,
        bind: Option<&str>,
        own: &str,
        peer: &str,
        rnr_wait: bool,
    ) -> Result<String, Trouble> {
        let NamedThing::Context { fd, owner } = self.names.get(peer)?.clone() else {
            return Err(Trouble::Script(format!("`{peer}` is not a context")));
        };
        let sides = [(who.to_owned(), self.names.fd(own)?), (owner, fd)];
        let mut ends = Vec::new();
        for (process, context) in &sides {
            match self.answer(process, VerbsRequest::CreatePair { context: *context })? {
                Ok(VerbsAnswer::Pair { number, wire }) => ends.push((number, wire)),
                other => return Ok(told(other)),
            }
        }
        let first = self.names.pairs.len();
        for (n, (process, context)) in sides.into_iter().enumerate() {
            let ((pair, _), (_, peer)) = (ends[n], ends[1 - n]);
            let request = VerbsRequest::ConnectPair { context, pair, peer, rnr_wait };
            match self.answer(&process, request)? {
                Err(outcome) if outcome != "ok" => return Ok(outcome),
                _ => {}
            }
            self.names.pairs.push(PairEnd { owner: process, context, number: pair, peer: first + 1 - n });
        }
        Ok(self.made(bind, NamedThing::Pair(first)))
    }

    /// Posts a part of a region as a receive.
    fn post_receive(
        &mut self,
        who: &str,
        bind: Option<&str>,
        (qp, mr): (&str, &str),
        (offset, len): (u64, u64),
    ) -> Result<String, Trouble> {
        let id = self.names.new_work(bind);
        let (end, region) = (self.names.pair(qp)?, self.names.region(mr)?);
        let (context, pair) = (end.context, end.number);
        let (lkey, at) = (region.lkey, region.at.wrapping_add(offset));
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        Ok(told(self.answer(who, VerbsRequest::PostReceive { context, pair, id, at, len, lkey })?))
    }

    /// The queue pair and the request that an operation is about; none if it posts none.
    fn work<'a>(&mut self, op: &'a Op) -> Result<Option<(&'a str, Work)>, Trouble> {
        let names = &mut self.names;
        let (qp, work) = match op {
            Op::RdmaWrite { qp, remote, range, byte, flags } | Op::PostWrite { qp, remote, range, byte, flags } => {
                let to = names.remote(remote, range.offset)?;
                (qp, Work::Write { to, len: range.len, byte: *byte, bad_key: flags.bad_key })
            }
            Op::RdmaRead { qp, remote, range, flags } | Op::PostRead { qp, remote, range, flags } => {
                let from = names.remote(remote, range.offset)?;
                (qp, Work::Read { from, len: range.len, bad_key: flags.bad_key })
            }
            Op::RdmaSend { qp, length, byte } | Op::PostSend { qp, length, byte } => {
                (qp, Work::Send { len: length.0, byte: *byte, invalidate: None })
            }
            Op::SendInvalidate { qp, window, length, byte } | Op::PostSendInvalidate { qp, window, length, byte } => {
                let invalidate = Some(names.window(window)?.key);
                (qp, Work::Send { len: length.0, byte: *byte, invalidate })
            }
            Op::FetchAdd { qp, remote, offset, add } | Op::PostFetchAdd { qp, remote, offset, add } => {
                (qp, Work::FetchAdd { at: names.remote(remote, offset.0)?, add: *add })
            }
            Op::Cas { qp, remote, offset, compare, swap } | Op::PostCas { qp, remote, offset, compare, swap } => {
                (qp, Work::CompareSwap { at: names.remote(remote, offset.0)?, compare: *compare, swap: *swap })
            }
            Op::AtomicWrite { qp, remote, offset, value } | Op::PostAtomicWrite { qp, remote, offset, value } => {
                (qp, Work::AtomicWrite { to: names.remote(remote, offset.0)?, value: *value })
            }
            Op::Flush { qp, remote, range, placement } | Op::PostFlush { qp, remote, range, placement } => {
                let persistent = *placement == FlushScope::Persistent;
                let at = names.remote(remote, range.offset)?;
                (qp, Work::Flush { at, len: range.len, persistent, whole: false })
            }
            Op::FlushRegion { qp, remote, placement } => {
                let persistent = *placement == FlushScope::Persistent;
                let (at, len) = (names.remote(remote, 0)?, names.region(remote)?.len);
                (qp, Work::Flush { at, len, persistent, whole: true })
            }
            Op::BindMw { qp, window, mr, range, flags } | Op::PostBindMw { qp, window, mr, range, flags } => {
                let (lkey, at) = (names.region(mr)?.lkey, names.region(mr)?.at.wrapping_add(range.offset));
                let LinuxWindow { key, .. } = *names.window(window)?;
                let new_key = if flags.same_key { key } else { key_after(key) };
                (qp, Work::Bind { key, new_key, lkey, at, len: range.len })
            }
            Op::Invalidate { qp, window } | Op::PostInvalidate { qp, window } => {
                (qp, Work::Invalidate { key: names.window(window)?.key })
            }
            _ => return Ok(None),
        };
        Ok(Some((&**qp, work)))
    }

    /// Posts a request; waits for its completion unless the operation only posts.
    fn send_work(&mut self, who: &str, op: &Op, bind: Option<&str>, qp: &str, work: Work) -> Result<String, Trouble> {
        let PairEnd { context, number: pair, .. } = *self.names.pair(qp)?;
        let binding = match (op, &work) {
            (Op::BindMw { window, .. } | Op::PostBindMw { window, .. }, Work::Bind { new_key, at, .. }) => {
                Some((window.to_string(), *new_key, *at))
            }
            _ => None,
        };
        let posts = op.verb().name().starts_with("post_");
        let answer = if posts {
            let id = self.names.new_work(bind);
            self.answer(who, VerbsRequest::Post { context, pair, id, work })?
        } else {
            self.answer(who, VerbsRequest::Perform { context, pair, work })?
        };
        let outcome = told(answer);
        // The program that posts a binding has chosen its key; one that fails leaves the window as
        // it was, which is known here if it is waited for.
        if let (Some((window, key, at)), true) = (binding, outcome == "ok") {
            self.names.bound(&window, key, at)?;
        }
        Ok(outcome)
    }

    /// `w1:success:a`, `none`.
    fn polled(&self, completed: Option<Completed>) -> String {
        let Some(Completed { id, status, value, invalidated }) = completed else { return "ok none".to_owned() };
        let name = usize::try_from(id).ok().and_then(|id| self.names.works.get(id));
        let mut text = format!("ok {}:{status}", name.map_or("?", String::as_str));
        if let Some(value) = value {
            text.push(':');
            text.push_str(&value);
        }
        if invalidated {
            text.push_str(":invalidated");
        }
        text
    }
}

impl ScenarioNames {
    pub(super) fn region(&self, name: &str) -> Result<&LinuxRegion, Trouble> {
        match self.get(name)? {
            NamedThing::Region(region) => Ok(region),
            _ => Err(Trouble::Script(format!("`{name}` is not a region"))),
        }
    }

    fn window(&self, name: &str) -> Result<&LinuxWindow, Trouble> {
        match self.get(name)? {
            NamedThing::Window(window) => Ok(window),
            _ => Err(Trouble::Script(format!("`{name}` is not a window"))),
        }
    }

    fn pair(&self, name: &str) -> Result<&PairEnd, Trouble> {
        match self.get(name)? {
            NamedThing::Pair(end) => {
                self.pairs.get(*end).ok_or_else(|| Trouble::Script(format!("`{name}` is not connected")))
            }
            _ => Err(Trouble::Script(format!("`{name}` is not a queue pair"))),
        }
    }

    /// The place at `offset` in a region or a window.
    fn remote(&self, name: &str, offset: u64) -> Result<RemotePlace, Trouble> {
        let (start, key) = match self.get(name)? {
            NamedThing::Region(region) => (region.at, region.rkey),
            NamedThing::Window(window) => (window.at, window.key),
            _ => return Err(Trouble::Script(format!("`{name}` is neither a region nor a window"))),
        };
        Ok(RemotePlace { at: start.wrapping_add(offset), key })
    }

    /// The number of a request that is posted under the name `bind`.
    fn new_work(&mut self, bind: Option<&str>) -> u64 {
        self.works.push(bind.unwrap_or_default().to_owned());
        self.works.len() as u64 - 1
    }

    fn bound(&mut self, name: &str, new_key: u32, start: u64) -> Result<(), Trouble> {
        match self.things.get_mut(name) {
            Some(NamedThing::Window(window)) => {
                (window.key, window.at) = (new_key, start);
                Ok(())
            }
            _ => Err(Trouble::Script(format!("`{name}` is not a window"))),
        }
    }
}

/// The next key of a window (`ibv_inc_rkey`): its last eight bits are the program's to choose.
fn key_after(key: u32) -> u32 {
    key & !0xff | key.wrapping_add(1) & 0xff
}

/// The outcome that an answer is.
fn told(answer: Answered) -> String {
    match answer {
        Ok(VerbsAnswer::Completed(Some(Completed { status, value, .. }))) => match (status.as_str(), value) {
            ("success", Some(value)) => format!("ok {value}"),
            ("success", None) => "ok".to_owned(),
            _ => status,
        },
        Ok(_) => "ok".to_owned(),
        Err(outcome) => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_keeps_the_part_of_its_key_that_is_the_devices() {
        assert_eq!(key_after(0x1234_56fe), 0x1234_56ff);
        assert_eq!(key_after(0x1234_56ff), 0x1234_5600);
    }
}
