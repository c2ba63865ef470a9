//! Values of a job file: each with its place in the text, or taken over from the built-in job.
//!
//! Invariant: a place belongs to the text that is being read. A value taken over from the built-in
//! job has no place.

use std::ops::Range;

use crate::input::{InputError, Source};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct GivenValue<T> {
    pub(super) value: T,
    pub(super) place: ValuePlace,
}

/// The bytes of the text that state a value. None if the value comes from the built-in job.
#[derive(Clone, Debug)]
pub(super) struct ValuePlace(Option<Range<usize>>);

impl ValuePlace {
    /// An error that points at this place, or at the text as a whole if there is no place.
    pub(super) fn error(&self, source: &Source, title: impl Into<String>) -> InputError {
        match &self.0 {
            Some(span) => source.error(span.clone(), title),
            None => source.error_overall(title),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for GivenValue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T>::deserialize(deserializer)?;
        Ok(GivenValue { place: ValuePlace(Some(spanned.span())), value: spanned.into_inner() })
    }
}

impl<T> GivenValue<T> {
    /// The same value without its place.
    pub(super) fn taken_over(self) -> Self {
        GivenValue { place: ValuePlace(None), ..self }
    }

    /// An error that points at the value.
    pub(super) fn error(&self, source: &Source, title: impl Into<String>) -> InputError {
        self.place.error(source, title)
    }

    /// Whether the text that is being read states the value.
    pub(super) fn is_stated(&self) -> bool {
        self.place.0.is_some()
    }
}

impl GivenValue<f64> {
    /// The value as a probability.
    ///
    /// # Errors
    /// The value is not in the range 0 to 1.
    pub(super) fn probability(&self, source: &Source, key: &str) -> Result<f64, InputError> {
        match (0.0..=1.0).contains(&self.value) {
            true => Ok(self.value),
            false => Err(self
                .error(source, format!("`{key}` is {}, which is not a probability", self.value))
                .help("write a number from 0 (never) to 1 (always)")),
        }
    }
}
