//! Whom an open file signals when one of its leases is broken, and by which signal.
//!
//! It owns what `F_SETOWN` and `F_SETSIG` set, and the sending of a break's signal. Invariants: an
//! open file has one owner and one signal, for its ordinary lease and its layout leases alike;
//! each notice is counted once, as sent or as unsent. Kernel counterpart: `struct fown_struct`,
//! `__f_setown`, `send_sigio`, `sigio_perm` (fs/fcntl.c).

use emulator::sync::{Arc, Mutex};

use crate::base::numbers::{Ino, Pid};
use crate::vfs::kernel::Kernel;
use crate::vfs::signals::{Delivery, SigInfo, Signal};

/// Whom one open file signals. Its leases share it.
#[derive(Debug, Default)]
pub(crate) struct SignalOwner(Mutex<OwnerSettings>);

/// What an open file has been told.
#[derive(Clone, Copy, Debug, Default)]
struct OwnerSettings {
    /// The process that `F_SETOWN` named, and the user who named it.
    named: Option<(Pid, u32)>,
    /// The process that set an ordinary lease, and its user then.
    setter: Option<(Pid, u32)>,
    /// What `F_SETSIG` chose; `None` is SIGIO.
    signal: Option<Signal>,
}

/// A signal that is owed because a lease is being broken or was removed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BreakNotice {
    /// The process to signal; none after `F_SETOWN` with pid 0.
    pub(crate) to: Option<Pid>,
    /// The user on whose behalf it is signalled, if that is checked.
    pub(crate) on_behalf_of: Option<u32>,
    pub(crate) signal: Signal,
}

impl BreakNotice {
    /// SIGIO to a process, whatever its user.
    pub(crate) fn to(pid: Pid) -> BreakNotice {
        BreakNotice { to: Some(pid), on_behalf_of: None, signal: Signal::Sigio }
    }
}

impl SignalOwner {
    /// `F_SETOWN`: `None` names no process, not even the setter of the ordinary lease.
    pub(crate) fn name(&self, to: Option<(Pid, u32)>) {
        let mut settings = self.0.lock();
        settings.named = to;
        settings.setter = settings.setter.filter(|_| to.is_some());
    }

    /// `F_SETSIG`.
    pub(crate) fn set_signal(&self, signal: Option<Signal>) {
        self.0.lock().signal = signal;
    }

    /// A process has set an ordinary lease: it is signalled unless a process was named, or has set
    /// one before.
    pub(crate) fn posix_lease_set(&self, by: (Pid, u32)) {
        let mut settings = self.0.lock();
        settings.setter.get_or_insert(by);
    }

    /// The ordinary lease is gone. Kernel: `lease_modify` with `F_UNLCK`.
    pub(crate) fn posix_lease_gone(&self) {
        *self.0.lock() = OwnerSettings::default();
    }

    /// The last layout lease is gone: what was set for it goes too **\[chosen\]**. The setter of an
    /// ordinary lease stays.
    pub(crate) fn layout_leases_gone(&self) {
        let mut settings = self.0.lock();
        (settings.named, settings.signal) = (None, None);
    }

    /// Which process is signalled when the ordinary lease is broken.
    pub(crate) fn posix_owner(&self) -> Option<Pid> {
        self.posix_notice().to
    }

    /// The signal for a break of the ordinary lease.
    pub(crate) fn posix_notice(&self) -> BreakNotice {
        let OwnerSettings { named, setter, signal } = *self.0.lock();
        let to = named.or(setter);
        BreakNotice {
            to: to.map(|(pid, _)| pid),
            on_behalf_of: to.map(|(_, uid)| uid),
            signal: signal.unwrap_or(Signal::Sigio),
        }
    }

    /// The signal for a break of a layout lease that `taker` took.
    pub(crate) fn layout_notice(&self, taker: Pid) -> BreakNotice {
        let OwnerSettings { named, signal, .. } = *self.0.lock();
        let signal = signal.unwrap_or(Signal::Sigio);
        match named {
            Some((pid, uid)) => BreakNotice { to: Some(pid), on_behalf_of: Some(uid), signal },
            None => BreakNotice { signal, ..BreakNotice::to(taker) },
        }
    }
}

impl Kernel {
    /// Sends what is owed because of leases of inode `ino`. A dead or dying process, and one of
    /// another user than the one who named it (unless that is root), gets nothing.
    pub(crate) fn send_notices(self: &Arc<Self>, ino: Ino, notices: &[BreakNotice]) {
        for BreakNotice { to, on_behalf_of, signal } in notices {
            let process = to.and_then(|pid| self.processes.get(pid)).filter(|process| {
                let allowed = on_behalf_of.is_none_or(|uid| uid == 0 || uid == process.credentials().uid);
                allowed && !process.is_dying()
            });
            let Some(process) = process else {
                self.counters.sigio_unsent.add(1);
                continue;
            };
            self.counters.sigio_sent.add(1);
            if self.send_signal(process.pid(), SigInfo { ino: Some(ino), ..SigInfo::of(*signal) }) == Delivery::Fatal {
                self.trace("killed by a lease's signal", process.pid().0.into(), ino.0, None);
            }
        }
    }
}
