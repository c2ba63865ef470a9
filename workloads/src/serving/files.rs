//! The files of a simulated volume that are served: their making, and their export to a guest.
//!
//! It owns no state; the kernel does. Invariants: a served file is a multiple of 2 MiB, as the
//! guest's Linux wants its device, and lies in at most [`PIECES_MAX`] pieces, as its QEMU can map;
//! an export that can't be mapped whole is given back.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::input::Size;
use emulator::World;
use emulator::device::{Device, FOLIO, MAX_BYTES, OpenError};
use emulator::sync::Arc;
use emulator::vhost_user::{PIECES_MAX, PmemPiece};
use fs_sim::base::numbers::Fd;
use fs_sim::design::Axes;
use fs_sim::extent_map::Extent;
use fs_sim::pinning::guest_export::{GuestExport, GuestMapping};
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::names::NAME_MAX;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::{BLOCK, Errno, Kernel, KernelConfig, Task};
use rustix::fs::SeekFrom;

use super::ServeError;
use super::backend_handles::Holds;
use super::{host_paths, image};

/// The smallest volume that is made unasked: room to play in beside the files.
const VOLUME_MIN: u64 = 64 << 20;
/// Bytes that are imported at once.
const CHUNK: u64 = 1 << 20;

/// The files to make.
#[derive(Clone, Debug)]
pub struct Files {
    /// Their names, each once.
    pub names: Vec<String>,
    /// What is in them.
    pub contents: NewContents,
    /// Into how many extents each is broken up on purpose.
    pub extents: Option<u64>,
    /// Whether each is defragmented before it is served.
    pub defragment: bool,
    /// The volume's size in bytes; if none is given, twice the files' size, or four times if they
    /// are to be joined.
    pub volume: Option<u64>,
}

/// What is in a new file.
#[derive(Clone, Debug)]
pub enum NewContents {
    /// This many bytes, all zero.
    Zeros(u64),
    /// What is in this file of the host.
    Import(PathBuf),
}

/// A volume with the files in it, under a design.
pub(super) fn make(files: &Files, axes: Axes, seed: u64) -> Result<Arc<Kernel>, ServeError> {
    let import = match &files.contents {
        NewContents::Zeros(_) => None,
        NewContents::Import(path) => Some(open_import(path)?),
    };
    let bytes = file_size(files, import.as_ref())?;
    let volume = volume_size(files, bytes)?;
    let device = Device::memory(volume).map_err(|error| match error {
        OpenError::Size { .. } => ServeError::Wrong(format!(
            "--volume {}: a volume is a multiple of 2 MiB, at most {}",
            image::shown(volume),
            Size(MAX_BYTES)
        )),
        other => ServeError::Cannot(other.to_string()),
    })?;
    let config = KernelConfig::new(axes);
    let kernel = Kernel::new(Arc::new(World::real(seed)), device, config)
        .map_err(|error| ServeError::Cannot(format!("the volume's tables could not be mapped: {error}")))?;
    kernel.watch_stale_guests();
    let maker = kernel.spawn();
    for name in &files.names {
        let making = |errno: Errno| match errno {
            Errno::ENOSPC => ServeError::Wrong(format!(
                "file `{name}`: no room for {} on a volume of {}; --volume says its size",
                Size(bytes),
                Size(volume)
            )),
            errno => ServeError::Wrong(format!("file `{name}` of {} could not be made: {errno}", Size(bytes))),
        };
        maker.provision(name, bytes, files.extents).map_err(making)?;
        if let (NewContents::Import(path), Some(from)) = (&files.contents, &import) {
            let fd = maker.open(name, OpenFlags::open(AccessMode::BOTH)).map_err(making)?;
            copy_in(&maker, fd, from, bytes).map_err(|error| unreadable(path, &error))?;
            maker.close(fd).map_err(making)?;
        }
        if files.defragment {
            kernel.defragment_politely(name).map_err(|errno| {
                ServeError::Wrong(format!(
                    "--defragment: `{name}`: {errno}: no free run of {} on a volume of {}; --volume makes it larger",
                    Size(bytes),
                    Size(volume)
                ))
            })?;
        }
    }
    maker.exit();
    Ok(kernel)
}

/// The size of each new file in bytes, after every check of what was asked for.
fn file_size(files: &Files, import: Option<&File>) -> Result<u64, ServeError> {
    let bytes = match (&files.contents, import) {
        (NewContents::Zeros(bytes), _) => checked(*bytes, "--create")?,
        (NewContents::Import(path), Some(from)) => {
            let found = from.metadata().map_err(|error| unreadable(path, &error))?.len();
            checked(found, &format!("--import {}: it has", path.display()))?
        }
        (NewContents::Import(_), None) => 0,
    };
    if bytes > MAX_BYTES {
        let (asked, most) = (Size(bytes), Size(MAX_BYTES));
        return Err(ServeError::Wrong(format!("a file of {asked}: a volume has at most {most}, and so has a file")));
    }
    if let Some(name) = files.names.iter().find(|name| name.is_empty() || name.len() > NAME_MAX) {
        return Err(ServeError::Wrong(format!(
            "--file `{name}`: {} bytes; a name has 1 to {NAME_MAX} bytes",
            name.len()
        )));
    }
    if let Some(name) = files.names.iter().find(|name| name.contains('/') || matches!(name.as_str(), "." | "..")) {
        return Err(ServeError::Wrong(format!(
            "--file {name}: this is the path of a file, and a volume has names only, without folders; name the file without `/`; --import HOSTFILE copies a file of the host into it"
        )));
    }
    if let Some(extents) = files.extents.filter(|extents| *extents == 0 || *extents > bytes / BLOCK) {
        return Err(ServeError::Wrong(format!(
            "--extents {extents}: a file of {} can be served in 1 to {PIECES_MAX} extents, and made with up to {} if --defragment joins them",
            Size(bytes),
            bytes / BLOCK
        )));
    }
    Ok(bytes)
}

/// The size of the volume in bytes, on which files of `bytes` each are to be.
fn volume_size(files: &Files, bytes: u64) -> Result<u64, ServeError> {
    let count = files.names.len() as u64;
    Ok(match files.volume {
        Some(volume) if volume / count < bytes => {
            let needed = Size(bytes.saturating_mul(count));
            return Err(ServeError::Wrong(format!("--volume {}: the files need {needed}", Size(volume))));
        }
        Some(volume) => volume,
        // Between the extents of a broken-up file lies as much again, and a file is joined in a
        // free run of its size.
        None if files.defragment => bytes.saturating_mul(4 * count).clamp(VOLUME_MIN, MAX_BYTES),
        None => bytes.saturating_mul(2 * count).clamp(VOLUME_MIN, MAX_BYTES),
    })
}

/// A size that a guest's device can have.
fn checked(bytes: u64, what: &str) -> Result<u64, ServeError> {
    match bytes > 0 && bytes.is_multiple_of(FOLIO) {
        true => Ok(bytes),
        false => Err(ServeError::Wrong(format!(
            "{what} {}; a guest's device is a multiple of 2 MiB, such as {}",
            image::shown(bytes),
            Size(bytes.next_multiple_of(FOLIO).max(FOLIO))
        ))),
    }
}

fn open_import(path: &Path) -> Result<File, ServeError> {
    // Looked at before opening: opening a pipe would block.
    let found = path.metadata().map_err(|error| unreadable(path, &error))?;
    if !found.is_file() {
        let kind = host_paths::kind(&found);
        return Err(ServeError::Wrong(format!("--import {}: {kind}, and not a regular file", path.display())));
    }
    File::open(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> ServeError {
    host_paths::unusable("--import", path, error, "")
}

/// Copies what is data in `from`; its holes are zeros already.
fn copy_in(maker: &Task, fd: Fd, from: &File, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK as usize];
    let mut at = 0;
    while at < bytes {
        let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole is left.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(_) => at,
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(data)).unwrap_or(bytes).min(bytes);
        at = data;
        while at < end {
            let chunk = &mut buffer[..CHUNK.min(end - at) as usize];
            from.read_exact_at(chunk, at)?;
            maker.write(fd, at, chunk).map_err(|errno| io::Error::other(format!("{errno} at byte {at}")))?;
            at += chunk.len() as u64;
        }
        at = at.max(end);
    }
    Ok(())
}

/// Why a file can't be given to a guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ExportError {
    /// The kernel says so.
    #[error("{call}: {errno}")]
    Errno {
        /// What was tried.
        call: &'static str,
        /// What came of it.
        errno: Errno,
    },
    /// It is no size for a device.
    #[error("the file has {bytes} bytes now; a guest's device is a multiple of 2 MiB")]
    Size {
        /// Its size.
        bytes: u64,
    },
    /// QEMU could not map it.
    #[error("the file lies in {pieces} extents, and at most {PIECES_MAX} can be mapped; --defragment joins them")]
    Pieces {
        /// How many.
        pieces: u64,
    },
}

/// A file with what its design demands held for it.
pub(super) struct Exported {
    pub(super) holds: Holds,
    pub(super) bytes: u64,
}

/// Has a new process open the file called `name`, and take what the design demands of a process
/// that lets a guest map it.
///
/// # Errors
/// [`ExportError`]; nothing is held then.
pub(super) fn export(
    kernel: &Arc<Kernel>,
    name: &str,
    mapping: Arc<dyn GuestMapping>,
) -> Result<Exported, ExportError> {
    export_as(kernel.spawn(), name, mapping)
}

/// The same, by `task`, the only one of its process.
///
/// # Errors
/// As for [`export`]; the process has ended then.
pub(super) fn export_as(task: Task, name: &str, mapping: Arc<dyn GuestMapping>) -> Result<Exported, ExportError> {
    let exported = export_by(&task, name, mapping);
    match exported {
        Ok((export, bytes)) => Ok(Exported { holds: Holds { task, export }, bytes }),
        Err(error) => {
            task.exit();
            Err(error)
        }
    }
}

fn export_by(task: &Task, name: &str, mapping: Arc<dyn GuestMapping>) -> Result<(Arc<GuestExport>, u64), ExportError> {
    let called = |call| move |errno| ExportError::Errno { call, errno };
    let fd = task.open(name, OpenFlags::open(AccessMode::BOTH)).map_err(called("open"))?;
    let bytes = task.stat(fd).map_err(called("stat"))?.size;
    if bytes == 0 || !bytes.is_multiple_of(FOLIO) {
        return Err(ExportError::Size { bytes });
    }
    let kernel = task.kernel();
    let pieces = kernel.runs_of(name).map_err(called("fiemap"))?;
    if pieces > PIECES_MAX as u64 {
        return Err(ExportError::Pieces { pieces });
    }
    let (_guest, export) = task.export_to_guest_mapped(fd, mapping).map_err(called("export"))?;
    // The export has the file open for itself.
    task.close(fd).map_err(called("close"))?;
    Ok((export, bytes))
}

/// Where on the device the file called `name` lies, in bytes.
pub(super) fn places(kernel: &Kernel, name: &str) -> Vec<Range<u64>> {
    let place = |extent: Extent| {
        let start = extent.block * BLOCK;
        start..start + u64::from(extent.len) * BLOCK
    };
    kernel.named(name).map_or(Vec::new(), |inode| inode.layout(|layout| layout.extents().map(place).collect()))
}

/// What of an export may be mapped now.
pub(super) fn pieces(export: &GuestExport, kernel: &Arc<Kernel>) -> Vec<PmemPiece> {
    let piece = |piece: fs_sim::pinning::guest_export::GuestPiece| PmemPiece {
        guest_offset: piece.file_offset,
        device_offset: piece.device_offset,
        len: piece.len,
    };
    export.pieces(kernel).into_iter().map(piece).collect()
}
