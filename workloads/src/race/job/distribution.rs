//! Distributions of lengths, times and counts, as jobs state them: `{ dist = "exponential", mean =
//! "200us" }`.
//!
//! It owns their reading, checking and drawing. Invariant: every drawn value lies within the
//! bounds, and the bounds were checked against what the job can use. So no other code clips a drawn
//! value.

use crate::input::{Duration, InputError, Size, Source};
use rand::{Rng, RngExt};
use rand_distr::Distribution as _;
use serde::Deserialize;

use super::given::GivenValue;

/// A quantity with its own unit, counted in its smallest unit.
pub(super) trait Quantity: Copy + std::fmt::Display {
    /// The count: nanoseconds, bytes or pieces.
    fn units(self) -> u64;
    /// The quantity of `units` smallest units.
    fn of_units(units: u64) -> Self;
}

impl Quantity for Duration {
    fn units(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }
    fn of_units(units: u64) -> Self {
        Duration(std::time::Duration::from_nanos(units))
    }
}

impl Quantity for Size {
    fn units(self) -> u64 {
        self.0
    }
    fn of_units(units: u64) -> Self {
        Size(units)
    }
}

impl Quantity for u64 {
    fn units(self) -> u64 {
        self
    }
    fn of_units(units: u64) -> Self {
        units
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DistributionShape {
    Constant,
    Uniform,
    Exponential,
    Normal,
    LogNormal,
}

/// A distribution as the job's text states it. [`RawDistribution::check`] checks which keys belong
/// to which `dist`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDistribution<Q> {
    dist: GivenValue<DistributionShape>,
    value: Option<GivenValue<Q>>,
    mean: Option<GivenValue<Q>>,
    median: Option<GivenValue<Q>>,
    std_dev: Option<GivenValue<Q>>,
    sigma: Option<GivenValue<f64>>,
    min: Option<GivenValue<Q>>,
    max: Option<GivenValue<Q>>,
}

/// The bounds of a drawn value.
#[derive(Clone, Copy, Debug)]
pub(super) struct DistributionLimits<'a> {
    pub(super) key: &'a str,
    pub(super) min: u64,
    pub(super) max: u64,
    /// The reason for the upper bound, for the error's help line.
    pub(super) because: &'a str,
}

/// A checked distribution over whole numbers: nanoseconds, bytes or pieces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distribution {
    form: DistributionForm,
    min: u64,
    max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum DistributionForm {
    Constant,
    Uniform,
    Exponential { mean: f64 },
    Normal { mean: f64, std_dev: f64 },
    LogNormal { ln_median: f64, sigma: f64 },
}

impl Distribution {
    /// Always `value`.
    pub(super) fn constant(value: u64) -> Distribution {
        Distribution { form: DistributionForm::Constant, min: value, max: value }
    }

    /// The smallest value drawn.
    pub fn min(&self) -> u64 {
        self.min
    }

    /// The largest value drawn.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Draws a value.
    pub fn draw(&self, rng: &mut impl Rng) -> u64 {
        let drawn = match self.form {
            DistributionForm::Constant => return self.min,
            DistributionForm::Uniform => return rng.random_range(self.min..=self.max),
            DistributionForm::Exponential { mean } => {
                let drawn: f64 = rand_distr::Exp1.sample(rng);
                mean * drawn
            }
            DistributionForm::Normal { mean, std_dev } => mean + std_dev * standard_normal(rng),
            DistributionForm::LogNormal { ln_median, sigma } => (ln_median + sigma * standard_normal(rng)).exp(),
        };
        // The cast saturates. The checks exclude NaN.
        (drawn.round() as u64).clamp(self.min, self.max)
    }
}

fn standard_normal(rng: &mut impl Rng) -> f64 {
    rand_distr::StandardNormal.sample(rng)
}

impl<Q: Quantity> RawDistribution<Q> {
    /// Turns the text into a distribution that can be drawn from.
    ///
    /// # Errors
    /// A key that the distribution needs is missing, a key is not one of this distribution's, the
    /// bounds are reversed, or a value is out of bounds.
    pub(super) fn check(&self, source: &Source, limits: DistributionLimits<'_>) -> Result<Distribution, InputError> {
        self.check_keys(source)?;
        for given in [&self.value, &self.mean, &self.median, &self.min, &self.max].into_iter().flatten() {
            check_within(source, given, limits)?;
        }
        let min = self.min.as_ref().map_or(limits.min, |given| given.value.units());
        let max = self.max.as_ref().map_or(limits.max, |given| given.value.units());
        if let (Some(given_min), Some(given_max)) = (&self.min, &self.max)
            && min > max
        {
            let title =
                format!("the bounds of `{}` are reversed: from {} to {}", limits.key, given_min.value, given_max.value);
            return Err(given_max.error(source, title).help("`min` can't be larger than `max`"));
        }
        for (key, given) in [("mean", &self.mean), ("median", &self.median)] {
            if let Some(given) = given
                && !(min..=max).contains(&given.value.units())
            {
                let title = format!("the {key} of `{}` is not between its bounds", limits.key);
                let bounds = format!("the bounds are {} and {}", Q::of_units(min), Q::of_units(max));
                return Err(given.error(source, title).help(bounds));
            }
        }
        let units = |given: &Option<GivenValue<Q>>| given.as_ref().map_or(0.0, |given| given.value.units() as f64);
        let (min, max, form) = match self.dist.value {
            DistributionShape::Constant => {
                let value = self.value.as_ref().map_or(min, |given| given.value.units());
                (value, value, DistributionForm::Constant)
            }
            DistributionShape::Uniform => (min, max, DistributionForm::Uniform),
            DistributionShape::Exponential => (min, max, DistributionForm::Exponential { mean: units(&self.mean) }),
            DistributionShape::Normal => {
                (min, max, DistributionForm::Normal { mean: units(&self.mean), std_dev: units(&self.std_dev) })
            }
            DistributionShape::LogNormal => {
                let ln_median = units(&self.median).max(1.0).ln();
                (min, max, DistributionForm::LogNormal { ln_median, sigma: self.sigma(source)? })
            }
        };
        Ok(Distribution { form, min, max })
    }

    fn sigma(&self, source: &Source) -> Result<f64, InputError> {
        /// With a larger sigma practically every drawn value is one of the two bounds.
        const SIGMA_MAX: f64 = 10.0;
        let Some(sigma) = &self.sigma else { return Ok(0.0) };
        match (0.0..=SIGMA_MAX).contains(&sigma.value) {
            true => Ok(sigma.value),
            false => Err(sigma
                .error(source, format!("`sigma` can't be {}", sigma.value))
                .help(format!("the standard deviation of the logarithm, a number from 0 to {SIGMA_MAX}"))),
        }
    }

    /// Checks that every key that the distribution needs is present, and no other key.
    fn check_keys(&self, source: &Source) -> Result<(), InputError> {
        // (needed, allowed)
        let (name, needed, known): (_, &[&str], &[&str]) = match self.dist.value {
            DistributionShape::Constant => ("constant", &["value"], &[]),
            DistributionShape::Uniform => ("uniform", &["min", "max"], &[]),
            DistributionShape::Exponential => ("exponential", &["mean"], &["min", "max"]),
            DistributionShape::Normal => ("normal", &["mean", "std_dev"], &["min", "max"]),
            DistributionShape::LogNormal => ("lognormal", &["median", "sigma"], &["min", "max"]),
        };
        let usage = || {
            let optional: Vec<String> = known.iter().map(|key| format!("and may have `{key}`")).collect();
            let needed: Vec<String> = needed.iter().map(|key| format!("`{key}`")).collect();
            format!("`{name}` needs {} {}", needed.join(" and "), optional.join(" ")).trim_end().to_owned()
        };
        let place = |given: &Option<GivenValue<Q>>| given.as_ref().map(|given| given.place.clone());
        let stated = [
            ("value", place(&self.value)),
            ("mean", place(&self.mean)),
            ("median", place(&self.median)),
            ("std_dev", place(&self.std_dev)),
            ("sigma", self.sigma.as_ref().map(|given| given.place.clone())),
            ("min", place(&self.min)),
            ("max", place(&self.max)),
        ];
        for (key, place) in stated {
            match place {
                None if needed.contains(&key) => {
                    let title = format!("`{key}` is missing for this distribution");
                    return Err(self.dist.error(source, title).help(usage()));
                }
                Some(place) if !needed.contains(&key) && !known.contains(&key) => {
                    let title = format!("a {name} distribution takes no `{key}`");
                    return Err(place.error(source, title).help(usage()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn check_within<Q: Quantity>(
    source: &Source,
    given: &GivenValue<Q>,
    limits: DistributionLimits<'_>,
) -> Result<(), InputError> {
    let units = given.value.units();
    if (limits.min..=limits.max).contains(&units) {
        return Ok(());
    }
    let (too, bound) = if units < limits.min { ("small", limits.min) } else { ("large", limits.max) };
    let most = if units < limits.min { "least" } else { "most" };
    Err(given.error(source, format!("{} is too {too} for `{}`", given.value, limits.key)).help(format!(
        "it can be {} at {most}: {}",
        Q::of_units(bound),
        limits.because
    )))
}
