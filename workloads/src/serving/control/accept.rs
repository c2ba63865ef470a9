//! Accepting connections where descriptors or memory run out.
//!
//! It owns the listening thread's loop and a descriptor in reserve. Invariants: a failed accept(2)
//! never ends the loop; after each one the loop waits as [`AcceptShortage`] says, so that it does
//! not spin; a shortage is told once when it begins and once when it is over. Kernel counterpart:
//! accept(2).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use emulator::runtime::shortage::AcceptShortage;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::protocol::{PATIENCE, Response};

/// Accepts connections at `listener` until `is_over`, and gives each one to `take`. What goes wrong
/// is given to `tell` as text for people.
pub(super) fn accept_until(
    listener: &UnixListener,
    mut spare: SpareDescriptor,
    is_over: impl Fn() -> bool,
    tell: impl Fn(&str),
    mut take: impl FnMut(UnixStream),
) {
    let mut shortage = AcceptShortage::new();
    loop {
        let accepted = listener.accept();
        if is_over() {
            return;
        }
        match accepted {
            Ok((stream, _)) => {
                if shortage.is_over() {
                    tell("control socket: connections are accepted again");
                }
                take(stream);
            }
            // A signal, or a connection that broke off in the queue: it concerns no other.
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
            Err(error) => {
                let refused = spare.turn_away(listener, &error).is_ok();
                let (pause, is_news) = shortage.met(refused);
                if is_news {
                    tell(&format!(
                        "control socket: accept: {error}; askers are refused or wait until there is more; raise the limits (`ulimit -n`) or end other programs"
                    ));
                }
                rest(listener, pause);
            }
        }
    }
}

/// Waits for `pause`, or until `listener` was shut down.
fn rest(listener: &UnixListener, pause: Duration) {
    let pause = Timespec { tv_sec: 0, tv_nsec: i64::from(pause.subsec_nanos()) };
    let pause = if pause.tv_nsec == 0 { Timespec { tv_sec: 1, tv_nsec: 0 } } else { pause };
    // Only the unrequested event of a shutdown ends it early: waiting connections are no reason.
    let _elapsed = poll(&mut [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::empty())], Some(&pause));
}

/// A descriptor in reserve, for when this process has no other left: a connection is accepted with
/// it, told so, and closed. Without it the connection would stay in the queue, and its asker would
/// wait for nothing.
pub(super) struct SpareDescriptor(Option<OwnedFd>);

impl SpareDescriptor {
    pub(super) fn new() -> io::Result<SpareDescriptor> {
        Ok(SpareDescriptor(Some(File::open("/dev/null")?.into())))
    }

    /// Answers the connection that could not be accepted because of `error`.
    fn turn_away(&mut self, listener: &UnixListener, error: &io::Error) -> io::Result<()> {
        drop(self.0.take());
        // Another thread may have taken the descriptor, so that accept(2) fails again: it must not
        // wait, as the next connection may be long in coming.
        let told = listener.set_nonblocking(true).and_then(|()| {
            let (stream, _) = listener.accept()?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Response::refusal(&lacking(error)).send(&stream)
        });
        let blocking = listener.set_nonblocking(false);
        *self = SpareDescriptor::new().unwrap_or(SpareDescriptor(None));
        told.and(blocking)
    }
}

/// What an asker is told if this process lacks something.
pub(super) fn lacking(error: &io::Error) -> String {
    format!("this process can't answer now: {error}; ask again when it has fewer connections, or raise its limits")
}
