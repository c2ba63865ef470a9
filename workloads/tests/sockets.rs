//! Who may listen at a path.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

use std::fs;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use emulator::sync::atomic::{AtomicU32, Ordering};
use emulator::sync::thread;
use rustix::net;

use workloads::messages::peers::AllowedPeers;
use workloads::messages::socket::{self, ListenError, Name, PATH_MAX};

fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    socket::listen(path, &AllowedPeers::with(&[]))
}

#[test]
fn a_free_path_is_listened_at_and_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one");
    let listener = listen(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    Name::of(&listener).unwrap().remove();
    assert!(!path.exists());
}

#[test]
fn a_path_that_is_anothers_by_now_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one");
    let first = listen(&path).unwrap();
    let name = Name::of(&first).unwrap();
    fs::remove_file(&path).unwrap();
    let _second = listen(&path).unwrap();
    name.remove();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn what_was_left_behind_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _listener = listen(&path).unwrap();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_living_listener_keeps_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one");
    let first = UnixListener::bind(&path).unwrap();
    let error = listen(&path).unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    first.set_nonblocking(true).unwrap();
    let none = first.accept().unwrap_err();
    assert_eq!(none.kind(), std::io::ErrorKind::WouldBlock, "the look took no connection");
    UnixStream::connect(&path).unwrap();
    first.accept().unwrap();
}

/// One that is bound and about to listen refuses connections, as one whose listener is gone does.
#[test]
fn a_socket_that_does_not_listen_yet_keeps_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one");
    let socket = net::socket(net::AddressFamily::UNIX, net::SocketType::STREAM, None).unwrap();
    net::bind(&socket, &net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    let error = listen(&path).unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    net::listen(&socket, 1).unwrap();
    UnixStream::connect(&path).unwrap();
    let other = folder.path().join("datagrams");
    let _datagrams = UnixDatagram::bind(&other).unwrap();
    let error = listen(&other).unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
}

/// Each finds a socket that was left behind, and would remove it.
#[test]
fn of_many_that_replace_one_socket_one_listens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one");
    for _ in 0..200 {
        drop(UnixListener::bind(&path).unwrap());
        let arrived = AtomicU32::new(0);
        let all: Vec<Result<UnixListener, ListenError>> = thread::scope(|scope| {
            let race = || {
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < 4 {
                    thread::yield_now();
                }
                listen(&path)
            };
            let racers: Vec<_> = (0..4).map(|_| scope.spawn(race)).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1, "{lost:?}");
        assert!(lost.iter().all(|lost| matches!(lost, Err(ListenError::InUse { .. }))), "{lost:?}");
        let _asker = UnixStream::connect(&path).unwrap();
        let winner = won.into_iter().next().unwrap().unwrap();
        winner.set_nonblocking(true).unwrap();
        winner.accept().unwrap();
        assert!(winner.accept().is_err(), "nothing but the one connection");
        Name::of(&winner).unwrap().remove();
    }
}

#[test]
fn what_is_no_socket_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (file, inner, link) = (folder.path().join("file"), folder.path().join("folder"), folder.path().join("link"));
    fs::write(&file, "precious").unwrap();
    fs::create_dir(&inner).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for path in [&file, &inner, &link] {
        let error = listen(path).unwrap_err();
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
    let _fits = listen(&folder.path().join("x".repeat(room))).unwrap();
    let error = listen(&folder.path().join("x".repeat(room + 1))).unwrap_err();
    assert!(matches!(error, ListenError::TooLong { len: 108, .. }), "{error}");
    let missing = listen(Path::new("/nowhere/at/all")).unwrap_err();
    assert!(matches!(missing, ListenError::Os { .. }), "{missing}");
}
