//! `serve --read-only`: real guests read, and can't write, whatever they try.

use std::fs;
use std::process::Stdio;

use crate::guest::{self, BootGuest as _, CURRENT, Machine};
use crate::served::{attach, recipe, serve};
use crate::{SIZE, image};

const IMAGE: [&str; 3] = ["--image", "img", "--read-only"];

/// An image with an ext4 in it, in a folder of its own; and its bytes.
fn formatted(machine: &Machine) -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("img");
    image(&path, SIZE);
    let made =
        machine.tool("mke2fs").args(["-q", "-t", "ext4", "-b", "4096"]).arg(&path).stdout(Stdio::null()).status();
    assert!(made.unwrap().success());
    let bytes = fs::read(path).unwrap();
    (dir, bytes)
}

#[test]
fn a_guest_with_a_read_only_nvdimm_reads_and_cannot_write() {
    guest::each("a read-only NVDIMM", |machine| {
        let (dir, before) = formatted(machine);
        let server = serve(machine, dir.path(), &["a"], &IMAGE);
        let line = recipe(&server, "a read-only ACPI NVDIMM over this memory");
        let mut guest = machine.boot().printed(&line).start();
        assert_eq!(guest.ok("cat /sys/block/pmem0/ro"), "1");
        guest.ok("mount -o ro /dev/pmem0 /mnt && test -d /mnt/lost+found && umount /mnt");
        assert_ne!(guest.run("mount -o rw /dev/pmem0 /mnt && touch /mnt/file").status, 0);
        assert_ne!(guest.run("dd if=/dev/zero of=/dev/pmem0 bs=4096 count=4 conv=fsync").status, 0);
        guest.poweroff();
        assert!(fs::read(dir.path().join("img")).unwrap() == before, "it is as it was");
    });
}

/// QEMU 11.1 maps it writable although it is asked not to. Without a descriptor to write with it
/// has nothing mapped then, which a guest sees at its first fsync.
#[test]
fn a_guest_over_the_socket_cannot_write_either() {
    let Some(machine) = guest::machine(CURRENT, "read-only over the socket") else { return };
    let (dir, before) = formatted(machine);
    let server = serve(machine, dir.path(), &["a"], &IMAGE);
    let mut guest = attach(machine, &server, "a");
    assert_ne!(guest.run("dd if=/dev/zero of=/dev/pmem0 bs=4096 count=4 conv=fsync").status, 0);
    let problem = server.json(&["flush-stats"])[0]["problem"].to_string();
    assert!(problem.contains("nothing is mapped: the frontend refused"), "{problem}");
    guest.poweroff();
    assert!(fs::read(dir.path().join("img")).unwrap() == before, "it is as it was");
}
