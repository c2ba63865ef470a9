//! Other file systems, programs and shapes of machines: XFS, fio, many devices, hot-plug.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::guest::{self, BootGuest as _, CURRENT, FIO};
use crate::served::{attach, counter, recipe, serve, state};
use crate::server::{MIB, Server};
use crate::{assert_bytes, seq};

const NVDIMM: &str = "an ACPI NVDIMM over this memory";

/// Where byte 0 of a guest's file lies on its device, by the file system's own map.
const PHYSICAL: &str =
    "xfs_io -r -c 'fiemap -v' /mnt/data | awk '$1 == \"0:\" { split($3, at, \"\\\\.\"); print at[1] }'";

#[test]
fn xfs_with_dax_keeps_what_it_synced_where_its_map_says() {
    let Some(machine) = guest::machine(CURRENT, "XFS with dax") else { return };
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["a"], &["--control", "a.ctl", "--image", "img", "--size", "512MiB"]);
    let mut guest = machine.boot().memory(384).vhost_user_pmem(&server.socket("a")).start();
    guest.ok("load xfs && mkfs.xfs -q -f /dev/pmem0 && mount -t xfs -o dax=always /dev/pmem0 /mnt");
    assert!(guest.ok("grep /mnt /proc/mounts").contains("dax=always"));
    guest.ok("seq 1 400000 >/mnt/data && fsync /mnt/data");
    let sector: u64 = guest.ok(PHYSICAL).parse().unwrap();
    let bytes = seq(1, 400_000);
    assert_bytes(&dir.path().join("img"), sector * 512, &bytes.as_bytes()[..4096]);
    // A hole, at a place that is inside of the file's first extent.
    guest.ok("xfs_io -c 'fpunch 64k 64k' -c fsync /mnt/data");
    guest.reset();
    guest.ok("load xfs && mount -t xfs -o dax=always /dev/pmem0 /mnt");
    guest.ok(
        "{ seq 1 400000 | head -c 65536; head -c 65536 /dev/zero; seq 1 400000 | tail -c +131073; } | cmp - /mnt/data",
    );
    guest.ok("umount /mnt && xfs_repair -n /dev/pmem0 >/tmp/said 2>&1 || { cat /tmp/said; exit 1; }");
    assert_eq!(counter(&server, "failed"), 0);
    assert!(counter(&server, "flushes") > 0);
    guest.poweroff();
}

/// One run of fio that writes 8 MiB at random and then reads back and checks all of it.
fn fio(engine: &str, more: &str) -> String {
    format!(
        "fio --name=verify --filename=/mnt/fio --size=8m --bs=4k --rw=randwrite --randseed=7 --verify=crc32c \
         --do_verify=1 --verify_fatal=1 --ioengine={engine} --thread {more} >/tmp/said 2>&1 || {{ cat /tmp/said; exit 1; }}
         grep -q 'err= 0' /tmp/said"
    )
}

#[test]
fn fio_finds_every_block_that_it_wrote() {
    let Some(machine) = guest::machine(CURRENT, "fio over vhost-user") else { return };
    let dir = tempfile::tempdir().unwrap();
    let tools = dir.path().join("tools");
    guest::fio_disk(machine, &tools);
    let server = Server::start(dir.path(), &["a"], &["--control", "a.ctl", "--image", "img", "--size", "66MiB"]);
    let boot = machine.boot().memory(384).vhost_user_pmem(&server.socket("a")).virtio_pmem(&tools, 144 * MIB);
    let mut guest = boot.start();
    guest.ok(&format!("{FIO}mkfs.ext4 -q -b 4096 $other && mount -o dax $other /mnt"));
    let before = counter(&server, "flushes");
    guest.ok(&format!("{FIO}{}", fio("psync", "--fsync=64 --end_fsync=1")));
    guest.ok(&format!("{FIO}{}", fio("mmap", "--fsync=64 --end_fsync=1")));
    assert!(counter(&server, "flushes") >= before + 2 * 32, "an fsync for every 64 of 2048 blocks, twice");
    assert_eq!(counter(&server, "failed"), 0);
    guest.ok("umount /mnt");
    guest.poweroff();
}

#[test]
fn fio_with_libpmem_on_an_nvdimm() {
    let Some(machine) = guest::machine(CURRENT, "fio with libpmem on an NVDIMM") else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let tools = dir.join("tools");
    guest::fio_disk(machine, &tools);
    let server = serve(machine, dir, &["a"], &["--image", "img", "--size", "68MiB", "--nvdimm"]);
    let mut guest = machine.boot().printed(&recipe(&server, NVDIMM)).virtio_pmem(&tools, 144 * MIB).start();
    guest.ok(&format!("{FIO}mkfs.ext4 -q -b 4096 $other && mount -o dax $other /mnt"));
    // MAP_SYNC: the program's own cache flushes are enough, and no flush reaches the host.
    guest.ok(&format!("{FIO}{}", fio("libpmem", "--sync=1 --direct=1")));
    guest.ok("umount /mnt && sync");
    guest.poweroff();
    drop(server);
}

#[test]
fn five_devices_of_one_guest_are_five_files() {
    let Some(machine) = guest::machine(CURRENT, "five devices of one guest") else { return };
    let dir = tempfile::tempdir().unwrap();
    let names = ["a", "b", "c", "d", "e"];
    let mut args = vec!["--control", "a.ctl", "--create", "4MiB"];
    for name in ["one", "two", "three", "four", "five"] {
        args.extend(["--file", name]);
    }
    let server = Server::start(dir.path(), &names, &args);
    let boot = names.iter().fold(machine.boot(), |boot, name| boot.vhost_user_pmem(&server.socket(name)));
    let mut guest = boot.start();
    let check = |guest: &mut guest::Guest, round: u32| {
        guest.ok(&format!(
            "for at in 0 1 2 3 4; do seq $((at * 10 + {round})) 200000 | head -c 1000000 | dd of=/dev/pmem$at bs=1M conv=fsync,notrunc 2>/dev/null; done
             for at in 0 1 2 3 4; do seq $((at * 10 + {round})) 200000 | head -c 1000000 | cmp -n 500000 - /dev/pmem$at; done"
        ));
    };
    check(&mut guest, 1);
    assert!((0..5).all(|at| state(&server, at) == "mapped"));
    guest.reset();
    check(&mut guest, 2);
    guest.ok(crate::REBIND);
    check(&mut guest, 3);
    assert!((0..5).all(|at| state(&server, at) == "mapped"));
    guest.poweroff();
}

/// A QMP session. QEMU answers one line a command, among events.
pub(crate) struct Monitor {
    lines: BufReader<UnixStream>,
}

impl Monitor {
    pub(crate) fn connect(path: &Path) -> Monitor {
        let mut monitor = Monitor { lines: BufReader::new(UnixStream::connect(path).unwrap()) };
        monitor.ask(r#"{"execute":"qmp_capabilities"}"#);
        monitor
    }

    pub(crate) fn ask(&mut self, command: &str) -> Value {
        writeln!(self.lines.get_mut(), "{command}").unwrap();
        self.until(command, "return")
    }

    /// What QEMU says next under the key `what`.
    fn until(&mut self, command: &str, what: &str) -> Value {
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line);
            assert!(read.is_ok_and(|read| read > 0), "QEMU hung up after {command}");
            let said: Value = serde_json::from_str(&line).unwrap();
            assert!(said.get("error").is_none(), "{command}: {said}");
            if let Some(found) = said.get(what) {
                return found.clone();
            }
        }
    }

    fn await_event(&mut self, name: &str) {
        while self.until(name, "event") != name {}
    }
}

#[test]
fn a_device_is_plugged_into_a_running_guest() {
    let Some(machine) = guest::machine(CURRENT, "a device plugged into a running guest") else { return };
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["a"], &["--control", "a.ctl", "--image", "img", "--size", "66MiB"]);
    let qmp = dir.path().join("qmp");
    // QEMU 11.1.3 aborts when the device is plugged into a PCIe root port: no room is left for its
    // capabilities (`pci_add_capability`). A conventional PCI bus takes it.
    let boot = machine.boot().machine_type("pc");
    let mut guest = boot.args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())]).start();
    assert_eq!(guest.run("test -e /dev/pmem0").status, 1);
    let mut monitor = Monitor::connect(&qmp);
    let path = server.socket("a").display().to_string();
    monitor.ask(&format!(
        r#"{{"execute":"chardev-add","arguments":{{"id":"vu","backend":{{"type":"socket","data":{{"addr":{{"type":"unix","data":{{"path":"{path}"}}}},"server":false}}}}}}}}"#
    ));
    monitor.ask(
        r#"{"execute":"device_add","arguments":{"driver":"vhost-user-test-device-pci","id":"pmem","bus":"pci.0","virtio-id":27,"num_vqs":1,"config_size":16,"chardev":"vu"}}"#,
    );
    guest.ok("until test -b /dev/pmem0; do usleep 100000; done");
    assert_eq!(state(&server, 0), "mapped");
    guest.ok("seq 1 100000 | dd of=/dev/pmem0 bs=4k iflag=fullblock conv=fsync,notrunc 2>/dev/null");
    assert_bytes(&dir.path().join("img"), 0, seq(1, 100_000).as_bytes());
    assert_eq!(counter(&server, "failed"), 0);
    // Unplugged again, it leaves nothing behind.
    monitor.ask(r#"{"execute":"device_del","arguments":{"id":"pmem"}}"#);
    monitor.await_event("DEVICE_DELETED");
    assert_eq!(guest.run("test -e /dev/pmem0").status, 1);
    monitor.ask(r#"{"execute":"chardev-remove","arguments":{"id":"vu"}}"#);
    server.says("is gone");
    guest.poweroff();
    let mut guest = attach(machine, &server, "a");
    guest.ok("seq 1 100000 | cmp -n 500000 - /dev/pmem0");
    guest.poweroff();
}

/// The host has no way to make a page of an NVDIMM bad: QEMU 11.1.3 has no command for it, and its
/// ACPI bus answers neither `ars_cap` nor an injection (`ndctl inject-error`). What the guest's own
/// kernel takes for bad is an error for the guest, and nothing for the host.
#[test]
fn a_bad_block_of_an_nvdimm_is_an_error_for_the_guest_alone() {
    let Some(machine) = guest::machine(CURRENT, "a bad block of an NVDIMM") else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = serve(machine, dir, &["a"], &["--image", "img", "--size", "68MiB", "--nvdimm"]);
    let mut guest = machine.boot().printed(&recipe(&server, NVDIMM)).start();
    assert_eq!(guest.ok("cat /sys/bus/nd/devices/ndbus0/commands").trim(), "cmd_call");
    guest.ok("seq 1 100000 | dd of=/dev/pmem0 bs=4096 seek=256 iflag=fullblock conv=fsync,notrunc 2>/dev/null");
    guest.ok("echo '2048 8' >/sys/block/pmem0/badblocks");
    let failed = guest.run("dd if=/dev/pmem0 of=/dev/null bs=4096 skip=256 count=1 iflag=direct");
    assert!(failed.status != 0 && failed.text.contains("Input/output error"), "{failed:?}");
    guest.ok("dd if=/dev/pmem0 of=/dev/null bs=4096 skip=257 count=1 iflag=direct 2>/dev/null");
    // The guest's device begins behind the 2 MiB of the info block.
    assert_bytes(&dir.join("img"), (2 << 20) + (1 << 20), seq(1, 100_000).as_bytes());
    guest.poweroff();
}
