//! `scripts/try-guest`, as a newcomer runs it: one command, and a guest with the server's memory.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::guest;
use crate::served::{FORMAT, serve_file};
use crate::server::outcome;

fn try_guest(args: &[&str]) -> (i32, String, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/try-guest");
    outcome(&Command::new(script).args(args).stdin(Stdio::null()).output().unwrap())
}

#[test]
fn a_guest_is_had_with_one_command() {
    if guest::machine(guest::CURRENT, "scripts/try-guest").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = serve_file(dir.path(), &[]);
    let socket = server.socket("a").display().to_string();
    let work = format!("{FORMAT} && echo kept >/mnt/file && sync && cat /mnt/file; exit 7");
    let (code, out, err) = try_guest(&[&socket, &work]);
    assert_eq!((code, out.as_str()), (7, "kept\n"), "{err}");
    assert!(err.contains("try-guest: QEMU "), "{err}");
    server.says("is gone");
    // It is still there for the next one.
    let (code, out, err) = try_guest(&[&socket, "mount -o dax /dev/pmem0 /mnt && cat /mnt/file"]);
    assert_eq!((code, out.as_str()), (0, "kept\n"), "{err}");
}

#[test]
fn what_is_missing_for_a_guest_is_named() {
    let (code, _, err) = try_guest(&[]);
    assert!(code == 2 && err.contains("usage: scripts/try-guest SOCKET"), "{code}: {err}");
    let (code, _, err) = try_guest(&["/nowhere/a.sock"]);
    assert!(code == 2 && err.contains("start `daxlab serve --socket /nowhere/a.sock"), "{code}: {err}");
    let (code, out, _) = try_guest(&["--help"]);
    assert!(code == 0 && out.starts_with("Boots a Linux guest whose /dev/pmem0 is"), "{code}: {out}");
}
