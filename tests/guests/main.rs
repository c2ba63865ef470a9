//! Real guests over persistent memory: what a guest writes and syncs is in the host's file, byte
//! for byte, when the server, the file or the power goes away too.
//!
//! Runs with `DAXLAB_GUESTS=1`, as `make guests` does. A machine that cannot be fetched prints `not
//! run` with its reason.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]
#![allow(unreachable_pub, dead_code, reason = "a helper of one file is no interface")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../guest/mod.rs"]
mod guest;
#[path = "../serve/server.rs"]
mod server;

mod attach;
mod death;
mod edge;
mod more;
mod oracle;
mod own_device;
mod read_only;
mod served;
mod shapes;
mod try_guest;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use guest::Machine;

/// No power of two, and not the size of anything else: a device of this size is ours.
const SIZE: u64 = 66 << 20;

/// A sparse file of `size` bytes.
fn image(path: &Path, size: u64) {
    File::create(path).unwrap().set_len(size).unwrap();
}

/// Takes the first virtio-pmem device from its driver and gives it back, as a shell script.
const REBIND: &str = "cd /sys/bus/virtio/drivers/virtio_pmem
    device=$(ls -d virtio* | head -n 1)
    echo $device >unbind && test ! -e /dev/pmem0 && echo $device >bind && settle && test -b /dev/pmem0";

/// What `seq FIRST LAST` prints, in the guest and here: every byte is known, and no two pieces are
/// alike.
fn seq(first: u32, last: u32) -> String {
    (first..=last).map(|number| format!("{number}\n")).collect()
}

/// Whether the file at `path` has `expected` at `offset`; tells the first byte that differs.
fn assert_bytes(path: &Path, offset: u64, expected: &[u8]) {
    let mut found = vec![0; expected.len()];
    File::open(path).unwrap().read_exact_at(&mut found, offset).unwrap();
    let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
    assert_eq!(differs, None, "first byte that differs, from {offset}");
}

/// The content of a file in an unmounted ext4, by the machine's debugfs, by way of a file beside
/// the image.
fn dumped(machine: &Machine, image: &Path, name: &str) -> Vec<u8> {
    // debugfs splits its requests at white space: it gets no path in one.
    let dir = image.parent().unwrap();
    let request = format!("dump {name} dumped");
    let run = machine.tool("debugfs").args(["-R", &request]).arg(image).current_dir(dir).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    fs::read(dir.join("dumped")).unwrap()
}

/// Asserts that it has `expected` in it.
fn assert_dumped(machine: &Machine, image: &Path, name: &str, expected: &str) {
    let found = dumped(machine, image, name);
    assert!(found == expected.as_bytes(), "{name}: {} bytes, and not the guest's {}", found.len(), expected.len());
}

/// Asserts that e2fsck, on the host, finds nothing to say about an unmounted ext4.
fn assert_clean(machine: &Machine, image: &Path) {
    let run = machine.tool("e2fsck").arg("-fn").arg(image).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
}
