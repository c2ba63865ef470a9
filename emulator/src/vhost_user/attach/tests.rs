//! Tests of the command lines: word for word, through a real shell, and against programs that are
//! no QEMU.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::*;
use proptest::prelude::*;

const NONE: QemuOffer<'static> =
    QemuOffer { socket: None, memory: None, offset: 0, size: 256 << 20, nvdimm: false, read_only: false };

fn version(major: u32, minor: u32, micro: u32) -> QemuVersion {
    QemuVersion { major, minor, micro }
}

fn qemu(command: &str, version: QemuVersion, has: [bool; 3]) -> Qemu {
    let [vhost_user_test_device, virtio_pmem, nvdimm] = has;
    Qemu { command: command.into(), version, vhost_user_test_device, virtio_pmem, nvdimm }
}

#[test]
fn versions_as_programs_say_them() {
    let parsed = |text| QemuVersion::parse(text).map(|version| version.to_string());
    let said = "QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u14)\nCopyright (c) 2003-2022 Fabrice Bellard";
    assert_eq!(parsed(said).as_deref(), Some("7.2.17"));
    assert_eq!(parsed("QEMU emulator version 11.1.3 (Debian 1:11.1.3)").as_deref(), Some("11.1.3"));
    assert_eq!(parsed("QEMU emulator version 10.2.91-dirty").as_deref(), Some("10.2.91"));
    assert_eq!(parsed("QEMU emulator version 11.1").as_deref(), Some("11.1"));
    assert_eq!(parsed("QEMU emulator version 11.1\n").as_deref(), Some("11.1"));
    for none in
        ["", "QEMU emulator version", "QEMU emulator version 11", "QEMU emulator version .1", "qemu-img version 7.2.1"]
    {
        assert_eq!(parsed(none), None, "{none}");
    }
    assert_eq!(parsed("QEMU emulator version 99999999999.1.0"), None);
    assert!(version(11, 1, 0) > version(11, 0, 93) && version(10, 0, 2) > version(7, 2, 17));
}

#[test]
fn over_vhost_user() {
    let offer = QemuOffer { socket: Some(Path::new("/run/daxlab/a.sock")), ..NONE };
    let [recipe] = recipes(&offer, &[]).try_into().unwrap();
    assert_eq!(
        recipe.command(),
        r"qemu-system-x86_64 -accel tcg -cpu max \
  -machine q35,memory-backend=m0 -m 512M \
  -object memory-backend-memfd,id=m0,size=512M,share=on \
  -chardev socket,id=vu,path=/run/daxlab/a.sock \
  -device vhost-user-test-device-pci,virtio-id=27,num_vqs=1,config_size=16,chardev=vu"
    );
    assert_eq!(recipe.works_with, "QEMU 11.1 and later");
    assert_eq!(recipe.here, "no qemu-system-x86_64 is installed here; this needs 11.1");
    assert!(!recipe.fits);
}

#[test]
fn over_the_same_memory() {
    let offer = QemuOffer { memory: Some(Path::new("/proc/4711/fd/5")), ..NONE };
    let [recipe] = recipes(&offer, &[]).try_into().unwrap();
    assert_eq!(
        recipe.command(),
        r"qemu-system-x86_64 -accel tcg -cpu max \
  -machine q35 -m 512M,slots=2,maxmem=4G \
  -object memory-backend-file,id=nv0,share=on,mem-path=/proc/4711/fd/5,size=256M \
  -device virtio-pmem-pci,memdev=nv0"
    );
    assert!(recipe.notes[0].contains("Flushes stay in QEMU"), "{:?}", recipe.notes);

    let offer =
        QemuOffer { memory: Some(Path::new("/srv/pmem.img")), offset: 2 << 20, size: 32 << 30, nvdimm: true, ..NONE };
    let [recipe] = recipes(&offer, &[]).try_into().unwrap();
    assert_eq!(
        recipe.command(),
        r"qemu-system-x86_64 -accel tcg -cpu max \
  -machine q35,nvdimm=on -m 512M,slots=2,maxmem=34G \
  -object memory-backend-file,id=nv0,share=on,mem-path=/srv/pmem.img,size=32768M,offset=2097152 \
  -device nvdimm,memdev=nv0"
    );
    assert!(recipe.works_with.starts_with("QEMU 8.1 and later"), "{}", recipe.works_with);
    assert!(recipe.notes[1].contains("mkfs.ext4 -E offset=2097152"), "{:?}", recipe.notes);
    assert_eq!(recipes(&NONE, &[]), []);
}

#[test]
fn the_installed_qemu_is_told_apart() {
    let offer = QemuOffer { socket: Some(Path::new("a.sock")), memory: Some(Path::new("a.img")), ..NONE };
    let says =
        |installed: &[Qemu]| recipes(&offer, installed).into_iter().map(|recipe| recipe.here).collect::<Vec<_>>();
    let old = qemu(PROGRAM, version(7, 2, 17), [false, true, true]);
    let new = qemu("/opt/new qemu/bin/qemu-system-x86_64", version(11, 1, 3), [true, true, true]);
    let fits = "installed: 7.2.17 (qemu-system-x86_64): can run this";
    assert_eq!(
        says(std::slice::from_ref(&old)),
        ["installed: 7.2.17 (qemu-system-x86_64): too old for this: needs 11.1", fits]
    );
    let bare = Qemu { vhost_user_test_device: false, virtio_pmem: false, ..new.clone() };
    assert_eq!(
        says(std::slice::from_ref(&bare)),
        [
            "installed: 11.1.3 (/opt/new qemu/bin/qemu-system-x86_64): was built without vhost-user-test-device-pci",
            "installed: 11.1.3 (/opt/new qemu/bin/qemu-system-x86_64): was built without virtio-pmem-pci",
        ]
    );
    // Of several, each way takes the first that can, and the command names it.
    let both = recipes(&offer, &[old, new]);
    assert_eq!(both[1].here, fits);
    assert!(both.iter().all(|recipe| recipe.fits));
    assert!(both[0].command().starts_with("'/opt/new qemu/bin/qemu-system-x86_64' -accel"), "{}", both[0].command());
}

/// What a shell makes of `line`: its words. (bash, because `$'…'` is younger than the dash of many
/// distributions.)
fn words(line: &str) -> Vec<Vec<u8>> {
    let script = format!("printf '%s\\0' {line}");
    let said = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(said.status.success(), "{line}: {}", String::from_utf8_lossy(&said.stderr));
    said.stdout.strip_suffix(b"\0").unwrap().split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// The value of `key` in QEMU's option syntax, read as `util/keyval.c` does: up to a comma that
/// isn't doubled.
fn value(option: &[u8], key: &str) -> Vec<u8> {
    let mut items = vec![Vec::new()];
    let mut rest = option.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            b',' if rest.next_if_eq(&b',').is_none() => items.push(Vec::new()),
            byte => items.last_mut().unwrap().push(byte),
        }
    }
    let key = format!("{key}=");
    let mut found = items.iter().filter_map(|item| item.strip_prefix(key.as_bytes()));
    let value = found.next().unwrap().to_vec();
    assert_eq!(found.next(), None, "given twice");
    value
}

/// The word behind `flag`, in a command whose program may be called anything.
fn behind<'a>(words: &'a [Vec<u8>], flag: &str) -> &'a [u8] {
    let at = words.iter().skip(1).position(|word| word == flag.as_bytes()).unwrap();
    &words[at + 2]
}

fn path() -> impl Strategy<Value = PathBuf> {
    let awkward = proptest::sample::select(b",,'\"\\ $`!*?[{~#&;|<>()\n\t=-%/aZ9\x01\x7f\xc3\xa4\xff".to_vec());
    let byte = prop_oneof![3 => awkward, 1 => 1..=255u8];
    proptest::collection::vec(byte, 1..40).prop_map(|bytes| OsString::from_vec(bytes).into())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_path_survives_shell_and_qemu(socket in path(), memory in path(), command in path(), nvdimm: bool) {
        let offer = QemuOffer { socket: Some(&socket), memory: Some(&memory), offset: 4096, size: 4 << 20, nvdimm, read_only: false };
        let mut installed = [qemu("x", version(11, 1, 0), [true; 3])];
        installed[0].command = command.clone();
        let both = recipes(&offer, &installed);
        let line = both[0].command();
        prop_assert!(!line.chars().any(|c| c.is_control() && c != '\n'), "{line:?}");
        prop_assert_eq!(line.lines().count(), both[0].lines.len(), "a path broke the line");
        let found = words(&line);
        prop_assert_eq!(&found[0], command.as_os_str().as_bytes());
        prop_assert_eq!(found.len(), 15, "a path became several words");
        prop_assert_eq!(value(behind(&found, "-chardev"), "path"), socket.as_os_str().as_bytes());
        let found = words(&both[1].command());
        let object = behind(&found, "-object");
        prop_assert_eq!(value(object, "mem-path"), memory.as_os_str().as_bytes());
        prop_assert_eq!(value(object, "offset"), b"4096");
        prop_assert_eq!(value(object, "size"), b"4M");
    }
}

/// An executable that runs `script`. Another process writes it: a descriptor of ours that is open
/// for writing could be in the child that another test is just starting, and the system runs no
/// file that is open for writing (`ETXTBSY`).
fn program(folder: &Path, script: &str) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let path = folder.join(PROGRAM);
    let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod +x "$0""#;
    assert!(Command::new("sh").arg("-c").arg(write).arg(&path).arg(script).status().unwrap().success());
    path
}

#[test]
fn programs_that_are_no_qemu_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, script| program(&folder.path().join(name), script);
    let hangs = at("hangs", "echo QEMU emulator version 11.1.0; exec sleep 1000");
    let error = ask(&hangs, &[], Duration::from_millis(100)).unwrap_err();
    assert!(matches!(error, ProbeError::Slow { .. }), "{error}");
    let floods = at("floods", "exec cat /dev/zero");
    let said = ask(&floods, &[], PATIENCE).unwrap();
    assert!((OUTPUT_MAX..OUTPUT_MAX + 4096).contains(&said.len()), "{}", said.len());
    assert!(matches!(probe(&floods), Err(ProbeError::NotQemu { .. })));
    // Closes its output and lives on: not waited for.
    let lingers = at("lingers", "echo hello; exec sleep 1000 >/dev/null");
    assert_eq!(ask(&lingers, &[], PATIENCE).unwrap(), "hello\n");
    assert!(matches!(probe(&folder.path().join("absent")), Err(ProbeError::Run { .. })));
    assert!(matches!(probe(folder.path()), Err(ProbeError::Run { .. })));
}

#[test]
fn the_search_path_is_walked_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let says = |version: &str, devices: &str| {
        format!(
            "if [ \"$1\" = --version ]; then echo 'QEMU emulator version {version}'; else printf '%s\\n' {devices}; fi"
        )
    };
    let [broken, old, new, link, plain] =
        ["broken", "old", "new", "link", "plain"].map(|name| folder.path().join(name));
    program(&broken, "exit 1");
    program(&old, &says("7.2.17", r#"'name "virtio-pmem-pci", bus PCI' 'name "nvdimm", desc "DIMM"'"#));
    let newer = program(&new, &says("11.1.3", r#"'name "vhost-user-test-device-pci", bus PCI' 'name "nvdimm-x"'"#));
    std::os::unix::fs::symlink(&new, &link).unwrap();
    std::fs::create_dir(&plain).unwrap();
    std::fs::write(plain.join(PROGRAM), "not executable").unwrap();
    let path = |folders: &[&PathBuf]| std::env::join_paths(folders).unwrap();
    let found = installed(Some(&path(&[&plain, &old, &new, &link])));
    assert_eq!(
        found,
        [
            qemu(PROGRAM, version(7, 2, 17), [false, true, true]),
            qemu(newer.to_str().unwrap(), version(11, 1, 3), [true, false, false]),
        ]
    );
    // Its name leads to the broken one, so it goes by its path.
    let found = installed(Some(&path(&[&broken, &new])));
    assert_eq!(found[0].command, newer);
    assert_eq!(installed(None), []);
}

#[test]
fn the_qemu_of_this_machine_answers() {
    let found = installed(std::env::var_os("PATH").as_deref());
    if found.is_empty() {
        eprintln!("not run: no {PROGRAM} is installed");
    }
    for qemu in found {
        assert!(qemu.version > version(2, 0, 0), "{qemu:?}");
        assert!(qemu.virtio_pmem || qemu.nvdimm, "a PC without any: {qemu:?}");
    }
}

#[test]
fn read_only_memory_is_offered_as_an_nvdimm_that_is_not_armed() {
    let offer = QemuOffer { memory: Some(Path::new("/srv/pmem.img")), read_only: true, ..NONE };
    let [recipe] = recipes(&offer, &[]).try_into().unwrap();
    assert_eq!(
        recipe.command(),
        r"qemu-system-x86_64 -accel tcg -cpu max \
  -machine q35,nvdimm=on -m 512M,slots=2,maxmem=4G \
  -object memory-backend-file,id=nv0,share=on,mem-path=/srv/pmem.img,size=256M,readonly=on \
  -device nvdimm,memdev=nv0,unarmed=on"
    );
}
