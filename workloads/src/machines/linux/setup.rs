//! The files that a scenario starts with, on a real file system.
//!
//! Invariants: the driver has none of them open while the scenario runs; on a file system with DAX
//! their inode numbers are in the order in which the scenario names them, as calls on two files
//! lock in that order. Kernel counterpart: mkfs's `-d`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use super::{program, request};
use crate::language::{Contents, FileSetup, Setup};
use crate::machines::machine::Trouble;

/// How many files are made to find one with a greater inode number.
const TRIES: u32 = 64;

/// Makes the files; those named in `programs` can be executed.
pub(super) fn make_files(dir: &Path, setup: &Setup, programs: &[String]) -> Result<(), Trouble> {
    let mut above = 0;
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
        let inode = create(Path::new(&path), above)
            .and_then(|(made, inode)| fill(made, file, &image).map(|()| inode))
            .map_err(|error| Trouble::CannotRun(format!("the file `{}` could not be made: {error}", file.name)))?;
        if inode < above && setup.dax {
            let why = format!("the file `{}` got no inode number above those of the files before it", file.name);
            return Err(Trouble::CannotRun(why));
        }
        above = inode;
    }
    Ok(())
}

/// Makes an empty file whose inode number, which is told, is above another one if that can be had.
fn create(path: &Path, above: u64) -> std::io::Result<(File, u64)> {
    let mut lower: Vec<PathBuf> = Vec::new();
    loop {
        let file = File::create_new(path)?;
        let inode = file.metadata()?.ino();
        if inode > above || lower.len() == TRIES as usize {
            lower.iter().try_for_each(std::fs::remove_file)?;
            return Ok((file, inode));
        }
        // It keeps its number while another file looks for one.
        let aside = path.with_file_name(format!("below {above} {}", lower.len()));
        std::fs::rename(path, &aside)?;
        lower.push(aside);
    }
}

fn fill(mut file: File, setup: &FileSetup, image: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
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
