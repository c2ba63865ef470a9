//! An image file: it keeps its content over restarts, one server at a time uses it, and it stays
//! whole when its server is killed.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::attached::flush_until_it_fails;
use crate::common::daxlab;
use crate::guest::Guest;
use crate::server::{MIB, Server, fail_call, outcome};

const ARGS: [&str; 6] = ["--control", "a.ctl", "--image", "img", "--size", "4MiB"];

/// The guest stores at byte `offset` of its device, which is one piece.
fn store(guest: &Guest, offset: u64, bytes: &[u8]) {
    guest.file.lock().as_ref().unwrap().write_all_at(bytes, offset).unwrap();
}

fn on_disk(dir: &Path, offset: usize, len: usize) -> Vec<u8> {
    fs::read(dir.join("img")).unwrap()[offset..offset + len].to_owned()
}

fn serve_again(dir: &Path) -> (i32, String, String) {
    outcome(&daxlab().arg("serve").args(["--socket", "again"]).args(ARGS).current_dir(dir).output().unwrap())
}

#[test]
fn what_was_flushed_outlives_servers_and_one_server_has_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut server = Server::start(dir, &["a"], &ARGS);
    assert_eq!(fs::metadata(dir.join("img")).unwrap().len(), 4 * MIB);
    let mut guest = server.guest("a");
    server.says("is attached");
    store(&guest, MIB, b"flushed");
    assert_eq!(guest.flush(), 0);
    assert_eq!(on_disk(dir, MIB as usize, 7), b"flushed");

    let args = ["--socket", "other", "--control", "other.ctl", "--image", "img", "--size", "4MiB"];
    let second = || outcome(&daxlab().arg("serve").args(args).current_dir(dir).output().unwrap());
    let (code, _, err) = second();
    assert!(
        code == 2 && err.contains("img") && err.contains("lock") && err.contains("server has ended"),
        "{code}: {err}"
    );
    assert!(!dir.join("other").exists() && !dir.join("other.ctl").exists());

    let port = server.port(0);
    server.terminate();
    assert!(!dir.join("a").exists() && !dir.join("a.ctl").exists(), "sockets are removed");
    server.says("1 guest is still attached");
    store(&guest, 0, b"lost or not");
    assert_eq!(guest.flush(), 1, "the port cannot vouch for durability any more");
    assert_eq!(guest.flush(), 1);
    let (code, _, err) = second();
    assert!(code == 2 && err.contains("server has ended"), "the guest may still write: {code}: {err}");
    guest.hang_up();
    port.await_end();

    let server = Server::start(dir, &["a"], &ARGS);
    let guest = server.guest("a");
    let mut found = [0; 7];
    guest.file.lock().as_ref().unwrap().read_exact_at(&mut found, MIB).unwrap();
    assert_eq!(&found, b"flushed");
}

#[test]
fn a_server_without_guests_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for _ in 0..3 {
        // Each at once after the one before: its port is gone, and the lock with it.
        Server::start(dir, &["a", "b"], &ARGS).terminate();
        let names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["img"]);
    }
    let mut server = Server::start(dir, &["a"], &ARGS);
    assert_eq!(server.end(Signal::INT).code(), Some(0));
}

#[test]
fn a_killed_servers_guest_fails_and_has_what_it_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut server = Server::start(dir, &["a"], &ARGS);
    let mut guest = server.guest("a");
    store(&guest, 3 * MIB, b"flushed");
    assert_eq!(guest.flush(), 0);
    let port = server.port(0);
    server.end(Signal::KILL);
    // A flush may reach the port before the port sees the server's end; a later flush fails.
    flush_until_it_fails(&mut guest);
    assert_eq!(guest.flush(), 1);
    assert_eq!(on_disk(dir, 3 * MIB as usize, 7), b"flushed");
    let (code, _, err) = serve_again(dir);
    assert!(code == 2 && err.contains("server has ended"), "{code}: {err}");
    guest.hang_up();
    port.await_end();
    assert!(!dir.join("a").exists(), "the port removed its socket");
    // The control socket was left behind, and is replaced.
    Server::start(dir, &["a"], &ARGS).terminate();
}

#[test]
fn an_old_port_leaves_its_successors_socket_alone() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let file = ["--control", "a.ctl", "--file", "data", "--create", "4MiB"];
    let mut first = Server::start(dir, &["a"], &file);
    let guest = first.guest("a");
    let port = first.port(0);
    first.terminate();
    let second = Server::start(dir, &["a"], &file);
    guest.hang_up();
    port.await_end();
    second.guest("a");
}

#[test]
fn an_image_that_cannot_be_written_back_fails_the_flush() {
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    let mut command = daxlab();
    // SAFETY: between fork and exec, it makes two system calls and touches nothing else.
    unsafe { command.pre_exec(|| fail_call(libc::SYS_fdatasync, libc::EIO)) };
    let server = Server::run(&mut command, dir.path(), &["a"], &ARGS);
    let mut guest = server.guest("a");
    store(&guest, 0, b"never durable");
    assert_eq!(guest.flush(), 1);
    let counters = server.json(&["flush-stats"]);
    assert_eq!(
        (&counters[0]["counters"]["failed"], &counters[0]["counters"]["flushes"]),
        (&1.into(), &1.into()),
        "{counters}"
    );
}

/// A new image's name is synced before a guest can connect: where that fails, nothing is served.
#[test]
fn the_name_of_a_new_image_is_durable() {
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    let mut command = daxlab();
    command.arg("serve").args(["--socket", "a"]).args(ARGS).current_dir(dir.path());
    // SAFETY: between fork and exec, it makes two system calls and touches nothing else.
    unsafe { command.pre_exec(|| fail_call(libc::SYS_fsync, libc::EIO)) };
    let (code, out, err) = outcome(&command.output().unwrap());
    assert!(code == 3 && err.contains("syncing the folder of image img"), "{code}: {out}{err}");
    assert!(!dir.path().join("img").exists(), "no new image is left");
}

/// A server that runs `before` first, in a mount namespace of its own with a filesystem of 6 MiB at
/// `disk`; none where the machine gives no such namespace.
fn on_a_small_disk(dir: &Path, before: &str) -> Option<Command> {
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c"]).current_dir(dir);
        command
    };
    fs::create_dir_all(dir.join("disk")).unwrap();
    let mount = "mount -t tmpfs -o size=6m none disk";
    if !unshare().arg(mount).output().is_ok_and(|tried| tried.status.success()) {
        eprintln!("not run: no mount namespace with a filesystem of its own (unshare)");
        return None;
    }
    let mut command = unshare();
    command.arg(format!("{mount} && {before} \"$0\" \"$@\"")).arg(env!("CARGO_BIN_EXE_daxlab"));
    Some(command)
}

const SMALL_DISK: [&str; 6] = ["--control", "a.ctl", "--image", "disk/img", "--size", "8MiB"];

#[test]
fn a_full_disk_is_foreseen_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut command) = on_a_small_disk(dir.path(), "exec") else { return };
    let mut server = Server::run(&mut command, dir.path(), &["a"], &SMALL_DISK);
    let warned = server.says("warning: image disk/img");
    assert!(warned.contains("takes 8MiB more") && warned.contains("6MiB free"), "{warned}");
    assert!(warned.contains("--preallocate"), "{warned}");
    let guest = server.guest("a");
    let file = guest.file.lock().as_ref().unwrap().try_clone().unwrap();
    let full = (0..8).find_map(|mib| file.write_all_at(&[1; MIB as usize], mib * MIB).err());
    assert_eq!(full.and_then(|error| error.raw_os_error()), Some(libc::ENOSPC));
    guest.hang_up();
    server.says("is gone");
    let named = server.says("image disk/img: its filesystem is full");
    assert!(named.contains("no room for 2MiB"), "{named}");
    server.terminate();
    server.says("its filesystem is full");
}

#[test]
fn an_image_that_has_no_room_is_not_preallocated() {
    let dir = tempfile::tempdir().unwrap();
    let serve = |before: &str, size: &str| {
        let mut command = on_a_small_disk(dir.path(), before)?;
        command.args(["serve", "--socket", "a", "--image", "disk/img", "--preallocate", "--size", size]);
        Some(command)
    };
    // Whatever the server says, the shell lists what is on the disk.
    let Some(mut command) = serve("trap 'ls disk' EXIT;", "8MiB") else { return };
    let (code, out, err) = outcome(&command.output().unwrap());
    assert!(code == 3 && err.contains("8388608 more bytes") && err.contains("6291456 free"), "{code}: {out}{err}");
    assert_eq!(out, "", "no new image is left");
    let Some(mut command) = serve("exec", "4MiB") else { return };
    let server = Server::ready(&mut command, dir.path(), 1);
    let file = server.guest("a").file.lock().as_ref().unwrap().try_clone().unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512, 4 * MIB);
}

#[test]
fn the_power_goes_and_what_was_flushed_stays() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["a"], &[&ARGS[..], &["--power-cut-model"]].concat());
    let mut guest = server.guest("a");
    store(&guest, 0, &[1; 64 * 64]);
    assert_eq!(guest.flush(), 0);
    store(&guest, 0, &[2; 64 * 64]);
    let cut = server.json(&["power-cut", "--seed", "7"]);
    assert_eq!(cut["lines_unflushed"], 64, "{cut}");
    let survived = cut["lines_survived"].as_u64().unwrap();
    assert!((1..64).contains(&survived), "some do and some don't: {survived}");
    guest.was_asked();
    assert_eq!(guest.flush(), 1, "without power nothing is durable");
    assert_eq!(server.json(&["guests"])[0]["state"], "unmapped");
    // The machine boots again.
    guest.reset();
    guest.start();
    guest.was_asked();
    let mut found = [0; 64 * 64];
    guest.file.lock().as_ref().unwrap().read_exact_at(&mut found, 0).unwrap();
    for line in found.chunks(64) {
        assert!(line.iter().all(|byte| *byte == line[0]) && matches!(line[0], 1 | 2), "whole lines: {line:?}");
    }
    assert_eq!(found.chunks(64).filter(|line| line[0] == 2).count() as u64, survived);
    assert_eq!(guest.flush(), 0, "and has power again");
}

#[test]
fn an_image_can_be_revoked_until_the_next_guest() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["a"], &ARGS);
    let mut guest = server.guest("a");
    assert_eq!(server.json(&["revoke"])["unmapped"], true);
    guest.was_asked();
    assert_eq!(guest.flush(), 1);
    guest.reset();
    guest.start();
    assert_eq!(guest.flush(), 1, "for good");
    assert_eq!(server.json(&["guests"])[0]["state"], "revoked");
    guest.hang_up();
    server.says("is gone");
    assert_eq!(server.guest("a").flush(), 0);
}

#[test]
fn a_large_sparse_image_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--control", "a.ctl", "--image", "img", "--size", "32GiB"];
    let server = Server::start(dir.path(), &["a"], &args);
    let guest = server.guest("a");
    store(&guest, 31 << 30, b"far out");
    let resident = |pid: String| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    };
    let port = server.json(&["guests"])[0]["port"].to_string();
    let (emulator, port) = (resident(server.pid().as_raw_pid().to_string()), resident(port));
    assert!(emulator + port < 64, "{emulator} MiB and {port} MiB");
    let disk = OpenOptions::new().read(true).open(dir.path().join("img")).unwrap();
    assert!(std::os::unix::fs::MetadataExt::blocks(&disk.metadata().unwrap()) < 8 * 1024);
}
