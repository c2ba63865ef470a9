//! The first file system of a guest: the fetched tools, the kernel modules it needs, and the
//! program that answers commands.
//!
//! Owns the archive's format and the order of modules. The archive is what the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst` calls "newc"; the order comes from
//! the `depends=` that each module carries in its `.modinfo`, so that it holds for a kernel which
//! has part of them built in.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{fs, io};

/// What a guest needs beyond a kernel: the bus, persistent memory by virtio and by ACPI. A module
/// that was not fetched is one that the kernel has built in, or does not have: the device is missed
/// later, with its name.
const WANTED: [&str; 5] = ["virtio_pci", "nd_btt", "nd_pmem", "virtio_pmem", "nfit"];

/// What a guest has beyond that at its hands: `load NAME` loads it, after what it depends on.
const AT_HAND: [&str; 1] = ["xfs"];

/// Answers commands on the second serial line, see [`super::guest`]: `TOKEN BASE64` comes in,
/// `TOKEN begin`, what the script says, and `TOKEN end STATUS` go out. A line feed before the last
/// marker makes it start a line whatever the script wrote.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/sbin:/bin HOME=/
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox --install -s /bin
mount -t tmpfs tmp /tmp
while read -r module; do
  insmod "/modules/$module.ko" || echo "init: $module could not be loaded" >/dev/console
done </modules/order
settle
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
token=$(sed 's/.*daxlab.token=\([^ ]*\).*/\1/' /proc/cmdline)
printf '\n%s ready %s\n' "$token" "$(cat /proc/sys/kernel/random/boot_id)" >&3
while read -r token script <&3; do
  printf '%s' "$script" | base64 -d >/tmp/script
  printf '\n%s begin\n' "$token" >&3
  sh /tmp/script </dev/null >&3 2>&1 3>&-
  printf '\n%s end %d\n' "$token" "$?" >&3
done
"#;

/// `fsync FILE` in a guest: fsync(2) on a file that is there, which busybox has no command for.
const FSYNC: &str = "#!/bin/sh\nexec dd if=/dev/null of=\"$1\" conv=notrunc,fsync status=none\n";

/// `settle` in a guest: waits until every device found so far has its driver, which for namespaces
/// of persistent memory is another thread's work (`nd_device_register`, `wait_probe_show` in
/// drivers/nvdimm/bus.c). Without it `/dev/pmem0` comes some time after the driver was bound.
const SETTLE: &str =
    "#!/bin/sh\nfor bus in /sys/bus/nd/devices/ndbus*; do\n  test ! -e $bus || cat $bus/wait_probe >/dev/null\ndone\n";

/// `load NAME` in a guest: loads a module that the boot did not; nothing if the kernel has it built
/// in.
const LOAD: &str = "#!/bin/sh\ntest ! -e /modules/$1.order || while read -r module; do
  grep -q \"^$module \" /proc/modules || insmod \"/modules/$module.ko\" || exit 1\ndone </modules/$1.order\n";

/// A "newc" archive as it grows.
struct Archive(Vec<u8>);

const REGULAR: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    /// Adds an entry; `device` is the number of a device node and else 0/0.
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        let size = u32::try_from(data.len()).expect("a file of an initramfs is small");
        let name_size = u32::try_from(name.len() + 1).expect("a name is short");
        // c_magic, then ino (0: no entry is a hard link), mode, uid, gid, nlink, mtime, filesize,
        // devmajor, devminor, rdevmajor, rdevminor, namesize, check (0 in "070701").
        let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.0.extend_from_slice(b"070701");
        for field in fields {
            self.0.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend_from_slice(data);
        self.pad();
    }

    /// Header with name, and data, each end on a multiple of 4 bytes.
    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn folder(&mut self, name: &str) {
        self.add(name, FOLDER | 0o755, (0, 0), &[]);
    }

    /// Adds what is below `dir` under `prefix` ("" or "name/").
    fn tree(&mut self, dir: &Path, prefix: &str) -> io::Result<()> {
        let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if kind.is_symlink() {
                let target = fs::read_link(path)?;
                self.add(&name, SYMLINK | 0o777, (0, 0), target.to_string_lossy().as_bytes());
            } else if kind.is_dir() {
                self.folder(&name);
                self.tree(&path, &format!("{name}/"))?;
            } else {
                let mode = entry.metadata()?.permissions().mode() & 0o777;
                self.add(&name, REGULAR | mode, (0, 0), &fs::read(path)?);
            }
        }
        Ok(())
    }

    fn end(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), &[]);
        self.0
    }
}

/// The initramfs of the machine whose folders `tools` and `kernel/modules` are given.
///
/// # Errors
/// What reading the folders said.
pub(crate) fn build(tools: &Path, modules: &Path) -> io::Result<Vec<u8>> {
    let mut archive = Archive(Vec::new());
    for name in ["dev", "proc", "sys", "tmp", "mnt", "modules"] {
        archive.folder(name);
    }
    // Opened by the kernel for init before init has mounted anything.
    archive.add("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), &[]);
    archive.tree(tools, "")?;
    archive.add("init", REGULAR | 0o755, (0, 0), INIT.as_bytes());
    archive.add("sbin/fsync", REGULAR | 0o755, (0, 0), FSYNC.as_bytes());
    archive.add("sbin/settle", REGULAR | 0o755, (0, 0), SETTLE.as_bytes());
    archive.add("sbin/load", REGULAR | 0o755, (0, 0), LOAD.as_bytes());
    let mut loaded = Loaded { modules, seen: BTreeSet::new(), order: String::new(), archive };
    for name in WANTED {
        loaded.load(name)?;
    }
    loaded.end_order("modules/order");
    for name in AT_HAND {
        loaded.load(name)?;
        loaded.end_order(&format!("modules/{name}.order"));
    }
    Ok(loaded.archive.end())
}

/// Modules as they are put in order: each after those it depends on.
struct Loaded<'a> {
    modules: &'a Path,
    seen: BTreeSet<String>,
    order: String,
    archive: Archive,
}

impl Loaded<'_> {
    /// Writes down what was loaded since the last order.
    fn end_order(&mut self, name: &str) {
        let order = std::mem::take(&mut self.order);
        self.archive.add(name, REGULAR | 0o644, (0, 0), order.as_bytes());
    }

    fn load(&mut self, name: &str) -> io::Result<()> {
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        // A file may spell with a dash what the kernel spells with an underscore.
        let spellings = [name.to_owned(), name.replace('_', "-")];
        let Some(path) =
            spellings.iter().map(|name| self.modules.join(name).with_extension("ko")).find(|path| path.exists())
        else {
            return Ok(());
        };
        let module = fs::read(path)?;
        for dependency in depends(&module) {
            self.load(&dependency)?;
        }
        self.archive.add(&format!("modules/{name}.ko"), REGULAR | 0o644, (0, 0), &module);
        self.order.push_str(name);
        self.order.push('\n');
        Ok(())
    }
}

/// The names after `depends=` in a module's `.modinfo`, whose entries are separated by zero bytes.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else { return Vec::new() };
    let value = module[at + key.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}
