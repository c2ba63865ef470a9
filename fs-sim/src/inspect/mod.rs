//! Questions about the kernel's state: who leases, who pins, who blocks; and the check at the end
//! of a run.
//!
//! It owns no state. Invariant: nothing here changes anything, and every answer names processes and
//! objects by number. Kernel counterpart: /proc/locks, /proc/PID/fdinfo, debugfs.

pub mod blockers;
pub mod books;
pub mod changes;
mod check;
