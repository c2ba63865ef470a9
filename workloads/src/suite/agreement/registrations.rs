//! The steps of sequences about registrations.
//!
//! It owns the choice of what is registered, and of the accesses. Invariant: a transfer lies within
//! its region, and goes by a connection that has not failed. Kernel counterpart: rdma-core's
//! pyverbs tests.

use emulator::runtime::rng::Rng;
use rand::RngExt;

use super::support::Support;
use super::view::AgreedView;
use crate::ops::{Arg, ByteRange, Verb};

const BLOCK: u64 = fs_sim::BLOCK;

/// The arguments of a step with this operation, if the process has what the operation needs.
pub(super) fn arguments(
    rng: &mut Rng,
    view: &AgreedView,
    support: Support<'_>,
    process: &str,
    verb: Verb,
) -> Option<Vec<Arg>> {
    let name = |name: &str| Arg::Name(name.to_owned());
    let maps: Vec<&str> = view.maps_of(process).collect();
    let needs_verbs = matches!(
        verb,
        Verb::RdmaOpen
            | Verb::RegMr
            | Verb::DeregMr
            | Verb::Connect
            | Verb::RdmaRead
            | Verb::RdmaWrite
            | Verb::FetchAdd
    );
    if needs_verbs && !support.verbs {
        return None;
    }
    Some(match verb {
        Verb::MmapAnon | Verb::Memfd | Verb::Tmpfile => vec![Arg::Number(rng.random_range(1..=4) * BLOCK)],
        Verb::FixedBuffers | Verb::UmemRegister => {
            let map = one(rng, &maps)?;
            vec![name(map), Arg::Range(part(rng, view.maps.get(map)?.0)?)]
        }
        Verb::RdmaOpen => Vec::new(),
        Verb::RegMr => {
            let contexts: Vec<&str> = view.contexts_of(process).collect();
            let map = one(rng, &maps)?;
            let kinds: &[&[&'static str]] = &[&[], &[], &["ro"], &["flush"], &["on_demand"], &["on_demand"]];
            let flags = kinds[rng.random_range(0..if support.on_demand { 6 } else { 4 })];
            let range = Arg::Range(part(rng, view.maps.get(map)?.0)?);
            vec![name(one(rng, &contexts)?), name(map), range, Arg::Words(flags.to_vec())]
        }
        Verb::DeregMr => {
            let regions: Vec<&str> = view.regions.keys().map(String::as_str).collect();
            let region = one(rng, &regions)?;
            (view.contexts.get(&view.regions.get(region)?.context)? == process).then(|| vec![name(region)])?
        }
        Verb::Connect => {
            let contexts: Vec<&str> = view.contexts_of(process).collect();
            let (own, peer) = (one(rng, &contexts)?, one(rng, &contexts)?);
            (own != peer).then(|| vec![name(own), name(peer), Arg::Words(Vec::new())])?
        }
        Verb::RdmaRead | Verb::RdmaWrite | Verb::FetchAdd => return transfer(rng, view, process, verb),
        _ => return None,
    })
}

/// A transfer by one of the process's connections to a region of the peer.
fn transfer(rng: &mut Rng, view: &AgreedView, process: &str, verb: Verb) -> Option<Vec<Arg>> {
    let mut pairs = Vec::new();
    for (pair, ends) in &view.pairs {
        let own = view.contexts.get(&ends.own).is_some_and(|owner| owner == process);
        let regions = view.regions.iter().filter(|(_, region)| own && region.context == ends.peer);
        pairs.extend(regions.map(|(name, region)| (pair, name, region.len)));
    }
    if pairs.is_empty() {
        return None;
    }
    let (pair, region, len) = pairs[rng.random_range(0..pairs.len())];
    let page = rng.random_range(0..len.div_ceil(BLOCK).max(1)) * BLOCK;
    let names = [Arg::Name(pair.clone()), Arg::Name(region.clone())];
    let rest = match verb {
        Verb::FetchAdd => vec![Arg::Number(page + 8 * rng.random_range(0..512)), Arg::Number(rng.random_range(1..9))],
        _ => {
            // Mostly whole pages.
            let (offset, len) = if rng.random_range(0..4) == 0 { (page + 512, 8) } else { (page, BLOCK) };
            let byte = (verb == Verb::RdmaWrite).then(|| Arg::Byte(b"nop"[rng.random_range(0..3)]));
            let range = Arg::Range(ByteRange { offset, len });
            [range].into_iter().chain(byte).chain([Arg::Words(Vec::new())]).collect()
        }
    };
    Some(names.into_iter().chain(rest).collect())
}

/// Some pages of `len` bytes.
fn part(rng: &mut Rng, len: u64) -> Option<ByteRange> {
    let pages = len / BLOCK;
    if pages == 0 {
        return None;
    }
    let from = rng.random_range(0..pages);
    Some(ByteRange { offset: from * BLOCK, len: rng.random_range(1..=pages - from) * BLOCK })
}

fn one<'n>(rng: &mut Rng, all: &[&'n str]) -> Option<&'n str> {
    if all.is_empty() { None } else { all.get(rng.random_range(0..all.len())).copied() }
}
