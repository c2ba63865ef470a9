//! The power, the server or the disk fails. What a guest has flushed is there afterwards, and the
//! guest gets an error for a flush that cannot be done.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;

use emulator::sync::thread;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rustix::process::{Signal, kill_process};

use crate::common::daxlab;
use crate::guest::{self, BootGuest as _, CURRENT, Guest, Machine};
use crate::served::{FORMAT, SYNCED, assert_given_up, attach, counter, held, serve_file, state};
use crate::server::{Server, fail_call, outcome};
use crate::{REBIND, assert_bytes, assert_clean, assert_dumped, seq};

const IMAGE: [&str; 6] = ["--control", "a.ctl", "--image", "img", "--size", "66MiB"];

#[test]
fn after_a_power_cut_every_synced_file_is_whole() {
    let Some(machine) = guest::machine(CURRENT, "a power cut") else { return };
    let dir = tempfile::tempdir().unwrap();
    let server = serve_file(dir.path(), &["--power-cut-model"]);
    let mut guest = attach(machine, &server, "a");
    guest.ok(FORMAT);
    for cut in 1..=2 {
        // Ten files that are synced, and, between and after them, as many that are not: names, data
        // and sizes.
        guest.ok(&format!(
            "mkdir /mnt/{cut}; for at in 0 1 2 3 4 5 6 7 8 9; do
                seq {cut} 1${{at}}000 >/mnt/{cut}/synced$at; fsync /mnt/{cut}/synced$at
                seq {cut} 2${{at}}000 >/mnt/{cut}/not$at; rm -f /mnt/$(({cut} - 1))/not$at; done"
        ));
        let lost = server.json(&["power-cut", "--seed", &cut.to_string()]);
        let count = |name: &str| lost[name].as_u64().unwrap();
        assert!(count("lines_survived") < count("lines_unflushed"), "{lost}");
        assert!(count("lines_survived") > 0, "{lost}");
        assert_eq!(state(&server, 0), "unmapped");
        // Without power, the device drops stores, and an fsync of them fails.
        guest.run(&format!("printf late | dd of=/mnt/{cut}/synced0 bs=4 conv=notrunc"));
        assert_ne!(guest.run(&format!("fsync /mnt/{cut}/synced0")).status, 0);
        guest.reset();
        assert_eq!(state(&server, 0), "mapped");
        // 1: repaired.
        let repaired = guest.run("e2fsck -fp /dev/pmem0");
        assert!(repaired.status <= 1, "{}: {}", repaired.status, repaired.text);
        guest.ok("e2fsck -fn /dev/pmem0 && mount -o dax /dev/pmem0 /mnt");
        for before in 1..=cut {
            guest.ok(&format!(
                "for at in 0 1 2 3 4 5 6 7 8 9; do seq {before} 1${{at}}000 | cmp - /mnt/{before}/synced$at; done"
            ));
        }
    }
    guest.poweroff();
}

/// Asserts that a copy of the image has the synced file, after the repair that a machine does at
/// its boot.
fn assert_recovered(machine: &Machine, dir: &Path) {
    let copy = dir.join("copy");
    fs::copy(dir.join("img"), &copy).unwrap();
    let repaired = machine.tool("e2fsck").arg("-fp").arg(&copy).output().unwrap();
    assert!(matches!(repaired.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&repaired.stdout));
    assert_clean(machine, &copy);
    assert_dumped(machine, &copy, "synced", &seq(1, 200_000));
}

/// A server on an image ends by `end`, and its guest lives on.
fn the_server_ends(what: &str, end: impl Fn(&mut Server)) {
    let Some(machine) = guest::machine(CURRENT, what) else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut server = Server::start(dir, &["a"], &IMAGE);
    let mut guest = attach(machine, &server, "a");
    guest.ok(FORMAT);
    guest.ok(SYNCED);
    let port = server.port(0);
    end(&mut server);
    // A flush can reach the port before the news of the end does.
    let mut fails = || guest.run("echo lost >>/mnt/lost && fsync /mnt/lost").status != 0;
    assert!((0..1000).any(|_| fails()));
    assert_given_up(&mut guest);
    guest.ok("seq 1 200000 | cmp - /mnt/synced");
    assert_recovered(machine, dir);

    // The guest may store to it as long as it lives.
    let second = || outcome(&daxlab().args(["serve", "--socket", "b"]).args(IMAGE).current_dir(dir).output().unwrap());
    let (code, _, err) = second();
    assert!(code == 2 && err.contains("server has ended"), "{code}: {err}");
    assert!(guest.is_running());
    guest.kill();
    port.await_end();
    let server = Server::start(dir, &["b"], &IMAGE);
    let mut guest = attach(machine, &server, "b");
    guest.ok("mount -o dax /dev/pmem0 /mnt && seq 1 200000 | cmp - /mnt/synced");
    guest.ok("seq 2 200000 >/mnt/more && fsync /mnt/more");
    guest.poweroff();
}

#[test]
fn a_server_that_is_asked_to_end_leaves_its_guest_without_flushes() {
    the_server_ends("a server's end by SIGTERM", Server::terminate);
}

#[test]
fn a_server_that_is_killed_leaves_its_guest_without_flushes() {
    the_server_ends("a server's end by SIGKILL", |server| {
        server.end(Signal::KILL);
    });
}

/// Takes the device from its driver, and remembers it for [`BIND`].
const UNBIND: &str = "cd /sys/bus/virtio/drivers/virtio_pmem
    ls -d virtio* | head -n 1 >/tmp/device; cat /tmp/device >unbind; test ! -e /dev/pmem0";

const BIND: &str = "cat /tmp/device >/sys/bus/virtio/drivers/virtio_pmem/bind && settle && test -b /dev/pmem0";

#[test]
fn a_device_that_is_mapped_too_late_fails_every_flush_until_it_is_bound_anew() {
    let Some(machine) = guest::machine(CURRENT, "a server that stands still at a driver's start") else { return };
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["a"], &IMAGE);
    let mut guest = attach(machine, &server, "a");
    assert_eq!(raw_sync(&mut guest).status, 0);
    let before = counter(&server, "maps");
    guest.ok(UNBIND);
    kill_process(server.pid(), Signal::STOP).unwrap();
    // The driver starts without its memory: it is held for a second, and then let go.
    guest.ok(BIND);
    assert_ne!(raw_sync(&mut guest).status, 0, "a flush of what went nowhere");
    kill_process(server.pid(), Signal::CONT).unwrap();
    while counter(&server, "maps") == before {}
    assert_ne!(raw_sync(&mut guest).status, 0, "mapped, and too late for what was stored before");
    guest.ok(REBIND);
    assert_eq!(raw_sync(&mut guest).status, 0);
    assert_bytes(&dir.path().join("img"), 9 * 4096, b"x\n");
    guest.poweroff();
}

/// Writes records of 4 KiB to each device, from record 1 on, and flushes each, until a flush fails.
/// The number of the last record that was acknowledged is in `/tmp/acked.N`.
const WRITERS: &str = "for at in 0 1 2 3 4; do
        ( n=1
          while printf '%4095s\n' $n | dd of=/dev/pmem$at bs=4096 seek=$n iflag=fullblock conv=fsync,notrunc 2>/dev/null
          do echo $n >/tmp/acked.$at; n=$((n + 1)); done
          touch /tmp/ended.$at ) &
    done";

/// Five servers of one guest are killed at different moments, the guest writing to all of them.
fn servers_are_killed_while_a_guest_writes(machine: &Machine, seed: u64) {
    let dirs: Vec<_> = (0..5).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut servers: Vec<Server> = dirs
        .iter()
        .zip(0u8..)
        .map(|(dir, mark)| {
            // The guest's order of devices is not ours: each says which it is.
            fs::write(dir.path().join("img"), [b'0' + mark]).unwrap();
            fs::File::options().write(true).open(dir.path().join("img")).unwrap().set_len(66 << 20).unwrap();
            Server::start(dir.path(), &["a"], &IMAGE)
        })
        .collect();
    let boot = servers.iter().fold(machine.boot(), |boot, server| boot.vhost_user_pmem(&server.socket("a")));
    let mut guest = boot.start();
    guest.ok(WRITERS);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    for server in &mut servers {
        let flushes = counter(server, "flushes") + rng.random_range(1..12);
        while counter(server, "flushes") < flushes {}
        server.end(Signal::KILL);
    }
    for at in 0..5 {
        guest.ok(&format!("until test -e /tmp/ended.{at}; do usleep 20000; done"));
        let image: usize = guest.ok(&format!("head -c 1 /dev/pmem{at}")).parse().unwrap();
        let acknowledged: u64 = guest.ok(&format!("cat /tmp/acked.{at}")).parse().unwrap();
        for number in 1..=acknowledged {
            let expected = format!("{number:>4095}\n");
            assert_bytes(&dirs[image].path().join("img"), number * 4096, expected.as_bytes());
        }
    }
    assert!(guest.is_running());
}

#[test]
fn ten_servers_are_killed_while_guests_write() {
    let Some(machine) = guest::machine(CURRENT, "servers killed under a guest that writes") else { return };
    thread::scope(|scope| {
        for seed in [1, 2] {
            scope.spawn(move || servers_are_killed_while_a_guest_writes(machine, seed));
        }
    });
}

/// The raw device, that needs no file system to fail.
fn raw_sync(guest: &mut Guest) -> guest::Output {
    guest.run("echo x | dd of=/dev/pmem0 bs=4k seek=9 conv=fsync,notrunc")
}

#[test]
fn what_cannot_be_made_durable_fails_the_guests_fsync() {
    let Some(machine) = guest::machine(CURRENT, "a disk that fails") else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut command = daxlab();
    // SAFETY: between fork and exec, it makes two system calls and touches nothing else.
    unsafe { command.pre_exec(|| fail_call(libc::SYS_fdatasync, libc::EIO)) };
    let broken = Server::run(&mut command, dir.path(), &["a"], &IMAGE);
    let mut guest = attach(machine, &broken, "a");
    let failed = raw_sync(&mut guest);
    assert!(failed.status != 0 && failed.text.contains("error"), "{failed:?}");
    assert!(counter(&broken, "failed") > 0);
    guest.kill();

    // A flush that fails for once is one that ext4 does not forget.
    let other = tempfile::tempdir().unwrap();
    let server = serve_file(other.path(), &[]);
    let mut guest = attach(machine, &server, "a");
    guest.ok(FORMAT);
    guest.ok(SYNCED);
    assert_eq!(server.ctl(&["fail-flush", "on"]).0, 0);
    assert_given_up(&mut guest);
    assert_eq!(server.ctl(&["fail-flush", "off"]).0, 0);
    guest.ok("umount /mnt");
    // The first fsync reports an earlier failure that no fsync has reported yet.
    raw_sync(&mut guest);
    assert_eq!(raw_sync(&mut guest).status, 0);
    guest
        .ok("e2fsck -fp /dev/pmem0 || test $? -eq 1; mount -o dax /dev/pmem0 /mnt && seq 1 200000 | cmp - /mnt/synced");
    assert_eq!(held(&server), (1, 1));
    guest.poweroff();
}
