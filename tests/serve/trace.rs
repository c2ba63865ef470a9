//! `serve --trace` and `--strict`, and what `ctl guests` says of a machine that can't start its
//! device.

use std::fs;

use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use crate::attached::{FILE, serve_file};
use crate::common::daxlab;
use crate::guest::{ALL, FRONTEND, Guest, RAM, memfd, region, willing};
use crate::server::outcome;

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

#[test]
fn a_trace_that_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let args = [&["serve", "--socket", "a"], &FILE[..], &["--trace", "no/such"]].concat();
    let (code, _, err) = outcome(&daxlab().args(args).current_dir(dir.path()).output().unwrap());
    assert!(code == 2 && err.contains("--trace no/such: No such file"), "{code}: {err}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
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
