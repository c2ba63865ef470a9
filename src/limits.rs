//! What this program does where the machine gives no more.
//!
//! It owns the choice that a limit is a message and exit code 3, and not a signal or an abort.
//! Invariant: what ends the program here runs without memory: it allocates nothing. Kernel
//! counterpart: setrlimit(2).

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;

use crate::exit::CANNOT;

/// From now on a write beyond RLIMIT_FSIZE fails with EFBIG. By default its signal (SIGXFSZ) kills
/// the process.
pub(crate) fn report_as_errors() {
    // SAFETY: to ignore a signal runs no code of this program.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// The system's allocator. Where it gives nothing, the program says so and ends.
pub(crate) struct AllocOrExit;

// SAFETY: every block is the system allocator's, and is given back to it.
unsafe impl GlobalAlloc for AllocOrExit {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the rules of `alloc`.
        or_exit(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the rules of `alloc_zeroed`.
        or_exit(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the rules of `realloc`; the block is the system allocator's.
        or_exit(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the rules of `dealloc`; the block is the system allocator's.
        unsafe { System.dealloc(block, layout) }
    }
}

fn or_exit(block: *mut u8, bytes: usize) -> *mut u8 {
    if block.is_null() { no_memory(bytes) } else { block }
}

/// Ends the program, whatever its other threads do.
fn no_memory(bytes: usize) -> ! {
    let mut text = [0; 160];
    let mut rest = &mut text[..];
    // It fits: the number has at most 20 digits.
    let _fits = writeln!(
        rest,
        "error: this machine gives no memory: {bytes} bytes were asked for; raise the limit (`ulimit -v`) or run less at once"
    );
    let left = rest.len();
    let said = &text[..text.len() - left];
    // SAFETY: the bytes are there as long as the call runs; `_exit` runs no destructor.
    unsafe {
        libc::write(libc::STDERR_FILENO, said.as_ptr().cast(), said.len());
        libc::_exit(i32::from(CANNOT))
    }
}
