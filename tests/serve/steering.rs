//! `daxlab ctl` steers a server: it makes flushes fail, names and revokes guests, registers and
//! uses memory regions of the NIC; and a port process dies.

use std::os::unix::fs::FileExt;

use serde_json::Value;

use crate::attached::serve_file;
use crate::guest::{Asked, Guest};
use crate::server::{MIB, Server};

#[test]
fn flushes_fail_as_long_as_they_are_told_to() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let mut guest = server.guest("a");
    assert_eq!(guest.flush(), 0);
    assert_eq!(server.ctl(&["fail-flush", "on"]).0, 0);
    assert_eq!((guest.flush(), guest.flush()), (1, 1));
    assert_eq!(server.ctl(&["fail-flush", "off"]).0, 0);
    assert_eq!(guest.flush(), 0);
    let counters = &server.json(&["flush-stats"])[0]["counters"];
    assert_eq!((&counters["requests"], &counters["failed"]), (&4.into(), &2.into()), "{counters}");
}

#[test]
fn a_guest_that_says_nothing_is_named_and_can_be_sent_away() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let silent = Guest::connect(&server.socket("a"));
    server.says("is attached");
    let guest = &server.json(&["guests"])[0];
    assert_eq!((&guest["state"], &guest["qemu"]), (&"connected".into(), &std::process::id().into()), "{guest}");
    assert_eq!(server.ctl(&["truncate", "data", "0"]).0, 1, "it has lease and pins");
    assert_eq!(server.ctl(&["revoke", "data"]).0, 0);
    assert_eq!(server.json(&["leases"]).as_array().unwrap().len(), 0);
    assert_eq!(server.ctl(&["truncate", "data", "0"]).0, 0);
    assert_eq!(server.json(&["guests"])[0]["state"], "revoked");
    let (code, _, err) = server.ctl(&["rdma-reg", "data"]);
    assert!(code == 2 && err.contains("no guest has `data`"), "{code}: {err}");
    // The next one finds no device there.
    silent.hang_up();
    server.says("is gone");
    let _turned_away = Guest::connect(&server.socket("a"));
    assert!(server.says("turned away").contains("0 bytes"));
}

/// QEMU's own devices need no socket.
#[test]
fn without_a_guest_at_a_socket_an_answer_says_whom_it_does_not_reach() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let beside = "a guest that has this memory by a device of QEMU's own is not seen here, and not affected\n";
    let requests: [&[&str]; 4] = [&["guests"], &["revoke"], &["fail-flush", "on"], &["flush-delay", "1ms"]];
    for request in requests {
        let (code, out, _) = server.ctl(request);
        assert!(code == 0 && out.ends_with(beside), "{request:?}: {out}");
    }
    let _guest = server.guest("a");
    for request in requests {
        assert!(!server.ctl(request).1.contains(beside), "{request:?}");
    }
}

#[test]
fn two_guests_have_one_file_or_each_its_own() {
    let (_dir, server) = serve_file(&["a", "b"], &[]);
    let (mut one, mut other) = (server.guest("a"), server.guest("b"));
    assert_eq!((one.flush(), other.flush()), (0, 0));
    assert_eq!(server.json(&["pins", "data"]).as_array().unwrap().len(), 2);
    one.file.lock().as_ref().unwrap().write_all_at(b"seen", 77).unwrap();
    let guests = server.json(&["guests"]);
    assert_eq!((&guests[0]["state"], &guests[1]["state"]), (&"mapped".into(), &"mapped".into()), "{guests}");
    one.hang_up();
    server.says("is gone");
    assert_eq!(server.json(&["pins", "data"]).as_array().unwrap().len(), 1);
    assert_eq!(other.flush(), 0);

    let (_dir, server) = serve_file(&["a", "b"], &["--file", "more", "--design", "revoke"]);
    let (mut one, mut other) = (server.guest("a"), server.guest("b"));
    assert_eq!(server.ctl(&["truncate", "more", "0"]).0, 0);
    assert_eq!((one.flush(), other.flush()), (0, 1), "one was revoked");
}

#[test]
fn what_the_nic_writes_the_guest_reads_and_the_reverse() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let (guest, Asked::Map(0, device, 4_194_304)) = server.attach("a") else { panic!("one piece") };
    let region = server.json(&["rdma-reg", "data"])["mr"].to_string();
    assert_eq!(server.ctl(&["rdma-write", &region, "1MiB", "by the NIC"]).0, 0);
    let file = guest.file.lock().as_ref().unwrap().try_clone().unwrap();
    let mut found = [0; 10];
    file.read_exact_at(&mut found, device + MIB).unwrap();
    assert_eq!(&found, b"by the NIC");
    file.write_all_at(b"by the guest", device + 2 * MIB).unwrap();
    let read = server.json(&["rdma-read", &region, "2MiB", "12B"]);
    assert_eq!(read["text"], "by the guest", "{read}");
    // Beyond the region.
    let (code, out, _) = server.ctl(&["rdma-read", &region, "4MiB", "1B"]);
    assert!(code == 1 && out.contains("remote access error"), "{out}");
    // Both stand against a change, and both are named.
    let blockers = server.json(&["blockers", "data"]);
    let kinds: Vec<&str> =
        blockers["stranger"].as_array().unwrap().iter().filter_map(|found| found["kind"].as_str()).collect();
    assert!(
        kinds.iter().any(|kind| kind.contains("guest")) && kinds.iter().any(|kind| kind.contains("RDMA")),
        "{blockers}"
    );
    assert_eq!(server.json(&["pins"]).as_array().unwrap().len(), 2);
    assert_eq!(server.ctl(&["rdma-dereg", &region]).0, 0);
    assert_eq!(server.json(&["pins"]).as_array().unwrap().len(), 1);
    assert_eq!(server.ctl(&["rdma-write", &region, "0", "x"]).0, 2);
    // What is still registered goes with the guest.
    server.json(&["rdma-reg", "data"]);
    guest.hang_up();
    server.says("is gone");
    assert_eq!(server.json(&["pins"]).as_array().unwrap().len(), 0);
}

#[test]
fn a_poisoned_block_fails_the_nic_and_not_the_guest() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let mut guest = server.guest("a");
    let region = server.json(&["rdma-reg", "data"])["mr"].to_string();
    let poisoned = server.json(&["poison", "data", "8KiB", "1B"]);
    assert_eq!((&poisoned["blocks"], &poisoned["guest_told"]), (&1.into(), &false.into()), "{poisoned}");
    assert_eq!(server.ctl(&["rdma-read", &region, "8KiB", "1B"]).0, 1);
    assert_eq!(server.ctl(&["rdma-read", &region, "4KiB", "1B"]).0, 0);
    assert_eq!(guest.flush(), 0);
}

#[test]
fn what_a_dead_ports_guest_has_mapped_stays_pinned() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let guest = server.guest("a");
    server.port(0).kill();
    server.says("pins stay until");
    // Its process, which is this one, lives: it may have it mapped.
    assert_eq!(server.json(&["guests"])[0]["state"], "port-lost");
    assert_eq!(server.json(&["pins"]).as_array().unwrap().len(), 1);
    assert_eq!(server.ctl(&["truncate", "data", "0"]).0, 1);
    drop(guest);
    assert_eq!(server.json(&["pins"]).as_array().unwrap().len(), 1, "a socket's end says nothing any more");
}

#[test]
fn fragments_become_one_device() {
    let (_dir, server) = serve_file(&["a"], &["--extents", "128"]);
    let mut guest = server.boot("a");
    let pieces: Vec<Asked> = (0..128).map(|_| guest.was_asked()).collect();
    let mut at = 0;
    for piece in pieces {
        let Asked::Map(offset, _, len) = piece else { panic!("{piece:?}") };
        assert_eq!(offset, at);
        at += len;
    }
    assert_eq!((at, guest.flush()), (4 * MIB, 0));
}

#[test]
fn a_file_keeps_lease_and_pins_over_a_power_cut() {
    let (_dir, server) = serve_file(&["a"], &["--power-cut-model", "--seed", "3"]);
    let (mut guest, Asked::Map(0, device, _)) = server.attach("a") else { panic!("one piece") };
    let file = guest.file.lock().as_ref().unwrap().try_clone().unwrap();
    file.write_all_at(&[1; 4096], device + MIB).unwrap();
    assert_eq!(guest.flush(), 0);
    file.write_all_at(&[2; 4096], device + MIB).unwrap();
    let cut = server.json(&["power-cut"]);
    assert_eq!((&cut["seed"], &cut["lines_unflushed"], &cut["guests"]), (&3.into(), &64.into(), &1.into()), "{cut}");
    guest.was_asked();
    assert_eq!(server.json(&["pins", "data"]).as_array().unwrap().len(), 1);
    guest.reset();
    guest.start();
    assert_eq!(guest.was_asked(), Asked::Map(0, device, 4 * MIB));
    assert_eq!(guest.flush(), 0);
    assert_eq!(server.ctl(&["truncate", "data", "0"]).0, 1, "as before");
    let counters = &server.json(&["flush-stats"])[0]["counters"];
    assert!(counters["model_bytes_compared"].as_u64().unwrap() >= 4096, "{counters}");
    // Everything was flushed: nothing is lost.
    assert_eq!(server.json(&["power-cut", "--seed", "4"])["lines_unflushed"], 0);
}

#[test]
fn an_imported_file_is_the_guests_device() {
    let dir = tempfile::tempdir().unwrap();
    let host = std::fs::File::create(dir.path().join("host")).unwrap();
    host.set_len(6 * MIB).unwrap();
    host.write_all_at(b"first", 0).unwrap();
    host.write_all_at(&[7; 5000], 3 * MIB - 100).unwrap();
    host.write_all_at(b"last", 6 * MIB - 4).unwrap();
    let args = ["--control", "a.ctl", "--file", "data", "--import", "host", "--extents", "3"];
    let server = Server::start(dir.path(), &["a"], &args);
    let guest = server.boot("a");
    let mut device = Vec::new();
    for _ in 0..3 {
        let Asked::Map(at, offset, len) = guest.was_asked() else { panic!("a map") };
        assert_eq!(at, device.len() as u64);
        let from = device.len();
        device.resize(from + len as usize, 0);
        guest.file.lock().as_ref().unwrap().read_exact_at(&mut device[from..], offset).unwrap();
    }
    assert!(device == std::fs::read(dir.path().join("host")).unwrap(), "byte for byte");
}

#[test]
fn a_large_file_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--control", "a.ctl", "--file", "data", "--create", "32GiB", "--volume", "32GiB"];
    let server = Server::start(dir.path(), &["a"], &args);
    let mut guest = server.guest("a");
    assert_eq!(guest.flush(), 0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid().as_raw_pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let resident: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(resident < 64 << 10, "{resident} kB");
}

#[test]
fn of_two_guests_under_chinners_rules_the_second_finds_the_file_taken() {
    let (_dir, server) = serve_file(&["a", "b"], &["--design", "chinner-2019"]);
    let _first = server.guest("a");
    let second = Guest::connect(&server.socket("b"));
    assert!(server.says("turned away").contains("ETXTBSY"));
    second.hang_up();
}

#[test]
fn every_counter_is_described() {
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/attach-qemu.md")).unwrap();
    let (_dir, server) = serve_file(&["a"], &[]);
    for name in server.json(&["flush-stats"])[0]["counters"].as_object().unwrap().keys() {
        assert!(docs.contains(&format!("`{name}`")), "docs/attach-qemu.md says nothing of `{name}`");
    }
}

#[test]
fn blockers_are_named_where_they_are_the_cause() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let _guest = server.guest("a");
    let (code, out, _) = server.ctl(&["punch", "data", "0", "4KiB"]);
    assert!(code == 1 && out.contains("ETXTBSY\ninode 1\n"), "{out}");
    let (code, out, _) = server.ctl(&["fallocate", "data", "0", "4GiB"]);
    assert_eq!((code, out.as_str()), (1, "fallocate data, 4 GiB from 0 B on: ENOSPC\n"));
}

/// For people; programs get numbers.
#[test]
fn answers_have_units_and_name_pins_by_number() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let guest = server.guest("a");
    let (code, out, _) = server.ctl(&["truncate", "data", "2MiB"]);
    assert!(code == 1 && out.starts_with("truncate data to 2 MiB: ETXTBSY\n"), "{out}");
    assert!(out.contains("a stranger's change of blocks 512.. (from 2 MiB on) meets"), "{out}");
    assert!(out.contains(", pin number 2, all blocks: refuses"), "{out}");
    assert!(out.contains(", pin number 2 of process 3, blocks 0..1024 (4 MiB): refuses"), "{out}");
    let shown = |args: &[&str]| server.ctl(args).1;
    assert!(shown(&["blockers", "data"]).contains(", pin number 2, "));
    assert!(shown(&["leases"]).ends_with("of process 3, all blocks, 1 pin under it\n"), "{}", shown(&["leases"]));
    let pins = shown(&["pins"]);
    assert!(pins.ends_with(", pin number 2 of process 3, blocks 0..1024 (4 MiB), held by process 3\n"), "{pins}");
    let stale = shown(&["stale"]);
    assert!(stale.contains("stale_guest_exposed_bytes 0 B, orphaned bytes 0 B"), "{stale}");
    let region = shown(&["rdma-reg", "data"]);
    assert!(region.starts_with("region 1: data, 4 MiB, rkey "), "{region}");
    let asked = server.ctl(&["truncate", "data", "2MiB", "--json"]).1;
    let asked: Value = serde_json::from_str(&asked).unwrap();
    assert_eq!(asked["call"], "truncate data to 2097152");
    assert_eq!(server.json(&["pins"])[0]["range"]["end"], 1024);
    guest.hang_up();
}

#[test]
fn flushes_fail_by_number() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let mut guest = server.guest("a");
    let mut flushes = |count: usize| (0..count).map(|_| guest.flush()).collect::<Vec<_>>();
    let (code, out, _) = server.ctl(&["fail-flush", "nth=3"]);
    assert_eq!((code, out.as_str()), (0, "a: flush number 3 from now on fails, and no other\n"));
    assert_eq!(flushes(7), [0, 0, 1, 0, 0, 0, 0]);
    let (code, out, _) = server.ctl(&["fail-flush", "every=2"]);
    assert_eq!((code, out.as_str()), (0, "a: of every 2 flushes from now on the last one fails\n"));
    assert_eq!(flushes(5), [0, 1, 0, 1, 0]);
    server.json(&["fail-flush", "off"]);
    assert_eq!(flushes(3), [0, 0, 0]);
    for wrong in ["nth=0", "nth=", "every=x", "sometimes", "nth=99999999999999999999"] {
        let (code, _, err) = server.ctl(&["fail-flush", wrong]);
        assert!(code == 2 && err.contains("write `on`, `off`, `nth=3` or `every=3`"), "{wrong}: {code}: {err}");
    }
}

/// The delay is longer than anything that a test waits for: only its end by another request, or by
/// the server's, is seen.
#[test]
fn a_flush_is_held_up_until_its_delay_ends() {
    let (_dir, mut server) = serve_file(&["a"], &[]);
    let mut guest = server.guest("a");
    let held_up = |server: &Server, count: u64| {
        server.until(&["flush-stats"], |stats| (stats[0]["counters"]["delayed"] == count).then_some(()));
    };
    let (code, out, _) = server.ctl(&["flush-delay", "60s"]);
    assert_eq!((code, out.as_str()), (0, "a: each flush is held up for 1m\n"));
    guest.request(0, 0);
    guest.kick();
    held_up(&server, 1);
    assert_eq!(guest.used_index(), 0, "not answered");
    let (code, out, _) = server.ctl(&["flush-delay", "off"]);
    assert_eq!((code, out.as_str()), (0, "a: flushes are not held up\n"));
    assert_eq!((guest.answer(), guest.ret(0)), ((0, 4), 0));
    assert_eq!(guest.flush(), 0);
    // A short one ends by itself.
    server.json(&["flush-delay", "1ms"]);
    assert_eq!(guest.flush(), 0);
    held_up(&server, 2);
    let (code, _, err) = server.ctl(&["flush-delay", "61s"]);
    assert!(code == 2 && err.contains("at most 1m"), "{code}: {err}");
    let (code, _, err) = server.ctl(&["flush-delay", "5"]);
    assert!(code == 2 && err.contains("no unit"), "{code}: {err}");
    // What is taken meanwhile is not reported as durable, and neither is what the server no longer
    // sees to.
    server.json(&["flush-delay", "60s"]);
    guest.request(0, 0);
    guest.kick();
    held_up(&server, 3);
    server.terminate();
    assert_eq!((guest.answer(), guest.ret(0)), ((0, 4), 1));
}
