//! How to attach a guest: the QEMU command lines for what a server offers, and which of them the
//! installed QEMU can run.
//!
//! It owns the text of the commands and the probe of an installed QEMU. Invariants: a
//! printed line can be copied into a shell as it is, whatever bytes the paths in it hold, and lacks
//! only the guest's own kernel or disk; asking a program takes a bounded time and a bounded amount
//! of its output. Counterparts: QEMU `hw/virtio/vhost-user-test-device.c` (11.1: a user can create
//! it), `hw/virtio/virtio-pmem.c`, `hw/mem/nvdimm.c`; `util/keyval.c` for the comma.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::runtime::clock::Clock;

/// The program's name.
const PROGRAM: &str = "qemu-system-x86_64";
/// How long a program may take to print its version. (A first start from a cold disk loads about 50
/// libraries.)
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of what it says is read, in bytes; `-device help` of QEMU 11.1 is about 40 KiB.
const OUTPUT_MAX: usize = 1 << 20;
/// How many folders of the search path are looked at.
const FOLDERS_MAX: usize = 256;
/// A guest's own memory, in MiB.
const GUEST_MIB: u64 = 512;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A QEMU's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QemuVersion {
    /// 11 of 11.1.3.
    pub major: u32,
    /// 1 of 11.1.3.
    pub minor: u32,
    /// 3 of 11.1.3; 50 and more is a development version.
    pub micro: u32,
}

impl QemuVersion {
    /// The first version whose `vhost-user-test-device-pci` a user can create, with VirtIO shared
    /// memory.
    pub const SHARED_MEMORY: QemuVersion = QemuVersion { major: 11, minor: 1, micro: 0 };
    /// The first version whose `memory-backend-file` knows `offset`.
    pub const FILE_OFFSET: QemuVersion = QemuVersion { major: 8, minor: 1, micro: 0 };
    /// The oldest version that the other ways were tried with.
    pub const TRIED: QemuVersion = QemuVersion { major: 7, minor: 2, micro: 0 };

    /// The version in what `qemu-system-x86_64 --version` prints, such as `QEMU emulator version
    /// 7.2.17 (Debian 1:7.2+dfsg-7)`.
    pub fn parse(text: &str) -> Option<QemuVersion> {
        let (_, rest) = text.split_once("QEMU emulator version ")?;
        let number = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut parts = number.split('.').map(|part| part.parse().ok());
        let (major, minor) = (parts.next()??, parts.next()??);
        let micro = parts.next().unwrap_or(Some(0))?;
        Some(QemuVersion { major, minor, micro })
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.micro > 0 { write!(f, ".{}", self.micro) } else { Ok(()) }
    }
}

/// A QEMU that is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    /// What to type to run it: its name, if the search path leads to it, else its path.
    pub command: PathBuf,
    /// Its version.
    pub version: QemuVersion,
    /// Whether it has `vhost-user-test-device-pci`.
    pub vhost_user_test_device: bool,
    /// Whether it has `virtio-pmem-pci`.
    pub virtio_pmem: bool,
    /// Whether it has `nvdimm`.
    pub nvdimm: bool,
}

/// Why a program is no QEMU to use.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It could not be run.
    #[error("{program}: {source}")]
    Run {
        /// The program.
        program: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// It did not come to an end in time.
    #[error("{program}: still running after {patience:?}, killed")]
    Slow {
        /// The program.
        program: PathBuf,
        /// How long it had.
        patience: Duration,
    },
    /// It says something else.
    #[error("{program}: does not say `QEMU emulator version …` when asked for its version")]
    NotQemu {
        /// The program.
        program: PathBuf,
    },
}

/// Asks the program at `path` for its version and its devices. Takes at most 20 s.
///
/// # Errors
/// [`ProbeError`].
pub fn probe(path: &Path) -> Result<Qemu, ProbeError> {
    let said = ask(path, &["--version"], PATIENCE)?;
    let version = QemuVersion::parse(&said).ok_or_else(|| ProbeError::NotQemu { program: path.to_owned() })?;
    let devices = ask(path, &["-device", "help"], PATIENCE)?;
    let has = |device: &str| devices.contains(&format!("name \"{device}\""));
    Ok(Qemu {
        command: path.to_owned(),
        version,
        vhost_user_test_device: has("vhost-user-test-device-pci"),
        virtio_pmem: has("virtio-pmem-pci"),
        nvdimm: has("nvdimm"),
    })
}

/// Every QEMU in the folders of `search_path` (the value of `PATH`), in its order. A program that
/// is none, or does not answer, is left out.
pub fn installed(search_path: Option<&OsStr>) -> Vec<Qemu> {
    let mut found: Vec<Qemu> = Vec::new();
    let mut seen = Vec::new();
    for folder in std::env::split_paths(search_path.unwrap_or_default()).take(FOLDERS_MAX) {
        let path = folder.join(PROGRAM);
        let runs = path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
        let Ok(canonical) = path.canonicalize() else { continue };
        if !runs || seen.contains(&canonical) {
            continue;
        }
        let first = seen.is_empty();
        seen.push(canonical);
        if let Ok(mut qemu) = probe(&path) {
            if first {
                qemu.command = PROGRAM.into();
            }
            found.push(qemu);
        }
    }
    found
}

/// What `program` writes to its standard output, at most [`OUTPUT_MAX`] bytes of it, within
/// `patience`. How it exits doesn't matter.
fn ask(program: &Path, arguments: &[&str], patience: Duration) -> Result<String, ProbeError> {
    let failed = |source| ProbeError::Run { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let said = match child.stdout.take() {
        Some(out) => read_until(out, patience),
        None => Ok(None),
    };
    // A process that has closed its output, printed too much or taken too long is not waited for.
    let _ = child.kill();
    child.wait().map_err(failed)?;
    match said.map_err(failed)? {
        Some(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        None => Err(ProbeError::Slow { program: program.to_owned(), patience }),
    }
}

/// What comes out of `pipe` until it ends or [`OUTPUT_MAX`] is reached; none if neither happens
/// within `patience`.
fn read_until(mut pipe: impl Read + std::os::fd::AsFd, patience: Duration) -> std::io::Result<Option<Vec<u8>>> {
    let clock = Clock::real();
    let deadline = clock.now().after(patience);
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    while said.len() < OUTPUT_MAX {
        let left = Duration::from_nanos(deadline.since(clock.now()));
        let left = Timespec::try_from(left).map_err(std::io::Error::other)?;
        match rustix::event::poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(None),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        match pipe.read(&mut piece) {
            Ok(0) => break,
            Ok(len) => said.extend_from_slice(&piece[..len]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(said))
}

/// What a server offers to a guest.
#[derive(Clone, Copy, Debug)]
pub struct QemuOffer<'a> {
    /// The vhost-user socket, if one listens.
    pub socket: Option<&'a Path>,
    /// The file with the bytes (an image, or `/proc/PID/fd/N`), if they lie in it in one piece.
    pub memory: Option<&'a Path>,
    /// Where in it they begin, in bytes.
    pub offset: u64,
    /// How many they are: a multiple of 2 MiB.
    pub size: u64,
    /// Whether they carry an fsdax info block (see [`crate::device::fsdax`]).
    pub nvdimm: bool,
    /// Whether a guest may only read them.
    pub read_only: bool,
}

/// Whether this user can open KVM. That it also boots a guest only a boot shows: in some clouds it
/// does not.
pub fn kvm_opens() -> bool {
    std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// One way to attach a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuRecipe {
    /// What the guest gets.
    pub title: String,
    /// Which versions of QEMU it works with.
    pub works_with: String,
    /// The command, in pieces to be put on lines of their own; the guest's `-kernel` or `-drive` is
    /// to be added.
    pub lines: Vec<String>,
    /// What to know about it.
    pub notes: Vec<String>,
    /// What the installed QEMU has to do with it.
    pub here: String,
    /// Whether an installed QEMU can run it.
    pub fits: bool,
}

impl QemuRecipe {
    /// The command, to be copied into a shell.
    pub fn command(&self) -> String {
        self.lines.join(" \\\n  ")
    }
}

/// The ways to attach a guest to `offer`, the best first, for the `installed` QEMUs.
pub fn recipes(offer: &QemuOffer<'_>, installed: &[Qemu]) -> Vec<QemuRecipe> {
    let mut ways = Vec::new();
    if let Some(socket) = offer.socket {
        ways.push(over_socket(socket, offer, installed));
    }
    if let Some(memory) = offer.memory {
        ways.push(match (offer.read_only, offer.nvdimm) {
            (true, _) => read_only(memory, offer, installed),
            (false, true) => nvdimm(memory, offer, installed),
            (false, false) => own_device(memory, offer, installed),
        });
    }
    ways
}

fn over_socket(socket: &Path, offer: &QemuOffer<'_>, installed: &[Qemu]) -> QemuRecipe {
    let fit = QemuFit::of(installed, QemuVersion::SHARED_MEMORY, "vhost-user-test-device-pci", |qemu| {
        qemu.vhost_user_test_device
    });
    let mut notes =
        vec!["The guest's flushes reach this server: an fsync in the guest returns when what it flushed is as durable as this server keeps it.".to_owned()];
    if offer.nvdimm {
        notes.push(behind_block());
    }
    QemuRecipe {
        title: "virtio-pmem over vhost-user".to_owned(),
        works_with: format!("QEMU {} and later", QemuVersion::SHARED_MEMORY),
        lines: vec![
            start(&fit.command),
            format!("-machine q35,memory-backend=m0 -m {GUEST_MIB}M"),
            format!("-object memory-backend-memfd,id=m0,size={GUEST_MIB}M,share=on"),
            format!("-chardev {}", shell(&option("socket,id=vu,path=", socket, ""))),
            "-device vhost-user-test-device-pci,virtio-id=27,num_vqs=1,config_size=16,chardev=vu".to_owned(),
        ],
        notes,
        here: fit.says,
        fits: fit.fits,
    }
}

fn own_device(memory: &Path, offer: &QemuOffer<'_>, installed: &[Qemu]) -> QemuRecipe {
    let oldest = oldest(offer);
    let fit = QemuFit::of(installed, oldest, "virtio-pmem-pci", |qemu| qemu.virtio_pmem);
    QemuRecipe {
        title: "QEMU's own virtio-pmem over this memory".to_owned(),
        works_with: works_with(oldest),
        lines: vec![
            start(&fit.command),
            format!("-machine q35 {}", room(offer.size)),
            backend(memory, offer),
            "-device virtio-pmem-pci,memdev=nv0".to_owned(),
        ],
        notes: vec![
            "Flushes stay in QEMU: it syncs the file itself, this server neither sees, counts nor fails them, and a revoke or a power cut does not reach this guest."
                .to_owned(),
        ],
        here: fit.says,
        fits: fit.fits,
    }
}

/// QEMU's virtio-pmem takes no memory that is read-only, and over a socket QEMU 11.1 maps every
/// piece writable. An NVDIMM that is not armed is read-only for the guest's Linux too.
fn read_only(memory: &Path, offer: &QemuOffer<'_>, installed: &[Qemu]) -> QemuRecipe {
    let oldest = oldest(offer);
    let fit = QemuFit::of(installed, oldest, "nvdimm", |qemu| qemu.nvdimm);
    QemuRecipe {
        title: "a read-only ACPI NVDIMM over this memory".to_owned(),
        works_with: works_with(oldest),
        lines: vec![
            start(&fit.command),
            format!("-machine q35,nvdimm=on {}", room(offer.size)),
            backend(memory, offer),
            "-device nvdimm,memdev=nv0,unarmed=on".to_owned(),
        ],
        notes: vec!["The guest's /dev/pmem0 is read-only: mount it with `-o ro`, without dax.".to_owned()],
        here: fit.says,
        fits: fit.fits,
    }
}

fn nvdimm(memory: &Path, offer: &QemuOffer<'_>, installed: &[Qemu]) -> QemuRecipe {
    let oldest = oldest(offer);
    let fit = QemuFit::of(installed, oldest, "nvdimm", |qemu| qemu.nvdimm);
    QemuRecipe {
        title: "an ACPI NVDIMM over this memory".to_owned(),
        works_with: works_with(oldest),
        lines: vec![
            start(&fit.command),
            format!("-machine q35,nvdimm=on {}", room(offer.size)),
            backend(memory, offer),
            "-device nvdimm,memdev=nv0".to_owned(),
        ],
        notes: vec![
            "Flushes are the guest's CPU instructions (MAP_SYNC works): this server does not see them. What they flushed survives QEMU and this server, and the host's own crash only if the host has written it back."
                .to_owned(),
            behind_block(),
        ],
        here: fit.says,
        fits: fit.fits,
    }
}

/// What the installed QEMUs have to do with a recipe.
struct QemuFit {
    command: PathBuf,
    says: String,
    fits: bool,
}

impl QemuFit {
    fn of(installed: &[Qemu], oldest: QemuVersion, device: &str, has: impl Fn(&Qemu) -> bool) -> QemuFit {
        let name = |qemu: &Qemu| format!("{} ({})", qemu.version, qemu.command.display());
        if let Some(qemu) = installed.iter().find(|qemu| qemu.version >= oldest && has(qemu)) {
            return QemuFit {
                command: qemu.command.clone(),
                says: format!("installed: {}: can run this", name(qemu)),
                fits: true,
            };
        }
        let says = match installed.iter().max_by_key(|qemu| qemu.version) {
            None => format!("no {PROGRAM} is installed here; this needs {oldest}"),
            Some(qemu) if qemu.version < oldest => {
                format!("installed: {}: too old for this: needs {oldest}", name(qemu))
            }
            Some(qemu) => format!("installed: {}: was built without {device}", name(qemu)),
        };
        QemuFit { command: PROGRAM.into(), says, fits: false }
    }
}

fn oldest(offer: &QemuOffer<'_>) -> QemuVersion {
    if offer.offset > 0 { QemuVersion::FILE_OFFSET } else { QemuVersion::TRIED }
}

fn works_with(oldest: QemuVersion) -> String {
    match oldest {
        QemuVersion::TRIED => format!("QEMU {oldest} and later (the oldest that was tried)"),
        _ => format!("QEMU {oldest} and later (the first that can begin inside a file)"),
    }
}

fn behind_block() -> String {
    format!(
        "An fsdax info block is in front of the data: the guest's /dev/pmem0 begins {} bytes into this memory, and so does a file system made from outside (`mkfs.ext4 -E offset={}`).",
        crate::device::fsdax::DATA,
        crate::device::fsdax::DATA
    )
}

/// Without KVM: QEMU falls back from it only if it does not open, and it may open and boot no
/// guest.
fn start(command: &Path) -> String {
    format!("{} -accel tcg -cpu max", shell(command.as_os_str().as_bytes()))
}

/// The guest's memory, with room for a device of `size` bytes beside it and for what aligning it to
/// 1 GiB takes.
fn room(size: u64) -> String {
    let most = size.saturating_add(GUEST_MIB * MIB + GIB).div_ceil(GIB).max(4);
    format!("-m {GUEST_MIB}M,slots=2,maxmem={most}G")
}

fn backend(memory: &Path, offer: &QemuOffer<'_>) -> String {
    let size = match offer.size {
        size if size.is_multiple_of(MIB) => format!("{}M", size / MIB),
        size => size.to_string(),
    };
    let offset = match offer.offset {
        0 => String::new(),
        offset => format!(",offset={offset}"),
    };
    let read_only = if offer.read_only { ",readonly=on" } else { "" };
    let rest = format!(",size={size}{offset}{read_only}");
    format!("-object {}", shell(&option("memory-backend-file,id=nv0,share=on,mem-path=", memory, &rest)))
}

/// An option of QEMU's with a path in it: a comma would end the path, two of them are one.
fn option(before: &str, path: &Path, behind: &str) -> Vec<u8> {
    let mut option = before.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        option.extend_from_slice(if byte == b',' { b",," } else { std::slice::from_ref(&byte) });
    }
    option.extend_from_slice(behind.as_bytes());
    option
}

/// One word for a shell: bare if it may be; else in single quotes; with bytes that can't be shown,
/// in `$'…'` (bash, zsh, ksh and POSIX 2024 know it), so that the line can be printed and copied.
pub fn shell(word: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(byte);
    match str::from_utf8(word) {
        Ok(text) if !text.is_empty() && word.iter().all(plain) => text.to_owned(),
        Ok(text) if !text.chars().any(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => {
            let escaped = word.iter().map(|byte| match byte {
                b'\'' | b'\\' => format!("\\{}", char::from(*byte)),
                b' '..=b'~' => char::from(*byte).to_string(),
                _ => format!("\\{byte:03o}"),
            });
            format!("$'{}'", escaped.collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests;
