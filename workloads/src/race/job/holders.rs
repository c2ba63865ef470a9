//! The checks of the roles that the built-in job does not have: those that hold pages or know
//! blocks without RDMA, and those that move blocks.
//!
//! It owns the rules of their sections. Invariant: as for the other roles, each error points at the
//! value that breaks the rule.

use crate::input::{Duration, InputError, Size};
use crate::race::oracle;
use fs_sim::BLOCK;

use super::check::{BURST_MAX, DMA_BYTES_MAX, JobCheck, WAIT_NS_MAX, stated};
use super::distribution::{Distribution, DistributionLimits, RawDistribution};
use super::given::GivenValue;
use super::types::{
    AddressIo, AddressIoMix, Collapsers, Defragmenters, HeldBlocks, HolderParameters, JobFiles, ROLES, ReflinkMix,
    Reflinkers, Role,
};

/// The longest time that pages are held by address, in nanoseconds. It is shorter than the time
/// after which a race without any movement counts as a standstill.
const HOLD_NS_MAX: u64 = 1_000_000_000;

/// A weight of a mix, by its key.
type Weight<'a> = (&'static str, &'a Option<GivenValue<u32>>);

impl JobCheck<'_> {
    /// How many files the block movers work on.
    pub(super) fn moved(&self, count: u64, size: u64) -> Result<u64, InputError> {
        let moved = stated(&self.text.files.moved);
        if moved.value > count {
            let title = format!("{} of {count} files can't be moved", moved.value);
            return Err(moved.error(self.source, title).help("`moved` can be from 0 to [files] count"));
        }
        let bytes = moved.value * size;
        if bytes > oracle::MOVED_BLOCKS_MAX * BLOCK {
            let title = format!("{} moved files of {} are too many", moved.value, Size(size));
            let most = Size(oracle::MOVED_BLOCKS_MAX * BLOCK);
            return Err(moved
                .error(self.source, title)
                .help(format!("they can have {most} together: every move of their blocks is recorded")));
        }
        Ok(moved.value)
    }

    /// Block movers need files that they may work on.
    pub(super) fn check_movers(&self, counts: &[&GivenValue<u32>; ROLES]) -> Result<(), InputError> {
        let moved = stated(&self.text.files.moved).value;
        for (role, needed) in [(Role::Collapser, 1), (Role::Reflinker, 2)] {
            let count = counts[role as usize];
            if count.value > 0 && moved < needed {
                let (section, what) = (role.section(), if needed == 1 { "a file" } else { "two files" });
                let title =
                    format!("[{section}] need {what} whose blocks they may move, and `moved` in [files] is {moved}");
                return Err(count
                    .error(self.source, title)
                    .help(format!("set `moved` in [files] to {needed} or more")));
            }
        }
        Ok(())
    }

    /// What the holders can keep from being freed. A ring and an actor of [address_io] have a file
    /// of their own of the length of their buffer.
    pub(super) fn held_blocks(&self, files: &JobFiles) -> Result<HeldBlocks, InputError> {
        Ok(HeldBlocks {
            umem: self.umems()?.length.max(),
            ring: 2 * self.rings()?.length.max(),
            guest: files.size,
            address_io: 2 * self.address_io()?.length.max().next_multiple_of(BLOCK),
        })
    }

    /// A length of up to one file, and up to 64 KiB. A role without actors may have any: files may
    /// be smaller than the built-in job's.
    fn held_length(
        &self,
        count: &Option<GivenValue<u32>>,
        raw: &Option<GivenValue<RawDistribution<Size>>>,
    ) -> Result<Distribution, InputError> {
        self.length_within(count, raw, DMA_BYTES_MAX, "it is held as a whole, up to a file or 64KiB")
    }

    fn length_within(
        &self,
        count: &Option<GivenValue<u32>>,
        raw: &Option<GivenValue<RawDistribution<Size>>>,
        max: u64,
        because: &str,
    ) -> Result<Distribution, InputError> {
        let file = if stated(count).value == 0 { max } else { stated(&self.text.files.size).value.0 };
        self.length(raw, BLOCK, max.min(file), because)
    }

    /// The length of a range that is moved.
    fn moved_length(
        &self,
        count: &Option<GivenValue<u32>>,
        raw: &Option<GivenValue<RawDistribution<Size>>>,
    ) -> Result<Distribution, InputError> {
        let because = "a range lies in one file, and blocks are 4KiB";
        self.length_within(count, raw, oracle::FILE_BYTES_MAX, because)
    }

    fn lifetime(&self, raw: &Option<GivenValue<RawDistribution<Duration>>>) -> Result<Distribution, InputError> {
        let because = "longer lives would outlive the race";
        self.distribution(raw, DistributionLimits { key: "lifetime", min: 0, max: WAIT_NS_MAX, because })
    }

    fn accesses(&self, key: &str, raw: &Option<GivenValue<RawDistribution<u64>>>) -> Result<Distribution, InputError> {
        let because = "it is one burst";
        self.distribution(raw, DistributionLimits { key, min: 1, max: BURST_MAX, because })
    }

    pub(super) fn address_io(&self) -> Result<AddressIo, InputError> {
        let raw = &self.text.address_io;
        let because = "a longer wait for I/O would look like a standstill";
        Ok(AddressIo {
            length: self.held_length(&raw.count, &raw.length)?,
            hold: self
                .distribution(&raw.hold, DistributionLimits { key: "hold", min: 0, max: HOLD_NS_MAX, because })?,
            write: self.probability("write", &raw.write)?,
            pause: self.pause(&raw.pause)?,
        })
    }

    pub(super) fn address_io_mix(&self) -> Result<AddressIoMix, InputError> {
        let raw = &self.text.address_io_mix;
        let [disk, file, pipe, send] = self.weights(
            "address_io_mix",
            [("disk", &raw.disk), ("file", &raw.file), ("pipe", &raw.pipe), ("send", &raw.send)],
        )?;
        Ok(AddressIoMix { disk, file, pipe, send })
    }

    /// The weights of a mix, of which at least one is above zero.
    fn weights<const N: usize>(&self, section: &str, weights: [Weight<'_>; N]) -> Result<[u32; N], InputError> {
        if weights.iter().all(|(_, given)| stated(given).value == 0) {
            let last = weights.iter().rev().find(|(_, given)| stated(given).is_stated()).unwrap_or(&weights[0]);
            let keys: Vec<String> = weights.iter().map(|(key, _)| format!("`{key}`")).collect();
            return Err(stated(last.1)
                .error(self.source, format!("all weights of [{section}] are zero"))
                .help(format!("give {} a weight of 1 or more", keys.join(" or "))));
        }
        Ok(weights.map(|(_, given)| stated(given).value))
    }

    pub(super) fn umems(&self) -> Result<HolderParameters, InputError> {
        let raw = &self.text.umems;
        Ok(HolderParameters {
            length: self.held_length(&raw.count, &raw.length)?,
            lifetime: self.lifetime(&raw.lifetime)?,
            accesses: self.accesses("packets", &raw.packets)?,
            write: self.probability("receive", &raw.receive)?,
            flush: 0.0,
            skips_cleanup: self.probability("rude", &raw.rude)?,
            exit: self.probability("exit", &raw.exit)?,
            pause: self.pause(&raw.pause)?,
        })
    }

    pub(super) fn rings(&self) -> Result<HolderParameters, InputError> {
        let raw = &self.text.rings;
        Ok(HolderParameters {
            length: self.held_length(&raw.count, &raw.length)?,
            lifetime: self.lifetime(&raw.lifetime)?,
            accesses: self.accesses("requests", &raw.requests)?,
            write: self.probability("read", &raw.read)?,
            flush: 0.0,
            skips_cleanup: self.probability("rude", &raw.rude)?,
            exit: self.probability("exit", &raw.exit)?,
            pause: self.pause(&raw.pause)?,
        })
    }

    pub(super) fn guests(&self, files: &JobFiles) -> Result<HolderParameters, InputError> {
        let raw = &self.text.guests;
        Ok(HolderParameters {
            length: Distribution::constant(files.size),
            lifetime: self.lifetime(&raw.lifetime)?,
            accesses: self.accesses("accesses", &raw.accesses)?,
            write: self.probability("store", &raw.store)?,
            flush: self.probability("flush", &raw.flush)?,
            skips_cleanup: self.probability("rude", &raw.rude)?,
            exit: self.probability("exit", &raw.exit)?,
            pause: self.pause(&raw.pause)?,
        })
    }

    pub(super) fn layout_clients(&self) -> Result<HolderParameters, InputError> {
        let raw = &self.text.layout_clients;
        Ok(HolderParameters {
            length: self.held_length(&raw.count, &raw.length)?,
            lifetime: self.lifetime(&raw.lifetime)?,
            accesses: self.accesses("requests", &raw.requests)?,
            write: self.probability("write", &raw.write)?,
            flush: 0.0,
            skips_cleanup: self.probability("rude", &raw.rude)?,
            exit: self.probability("exit", &raw.exit)?,
            pause: self.pause(&raw.pause)?,
        })
    }

    pub(super) fn collapsers(&self) -> Result<Collapsers, InputError> {
        let raw = &self.text.collapsers;
        Ok(Collapsers {
            length: self.moved_length(&raw.count, &raw.length)?,
            insert: self.probability("insert", &raw.insert)?,
            pause: self.pause(&raw.pause)?,
        })
    }

    pub(super) fn reflinkers(&self) -> Result<Reflinkers, InputError> {
        let raw = &self.text.reflinkers;
        Ok(Reflinkers { length: self.moved_length(&raw.count, &raw.length)?, pause: self.pause(&raw.pause)? })
    }

    pub(super) fn reflink_mix(&self) -> Result<ReflinkMix, InputError> {
        let raw = &self.text.reflink_mix;
        let [clone, dedupe, exchange, unshare] = self.weights(
            "reflink_mix",
            [("clone", &raw.clone), ("dedupe", &raw.dedupe), ("exchange", &raw.exchange), ("unshare", &raw.unshare)],
        )?;
        Ok(ReflinkMix { clone, dedupe, exchange, unshare })
    }

    pub(super) fn defragmenters(&self) -> Result<Defragmenters, InputError> {
        let raw = &self.text.defragmenters;
        Ok(Defragmenters { polite: self.probability("polite", &raw.polite)?, pause: self.pause(&raw.pause)? })
    }
}
