//! The archive that a kernel unpacks into its first file system.
//!
//! It owns the format, which Documentation/driver-api/early-userspace/buffer-format.rst of Linux
//! calls "newc". Invariant: header with name, and data, each end on a multiple of 4 bytes.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{fs, io};

/// A "newc" archive as it grows.
#[derive(Default)]
pub(super) struct Archive(Vec<u8>);

pub(super) const REGULAR: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
pub(super) const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    /// Adds an entry; `device` is the number of a device node and else 0/0.
    ///
    /// # Errors
    /// The file, or its name, is longer than the format can say (4 GiB).
    pub(super) fn add(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let fits = |len: usize| {
            u32::try_from(len)
                .map_err(|_| io::Error::other(format!("{name}: {len} bytes are too many for an initramfs")))
        };
        let (size, name_size) = (fits(data.len())?, fits(name.len() + 1)?);
        // c_magic, then ino (0: no entry is a hard link), mode, uid, gid, nlink, mtime, filesize,
        // devmajor, devminor, rdevmajor, rdevminor, namesize, check (0 in "070701").
        let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.0.extend_from_slice(b"070701");
        for field in fields {
            self.0.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend_from_slice(data);
        self.pad();
        Ok(())
    }

    /// Header with name, and data, each end on a multiple of 4 bytes.
    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn folder(&mut self, name: &str) -> io::Result<()> {
        self.add(name, FOLDER | 0o755, (0, 0), &[])
    }

    /// Adds what is below `dir` under `prefix` ("" or "name/").
    pub(super) fn tree(&mut self, dir: &Path, prefix: &str) -> io::Result<()> {
        let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if kind.is_symlink() {
                let target = fs::read_link(path)?;
                self.add(&name, SYMLINK | 0o777, (0, 0), target.to_string_lossy().as_bytes())?;
            } else if kind.is_dir() {
                self.folder(&name)?;
                self.tree(&path, &format!("{name}/"))?;
            } else {
                let mode = entry.metadata()?.permissions().mode() & 0o777;
                self.add(&name, REGULAR | mode, (0, 0), &fs::read(path)?)?;
            }
        }
        Ok(())
    }

    /// Its bytes.
    pub(super) fn end(mut self) -> io::Result<Vec<u8>> {
        self.add("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.0)
    }
}
