//! Races between registrations and layout changes, the jobs that describe them, and the oracle.
