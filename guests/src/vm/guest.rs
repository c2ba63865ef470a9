//! One guest: its QEMU process, its console, and the commands it runs.
//!
//! It owns the process and both its serial lines. Invariants: the process ends with the
//! [`LinuxGuest`]; every wait has a limit and its error carries the end of the console; nothing
//! waits for time to pass, only for a line or the end of a line. The first serial line is the
//! console (the process's stdout), the second carries commands (its stdin): both are socket pairs
//! that no other process has, so that the end of QEMU is seen as their end.
//!
//! A command goes out as `TOKEN BASE64-OF-SCRIPT`, and comes back as `TOKEN begin`, the output,
//! `TOKEN end STATUS`. Tokens are new for each command and can't be guessed by what the command
//! prints. `TOKEN ready BOOT-ID` tells that a guest has booted.

use std::io::{self, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use emulator::runtime::clock::{Clock, Nanos};
use emulator::sync::{Arc, Mutex, thread};

use super::serial::{Console, NoLine, SerialLines, base64, keep, token};

/// How much of the console an error shows, in bytes.
const CONSOLE_SHOWN: usize = 3 << 10;
/// The longest output of a command, in bytes. The second serial line carries about 100 KB/s.
const OUTPUT_MAX: usize = 8 << 20;
/// The longest script, in bytes as sent: the guest's tty layer buffers this much while the shell is
/// busy.
const SCRIPT_MAX: usize = 48 << 10;
/// What the console or QEMU says of a guest that will never go on, although its process does.
const ENDS: [&str; 2] = ["Kernel panic - not syncing", "KVM internal error"];
/// How often a wait looks at what else could end it.
const LOOK: Duration = Duration::from_millis(500);

/// Why a guest did not do what it was told: what was waited for, how that ended, and the end of the
/// console.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct GuestError(String);

/// What a command in a guest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit status of the script.
    pub status: i32,
    /// What it wrote to stdout and stderr, in order.
    pub text: String,
}

/// A command that runs, see [`LinuxGuest::launch`].
#[must_use]
pub struct Started {
    token: String,
    script: String,
}

/// A running guest. Ends, by SIGKILL, when it is dropped.
pub struct LinuxGuest {
    name: String,
    process: Child,
    lines: SerialLines,
    console: Arc<Mutex<Console>>,
    /// The threads that read it.
    readers: Vec<thread::JoinHandle<()>>,
    /// What the guest says at its boots, and which boot it is in.
    boot: (String, String),
    limit: Duration,
    clock: Clock,
}

impl LinuxGuest {
    /// Starts `command`, QEMU with all but its serial lines, and waits until the guest says `token`
    /// and takes commands.
    pub(super) fn start(
        mut command: Command,
        token: String,
        name: String,
        limit: Duration,
    ) -> Result<LinuxGuest, GuestError> {
        let failed = |error: io::Error| GuestError(format!("QEMU can't be started: {error}"));
        let (commands, theirs) = UnixStream::pair().map_err(failed)?;
        command.stdin(OwnedFd::from(theirs));
        let (console, theirs) = UnixStream::pair().map_err(failed)?;
        command.stdout(OwnedFd::from(theirs)).stderr(Stdio::piped());
        let process = command.spawn().map_err(failed)?;
        // The parent's copies of the other ends go with the command: only QEMU holds them now.
        drop(command);
        let said = Arc::new(Mutex::new(Console::default()));
        let lines = SerialLines { from: commands, buffer: Vec::new() };
        let (boot, clock) = ((token, String::new()), Clock::real());
        let mut guest = LinuxGuest { name, process, lines, console: said, readers: Vec::new(), boot, limit, clock };
        guest.readers.push(keep(console, &guest.console).map_err(failed)?);
        if let Some(stderr) = guest.process.stderr.take() {
            guest.readers.push(keep(stderr, &guest.console).map_err(failed)?);
        }
        guest.wait_ready()?;
        Ok(guest)
    }

    /// Runs a shell script in the guest under a limit.
    ///
    /// # Errors
    /// What was waited for, how the wait ended, and the end of the console. After a limit the guest
    /// takes no further command.
    pub fn try_run(&mut self, script: &str, limit: Duration) -> Result<Output, GuestError> {
        let started = self.launch(script)?;
        self.finish(started, limit)
    }

    /// Starts a shell script in the guest without waiting for its end. One at a time runs; what is
    /// sent meanwhile waits.
    ///
    /// # Errors
    /// If the guest is gone, or the script is longer than 32 KiB.
    pub fn launch(&mut self, script: &str) -> Result<Started, GuestError> {
        let token = token();
        let line = format!("{token} {}\n", base64(script.as_bytes()));
        if line.len() > SCRIPT_MAX {
            return Err(GuestError(format!("a script of {} bytes is too long for a guest", script.len())));
        }
        let sent = self.lines.from.write_all(line.as_bytes());
        sent.map_err(|error| self.gone(&format!("the command `{script}` can't be sent: {error}")))?;
        Ok(Started { token, script: script.to_owned() })
    }

    /// Waits for the end of a script.
    ///
    /// # Errors
    /// As [`LinuxGuest::try_run`].
    pub fn finish(&mut self, started: Started, limit: Duration) -> Result<Output, GuestError> {
        let what = format!("`{}`", started.script);
        self.wait_for(&format!("\n{} begin\n", started.token), &what, limit)?;
        let end = format!("\n{} end ", started.token);
        let mut text = self.wait_for(&end, &what, limit)?;
        let status = self.wait_for("\n", &what, limit)?;
        text.truncate(text.len() - end.len());
        let status = String::from_utf8_lossy(&status);
        let status = status.trim().parse().map_err(|_| GuestError(format!("{what} ended with the status {status}")))?;
        Ok(Output { status, text: String::from_utf8_lossy(&text).into_owned() })
    }

    /// Restarts the guest: `how` is the script that does it, such as `reboot -f`, which writes its
    /// disks back, or `echo b >/proc/sysrq-trigger`, which does not. Waits until it takes commands.
    ///
    /// # Errors
    /// As [`LinuxGuest::try_run`].
    pub fn try_restart(&mut self, how: &str) -> Result<(), GuestError> {
        // Its end is the next boot.
        let _ = self.launch(how)?;
        self.wait_ready()
    }

    /// Waits until the guest says that it has booted, again if it had before.
    fn wait_ready(&mut self) -> Result<(), GuestError> {
        self.wait_for(&format!("{} ready ", self.boot.0), "the boot", self.limit)?;
        let id = self.wait_for("\n", "the boot", self.limit)?;
        let id = String::from_utf8_lossy(&id).trim().to_owned();
        if id == self.boot.1 {
            return Err(self.gone("waiting for the boot: the guest tells of the boot that it is in"));
        }
        self.boot.1 = id;
        Ok(())
    }

    /// Ends the guest from inside, with everything written back, and waits for QEMU's end.
    ///
    /// # Errors
    /// QEMU does not end, or not with success.
    pub fn try_poweroff(mut self) -> Result<(), GuestError> {
        let _ = self.launch("poweroff -f")?;
        let status = self.ended(self.limit)?;
        if status.success() { Ok(()) } else { Err(self.gone("poweroff")) }
    }

    /// Waits until QEMU has ended by itself.
    ///
    /// # Errors
    /// If it goes on beyond the limit.
    pub fn ended(&mut self, limit: Duration) -> Result<ExitStatus, GuestError> {
        let until = self.clock.now().after(limit);
        self.lines.buffer.clear();
        loop {
            match self.look(until) {
                Err(NoLine::End) => {
                    return self
                        .process
                        .wait()
                        .map_err(|error| GuestError(format!("QEMU can't be waited for: {error}")));
                }
                _ if self.clock.now() >= until => {
                    return Err(self.gone(&format!("QEMU goes on after {limit:?}")));
                }
                _ => self.lines.buffer.clear(),
            }
        }
    }

    /// Ends the guest by SIGKILL of QEMU, and waits for the end of the process: its memory is gone
    /// then, its sockets are closed.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = self.lines.from.shutdown(Shutdown::Both);
    }

    /// The process of QEMU.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether QEMU still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// The end of what the console and QEMU itself said, at most 64 KiB. Kernel messages below the
    /// level of errors are left out, `guest.run("dmesg")` has them.
    pub fn console(&self) -> String {
        let console = self.console.lock();
        String::from_utf8_lossy(&console.tail.iter().copied().collect::<Vec<_>>()).into_owned()
    }

    /// The end of the console, for an error.
    pub fn shown(&self) -> String {
        let console = self.console();
        let mut from = console.len().saturating_sub(CONSOLE_SHOWN);
        while !console.is_char_boundary(from) {
            from += 1;
        }
        let said = match console[from..].trim() {
            "" => "(nothing)",
            said => said,
        };
        format!("--- {}, the end of the console and of what QEMU said:\n{said}\n---", self.name)
    }

    /// An error with all that is known: the reason, QEMU's end if it has ended, the console.
    fn gone(&mut self, why: &str) -> GuestError {
        let ended = match self.process.try_wait() {
            Ok(Some(status)) => format!("; QEMU has ended: {status}"),
            _ => String::new(),
        };
        GuestError(format!("{why}{ended}\n{}", self.shown()))
    }

    /// Reads once from the second serial line, for at most [`LOOK`].
    fn look(&mut self, until: Nanos) -> Result<(), NoLine> {
        let left = Duration::from_nanos(until.since(self.clock.now())).clamp(Duration::from_millis(1), LOOK);
        // Fails only for a zero timeout.
        let _ = self.lines.from.set_read_timeout(Some(left));
        self.lines.fill()
    }

    /// Takes all up to and with `marker` from the second serial line.
    fn wait_for(&mut self, marker: &str, what: &str, limit: Duration) -> Result<Vec<u8>, GuestError> {
        let until = self.clock.now().after(limit);
        let booted = format!("{} ready ", self.boot.0);
        let mut from = 0;
        loop {
            if let Some(taken) = self.lines.take_until(marker.as_bytes(), &mut from) {
                return Ok(taken);
            }
            let waited = format!("waiting for {what}");
            if self.lines.buffer.len() > OUTPUT_MAX {
                return Err(GuestError(format!("{waited}: more than {OUTPUT_MAX} bytes came")));
            }
            match self.look(until) {
                Ok(()) => continue,
                Err(NoLine::End) => {
                    // The socket's end comes a moment before the process's.
                    let _ = self.process.wait();
                    // Reads the rest of the console. A reader that panicked adds nothing.
                    for reader in self.readers.drain(..) {
                        let _ = reader.join();
                    }
                    return Err(self.gone(&format!("{waited}: the guest is gone")));
                }
                Err(NoLine::NotYet) => {}
            }
            let console = self.console();
            if let Some(end) = ENDS.into_iter().find(|end| console.contains(end)) {
                return Err(self.gone(&format!("{waited}: {end}")));
            }
            if marker != booted && self.lines.take_until(booted.as_bytes(), &mut 0).is_some() {
                return Err(self.gone(&format!("{waited}: the guest restarted by itself")));
            }
            if self.clock.now() >= until {
                return Err(self.gone(&format!("{waited}: not within {limit:?}")));
            }
        }
    }
}

impl Drop for LinuxGuest {
    fn drop(&mut self) {
        self.end();
    }
}
