//! Seeded random streams.
//!
//! It owns the derivation of streams from one seed. Invariant: a stream depends on (seed, purpose,
//! index) alone, never on what another stream drew or on time, so that the choices of every actor
//! repeat. Kernel counterpart: `prandom_seed_full_state`.

use rand::SeedableRng;

/// The generator of every stream: Xoshiro256++, fast, and specified, so that a seed means the same
/// on every machine.
pub type Rng = rand_xoshiro::Xoshiro256PlusPlus;

/// One step of SplitMix64, the mixer that Xoshiro's authors recommend for seeding.
const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The stream number `index` of `purpose` under `seed`.
///
/// ```
/// use rand::Rng;
/// use emulator::runtime::rng::stream;
/// let draw = |seed, purpose, index| stream(seed, purpose, index).next_u64();
/// assert_eq!(draw(1, "choices", 0), draw(1, "choices", 0));
/// assert_ne!(draw(1, "choices", 0), draw(1, "choices", 1));
/// assert_ne!(draw(1, "choices", 0), draw(1, "race points", 0));
/// assert_ne!(draw(1, "choices", 0), draw(2, "choices", 0));
/// ```
pub fn stream(seed: u64, purpose: &str, index: u64) -> Rng {
    let mut state = mix(seed);
    for byte in purpose.bytes() {
        state = mix(state ^ u64::from(byte));
    }
    Rng::seed_from_u64(mix(state ^ index))
}
