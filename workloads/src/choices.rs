//! Choices: what every actor is going to do, drawn from its own stream.
//!
//! It owns the drawing. Invariant: a choice depends on (seed, job, actor, how many were drawn before) alone. Every
//! parameter of a step is drawn whether the step turns out to need it or not, so nothing that happens in a run (a refusal, a
//! lost race, a design) can shift what is drawn next: two runs with one seed make the same choices, actor by actor. What is
//! due by the clock or by a signal (a deregistration, the answer to a break) is not a choice. There is no kernel counterpart.

use emulator::runtime::rng::{self, Rng};
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution as _, Zipf};

use crate::job::{Distribution, Job, Popularity, Role};

/// What a registrant does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Leases, maps and registers a range.
    Register,
    /// A burst of work requests.
    Dma,
    /// Changes the layout of a file it has registered.
    Change,
    /// Gives a lease back while regions live under it.
    Unlock,
    /// Unmaps and closes a file while its regions live.
    Close,
    /// Passes its context to another registrant.
    Pass,
    /// Forks a child.
    Fork,
    /// Exits with everything open.
    Exit,
    /// Is killed with everything open.
    Kill,
}

/// A share of something: 0 is nothing of it, `u32::MAX` all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(pub u32);

impl Share {
    /// A number below `bound`; 0 if `bound` is 0.
    pub fn below(self, bound: u64) -> u64 {
        ((u128::from(self.0) * u128::from(bound)) >> 32) as u64
    }

    /// Whether it falls below `probability`.
    pub fn falls_below(self, probability: f64) -> bool {
        f64::from(self.0) < probability * 4_294_967_296.0
    }
}

/// A registrant's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistrantStep {
    /// What it does.
    pub act: Act,
    /// The file, for a registration.
    pub file: u64,
    /// Where in the file, as a share of what is possible.
    pub place: Share,
    /// Length of the region in bytes.
    pub length: u64,
    /// Nanoseconds until the region is due for deregistration.
    pub lifetime: u64,
    /// Whether the region is for remote reads only.
    pub read_only: bool,
    /// Which of the leases that the design's gate accepts is taken.
    pub lease: Share,
    /// Whether the lease covers the whole file.
    pub whole_file: bool,
    /// Which of the regions or files at hand it is about.
    pub pick: Share,
    /// Work requests of a burst.
    pub burst: u64,
    /// Seed of the burst's requests; see [`Requests`].
    pub burst_seed: u64,
    /// For a change: punch a hole rather than truncate.
    pub punches: bool,
    /// For a change: how much of the file stays.
    pub keep: Share,
    /// Whom to pass the context to.
    pub partner: Share,
    /// What a forked child does: close what it inherited, or just exit.
    pub child_closes: bool,
    /// Whether a process that begins its life with this step ignores SIGIO.
    pub rude: bool,
    /// Nanoseconds until the next step.
    pub pause: u64,
}

/// A truncater's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TruncaterStep {
    /// The file.
    pub file: u64,
    /// The new size in bytes.
    pub size: u64,
    /// By name rather than by descriptor.
    pub by_path: bool,
    /// Nanoseconds until the next step.
    pub pause: u64,
}

/// A puncher's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PuncherStep {
    /// The file.
    pub file: u64,
    /// Where in the file.
    pub place: Share,
    /// Bytes.
    pub length: u64,
    /// Zero the range instead.
    pub zeroes: bool,
    /// Nanoseconds until the next step.
    pub pause: u64,
}

/// A direct-I/O actor's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectIoStep {
    /// The file.
    pub file: u64,
    /// Where in the file.
    pub place: Share,
    /// Bytes, a multiple of 8.
    pub length: u64,
    /// Write rather than read.
    pub writes: bool,
    /// Nanoseconds until the next step.
    pub pause: u64,
}

/// An extender's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtenderStep {
    /// The file, if it is a shared one.
    pub file: u64,
    /// Whether it is a shared one, rather than the extender's own.
    pub shared: bool,
    /// Bytes by which it grows, a multiple of 8.
    pub length: u64,
    /// `fallocate` rather than an extending write.
    pub allocates: bool,
    /// The file is removed and made anew instead.
    pub recreates: bool,
    /// Nanoseconds until the next step.
    pub pause: u64,
}

/// One step of an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A registrant's.
    Registrant(RegistrantStep),
    /// A truncater's.
    Truncater(TruncaterStep),
    /// A puncher's.
    Puncher(PuncherStep),
    /// A direct-I/O actor's.
    DirectIo(DirectIoStep),
    /// An extender's.
    Extender(ExtenderStep),
}

/// The endless choices of one actor.
#[derive(Clone, Debug)]
pub struct Choices {
    rng: Rng,
    role: Role,
    job: Job,
    popularity: Option<Zipf<f64>>,
    acts: Weighted<Act, 9>,
}

impl Choices {
    /// The choices of actor number `actor`, which has `role`, under `seed`.
    pub fn new(seed: u64, job: &Job, actor: u64, role: Role) -> Choices {
        let popularity = match job.files.popularity {
            Popularity::Uniform => None,
            // The job's checks leave nothing that Zipf refuses; without it all files are alike.
            Popularity::Zipf(exponent) => Zipf::new(job.files.count as f64, exponent).ok(),
        };
        let mix = &job.mix;
        let acts = Weighted::new([
            (Act::Register, mix.register),
            (Act::Dma, mix.dma),
            (Act::Change, mix.change),
            (Act::Unlock, mix.unlock),
            (Act::Close, mix.close),
            (Act::Pass, mix.pass),
            (Act::Fork, mix.fork),
            (Act::Exit, mix.exit),
            (Act::Kill, mix.kill),
        ]);
        Choices { rng: rng::stream(seed, "choices", actor), role, job: job.clone(), popularity, acts }
    }

    fn file(&mut self) -> u64 {
        let count = self.job.files.count;
        match &self.popularity {
            // Ranks are drawn from 1 to count.
            Some(zipf) => (zipf.sample(&mut self.rng) as u64).clamp(1, count) - 1,
            None => self.rng.random_range(0..count),
        }
    }

    fn share(&mut self) -> Share {
        Share(self.rng.random())
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.share().falls_below(probability)
    }

    fn draw(&mut self, of: impl Fn(&Job) -> Distribution) -> u64 {
        of(&self.job).draw(&mut self.rng)
    }

    fn registrant(&mut self) -> RegistrantStep {
        let (read_only, whole_file, rude) = {
            let registrants = &self.job.registrants;
            (registrants.read_only, registrants.whole_file_lease, registrants.rude)
        };
        RegistrantStep {
            act: self.acts.draw(&mut self.rng),
            file: self.file(),
            place: self.share(),
            length: self.draw(|job| job.registrants.region_length),
            lifetime: self.draw(|job| job.registrants.region_lifetime),
            read_only: self.chance(read_only),
            lease: self.share(),
            whole_file: self.chance(whole_file),
            pick: self.share(),
            burst: self.draw(|job| job.registrants.dma_burst),
            burst_seed: self.rng.random(),
            punches: self.chance(0.5),
            keep: self.share(),
            partner: self.share(),
            child_closes: self.chance(0.5),
            rude: self.chance(rude),
            pause: self.draw(|job| job.registrants.pause),
        }
    }

    fn truncater(&mut self) -> TruncaterStep {
        let (by_path, unaligned) = (self.job.truncaters.by_path, self.job.truncaters.unaligned);
        let file = self.file();
        let size = self.draw(|job| job.truncaters.size);
        let grain = if self.chance(unaligned) { 8 } else { fs_sim::BLOCK };
        TruncaterStep {
            file,
            size: size / grain * grain,
            by_path: self.chance(by_path),
            pause: self.draw(|job| job.truncaters.pause),
        }
    }

    fn puncher(&mut self) -> PuncherStep {
        let zero_range = self.job.punchers.zero_range;
        PuncherStep {
            file: self.file(),
            place: self.share(),
            length: self.draw(|job| job.punchers.length).next_multiple_of(8),
            zeroes: self.chance(zero_range),
            pause: self.draw(|job| job.punchers.pause),
        }
    }

    fn direct_io(&mut self) -> DirectIoStep {
        let write = self.job.direct_io.write;
        DirectIoStep {
            file: self.file(),
            place: self.share(),
            length: self.draw(|job| job.direct_io.length) / 8 * 8,
            writes: self.chance(write),
            pause: self.draw(|job| job.direct_io.pause),
        }
    }

    fn extender(&mut self) -> ExtenderStep {
        let (fallocate, shared, recreate) =
            (self.job.extenders.fallocate, self.job.extenders.shared, self.job.extenders.recreate);
        ExtenderStep {
            file: self.file(),
            shared: self.chance(shared),
            length: self.draw(|job| job.extenders.length) / 8 * 8,
            allocates: self.chance(fallocate),
            recreates: self.chance(recreate),
            pause: self.draw(|job| job.extenders.pause),
        }
    }
}

impl Iterator for Choices {
    type Item = Choice;

    fn next(&mut self) -> Option<Choice> {
        Some(match self.role {
            Role::Registrant => Choice::Registrant(self.registrant()),
            Role::Truncater => Choice::Truncater(self.truncater()),
            Role::Puncher => Choice::Puncher(self.puncher()),
            Role::DirectIo => Choice::DirectIo(self.direct_io()),
            Role::Extender => Choice::Extender(self.extender()),
        })
    }
}

/// Values drawn in proportion to weights.
#[derive(Clone, Debug)]
struct Weighted<T, const N: usize> {
    /// Each value with the sum of the weights up to and with its own.
    upto: [(T, u64); N],
}

impl<T: Copy, const N: usize> Weighted<T, N> {
    fn new(weights: [(T, u32); N]) -> Self {
        let mut sum = 0;
        Weighted {
            upto: weights.map(|(value, weight)| {
                sum += u64::from(weight);
                (value, sum)
            }),
        }
    }

    fn draw(&self, rng: &mut Rng) -> T {
        let sum = self.upto[N - 1].1;
        let at = Share(rng.random()).below(sum);
        // A job's mix has a weight above zero, so some sum lies above `at`.
        self.upto.iter().find(|(_, upto)| at < *upto).unwrap_or(&self.upto[N - 1]).0
    }
}

/// What a work request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// RDMA WRITE.
    Write,
    /// RDMA READ.
    Read,
    /// Compare and swap of a line's sequence word.
    CompareSwap,
    /// Fetch and add on a line's sequence word.
    FetchAdd,
}

/// One work request of a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it does.
    pub verb: Verb,
    /// Where in the region.
    pub place: Share,
    /// Bytes of a WRITE or READ, a multiple of 8.
    pub length: u64,
}

/// The endless work requests of one burst, drawn from the seed that its step drew.
#[derive(Clone, Debug)]
pub struct Requests {
    rng: Rng,
    verbs: Weighted<Verb, 4>,
    length: Distribution,
}

impl Requests {
    /// The requests of a burst.
    pub fn new(job: &Job, burst_seed: u64) -> Requests {
        let mix = &job.dma_mix;
        let verbs = Weighted::new([
            (Verb::Write, mix.write),
            (Verb::Read, mix.read),
            (Verb::CompareSwap, mix.compare_swap),
            (Verb::FetchAdd, mix.fetch_add),
        ]);
        Requests { rng: Rng::seed_from_u64(burst_seed), verbs, length: job.registrants.dma_length }
    }
}

impl Iterator for Requests {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        Some(Request {
            verb: self.verbs.draw(&mut self.rng),
            place: Share(self.rng.random()),
            length: self.length.draw(&mut self.rng) / 8 * 8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(seed: u64, job: &Job, actor: usize, n: usize) -> Vec<Choice> {
        Choices::new(seed, job, actor as u64, job.actors()[actor]).take(n).collect()
    }

    #[test]
    fn one_seed_gives_every_actor_the_same_first_10000_choices() {
        let job = Job::built_in();
        for actor in 0..job.actors().len() {
            assert_eq!(first(7, &job, actor, 10_000), first(7, &job, actor, 10_000));
        }
    }

    #[test]
    fn seeds_and_actors_have_streams_of_their_own() {
        let job = Job::built_in();
        assert_ne!(first(7, &job, 0, 10), first(8, &job, 0, 10));
        assert_ne!(first(7, &job, 0, 10), first(7, &job, 1, 10), "both are registrants");
    }

    #[test]
    fn everything_drawn_is_usable() {
        let job = Job::built_in();
        let mut files = vec![0_u64; job.files.count as usize];
        for actor in 0..job.actors().len() {
            for choice in first(3, &job, actor, 5_000) {
                let (file, bytes) = match choice {
                    Choice::Registrant(step) => {
                        for request in Requests::new(&job, step.burst_seed).take(3) {
                            assert!(request.length >= 8 && request.length.is_multiple_of(8), "{request:?}");
                        }
                        assert!((1..=1024).contains(&step.burst));
                        (step.file, step.length)
                    }
                    Choice::Truncater(step) => (step.file, step.size),
                    Choice::Puncher(step) => (step.file, step.length),
                    Choice::DirectIo(step) => (step.file, step.length),
                    Choice::Extender(step) => (step.file, step.length),
                };
                files[file as usize] += 1;
                assert!(bytes <= job.files.size, "{choice:?}");
            }
        }
        assert!(files.iter().all(|chosen| *chosen > 0), "{files:?}");
        assert!(files[0] > 2 * files[files.len() - 1], "the first file is the most popular: {files:?}");
    }

    #[test]
    fn weights_are_proportions_and_zero_is_never() {
        let mut rng = rng::stream(1, "test", 0);
        let weighted = Weighted::new([('a', 3), ('b', 0), ('c', 1)]);
        let drawn: Vec<char> = (0..40_000).map(|_| weighted.draw(&mut rng)).collect();
        let count = |letter| drawn.iter().filter(|drawn| **drawn == letter).count();
        assert_eq!(count('b'), 0);
        assert!((29_000..31_000).contains(&count('a')), "{}", count('a'));
    }

    #[test]
    fn a_share_reaches_from_nothing_to_just_below_all() {
        assert_eq!((Share(0).below(7), Share(u32::MAX).below(7), Share(9).below(0)), (0, 6, 0));
        assert!(!Share(0).falls_below(0.0) && Share(u32::MAX).falls_below(1.0));
    }
}
