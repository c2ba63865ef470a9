//! Copies that may race: between shared words (the device's, a
//! [`crate::device::memory::ProcessMemory`]'s) and private memory, and within the device.
//!
//! It owns the one place where shared bytes are touched. Invariant: every access to shared memory
//! is a relaxed atomic access to an aligned 8-byte word, so that a DMA and a CPU store to the same
//! page are a race of the *emulated* machine, with a torn or mixed result in units of a word, and
//! never undefined behaviour of the emulator. Kernel counterpart: `memcpy_flushcache` and
//! `copy_mc_to_user`, which meet the device's own DMA in the same way.
//!
//! # Why words, and why a string instruction
//! Rust has no byte-wise atomic `memcpy`, and its memory model leaves racing atomics of different
//! sizes undefined. So the unit is always the whole word: a read of part of a word loads the word,
//! a write of part of a word exchanges it (bytes beside it survive concurrent writes). The compiler
//! does not merge atomic accesses into vector ones: a loop of words copies 4 KiB in 65 ns where
//! `memcpy` takes 29. From [`BULK_WORDS`] on, x86-64 therefore uses `rep movsq`: its elements are
//! quadwords, and an aligned quadword is never torn (Intel SDM volume 3, 8.1.1), so it *is* a
//! sequence of relaxed word accesses in no particular order. Measured against `memcpy` of the same
//! bytes, interleaved, private memory at several alignments: 4 KiB 1.0–1.13 times its time, 64 KiB
//! 1.0, 1 MiB 0.8–0.9; 9 to 27 ns slower below 4 KiB.

use crate::runtime::sync::machine::{AtomicU64, Ordering};

/// Bytes in a word.
const WORD: usize = 8;

/// From how many words on the string instruction pays: at 64 words both take 15 ns, at 128 it is
/// 1.3 times faster.
const BULK_WORDS: usize = 96;

/// The word at `at`.
///
/// # Safety
/// `at` is aligned to 8 and lies in a live mapping that outlives `'a` and is only accessed through
/// this module or as aligned words.
unsafe fn word<'a>(at: *mut u8) -> &'a AtomicU64 {
    // SAFETY: passed on to the caller; `AtomicU64` has the size and alignment of the word.
    unsafe { AtomicU64::from_ptr(at.cast()) }
}

/// How `len` bytes at address `at` split: bytes up to the first whole word, whole words, bytes
/// behind them.
fn split(at: *const u8, len: usize) -> (usize, usize, usize) {
    let head = at.addr().wrapping_neg() % WORD;
    if head >= len {
        return (len, 0, 0);
    }
    (head, (len - head) / WORD, (len - head) % WORD)
}

/// Reads `into.len()` bytes of shared memory at `from`.
///
/// # Safety
/// The words that hold the bytes are as [`word`] demands.
pub(crate) unsafe fn load(from: *mut u8, into: &mut [u8]) {
    let (head, words, tail) = split(from, into.len());
    if head > 0 {
        let skew = from.addr() % WORD;
        // SAFETY: the word that holds the first byte starts `skew` before it; the caller vouches
        // for it.
        let bytes = unsafe { word(from.sub(skew)) }.load(Ordering::Relaxed).to_ne_bytes();
        into[..head].copy_from_slice(&bytes[skew..skew + head]);
    }
    let body = &mut into[head..head + words * WORD];
    // SAFETY: `words` whole words follow the head.
    let shared = unsafe { from.add(head) };
    // SAFETY: the body is as long as the shared words; private and shared memory never overlap.
    if !unsafe { bulk_copy(body.as_mut_ptr(), shared, words) } {
        for (i, private) in body.as_chunks_mut::<WORD>().0.iter_mut().enumerate() {
            // SAFETY: word `i` of `words`, aligned.
            *private = unsafe { word(shared.add(i * WORD)) }.load(Ordering::Relaxed).to_ne_bytes();
        }
    }
    if tail > 0 {
        // SAFETY: the tail starts on a word.
        let bytes = unsafe { word(shared.add(words * WORD)) }.load(Ordering::Relaxed).to_ne_bytes();
        into[head + words * WORD..].copy_from_slice(&bytes[..tail]);
    }
}

/// Writes `from` to shared memory at `to`.
///
/// # Safety
/// The words that hold the bytes are as [`word`] demands.
pub(crate) unsafe fn store(to: *mut u8, from: &[u8]) {
    let (head, words, tail) = split(to, from.len());
    if head > 0 {
        let skew = to.addr() % WORD;
        // SAFETY: the word that holds the first byte starts `skew` before it; the caller vouches
        // for it.
        merge(unsafe { word(to.sub(skew)) }, skew, &from[..head]);
    }
    let body = &from[head..head + words * WORD];
    // SAFETY: `words` whole words follow the head.
    let shared = unsafe { to.add(head) };
    // SAFETY: the body is as long as the shared words; private and shared memory never overlap.
    if !unsafe { bulk_copy(shared, body.as_ptr(), words) } {
        for (i, private) in body.as_chunks::<WORD>().0.iter().enumerate() {
            // SAFETY: word `i` of `words`, aligned.
            unsafe { word(shared.add(i * WORD)) }.store(u64::from_ne_bytes(*private), Ordering::Relaxed);
        }
    }
    if tail > 0 {
        // SAFETY: the tail starts on a word.
        merge(unsafe { word(shared.add(words * WORD)) }, 0, &from[head + words * WORD..]);
    }
}

/// Copies `words` whole words within shared memory.
///
/// # Safety
/// Both runs are words as [`word`] demands, and do not overlap.
pub(crate) unsafe fn copy_words(to: *mut u8, from: *mut u8, words: usize) {
    // SAFETY: passed on to the caller.
    if !unsafe { bulk_copy(to, from, words) } {
        for at in (0..words * WORD).step_by(WORD) {
            // SAFETY: inside both runs, aligned.
            let value = unsafe { word(from.add(at)) }.load(Ordering::Relaxed);
            // SAFETY: as above.
            unsafe { word(to.add(at)) }.store(value, Ordering::Relaxed);
        }
    }
}

/// Fills `words` whole words of shared memory with `value`.
///
/// # Safety
/// They are as [`word`] demands.
pub(crate) unsafe fn fill_words(to: *mut u8, value: u64, words: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: `words` quadwords at `to` are the caller's to write; `rep stosq` stores aligned
    // quadwords, none torn, and the direction flag is clear on entry to `asm!`. The block is not
    // `nomem`, so the compiler keeps accesses around it.
    unsafe {
        std::arch::asm!(
            "rep stosq",
            inout("rcx") words => _,
            inout("rdi") to => _,
            in("rax") value,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    for at in (0..words * WORD).step_by(WORD) {
        // SAFETY: inside the run, aligned.
        unsafe { word(to.add(at)) }.store(value, Ordering::Relaxed);
    }
}

/// Puts `bytes` into `word` from its byte `skew` on; concurrent writes to the other bytes survive.
fn merge(word: &AtomicU64, skew: usize, bytes: &[u8]) {
    // A retry happens only after another thread's write succeeded, so one thread always makes
    // progress.
    let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
        let mut merged = old.to_ne_bytes();
        merged[skew..skew + bytes.len()].copy_from_slice(bytes);
        Some(u64::from_ne_bytes(merged))
    });
}

/// Copies `words` words of which one side, or both, is shared, if they are many and the machine has
/// an instruction for it; else does nothing and returns false.
///
/// # Safety
/// `from` is readable and `to` writable for `words * 8` bytes, they do not overlap, and whichever
/// side is shared is aligned and as [`word`] demands.
#[inline]
unsafe fn bulk_copy(to: *mut u8, from: *const u8, words: usize) -> bool {
    if words < BULK_WORDS {
        return false;
    }
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the caller vouches for both runs; `rep movsq` moves quadwords, of which an aligned
    // one is never torn: on the shared side it does what a loop of relaxed word accesses does. The
    // direction flag is clear on entry to `asm!`, and the block is not `nomem`, so the compiler
    // keeps accesses around it.
    unsafe {
        std::arch::asm!(
            "rep movsq",
            inout("rcx") words => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags),
        );
    }
    cfg!(all(target_arch = "x86_64", not(miri)))
}
