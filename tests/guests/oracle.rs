//! `scenario run --on guest`: Linux itself, on file systems with DAX, does what the scenarios say.

use std::path::Path;
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
    assert!(scenarios.len() >= 32, "{}", scenarios.len());
    for scenario in scenarios {
        for cell in scenario["cells"].as_array().unwrap() {
            let (id, on) = (scenario["id"].as_str().unwrap(), cell["design"].as_str().unwrap());
            let why = cell["failure"]["got"].as_str().unwrap_or_default();
            match cell["verdict"].as_str().unwrap() {
                "passed" => {}
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
    let kernel = packages::fetch(Some(LINUX_BACKPORTS)).unwrap().remove(0);
    let Package::Ready { dir: kernel, .. } = kernel else {
        guest::tell(&format!("{what}: not run: no generic kernel: {kernel:?}"));
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("wrong.scn");
    std::fs::write(&script, "# WRONG: a lease where another process writes\nlinux\nfile f 4KiB\n\nB: w = open f w\nA: r = open f r\nA: setlease r read => ok\n").unwrap();
    let (kernel, modules) = own_kernel(&kernel);
    let args = ["--kernel", &kernel, "--modules", &modules, "--file-system", "ext4", script.to_str().unwrap()];
    let (code, out, err) = outcome(&run(&args));
    assert!(code == 1 && out.contains("wrong.scn:7") && out.contains("EAGAIN"), "{code}: {out}{err}");
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
    // Persistent memory is a module of this kernel.
    refused(3, &["has no persistent memory", "CONFIG_VIRTIO_PMEM"], (&kernel, &empty));
    refused(3, &["QEMU has ended"], (&text, &modules));
    std::fs::File::create(dir.path().join("xfs.ko")).unwrap().set_len(200 << 20).unwrap();
    refused(2, &["MiB large", "INSTALL_MOD_STRIP"], (&kernel, &empty));
}
