//! Op streams: the steps of every actor, each drawn from the actor's own random stream.
//!
//! Invariant: a step depends only on the seed, the job, the actor, and how many steps the actor has
//! drawn before. Every parameter of a step is drawn even if the step does not need it. So nothing
//! that happens in a run (a refusal, a lost race, the design) shifts what is drawn next: two runs
//! with one seed give every actor the same steps. What is due by the clock or by a signal (a
//! deregistration, the answer to a lease break) is not drawn. There is no kernel counterpart.

use emulator::runtime::rng::{self, Rng};
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution as _, Zipf};

use super::job::{Distribution, Job, Popularity, Role};

mod roles;

pub use roles::{
    AddressIoAct, AddressIoStep, CollapserStep, DefragmenterStep, HolderAccess, HolderAccesses, HolderStep, ReflinkAct,
    ReflinkerStep, RegionKind, WindowKind, holders_of,
};

/// What a registrant does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrantAct {
    /// Leases, maps and registers a range.
    Register,
    /// A burst of work requests.
    Dma,
    /// Changes the layout of a file it has registered.
    Change,
    /// Unlocks a lease while regions are registered under it.
    Unlock,
    /// Unmaps and closes a file while regions of it are registered.
    Close,
    /// Passes its context to another registrant.
    Pass,
    /// Forks a child.
    Fork,
    /// Exits with everything open.
    Exit,
    /// Kills itself with everything open.
    Kill,
}

/// A fraction of a whole, in units of 2^-32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(pub u32);

impl Share {
    /// A number below `bound`, in proportion to the fraction; 0 if `bound` is 0.
    pub fn below(self, bound: u64) -> u64 {
        ((u128::from(self.0) * u128::from(bound)) >> 32) as u64
    }

    /// Whether the fraction is below `probability`.
    pub fn falls_below(self, probability: f64) -> bool {
        f64::from(self.0) < probability * 4_294_967_296.0
    }
}

/// A registrant's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistrantStep {
    /// What it does.
    pub act: RegistrantAct,
    /// The file, for a registration.
    pub file: u64,
    /// The region's place in the file, as a fraction of the possible places.
    pub place: Share,
    /// Length of the region in bytes.
    pub length: u64,
    /// The kind of the region.
    pub kind: RegionKind,
    /// Nanoseconds until the region is due for deregistration.
    pub lifetime: u64,
    /// Whether the region is for remote reads only.
    pub read_only: bool,
    /// Selects among the leases that the design's gate accepts.
    pub lease: Share,
    /// Whether the lease covers the whole file.
    pub whole_file: bool,
    /// Selects among the regions or open files that the step can be about.
    pub pick: Share,
    /// The number of work requests in a burst.
    pub burst: u64,
    /// The seed of the burst's requests; see [`DmaRequests`].
    pub burst_seed: u64,
    /// For a change: punches a hole instead of truncating.
    pub punches: bool,
    /// For a change: the part of the file that stays.
    pub keep: Share,
    /// Selects the registrant that the context is passed to.
    pub partner: Share,
    /// Whether a forked child closes what it inherited; otherwise it just exits.
    pub child_closes: bool,
    /// Whether a process that starts with this step ignores SIGIO, so that it never cleans up for a
    /// lease break.
    pub skips_cleanup: bool,
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
    /// Truncates by name, not by descriptor.
    pub by_path: bool,
    /// Nanoseconds until the next step.
    pub pause: u64,
}

/// A puncher's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PuncherStep {
    /// The file.
    pub file: u64,
    /// The range's place in the file.
    pub place: Share,
    /// Length of the range in bytes.
    pub length: u64,
    /// Zeroes the range instead of punching it.
    pub zeroes: bool,
    /// Nanoseconds until the next step.
    pub pause: u64,
}

/// A direct-I/O actor's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectIoStep {
    /// The file.
    pub file: u64,
    /// The range's place in the file.
    pub place: Share,
    /// Length in bytes, a multiple of 8.
    pub length: u64,
    /// Writes; otherwise reads.
    pub writes: bool,
    /// Nanoseconds until the next step.
    pub pause: u64,
}

/// An extender's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtenderStep {
    /// The file, if the step is about a shared file.
    pub file: u64,
    /// Whether the step is about a shared file; otherwise it is about the extender's own file.
    pub shared: bool,
    /// Bytes by which it grows, a multiple of 8.
    pub length: u64,
    /// Grows by `fallocate`; otherwise by an extending write.
    pub allocates: bool,
    /// Removes the file and creates it again instead.
    pub recreates: bool,
    /// Nanoseconds until the next step.
    pub pause: u64,
}

/// One step of an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActorStep {
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
    /// That of an actor that holds mapped memory by address.
    AddressIo(AddressIoStep),
    /// That of a umem.
    Umem(HolderStep),
    /// That of a ring.
    Ring(HolderStep),
    /// That of a guest.
    Guest(HolderStep),
    /// That of a block-layout client.
    LayoutClient(HolderStep),
    /// A collapser's.
    Collapser(CollapserStep),
    /// A reflinker's.
    Reflinker(ReflinkerStep),
    /// A defragmenter's.
    Defragmenter(DefragmenterStep),
}

/// The endless steps of one actor.
#[derive(Clone, Debug)]
pub struct OpStream {
    rng: Rng,
    /// Draws the kinds of regions.
    region_kinds: Rng,
    role: Role,
    job: Job,
    popularity: Option<Zipf<f64>>,
    acts: WeightedChoice<RegistrantAct, 9>,
}

impl OpStream {
    /// The steps of actor number `actor`, which has `role`, under `seed`.
    pub fn new(seed: u64, job: &Job, actor: u64, role: Role) -> OpStream {
        let popularity = match job.files.popularity {
            Popularity::Uniform => None,
            // The job's checks leave no exponent that Zipf refuses. Without a Zipf all files are
            // equally likely.
            Popularity::Zipf(exponent) => Zipf::new(job.files.count as f64, exponent).ok(),
        };
        let mix = &job.mix;
        let acts = WeightedChoice::new([
            (RegistrantAct::Register, mix.register),
            (RegistrantAct::Dma, mix.dma),
            (RegistrantAct::Change, mix.change),
            (RegistrantAct::Unlock, mix.unlock),
            (RegistrantAct::Close, mix.close),
            (RegistrantAct::Pass, mix.pass),
            (RegistrantAct::Fork, mix.fork),
            (RegistrantAct::Exit, mix.exit),
            (RegistrantAct::Kill, mix.kill),
        ]);
        let [rng, region_kinds] = ["choices", "region kinds"].map(|purpose| rng::stream(seed, purpose, actor));
        OpStream { rng, region_kinds, role, job: job.clone(), popularity, acts }
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
        let (read_only, whole_file, skips_cleanup) = {
            let registrants = &self.job.registrants;
            (registrants.read_only, registrants.whole_file_lease, registrants.skips_cleanup)
        };
        RegistrantStep {
            act: self.acts.draw(&mut self.rng),
            file: self.file(),
            place: self.share(),
            length: self.draw(|job| job.registrants.region_length),
            kind: self.region_kind(),
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
            skips_cleanup: self.chance(skips_cleanup),
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

impl Iterator for OpStream {
    type Item = ActorStep;

    fn next(&mut self) -> Option<ActorStep> {
        Some(match self.role {
            Role::Registrant => ActorStep::Registrant(self.registrant()),
            Role::Truncater => ActorStep::Truncater(self.truncater()),
            Role::Puncher => ActorStep::Puncher(self.puncher()),
            Role::DirectIo => ActorStep::DirectIo(self.direct_io()),
            Role::Extender => ActorStep::Extender(self.extender()),
            Role::AddressIo => ActorStep::AddressIo(self.address_io()),
            Role::Umem => ActorStep::Umem(self.holder(|job| &job.umems)),
            Role::Ring => ActorStep::Ring(self.holder(|job| &job.rings)),
            Role::Guest => ActorStep::Guest(self.holder(|job| &job.guests)),
            Role::LayoutClient => ActorStep::LayoutClient(self.holder(|job| &job.layout_clients)),
            Role::Collapser => ActorStep::Collapser(self.collapser()),
            Role::Reflinker => ActorStep::Reflinker(self.reflinker()),
            Role::Defragmenter => ActorStep::Defragmenter(self.defragmenter()),
        })
    }
}

/// Values drawn in proportion to weights.
#[derive(Clone, Debug)]
struct WeightedChoice<T, const N: usize> {
    /// Each value with the sum of the weights up to and including its own.
    upto: [(T, u64); N],
}

impl<T: Copy, const N: usize> WeightedChoice<T, N> {
    fn new(weights: [(T, u32); N]) -> Self {
        let mut sum = 0;
        WeightedChoice {
            upto: weights.map(|(value, weight)| {
                sum += u64::from(weight);
                (value, sum)
            }),
        }
    }

    fn draw(&self, rng: &mut Rng) -> T {
        let sum = self.upto[N - 1].1;
        let at = Share(rng.random()).below(sum);
        // At least one weight of a job's mix is above zero, so some sum lies above `at`.
        self.upto.iter().find(|(_, upto)| at < *upto).unwrap_or(&self.upto[N - 1]).0
    }
}

/// What a work request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaVerb {
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
pub struct DmaRequest {
    /// What it does.
    pub verb: DmaVerb,
    /// The request's place in the region.
    pub place: Share,
    /// Bytes of a WRITE or READ, a multiple of 8.
    pub length: u64,
}

/// The endless work requests of one burst, drawn from the burst's seed.
#[derive(Clone, Debug)]
pub struct DmaRequests {
    rng: Rng,
    verbs: WeightedChoice<DmaVerb, 4>,
    length: Distribution,
}

impl DmaRequests {
    /// The requests of a burst.
    pub fn new(job: &Job, burst_seed: u64) -> DmaRequests {
        let mix = &job.dma_mix;
        let verbs = WeightedChoice::new([
            (DmaVerb::Write, mix.write),
            (DmaVerb::Read, mix.read),
            (DmaVerb::CompareSwap, mix.compare_swap),
            (DmaVerb::FetchAdd, mix.fetch_add),
        ]);
        DmaRequests { rng: Rng::seed_from_u64(burst_seed), verbs, length: job.registrants.dma_length }
    }
}

impl Iterator for DmaRequests {
    type Item = DmaRequest;

    fn next(&mut self) -> Option<DmaRequest> {
        Some(DmaRequest {
            verb: self.verbs.draw(&mut self.rng),
            place: Share(self.rng.random()),
            length: self.length.draw(&mut self.rng) / 8 * 8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(seed: u64, job: &Job, actor: usize, n: usize) -> Vec<ActorStep> {
        OpStream::new(seed, job, actor as u64, job.actors()[actor]).take(n).collect()
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
                    ActorStep::Registrant(step) => {
                        for request in DmaRequests::new(&job, step.burst_seed).take(3) {
                            assert!(request.length >= 8 && request.length.is_multiple_of(8), "{request:?}");
                        }
                        assert!((1..=1024).contains(&step.burst));
                        (step.file, step.length)
                    }
                    ActorStep::Truncater(step) => (step.file, step.size),
                    ActorStep::Puncher(step) => (step.file, step.length),
                    ActorStep::DirectIo(step) => (step.file, step.length),
                    ActorStep::Extender(step) => (step.file, step.length),
                    other => panic!("the built-in job has no {other:?}"),
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
        let weighted = WeightedChoice::new([('a', 3), ('b', 0), ('c', 1)]);
        let drawn: Vec<char> = (0..40_000).map(|_| weighted.draw(&mut rng)).collect();
        let count = |passed| drawn.iter().filter(|drawn| **drawn == passed).count();
        assert_eq!(count('b'), 0);
        assert!((29_000..31_000).contains(&count('a')), "{}", count('a'));
    }

    #[test]
    fn a_share_reaches_from_nothing_to_just_below_all() {
        assert_eq!((Share(0).below(7), Share(u32::MAX).below(7), Share(9).below(0)), (0, 6, 0));
        assert!(!Share(0).falls_below(0.0) && Share(u32::MAX).falls_below(1.0));
    }
}
