//! How to attach: the QEMU command lines for what is served, and what an NVDIMM needs in its
//! memory.
//!
//! It owns the choice of what can be offered. Invariants: a memory is offered to a QEMU of its own
//! device only if it lies in one piece; an info block is written only over empty memory.

use std::fmt::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use emulator::device::fsdax::{self, InfoBlock, PrepareError, Prepared};
use emulator::runtime::rng;
use emulator::sync::Arc;
use emulator::vhost_user::attach::{
    ProbeError, Qemu, QemuOffer, QemuRecipe, installed, kvm_opens, probe, recipes, shell,
};
use fs_sim::extent_map::Layout;
use fs_sim::{BLOCK, Kernel};
use rand::Rng;

use super::host_paths::{self, kind};
use super::machine::ServedMemory;
use super::{Config, NewContents, ServeError, What};
use crate::input::Size;

/// What is to be known of a guest that has a file by a device of QEMU's own.
const UNSEEN: &str = "Such a guest comes and goes unseen, and nothing is leased or pinned for it";

/// The QEMUs to print command lines for.
///
/// # Errors
/// One was named that is none, or can't do what is asked.
pub(super) fn qemus(config: &Config) -> Result<Vec<Qemu>, ServeError> {
    let Some(path) = &config.qemu else {
        return Ok(installed(std::env::var_os("PATH").as_deref()));
    };
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            return Err(ServeError::Wrong(format!("--qemu {}: {}, and no program", path.display(), kind(&found))));
        }
        Err(error) if host_paths::missing_folder(path).is_some() => {
            return Err(host_paths::unusable("--qemu", path, &error, ""));
        }
        Ok(_) | Err(_) => {}
    }
    let qemu = probe(path).map_err(|error| match error {
        ProbeError::NotQemu { .. } => ServeError::Wrong(format!("--qemu: {error}")),
        error => ServeError::Cannot(format!("--qemu: {error}")),
    })?;
    let memory_only = config.nvdimm || config.read_only;
    let asked = QemuOffer {
        socket: config.sockets.first().filter(|_| !memory_only).map(PathBuf::as_path),
        memory: config.sockets.first().map(PathBuf::as_path),
        offset: if config.serves_an_image() { 0 } else { BLOCK },
        size: fsdax::DATA,
        nvdimm: config.nvdimm,
        read_only: config.read_only,
    };
    let qemus = vec![qemu];
    let ways = recipes(&asked, &qemus);
    if ways.iter().any(|way| way.fits) {
        return Ok(qemus);
    }
    let why: Vec<String> = ways.iter().map(|way| format!("{}: {}", way.title, way.here)).collect();
    let instead = instead(config, fsdax::DATA, &qemus).map_or_else(String::new, |instead| format!("; {instead}"));
    Err(ServeError::Cannot(format!(
        "--qemu {}: {}{instead}; leave --qemu away for the command lines of every way",
        path.display(),
        why.join("; ")
    )))
}

/// A memory, or why it is none that QEMU can have as its own device's.
struct OfferedMemory {
    /// What is in it.
    name: String,
    place: Result<(PathBuf, u64), String>,
    size: u64,
}

/// What is served, by name.
fn memories(config: &Config, backing: &ServedMemory) -> Vec<OfferedMemory> {
    match (&config.what, backing) {
        (What::Files(files), ServedMemory::Files(kernel)) => {
            let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), kernel.device().fd().as_raw_fd()));
            let memory = |name: &String| {
                let size = kernel.named(name).map_or(0, |inode| inode.layout(Layout::size));
                let place = place_of(kernel, name).map(|start| (path.clone(), start));
                OfferedMemory { name: name.clone(), place, size }
            };
            files.names.iter().map(memory).collect()
        }
        (What::Image { path, .. }, ServedMemory::Image(device)) => {
            let name = path.display().to_string();
            vec![OfferedMemory { name, place: Ok((absolute(path), 0)), size: device.bytes() }]
        }
        _ => Vec::new(),
    }
}

/// Where on the device the file begins, in bytes, if it lies in one piece.
fn place_of(kernel: &Arc<Kernel>, name: &str) -> Result<u64, String> {
    let runs = kernel.runs_of(name).map_err(|errno| errno.to_string())?;
    let first = kernel.named(name).and_then(|inode| inode.layout(|layout| layout.lookup(0)));
    match (runs, first) {
        (1, Some(extent)) => Ok(extent.block * BLOCK),
        _ => Err(format!("`{name}` lies in {runs} extents, and QEMU's own devices want one; --defragment joins them")),
    }
}

fn absolute(path: &std::path::Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Puts in front of the data what the guest of an NVDIMM looks for there; what was done, in words.
///
/// # Errors
/// Something else lies there, or the memory lies in pieces. It is as it was.
pub(super) fn prepare(config: &Config, backing: &ServedMemory) -> Result<String, ServeError> {
    let mut done = String::new();
    for (number, memory) in memories(config, backing).iter().enumerate() {
        let wrong = |what: String| ServeError::Wrong(format!("--nvdimm: {}: {what}", memory.name));
        let (_, start) = memory.place.clone().map_err(wrong)?;
        let mut uuid = [0; 16];
        rng::stream(config.seed, "nvdimm uuid", number as u64).fill_bytes(&mut uuid);
        let prepared = fsdax::prepare(backing.device(), start, memory.size, uuid).map_err(|error| match error {
            PrepareError::Sync(_) | PrepareError::Access(_) => ServeError::Cannot(error.to_string()),
            error => wrong(error.to_string()),
        })?;
        let words = match prepared {
            Prepared::Found(_) => "has its fsdax info block",
            Prepared::Written(_) => "got an fsdax info block",
        };
        let _ = writeln!(done, "{} {words}", memory.name);
    }
    Ok(done)
}

/// Whether a memory of `bytes` has room for an info block, before anything is made.
pub(super) fn check_room(bytes: u64) -> Result<(), ServeError> {
    let room = InfoBlock::new(bytes, [0; 16]);
    room.map(drop).map_err(|error| ServeError::Wrong(format!("--nvdimm: {error}; it takes at least 4 MiB")))
}

/// How to attach, for people.
pub(super) struct HowToAttach {
    pub(super) text: String,
    /// Whether a guest of the QEMUs here is seen by this server; true if there are none.
    pub(super) is_seen: bool,
}

/// The command lines.
pub(super) fn how_to_attach(config: &Config, backing: &ServedMemory, qemus: &[Qemu]) -> HowToAttach {
    let (nvdimm, read_only) = (config.nvdimm, config.read_only);
    let (mut over_sockets, mut over_memory) = (Shown::default(), Shown::default());
    let memories = memories(config, backing);
    // QEMU 11.1 maps writable what it is asked to map read-only (RAM_READONLY_FD alone in
    // hw/virtio/vhost-user-shmem.c).
    for (at, socket) in config.sockets.iter().enumerate().filter(|_| !read_only) {
        let size = memories.get(at).or(memories.first()).map_or(0, |memory| memory.size);
        let socket = absolute(socket);
        let offer = QemuOffer { socket: Some(&socket), memory: None, offset: 0, size, nvdimm, read_only };
        over_sockets.add(&recipes(&offer, qemus), None);
    }
    for memory in &memories {
        match &memory.place {
            Ok((path, offset)) => {
                let (memory, offset, size) = (Some(path.as_path()), *offset, memory.size);
                let offer = QemuOffer { socket: None, memory, offset, size, nvdimm, read_only };
                let unseen = match backing {
                    ServedMemory::Files(_) if read_only => Some(UNSEEN.to_owned() + "."),
                    ServedMemory::Files(_) if !nvdimm => {
                        Some(UNSEEN.to_owned() + ": with --nvdimm, lease and pins are held as long as the server runs.")
                    }
                    _ => None,
                };
                let unseen = unseen.as_deref();
                over_memory.add(&recipes(&offer, qemus), unseen);
            }
            Err(why) => {
                let _ = writeln!(over_memory.text, "\nno way for older QEMUs: {why}");
            }
        }
    }
    let mut text = match read_only {
        true => "\nthe sockets are for frontends that map a read-only piece read-only; QEMU 11.1 maps it writable, has no descriptor to write with, and gets no memory there, so neither does `scripts/try-guest`\n".to_owned(),
        false => String::new(),
    };
    let size = memories.first().map_or(0, |memory| memory.size);
    text += &what_works(config, size, &over_sockets, &over_memory, qemus);
    if kvm_opens() {
        text += "\nKVM opens on this machine: put `-accel kvm` in front of `-accel tcg` if it also boots a guest, which `scripts/try-guest` tries. Where it does not, QEMU hangs and does not go on to tcg.\n";
    }
    // What was asked for comes first, or else what works here.
    let over_sockets_fits = over_sockets.fits;
    let memory_first = nvdimm || !over_sockets.fits && over_memory.fits;
    let (first, second) = if memory_first { (over_memory, over_sockets) } else { (over_sockets, over_memory) };
    HowToAttach { is_seen: over_sockets_fits || qemus.is_empty(), text: text + &first.text + &second.text }
}

/// Ways to attach, for people.
#[derive(Default)]
struct Shown {
    text: String,
    /// The title of the first that an installed QEMU can run.
    first: Option<String>,
    fits: bool,
}

impl Shown {
    fn add(&mut self, recipes: &[QemuRecipe], note: Option<&str>) {
        for recipe in recipes {
            self.text += &shown(recipe, note);
            self.fits |= recipe.fits;
            if recipe.fits && self.first.is_none() {
                self.first = Some(recipe.title.clone());
            }
        }
    }
}

/// In one line what the QEMUs can do here, if they can't do all of it. A memory has `size` bytes.
fn what_works(config: &Config, size: u64, over_sockets: &Shown, over_memory: &Shown, qemus: &[Qemu]) -> String {
    let fetched = match config.read_only {
        true => "",
        false => "; `scripts/try-guest SOCKET` fetches a QEMU that can use a socket, without root, and boots a guest",
    };
    let Some(newest) = qemus.iter().max_by_key(|qemu| qemu.version) else {
        return format!("\nno QEMU is installed here{fetched}\n");
    };
    let here = match config.read_only {
        true => format!("QEMU {} here", newest.version),
        false => format!("QEMU {} here can't use a socket of this server", newest.version),
    };
    match &over_memory.first {
        _ if over_sockets.fits => String::new(),
        Some(_) if config.read_only => String::new(),
        Some(way) => format!("\n{here}; what works with it is {way}, the first command below{fetched}\n"),
        None => {
            let instead = instead(config, size, qemus).map_or_else(String::new, |instead| format!(", but {instead}"));
            let none = if config.read_only { ": none" } else { ", and none" };
            format!("\n{here}{none} of the ways below works with it{instead}{fetched}\n")
        }
    }
}

/// What works with `qemus` instead of a file of `size` bytes, if anything does: an image lies in
/// one piece and begins where its file begins.
fn instead(config: &Config, size: u64, qemus: &[Qemu]) -> Option<String> {
    let What::Files(files) = &config.what else { return None };
    let size = if let NewContents::Zeros(bytes) = files.contents { bytes } else { size };
    let (nvdimm, read_only) = (config.nvdimm, config.read_only);
    let memory = Some(std::path::Path::new("FILE"));
    let offer = QemuOffer { socket: None, memory, offset: 0, size, nvdimm, read_only };
    let way = recipes(&offer, qemus).into_iter().find(|way| way.fits)?;
    let sockets: String =
        config.sockets.iter().map(|socket| format!(" --socket {}", shell(socket.as_os_str().as_bytes()))).collect();
    let more = match () {
        () if nvdimm => " --nvdimm",
        () if read_only => " --read-only",
        () => "",
    };
    Some(format!("{} does over an image: `daxlab serve{sockets} --image FILE --size {}{more}`", way.title, Size(size)))
}

fn shown(recipe: &QemuRecipe, note: Option<&str>) -> String {
    let mut text = format!("\n{} ({}); {}\n\n{}\n", recipe.title, recipe.works_with, recipe.here, recipe.command());
    for (at, note) in recipe.notes.iter().map(String::as_str).chain(note).enumerate() {
        let _ = writeln!(text, "{}  {note}", if at == 0 { "\n" } else { "" });
    }
    text
}
