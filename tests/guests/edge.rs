//! The host changes a file that a guest has mounted: the outcome for the guest under each kind of
//! design, with the NIC as a third user of the file.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::guest::{self, BootGuest as _, CURRENT, Guest};
use crate::served::{
    FORMAT, SYNCED, assert_taken, attach, blockers, by_nic, counter, held, md5, region, serve_file, state,
};
use crate::server::{MIB, Server, outcome};

/// Bytes of the guest's device that no longer belong to its file, and how many 64-byte lines the
/// guest has stored there.
fn stale(server: &Server) -> (u64, u64) {
    let stale = server.json(&["stale"]);
    let exposed = stale["guests"][0]["stale_guest_exposed_bytes"].as_u64().unwrap();
    (exposed, stale["stale_guest_changed_lines"].as_u64().unwrap())
}

/// A served file under a design, and a guest that has an ext4 with a durable file on it.
fn mounted(dir: &Path, design: &str) -> Option<(Server, Guest)> {
    let machine = guest::machine(CURRENT, &format!("a truncate beneath a guest under {design}"))?;
    let server = serve_file(dir, &["--design", design, "--extents", "2"]);
    let mut guest = attach(machine, &server, "a");
    guest.ok(FORMAT);
    guest.ok(SYNCED);
    Some((server, guest))
}

#[test]
fn where_the_truncate_fails_the_guest_goes_on_and_the_nic_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let Some((server, mut guest)) = mounted(dir.path(), "man-page") else { return };
    let (code, out, _) = server.ctl(&["truncate", "data", "2MiB"]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("ETXTBSY") && out.contains(&format!("QEMU process {}", guest.pid())), "{out}");
    assert_eq!((stale(&server), held(&server)), ((0, 0), (1, 1)));
    guest.ok("seq 1 200000 | cmp - /mnt/synced && seq 2 200000 >/mnt/more && fsync /mnt/more && umount /mnt");

    // The guest loads what the NIC stored, from mapped memory and not from its page cache; and the
    // reverse.
    let mr = region(&server, "data");
    guest.ok("mount -o dax /dev/pmem0 /mnt && printf '%4096s' | tr ' ' a >/mnt/shared && fsync /mnt/shared");
    guest.ok("exec 9</mnt/shared; head -c 4 <&9 | grep -q aaaa");
    let block = guest.ok("debugfs -R 'blocks shared' /dev/pmem0 2>/dev/null").parse::<u64>().unwrap();
    assert_eq!(by_nic(&server, &mr, block * 4096, 4096), [b'a'; 4096]);
    assert_eq!(server.ctl(&["rdma-write", &mr, &format!("{}B", block * 4096 + 64), "by the NIC"]).0, 0);
    assert_eq!(guest.ok("dd if=/mnt/shared bs=1 skip=64 count=10 2>/dev/null"), "by the NIC");
    guest.ok("printf 'by the guest' | dd of=/mnt/shared bs=1 seek=128 conv=notrunc 2>/dev/null");
    assert_eq!(by_nic(&server, &mr, block * 4096 + 128, 12), b"by the guest", "no flush lies between them");
    let who = blockers(&server, "data");
    assert!(who.iter().any(|kind| kind.contains("guest")) && who.iter().any(|kind| kind.contains("RDMA")), "{who:?}");
    assert_eq!(held(&server), (1, 2));
    guest.poweroff();
    server.says("is gone");
    assert_eq!(held(&server), (0, 0), "the region goes with its process");
    assert_eq!(server.ctl(&["truncate", "data", "2MiB"]).0, 0);
}

#[test]
fn where_the_truncate_waits_it_ends_with_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let Some((server, mut guest)) = mounted(dir.path(), "chinner-2025") else { return };
    let truncate = || {
        let asker =
            server.ctl_command(&["truncate", "data", "32MiB", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
        server.until(&["blockers", "data"], |found| (!found["blocked"].is_null()).then_some(()));
        asker
    };
    let mut asker = truncate();
    guest.ok("seq 3 200000 >/mnt/more && fsync /mnt/more && umount /mnt");
    assert!(asker.try_wait().unwrap().is_none(), "it waits as long as the guest is there");
    guest.poweroff();
    let done = outcome(&asker.wait_with_output().unwrap());
    let found: Value = serde_json::from_str(&done.1).unwrap();
    assert_eq!((done.0, &found["outcome"], &found["waited"]), (0, &"done".into(), &true.into()), "{found}");

    // The next guest has what is left, and its end by force is an end as well.
    server.says("is gone");
    let machine = guest::machine(CURRENT, "").unwrap();
    let mut guest = attach(machine, &server, "a");
    assert_eq!(guest.ok("cat /sys/block/pmem0/size"), (32 * MIB / 512).to_string());
    let asker = server.ctl_command(&["truncate", "data", "2MiB"]).stdout(Stdio::piped()).spawn().unwrap();
    server.until(&["blockers", "data"], |found| (!found["blocked"].is_null()).then_some(()));
    guest.kill();
    assert_eq!(asker.wait_with_output().unwrap().status.code(), Some(0));
}

#[test]
fn where_nothing_is_asked_the_guest_stores_into_blocks_that_are_not_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let Some((server, mut guest)) = mounted(dir.path(), "unsafe") else { return };
    assert_eq!(stale(&server), (0, 0));
    assert_eq!(server.ctl(&["truncate", "data", "2MiB"]).0, 0);
    assert_eq!(stale(&server).0, 62 * MIB);
    let (failed, before) = (counter(&server, "failed"), stale(&server).1);
    guest.ok("seq 4 600000 >/mnt/more && fsync /mnt/more");
    let (exposed, changed) = stale(&server);
    // Almost all of the 4 MB written lies beyond the first 2 MiB: little was free below.
    assert!(exposed == 62 * MIB && changed > before + MIB / 64, "{exposed} bytes, {before} then {changed} lines");
    assert_eq!(counter(&server, "failed"), failed, "the guest does not see the change");
    guest.poweroff();
}

#[test]
fn two_devices_of_one_guest_and_one_is_taken_before_its_blocks_go() {
    let Some(machine) = guest::machine(CURRENT, "two devices of one guest") else { return };
    let dir = tempfile::tempdir().unwrap();
    let args = ["--control", "a.ctl", "--file", "data", "--file", "more", "--create", "64MiB", "--design", "odp"];
    let server = Server::start(dir.path(), &["a", "b"], &args);
    let boot = machine.boot().vhost_user_pmem(&server.socket("a")).vhost_user_pmem(&server.socket("b"));
    let mut guest = boot.start();
    assert_eq!(held(&server), (0, 0), "neither leases nor pins");
    // Which is which isn't said: the host marks one.
    let mr = region(&server, "data");
    assert_eq!(server.ctl(&["rdma-write", &mr, "1MiB", "data"]).0, 0);
    assert_eq!(server.ctl(&["rdma-dereg", &mr]).0, 0);
    let data = guest.ok("for at in 0 1; do dd if=/dev/pmem$at bs=4 skip=262144 count=1 2>/dev/null | grep -q data && echo $at; done; true");
    assert!(data == "0" || data == "1", "{data}");
    guest.ok(&format!(
        "mkdir -p /other; for at in 0 1; do mkfs.ext4 -q -b 4096 /dev/pmem$at; done
        mount -o dax /dev/pmem{data} /mnt; mount -o dax /dev/pmem$((1 - {data})) /other
        seq 1 200000 >/mnt/synced; fsync /mnt/synced; seq 1 200000 >/other/synced; fsync /other/synced"
    ));

    assert_eq!(server.ctl(&["truncate", "data", "2MiB"]).0, 0);
    assert_eq!((stale(&server), state(&server, 0).as_str()), ((0, 0), "revoked"));
    assert_taken(&mut guest);
    assert_eq!(state(&server, 1), "mapped");
    guest.ok("seq 1 200000 | cmp - /other/synced && seq 2 200000 >/other/more && fsync /other/more && umount /other");
    guest.ok(&format!("e2fsck -fn /dev/pmem$((1 - {data}))"));
    assert_eq!(stale(&server), (0, 0));
}

#[test]
fn a_revoked_guest_reaches_nothing_and_the_other_ones_go_on() {
    let Some(machine) = guest::machine(CURRENT, "two guests, one of them revoked") else { return };
    let dir = tempfile::tempdir().unwrap();
    // The volume is full: whatever `more` gets later was `data` before.
    let args = ["--control", "a.ctl", "--file", "data", "--file", "more", "--create", "16MiB", "--volume", "32MiB"];
    let server = Server::start(dir.path(), &["a", "b"], &[&args[..], &["--design", "revoke"]].concat());
    let mut one = attach(machine, &server, "a");
    let mut other = attach(machine, &server, "b");
    for guest in [&mut one, &mut other] {
        guest.ok(FORMAT);
        guest.ok(SYNCED);
    }
    assert_eq!(held(&server), (2, 2));
    assert_eq!(server.ctl(&["fallocate", "more", "16MiB", "2MiB"]).0, 1, "the volume is full");

    let (code, out, err) = server.ctl(&["truncate", "data", "2MiB"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!((stale(&server), state(&server, 0), state(&server, 1)), ((0, 0), "revoked".into(), "mapped".into()));
    assert_taken(&mut one);
    other.ok("seq 1 200000 | cmp - /mnt/synced && seq 2 200000 >/mnt/more && fsync /mnt/more");

    // Killed, the other one leaves nothing, and the first one is as it was.
    let holders = held(&server);
    other.kill();
    server.says("is gone");
    assert_eq!(held(&server), (holders.0 - 1, holders.1 - 1));
    assert!(one.is_running());

    // Another file has the truncated blocks now. Stores of the revoked guest reach no block.
    let (code, out, err) = server.ctl(&["fallocate", "more", "16MiB", "14MiB"]);
    assert_eq!(code, 0, "{out}{err}");
    let mut other = attach(machine, &server, "b");
    assert_eq!(other.ok("cat /sys/block/pmem0/size"), (30 * MIB / 512).to_string());
    other.ok("mount -o dax /dev/pmem0 /mnt && seq 2 200000 | cmp - /mnt/more && umount /mnt");
    other.ok("dd if=/dev/urandom of=/dev/pmem0 bs=1M seek=16 count=14 iflag=fullblock conv=fsync,notrunc 2>/dev/null");
    let mr = region(&server, "more");
    let sum = |path: &Path| {
        let view: Vec<u8> = (16..30).flat_map(|at| by_nic(&server, &mr, at * MIB, MIB)).collect();
        std::fs::write(path, view).unwrap();
        md5(path)
    };
    let before = sum(&dir.path().join("before"));
    assert_eq!(other.ok("dd if=/dev/pmem0 bs=1M skip=16 count=14 2>/dev/null | md5sum | cut -c -32"), before);
    // No memory is behind these addresses: the result of the guest's calls means nothing.
    one.run(
        "umount -l /mnt; tr '\\0' x </dev/zero | dd of=/dev/pmem0 bs=1M count=16 iflag=fullblock conv=notrunc; sync",
    );
    assert_eq!(sum(&dir.path().join("after")), before);
    assert!(one.is_running());
}
