//! The units of the simulated kernel: block, page, and the largest sizes.
//!
//! It owns the constants that every layer shares. Invariant: a file block and a page have the same
//! size, so a block number times [`BLOCK`] is a byte offset. Kernel counterpart: `PAGE_SIZE`,
//! `MAX_LFS_FILESIZE`.

/// The size of a file block and of a page, in bytes.
pub const BLOCK: u64 = 4096;

/// The largest file, in bytes: 1 EiB. Offsets below it can be added without overflow.
pub const FILE_MAX: u64 = 1 << 60;

/// The most anonymous memory that a process may have mapped, in bytes.
pub const ANON_MAX: u64 = 1 << 30;

/// `bytes` rounded up to whole blocks; `None` if that overflows.
pub fn round_up(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(BLOCK)
}

/// A number of bytes for people: in the largest unit that divides it, `4 KiB`, `1 GiB`, `100 B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShownBytes(pub u64);

impl std::fmt::Display for ShownBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let step = if self.0 == 0 { 0 } else { (self.0.trailing_zeros() / 10) as usize };
        write!(f, "{} {}", self.0 >> (10 * step), UNITS[step])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_divides_them() {
        let shown = |bytes| ShownBytes(bytes).to_string();
        assert_eq!(
            [0, 100, 4096, 4097, 3 << 30, 1 << 63].map(shown),
            ["0 B", "100 B", "4 KiB", "4097 B", "3 GiB", "8 EiB"]
        );
    }
}
