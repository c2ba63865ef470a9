//! The image that is served: its size, its opening, and what is wrong with a file that can't be
//! one.
//!
//! It owns no state; the device has the file. Invariant: an error names the file, what it is and
//! what to do, with every size both as people write it and in bytes.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use emulator::device::{Device, FOLIO, ImageSpace, MAX_BYTES, OpenError};
use emulator::vhost_user::attach::shell;

use super::host_paths::{self, kind};
use super::{ServeError, out_of_descriptors};
use crate::input::Size;

/// A size as people write it, and in bytes: both are typed, and both are shown by other programs.
pub(super) fn shown(bytes: u64) -> String {
    match bytes > 0 && bytes.is_multiple_of(1024) {
        true => format!("{} ({bytes} bytes)", Size(bytes)),
        false => format!("{bytes} {}", if bytes == 1 { "byte" } else { "bytes" }),
    }
}

/// The size of the device in bytes: what was `asked` for, or else the image's.
///
/// # Errors
/// There is no image to ask, or it has no size that a device can have.
pub(super) fn size(path: &Path, asked: Option<u64>) -> Result<u64, ServeError> {
    if let Some(bytes) = asked {
        return match can_be_a_device(bytes) {
            true => Ok(bytes),
            false => Err(ServeError::Wrong(format!("--size {}: {}", shown(bytes), fits(bytes)))),
        };
    }
    let found = std::fs::metadata(path)
        .map_err(|error| host_paths::unusable("--image", path, &error, "; --size says how large a new one is to be"))?;
    let wrong = |what: String| Err(ServeError::Wrong(format!("--image {}: {what}", path.display())));
    match found.len() {
        _ if !found.is_file() => wrong(no_file(kind(&found))),
        0 => wrong("it is empty; --size says how large it is to be".to_owned()),
        bytes if can_be_a_device(bytes) => Ok(bytes),
        bytes => {
            let larger = match nearest(bytes) {
                larger if larger > bytes => format!("; `{}` enlarges it", truncate(path, larger)),
                _ => String::new(),
            };
            wrong(format!("it has {}: {}{larger}, and --size serves less than all of it", shown(bytes), fits(bytes)))
        }
    }
}

/// Opens or makes the image, for a server with so many sockets.
///
/// # Errors
/// It can't be had. A file that was there is as it was.
pub(super) fn open(path: &Path, bytes: u64, space: ImageSpace, sockets: usize) -> Result<Device, ServeError> {
    Device::image_with(path, bytes, space).map_err(|error| {
        let wrong = |what: String| ServeError::Wrong(format!("--image {}: {what}", path.display()));
        match error {
            OpenError::TooSmall { asked, found, .. } => wrong(too_small(path, asked, found)),
            OpenError::NotAFile { .. } => {
                wrong(no_file(std::fs::metadata(path).map_or("something else", |found| kind(&found))))
            }
            OpenError::NoRoom { missing, free, .. } => ServeError::Cannot(format!(
                "--image {}: it takes {} ({missing} more bytes), and its filesystem has {} ({free} free); make room, name another place, or do without --preallocate (a store for which there is no room kills QEMU)",
                path.display(),
                Size(missing),
                Size(free),
            )),
            OpenError::Os { ref source, .. } => match host_paths::unusable("--image", path, source, "") {
                wrong @ ServeError::Wrong(_) => wrong,
                _ => ServeError::Cannot(format!("{error}{}", out_of_descriptors(source, sockets))),
            },
            wrong => ServeError::Wrong(wrong.to_string()),
        }
    })
}

fn no_file(kind: &str) -> String {
    format!("{kind}, and not a regular file; name a file, or a path that does not exist yet")
}

fn too_small(path: &Path, asked: u64, found: u64) -> String {
    let less = match found / FOLIO * FOLIO {
        0 => String::new(),
        fits => format!("ask for at most {}, ", Size(fits)),
    };
    format!(
        "it has {}, and --size asks for {}; {less}enlarge it with `{}` (its bytes stay), or name another image",
        shown(found),
        shown(asked),
        truncate(path, asked)
    )
}

/// The command that enlarges the file at `path`.
fn truncate(path: &Path, bytes: u64) -> String {
    format!("truncate -s {bytes} {}", shell(path.as_os_str().as_bytes()))
}

fn can_be_a_device(bytes: u64) -> bool {
    bytes == nearest(bytes)
}

fn nearest(bytes: u64) -> u64 {
    bytes.clamp(FOLIO, MAX_BYTES).next_multiple_of(FOLIO)
}

fn fits(bytes: u64) -> String {
    format!("a device is a multiple of 2 MiB, at least 2 MiB and at most 1 TiB, such as {}", Size(nearest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_the_images_or_what_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("img");
        let why = |asked| match size(&path, asked) {
            Err(ServeError::Wrong(why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(why(None).ends_with("; --size says how large a new one is to be"));
        assert_eq!(size(&path, Some(2 * FOLIO)).unwrap(), 2 * FOLIO);
        assert!(why(Some(3 << 20)).starts_with("--size 3MiB (3145728 bytes): a device is a multiple of 2 MiB"));
        assert!(why(Some(1 << 60)).ends_with("such as 1TiB"));
        std::fs::write(&path, "").unwrap();
        assert!(why(None).ends_with("img: it is empty; --size says how large it is to be"));
        std::fs::write(&path, "x").unwrap();
        assert!(why(None).contains("img: it has 1 byte: a device"), "{}", why(None));
        assert!(why(None).contains(&format!("`truncate -s 2097152 {}`", path.display())), "{}", why(None));
        std::fs::File::create(&path).unwrap().set_len(FOLIO).unwrap();
        assert_eq!(size(&path, None).unwrap(), FOLIO);
    }
}
