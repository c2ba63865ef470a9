//! Who may connect: the modes of the sockets, the users of peers, a peer whose process can't be
//! seen.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::Uid;
use tempfile::TempDir;
use workloads::ops::Op;
use workloads::serving::control::{self, ControlError};

use crate::attached::FILE;
use crate::common::daxlab;
use crate::guest::{Guest, willing};
use crate::server::Server;

/// Users that no machine needs.
const STRANGER: u32 = 61_234;
const FRIEND: u32 = 61_235;

/// A server that is started through the program `through`.
fn start_through(through: &[&str], more: &[&str]) -> (TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(through[0]);
    command.args(&through[1..]).arg(daxlab().get_program()).args(["serve", "--socket", "a"]).args(FILE).args(more);
    let server = Server::ready(command.current_dir(dir.path()), dir.path(), 1);
    (dir, server)
}

fn mode(path: PathBuf) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Whether this process may become another user; if not, why the test is left out is said.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("left out: only root can connect as another user");
    }
    root
}

/// Runs `body` as the user `uid`. Linux keeps the user for each thread, and tells a listener that
/// of the thread that connects.
fn as_user<R: Send>(uid: u32, body: impl FnOnce() -> R + Send) -> R {
    emulator::sync::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let uid = Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            body()
        });
        other.join().unwrap()
    })
}

fn ask(socket: &Path) -> String {
    let stream = UnixStream::connect(socket).unwrap();
    // A refusal comes before the question is read.
    let _sent = std::io::Write::write_all(&mut &stream, b"{\"command\":\"guests\"}\n");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

#[test]
fn a_sockets_mode_is_the_same_whatever_the_umask() {
    for umask in ["000", "022", "077", "777"] {
        let through = ["sh", "-c", &format!("umask {umask}; exec \"$0\" \"$@\"")];
        let (_dir, server) = start_through(&through, &[]);
        assert_eq!((mode(server.socket("a")), mode(server.socket("a.ctl"))), (0o600, 0o600), "{umask}");
        assert_eq!(server.guest("a").flush(), 0);
        let (_dir, server) = start_through(&through, &["--allow-uid", &STRANGER.to_string()]);
        assert_eq!((mode(server.socket("a")), mode(server.socket("a.ctl"))), (0o666, 0o666), "{umask}");
    }
}

#[test]
fn a_user_that_is_not_allowed_is_refused_at_every_socket() {
    if !is_root() {
        return;
    }
    let (dir, server) = start_through(&["env"], &[]);
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let (socket, control) = (server.socket("a"), server.socket("a.ctl"));
    let error = as_user(STRANGER, || control::ask(&control, &Op::Guests {}).unwrap_err());
    assert!(matches!(error, ControlError::NotAllowed { uid: STRANGER, .. }), "{error}");
    assert!(error.to_string().contains("--allow-uid 61234"), "{error}");
    // The file's mode is one barrier, and not the only one.
    for path in [&socket, &control] {
        fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap();
    }
    let refused = as_user(STRANGER, || ask(&control));
    let words = format!("user {STRANGER} may not connect here");
    assert!(refused.starts_with("{\"refused\"") && refused.contains(&words), "{refused}");
    let me = format!("process {}", std::process::id());
    let told = server.says("control socket: ");
    assert!(told.contains(&words) && told.contains(&me) && told.contains("--allow-uid 61234"), "{told}");
    as_user(STRANGER, || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "hung up on");
    });
    let told = server.says("was refused");
    assert!(told.starts_with("a: ") && told.contains(&words) && told.contains(&me), "{told}");
    // It has not taken the place of the guest.
    assert_eq!(server.guest("a").flush(), 0);
    assert!(ask(&control).starts_with("{\"answer\""));
}

#[test]
fn a_user_that_is_allowed_is_served_and_another_is_not() {
    if !is_root() {
        return;
    }
    let (dir, server) = start_through(&["env"], &["--allow-uid", &FRIEND.to_string()]);
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let (socket, control) = (server.socket("a"), server.socket("a.ctl"));
    let refused = as_user(STRANGER, || ask(&control));
    assert!(refused.contains("only users 0, 61235;"), "{refused}");
    as_user(FRIEND, || {
        assert!(ask(&control).starts_with("{\"answer\""));
        let mut guest = Guest::connect(&socket);
        guest.realise(willing());
        guest.start();
        guest.was_asked();
        assert_eq!(guest.flush(), 0);
    });
}

/// `SO_PEERCRED` tells the process 0 then.
#[test]
fn a_peer_of_another_pid_namespace_is_served() {
    let through = ["unshare", "--pid", "--fork", "--kill-child"];
    let may = Command::new(through[0]).args(&through[1..]).arg("true").output();
    if !may.is_ok_and(|output| output.status.success()) {
        eprintln!("left out: unshare(1) may make no PID namespace here");
        return;
    }
    let (_dir, server) = start_through(&through, &[]);
    let mut guest = server.guest("a");
    let told = server.says("is attached");
    assert!(told.contains("a: a process of another PID namespace is attached"), "{told}");
    assert_eq!(guest.flush(), 0);
    let guests = server.json(&["guests"]);
    assert!(guests[0]["state"] == "mapped" && guests[0]["qemu"].is_null(), "{guests}");
    assert_eq!(server.json(&["revoke"])["unmapped"], true);
    assert_eq!(guest.flush(), 1);
    guest.hang_up();
    server.says("is gone");
    assert_eq!(server.guest("a").flush(), 0);
}
