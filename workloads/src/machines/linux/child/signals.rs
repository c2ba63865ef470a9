//! Signals of a scenario's process: dispositions, and the log of handled signals.
//!
//! It owns the handler. Invariants: the handler touches only atomics. It is installed without
//! SA_RESTART, so a signal interrupts a blocked call. The log keeps the last [`LOG`] signals.
//! Kernel counterpart: signal(7).

use std::mem::MaybeUninit;

use emulator::sync::machine::{AtomicU64, Ordering};
use rustix::io::Errno;

use super::last_errno;
use super::wire::ChildDisposition;

/// The number of handled signals that are kept.
const LOG: u64 = 64;

static HANDLED: [AtomicU64; LOG as usize] = [const { AtomicU64::new(0) }; LOG as usize];
static COUNT: AtomicU64 = AtomicU64::new(0);
static TOLD: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_signal(signal: libc::c_int) {
    // ORDERING: Relaxed: the handler runs on the only thread of its process. The atomics keep the
    // compiler from caching the values.
    let at = COUNT.load(Ordering::Relaxed);
    HANDLED[(at % LOG) as usize].store(signal as u64, Ordering::Relaxed);
    COUNT.store(at + 1, Ordering::Relaxed);
}

/// The signals handled since the last call, oldest first.
pub(super) fn take() -> Vec<i32> {
    // ORDERING: Relaxed, as in the handler. A signal handled after `count` was read is reported
    // next time.
    let count = COUNT.load(Ordering::Relaxed);
    let from = TOLD.load(Ordering::Relaxed).max(count.saturating_sub(LOG));
    TOLD.store(count, Ordering::Relaxed);
    (from..count).map(|at| HANDLED[(at % LOG) as usize].load(Ordering::Relaxed) as i32).collect()
}

/// Prepares the zygote: it installs the handlers that a scenario's processes start with, so that no
/// process is ever without, and lets the kernel reap children.
pub(super) fn prepare_zygote() -> Result<(), Errno> {
    set(libc::SIGIO, ChildDisposition::Handler)?;
    set(libc::SIGUSR1, ChildDisposition::Handler)?;
    set(libc::SIGCHLD, ChildDisposition::Ignore)
}

/// Prepares a new process: no signal is handled yet, and it can wait for its own children.
pub(super) fn prepare_process() -> Result<(), Errno> {
    let _ = take();
    set(libc::SIGCHLD, ChildDisposition::Default)
}

/// Sets what `signal` does.
pub(super) fn set(signal: i32, disposition: ChildDisposition) -> Result<(), Errno> {
    let handler: extern "C" fn(libc::c_int) = on_signal;
    // SAFETY: a sigaction is plain numbers, for which zero is a value.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = match disposition {
        ChildDisposition::Handler => handler as libc::sighandler_t,
        ChildDisposition::Ignore => libc::SIG_IGN,
        ChildDisposition::Default => libc::SIG_DFL,
    };
    // SAFETY: `action` lives across the call, and the handler is async-signal-safe (see the
    // module).
    match unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}
