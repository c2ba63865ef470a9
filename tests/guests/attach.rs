//! Real guests attach by the printed command lines. Guest and host read the same bytes, over
//! resets, changes of the driver and fragmented files.

use std::fs;
use std::path::Path;

use emulator::sync::thread;

use crate::guest::{self, BootGuest as _, CURRENT, DISTRIBUTION, Guest, Machine};
use crate::served::{FORMAT, SYNCED, by_nic, counter, md5, offered, recipe, region, serve, state};
use crate::server::{MIB, Server};
use crate::{REBIND, SIZE, assert_bytes, assert_clean, assert_dumped, seq};

const VHOST: &str = "virtio-pmem over vhost-user";
const OWN: &str = "QEMU's own virtio-pmem over this memory";
const NVDIMM: &str = "an ACPI NVDIMM over this memory";

/// A folder whose name neither a shell nor QEMU takes as it is.
fn awkward(dir: &Path) -> std::path::PathBuf {
    let dir = dir.join("a folder, it's ours");
    fs::create_dir(&dir).unwrap();
    dir
}

#[test]
fn an_image_is_a_device_through_resets_and_driver_changes() {
    let Some(machine) = guest::machine(CURRENT, "an image over vhost-user") else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = awkward(dir.path());
    let server = serve(machine, &dir, &["its socket, a"], &["--image", "img", "--size", "66MiB"]);
    let img = dir.join("img");
    let mut guest = machine.boot().printed(&recipe(&server, VHOST)).start();
    assert_eq!(guest.ok("cat /sys/block/pmem0/size"), (SIZE / 512).to_string());
    assert_eq!((state(&server, 0), counter(&server, "maps")), ("mapped".to_owned(), 1));

    guest.ok("seq 1 700000 | dd of=/dev/pmem0 bs=4k seek=256 iflag=fullblock conv=fsync,notrunc 2>/dev/null");
    assert_bytes(&img, 1 << 20, seq(1, 700_000).as_bytes());
    guest.ok(FORMAT);
    guest.ok(SYNCED);
    // A power button's reset, then an orderly one.
    guest.reset();
    guest.ok("mount -o dax /dev/pmem0 /mnt && seq 1 200000 | cmp - /mnt/synced && umount /mnt");
    guest.reboot();
    guest.ok("mount -o dax /dev/pmem0 /mnt && seq 1 200000 | cmp - /mnt/synced && umount /mnt");
    assert_dumped(machine, &img, "synced", &seq(1, 200_000));
    assert_clean(machine, &img);

    // Every driver has it mapped anew, reads what the last one wrote, and writes where the host
    // sees it.
    let before = counter(&server, "maps");
    for round in 1..=10 {
        guest.ok(REBIND);
        let last =
            guest.ok("dd if=/dev/pmem0 bs=1M skip=60 count=1 2>/dev/null | head -n 1 | tr -d '\\0' | cut -c -20");
        assert_eq!(last, if round == 1 { String::new() } else { format!("round {}", round - 1) });
        guest.ok(&format!("echo 'round {round}' | dd of=/dev/pmem0 bs=1M seek=60 conv=fsync,notrunc 2>/dev/null"));
        assert_bytes(&img, 60 * MIB, format!("round {round}\n").as_bytes());
        assert_eq!(counter(&server, "maps"), before + round);
    }
    assert_eq!(guest.ok("md5sum </dev/pmem0 | cut -c -32"), md5(&img), "all of it");
    assert_eq!(counter(&server, "failed") + counter(&server, "malformed") + counter(&server, "unknown"), 0);
    guest.poweroff();
    server.says("is gone");
    assert_eq!(state(&server, 0), "none");
}

/// An ext4 of 16 MiB with one file, made on the host.
fn prepared(machine: &Machine, dir: &Path) {
    fs::write(dir.join("content"), seq(1, 300_000)).unwrap();
    fs::File::create(dir.join("fs")).unwrap().set_len(16 * MIB).unwrap();
    let run =
        machine.tool("mke2fs").args(["-q", "-t", "ext4", "-b", "4096", "-F"]).arg(dir.join("fs")).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let request = "write content content";
    let run = machine.tool("debugfs").args(["-w", "-R", request, "fs"]).current_dir(dir).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

/// The 16 MiB of the file that the server serves, as its other users see them.
fn hosts_view(server: &Server) -> Vec<u8> {
    let mr = region(server, "data");
    let view = (0..16).flat_map(|at| by_nic(server, &mr, at * MIB, MIB)).collect();
    assert_eq!(server.ctl(&["rdma-dereg", &mr]).0, 0);
    view
}

/// How long it takes from the first piece that is mapped to the last of `pieces`, in milliseconds
/// of real time; none if `ended` comes first.
#[allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "a figure to report, of a real machine")]
fn mapped_in_ms(server: &Server, pieces: u64, ended: impl Fn() -> bool) -> Option<u128> {
    let mut first = None;
    while !ended() {
        let mapped = counter(server, "maps");
        if mapped > 0 {
            let first = *first.get_or_insert_with(std::time::Instant::now);
            if mapped >= pieces {
                return Some(first.elapsed().as_millis());
            }
        }
    }
    None
}

/// What the guest has on the device, by way of the host.
fn assert_same_view(machine: &Machine, guest: &mut Guest, server: &Server, dir: &Path) {
    let after = dir.join("after");
    fs::write(&after, hosts_view(server)).unwrap();
    assert_eq!(guest.ok("md5sum </dev/pmem0 | cut -c -32"), md5(&after));
    assert_clean(machine, &after);
    assert_dumped(machine, &after, "more", &seq(7, 400_000));
}

#[test]
fn fragments_are_one_device() {
    let Some(machine) = guest::machine(CURRENT, "a fragmented file") else { return };
    for extents in [4, 128] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        prepared(machine, dir);
        let count = extents.to_string();
        let server = serve(machine, dir, &["a"], &["--file", "data", "--import", "fs", "--extents", &count]);
        assert!(server.introduction.contains("no way for older QEMUs"), "{}", server.introduction);
        let boot = machine.boot().printed(&recipe(&server, VHOST));
        let mut guest = thread::scope(|scope| {
            let booting = scope.spawn(|| boot.start());
            if extents == 128
                && let Some(taken) = mapped_in_ms(&server, extents, || booting.is_finished())
            {
                guest::tell(&format!("128 extents: mapped in {taken} ms"));
            }
            booting.join().unwrap()
        });
        assert_eq!(guest.ok("md5sum </dev/pmem0 | cut -c -32"), md5(&dir.join("fs")), "{extents} extents");
        // Behind the read: on a busy machine the shell can be there before the driver is done.
        assert_eq!(counter(&server, "maps"), extents);

        guest.ok("mount -o dax /dev/pmem0 /mnt && seq 1 300000 | cmp - /mnt/content");
        guest.ok("seq 7 400000 >/mnt/more && fsync /mnt/more && umount /mnt && e2fsck -fn /dev/pmem0");
        guest.reset();
        guest.ok(
            "e2fsck -fn /dev/pmem0 && mount -o dax /dev/pmem0 /mnt && seq 7 400000 | cmp - /mnt/more && umount /mnt",
        );
        guest.ok(REBIND);
        assert_same_view(machine, &mut guest, &server, dir);
        guest.poweroff();
    }
}

#[test]
fn qemus_own_device_by_the_printed_command() {
    guest::each("QEMU's own virtio-pmem over what is served", |machine| {
        let dir = tempfile::tempdir().unwrap();
        let dir = awkward(dir.path());
        let server = serve(machine, &dir, &["a"], &["--image", "img", "--size", "66MiB"]);
        let mut guest = machine.boot().printed(&recipe(&server, OWN)).start();
        assert_eq!(guest.ok("cat /sys/block/pmem0/size"), (SIZE / 512).to_string());
        guest.ok(FORMAT);
        guest.ok(SYNCED);
        guest.ok("umount /mnt");
        guest.poweroff();
        assert_dumped(machine, &dir.join("img"), "synced", &seq(1, 200_000));
        assert_clean(machine, &dir.join("img"));
        drop(server);

        // A file of a volume in memory, that QEMU opens by way of the server. It does not begin
        // where the volume does.
        fs::write(dir.join("content"), seq(1, 400_000)).unwrap();
        fs::File::options().write(true).open(dir.join("content")).unwrap().set_len(4 * MIB).unwrap();
        let server = serve(machine, &dir, &["b"], &["--file", "data", "--import", "content"]);
        let (fits, line) = offered(&server, OWN);
        if !fits.contains("can run this") {
            assert!(fits.contains("too old for this: needs 8.1"), "{fits}");
            guest::tell(&format!("QEMU's own virtio-pmem over a file, {}: not run: {fits}", machine.name()));
            return;
        }
        let mut guest = machine.boot().printed(&line).start();
        assert_eq!(guest.ok("md5sum </dev/pmem0 | cut -c -32"), md5(&dir.join("content")));
        guest.poweroff();
    });
}

#[test]
fn an_old_kernel_needs_its_driver_bound_again() {
    let what = "an old kernel under a new QEMU";
    let (Some(machine), Some(old)) = (guest::machine(CURRENT, what), guest::machine(DISTRIBUTION, what)) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let server = serve(machine, dir.path(), &["a"], &["--image", "img", "--size", "66MiB"]);
    let mut guest = machine.boot().kernel_of(old).printed(&recipe(&server, VHOST)).start();
    // It reads where the memory is before QEMU has placed any.
    guest.ok(REBIND_ABSENT);
    assert_eq!(guest.ok("cat /sys/block/pmem0/size"), (SIZE / 512).to_string());
    guest.ok(FORMAT);
    guest.ok(SYNCED);
    guest.ok("umount /mnt");
    guest.poweroff();
    let img = dir.path().join("img");
    assert_dumped(old, &img, "synced", &seq(1, 200_000));
}

/// Gives the device to the driver again, which had it or had given it back.
const REBIND_ABSENT: &str = "cd /sys/bus/virtio/devices
    for device in virtio*; do grep -q 0x001b $device/device && found=$device; done
    test ! -e ../drivers/virtio_pmem/$found || echo $found >../drivers/virtio_pmem/unbind
    echo $found >../drivers/virtio_pmem/bind && settle && test -b /dev/pmem0";

#[test]
fn an_nvdimm_has_the_block_that_linux_wants() {
    guest::each("an NVDIMM by the printed command", |machine| {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let server = serve(machine, dir, &["a"], &["--image", "img", "--size", "66MiB", "--nvdimm"]);
        assert!(server.introduction.contains("got an fsdax info block"), "{}", server.introduction);
        let mut guest = machine.boot().printed(&recipe(&server, NVDIMM)).start();
        // What is behind the block.
        assert_eq!(guest.ok("cat /sys/block/pmem0/size"), ((SIZE - 2 * MIB) / 512).to_string());
        guest.ok(FORMAT);
        guest.ok(SYNCED);
        guest.reset();
        guest.ok("mount -o dax /dev/pmem0 /mnt && seq 1 200000 | cmp - /mnt/synced && umount /mnt");
        guest.poweroff();
        let behind = dir.join("img?offset=2097152");
        assert_dumped(machine, &behind, "synced", &seq(1, 200_000));
        assert_clean(machine, &behind);
    });
}
