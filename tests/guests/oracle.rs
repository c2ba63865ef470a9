//! `scenario run --on guest`: Linux itself, on file systems with DAX, does what the scenarios say.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;

use guests::packages::{self, LINUX_BACKPORTS, Package};
use serde_json::Value;

use crate::common::daxlab;
use crate::guest::{self, CURRENT};
use crate::server::outcome;

fn run(args: &[&str]) -> Output {
    daxlab().args(["scenario", "run", "--on", "guest"]).args(args).output().unwrap()
}

/// Every scenario for Linux, on both file systems and both kernels.
#[test]
fn linux_does_what_the_scenarios_say_of_it() {
    if guest::machine(CURRENT, "scenarios on guests' kernels").is_none() {
        return;
    }
    let (code, out, err) = outcome(&run(&["--format", "json"]));
    if code == 3 && err.contains("error: no guest: ") {
        guest::tell(&format!("scenarios on guests' kernels: not run: {}", err.trim()));
        return;
    }
    // What an old kernel lacks makes the whole run end with 3; it is looked at below.
    assert!(matches!(code, 0 | 3), "{code}: {out}{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let columns: Vec<&str> = report["designs"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let has = |kernel: &str, fs: &str| columns.iter().any(|name| name.starts_with(kernel) && name.ends_with(fs));
    assert!(columns.len() == 4 && has("6.12.", " xfs") && has("6.12.", " ext4"), "{columns:?}");
    let scenarios = report["scenarios"].as_array().unwrap();
    assert!(scenarios.len() >= 59, "{}", scenarios.len());
    for scenario in scenarios {
        for cell in scenario["cells"].as_array().unwrap() {
            let (id, on) = (scenario["id"].as_str().unwrap(), cell["design"].as_str().unwrap());
            let why = cell["failure"]["got"].as_str().unwrap_or_default();
            match cell["verdict"].as_str().unwrap() {
                "passed" => {}
                // Linux gives no pin without the lease that the rest of the script is about.
                "not_applicable" if id == "S36a" => {}
                // F_SETDELEG came with Linux 6.19.
                "not_run" if on.starts_with("6.12.") && why.contains("no delegations (F_SETDELEG)") => {}
                // On-demand regions of rdma_rxe came with Linux 6.15.
                "not_run" if on.starts_with("6.12.") && why.contains("no on-demand regions") => {}
                // It goes on where memory of a DAX file can be pinned.
                "not_applicable" if matches!(id, "E5" | "R11") => {}
                _ => panic!("{id} on {on}: {cell}"),
            }
        }
    }
}

/// A scenario that says something else of Linux than what it does fails, with the place.
#[test]
fn what_linux_does_not_do_is_told() {
    let what = "a scenario that is wrong about Linux";
    if guest::machine(CURRENT, what).is_none() {
        return;
    }
    let Some(kernel) = generic_kernel(what) else { return };
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("wrong.scn");
    std::fs::write(&script, "# WRONG: a lease where another process writes\nlinux\nfile f 4KiB\n\nB: w = open f w\nA: r = open f r\nA: setlease r read => ok\n").unwrap();
    let (kernel, modules) = own_kernel(&kernel);
    let args = ["--kernel", &kernel, "--modules", &modules, "--file-system", "ext4", script.to_str().unwrap()];
    let (code, out, err) = outcome(&run(&args));
    assert!(code == 1 && out.contains("wrong.scn:7") && out.contains("EAGAIN"), "{code}: {out}{err}");
}

/// Scenarios in which designs differ without a call that Linux lacks.
const TELL_DESIGNS_APART: [&str; 5] = ["S62a", "S62b", "S62c", "S62d", "S65a"];

/// A kernel behaves like the preset that was written from it.
#[test]
fn each_kernel_is_found_to_be_its_own_preset() {
    if guest::machine(CURRENT, "kernels and designs").is_none() {
        return;
    }
    let args = [&TELL_DESIGNS_APART[..], &["--which-design", "--file-system", "xfs", "--format", "json"]].concat();
    let (code, out, err) = outcome(&run(&args));
    if code == 3 && err.contains("error: no guest: ") {
        guest::tell(&format!("kernels and designs: not run: {}", err.trim()));
        return;
    }
    assert_eq!(code, 0, "{out}{err}");
    let ranking: Value = serde_json::from_str(&out).unwrap();
    let nearest = |kernel: &str| {
        let found = ranking["kernels"].as_array().unwrap().iter().find(|ranked| {
            let name = ranked["kernel"].as_str().unwrap();
            name.starts_with(kernel) == (kernel == "6.12.")
        });
        let designs = found.unwrap_or_else(|| panic!("{kernel}: {out}"))["designs"].as_array().unwrap();
        let agrees = |design: &&Value| design["differences"].as_array().unwrap().is_empty();
        designs.iter().filter(agrees).map(|design| design["design"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((nearest("newer"), nearest("6.12.")), (vec!["mainline"], vec!["mainline-6.12"]));
}

/// Random sequences, of held pages too, come to the same on Linux and in the simulation.
#[test]
fn random_sequences_come_to_the_same_on_linux() {
    let what = "random sequences on guests' kernels";
    if guest::machine(CURRENT, what).is_none() {
        return;
    }
    let args = ["--on", "guest", "--sequences", "100", "--seed", "5", "--format", "json"];
    let (code, out, err) = outcome(&daxlab().args(["scenario", "random"]).args(args).output().unwrap());
    if code == 3 && err.contains("error: no guest: ") {
        guest::tell(&format!("{what}: not run: {}", err.trim()));
        return;
    }
    assert_eq!(code, 0, "{out}{err}");
    let reports: Value = serde_json::from_str(&out).unwrap();
    let kernels = reports["kernels"].as_array().unwrap();
    assert_eq!(kernels.len(), 4, "{out}");
    for kernel in kernels {
        assert_eq!(kernel["run"], 100, "{kernel}");
        // Agreement on nothing would be no news.
        let outcomes = kernel["outcomes"].as_object().unwrap();
        let seen = |which: &dyn Fn(&str) -> bool| outcomes.keys().any(|outcome| which(outcome));
        for outcome in ["vmsplice ok", "reg_mr ok", "reg_mr EOPNOTSUPP", "read ok", "setlease ok"] {
            assert!(seen(&|other| other == outcome), "no sequence had `{outcome}`: {kernel}");
        }
        assert!(seen(&|outcome| outcome.ends_with(" blocks")), "nothing waited: {kernel}");
        assert!(seen(&|outcome| outcome.starts_with("returns ")), "no wait ended: {kernel}");
        let left_out: Vec<&str> =
            kernel["exceptions"].as_array().unwrap().iter().map(|met| met["name"].as_str().unwrap()).collect();
        let (name, old) = (kernel["kernel"].as_str().unwrap(), "held pages of a file that is not mapped");
        assert_eq!(left_out.contains(&old), name.starts_with("6.12."), "{name}: {left_out:?}");
        assert_eq!(left_out.contains(&"fallocate on ext4"), name.ends_with("ext4"), "{name}: {left_out:?}");
    }
}

/// The folder of a generic kernel.
fn generic_kernel(what: &str) -> Option<PathBuf> {
    match packages::fetch(Some(LINUX_BACKPORTS)).unwrap().remove(0) {
        Package::Ready { dir, .. } => Some(dir),
        Package::NotRun { reason, .. } => {
            guest::tell(&format!("{what}: not run: no generic kernel: {reason}"));
            None
        }
    }
}

/// The kernel of a machine, as a user's own.
fn own_kernel(dir: &Path) -> (String, String) {
    let shown = |path: &str| dir.join(path).to_str().unwrap().to_owned();
    (shown("kernel/vmlinuz"), shown("kernel/modules"))
}

#[test]
fn kernels_that_cannot_be() {
    let Some(machine) = guest::machine(CURRENT, "kernels that can't run scenarios") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (kernel, modules) = own_kernel(machine.dir());
    let empty = dir.path().to_str().unwrap().to_owned();
    let text = dir.path().join("text");
    std::fs::write(&text, "no kernel\n").unwrap();
    let text = text.to_str().unwrap().to_owned();
    let refused = |expected: i32, words: &[&str], (kernel, modules): (&str, &str)| {
        let args = ["K01", "--kernel", kernel, "--modules", modules, "--file-system", "xfs"];
        let (code, out, err) = outcome(&run(&args));
        assert_eq!(code, expected, "{args:?}: {out}{err}");
        for word in words {
            assert!(err.contains(word) || out.contains(word), "{args:?}: `{word}` is not in: {out}{err}");
        }
    };
    refused(2, &["no/kernel", "the kernel image", "No such file"], ("no/kernel", &modules));
    refused(2, &["no/modules", "modules", "No such file"], (&kernel, "no/modules"));
    refused(2, &["the kernel image", "this is no file"], (&empty, &modules));
    // Persistent memory is a module of this kernel.
    refused(3, &["has no persistent memory (ACPI NVDIMM)", "CONFIG_NVDIMM_PFN"], (&kernel, &empty));
    refused(3, &["QEMU has ended"], (&text, &modules));
    std::fs::File::create(dir.path().join("xfs.ko")).unwrap().set_len(200 << 20).unwrap();
    refused(2, &["MiB large", "INSTALL_MOD_STRIP"], (&kernel, &empty));
}

/// What a kernel lacks is named, and what it has is used.
#[test]
fn kernels_without_a_driver() {
    let what = "kernels without a driver";
    if guest::machine(CURRENT, what).is_none() {
        return;
    }
    let Some(dir) = generic_kernel(what) else { return };
    let (kernel, modules) = own_kernel(&dir);
    let cases: [(&str, &str, &[&str], &[&str]); 4] = [
        ("virtio_blk", "xfs", &["K24"], &["has no virtio disk", "CONFIG_VIRTIO_BLK"]),
        ("nfit", "xfs", &["K24"], &["no persistent memory (ACPI NVDIMM)", "CONFIG_ACPI_NFIT"]),
        ("virtio_pmem", "ext4", &["K24"], &["no persistent memory (virtio-pmem)", "CONFIG_VIRTIO_PMEM"]),
        ("dax_pmem", "ext4", &["S38", "L11"], &["1 cells passed", "1 of 2 could not be run", "CONFIG_DEV_DAX_PMEM"]),
    ];
    for (without, file_system, scenarios, words) in cases {
        let rest = tempfile::tempdir().unwrap();
        for module in std::fs::read_dir(&modules).unwrap().map(Result::unwrap) {
            if module.file_name().to_str() != Some(&format!("{without}.ko")) {
                symlink(module.path(), rest.path().join(module.file_name())).unwrap();
            }
        }
        let rest = rest.path().to_str().unwrap();
        let options = ["--kernel", &kernel, "--modules", rest, "--file-system", file_system];
        let (code, out, err) = outcome(&run(&[scenarios, &options[..]].concat()));
        assert_eq!(code, 3, "{without}: {out}{err}");
        for word in words {
            assert!(err.contains(word) || out.contains(word), "{without}: `{word}` is not in: {out}{err}");
        }
    }
}

/// A kernel whose first instruction jumps to itself ends with the limit of the boot.
#[test]
fn a_guest_that_hangs() {
    let Some(machine) = guest::machine(CURRENT, "a guest that hangs") else { return };
    let (kernel, modules) = own_kernel(machine.dir());
    let mut image = std::fs::read(kernel).unwrap();
    // Documentation/arch/x86/boot.rst of Linux: the boot loader jumps to 0x200.
    image[0x200..0x202].copy_from_slice(&[0xeb, 0xfe]);
    let dir = tempfile::tempdir().unwrap();
    let hangs = dir.path().join("hangs");
    std::fs::write(&hangs, image).unwrap();
    let args = [
        "K01",
        "--kernel",
        hangs.to_str().unwrap(),
        "--modules",
        &modules,
        "--file-system",
        "ext4",
        "--boot-limit",
        "5",
    ];
    let (code, out, err) = outcome(&run(&args));
    assert_eq!(code, 3, "{out}{err}");
    for word in ["waiting for the boot: not within 5s", "the end of the console", "(nothing)"] {
        assert!(err.contains(word), "`{word}` is not in: {out}{err}");
    }
}

/// Without QEMU, or with one that can't be executed, its place is told.
#[test]
fn a_qemu_that_cannot_be_started() {
    let Some(machine) = guest::machine(CURRENT, "a QEMU that can't be started") else { return };
    let there = machine.dir();
    let cache = tempfile::tempdir().unwrap();
    let current = cache.path().join("guests/current");
    std::fs::create_dir_all(current.join("qemu/lib")).unwrap();
    for name in ["kernel", "tools", "recipe", "versions"] {
        symlink(there.join(name), current.join(name)).unwrap();
    }
    let (kernel, modules) = own_kernel(there);
    let refused = |words: &[&str]| {
        let mut command = daxlab();
        command.args(["scenario", "run", "--on", "guest", "K01", "--kernel", &kernel, "--modules", &modules]);
        let (code, out, err) = outcome(&command.env("DAXLAB_CACHE", cache.path()).output().unwrap());
        assert_eq!(code, 3, "{out}{err}");
        for word in words.iter().chain(&["guests/current`, which is fetched anew"]) {
            assert!(err.contains(word), "`{word}` is not in: {out}{err}");
        }
    };
    refused(&["ld-linux-x86-64.so.2", "No such file"]);
    let loader = current.join("qemu/lib/ld-linux-x86-64.so.2");
    std::fs::write(&loader, "text").unwrap();
    refused(&["ld-linux-x86-64.so.2", "can't be executed"]);
    std::fs::remove_file(&loader).unwrap();
    symlink(there.join("qemu/lib/ld-linux-x86-64.so.2"), &loader).unwrap();
    refused(&["qemu/qemu-system-x86_64", "No such file"]);
}
