//! Who may listen at a path.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use workloads::messages::socket::{self, ListenError, Name, PATH_MAX};

#[test]
fn a_free_path_is_listened_at_and_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one");
    let listener = socket::listen(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    Name::of(&listener).unwrap().remove();
    assert!(!path.exists());
}

#[test]
fn a_path_that_is_anothers_by_now_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one");
    let first = socket::listen(&path).unwrap();
    let name = Name::of(&first).unwrap();
    fs::remove_file(&path).unwrap();
    let _second = socket::listen(&path).unwrap();
    name.remove();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn what_was_left_behind_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _listener = socket::listen(&path).unwrap();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_living_listener_keeps_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one");
    let first = UnixListener::bind(&path).unwrap();
    let error = socket::listen(&path).unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    first.set_nonblocking(true).unwrap();
    first.accept().unwrap();
    UnixStream::connect(&path).unwrap();
    first.accept().unwrap();
}

#[test]
fn what_is_no_socket_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (file, inner, link) = (folder.path().join("file"), folder.path().join("folder"), folder.path().join("link"));
    fs::write(&file, "precious").unwrap();
    fs::create_dir(&inner).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for path in [&file, &inner, &link] {
        let error = socket::listen(path).unwrap_err();
        assert!(matches!(error, ListenError::NotASocket { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert!(inner.is_dir() && link.is_symlink());
}

#[test]
fn a_path_has_107_bytes_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let room = PATH_MAX - folder.path().as_os_str().len() - 1;
    let _fits = socket::listen(&folder.path().join("x".repeat(room))).unwrap();
    let error = socket::listen(&folder.path().join("x".repeat(room + 1))).unwrap_err();
    assert!(matches!(error, ListenError::TooLong { len: 108, .. }), "{error}");
    let missing = socket::listen(Path::new("/nowhere/at/all")).unwrap_err();
    assert!(matches!(missing, ListenError::Os { .. }), "{missing}");
}
