//! A guest is killed, a port and then its guest is killed, a frontend does not give its mapping up.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;

use rustix::process::{Pid, Signal, kill_process};

use crate::attached::flush_until_it_fails;
use crate::guest::{Asked, Guest};
use crate::server::Server;

const FILE: [&str; 6] = ["--control", "a.ctl", "--file", "data", "--create", "4MiB"];
const SOCKET: &str = "DAXLAB_TEST_SOCKET";

/// A guest in a process of its own, killed at the end.
struct Elsewhere(Child);

impl Elsewhere {
    fn start(server: &Server) -> Elsewhere {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "ends::a_guest_elsewhere", "--ignored", "--nocapture"]);
        command.env(SOCKET, server.socket("a")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("is attached")), "the guest does not attach");
        Elsewhere(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // It may have been already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "the other process of tests here"]
fn a_guest_elsewhere() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let mut guest = Guest::connect(socket.as_ref());
    guest.realise(crate::guest::willing());
    guest.start();
    guest.was_asked();
    println!("is attached");
    let _until_killed = std::io::stdin().read(&mut [0]);
}

#[test]
fn a_killed_guest_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["a"], &FILE);
    let guest = Elsewhere::start(&server);
    server.json(&["rdma-reg", "data"]);
    assert_eq!(server.json(&["pins"]).as_array().unwrap().len(), 2);
    guest.kill();
    server.says("is gone");
    assert_eq!(server.json(&["pins"]).as_array().unwrap().len(), 0);
    assert_eq!(server.json(&["leases"]).as_array().unwrap().len(), 0);
    let (_, out, err) = server.ctl(&["rdma-read", "1", "0", "16B"]);
    assert!(format!("{out}{err}").contains("there is no region 1; there are none"), "{out}{err}");
    assert_eq!(server.ctl(&["truncate", "data", "0"]).0, 0);
}

#[test]
fn a_dead_ports_guest_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["a"], &[&FILE[..], &["--design", "revoke"]].concat());
    let guest = Elsewhere::start(&server);
    server.port(0).kill();
    server.says("pins stay until");
    // The frontend is gone: the port cannot ask it to unmap.
    let asker = server.ctl_command(&["truncate", "data", "0"]).stdout(Stdio::null()).spawn();
    server.until(&["blockers", "data"], |found| (!found["blocked"].is_null()).then_some(()));
    assert_eq!(server.json(&["guests"])[0]["state"], "port-lost");
    guest.kill();
    server.says("is gone");
    assert_eq!(asker.unwrap().wait().unwrap().code(), Some(0));
    assert_eq!(server.json(&["guests"])[0]["state"], "ended");
}

#[test]
fn a_revoke_from_a_dead_ports_guest_ends_with_that_guest() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["a"], &FILE);
    let guest = Elsewhere::start(&server);
    server.port(0).kill();
    server.says("pins stay until");
    let mut asker = server.ctl_command(&["revoke", "data"]).stdout(Stdio::null()).spawn().unwrap();
    server.until(&["guests"], |guests| guests[0]["asked_to_unmap"].is_object().then_some(()));
    assert!(asker.try_wait().unwrap().is_none(), "it has it mapped");
    guest.kill();
    assert_eq!(asker.wait().unwrap().code(), Some(0));
}

#[test]
fn nothing_is_freed_before_the_frontend_has_let_go() {
    for design in ["revoke", "odp"] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path(), &["a"], &[&FILE[..], &["--design", design]].concat());
        let mut guest = Guest::connect(&server.socket("a"));
        let (release, wait) = channel::<()>();
        guest.realise(Box::new(move |asked| match asked {
            Asked::Map(..) => Ok(()),
            Asked::Unmap(..) => wait.recv().map_err(|_| libc::EIO),
        }));
        guest.start();
        guest.was_asked();
        let mut asker = server.ctl_command(&["truncate", "data", "0"]).stdout(Stdio::null()).spawn().unwrap();
        server.until(&["blockers", "data"], |found| (!found["blocked"].is_null()).then_some(()));
        // What was asked before the demand reached the port was durable.
        flush_until_it_fails(&mut guest);
        assert_eq!(server.json(&["stale"])["guests"][0]["stale_guest_exposed_bytes"], 0, "{design}");
        assert!(asker.try_wait().unwrap().is_none(), "{design}: still mapped");
        release.send(()).unwrap();
        assert_eq!(asker.wait().unwrap().code(), Some(0), "{design}");
        assert!(matches!(guest.was_asked(), Asked::Unmap(..)));
    }
}

#[test]
fn a_frontend_that_never_lets_go_is_waited_for_until_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["a"], &[&FILE[..], &["--design", "revoke"]].concat());
    let mut guest = Guest::connect(&server.socket("a"));
    let (stop, stopped) = channel::<()>();
    guest.realise(Box::new(move |asked| match asked {
        Asked::Map(..) => Ok(()),
        Asked::Unmap(..) => {
            // Until the test ends it.
            let _ = stopped.recv();
            Err(libc::EIO)
        }
    }));
    guest.start();
    guest.was_asked();
    let asker = server.ctl_command(&["truncate", "data", "0"]).stdout(Stdio::null()).spawn();
    server.until(&["blockers", "data"], |found| (!found["blocked"].is_null()).then_some(()));
    // The socket's end is the mapping's end: QEMU's memory goes before its sockets.
    guest.socket().shutdown(std::net::Shutdown::Both).unwrap();
    server.says("is gone");
    assert_eq!(asker.unwrap().wait().unwrap().code(), Some(0));
    drop(stop);
}

/// Such as a QEMU in a debugger, or under Ctrl-Z.
#[test]
fn a_stopped_qemu_that_holds_up_a_revoke_is_named_with_what_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["a"], &[&FILE[..], &["--design", "revoke"]].concat());
    let guest = Elsewhere::start(&server);
    let pid = Pid::from_child(&guest.0);
    assert!(server.json(&["blockers", "data"])["guests_asked_to_unmap"].is_null());
    kill_process(pid, Signal::STOP).unwrap();
    let asker = server.ctl_command(&["truncate", "data", "2MiB"]).stdout(Stdio::piped()).spawn().unwrap();
    let asked = server.until(&["blockers", "data"], |found| {
        let asked = &found["guests_asked_to_unmap"][0];
        (asked["stopped"] == true).then(|| asked.clone())
    });
    assert_eq!(asked["qemu"], pid.as_raw_pid());
    let remedy = format!("that process is stopped: `kill -CONT {}` has it answer", pid.as_raw_pid());
    for question in [&["blockers", "data"][..], &["guests"]] {
        let shown = server.ctl(question).1;
        assert!(shown.contains("was asked to unmap ") && shown.contains(&remedy), "{shown}");
    }
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(asker.wait_with_output().unwrap().status.code(), Some(0));
    assert!(server.json(&["guests"])[0]["asked_to_unmap"].is_null());
}
