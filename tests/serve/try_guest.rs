//! `scripts/try-guest` without a real guest: what it prints, and how it exits.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::attached::serve_file;
use crate::server::outcome;

fn script(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The script beside a QEMU that boots nothing: `said` is what the guest's command says, and
/// `code` is how it exits; the guest's init says the rest.
fn beside_a_false_qemu(dir: &Path, said: &str, code: i32) -> PathBuf {
    let path = dir.join("scripts/try-guest");
    let guest = dir.join("guest");
    script(&dir.join("scripts/guest-packages"), &format!("echo current ready {} QEMU 11, Linux 7", guest.display()));
    script(&guest.join("tools/bin/busybox"), "cat >/dev/null");
    let qemu = format!(
        "for argument; do case $argument in file:*) said=${{argument#file:}};; esac; done\n\
         cd \"${{said%/*}}/root\"; last=$(sed -n 's|^\\(printf .*\\) >/dev/ttyS1$|\\1|p' init)\n\
         {{ printf '{said}'; (exit {code}); eval \"$last\"; }} >\"$said\""
    );
    script(&guest.join("qemu/lib/ld-linux-x86-64.so.2"), &qemu);
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/try-guest"), &path).unwrap();
    path
}

fn run(path: &Path, args: &[&str]) -> (i32, String, String) {
    outcome(&Command::new(path).args(args).env("DAXLAB_ACCEL", "tcg").stdin(Stdio::null()).output().unwrap())
}

#[test]
fn a_commands_output_is_printed_as_it_is() {
    let (dir, server) = serve_file(&["a"], &[]);
    let socket = server.socket("a").display().to_string();
    for (said, out, code) in [("hi", "hi", 5), (r"hi\n", "hi\n", 0), ("", "", 1), (r"a\n\n", "a\n\n", 130)] {
        let path = beside_a_false_qemu(dir.path(), said, code);
        let (found, printed, err) = run(&path, &[&socket, "command"]);
        assert_eq!((found, printed.as_str()), (code, out), "{said}: {err}");
    }
    let path = beside_a_false_qemu(dir.path(), r"it broke off\n'; exit 0; echo '", 0);
    let (code, out, err) = run(&path, &[&socket, "command"]);
    assert!(code == 3 && out == "it broke off\n" && err.contains("ended before its shell did"), "{code}: {out}{err}");
}

#[test]
fn a_control_socket_is_told_from_a_guests() {
    let (dir, server) = serve_file(&["a"], &[]);
    let path = beside_a_false_qemu(dir.path(), "", 0);
    let control = server.socket("a.ctl").display().to_string();
    let (code, _, err) = run(&path, &[&control, "command"]);
    let words = format!("a guest connects at {}\n", server.socket("a").display());
    assert!(code == 2 && err.contains(&words), "{code}: {err}");
}
