//! One guest: its QEMU process, its console, and the commands it runs.
//!
//! Owns the process and both its serial lines. Invariants: the process ends with the [`Guest`],
//! also when a test panics; every wait has a limit and its error carries the end of the console;
//! nothing waits for time to pass, only for a line or the end of a line. The first serial line is
//! the console (the process's stdout), the second carries commands (its stdin): both are socket
//! pairs that no other process has, so that the end of QEMU is seen as their end.
//!
//! A command goes out as `TOKEN BASE64-OF-SCRIPT`, and comes back as `TOKEN begin`, the output,
//! `TOKEN end STATUS`. Tokens are new for each command and can't be guessed by what the command
//! prints. `TOKEN ready BOOT-ID` tells that a guest has booted.
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "limits on real processes are in real time; the facade has only the simulated one"
)]

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Read, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use emulator::sync::{Arc, Mutex, thread};

use super::{BOOT_LIMIT, COMMAND_LIMIT, Machine};

/// What runs a guest's processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accel {
    Kvm,
    Tcg,
}

/// A guest about to be started.
pub(crate) struct Boot<'a> {
    machine: &'a Machine,
    /// Whose kernel and initramfs.
    kernel: &'a Machine,
    printed: Option<String>,
    memory_mib: u32,
    hotplug: bool,
    machine_options: String,
    devices: usize,
    args: Vec<OsString>,
    accel: Option<Accel>,
    limit: Duration,
}

impl<'a> Boot<'a> {
    pub(super) fn new(machine: &'a Machine) -> Boot<'a> {
        Boot {
            machine,
            kernel: machine,
            printed: None,
            memory_mib: 256,
            hotplug: false,
            machine_options: String::new(),
            devices: 0,
            args: Vec::new(),
            accel: None,
            limit: BOOT_LIMIT,
        }
    }

    /// Gives the guest this much memory, in MiB; 256 otherwise.
    pub(crate) fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Boots another machine's kernel.
    pub(crate) fn kernel_of(mut self, other: &'a Machine) -> Self {
        self.kernel = other;
        self
    }

    /// Starts QEMU by this printed command line, through a shell that finds this machine's QEMU in
    /// its `PATH`. The line gives processors, memory and devices. Kernel, console and the arguments
    /// of [`Boot::args`] follow it.
    pub(crate) fn printed(mut self, line: &str) -> Self {
        self.printed = Some(line.to_owned());
        self
    }

    /// Adds arguments of QEMU as they are.
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Adds a virtio-pmem device whose backend is the vhost-user server on `socket` (QEMU >= 11.1).
    pub(crate) fn vhost_user_pmem(mut self, socket: &Path) -> Self {
        let id = self.device();
        let chardev = path_option(&format!("socket,id=vu{id},path="), socket, "");
        let device =
            format!("vhost-user-test-device-pci,id=vp{id},virtio-id=27,num_vqs=1,config_size=16,chardev=vu{id}");
        self.args([OsStr::new("-chardev"), &chardev, OsStr::new("-device"), OsStr::new(&device)])
    }

    /// Adds QEMU's own virtio-pmem device over `size` bytes of a file.
    pub(crate) fn virtio_pmem(self, file: &Path, size: u64) -> Self {
        self.over_file("virtio-pmem-pci", file, size)
    }

    /// Adds an ACPI NVDIMM over `size` bytes of a file.
    pub(crate) fn nvdimm(mut self, file: &Path, size: u64) -> Self {
        if !self.machine_options.contains("nvdimm") {
            self.machine_options.push_str(",nvdimm=on");
        }
        self.over_file("nvdimm", file, size)
    }

    fn over_file(mut self, device: &str, file: &Path, size: u64) -> Self {
        self.hotplug = true;
        let id = self.device();
        let object =
            path_option(&format!("memory-backend-file,id=nv{id},share=on,mem-path="), file, &format!(",size={size}"));
        let device = format!("{device},id=np{id},memdev=nv{id}");
        self.args([OsStr::new("-object"), &object, OsStr::new("-device"), OsStr::new(&device)])
    }

    fn device(&mut self) -> usize {
        self.devices += 1;
        self.devices - 1
    }

    /// Runs with this accelerator, whatever the machine can.
    pub(crate) fn accel(mut self, accel: Accel) -> Self {
        self.accel = Some(accel);
        self
    }

    /// Bounds the boot, and each reboot.
    pub(crate) fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts the guest and waits until it takes commands.
    ///
    /// # Panics
    /// If it doesn't, with the reason and the end of its console.
    pub(crate) fn start(self) -> Guest {
        self.try_start().unwrap_or_else(|why| panic!("{why}"))
    }

    /// As [`Boot::start`].
    ///
    /// # Errors
    /// What was waited for, how it ended, and the end of the console.
    pub(crate) fn try_start(self) -> Result<Guest, String> {
        let accel = self.accel.unwrap_or_else(|| self.machine.accel());
        let token = token();
        let mut command = match &self.printed {
            Some(line) => self.by_shell(line, accel),
            None => self.by_hand(accel),
        };
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-chardev", "socket,id=console,fd=1", "-serial", "chardev:console"]);
        command.args(["-chardev", "socket,id=commands,fd=0", "-serial", "chardev:commands"]);
        command.arg("-kernel").arg(self.kernel.kernel()).arg("-initrd").arg(self.kernel.initramfs());
        // A panic halts the guest, and is seen on the console; boots are quicker without messages
        // and mitigations.
        command.arg("-append").arg(format!("console=ttyS0 quiet mitigations=off panic=0 daxlab.token={token}"));
        command.args(&self.args);

        let failed = |error: io::Error| format!("QEMU can't be started: {error}");
        let (commands, theirs) = UnixStream::pair().map_err(failed)?;
        command.stdin(OwnedFd::from(theirs));
        let (console, theirs) = UnixStream::pair().map_err(failed)?;
        command.stdout(OwnedFd::from(theirs)).stderr(Stdio::piped());
        let mut process = command.spawn().map_err(failed)?;
        // The parent's copies of the other ends go with the command: only QEMU holds them now.
        drop(command);
        let said = Arc::new(Mutex::new(Console::default()));
        let mut readers = vec![keep(console, &said)];
        readers.extend(process.stderr.take().map(|stderr| keep(stderr, &said)));
        let lines = Lines { from: commands, buffer: Vec::new() };
        let name = format!("{} ({})", self.machine.name, self.machine.versions);
        let mut guest =
            Guest { name, process, lines, console: said, readers, boot: (token, String::new()), limit: self.limit };
        guest.wait_ready()?;
        Ok(guest)
    }
}

impl Boot<'_> {
    /// QEMU with processors and memory.
    fn by_hand(&self, accel: Accel) -> Command {
        let mut command = self.machine.qemu();
        command.args(["-cpu", "max", "-accel", if accel == Accel::Kvm { "kvm" } else { "tcg" }]);
        // Guest memory that a vhost-user backend can map.
        command.arg("-machine").arg(format!("q35,memory-backend=m0{}", self.machine_options));
        command.arg("-object").arg(format!("memory-backend-memfd,id=m0,size={}M,share=on", self.memory_mib));
        let slots = if self.hotplug { ",slots=4,maxmem=64G" } else { "" };
        command.arg("-m").arg(format!("{}M{slots}", self.memory_mib));
        command
    }

    /// A shell that becomes QEMU.
    fn by_shell(&self, line: &str, accel: Accel) -> Command {
        // The line has TCG, which works everywhere.
        let line = if accel == Accel::Kvm { line.replacen("-accel tcg", "-accel kvm", 1) } else { line.to_owned() };
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("exec {line} \"$@\"")).arg("sh").env("PATH", self.machine.search_path());
        command
    }
}

/// An option that ends in a path: QEMU takes a comma in a value as two.
fn path_option(before: &str, path: &Path, after: &str) -> OsString {
    let path = path.to_str().expect("paths of tests are UTF-8").replace(',', ",,");
    format!("{before}{path}{after}").into()
}

/// 128 random bits: a token that the output of a command cannot contain by chance.
fn token() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

/// The end of what the console and QEMU itself said.
#[derive(Default)]
struct Console {
    tail: VecDeque<u8>,
}

/// How much of it is kept, in bytes.
const CONSOLE_MAX: usize = 64 << 10;
/// How much of it an error shows, in bytes.
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

/// Reads `from` into the tail on a thread that ends with QEMU. Without a reader, a full console
/// would block the guest.
fn keep(mut from: impl Read + Send + 'static, console: &Arc<Mutex<Console>>) -> thread::JoinHandle<()> {
    let console = Arc::clone(console);
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut chunk) {
            let mut console = console.lock();
            console.tail.extend(&chunk[..read]);
            let over = console.tail.len().saturating_sub(CONSOLE_MAX);
            console.tail.drain(..over);
        }
    })
}

/// The second serial line, as lines.
struct Lines {
    from: UnixStream,
    buffer: Vec<u8>,
}

/// Why there was no line.
enum NoLine {
    NotYet,
    End,
}

impl Lines {
    /// Bytes up to and with the first place where `marker` ends, which are taken away.
    fn take_until(&mut self, marker: &[u8], from: &mut usize) -> Option<Vec<u8>> {
        let start = from.saturating_sub(marker.len());
        let at = self.buffer[start..].windows(marker.len()).position(|window| window == marker);
        *from = self.buffer.len();
        at.map(|at| self.buffer.drain(..start + at + marker.len()).collect())
    }

    /// Reads once.
    fn fill(&mut self) -> Result<(), NoLine> {
        let mut chunk = [0; 64 << 10];
        match self.from.read(&mut chunk) {
            Ok(0) => Err(NoLine::End),
            Ok(read) => {
                self.buffer.extend_from_slice(&chunk[..read]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Err(NoLine::NotYet)
            }
            Err(_) => Err(NoLine::End),
        }
    }
}

/// What a command in a guest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    /// The exit status of the script.
    pub(crate) status: i32,
    /// What it wrote to stdout and stderr, in order.
    pub(crate) text: String,
}

/// A command that runs, see [`Guest::launch`].
#[must_use]
pub(crate) struct Started {
    token: String,
    script: String,
}

/// A running guest. Ends, by SIGKILL, when it is dropped.
pub(crate) struct Guest {
    name: String,
    process: Child,
    lines: Lines,
    console: Arc<Mutex<Console>>,
    /// The threads that read it.
    readers: Vec<thread::JoinHandle<()>>,
    /// What the guest says at its boots, and which boot it is in.
    boot: (String, String),
    limit: Duration,
}

impl Guest {
    /// Runs a shell script in the guest.
    ///
    /// # Panics
    /// If it doesn't end in two minutes, or the guest is gone.
    pub(crate) fn run(&mut self, script: &str) -> Output {
        self.try_run(script, COMMAND_LIMIT).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Runs a shell script that must succeed, and gives what it said, without white space around
    /// it. As with `sh -e`, every command in it must.
    ///
    /// # Panics
    /// As [`Guest::run`], and if the status is not 0.
    pub(crate) fn ok(&mut self, script: &str) -> String {
        let output = self.run(&format!("set -e\n{script}"));
        assert_eq!(output.status, 0, "in the guest: {script}\n{}\n{}", output.text, self.shown());
        output.text.trim().to_owned()
    }

    /// Runs a shell script in the guest under a limit.
    ///
    /// # Errors
    /// What was waited for, how the wait ended, and the end of the console. After a limit the guest
    /// takes no further command.
    pub(crate) fn try_run(&mut self, script: &str, limit: Duration) -> Result<Output, String> {
        let started = self.launch(script)?;
        self.finish(started, limit)
    }

    /// Starts a shell script in the guest without waiting for its end. One at a time runs; what is
    /// sent meanwhile waits.
    ///
    /// # Errors
    /// If the guest is gone, or the script is longer than 32 KiB.
    pub(crate) fn launch(&mut self, script: &str) -> Result<Started, String> {
        let token = token();
        let line = format!("{token} {}\n", base64(script.as_bytes()));
        if line.len() > SCRIPT_MAX {
            return Err(format!("a script of {} bytes is too long for a guest", script.len()));
        }
        let sent = self.lines.from.write_all(line.as_bytes());
        sent.map_err(|error| self.gone(&format!("the command `{script}` can't be sent: {error}")))?;
        Ok(Started { token, script: script.to_owned() })
    }

    /// Waits for the end of a script.
    ///
    /// # Errors
    /// As [`Guest::try_run`].
    pub(crate) fn finish(&mut self, started: Started, limit: Duration) -> Result<Output, String> {
        let what = format!("`{}`", started.script);
        self.wait_for(&format!("\n{} begin\n", started.token), &what, limit)?;
        let end = format!("\n{} end ", started.token);
        let mut text = self.wait_for(&end, &what, limit)?;
        let status = self.wait_for("\n", &what, limit)?;
        text.truncate(text.len() - end.len());
        let status = String::from_utf8_lossy(&status);
        let status = status.trim().parse().map_err(|_| format!("{what} ended with the status {status}"))?;
        Ok(Output { status, text: String::from_utf8_lossy(&text).into_owned() })
    }

    /// Restarts the guest in an orderly way as far as its disks go (`reboot -f` writes back), and
    /// waits until it takes commands.
    ///
    /// # Panics
    /// If it doesn't come back.
    pub(crate) fn reboot(&mut self) {
        self.restart("reboot -f");
    }

    /// Restarts the guest at once, with nothing written back, and waits until it takes commands.
    ///
    /// # Panics
    /// If it doesn't come back.
    pub(crate) fn reset(&mut self) {
        self.restart("echo b >/proc/sysrq-trigger");
    }

    fn restart(&mut self, how: &str) {
        // Its end is the next boot.
        let _ = self.launch(how).unwrap_or_else(|why| panic!("{why}"));
        self.wait_ready().unwrap_or_else(|why| panic!("{how}: {why}"));
    }

    /// Waits until the guest says that it has booted, again if it had before.
    fn wait_ready(&mut self) -> Result<(), String> {
        self.wait_for(&format!("{} ready ", self.boot.0), "the boot", self.limit)?;
        let id = self.wait_for("\n", "the boot", self.limit)?;
        let id = String::from_utf8_lossy(&id).trim().to_owned();
        assert_ne!(id, self.boot.1, "two boots differ");
        self.boot.1 = id;
        Ok(())
    }

    /// Ends the guest from inside, with everything written back, and waits for QEMU's end.
    ///
    /// # Panics
    /// If QEMU doesn't end with success.
    pub(crate) fn poweroff(mut self) {
        let _ = self.launch("poweroff -f").unwrap_or_else(|why| panic!("{why}"));
        let status = self.ended(self.limit).unwrap_or_else(|why| panic!("poweroff: {why}"));
        assert!(status.success(), "QEMU ended with {status} at poweroff\n{}", self.shown());
    }

    /// Waits until QEMU has ended by itself.
    ///
    /// # Errors
    /// If it goes on beyond the limit.
    pub(crate) fn ended(&mut self, limit: Duration) -> Result<ExitStatus, String> {
        let until = Instant::now() + limit;
        self.lines.buffer.clear();
        loop {
            match self.look(until) {
                Err(NoLine::End) => {
                    return self.process.wait().map_err(|error| format!("QEMU can't be waited for: {error}"));
                }
                _ if Instant::now() >= until => {
                    return Err(self.gone(&format!("QEMU goes on after {limit:?}")));
                }
                _ => self.lines.buffer.clear(),
            }
        }
    }

    /// Ends the guest by SIGKILL of QEMU, and waits for the end of the process: its memory is gone
    /// then, its sockets are closed.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = self.lines.from.shutdown(Shutdown::Both);
    }

    /// The process of QEMU.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether QEMU still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// The end of what the console and QEMU itself said, at most 64 KiB. Kernel messages below the
    /// level of errors are left out, `guest.run("dmesg")` has them.
    pub(crate) fn console(&self) -> String {
        let console = self.console.lock();
        String::from_utf8_lossy(&console.tail.iter().copied().collect::<Vec<_>>()).into_owned()
    }

    /// The end of the console, for an error.
    fn shown(&self) -> String {
        let console = self.console();
        let mut from = console.len().saturating_sub(CONSOLE_SHOWN);
        while !console.is_char_boundary(from) {
            from += 1;
        }
        format!("--- {}, the end of the console and of what QEMU said:\n{}\n---", self.name, console[from..].trim())
    }

    /// An error with all that is known: the reason, QEMU's end if it has ended, the console.
    fn gone(&mut self, why: &str) -> String {
        let ended = match self.process.try_wait() {
            Ok(Some(status)) => format!("; QEMU has ended: {status}"),
            _ => String::new(),
        };
        format!("{why}{ended}\n{}", self.shown())
    }

    /// Reads once from the second serial line, for at most [`LOOK`].
    fn look(&mut self, until: Instant) -> Result<(), NoLine> {
        let left = until.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), LOOK);
        // Fails only for a zero timeout.
        let _ = self.lines.from.set_read_timeout(Some(left));
        self.lines.fill()
    }

    /// Takes all up to and with `marker` from the second serial line.
    fn wait_for(&mut self, marker: &str, what: &str, limit: Duration) -> Result<Vec<u8>, String> {
        let until = Instant::now() + limit;
        let booted = format!("{} ready ", self.boot.0);
        let mut from = 0;
        loop {
            if let Some(taken) = self.lines.take_until(marker.as_bytes(), &mut from) {
                return Ok(taken);
            }
            let waited = format!("waiting for {what}");
            if self.lines.buffer.len() > OUTPUT_MAX {
                return Err(format!("{waited}: more than {OUTPUT_MAX} bytes came"));
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
            if Instant::now() >= until {
                return Err(self.gone(&format!("{waited}: not within {limit:?}")));
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.end();
    }
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}
