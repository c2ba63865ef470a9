//! The child's side: the zygote, and the processes of a scenario that it makes.
//!
//! It owns the loop of a process: receive a request, perform it, answer. Every process has one
//! thread, its control socket at `CONTROL` and its inbox at `INBOX`. While it is idle it sleeps in
//! `recvmsg` on `CONTROL`. Invariants: no process outlives the driver, because processes die with
//! the zygote, and the zygote dies with the driver's thread that started it. Every process is a
//! child of the zygote, which reaps it by ignoring SIGCHLD. Kernel counterpart: fork(2), prctl(2).
//!
//! This file and those of `calls`, `memory` and `signals` import each other: the loop here performs
//! a request by them, and they use its inbox and its reading of errno.

mod calls;
mod delegation;
mod direct_io;
mod memory;
mod names;
mod pipes;
mod remaps;
mod signals;
mod uring;
pub(crate) mod wire;
mod xdp;

use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use wire::{ChildFailure, ChildReply, ChildRequest, ChildValue};

/// The descriptor number of the control socket, above all numbers that a scenario's descriptors
/// get.
pub(super) const CONTROL: RawFd = 200;
/// The descriptor number of the socket that descriptors are sent to.
pub(super) const INBOX: RawFd = 201;

/// The body of the zygote, called by the hidden subcommand `scenario-child`. `control` is the
/// driver's socket. It returns when the driver is gone; in the processes that it makes it never
/// returns.
///
/// # Errors
/// What the environment lacks for the zygote.
pub fn main(control: OwnedFd) -> std::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    place(control, CONTROL)?;
    // The socket was the standard input. A copy left there would keep the socket open, and
    // scenarios could reach it by that number.
    place(std::fs::File::open("/dev/null")?.into(), 0)?;
    signals::prepare_zygote()?;
    // All processes may access a scenario's files; the scenario tests leases, not permissions.
    rustix::process::umask(rustix::fs::Mode::empty());
    let no_core = rustix::process::Rlimit { current: Some(0), maximum: None };
    // A process that may not lower the limit writes a core file where the system is configured to.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, no_core);
    let zygote = rustix::process::getpid();
    loop {
        match wire::receive::<ChildRequest>(control_socket(), RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            Ok(Some((ChildRequest::Spawn, fds))) => {
                let forked = fork(fds, zygote, libc::SIGCHLD);
                match forked {
                    Ok(None) => serve(zygote),
                    Ok(Some(pid)) => answer(Ok(ChildValue::Number(pid.into()))),
                    Err(errno) => answer(Err(errno.into())),
                }
            }
            Ok(Some(_)) => answer(Err(Errno::INVAL.into())),
            Ok(None) | Err(_) => return Ok(()),
        }
    }
}

/// The loop of a process.
fn serve(zygote: Pid) -> ! {
    loop {
        let (request, fds) = match wire::receive::<ChildRequest>(control_socket(), RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            Ok(Some(message)) => message,
            Ok(None) | Err(_) => exit(),
        };
        let result = match request {
            ChildRequest::Exit => exit(),
            ChildRequest::Fork => match fork(fds, zygote, libc::CLONE_PARENT | libc::SIGCHLD) {
                // This is the child.
                Ok(None) => continue,
                Ok(Some(pid)) => Ok(ChildValue::Number(pid.into())),
                Err(errno) => Err(errno.into()),
            },
            request => {
                if can_block(&request) {
                    send_reply(&ChildReply::Began { handled: signals::take() });
                }
                calls::perform(request, fds)
            }
        };
        answer(result);
    }
}

/// Whether the driver must know which signals were handled before the request starts.
fn can_block(request: &ChildRequest) -> bool {
    matches!(
        request,
        ChildRequest::Open { .. }
            | ChildRequest::Truncate { .. }
            | ChildRequest::Exec { .. }
            | ChildRequest::Unlink { .. }
            | ChildRequest::Rename { .. }
            | ChildRequest::Link { .. }
            | ChildRequest::Chmod { .. }
            | ChildRequest::Utime { .. }
            | ChildRequest::Ftruncate { .. }
            | ChildRequest::Fallocate { .. }
            | ChildRequest::Close { .. }
            | ChildRequest::Read { .. }
            | ChildRequest::Write { .. }
            | ChildRequest::RingRead { .. }
            | ChildRequest::Remap { .. }
            | ChildRequest::SubmitIo(_)
            | ChildRequest::CompleteIo { .. }
    )
}

/// Makes a process with the sockets `fds`. Returns none in the child, and the child's pid in the
/// caller.
fn fork(fds: Vec<OwnedFd>, zygote: Pid, flags: i32) -> Result<Option<i32>, Errno> {
    let mut fds = fds.into_iter();
    let (Some(control), Some(inbox)) = (fds.next(), fds.next()) else {
        return Err(Errno::INVAL);
    };
    // SAFETY: the process has one thread, so the child's memory is consistent; without CLONE_VM the
    // child shares none of it.
    match unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) } {
        0 => {
            let ready = place(control, CONTROL)
                .and_then(|()| place(inbox, INBOX))
                .and_then(|()| die_with_zygote(zygote))
                .and_then(|()| signals::prepare_process());
            match ready {
                Ok(()) => Ok(None),
                Err(_) => exit(),
            }
        }
        -1 => Err(last_errno()),
        pid => i32::try_from(pid).map(Some).map_err(|_| Errno::OVERFLOW),
    }
}

/// Lets the process die with the zygote. A change of credentials clears this setting, so it must be
/// called again afterwards.
fn die_with_zygote(zygote: Pid) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    match getppid() == Some(zygote) {
        true => Ok(()),
        false => exit(),
    }
}

/// Moves a descriptor to `number`, replacing what is there.
fn place(fd: OwnedFd, number: RawFd) -> Result<(), Errno> {
    let from = fd.into_raw_fd();
    // SAFETY: plain numbers. Both descriptors belong to this code, and no other code owns `number`
    // except `CONTROL` and `INBOX` themselves.
    let placed = unsafe { libc::dup3(from, number, libc::O_CLOEXEC) };
    if placed < 0 {
        return Err(last_errno());
    }
    // SAFETY: `from` was owned by `fd`, which gave it up.
    unsafe { libc::close(from) };
    Ok(())
}

fn control_socket() -> BorrowedFd<'static> {
    // SAFETY: `CONTROL` is open from `main` to the end of the process.
    unsafe { BorrowedFd::borrow_raw(CONTROL) }
}

fn inbox() -> BorrowedFd<'static> {
    // SAFETY: `INBOX` is open from the process's start to its end.
    unsafe { BorrowedFd::borrow_raw(INBOX) }
}

fn answer(result: Result<ChildValue, ChildFailure>) {
    send_reply(&ChildReply::Done { result, handled: signals::take() });
}

/// If the driver can't be told, it is gone, and the next `recvmsg` reports that.
fn send_reply(reply: &ChildReply) {
    let _ = wire::send(control_socket().as_fd(), reply, &[]);
}

fn exit() -> ! {
    // SAFETY: ends the process without running what the zygote's runtime registered.
    unsafe { libc::_exit(0) }
}

/// The error of the C library's last call.
fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
