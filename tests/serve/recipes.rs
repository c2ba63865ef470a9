//! The QEMU command lines that the server prints: which lines, for which version of QEMU, and what
//! an NVDIMM finds in its memory.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use crate::common::daxlab;
use crate::server::{MIB, Server, outcome};

const FILE: [&str; 6] = ["--control", "a.ctl", "--file", "data", "--create", "4MiB"];
const IMAGE: [&str; 6] = ["--control", "a.ctl", "--image", "img", "--size", "4MiB"];

/// A program that says it is a QEMU of this version, with these devices.
fn qemu(dir: &Path, version: &str, devices: &[&str]) -> String {
    let path = dir.join(format!("qemu-{version}"));
    let devices: String = devices.iter().map(|device| format!("name \"{device}\"\n")).collect();
    let script = format!(
        "#!/bin/sh\ncase $1 in --version) echo 'QEMU emulator version {version}';; *) echo '{devices}';; esac\n"
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

fn refused(dir: &Path, args: &[&str]) -> (i32, String) {
    let (code, out, err) =
        outcome(&daxlab().args(["serve", "--socket", "a"]).args(args).current_dir(dir).output().unwrap());
    assert!(out.is_empty() && !dir.join("a").exists() && !dir.join("img").exists(), "{out}{err}");
    (code, err)
}

#[test]
fn a_qemu_that_was_named_must_be_able_to() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let old = qemu(dir, "7.2.17", &["virtio-pmem-pci", "nvdimm"]);
    let (code, err) = refused(dir, &[&FILE[..], &["--qemu", &old]].concat());
    assert!(
        code == 3 && err.contains("7.2.17") && err.contains("needs 11.1") && err.contains("needs 8.1"),
        "{code}: {err}"
    );
    assert!(err.contains("`daxlab serve --socket a --image FILE --size 4MiB`"), "{err}");
    let bare = qemu(dir, "11.1.3", &[]);
    let (code, err) = refused(dir, &[&IMAGE[..], &["--qemu", &bare]].concat());
    assert!(code == 3 && err.contains("without vhost-user-test-device-pci"), "{code}: {err}");
    let (code, err) = refused(dir, &[&IMAGE[..], &["--qemu", &bare, "--nvdimm"]].concat());
    assert!(code == 3 && err.contains("without nvdimm"), "{code}: {err}");
    let (code, err) = refused(dir, &[&IMAGE[..], &["--qemu", "/bin/echo"]].concat());
    assert!(code == 2 && err.contains("QEMU emulator version"), "{code}: {err}");
    let (code, err) = refused(dir, &[&IMAGE[..], &["--qemu", "none"]].concat());
    assert!(code == 3 && err.contains("none"), "{code}: {err}");

    // 7.2 has a device of its own for an image, as if it was found.
    let server = Server::start(dir, &["b"], &["--image", "other", "--size", "4MiB", "--qemu", &old]);
    let line = "what works with it is QEMU's own virtio-pmem over this memory, the first command below";
    assert!(server.introduction.contains(line), "{}", server.introduction);
    // 7.2 can have an NVDIMM.
    let server = Server::start(dir, &["a"], &[&IMAGE[..], &["--qemu", &old, "--nvdimm"]].concat());
    let text = &server.introduction;
    assert!(text.contains(&format!("{old} -accel ")), "{text}");
    // KVM may open and boot no guest: no line has it, and it is named where it opens.
    let opens = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    assert!(!text.contains("-accel kvm -accel"), "{text}");
    assert_eq!(text.contains("KVM opens on this machine: put `-accel kvm` in front of"), opens, "{text}");
}

/// What a machine has that took its QEMU from its distribution.
#[test]
fn with_an_old_qemu_what_works_comes_first_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let introduction = |version: &str, args: &[&str]| {
        let named = qemu(&bin, version, &["virtio-pmem-pci", "nvdimm"]);
        fs::rename(named, bin.join("qemu-system-x86_64")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = format!("{}:/usr/bin:/bin", bin.display());
        Server::run(daxlab().env("PATH", path), dir.path(), &["a"], args).introduction.clone()
    };
    for version in ["7.2.17", "10.0.2"] {
        // A file does not begin where its volume begins, which QEMU knows only from 8.1 on.
        let ways = if version.starts_with('7') { &[&IMAGE][..] } else { &[&IMAGE, &FILE] };
        for args in ways {
            let text = introduction(version, *args);
            let line = format!(
                "QEMU {version} here can't use a socket of this server; what works with it is QEMU's own virtio-pmem over this memory, the first command below;"
            );
            assert!(text.contains(&line), "{text}");
            let at = |word: &str| text.find(word).unwrap_or_else(|| panic!("{word}: {text}"));
            assert!(at(&line) < at("-device virtio-pmem-pci"), "{text}");
            assert!(at("-device virtio-pmem-pci") < at("-device vhost-user-test-device-pci"), "{text}");
        }
        let instead = |more: &[&str], title: &str, options: &str| {
            let text = introduction(version, &[&FILE[..], &["--extents", "7"], more].concat());
            let line = format!(
                "none of the ways below works with it, but {title} does over an image: `daxlab serve --socket a --image FILE --size 4MiB{options}`"
            );
            assert!(text.contains(&line), "{line} is not in: {text}");
            text
        };
        let text = instead(&[], "QEMU's own virtio-pmem over this memory", "");
        assert!(text.contains("; `scripts/try-guest SOCKET` fetches"), "{text}");
        // Its guests are not seen.
        assert!(!text.contains("fail-flush") && !text.contains("flush-stats"), "{text}");
        let text = instead(&["--read-only"], "a read-only ACPI NVDIMM over this memory", " --read-only");
        assert!(!text.contains("--nvdimm"), "{text}");
    }
    let text = introduction("7.2.17", &[&FILE[..], &["--nvdimm"]].concat());
    assert!(text.contains("`daxlab serve --socket a --image FILE --size 4MiB --nvdimm`"), "{text}");
    let text = introduction("10.0.2", &[&FILE[..], &["--read-only"]].concat());
    assert!(
        !text.contains("--nvdimm") && text.contains("goes unseen, and nothing is leased or pinned for it."),
        "{text}"
    );
}

#[test]
fn every_way_to_attach_is_printed_whatever_is_installed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut command = daxlab();
    command.env("PATH", dir);
    let server = Server::run(&mut command, dir, &["a", "b"], &FILE);
    let text = &server.introduction;
    for socket in ["a", "b"] {
        let line = format!("-chardev socket,id=vu,path={}", dir.join(socket).display());
        assert!(text.contains(&line), "{line} is not in {text}");
    }
    assert!(text.contains("no qemu-system-x86_64 is installed here; this needs 11.1"), "{text}");
    assert!(text.contains("no QEMU is installed here; `scripts/try-guest SOCKET` fetches"), "{text}");
    assert!(text.contains("Flushes stay in QEMU") && text.contains("nothing is leased or pinned for it"), "{text}");
    let memory = format!("mem-path=/proc/{}/fd/", server.pid().as_raw_pid());
    assert!(text.contains(&memory), "{memory} is not in {text}");
    assert!(text.contains("daxlab ctl a.ctl truncate data 0"), "{text}");
    assert!(text.contains("read+U lease") && text.contains("guest export"), "{text}");

    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["a"], &[&FILE[..], &["--extents", "8"]].concat());
    let text = &server.introduction;
    assert!(text.contains("lies in 8 extents, and QEMU's own devices want one"), "{text}");
    assert!(text.contains("more than 7 extents: a machine has 8 regions"), "{text}");
    assert!(text.contains("`vhost_set_mem_table failed: No buffer space available` do no harm"), "{text}");
    assert!(!text.contains("together"), "{text}");

    // Each device alone is within bounds, all of them in one machine are not.
    let dir = tempfile::tempdir().unwrap();
    let files = ["--file", "more", "--extents", "4"];
    let server = Server::start(dir.path(), &["a", "b"], &[&FILE[..], &files].concat());
    assert!(server.introduction.contains("together 8 extents"), "{}", server.introduction);
}

#[test]
fn what_is_to_be_tried_can_be_pasted() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--control", "it's.ctl", "--file", "my data", "--create", "4MiB"];
    let server = Server::start(dir.path(), &["a"], &args);
    let line = r"daxlab ctl 'it'\''s.ctl' truncate 'my data' 0";
    assert!(server.introduction.contains(line), "{}", server.introduction);
}

#[test]
fn an_nvdimm_gets_its_info_block_once_and_only_where_nothing_lies() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let nvdimm = [&IMAGE[..], &["--nvdimm"]].concat();
    let (code, err) = refused(dir, &["--image", "img", "--size", "2MiB", "--nvdimm"]);
    assert!(code == 2 && err.contains("4 MiB"), "{code}: {err}");
    let mut server = Server::start(dir, &["a"], &nvdimm);
    assert!(server.introduction.contains("img got an fsdax info block"), "{}", server.introduction);
    assert!(server.introduction.contains("-device nvdimm,memdev=nv0"), "{}", server.introduction);
    server.terminate();
    let image = fs::read(dir.join("img")).unwrap();
    assert_eq!(&image[4096..4096 + 16], b"NVDIMM_PFN_INFO\0");
    let mut server = Server::start(dir, &["a"], &nvdimm);
    assert!(server.introduction.contains("img has its fsdax info block"), "{}", server.introduction);
    server.terminate();
    assert!(fs::read(dir.join("img")).unwrap() == image, "left as it was");

    // A file system of a virtio-pmem guest begins at 0.
    let taken = fs::File::create(dir.join("taken")).unwrap();
    taken.set_len(4 * MIB).unwrap();
    taken.write_all_at(b"superblock", 1024).unwrap();
    let args = ["serve", "--socket", "a", "--image", "taken", "--size", "4MiB", "--nvdimm"];
    let (code, _, err) = outcome(&daxlab().args(args).current_dir(dir).output().unwrap());
    assert!(code == 2 && err.contains("byte 1024 is in use"), "{code}: {err}");
    assert_eq!(fs::read(dir.join("taken")).unwrap().iter().filter(|byte| **byte != 0).count(), 10);
}

#[test]
fn a_file_that_is_an_attached_nvdimm_is_held_all_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["a"], &[&FILE[..], &["--nvdimm"]].concat());
    assert_eq!(server.json(&["pins", "data"]).as_array().unwrap().len(), 1);
    let (code, out, _) = server.ctl(&["truncate", "data", "0"]);
    assert!(code == 1 && out.contains("as an NVDIMM"), "{code}: {out}");
}
