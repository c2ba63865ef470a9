//! Opening what is behind a device: its size, and the image file.
//!
//! It owns the rules for a path that a user names as an image. Invariants: a file that was there is
//! changed by no error; a new file is removed after an error, and its name is durable before the
//! device is used; a link is never followed to a file of another user. Kernel counterpart:
//! `path_openat` (fs/namei.c) with `O_NOFOLLOW`, and `vfs_fallocate` (fs/open.c).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};

/// Bytes in a folio, the unit of a device's size.
pub const FOLIO: u64 = 2 << 20;
/// The largest device: 1 TiB.
pub const MAX_BYTES: u64 = 1 << 40;

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The size is none a device can have.
    #[error(
        "a device of {asked} bytes: the size must be a multiple of 2 MiB, at least 2 MiB and at most 1 TiB; {} bytes would do",
        nearest(*asked)
    )]
    Size {
        /// Bytes asked for.
        asked: u64,
    },
    /// Another run, or another device of this one, uses the image, or a guest that has outlived its
    /// server.
    #[error(
        "image {path}: in use (its lock is held) by another run, or by a guest that is still attached although its server has ended; end it (`fuser {path}` tells the process) or name another image"
    )]
    Locked {
        /// The image.
        path: PathBuf,
    },
    /// The image exists and is smaller than the device asked for. It was left alone.
    #[error(
        "image {path}: {found} bytes, but a device of {asked} was asked for; {}enlarge it with `truncate -s {asked}` (its bytes stay), or name another image",
        smaller(*found)
    )]
    TooSmall {
        /// The image.
        path: PathBuf,
        /// Bytes asked for.
        asked: u64,
        /// Bytes found.
        found: u64,
    },
    /// The path names a folder, a pipe or a device node.
    #[error("image {path}: not a regular file; name a file, or a path that does not exist yet")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The path is a symbolic link, and not one to a regular file of the caller.
    #[error(
        "image {path}: a symbolic link to {target}, {found}; name the file itself, or a path that does not exist yet"
    )]
    Link {
        /// The path.
        path: PathBuf,
        /// Where the link leads.
        target: PathBuf,
        /// What is there.
        found: String,
    },
    /// The image's filesystem has too little room for all of it.
    #[error(
        "image {path}: it takes {missing} more bytes, and its filesystem has {free} free; make room, name another place, or do without preallocation (a store for which there is no room kills QEMU)"
    )]
    NoRoom {
        /// The image.
        path: PathBuf,
        /// Bytes that have no room yet.
        missing: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Os {
        /// What was tried, on what.
        what: String,
        /// Its error.
        source: io::Error,
    },
}

/// Whether an image takes its room at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageSpace {
    /// Page by page, as it is written.
    #[default]
    Sparse,
    /// When it is opened (`fallocate`).
    Preallocated,
}

/// How much room an image takes, and has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageRoom {
    /// Bytes of the device that have no room on the filesystem yet: its holes.
    pub missing: u64,
    /// Bytes that the filesystem has free for this user.
    pub free: u64,
}

impl ImageRoom {
    pub(super) fn of(file: &File, bytes: u64) -> io::Result<ImageRoom> {
        let used = file.metadata()?.blocks().saturating_mul(512);
        let found = rustix::fs::fstatvfs(file)?;
        Ok(ImageRoom { missing: bytes.saturating_sub(used), free: found.f_bavail.saturating_mul(found.f_frsize) })
    }
}

/// An image that is open and locked. What its opening changed is undone by its drop, unless it was
/// kept.
pub(super) struct OpenedImage<'a> {
    path: &'a Path,
    file: File,
    undo: Undo,
}

/// What an error undoes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Undo {
    Nothing,
    /// An empty file was enlarged.
    Enlarging,
    /// The file was made.
    Making,
}

impl Drop for OpenedImage<'_> {
    fn drop(&mut self) {
        // It is ours alone: its lock is held.
        let _undone = match self.undo {
            Undo::Nothing => Ok(()),
            Undo::Enlarging => self.file.set_len(0),
            Undo::Making => std::fs::remove_file(self.path),
        };
    }
}

impl<'a> OpenedImage<'a> {
    /// See [`super::Device::image`].
    pub(super) fn open(path: &'a Path, bytes: u64, space: ImageSpace) -> Result<OpenedImage<'a>, OpenError> {
        let (file, is_new) = open_file(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::Locked { path: path.to_path_buf() }),
            Err(error) => return Err(os(path, "locking", error.into())),
        }
        let mut opened = OpenedImage { path, file, undo: if is_new { Undo::Making } else { Undo::Nothing } };
        let found = opened.file.metadata().map_err(|error| os(path, "looking at", error))?.len();
        if found == 0 {
            opened.undo = if is_new { Undo::Making } else { Undo::Enlarging };
            opened.file.set_len(bytes).map_err(|error| os(path, "enlarging", error))?;
        } else if found < bytes {
            return Err(OpenError::TooSmall { path: path.to_path_buf(), asked: bytes, found });
        }
        if space == ImageSpace::Preallocated {
            opened.preallocate(bytes)?;
        }
        if is_new {
            sync_folder(path).map_err(|error| os(path, "syncing the folder of", error))?;
        }
        Ok(opened)
    }

    fn preallocate(&self, bytes: u64) -> Result<(), OpenError> {
        let room = ImageRoom::of(&self.file, bytes).map_err(|error| os(self.path, "looking at", error))?;
        let no_room = || OpenError::NoRoom { path: self.path.to_path_buf(), missing: room.missing, free: room.free };
        if room.missing > room.free {
            return Err(no_room());
        }
        loop {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::NOSPC) => return Err(no_room()),
                Err(error) => return Err(os(self.path, "preallocating", error.into())),
            }
        }
    }

    /// A descriptor of it.
    pub(super) fn file(&self) -> Result<File, OpenError> {
        self.file.try_clone().map_err(|error| os(self.path, "opening", error))
    }

    /// It is used.
    pub(super) fn keep(mut self) {
        self.undo = Undo::Nothing;
    }
}

fn os(path: &Path, what: &str, source: io::Error) -> OpenError {
    OpenError::Os { what: format!("{what} image {}", path.display()), source }
}

/// Opens or makes the file; whether it was made.
fn open_file(path: &Path) -> Result<(File, bool), OpenError> {
    let mut options = OpenOptions::new();
    // Opening a pipe must not block.
    options.read(true).write(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => return Ok((follow(path, &options)?, false)),
        Ok(found) if !found.is_file() => return Err(OpenError::NotAFile { path: path.to_path_buf() }),
        _ => {}
    }
    let (file, is_new) = match options.clone().create_new(true).open(path) {
        Ok(file) => (file, true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            (options.open(path).map_err(|error| os(path, "opening", error))?, false)
        }
        Err(error) => return Err(os(path, "opening", error)),
    };
    match file.metadata() {
        Ok(found) if found.is_file() => Ok((file, is_new)),
        Ok(_) => Err(OpenError::NotAFile { path: path.to_path_buf() }),
        Err(error) => Err(os(path, "looking at", error)),
    }
}

/// Opens what a symbolic link leads to, if that is a regular file of this process's user. The
/// checks are of the open file: a link that is changed meanwhile gets past none.
fn follow(path: &Path, options: &OpenOptions) -> Result<File, OpenError> {
    let shown = || std::fs::read_link(path).unwrap_or_default();
    let refused = |target: PathBuf, found: String| OpenError::Link { path: path.to_path_buf(), target, found };
    let target = match path.canonicalize() {
        Ok(target) => target,
        Err(error) => return Err(refused(shown(), format!("which can't be followed ({error})"))),
    };
    if std::fs::symlink_metadata(&target).is_ok_and(|found| !found.is_file()) {
        return Err(refused(target, "which is no regular file".to_owned()));
    }
    let file = match options.open(&target) {
        Ok(file) => file,
        Err(error) => return Err(refused(target, format!("which can't be opened ({error})"))),
    };
    let found = file.metadata().map_err(|error| os(path, "looking at", error))?;
    let user = rustix::process::geteuid().as_raw();
    match () {
        () if !found.is_file() => Err(refused(target, "which is no regular file".to_owned())),
        () if found.uid() != user => {
            Err(refused(target, format!("which belongs to user {} and not to user {user}", found.uid())))
        }
        () => Ok(file),
    }
}

/// Makes a new file's name durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(folder)?.sync_all() {
        // Filesystems that can't sync a folder say so.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

pub(super) fn check_size(asked: u64) -> Result<(), OpenError> {
    if asked == nearest(asked) { Ok(()) } else { Err(OpenError::Size { asked }) }
}

/// The size a device can have that is `asked`, or the next larger one, or the largest.
fn nearest(asked: u64) -> u64 {
    asked.clamp(FOLIO, MAX_BYTES).next_multiple_of(FOLIO)
}

/// What to ask for instead of more than an image of `found` bytes has, if there is something.
fn smaller(found: u64) -> String {
    match found / FOLIO * FOLIO {
        0 => String::new(),
        fits => format!("ask for at most {fits}, "),
    }
}
