//! A boot that is being prepared: processors, memory, devices, kernel.
//!
//! It owns QEMU's command line. Invariant: the guest's memory is shared, so that a vhost-user
//! backend can map it. Counterpart: qemu-system-x86_64(1).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::guest::{GuestError, LinuxGuest};
use super::machine::{Accel, GuestMachine};
use super::serial::token;

/// How long a guest may take to boot or end, if nothing else is said. Minutes, because a busy
/// machine without KVM is slow; nothing is decided by it.
pub const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// How long KVM may take to boot a guest. It needs about one second where it works.
const KVM_LIMIT: Duration = Duration::from_secs(15);

impl GuestMachine {
    /// A boot of this machine, to be given devices and started.
    pub fn boot(&self) -> Boot<'_> {
        Boot::new(self)
    }

    /// The accelerator that runs guests' processors here: KVM if a guest really boots with it (the
    /// device may open and still not run one, as in some clouds), and TCG otherwise. Tried once;
    /// `DAXLAB_ACCEL=tcg` or `kvm` decides instead.
    pub fn accel(&self) -> Accel {
        self.tried().as_ref().map_or(Accel::Tcg, |accel| *accel)
    }

    /// Why guests run without KVM, where it was tried and does not work.
    pub fn without_kvm(&self) -> Option<&str> {
        self.tried().as_ref().err().map(String::as_str)
    }

    fn tried(&self) -> &Result<Accel, String> {
        self.accel.get_or_init(|| match std::env::var("DAXLAB_ACCEL").as_deref() {
            Ok("tcg") => Ok(Accel::Tcg),
            Ok("kvm") => Ok(Accel::Kvm),
            _ => {
                let trial = self.boot().accel(Accel::Kvm).limit(KVM_LIMIT).try_start();
                let first = |why: GuestError| why.to_string().lines().next().unwrap_or_default().to_owned();
                trial.map(|_| Accel::Kvm).map_err(first)
            }
        })
    }
}

/// A guest about to be started.
pub struct Boot<'a> {
    machine: &'a GuestMachine,
    /// Whose kernel and initramfs.
    kernel: &'a GuestMachine,
    printed: Option<String>,
    memory_mib: u32,
    hotplug: bool,
    machine_type: &'static str,
    machine_options: String,
    devices: usize,
    args: Vec<OsString>,
    accel: Option<Accel>,
    limit: Duration,
}

impl<'a> Boot<'a> {
    pub(super) fn new(machine: &'a GuestMachine) -> Boot<'a> {
        Boot {
            machine,
            kernel: machine,
            printed: None,
            memory_mib: 256,
            hotplug: false,
            machine_type: "q35",
            machine_options: String::new(),
            devices: 0,
            args: Vec::new(),
            accel: None,
            limit: BOOT_LIMIT,
        }
    }

    /// Gives the guest this much memory, in MiB; 256 otherwise.
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Makes it a machine of this type (`-machine`); `q35` otherwise.
    pub fn machine_type(mut self, name: &'static str) -> Self {
        self.machine_type = name;
        self
    }

    /// Boots another machine's kernel.
    pub fn kernel_of(mut self, other: &'a GuestMachine) -> Self {
        self.kernel = other;
        self
    }

    /// Starts QEMU by this printed command line, through a shell that finds this machine's QEMU in
    /// its `PATH`. The line gives processors, memory and devices. Kernel, console and the arguments
    /// of [`Boot::args`] follow it.
    pub fn printed(mut self, line: &str) -> Self {
        self.printed = Some(line.to_owned());
        self
    }

    /// Adds arguments of QEMU as they are.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Adds a virtio-pmem device whose backend is the vhost-user server on `socket` (QEMU >= 11.1).
    pub fn vhost_user_pmem(mut self, socket: &Path) -> Self {
        let id = self.device();
        let chardev = path_option(&format!("socket,id=vu{id},path="), socket, "");
        let device =
            format!("vhost-user-test-device-pci,id=vp{id},virtio-id=27,num_vqs=1,config_size=16,chardev=vu{id}");
        self.args([OsStr::new("-chardev"), &chardev, OsStr::new("-device"), OsStr::new(&device)])
    }

    /// Adds QEMU's own virtio-pmem device over `size` bytes of a file.
    pub fn virtio_pmem(self, file: &Path, size: u64) -> Self {
        self.over_file("virtio-pmem-pci", file, size)
    }

    /// Adds an ACPI NVDIMM over `size` bytes of a file.
    pub fn nvdimm(mut self, file: &Path, size: u64) -> Self {
        if !self.machine_options.contains("nvdimm") {
            self.machine_options.push_str(",nvdimm=on");
        }
        self.over_file("nvdimm", file, size)
    }

    /// Adds a virtio disk, `/dev/vda` if it is the first, over a file that the guest can only read.
    pub fn read_only_disk(self, file: &Path) -> Self {
        self.virtio_disk(file, "on")
    }

    /// Adds a virtio disk, `/dev/vda` if it is the first, over a file.
    pub fn disk(self, file: &Path) -> Self {
        self.virtio_disk(file, "off")
    }

    fn virtio_disk(mut self, file: &Path, read_only: &str) -> Self {
        let id = self.device();
        let drive = path_option(&format!("if=none,id=disk{id},format=raw,read-only={read_only},file="), file, "");
        let device = format!("virtio-blk-pci,drive=disk{id}");
        self.args([OsStr::new("-drive"), &drive, OsStr::new("-device"), OsStr::new(&device)])
    }

    fn over_file(mut self, device: &str, file: &Path, size: u64) -> Self {
        self.hotplug = true;
        let id = self.device();
        let object =
            path_option(&format!("memory-backend-file,id=file{id},share=on,mem-path="), file, &format!(",size={size}"));
        let device = format!("{device},id=device{id},memdev=file{id}");
        self.args([OsStr::new("-object"), &object, OsStr::new("-device"), OsStr::new(&device)])
    }

    fn device(&mut self) -> usize {
        self.devices += 1;
        self.devices - 1
    }

    /// Runs with this accelerator, whatever the machine can.
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = Some(accel);
        self
    }

    /// Bounds the boot, and each reboot.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts the guest and waits until it takes commands.
    ///
    /// # Errors
    /// What was waited for, how it ended, and the end of the console.
    pub fn try_start(self) -> Result<LinuxGuest, GuestError> {
        let accel = self.accel.unwrap_or_else(|| self.machine.accel());
        let token = token();
        let mut command = match &self.printed {
            Some(line) => self.by_shell(line, accel),
            None => self.by_hand(accel),
        };
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-chardev", "socket,id=console,fd=1", "-serial", "chardev:console"]);
        command.args(["-chardev", "socket,id=commands,fd=0", "-serial", "chardev:commands"]);
        command.arg("-kernel").arg(self.kernel.kernel()).arg("-initrd").arg(self.kernel.initramfs());
        // A panic halts the guest, and is seen on the console; boots are quicker without messages
        // and mitigations.
        command.arg("-append").arg(format!("console=ttyS0 quiet mitigations=off panic=0 daxlab.token={token}"));
        command.args(&self.args);

        let name = format!("{} ({})", self.machine.name(), self.kernel.versions());
        LinuxGuest::start(command, token, name, self.limit)
    }
}

impl Boot<'_> {
    /// QEMU with processors and memory.
    fn by_hand(&self, accel: Accel) -> Command {
        let mut command = self.machine.qemu();
        command.args(["-cpu", "max", "-accel", if accel == Accel::Kvm { "kvm" } else { "tcg" }]);
        // LinuxGuest memory that a vhost-user backend can map.
        command.arg("-machine").arg(format!("{},memory-backend=m0{}", self.machine_type, self.machine_options));
        command.arg("-object").arg(format!("memory-backend-memfd,id=m0,size={}M,share=on", self.memory_mib));
        let slots = if self.hotplug { ",slots=4,maxmem=64G" } else { "" };
        command.arg("-m").arg(format!("{}M{slots}", self.memory_mib));
        command
    }

    /// A shell that becomes QEMU.
    fn by_shell(&self, line: &str, accel: Accel) -> Command {
        // The line has TCG, which works everywhere.
        let line = if accel == Accel::Kvm { line.replacen("-accel tcg", "-accel kvm", 1) } else { line.to_owned() };
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("exec {line} \"$@\"")).arg("sh").env("PATH", self.machine.search_path());
        command
    }
}

/// An option that ends in a path: QEMU takes a comma in a value as two.
fn path_option(before: &str, path: &Path, after: &str) -> OsString {
    let mut option = OsString::from(before);
    let mut parts = path.as_os_str().as_bytes().split(|byte| *byte == b',');
    option.extend(parts.next().map(OsStr::from_bytes));
    parts.for_each(|part| {
        option.push(",,");
        option.push(OsStr::from_bytes(part));
    });
    option.push(after);
    option
}
