//! The first file system of a guest: the fetched tools, the kernel modules it needs, and the
//! program that answers commands.
//!
//! It owns what a guest does before its first command, and the commands that are no program of
//! another's: `settle`, `load`, `fsync`. Invariant: `init` says that it is ready only when every
//! device found so far has its driver. Counterpart: mkinitramfs(8).

mod archive;
mod modules;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use archive::{Archive, CHARACTER_DEVICE, REGULAR};
use modules::ModuleFiles;

/// What a guest needs beyond a kernel: the bus, persistent memory by virtio and by ACPI. A module
/// that was not fetched is one that the kernel has built in, or does not have: the device is missed
/// later, with its name.
const WANTED: [&str; 5] = ["virtio_pci", "nd_btt", "nd_pmem", "virtio_pmem", "nfit"];

/// What a guest has beyond that at its hands: `load NAME` loads it, after what it depends on.
const AT_HAND: [&str; 10] =
    ["xfs", "ext4", "virtio_blk", "dax_pmem", "device_dax", "dm_mod", "brd", "dummy", "ib_uverbs", "rdma_rxe"];

/// Answers commands on the second serial line, see [`crate::vm`]: `TOKEN BASE64` comes in,
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

/// The initramfs for the programs in `tools` and a kernel whose modules are below `modules`.
///
/// # Errors
/// What reading the folders said; a module that can't be unpacked.
pub fn build(tools: &Path, modules: &Path) -> io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for name in ["dev", "proc", "sys", "tmp", "mnt", "modules"] {
        archive.folder(name)?;
    }
    // Opened by the kernel for init before init has mounted anything.
    archive.add("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), &[])?;
    archive.tree(tools, "")?;
    let programs = [("init", INIT), ("sbin/fsync", FSYNC), ("sbin/settle", SETTLE), ("sbin/load", LOAD)];
    for (name, text) in programs {
        archive.add(name, REGULAR | 0o755, (0, 0), text.as_bytes())?;
    }
    let files = ModuleFiles::below(modules)?;
    let mut archived = BTreeSet::new();
    let at_hand = AT_HAND.iter().map(|name| (format!("modules/{name}.order"), std::slice::from_ref(name)));
    for (list, names) in std::iter::once(("modules/order".to_owned(), &WANTED[..])).chain(at_hand) {
        // Each list is whole: `load` passes over what is loaded already.
        let (mut seen, mut order) = (BTreeSet::new(), String::new());
        for name in names {
            for module in files.with_dependencies(name, &mut seen)? {
                order.extend([module.name.as_str(), "\n"]);
                if archived.insert(module.name.clone()) {
                    archive.add(&format!("modules/{}.ko", module.name), REGULAR | 0o644, (0, 0), &module.content)?;
                }
            }
        }
        archive.add(&list, REGULAR | 0o644, (0, 0), order.as_bytes())?;
    }
    archive.end()
}
