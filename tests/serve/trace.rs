//! `serve --trace` and `--strict`, and what `ctl guests` says of a machine that can't start its
//! device.

use std::fs;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use crate::attached::{FILE, serve_file};
use crate::common::daxlab;
use crate::guest::{ALL, FRONTEND, Guest, RAM, memfd, region, willing};
use crate::server::{Server, outcome};

#[test]
fn messages_of_every_socket_are_lines_of_one_file() {
    let (dir, server) = serve_file(&["a", "b"], &["--trace", "trace"]);
    for name in ["a", "b"] {
        let mut guest = server.guest(name);
        assert_eq!(guest.flush(), 0);
    }
    server.says("b: QEMU process");
    server.says("is gone");
    let trace = fs::read_to_string(dir.path().join("trace")).unwrap();
    // Socket, time, connection, direction, and the rest.
    let of = |socket: &str| -> Vec<String> {
        let lines = trace.lines().filter_map(|line| line.split_once(' ').filter(|(name, _)| *name == socket));
        lines.map(|(_, line)| line.split_once(' ').unwrap().1.to_owned()).collect()
    };
    for socket in ["a", "b"] {
        let lines = of(socket);
        let has = |line: &str| lines.iter().any(|found| found == line);
        assert!(has("1 -> SET_MEM_TABLE flags 0x9 size 40 files 1: forwarded"), "{trace}");
        assert!(lines.iter().any(|line| line.starts_with("1 <- SHMEM_MAP shm_offset 0x0 fd_offset ")), "{trace}");
        assert!(has("1 -> SHMEM_MAP: 0"), "{trace}");
    }
    assert_eq!(trace.lines().count(), of("a").len() + of("b").len(), "every line has its socket: {trace}");
}

#[test]
fn violations_are_said_and_counted() {
    let (dir, server) = serve_file(&["a"], &["--strict"]);
    let guest = Guest::connect(&server.socket("a"));
    guest.frontend.get_features().unwrap();
    guest.frontend.set_features(ALL).unwrap();
    let violates = "a: the frontend violates the specification: SET_FEATURES";
    server.says(&format!("{violates} asks for a reply, and REPLY_ACK was not negotiated"));
    server.says(&format!("{violates} before SET_OWNER"));
    assert_eq!(server.json(&["flush-stats"])[0]["counters"]["violations"], 2);
    guest.frontend.set_features(1 << 60).unwrap();
    server.says("takes features 0x1000000000000000 that were not offered");
    assert!(!dir.path().join("trace").exists());
}

/// The code and stderr of a server that does not start.
fn refused(dir: &Path, args: &[&str]) -> (i32, String) {
    let (code, out, err) =
        outcome(&daxlab().args(["serve", "--socket", "z"]).args(args).current_dir(dir).output().unwrap());
    assert!(out.is_empty() && !dir.join("z").exists(), "{out}{err}");
    (code, err)
}

const OLD: &str = "a 0.001204 1 -> SET_MEM_TABLE flags 0x9 size 40 files 1: forwarded\n";

#[test]
fn a_trace_that_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let file = ["--control", "z.ctl", "--file", "data", "--create", "4MiB"];
    let (code, err) = refused(dir, &[&file[..], &["--trace", "no/such"]].concat());
    assert!(code == 2 && err.contains("--trace no/such: its folder no is missing"), "{code}: {err}");
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0, "nothing is left behind");
    mknodat(CWD, dir.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    for (path, words) in [("fifo", "a FIFO that no process reads"), (".", "a directory"), ("z", "a socket")] {
        let (code, err) = refused(dir, &[&file[..], &["--trace", path]].concat());
        assert!(code == 2 && err.contains(&format!("--trace {path}: {words}")), "{path}: {code}: {err}");
    }
}

#[test]
fn a_file_that_is_no_trace_is_never_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let kept = vec![7; 4 << 20];
    for name in ["img", "served", "host"] {
        fs::write(dir.join(name), &kept).unwrap();
    }
    fs::write(dir.join("notes"), "mine\n").unwrap();
    fs::hard_link(dir.join("img"), dir.join("same")).unwrap();
    let image = |image: &'static str, trace: &'static str| ["--image", image, "--trace", trace];
    let _server = Server::start(dir, &["a"], &["--image", "served"]);
    let import = ["--file", "data", "--import", "host", "--trace", "host"];
    for (args, words) in [
        (&image("img", "img")[..], "--trace img: this is the file of --image"),
        (&image("img", "same"), "--trace same: this is the file of --image"),
        (&image("img", "served"), "--trace served: in use (its lock is held)"),
        (&import, "--trace host: this is the file of --import"),
        (&image("img", "notes"), "--trace notes: it holds something else than an older trace"),
        (&["--image", "new", "--size", "4MiB", "--trace", "new"], "--trace new: this is the file of --image"),
    ] {
        let (code, err) = refused(dir, args);
        assert!(code == 2 && err.contains(words), "{args:?}: {code}: {err}");
    }
    assert!(["img", "served", "host"].iter().all(|name| fs::read(dir.join(name)).unwrap() == kept));
    assert_eq!(fs::read(dir.join("notes")).unwrap(), b"mine\n");
    assert!(!dir.join("new").exists());
}

#[test]
fn an_older_trace_is_replaced_once_the_server_has_started_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    let path = || fs::read_to_string(&path).unwrap();
    fs::write(dir.path().join("trace"), OLD).unwrap();
    // It fails after everything else was found good.
    let (code, err) = refused(dir.path(), &["--image", "none/img", "--size", "4MiB", "--trace", "trace"]);
    assert!(code != 0 && path() == OLD, "{err}");
    let (_, err) = refused(dir.path(), &["--image", "none/img", "--size", "4MiB", "--trace", "new"]);
    assert!(!dir.path().join("new").exists(), "{err}");
    let server = Server::start(dir.path(), &["a"], &[&FILE[..], &["--trace", "trace"]].concat());
    let guest = server.guest("a");
    guest.hang_up();
    server.says("is gone");
    let live = path();
    assert!(!live.contains(OLD) && live.contains(" connected\n"), "{live}");
    let (code, err) = refused(dir.path(), &["--image", "img", "--size", "4MiB", "--trace", "trace"]);
    assert!(code == 2 && err.contains("another server writes its trace there"), "{code}: {err}");
    assert_eq!(path(), live);
    assert!(!dir.path().join("img").exists());
}

#[test]
fn a_trace_may_go_to_the_servers_own_stderr() {
    let (_dir, server) = serve_file(&["a"], &["--trace", "/dev/stderr"]);
    let _guest = server.guest("a");
    server.says("-> SET_MEM_TABLE");
}

/// QEMU that can't start the device: it has told of the features that its guest took, and tells of
/// no memory.
#[test]
fn a_device_that_was_not_started_is_named() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let mut guest = server.guest("a");
    assert_eq!(guest.flush(), 0);
    let (code, out, _) = server.ctl(&["guests"]);
    assert!(code == 0 && !out.contains("could not start"), "{out}");
    guest.frontend.set_features(ALL).unwrap();
    let words = server.until(&["guests"], |guests| Some(guests[0]["not_started"].as_str()?.to_owned()));
    assert!(words.starts_with("QEMU could not start the device") && words.contains("until a reset"), "{words}");
    assert!(server.ctl(&["guests"]).1.contains(&words[..40]));
    let told = server.says("could not start");
    assert!(told.starts_with("a: QEMU could not start the device") && told.contains("until a reset"), "{told}");
    guest.start();
    assert!(server.json(&["guests"])[0].get("not_started").is_none());
}

#[test]
fn a_machine_with_more_regions_than_its_table_has_is_named() {
    let (_dir, server) = serve_file(&["a"], &["--extents", "4"]);
    let mut guest = Guest::connect(&server.socket("a"));
    guest.realise(willing());
    guest.start();
    guest.flush();
    assert!(server.json(&["guests"])[0].get("too_many_regions").is_none());
    // Memory of two files of 4 regions each: the second is taken for other devices.
    let other = memfd(4 * RAM);
    let ram = |at: u64| region(at * RAM, RAM / 4, FRONTEND + at * RAM, (at % 4) * 4096, &guest.ram);
    let piece = |at: u64| region((8 + at) * RAM, RAM, FRONTEND + (8 + at) * RAM, at * RAM, &other);
    let table: Vec<VhostUserMemoryRegionInfo> = (0..2).map(ram).chain((0..3).map(piece)).collect();
    guest.frontend.set_mem_table(&table).unwrap();
    let words = server.until(&["guests"], |guests| Some(guests[0]["too_many_regions"].as_str()?.to_owned()));
    assert!(words.contains("2 regions of memory and 7 pieces, more than 8 together"), "{words}");
}

#[test]
fn guests_are_told_of_though_a_port_is_stopped() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let mut guest = server.guest("a");
    assert_eq!(guest.flush(), 0);
    let pid = server.json(&["guests"])[0]["port"].to_string();
    let port = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(port, rustix::process::Signal::STOP).unwrap();
    let (code, out, err) = server.ctl(&["guests"]);
    let words = format!("its port (process {pid}) does not answer");
    assert!(code == 0 && out.contains(&words) && out.contains("kill -CONT"), "{code}: {out}{err}");
    assert!(server.json(&["guests"])[0]["port_silent"].as_str().unwrap().starts_with(&words));
    rustix::process::kill_process(port, rustix::process::Signal::CONT).unwrap();
    server.until(&["guests"], |guests| guests[0].get("port_silent").is_none().then_some(()));
    assert_eq!(guest.flush(), 0);
}
