//! From a job's text to a [`Job`] that can be run.
//!
//! It owns every rule that one value, or several together, must keep. Invariant: each error points
//! at the value that breaks the rule, or names the file if the built-in job states the value.

use std::collections::BTreeMap;
use std::path::Path;

use crate::input::{Duration, InputError, Size, Source, shown};
use fs_sim::BLOCK;
use fs_sim::design::VolumeOptions;

use super::distribution::{Distribution, DistributionLimits, Quantity, RawDistribution};
use super::given::GivenValue;
use super::text::{self, JobText, PopularityShape};
use super::types::{
    ACTORS_MAX, DirectIo, DmaMix, Extenders, HeldBlocks, Job, JobFiles, Popularity, Punchers, ROLES, RegistrantMix,
    Registrants, Role, Truncaters,
};
use crate::race::oracle;

/// The built-in job's text.
pub const BUILT_IN: &str = include_str!("../../../jobs/default.toml");

/// The most files of a job.
const FILES_MAX: u64 = 4096;
/// The longest name of a job, in bytes.
const NAME_BYTES_MAX: usize = 80;
/// The most regions of one process.
const REGIONS_MAX: u32 = 64;
/// The most work requests of one burst: the depth of a queue pair.
pub(super) const BURST_MAX: u64 = 1024;
/// The longest WRITE or READ in bytes: the size of a registrant's local buffer.
pub(crate) const DMA_BYTES_MAX: u64 = 64 << 10;
/// The longest times, in nanoseconds: a day for a run, ten seconds for a pause or a region.
const RUN_NS_MAX: u64 = 24 * 3600 * 1_000_000_000;
pub(super) const WAIT_NS_MAX: u64 = 10_000_000_000;

impl Job {
    /// The built-in job.
    pub fn built_in() -> Job {
        Job::parse(&Source::new("jobs/default.toml", BUILT_IN)).expect("a test reads the built-in job")
    }

    /// Reads a job file.
    ///
    /// # Errors
    /// The file can't be read, or its text is not a job; see [`Job::parse`].
    pub fn read(path: &Path) -> Result<Job, InputError> {
        Job::parse(&Source::read(path)?)
    }

    /// Reads a job's text.
    ///
    /// # Errors
    /// The text isn't TOML, has an unknown key or a value of the wrong type, or describes a race
    /// that can't be run. The error points at the value.
    ///
    /// # Example
    /// ```
    /// use workloads::input::Source;
    /// use workloads::race::job::{Job, Role};
    ///
    /// let job = Job::parse(&Source::new("mine.toml", "[truncaters]\ncount = 3\n")).unwrap();
    /// assert_eq!(job.count(Role::Truncater), 3);
    /// assert_eq!(job.files, Job::built_in().files, "a key that is left out has its default");
    ///
    /// let error = Job::parse(&Source::new("mine.toml", "[truncaters]\ncuont = 3\n")).unwrap_err();
    /// assert_eq!((error.title(), error.line()), ("unknown key `cuont`", Some(2)));
    /// ```
    pub fn parse(source: &Source) -> Result<Job, InputError> {
        job(source)
    }
}

/// Reads and checks a job.
fn job(source: &Source) -> Result<Job, InputError> {
    let built_in: JobText = toml::from_str(BUILT_IN).expect("a test reads the built-in job");
    let stated: JobText = source.parse_toml()?;
    JobCheck { source, text: stated.or(built_in) }.job()
}

pub(super) struct JobCheck<'a> {
    pub(super) source: &'a Source,
    pub(super) text: JobText,
}

/// The value of a key that the built-in job states.
pub(super) fn stated<T>(field: &Option<GivenValue<T>>) -> &GivenValue<T> {
    field.as_ref().expect("the built-in job states every key but run.threads and run.seed")
}

impl JobCheck<'_> {
    fn job(&self) -> Result<Job, InputError> {
        let text = &self.text;
        let files = self.files()?;
        let registrants = self.registrants(&files)?;
        let counts = self.counts()?;
        let held = self.held_blocks(&files)?;
        let device_bytes = self.device(&files, &registrants, &held, &counts)?;
        let time = |key, given| self.time(key, given, RUN_NS_MAX).map(|Duration(time)| time);
        let job = Job {
            name: self.name()?,
            device_bytes,
            volume: VolumeOptions {
                write_break: stated(&text.volume.write_break).value,
                lease_break_time: stated(&text.volume.lease_break_time).value.0,
                ..VolumeOptions::default()
            },
            files,
            duration: time("duration", stated(&text.run.duration))?,
            quick_duration: time("quick_duration", stated(&text.run.quick_duration))?,
            seed: text.run.seed.as_ref().map(|given| given.value),
            race_points: self.probability("probability", &text.race_points.probability)?,
            registrants,
            mix: self.mix()?,
            dma_mix: self.dma_mix()?,
            truncaters: self.truncaters(&files)?,
            punchers: self.punchers(&files)?,
            direct_io: self.direct_io(&files)?,
            extenders: self.extenders(&files)?,
            address_io: self.address_io()?,
            address_io_mix: self.address_io_mix()?,
            umems: self.umems()?,
            rings: self.rings()?,
            guests: self.guests(&files)?,
            layout_clients: self.layout_clients()?,
            collapsers: self.collapsers()?,
            reflinkers: self.reflinkers()?,
            reflink_mix: self.reflink_mix()?,
            defragmenters: self.defragmenters()?,
            reaper_patience: time("patience", stated(&text.reaper.patience))?,
            counts,
            parameters: parameters(self.source),
        };
        let Some(threads) = &text.run.threads else { return Ok(job) };
        let help = "leave `threads` out to have as many actors as the counts say";
        job.with_threads(threads.value).map_err(|problem| threads.error(self.source, problem).help(help))
    }

    fn name(&self) -> Result<String, InputError> {
        let name = stated(&self.text.name);
        let fine =
            !name.value.is_empty() && name.value.len() <= NAME_BYTES_MAX && !name.value.contains(char::is_control);
        match fine {
            true => Ok(name.value.clone()),
            false => Err(name
                .error(self.source, format!("`{}` can't be a job's name", shown(&name.value)))
                .help(format!("a name is one line of 1 to {NAME_BYTES_MAX} bytes"))),
        }
    }

    fn time(&self, key: &str, given: &GivenValue<Duration>, max: u64) -> Result<Duration, InputError> {
        let ns = given.value.units();
        let title = match ns {
            0 => format!("`{key}` is zero"),
            _ if ns > max => format!("`{key}` is {}, which is too long", given.value),
            _ => return Ok(given.value),
        };
        Err(given.error(self.source, title).help(format!("it can be up to {}", Duration::of_units(max))))
    }

    pub(super) fn probability(&self, key: &str, given: &Option<GivenValue<f64>>) -> Result<f64, InputError> {
        stated(given).probability(self.source, key)
    }

    fn files(&self) -> Result<JobFiles, InputError> {
        let files = &self.text.files;
        let (count, size) = (stated(&files.count), stated(&files.size));
        if !(1..=FILES_MAX).contains(&count.value) {
            let title = format!("a job can't have {} files", count.value);
            return Err(count.error(self.source, title).help(format!("a job has from 1 to {FILES_MAX} files")));
        }
        let bytes = size.value.0;
        if bytes == 0 || !bytes.is_multiple_of(BLOCK) || bytes > oracle::FILE_BYTES_MAX {
            let most = Size(oracle::FILE_BYTES_MAX);
            return Err(size
                .error(self.source, format!("a file size of {} is not allowed", size.value))
                .help(format!("the size of a file is a multiple of 4KiB, up to {most}")));
        }
        let popularity = self.popularity(stated(&files.popularity))?;
        Ok(JobFiles { count: count.value, size: bytes, popularity, moved: self.moved(count.value, bytes)? })
    }

    fn popularity(&self, given: &GivenValue<text::PopularityText>) -> Result<Popularity, InputError> {
        /// With a larger exponent practically every step chooses the first file.
        const EXPONENT_MAX: f64 = 10.0;
        let raw = &given.value;
        match (raw.dist.value, &raw.exponent) {
            (PopularityShape::Uniform, None) => Ok(Popularity::Uniform),
            (PopularityShape::Uniform, Some(exponent)) => Err(exponent
                .error(self.source, "a uniform distribution takes no `exponent`")
                .help("leave it out, or write dist = \"zipf\"")),
            (PopularityShape::Zipf, None) => Err(raw
                .dist
                .error(self.source, "`exponent` is missing for this distribution")
                .help("`zipf` needs `exponent`, like 0.8")),
            (PopularityShape::Zipf, Some(exponent)) if (0.0..=EXPONENT_MAX).contains(&exponent.value) => {
                Ok(Popularity::Zipf(exponent.value))
            }
            (PopularityShape::Zipf, Some(exponent)) => Err(exponent
                .error(self.source, format!("`exponent` can't be {}", exponent.value))
                .help(format!("it can be from 0 (all files equally likely) to {EXPONENT_MAX}"))),
        }
    }

    pub(super) fn distribution<Q: Quantity>(
        &self,
        raw: &Option<GivenValue<RawDistribution<Q>>>,
        limits: DistributionLimits<'_>,
    ) -> Result<Distribution, InputError> {
        stated(raw).value.check(self.source, limits)
    }

    pub(super) fn pause(
        &self,
        raw: &Option<GivenValue<RawDistribution<Duration>>>,
    ) -> Result<Distribution, InputError> {
        let because = "with longer pauses the actors would hardly meet";
        self.distribution(raw, DistributionLimits { key: "pause", min: 0, max: WAIT_NS_MAX, because })
    }

    pub(super) fn length(
        &self,
        raw: &Option<GivenValue<RawDistribution<Size>>>,
        min: u64,
        max: u64,
        because: &str,
    ) -> Result<Distribution, InputError> {
        self.distribution(raw, DistributionLimits { key: "length", min, max, because })
    }

    fn registrants(&self, files: &JobFiles) -> Result<Registrants, InputError> {
        let raw = &self.text.registrants;
        let regions_max = stated(&raw.regions_max);
        if !(1..=REGIONS_MAX).contains(&regions_max.value) {
            let title = format!("`regions_max` can't be {}", regions_max.value);
            return Err(regions_max.error(self.source, title).help(format!("it can be from 1 to {REGIONS_MAX}")));
        }
        let fits = "a region lies in one file, and pages are 4KiB";
        let lives = "longer regions would outlive the race";
        let local = "that is the local buffer's size, and a request moves whole 8-byte words";
        Ok(Registrants {
            regions_max: regions_max.value,
            region_length: self.distribution(
                &raw.region_length,
                DistributionLimits { key: "region_length", min: BLOCK, max: files.size, because: fits },
            )?,
            region_lifetime: self.distribution(
                &raw.region_lifetime,
                DistributionLimits { key: "region_lifetime", min: 0, max: WAIT_NS_MAX, because: lives },
            )?,
            read_only: self.probability("read_only", &raw.read_only)?,
            whole_file_lease: self.probability("whole_file_lease", &raw.whole_file_lease)?,
            skips_cleanup: self.probability("rude", &raw.rude)?,
            on_demand: self.probability("on_demand", &raw.on_demand)?,
            windows: self.probability("windows", &raw.windows)?,
            dma_burst: self.distribution(
                &raw.dma_burst,
                DistributionLimits { key: "dma_burst", min: 1, max: BURST_MAX, because: "a burst fits the queues" },
            )?,
            dma_length: self.distribution(
                &raw.dma_length,
                DistributionLimits { key: "dma_length", min: 8, max: DMA_BYTES_MAX, because: local },
            )?,
            pause: self.pause(&raw.pause)?,
        })
    }

    fn mix(&self) -> Result<RegistrantMix, InputError> {
        let raw = &self.text.mix;
        let weight = |given: &Option<GivenValue<u32>>| stated(given).value;
        for (key, given) in [("register", &raw.register), ("dma", &raw.dma)] {
            if weight(given) == 0 {
                let title = format!("a race needs a `mix` with a weight for `{key}`");
                return Err(stated(given).error(self.source, title).help("give it a weight of 1 or more"));
            }
        }
        Ok(RegistrantMix {
            register: weight(&raw.register),
            dma: weight(&raw.dma),
            change: weight(&raw.change),
            unlock: weight(&raw.unlock),
            close: weight(&raw.close),
            pass: weight(&raw.pass),
            fork: weight(&raw.fork),
            exit: weight(&raw.exit),
            kill: weight(&raw.kill),
        })
    }

    fn dma_mix(&self) -> Result<DmaMix, InputError> {
        let raw = &self.text.dma_mix;
        let weight = |given: &Option<GivenValue<u32>>| stated(given).value;
        let mix = DmaMix {
            write: weight(&raw.write),
            read: weight(&raw.read),
            compare_swap: weight(&raw.compare_swap),
            fetch_add: weight(&raw.fetch_add),
        };
        if mix.write == 0 {
            return Err(stated(&raw.write)
                .error(self.source, "a `dma_mix` without `write` can't show corruption")
                .help("give it a weight of 1 or more"));
        }
        Ok(mix)
    }

    fn truncaters(&self, files: &JobFiles) -> Result<Truncaters, InputError> {
        let raw = &self.text.truncaters;
        let because = "that is the largest size of a file, from [files] size";
        Ok(Truncaters {
            size: self.distribution(&raw.size, DistributionLimits { key: "size", min: 0, max: files.size, because })?,
            by_path: self.probability("by_path", &raw.by_path)?,
            unaligned: self.probability("unaligned", &raw.unaligned)?,
            pause: self.pause(&raw.pause)?,
        })
    }

    fn punchers(&self, files: &JobFiles) -> Result<Punchers, InputError> {
        let raw = &self.text.punchers;
        Ok(Punchers {
            length: self.length(&raw.length, 1, files.size, "a hole lies in one file")?,
            zero_range: self.probability("zero_range", &raw.zero_range)?,
            pause: self.pause(&raw.pause)?,
        })
    }

    fn direct_io(&self, files: &JobFiles) -> Result<DirectIo, InputError> {
        let raw = &self.text.direct_io;
        let max = files.size.min(DMA_BYTES_MAX);
        Ok(DirectIo {
            length: self.length(&raw.length, 8, max, "one request moves whole 8-byte words, up to a file or 64KiB")?,
            write: self.probability("write", &raw.write)?,
            pause: self.pause(&raw.pause)?,
        })
    }

    fn extenders(&self, files: &JobFiles) -> Result<Extenders, InputError> {
        let raw = &self.text.extenders;
        let max = files.size.min(DMA_BYTES_MAX);
        Ok(Extenders {
            length: self.length(&raw.length, 8, max, "one request moves whole 8-byte words, up to a file or 64KiB")?,
            fallocate: self.probability("fallocate", &raw.fallocate)?,
            shared: self.probability("shared", &raw.shared)?,
            recreate: self.probability("recreate", &raw.recreate)?,
            pause: self.pause(&raw.pause)?,
        })
    }

    fn counts(&self) -> Result<[u32; ROLES], InputError> {
        let text = &self.text;
        let given = Role::ALL.map(|role| match role {
            Role::Registrant => stated(&text.registrants.count),
            Role::Truncater => stated(&text.truncaters.count),
            Role::Puncher => stated(&text.punchers.count),
            Role::DirectIo => stated(&text.direct_io.count),
            Role::Extender => stated(&text.extenders.count),
            Role::AddressIo => stated(&text.address_io.count),
            Role::Umem => stated(&text.umems.count),
            Role::Ring => stated(&text.rings.count),
            Role::Guest => stated(&text.guests.count),
            Role::LayoutClient => stated(&text.layout_clients.count),
            Role::Collapser => stated(&text.collapsers.count),
            Role::Reflinker => stated(&text.reflinkers.count),
            Role::Defragmenter => stated(&text.defragmenters.count),
        });
        let total: u64 = given.iter().map(|count| u64::from(count.value)).sum();
        if total > u64::from(ACTORS_MAX) {
            let culprit = given.iter().filter(|count| count.is_stated()).max_by_key(|count| count.value);
            let culprit = culprit.unwrap_or(&given[0]);
            let title = format!("{total} actors are too many");
            return Err(culprit.error(self.source, title).help(format!("a race has {ACTORS_MAX} at most")));
        }
        if given[0].value == 0 {
            return Err(given[0]
                .error(self.source, "a race without registrants")
                .help("set `count` in [registrants] to 1 or more"));
        }
        let changers = Role::ALL.iter().zip(given).filter(|(role, _)| role.changes_layouts());
        if changers.clone().all(|(_, count)| count.value == 0) {
            let stated = changers.map(|(_, count)| count).find(|count| count.is_stated());
            return Err(stated
                .unwrap_or(given[1])
                .error(self.source, "a race in which no actor changes a layout")
                .help("set `count` in [truncaters], [punchers] or [extenders] to 1 or more"));
        }
        self.check_movers(&given)?;
        Ok(given.map(|count| count.value))
    }

    /// The device must hold all files at their largest size, and all blocks that can be orphaned or
    /// in allocation at one moment.
    fn device(
        &self,
        files: &JobFiles,
        registrants: &Registrants,
        holders: &HeldBlocks,
        counts: &[u32; ROLES],
    ) -> Result<u64, InputError> {
        let size = stated(&self.text.device.size);
        let bytes = size.value.0;
        let (step, most) = (emulator::device::FOLIO, emulator::device::MAX_BYTES);
        if bytes == 0 || !bytes.is_multiple_of(step) || bytes > most {
            return Err(size
                .error(self.source, format!("a device size of {} is not allowed", size.value))
                .help(format!("the size of a device is a multiple of {}, up to {}", Size(step), Size(most))));
        }
        let own_files = u64::from(counts[Role::Extender as usize]);
        let held = u64::from(counts[0]) * u64::from(registrants.regions_max) * registrants.region_length.max();
        let needed = (files.count + own_files) * files.size + held + holders.bytes(counts);
        if bytes < needed {
            let needed = Size(needed.next_multiple_of(step));
            return Err(size.error(self.source, format!("a device of {} is too small for this job", size.value)).help(
                format!(
                    "{} files and {own_files} of the extenders' own, up to {} each, and what {} can keep from being \
                     freed, need {needed}",
                    files.count,
                    Size(files.size),
                    if holders.bytes(counts) == 0 { "regions" } else { "regions and the other holders" }
                ),
            ));
        }
        Ok(bytes)
    }
}

/// Every value as it is spelled, by `section.key`. A value that the text does not state is the
/// built-in job's.
fn parameters(source: &Source) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for text in [BUILT_IN, source.text()] {
        // Both texts parsed as jobs before, so both are tables.
        let Ok(table) = text.parse::<toml::Table>() else { continue };
        for (section, value) in table {
            match value {
                toml::Value::Table(keys) => {
                    all.extend(keys.into_iter().map(|(key, value)| (format!("{section}.{key}"), spelled(&value))));
                }
                // Results hold the name separately.
                _ => continue,
            }
        }
    }
    all
}

fn spelled(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
