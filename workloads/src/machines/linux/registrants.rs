//! Operations of those who register memory without a NIC, as requests to a process.
//!
//! It owns their translation. Invariant: a range reaches no further than the inaccessible page
//! behind its mapping. Kernel counterpart: liburing, libxdp.

use super::child::wire::ChildRequest;
use super::names::{NamedThing, ScenarioNames};
use crate::machines::machine::Trouble;
use crate::ops::{ByteRange, Op};

/// Translates an operation of the process `who`; its outcome if the process does not have the
/// mapping. None: it is of another kind.
pub(super) fn translate(
    op: &Op,
    who: &str,
    names: &ScenarioNames,
) -> Result<Option<Result<ChildRequest, &'static str>>, Trouble> {
    let request = match op {
        Op::UmemRegister { map, range } => match memory(names, who, map, *range)? {
            Some((at, len)) => ChildRequest::Umem { at, len },
            None => return Ok(Some(Err("EFAULT"))),
        },
        Op::FixedBuffers { map, range } => match memory(names, who, map, *range)? {
            Some((at, len)) => ChildRequest::FixedBuffers { at, len },
            None => return Ok(Some(Err("EFAULT"))),
        },
        Op::RingRead { ring, range, from, at } => {
            let (fd, buffer) = names.ring(ring)?;
            let into = buffer.saturating_add(range.offset);
            ChildRequest::RingRead { ring: fd, from: names.fd(from)?, offset: at.0, at: into, len: range.len }
        }
        _ => return Ok(None),
    };
    Ok(Some(Ok(request)))
}

/// The address and length of a part of a mapping; none if the process does not have the mapping.
pub(super) fn memory(
    names: &ScenarioNames,
    who: &str,
    map: &str,
    range: ByteRange,
) -> Result<Option<(u64, u64)>, Trouble> {
    let NamedThing::Map { at, len, owners } = names.get(map)? else {
        return Err(Trouble::Script(format!("`{map}` is not a mapping")));
    };
    let page = rustix::param::page_size() as u64;
    // With the inaccessible page behind it.
    let room = len.next_multiple_of(page) + page;
    Ok((owners.contains(who) && range.offset < room).then(|| (at + range.offset, range.len.min(room - range.offset))))
}
