//! A disk that has this program with its libraries, and scenarios, for a guest.
//!
//! It owns the layout: a root file system for chroot(8), in which the program runs with the host's
//! own C library, whatever the guest's programs have. Invariant: the guest can't write to it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guests::vm::GuestMachine;

use crate::language::Scenario;
use crate::suite::linux::Statements;

/// The folders on the disk over which something of the guest is mounted.
const MOUNTED: [&str; 6] = ["dev", "proc", "sys", "tmp", "mnt", "page-cache"];
/// Beside the files: inodes and the like, in MiB.
const SPARE_MIB: u64 = 32;

/// What is on the disk.
pub(super) struct ProgramDisk<'a> {
    pub(super) program: &'a Path,
    pub(super) scenarios: &'a [Scenario],
}

impl ProgramDisk<'_> {
    /// Writes the disk to `disk`, by way of a folder in `work`.
    ///
    /// # Errors
    /// A file that can't be read or written; a program whose libraries are not found.
    pub(super) fn write(&self, machine: &GuestMachine, work: &Path, disk: &Path) -> io::Result<()> {
        let root = work.join("root");
        for folder in MOUNTED.iter().chain(&["lib64", "scenarios"]) {
            std::fs::create_dir_all(root.join(folder))?;
        }
        let mut bytes = std::fs::copy(self.program, root.join("daxlab"))?;
        for (name, path) in libraries(self.program)? {
            bytes += std::fs::copy(path, root.join("lib64").join(name))?;
        }
        for (number, scenario) in self.scenarios.iter().enumerate() {
            std::fs::write(root.join(file(number)), scenario.source.text())?;
        }
        machine.ext4_image(&root, disk, bytes.div_ceil(1 << 20) + SPARE_MIB)
    }
}

/// Where a scenario lies on the disk: its number, as a file's name need not be one in a guest.
fn file(number: usize) -> String {
    format!("scenarios/{number}.scn")
}

/// The shared libraries of a program and its loader, by the names under which the loader looks for
/// them (ld.so(8), LD_TRACE_LOADED_OBJECTS).
fn libraries(program: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut trace = Command::new(program);
    // A program without a loader prints its version instead.
    trace.arg("--version").env("LD_TRACE_LOADED_OBJECTS", "1").stdin(Stdio::null());
    let said = trace.output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let mut found = Vec::new();
    for line in said.lines() {
        // `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` of the loader; the vDSO has no path.
        let (name, path) = line.trim().split_once(" => ").unwrap_or((line.trim(), line.trim()));
        let path = path.rsplit_once(" (").map_or(path, |(path, _)| path);
        if path == "not found" {
            return Err(io::Error::other(format!("{name}, which {} needs, is not found", program.display())));
        }
        if path.starts_with('/') {
            let name = Path::new(name.rsplit_once(" (").map_or(name, |(name, _)| name));
            let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.push((name, PathBuf::from(path)));
        }
    }
    Ok(found)
}

/// Mounts the disk in a guest, and the one without DAX: a part of a shell script that has the
/// function `lacks`.
pub(super) fn mount_script(failed: i32) -> String {
    let binds: String = ["dev", "proc", "sys", "mnt"]
        .iter()
        .map(|folder| format!("mount --bind /{folder} /program/{folder} || exit {failed}\n"))
        .collect();
    format!(
        "load virtio_blk; load ext4; mkdir -p /program
        test -b /dev/vda || lacks 'has no virtio disk: it needs CONFIG_VIRTIO_PCI and CONFIG_VIRTIO_BLK'
        grep -qw ext4 /proc/filesystems || lacks 'has no ext4, which the disk with daxlab has: it needs CONFIG_EXT4_FS'
        mount -t ext4 -o ro /dev/vda /program || exit 1
        mount -t tmpfs tmp /program/tmp || exit 1
        mount -t ext4 /dev/vdb /program/page-cache || exit 1
        {binds}"
    )
}

/// Gives a guest a Soft-RoCE device. Without it the scenarios that need it are not run, with the
/// reason. A page and the headers of a packet fit into the network device's largest packet.
pub(super) fn soft_roce_script() -> &'static str {
    "for module in dummy ib_uverbs rdma_rxe; do load $module; done >/dev/null 2>&1
        ip link set dummy0 mtu 4200 up 2>/dev/null && ip addr add 10.83.0.1/24 dev dummy0 &&
            LD_LIBRARY_PATH=/lib64 chroot /program /daxlab soft-roce dummy0
        true"
}

/// Runs the scenarios with these numbers of the disk in a guest, as JSON: a shell script.
pub(super) fn run_script(scenarios: &[usize], statements: Statements) -> String {
    let ranked = if statements == Statements::OfPresets { " --which-design" } else { "" };
    let files: String = scenarios.iter().map(|number| format!(" /{}", file(*number))).collect();
    program_script(&format!("run{ranked}{files}"))
}

/// Runs random sequences in a guest, as JSON: a shell script.
pub(super) fn random_script(sequences: u64, seed: u64) -> String {
    program_script(&format!("random --sequences {sequences} --seed {seed}"))
}

fn program_script(command: &str) -> String {
    format!(
        "device=$(ls /dev/dax*.* 2>/dev/null | head -n 1)
         LD_LIBRARY_PATH=/lib64 chroot /program /daxlab scenario {command} --on kernel --disposable --dir /mnt \
           --page-cache-dir /page-cache --device-dax ${{device:-/dev/dax0.0}} --format json 2>/tmp/said
        status=$?
        test $status -lt 2 || cat /tmp/said
        exit $status"
    )
}
