//! The memory and the disks of a guest that runs scenarios.
//!
//! It owns their sizes, the shell script that makes file systems on them, and what the script says
//! of a kernel that lacks something. Invariants: each kind of persistent memory is under one of the
//! file systems, XFS on an ACPI NVDIMM and ext4 on virtio-pmem; each guest has device-DAX beside
//! it, and a file system without DAX. Counterpart: ndctl-create-namespace(1), whose steps in sysfs
//! the script makes itself.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use guests::vm::{Boot, GuestMachine};

use super::program_disk;

/// The size of the memory under the file system: mkfs.xfs makes none of less than 300 MiB, and the
/// description of its pages takes a part of it.
const PMEM: u64 = 400 << 20;
/// The size of the memory that becomes device-DAX; the script tells it from the other one by that.
const DEVICE_DAX: u64 = 64 << 20;
/// The size of the file system without DAX, in MiB.
const PAGE_CACHE_MIB: u64 = 64;

/// The status of the shell that tells of a missing command or device in [`prepare`].
pub(super) const LACKS: i32 = 70;

/// A file system with DAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaxFileSystem {
    /// XFS, with reflink.
    Xfs,
    /// ext4.
    Ext4,
}

impl DaxFileSystem {
    /// Its name for mount(8).
    pub fn name(self) -> &'static str {
        match self {
            DaxFileSystem::Xfs => "xfs",
            DaxFileSystem::Ext4 => "ext4",
        }
    }
}

/// The files on the host behind a guest's memory and disks. They go with this value.
pub(super) struct GuestDevices {
    file_system: DaxFileSystem,
    pmem: PathBuf,
    device_dax: PathBuf,
    page_cache: PathBuf,
}

impl GuestDevices {
    /// Makes the files for the guest `number` in `work`.
    ///
    /// # Errors
    /// A file that can't be made.
    pub(super) fn make(
        machine: &GuestMachine,
        file_system: DaxFileSystem,
        work: &Path,
        number: usize,
    ) -> io::Result<GuestDevices> {
        let place = |name: &str| work.join(format!("{name}{number}"));
        let devices = GuestDevices {
            file_system,
            pmem: place("pmem"),
            device_dax: place("device-dax"),
            page_cache: place("page-cache"),
        };
        for (path, size) in [(&devices.pmem, PMEM), (&devices.device_dax, DEVICE_DAX)] {
            File::create_new(path)?.set_len(size)?;
        }
        let empty = place("empty");
        std::fs::create_dir_all(&empty)?;
        machine.ext4_image(&empty, &devices.page_cache, PAGE_CACHE_MIB)?;
        Ok(devices)
    }

    /// Gives a guest the disk with this program as `/dev/vda`, and these devices.
    pub(super) fn add_to<'b>(&self, boot: Boot<'b>, program: &Path) -> Boot<'b> {
        let boot = match self.file_system {
            DaxFileSystem::Xfs => boot.nvdimm(&self.pmem, PMEM),
            DaxFileSystem::Ext4 => boot.virtio_pmem(&self.pmem, PMEM),
        };
        boot.nvdimm(&self.device_dax, DEVICE_DAX).read_only_disk(program).disk(&self.page_cache)
    }
}

impl Drop for GuestDevices {
    /// The guest has ended; the next one needs the room.
    fn drop(&mut self) {
        for path in [&self.pmem, &self.device_dax, &self.page_cache] {
            // What stays goes with the folder.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Makes and mounts a file system with DAX, device-DAX, and the disks: a shell script. With the
/// status [`LACKS`] it has said what the kernel lacks. A kernel without device-DAX is said to be
/// without it by the scenarios that need it.
pub(super) fn prepare(file_system: DaxFileSystem) -> String {
    let name = file_system.name();
    let (make, memory, needs) = match file_system {
        DaxFileSystem::Xfs => {
            ("mkfs.xfs -q -f", "ACPI NVDIMM", "CONFIG_ACPI_NFIT, CONFIG_NVDIMM_PFN, CONFIG_BLK_DEV_PMEM")
        }
        DaxFileSystem::Ext4 => ("mkfs.ext4 -q -F -b 4096", "virtio-pmem", "CONFIG_VIRTIO_PMEM, CONFIG_BLK_DEV_PMEM"),
    };
    // With what kernels have learnt later, and old ones refuse to mount: XFS exchanges ranges since
    // 6.10.
    let newest = match file_system {
        DaxFileSystem::Xfs => "mkfs.xfs -q -f -i exchange=1",
        DaxFileSystem::Ext4 => make,
    };
    // A namespace of virtio-pmem has pages as it is; one of an NVDIMM has none, which a file system
    // needs for DAX, before it is given their description.
    let pages = match file_system {
        DaxFileSystem::Xfs => format!("namespace {PMEM} pfn nd_pmem 2097152"),
        DaxFileSystem::Ext4 => String::new(),
    };
    let tune = match file_system {
        DaxFileSystem::Xfs => "true",
        // Else a write into a short unwritten extent makes written zeros of the rest as well.
        DaxFileSystem::Ext4 => "echo 0 >/sys/fs/ext4/${device##*/}/extent_max_zeroout_kb",
    };
    // In sectors of 512 bytes.
    let small = DEVICE_DAX / 512;
    let (mounts, soft_roce) = (program_disk::mount_script(LACKS), program_disk::soft_roce_script());
    format!(
        "lacks() {{ echo \"the kernel $(uname -r) $1\"; exit {LACKS}; }}
        # Makes a namespace of the region of this size: pfn (fsdax) or dax; its driver; alignment.
        namespace() {{
          for region in /sys/bus/nd/devices/region*; do
            test \"$(cat $region/size 2>/dev/null)\" = $1 || continue
            raw=namespace${{region##*/region}}.0 seed=$(cat $region/$2_seed) || return
            test -e /sys/bus/nd/drivers/$3 -a -n \"$seed\" || return
            echo $raw >/sys/bus/nd/drivers/nd_pmem/unbind || return
            at=/sys/bus/nd/devices/$seed
            echo ram >$at/mode && echo $4 >$at/align && cat /proc/sys/kernel/random/uuid >$at/uuid &&
              echo $raw >$at/namespace && echo $seed >/sys/bus/nd/drivers/$3/bind
            return
          done
        }}
        for module in {name} device_dax dax_pmem dm_mod brd; do load $module; done 2>/dev/null
        namespace {DEVICE_DAX} dax dax_pmem 4096 2>/tmp/device-dax
        {pages}
        settle
        for block in /sys/block/pmem*; do
          test \"$(cat $block/size 2>/dev/null || echo 0)\" -le {small} || device=/dev/${{block##*/}}
        done
        test -b \"$device\" || lacks 'has no persistent memory ({memory}): it needs {needs}, built in or as modules below the folder given'
        grep -qw {name} /proc/filesystems || lacks 'has no {name}'
        put() {{ mount -t {name} -o dax=always $device /mnt; }}
        {{ {newest} $device && put; }} 2>/dev/null || {{ {make} $device || exit 1; put; }} || lacks 'does not mount {name} with DAX: it needs CONFIG_FS_DAX'
        grep -q ' /mnt .*dax=always' /proc/mounts || lacks 'mounts {name} without DAX: it needs {needs} and CONFIG_FS_DAX'
        {tune} || exit 1
        {mounts}
        {soft_roce}"
    )
}
