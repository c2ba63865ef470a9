//! Paths of the host that a user named: what lies there, and why one can't be used, in words.
//!
//! It owns no file. Invariant: what the user can change by another path is wrong input, and a
//! machine that lacks something, such as a permission, is not.

use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::ServeError;

/// What a file is.
pub(super) fn kind(found: &Metadata) -> &'static str {
    let kind = found.file_type();
    match () {
        () if kind.is_file() => "a regular file",
        () if kind.is_dir() => "a directory",
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a character device",
        () if kind.is_block_device() => "a block device",
        () => "something else than a file",
    }
}

/// Device and inode: the same for every name of a file.
pub(super) fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// Where `path` leads, however it is spelled; the file itself may be missing.
pub(super) fn place(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (folder.canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

/// The folder of `path`, if it is missing.
pub(super) fn missing_folder(path: &Path) -> Option<PathBuf> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty())?;
    let missing = std::fs::metadata(folder).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    missing.then(|| folder.to_owned())
}

/// Why the file at `path`, which the user named by `option`, can't be used. `hint` is what to do
/// where nothing lies at the path.
pub(super) fn unusable(option: &str, path: &Path, error: &io::Error, hint: &str) -> ServeError {
    let what = format!("{option} {}", path.display());
    if error.kind() == ErrorKind::NotFound {
        if let Some(folder) = missing_folder(path) {
            let folder = folder.display();
            return ServeError::Wrong(format!("{what}: its folder {folder} is missing; make it or name another path"));
        }
        if let Ok(target) = std::fs::read_link(path) {
            return ServeError::Wrong(format!(
                "{what}: a symbolic link to {}, where nothing lies; name a file, or a path at which nothing lies",
                target.display()
            ));
        }
    }
    let wrong = [
        ErrorKind::NotFound,
        ErrorKind::NotADirectory,
        ErrorKind::IsADirectory,
        ErrorKind::InvalidInput,
        ErrorKind::InvalidFilename,
    ];
    if wrong.contains(&error.kind()) {
        return ServeError::Wrong(format!("{what}: {error}{hint}"));
    }
    ServeError::Cannot(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_folder_and_a_dangling_link_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let why = |name: &str| {
            let path = dir.path().join(name);
            let error = std::fs::metadata(&path).unwrap_err();
            unusable("--image", &path, &error, "; --size")
        };
        let ServeError::Wrong(text) = why("no/img") else { panic!("wrong input") };
        assert!(text.contains("/no is missing"), "{text}");
        let ServeError::Wrong(text) = why("img") else { panic!("wrong input") };
        assert!(text.ends_with("; --size"), "{text}");
        std::os::unix::fs::symlink("nothing", dir.path().join("link")).unwrap();
        let ServeError::Wrong(text) = why("link") else { panic!("wrong input") };
        assert!(text.contains("a symbolic link to nothing, where nothing lies"), "{text}");
        let denied = io::Error::from(ErrorKind::PermissionDenied);
        assert!(matches!(unusable("--image", dir.path(), &denied, ""), ServeError::Cannot(_)));
    }

    #[test]
    fn two_spellings_of_a_path_are_one_place() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(".", dir.path().join("link")).unwrap();
        let at = |name: &str| place(&dir.path().join(name));
        assert_eq!((at("./s"), at("link/s")), (at("s"), at("s")));
        assert_ne!(at("s"), at("s.ctl"));
        assert_eq!(place(Path::new("s")), place(&std::env::current_dir().unwrap().join("s")));
    }

    #[test]
    fn what_lies_at_a_path_has_a_name() {
        let found = |path: &str| kind(&std::fs::metadata(path).unwrap());
        assert_eq!(
            (found("/"), found("/dev/zero"), found("/proc/self/exe")),
            ("a directory", "a character device", "a regular file")
        );
    }
}
