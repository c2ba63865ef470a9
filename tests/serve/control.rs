//! The control socket under askers that say nothing, send what is no request, or fill every place.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use crate::attached::{FILE, serve_file};
use crate::common::daxlab;
use crate::server::{Server, fail_call};

/// A limit on a wait that a broken server would make endless.
const LIMIT: Duration = Duration::from_secs(60);
/// As many as the server serves at once.
const PLACES: usize = 32;

fn connect(server: &Server) -> UnixStream {
    let stream = UnixStream::connect(server.socket("a.ctl")).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn send(server: &Server, request: &[u8]) -> UnixStream {
    let stream = connect(server);
    // A refusal may come before the whole of a long one is read.
    let _sent = (&stream).write_all(request);
    stream
}

fn answer(stream: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

#[test]
fn askers_that_say_nothing_lock_nobody_out() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let idle: Vec<UnixStream> = (0..2 * PLACES).map(|_| connect(&server)).collect();
    assert_eq!(server.json(&["guests"])[0]["state"], "none");
    let first = answer(&idle[0]);
    assert!(first.starts_with("{\"refused\"") && first.contains("no request came while 32"), "{first}");
    // The last of them still has its place.
    let last = idle.last().unwrap();
    let mut sending = last;
    sending.write_all(b"{\"command\":\"guests\"}\n").unwrap();
    let last = answer(last);
    assert!(last.starts_with("{\"answer\""), "{last}");
}

#[test]
fn changes_that_wait_in_every_place_leave_one_for_revoke() {
    let (_dir, server) = serve_file(&["a"], &["--design", "chinner-2025"]);
    let guest = server.guest("a");
    server.says("is attached");
    let truncate = b"{\"command\":\"truncate\",\"file\":\"data\",\"size\":0}\n";
    let mut waiting: Vec<UnixStream> = (0..=PLACES).map(|_| send(&server, truncate)).collect();
    // The one that has no place is answered, and only that one.
    let answered = {
        let mut fds: Vec<_> = waiting.iter().map(|stream| PollFd::new(stream, PollFlags::IN)).collect();
        let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1);
        fds.iter().position(|fd| !fd.revents().is_empty()).unwrap()
    };
    let refused = answer(&waiting.remove(answered));
    assert!(refused.contains("32 requests are being carried out") && refused.contains("`revoke`"), "{refused}");
    assert_eq!(server.json(&["guests"])[0]["state"], "mapped");
    let (code, _, err) = server.ctl(&["truncate", "data", "0"]);
    assert!(code == 2 && err.contains("one too many"), "{code}: {err}");
    assert_eq!(server.json(&["revoke", "data"])["unmapped"], true);
    for stream in &waiting {
        let done = answer(stream);
        assert!(done.starts_with("{\"answer\""), "{done}");
    }
    guest.hang_up();
}

#[test]
fn what_is_no_request_is_answered() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let long = [b'x'; 70_000];
    let refused = |request: &[u8], words: &str| {
        let stream = send(&server, request);
        let _closed = stream.shutdown(Shutdown::Write);
        let line = answer(&stream);
        assert!(line.starts_with("{\"refused\"") && line.contains(words), "{words}: {line}");
        assert!(line.contains("one line of JSON"), "{line}");
    };
    refused(b"{\"command\":\"\xff\"}\n", "no UTF-8 from byte 12 on");
    refused(b"guests\n", "not understood");
    refused(b"\n", "not understood");
    refused(b"", "not understood");
    refused(b"{\"command\":\"guests\"", "not understood");
    refused(&long, "longer than 65536 bytes");
    assert_eq!(server.json(&["guests"])[0]["state"], "none");
}

/// With its limit below what it has open, the server can't even refuse: askers wait in the queue.
#[test]
fn a_server_without_any_descriptor_says_so_once_and_serves_later() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let set = |current| {
        let limit = Rlimit { current, ..getrlimit(Resource::Nofile) };
        prlimit(Some(server.pid()), Resource::Nofile, limit).unwrap()
    };
    let before = set(Some(3));
    // accept(2) takes its descriptor before it waits: the first asker is accepted, but not served.
    let refused = answer(&connect(&server));
    assert!(refused.starts_with("{\"refused\"") && refused.contains("can't answer now"), "{refused}");
    let asker = send(&server, b"{\"command\":\"guests\"}\n");
    let told = server.says("control socket: ");
    assert!(told.contains("Too many open files") && told.contains("ulimit -n"), "{told}");
    set(before.current);
    let answered = answer(&asker);
    assert!(answered.starts_with("{\"answer\""), "{answered}");
    let told = server.says("control socket: ");
    assert!(told.contains("accepted again"), "{told}");
}

/// accept(2) may lack memory for a socket, or for its buffers, as long as the machine lacks it.
#[test]
fn a_server_without_memory_for_a_connection_says_so_and_lives_on() {
    for (errno, words) in [(libc::ENOMEM, "Cannot allocate memory"), (libc::ENOBUFS, "No buffer space available")] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = daxlab();
        // SAFETY: between fork and exec, it makes two system calls and touches nothing else.
        unsafe { command.pre_exec(move || fail_call(libc::SYS_accept4, errno)) };
        let mut server = Server::run(&mut command, dir.path(), &["a"], &FILE);
        let asker = send(&server, b"{\"command\":\"guests\"}\n");
        let told = server.says("control socket: accept: ");
        assert!(told.contains(words) && told.contains("wait until there is more"), "{told}");
        server.terminate();
        // It ends with the server, and without an answer.
        assert!(!(&asker).read(&mut [0]).is_ok_and(|read| read > 0));
    }
}
