//! QEMU's own devices over a file, and the test harness itself: the reference for the other tests
//! here.

use std::time::Duration;

use crate::guest::BootGuest as _;
use crate::{REBIND, SIZE, assert_bytes, assert_clean, assert_dumped, guest, image, seq};

#[test]
fn qemus_own_device_keeps_what_a_guest_syncs() {
    guest::each("QEMU's own virtio-pmem", |machine| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pmem.img");
        image(&path, SIZE);
        let mut guest = machine.boot().virtio_pmem(&path, SIZE).start();

        // Probe.
        assert_eq!(guest.ok("cat /sys/block/pmem0/size"), (SIZE / 512).to_string());

        // The raw device, over more than one piece of 2 MiB.
        let raw = seq(1, 700_000);
        guest.ok("seq 1 700000 | dd of=/dev/pmem0 bs=4k seek=256 iflag=fullblock conv=fsync,notrunc 2>/dev/null");
        assert_bytes(&path, 1 << 20, raw.as_bytes());

        // A file system: what was synced is whole after a reset that writes nothing back.
        guest.ok("mkfs.ext4 -q -b 4096 /dev/pmem0 && mount -o dax /dev/pmem0 /mnt");
        assert!(guest.ok("grep /mnt /proc/mounts").contains("dax=always"));
        guest.ok("seq 1 200000 >/mnt/synced && fsync /mnt/synced");
        guest.reset();
        guest.ok("mount -o dax /dev/pmem0 /mnt");
        guest.ok("seq 1 200000 | cmp - /mnt/synced && umount /mnt");

        // The driver goes and comes.
        guest.ok(REBIND);
        guest.ok("mount -o dax /dev/pmem0 /mnt && seq 1 200000 | cmp - /mnt/synced && umount /mnt");
        guest.poweroff();

        assert_dumped(machine, &path, "synced", &seq(1, 200_000));
        assert_clean(machine, &path);
    });
}

#[test]
fn an_nvdimm_without_an_info_block_is_no_dax_device() {
    guest::each("QEMU's ACPI NVDIMM", |machine| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nvdimm.img");
        image(&path, SIZE);
        let mut guest = machine.boot().nvdimm(&path, SIZE).start();

        assert_eq!(guest.ok("cat /sys/block/pmem0/size"), (SIZE / 512).to_string());
        guest.ok("seq 1 100000 | dd of=/dev/pmem0 bs=4k iflag=fullblock conv=fsync,notrunc 2>/dev/null");
        assert_bytes(&path, 0, seq(1, 100_000).as_bytes());
        // The namespace is raw: its pages have no struct page in the guest, so that its ext4
        // refuses dax, and only dax.
        guest.ok("mkfs.ext4 -q -b 4096 /dev/pmem0");
        assert_ne!(guest.run("mount -o dax /dev/pmem0 /mnt").status, 0);
        assert!(guest.ok("dmesg").contains("DAX unsupported by block device"));
        guest.ok("mount /dev/pmem0 /mnt && umount /mnt");
        guest.poweroff();
    });
}

#[test]
fn a_guest_answers_and_its_ends_are_told() {
    guest::each("the harness", |machine| {
        let mut guest = machine.boot().start();

        let output = guest.run("echo one; echo two >&2; printf three; exit 7");
        assert_eq!((output.status, output.text.as_str()), (7, "one\ntwo\nthree"));
        assert_eq!(guest.run("exit 0").text, "");
        // Long in both directions, in several lines, with bytes that a terminal would take for its
        // own.
        assert_eq!(guest.run(&format!("# {}\nseq 1 9000", "x".repeat(20_000))).text, seq(1, 9000));
        assert_eq!(guest.ok("printf '\\003\\004\\r\\021' | od -An -tx1"), "03 04 0d 11");

        // A command is answered once, and apart from the one that waits behind it.
        let first = guest.launch("echo first; exit 1").unwrap();
        let second = guest.launch("echo second; exit 2").unwrap();
        assert_eq!(guest.finish(first, Duration::from_secs(60)).unwrap().status, 1);
        assert_eq!(guest.finish(second, Duration::from_secs(60)).unwrap().text, "second\n");

        // What was in memory is gone after a restart.
        guest.ok("echo x >/tmp/mark");
        guest.reboot();
        assert_eq!(guest.run("test -e /tmp/mark").status, 1);

        // A wait that is too long, and a guest that is gone, are errors that show the console.
        guest.ok("echo 'a word on the console' >/dev/console");
        let late = guest.try_run("sleep 1000", Duration::from_millis(1)).unwrap_err().to_string();
        assert!(late.contains("sleep 1000") && late.contains("not within 1ms"), "{late}");
        let mut other = machine.boot().start();
        let killed = other.pid();
        other.ok("echo 'a word on the console' >/dev/console");
        assert!(std::process::Command::new("kill").args(["-KILL", &killed.to_string()]).status().unwrap().success());
        let gone = other.try_run("true", Duration::from_secs(60)).unwrap_err().to_string();
        assert!(gone.contains("signal: 9") && gone.contains("a word on the console"), "{gone}");
        assert!(!other.is_running());
    });
}
