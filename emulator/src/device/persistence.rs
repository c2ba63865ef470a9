//! The power-cut model: which stores to a device survive when its machine loses power.
//!
//! It owns the *durable* image of a device. The *live* image is the device that all threads read
//! and write. The model is a platform with ADR and without eADR: what has reached the memory
//! controller survives. What is in a CPU cache is lost, unless the CPU evicted its 64-byte line
//! before the cut. Stores go to the live image alone. [`DurableImage::flush`] copies ranges to the
//! durable image (a guest's FLUSH, `fsync`, an NIC's flush). [`DurableImage::cut`] is the power
//! cut:
//!
//! | a 64-byte line | after the cut |
//! |---|---|
//! | equal in both images | unchanged |
//! | stored to since its last flush | durable or live version, whole, by (seed, line number) |
//!
//! Invariants:
//! - A line of the durable image is never older than the last completed flush of its range.
//! - A line is never a mix of two versions, unless another thread stores to it all through the
//!   flush ([`FlushStats::lines_unsettled`]).
//! - A page that is a hole in both images takes no memory and no time.
//!
//! The model leaves out one case. A cache can evict a line at any time, so a line that is stored to
//! twice after its flush could survive with the first store. The emulator does not see a guest's
//! stores, so it knows the last version only. Counterparts: the crash tests of redb and of the
//! kernel (dm-log-writes) work the same way; Linux `arch_wb_cache_pmem`; SNIA NVM programming model
//! (persistence domain).
//!
//! # Concurrent flushes
//! Both images are shared memory, so one process can flush an image that another process cuts
//! ([`DurableImage::fd`], [`DurableImage::from_fd`]). Two flushes that copy the same line at the
//! same time could leave the older version behind. So each flush compares again after its copy is
//! visible, and copies again while the images differ. A flush ends when both are equal, or when a
//! concurrent flush is certain to compare later. A cut or a restore must not run beside a flush:
//! the caller ends flushes first.

use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};

use rand::Rng;

use super::dax::{AccessError, Device, PAGE, PAGE_WORDS};
use super::open::OpenError;
use crate::runtime::pages::PageRange;
use crate::runtime::rng;
use crate::runtime::sync::machine::{AtomicU64, Ordering, fence};

/// Bytes in a cache line, the unit that a power cut keeps or loses.
pub const LINE: u64 = 64;
const LINE_WORDS: usize = LINE as usize / 8;
/// How often a flush compares a page before it gives up on lines that other threads keep storing
/// to.
const LOOKS: u32 = 16;

type PageWords = [AtomicU64; PAGE_WORDS];
type LineWords = [AtomicU64; LINE_WORDS];

/// What a hole reads as. Only ever compared with and copied from.
static HOLE: PageWords = [const { AtomicU64::new(0) }; PAGE_WORDS];

/// See the module.
#[derive(Debug)]
pub struct DurableImage {
    copy: Device,
}

/// What a flush did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlushStats {
    /// Bytes of pages that were looked at: those that are no hole in both images.
    pub bytes_compared: u64,
    /// Bytes of lines that differed and were copied, and of pages that had become holes.
    pub bytes_copied: u64,
    /// Lines that were stored to each time they were looked at. Each of their 8-byte words is at
    /// least as new as the start of the flush, but they may stem from different moments.
    pub lines_unsettled: u64,
}

/// What a power cut did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PowerCut {
    /// Lines that were stored to, with a different content, since their last flush.
    pub lines_unflushed: u64,
    /// Those of them that had been evicted to the memory in time.
    pub lines_survived: u64,
}

impl DurableImage {
    /// A durable image in memory, equal to what `live` holds now. It takes as much memory as `live`
    /// has data.
    ///
    /// # Errors
    /// As [`Device::memory`].
    pub fn new(live: &Device) -> Result<DurableImage, OpenError> {
        let durable = DurableImage { copy: Device::memory(live.bytes())? };
        let all = durable.flush(live, Some(0..live.bytes()));
        all.map_err(|error| OpenError::Os {
            what: "copying the device".to_owned(),
            source: std::io::Error::other(error),
        })?;
        Ok(durable)
    }

    /// The durable image that another process made, over what its [`DurableImage::fd`] was
    /// duplicated to.
    ///
    /// # Errors
    /// As [`Device::from_fd`].
    pub fn from_fd(fd: OwnedFd, bytes: u64) -> Result<DurableImage, OpenError> {
        Ok(DurableImage { copy: Device::from_fd(fd, bytes)? })
    }

    /// The memory file behind the durable image.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.copy.fd()
    }

    /// Its size in bytes, that of the live device.
    pub fn bytes(&self) -> u64 {
        self.copy.bytes()
    }

    /// Makes durable what was stored to `ranges` (bytes) of `live` before the call, by any thread
    /// or process. Stores during the call may or may not become durable. Works by whole pages: the
    /// rest of a page that a range touches is flushed too.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`] for a range that is not inside both images; nothing was flushed
    /// then.
    pub fn flush(
        &self,
        live: &Device,
        ranges: impl IntoIterator<Item = Range<u64>, IntoIter: Clone>,
    ) -> Result<FlushStats, AccessError> {
        let ranges = ranges.into_iter().filter(|range| !range.is_empty());
        for range in ranges.clone() {
            self.check_range(live, &range)?;
        }
        let mut done = FlushStats::default();
        for range in ranges {
            mirror(live, &self.copy, range.start / PAGE..range.end.div_ceil(PAGE), &mut done)?;
        }
        Ok(done)
    }

    /// Makes durable the lines that hold `bytes` of `live`, and no others: CLWB of each line, then
    /// SFENCE. See [`DurableImage::flush`], which works by pages. Of a line that another thread
    /// stores to all the time, a mix of versions may become durable.
    ///
    /// # Errors
    /// As [`DurableImage::flush`].
    pub fn write_back(&self, live: &Device, bytes: Range<u64>) -> Result<(), AccessError> {
        self.check_range(live, &bytes)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let (first, end) = (bytes.start / LINE, bytes.end.div_ceil(LINE));
        let lines_of_page = PAGE / LINE;
        // Whole pages in one go: they may be holes, which cost nothing.
        let whole = first.div_ceil(lines_of_page)..end / lines_of_page;
        if whole.start >= whole.end {
            return self.write_back_lines(live, first..end);
        }
        self.write_back_lines(live, first..whole.start * lines_of_page)?;
        self.flush(live, Some(whole.start * PAGE..whole.end * PAGE))?;
        self.write_back_lines(live, whole.end * lines_of_page..end)
    }

    fn write_back_lines(&self, live: &Device, wanted: Range<u64>) -> Result<(), AccessError> {
        for line in wanted {
            let (page, at) = (line / (PAGE / LINE), (line % (PAGE / LINE)) as usize);
            let (now, kept) = (line_of(live, page, at)?, line_of(&self.copy, page, at)?);
            for _ in 0..LOOKS {
                if !differ(now, kept) {
                    break;
                }
                copy_line(now, kept);
                // ORDERING: SeqCst, between our copy and our next look; see `mirror_page`.
                fence(Ordering::SeqCst);
            }
        }
        Ok(())
    }

    /// How many lines of `pages` a power cut would take back to an older version now.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`] for pages that are not inside both images.
    pub fn unflushed(&self, live: &Device, pages: PageRange) -> Result<u64, AccessError> {
        self.check_range(live, &(pages.start().saturating_mul(PAGE)..pages.end().saturating_mul(PAGE)))?;
        let mut differing = 0;
        self.unflushed_lines(live, pages.start()..pages.end(), |_, _| {
            differing += 1;
            Ok(())
        })?;
        Ok(differing)
    }

    /// Calls `found` for each line of `pages` that differs, with its number and its live version.
    fn unflushed_lines(
        &self,
        live: &Device,
        pages: Range<u64>,
        mut found: impl FnMut(u64, &LineWords) -> Result<(), AccessError>,
    ) -> Result<(), AccessError> {
        for run in DataRuns::over(live, &self.copy, pages) {
            for page in run.pages {
                let now = if run.from { live.page_words(page)? } else { &HOLE };
                let kept = if run.to { self.copy.page_words(page)? } else { &HOLE };
                for (at, (now, kept)) in lines(now).zip(lines(kept)).enumerate() {
                    if differ(now, kept) {
                        found(page * (PAGE / LINE) + at as u64, now)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Cuts the power: decides for each line that was not flushed whether it survives, and keeps
    /// the outcome in the durable image. The live one stays as it is until
    /// [`DurableImage::restore`]. A given `seed` decides the same for the same line, whatever else
    /// was not flushed. Every second line survives in the mean.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`] if `live` has another size.
    pub fn cut(&self, live: &Device, seed: u64) -> Result<PowerCut, AccessError> {
        self.same_size(live)?;
        let mut done = PowerCut::default();
        self.unflushed_lines(live, 0..live.pages(), |line, now| {
            done.lines_unflushed += 1;
            if rng::stream(seed, "power cut", line).next_u64() >> 63 == 1 {
                done.lines_survived += 1;
                // Only now, because looking at the copy's page would take memory for a hole.
                let (page, at) = (line / (PAGE / LINE), (line % (PAGE / LINE)) as usize);
                copy_line(now, line_of(&self.copy, page, at)?);
            }
            Ok(())
        })?;
        Ok(done)
    }

    /// The power comes back: `live` becomes equal to the durable image. No other thread may use it
    /// meanwhile.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`] if `live` has another size; [`AccessError::Gone`] if it was
    /// taken away and can't give memory back.
    pub fn restore(&self, live: &Device) -> Result<(), AccessError> {
        self.same_size(live)?;
        mirror(&self.copy, live, 0..live.pages(), &mut FlushStats::default())
    }

    fn check_range(&self, live: &Device, range: &Range<u64>) -> Result<(), AccessError> {
        let bytes = live.bytes().min(self.bytes());
        if range.end <= bytes {
            return Ok(());
        }
        Err(AccessError::OutOfRange { offset: range.start, len: range.end.saturating_sub(range.start), bytes })
    }

    fn same_size(&self, live: &Device) -> Result<(), AccessError> {
        match self.bytes() {
            bytes if bytes == live.bytes() => Ok(()),
            bytes => Err(AccessError::OutOfRange { offset: 0, len: live.bytes(), bytes }),
        }
    }
}

/// Makes `pages` of `to` what they are in `from`.
fn mirror(from: &Device, to: &Device, pages: Range<u64>, done: &mut FlushStats) -> Result<(), AccessError> {
    for run in DataRuns::over(from, to, pages) {
        let len = run.pages.end - run.pages.start;
        done.bytes_compared += len * PAGE;
        if run.from {
            for page in run.pages {
                mirror_page(from, to, page, run.to, done)?;
            }
            continue;
        }
        to.discard(PageRange::new(run.pages.start, len))?;
        done.bytes_copied += len * PAGE;
        // A thread may have stored to the hole meanwhile, and another one flushed that store before
        // the discard.
        for run in DataRuns::over(from, to, run.pages).filter(|run| run.from) {
            for page in run.pages {
                mirror_page(from, to, page, run.to, done)?;
            }
        }
    }
    Ok(())
}

/// Makes `page` of `to` (a hole unless `there`) what it is in `from`, which is no hole.
fn mirror_page(from: &Device, to: &Device, page: u64, there: bool, done: &mut FlushStats) -> Result<(), AccessError> {
    let now = from.page_words(page)?;
    if !there && !lines(now).zip(lines(&HOLE)).any(|(now, hole)| differ(now, hole)) {
        return Ok(());
    }
    let kept = to.page_words(page)?;
    let mut moved = 0;
    for _ in 0..LOOKS {
        moved = 0;
        for (now, kept) in lines(now).zip(lines(kept)) {
            if differ(now, kept) {
                copy_line(now, kept);
                moved += 1;
            }
        }
        if moved == 0 {
            return Ok(());
        }
        done.bytes_copied += moved * LINE;
        // ORDERING: SeqCst, between our copy and our next look. It keeps the look from being
        // satisfied before the copy is visible (which release and acquire would allow): else
        // another flush could copy a newer version in between, ours land on top of it, and both of
        // us have seen the images equal.
        fence(Ordering::SeqCst);
    }
    done.lines_unsettled += moved;
    Ok(())
}

fn lines(page: &PageWords) -> impl Iterator<Item = &LineWords> {
    page.as_chunks::<LINE_WORDS>().0.iter()
}

/// The `at`-th line of a page.
fn line_of(device: &Device, page: u64, at: usize) -> Result<&LineWords, AccessError> {
    Ok(&device.page_words(page)?.as_chunks::<LINE_WORDS>().0[at])
}

/// Whether two lines differ. Relaxed: what was stored before a flush was ordered before it by
/// whatever asked for the flush.
fn differ(a: &LineWords, b: &LineWords) -> bool {
    a.iter().zip(b).fold(0, |any, (a, b)| any | (a.load(Ordering::Relaxed) ^ b.load(Ordering::Relaxed))) != 0
}

fn copy_line(from: &LineWords, to: &LineWords) {
    for (from, to) in from.iter().zip(to) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Pages of two devices that are no hole in both, in order, split where one of them changes between
/// hole and data.
struct DataRuns<'a> {
    from: &'a Device,
    to: &'a Device,
    at: u64,
    end: u64,
    /// The run of data of either that is at `at`, or the first behind it.
    from_data: Range<u64>,
    to_data: Range<u64>,
}

/// Pages, and which side has data there.
struct DataRun {
    pages: Range<u64>,
    from: bool,
    to: bool,
}

impl<'a> DataRuns<'a> {
    fn over(from: &'a Device, to: &'a Device, pages: Range<u64>) -> DataRuns<'a> {
        let none = pages.start..pages.start;
        DataRuns { from, to, at: pages.start, end: pages.end, from_data: none.clone(), to_data: none }
    }
}

impl Iterator for DataRuns<'_> {
    type Item = DataRun;

    fn next(&mut self) -> Option<DataRun> {
        for (device, data) in [(self.from, &mut self.from_data), (self.to, &mut self.to_data)] {
            if data.end <= self.at && self.at < self.end {
                *data = device.data_pages(self.at..self.end);
            }
        }
        self.at = self.at.max(self.from_data.start.min(self.to_data.start));
        if self.at >= self.end {
            return None;
        }
        let (from, to) = (self.from_data.start <= self.at, self.to_data.start <= self.at);
        let edge = |data: &Range<u64>, inside: bool| if inside { data.end } else { data.start };
        let end = edge(&self.from_data, from).min(edge(&self.to_data, to));
        let pages = self.at..end;
        self.at = end;
        Some(DataRun { pages, from, to })
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
