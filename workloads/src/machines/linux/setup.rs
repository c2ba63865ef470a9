//! The files that a scenario starts with, on a real file system.
//!
//! Invariant: the driver has none of them open while the scenario runs. Kernel counterpart: mkfs's
//! `-d`.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use super::{program, request};
use crate::language::{Contents, FileSetup, Setup};
use crate::machines::machine::Trouble;

/// Makes the files; those named in `programs` can be executed.
pub(super) fn make_files(dir: &Path, setup: &Setup, programs: &[String]) -> Result<(), Trouble> {
    for file in &setup.files {
        let path = request::path(dir, &file.name)?;
        let image = match programs.contains(&file.name) {
            false => Vec::new(),
            true => program::image()
                .ok_or_else(|| Trouble::CannotRun("no program is known for this machine's processor".to_owned()))?,
        };
        if image.len() as u64 > file.size && !image.is_empty() {
            return Err(Trouble::Script(format!("`{}` is too small for a program", file.name)));
        }
        make_file(Path::new(&path), file, &image)
            .map_err(|error| Trouble::CannotRun(format!("the file `{}` could not be made: {error}", file.name)))?;
    }
    Ok(())
}

fn make_file(path: &Path, setup: &FileSetup, image: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut file = File::create_new(path)?;
    match setup.contents {
        Contents::Hole => file.set_len(setup.size)?,
        Contents::Unwritten if setup.size == 0 => {}
        Contents::Unwritten => fallocate(&file, FallocateFlags::empty(), 0, setup.size)?,
        Contents::Byte(byte) => {
            let piece = vec![byte; setup.size.min(1 << 20) as usize];
            let mut left = setup.size;
            while left > 0 {
                let now = left.min(piece.len() as u64);
                file.write_all(&piece[..now as usize])?;
                left -= now;
            }
        }
    }
    rustix::io::pwrite(&file, image, 0)?;
    let mode = if image.is_empty() { 0o666 } else { 0o777 };
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}
