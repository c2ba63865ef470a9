//! Protection domains: which queue pairs may use which regions.
//!
//! It owns a number. Invariant: a region is accessible only through queue pairs of its own domain.
//! Kernel counterpart: `struct ib_pd`.

/// A protection domain of a context.
#[derive(Debug, PartialEq, Eq)]
pub struct Pd {
    number: u32,
    context: u64,
}

impl Pd {
    pub(crate) fn new(number: u32, context: u64) -> Pd {
        Pd { number, context }
    }

    /// Its number, unique on the NIC.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The number of the context it belongs to.
    pub fn context(&self) -> u64 {
        self.context
    }
}
