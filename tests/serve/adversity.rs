//! What goes wrong around a server: its output is not read, its socket paths are removed, its
//! guests disconnect at any moment.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use serde_json::Value;

use crate::attached::{FILE, serve_file};
use crate::common::daxlab;
use crate::guest::{Asked, Guest, willing};
use crate::server::{MIB, Server, outcome};

#[test]
fn a_server_ends_though_its_control_socket_was_taken_away() {
    let (dir, mut server) = serve_file(&["a"], &[]);
    fs::remove_file(dir.path().join("a.ctl")).unwrap();
    // Another's is left alone.
    fs::write(dir.path().join("a.ctl"), "another's").unwrap();
    server.terminate();
    assert_eq!(fs::read(dir.path().join("a.ctl")).unwrap(), b"another's");
    assert!(!dir.path().join("a").exists());
}

#[test]
fn a_server_goes_on_though_nobody_reads_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = daxlab();
    command.arg("serve").current_dir(dir.path()).args(["--socket", "a"]).args(FILE);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("ready: ")));
    let ctl = |args: &[&str]| {
        let mut command = daxlab();
        outcome(&command.arg("ctl").arg(dir.path().join("a.ctl")).args(args).output().unwrap())
    };
    for _ in 0..2 {
        let mut guest = Guest::connect(&dir.path().join("a"));
        guest.realise(willing());
        guest.start();
        guest.was_asked();
        assert_eq!(guest.flush(), 0);
        assert_eq!(ctl(&["flush-stats"]).0, 0);
        guest.hang_up();
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// A shell, a service manager or a test may leave descriptors open in what it starts.
#[test]
fn a_guests_process_inherits_no_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "no guest's").unwrap();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "exec 9<secret; exec \"$0\" \"$@\""]).arg(daxlab().get_program());
    command.args(["serve", "--socket", "a"]).args(FILE).current_dir(dir.path());
    let server = Server::ready(&mut command, dir.path(), 1);
    let has_it = |pid: &str| {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        links.filter_map(|link| fs::read_link(link.unwrap().path()).ok()).any(|target| target == secret)
    };
    let port = server.json(&["guests"])[0]["port"].to_string();
    assert!(has_it(&server.pid().to_string()), "the server inherits it");
    assert!(!has_it(&port));
    assert_eq!(server.guest("a").flush(), 0);
}

#[test]
fn a_sockets_path_may_be_no_text() {
    let dir = tempfile::tempdir().unwrap();
    let name = OsStr::from_bytes(b"a\xff");
    let mut command = daxlab();
    command.arg("serve").arg("--socket").arg(name).args(FILE).current_dir(dir.path());
    let server = Server::ready(&mut command, dir.path(), 1);
    assert_eq!(server.json(&["guests"])[0]["socket"], "a\u{fffd}");
    assert_eq!(server.json(&["flush-stats"]).as_array().unwrap().len(), 1);
    let mut guest = Guest::connect(&dir.path().join(name));
    guest.realise(willing());
    guest.start();
    guest.was_asked();
    assert_eq!(server.json(&["stale"])["guests"].as_array().unwrap().len(), 1);
    server.json(&["fail-flush", "on"]);
    assert_eq!(guest.flush(), 1);
    assert_eq!(server.json(&["revoke"])["revoked"].as_array().unwrap().len(), 1);
}

#[test]
fn what_a_dead_port_cannot_do_has_failed() {
    let (_dir, server) = serve_file(&["a", "b"], &[]);
    server.port(0).kill();
    server.says("ended unexpectedly");
    let mut guest = server.guest("b");
    let (code, out, err) = server.ctl(&["fail-flush", "on"]);
    assert!(code == 1 && out.contains("gone"), "{code}: {out}{err}");
    assert_eq!(guest.flush(), 1, "the other one does it");
    // It is no longer counted, and that is said.
    assert!(server.json(&["flush-stats"])[0]["error"].is_string());
}

/// How many descriptors and threads a process has.
fn means(pid: &str) -> (usize, usize) {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    (count("fd"), count("task"))
}

#[test]
fn guests_that_leave_at_any_moment_leave_nothing() {
    let rounds: usize = std::env::var("DAXLAB_TEST_ROUNDS").map_or(60, |rounds| rounds.parse().unwrap());
    for design in ["man-page", "odp", "chinner-2025", "unsafe"] {
        let dir = tempfile::tempdir().unwrap();
        let args = [&FILE[..], &["--design", design, "--extents", "3"]].concat();
        let server = Server::start(dir.path(), &["a"], &args);
        let (pid, port) = (server.pid().to_string(), server.json(&["guests"])[0]["port"].to_string());
        let come_and_go = |round: usize| {
            let mut guest = Guest::connect(&server.socket("a"));
            if !round.is_multiple_of(4) {
                guest.negotiate(vhost::vhost_user::VhostUserProtocolFeatures::all());
            }
            if round % 4 > 1 {
                guest.give_channel(willing());
            }
            if round % 4 > 2 {
                guest.start();
                (0..3).for_each(|_| {
                    guest.was_asked();
                });
                guest.request(0, 0);
                guest.kick();
            }
            guest.hang_up();
        };
        (0..8).for_each(come_and_go);
        let none = |found: &Value| found.as_array().unwrap().is_empty().then_some(());
        let settle = || {
            // The next one is let in only after the last one's end.
            server.guest("a").hang_up();
            server.until(&["pins"], none);
            server.until(&["leases"], none);
            server.until(&["guests"], |guests| (guests[0]["state"] == "none").then_some(()));
        };
        settle();
        let before = (means(&pid).0, means(&port));
        (0..rounds).for_each(come_and_go);
        settle();
        // The last connections may still be closing. A leak in one round of four would exceed this.
        let spare = rounds / 8;
        let (server_fds, (port_fds, port_threads)) = (means(&pid).0, means(&port));
        let more = [(server_fds, before.0), (port_fds, before.1.0), (port_threads, before.1.1)];
        assert!(more.iter().all(|(after, before)| *after <= before + spare), "{design}: {more:?}");
        assert_eq!(server.ctl(&["truncate", "data", "0"]).0, 0, "{design}");
    }
}

/// Resident memory of a process that no file backs, in KiB (proc(5)).
fn anonymous_kib(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_thousand_guests_leave_no_descriptor_and_no_memory() {
    let (_dir, server) = serve_file(&["a"], &["--design", "man-page"]);
    let processes = [server.pid().to_string(), server.json(&["guests"])[0]["port"].to_string()];
    let attach = |times: usize| {
        for _ in 0..times {
            let mut guest = server.guest("a");
            if guest.flush() != 0 {
                // On a busy machine a device can be mapped too late, and then no flush may succeed.
                let stats = server.json(&["flush-stats"]).to_string();
                assert!(stats.contains("mapped more than 500 ms after"), "{stats}");
            }
            guest.hang_up();
        }
        // A guest is admitted when everything of the one before has ended; only connections of the
        // control socket may still be closing.
        let guest = server.guest("a");
        let lowest = |pid: &String| {
            let counts = (0..1_000).map(|_| {
                std::thread::yield_now();
                means(pid).0
            });
            (counts.min().unwrap(), anonymous_kib(pid))
        };
        let found = processes.each_ref().map(lowest);
        drop(guest);
        found
    };
    // The first ones fill caches, and have every thread's arena made.
    let before = attach(100);
    let after = attach(1_000);
    for (before, after) in before.into_iter().zip(after) {
        assert_eq!(after.0, before.0, "descriptors");
        assert!(after.1 <= before.1 + 1024, "{} KiB before, and {} KiB after", before.1, after.1);
    }
}

#[test]
fn askers_who_give_up_leave_nothing() {
    let (dir, server) = serve_file(&["a"], &["--design", "chinner-2025"]);
    let mut guest = server.guest("a");
    let pid = server.pid().to_string();
    let blocked = |found: &Value| (!found["blocked"].is_null()).then_some(());
    let free = |found: &Value| found["blocked"].is_null().then_some(());
    let give_up = || {
        let request = br#"{"command":"truncate","file":"data","size":0}"#;
        let askers: Vec<_> = (0..3)
            .map(|_| {
                let mut asker = std::os::unix::net::UnixStream::connect(dir.path().join("a.ctl")).unwrap();
                asker.write_all(&[&request[..], b"\n"].concat()).unwrap();
                asker
            })
            .collect();
        server.until(&["blockers", "data"], blocked);
        drop(askers);
        server.until(&["blockers", "data"], free);
    };
    give_up();
    let before = means(&pid).0;
    let rounds: usize = std::env::var("DAXLAB_TEST_ROUNDS").map_or(20, |rounds| rounds.parse().unwrap());
    (0..rounds).for_each(|_| give_up());
    // Three askers a round, two descriptors each: what one round in six left behind would be more.
    let after = means(&pid).0;
    assert!(after <= before + rounds, "{before} descriptors and then {after}");
    assert_eq!(guest.flush(), 0);
    // Two at once, and both get what they wait for.
    let start = |size| server.ctl_command(&["truncate", "data", size]).stdout(Stdio::piped()).spawn().unwrap();
    let askers = [start("0"), start("2MiB")];
    server.until(&["blockers", "data"], blocked);
    guest.hang_up();
    for asker in askers {
        assert_eq!(asker.wait_with_output().unwrap().status.code(), Some(0));
    }
}

#[test]
fn a_guest_may_come_while_a_change_waits() {
    for design in ["chinner-2025", "odp", "revoke"] {
        let (_dir, server) = serve_file(&["a", "b"], &["--design", design]);
        let mut first = Guest::connect(&server.socket("a"));
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        first.realise(Box::new(move |asked| match asked {
            Asked::Map(..) => Ok(()),
            Asked::Unmap(..) => {
                let _ = stopped.recv();
                Err(libc::EIO)
            }
        }));
        first.start();
        first.was_asked();
        let asker = server.ctl_command(&["truncate", "data", "2MiB"]).stdout(Stdio::piped()).spawn().unwrap();
        server.until(&["blockers", "data"], |found| (!found["blocked"].is_null()).then_some(()));
        let second = Guest::connect(&server.socket("b"));
        // Whether it waits as well or is turned away, its port goes on listening to the server.
        assert!(server.json(&["flush-stats"])[1]["counters"].is_object(), "{design}");
        assert_eq!(server.json(&["fail-flush", "off"])[1]["outcome"], "flushes work again", "{design}");
        // The change stops waiting for a port that was killed.
        server.port(1).kill();
        server.says("ended unexpectedly");
        first.socket().shutdown(std::net::Shutdown::Both).unwrap();
        drop(stop);
        assert_eq!(asker.wait_with_output().unwrap().status.code(), Some(0), "{design}");
        drop(second);
        drop(first);
        server.until(&["pins"], |found| found.as_array().unwrap().is_empty().then_some(()));
    }
}

#[test]
fn a_killed_servers_paths_can_be_had_again() {
    let (dir, mut server) = serve_file(&["a"], &[]);
    let mut guest = server.guest("a");
    let port = server.port(0);
    server.end(rustix::process::Signal::KILL);
    crate::attached::flush_until_it_fails(&mut guest);
    let again = Server::start(dir.path(), &["a"], &FILE);
    assert_eq!(again.guest("a").flush(), 0);
    assert_eq!(guest.flush(), 1);
    guest.hang_up();
    port.await_end();
    assert_eq!(again.guest("a").flush(), 0);
}

#[test]
fn a_power_cut_brings_back_nothing_of_another_file() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--control", "a.ctl", "--file", "x", "--file", "y", "--create", "2MiB", "--volume", "4MiB"];
    let args = [&args[..], &["--power-cut-model", "--design", "revoke"]].concat();
    let server = Server::start(dir.path(), &["a", "b"], &args);
    let (mut one, Asked::Map(0, device, _)) = server.attach("a") else { panic!("one piece") };
    let file = one.file.lock().as_ref().unwrap().try_clone().unwrap();
    file.write_all_at(&vec![b'x'; 2 * MIB as usize], device).unwrap();
    assert_eq!(one.flush(), 0);
    one.hang_up();
    server.says("is gone");
    assert_eq!(server.ctl(&["truncate", "x", "0"]).0, 0);
    assert_eq!(server.ctl(&["fallocate", "y", "2MiB", "1MiB"]).0, 0);
    // As much as a device has to have.
    assert_eq!(server.ctl(&["truncate", "y", "2MiB"]).0, 0);
    assert_eq!(server.ctl(&["truncate", "y", "0"]).0, 0);
    assert_eq!(server.ctl(&["truncate", "y", "4MiB"]).0, 0);
    let other = server.boot("b");
    let mut pieces = vec![other.was_asked()];
    while pieces.iter().map(|piece| if let Asked::Map(_, _, len) = piece { *len } else { 0 }).sum::<u64>() < 4 * MIB {
        pieces.push(other.was_asked());
    }
    server.json(&["power-cut"]);
    for piece in pieces {
        let Asked::Map(_, device, len) = piece else { panic!("{piece:?}") };
        let mut found = vec![0; len as usize];
        file.read_exact_at(&mut found, device).unwrap();
        assert!(found.iter().all(|byte| *byte == 0), "the blocks were x's, and their contents are not y's");
    }
}
