//! Keys: how the 32 bits of an lkey or rkey are divided.
//!
//! It owns the division. A key is a 24-bit index and 8 bits that change with each use of the index.
//! Invariant: memory regions use indices below [`FIRST_WINDOW`], memory windows use the others, so
//! the key alone tells a region from a window. Kernel counterpart: `rxe_mr_init`, `rxe_mw.c`.

/// The first index of a window. Regions have the indices below it.
pub(crate) const FIRST_WINDOW: u32 = 1 << 23;

/// The first index that no object has.
pub(crate) const INDEX_END: u32 = 1 << 24;

/// The index in a key.
#[inline]
pub(crate) fn index(key: u32) -> u32 {
    key >> 8
}

/// Whether a key can only be the key of a window.
#[inline]
pub(crate) fn is_window(key: u32) -> bool {
    index(key) >= FIRST_WINDOW
}

/// `key` with its lowest 8 bits incremented, wrapping. `ibv_inc_rkey`.
pub(crate) fn increment(key: u32) -> u32 {
    key & !0xff | key.wrapping_add(1) & 0xff
}
