//! Answers to what is asked at a control socket.
//!
//! It owns the lookup of files and the words. Invariant: every line names the inode it speaks of.

use std::fmt::Write as _;

use emulator::sync::{Arc, Mutex};
use fs_sim::base::numbers::Ino;
use fs_sim::inspect::blockers::FileBlocks;
use fs_sim::inspect::books::LeaseStatus;
use fs_sim::vfs::inode::Inode;
use fs_sim::{BlockRange, Kernel};
use serde_json::{Value, json};

use super::protocol::Response;
use super::server::{Asker, Handler};
use crate::ops::Op;

/// How many names an error lists.
const NAMES_LISTED: usize = 8;

/// Answers questions about whichever machine runs now, and does nothing else.
#[derive(Default)]
pub struct Questions {
    machine: Mutex<Option<Arc<Kernel>>>,
}

impl Questions {
    /// Questions are about `kernel` from now on.
    pub fn publish(&self, kernel: &Arc<Kernel>) {
        *self.machine.lock() = Some(Arc::clone(kernel));
    }
}

impl Handler for Questions {
    fn handle(&self, request: &Op, _asker: &Asker<'_>) -> Response {
        let machine = self.machine.lock().clone();
        let Some(kernel) = machine else {
            return Response::Refused { why: "no machine runs yet: ask again".to_owned() };
        };
        answer(&kernel, request).unwrap_or_else(|| Response::Refused {
            why: "a race can be asked `blockers`, `changes`, `leases` and `pins`; the rest is for `daxlab serve`"
                .to_owned(),
        })
    }
}

/// Answers `request` about `kernel`; none if it is no question about files.
pub(crate) fn answer(kernel: &Arc<Kernel>, request: &Op) -> Option<Response> {
    Some(match request {
        Op::Blockers { file } => match find(kernel, file) {
            Some((_, inode)) => blockers(kernel, &inode),
            None => Response::Refused { why: unknown(kernel, file) },
        },
        Op::Changes { file } => each(kernel, file.as_deref(), |ino, _| changes(kernel, ino)),
        Op::Leases { file } => each(kernel, file.as_deref(), leases),
        Op::Pins { file } => each(kernel, file.as_deref(), pins),
        _ => return None,
    })
}

fn blockers(kernel: &Kernel, inode: &Inode) -> Response {
    let Some(found) = kernel.blockers(inode.ino()) else {
        return Response::Refused { why: format!("inode {} is gone", inode.ino().0) };
    };
    match serde_json::to_value(&found) {
        Ok(data) => Response::Answer { text: found.to_string(), data },
        Err(error) => Response::Refused { why: error.to_string() },
    }
}

/// A file by its name or its inode's number.
pub(crate) fn find(kernel: &Kernel, file: &str) -> Option<(Ino, Arc<Inode>)> {
    let named = kernel.named(file);
    let numbered = || {
        let number = Ino(file.parse().ok()?);
        kernel.inodes().into_iter().find(|(ino, _)| *ino == number).map(|(_, inode)| inode)
    };
    named.or_else(numbered).map(|inode| (inode.ino(), inode))
}

/// The refusal of a question about a file that isn't there.
pub(crate) fn unknown(kernel: &Kernel, file: &str) -> String {
    let mut names = kernel.file_names();
    let more = names.len().saturating_sub(NAMES_LISTED);
    names.truncate(NAMES_LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("there is no file or inode `{file}`; there are {}{more}", names.join(", "))
}

/// One answer put together from those about each file: text and data.
fn each(kernel: &Kernel, file: Option<&str>, about: impl Fn(Ino, &Inode) -> (String, Vec<Value>)) -> Response {
    let inodes = match file {
        Some(file) => match find(kernel, file) {
            Some(found) => vec![found],
            None => return Response::Refused { why: unknown(kernel, file) },
        },
        None => kernel.inodes(),
    };
    let (mut text, mut data) = (String::new(), Vec::new());
    for (ino, inode) in inodes {
        let (lines, values) = about(ino, &inode);
        text += &lines;
        data.extend(values);
    }
    if text.is_empty() {
        text.push_str("none\n");
    }
    Response::Answer { text, data: Value::Array(data) }
}

fn end(range: BlockRange) -> Option<u64> {
    (range.end != u64::MAX).then_some(range.end)
}

/// `process 3`, `processes 3, 4`.
fn processes(pids: &[u32]) -> String {
    let numbers: Vec<String> = pids.iter().map(u32::to_string).collect();
    match pids {
        [] => "no process".to_owned(),
        [_] => format!("process {}", numbers.join(", ")),
        _ => format!("processes {}", numbers.join(", ")),
    }
}

fn changes(kernel: &Kernel, ino: Ino) -> (String, Vec<Value>) {
    let pending = kernel.pending_changes(ino).unwrap_or_default();
    let data = pending.iter().filter_map(|change| serde_json::to_value(change).ok()).collect();
    (pending.iter().map(ToString::to_string).collect(), data)
}

fn leases(ino: Ino, inode: &Inode) -> (String, Vec<Value>) {
    let (mut text, mut data) = (String::new(), Vec::new());
    for lease in inode.leases() {
        let state = match lease.state {
            LeaseStatus::Held => "held",
            LeaseStatus::Breaking => "breaking",
            LeaseStatus::Zombie => "zombie",
        };
        let (kind, pid, id) = (lease.kind.to_string(), lease.pid.0, lease.id.0);
        // Writing to a String never fails.
        let _ = writeln!(
            text,
            "inode {}: {state} {kind} lease {id} of process {pid}, {}, {} {} under it",
            ino.0,
            FileBlocks::from(lease.range),
            lease.pins,
            if lease.pins == 1 { "pin" } else { "pins" },
        );
        data.push(json!({
            "ino": ino.0, "lease": id, "kind": kind, "state": state, "pid": pid, "pins": lease.pins,
            "range": { "start": lease.range.start, "end": end(lease.range) },
        }));
    }
    (text, data)
}

fn pins(ino: Ino, inode: &Inode) -> (String, Vec<Value>) {
    let (mut text, mut data) = (String::new(), Vec::new());
    for holder in inode.holders() {
        let info = holder.object.describe();
        let held_by: Vec<u32> = info.processes.iter().map(|pid| pid.0).collect();
        let region = info.region.map_or(String::new(), |region| format!(" {region:#x}"));
        let context = info.context.map_or(String::new(), |context| format!(" of context {context}"));
        let _ = writeln!(
            text,
            "inode {}: {}{region}{context}, pin number {} of process {}, {}, held by {}",
            ino.0,
            info.kind,
            holder.id.0,
            holder.pid.0,
            FileBlocks::from(holder.range),
            processes(&held_by),
        );
        data.push(json!({
            "ino": ino.0, "pin": holder.id.0, "kind": info.kind, "registrant": holder.pid.0, "processes": held_by,
            "context": info.context, "region": info.region,
            "range": { "start": holder.range.start, "end": end(holder.range) },
        }));
    }
    (text, data)
}
