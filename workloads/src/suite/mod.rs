//! Suites: whole sets of scenarios and sequences, run and compared.

pub mod agreement;
