//! What tests of a served guest share: a server for a machine's QEMU, the command line it prints,
//! and checks on the host and in the guest.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::daxlab;
use crate::guest::{BootGuest as _, Guest, Machine};
use crate::server::Server;

/// Starts `daxlab serve` where `machine`'s QEMU is the installed one.
pub fn serve(machine: &Machine, dir: &Path, sockets: &[&str], args: &[&str]) -> Server {
    let mut command = daxlab();
    command.env("PATH", machine.search_path());
    Server::run(&mut command, dir, sockets, &[&["--control", "a.ctl"], args].concat())
}

/// Starts `daxlab serve`, whatever QEMU is installed, for one file `data` of 64 MiB.
pub fn serve_file(dir: &Path, args: &[&str]) -> Server {
    let file = ["--control", "a.ctl", "--file", "data", "--create", "64MiB"];
    Server::start(dir, &["a"], &[&file, args].concat())
}

/// What the server says of the installed QEMU and `title`, and the command line for it.
pub fn offered(server: &Server, title: &str) -> (String, String) {
    let all = &server.introduction;
    let (_, from) = all.split_once(&format!("\n{title} (")).unwrap_or_else(|| panic!("no `{title}` in {all}"));
    let (head, from) = from.split_once("\n\n").unwrap();
    let (command, _) = from.split_once("\n\n").unwrap();
    assert!(command.starts_with("qemu-system-x86_64 "), "{command}");
    (head.split_once("); ").unwrap().1.to_owned(), command.to_owned())
}

/// The command line that the server prints for `title`, which it must say that this QEMU can run.
pub fn recipe(server: &Server, title: &str) -> String {
    let (fits, command) = offered(server, title);
    assert!(fits.contains("can run this"), "{fits}");
    command
}

/// Boots a guest with the server's device at the socket `name`.
pub fn attach(machine: &Machine, server: &Server, name: &str) -> Guest {
    machine.boot().vhost_user_pmem(&server.socket(name)).start()
}

/// An ext4 on the whole device, mounted with dax.
pub const FORMAT: &str =
    "mkfs.ext4 -q -b 4096 /dev/pmem0 && mount -o dax /dev/pmem0 /mnt && grep /mnt /proc/mounts | grep -q dax=always";

/// A file with known bytes that is durable.
pub const SYNCED: &str = "seq 1 200000 >/mnt/synced && fsync /mnt/synced";

/// A counter of the server's first port.
pub fn counter(server: &Server, name: &str) -> u64 {
    server.json(&["flush-stats"])[0]["counters"][name].as_u64().unwrap()
}

/// How the guest of the server's port number `at` stands.
pub fn state(server: &Server, at: usize) -> String {
    server.json(&["guests"])[at]["state"].as_str().unwrap().to_owned()
}

/// How many leases and pins there are.
pub fn held(server: &Server) -> (usize, usize) {
    let count = |what| server.json(&[what]).as_array().unwrap().len();
    (count("leases"), count("pins"))
}

/// What the host has in a file, from byte `offset` on, read by the NIC through the region `mr`.
pub fn by_nic(server: &Server, mr: &str, offset: u64, len: u64) -> Vec<u8> {
    let read = server.json(&["rdma-read", mr, &format!("{offset}B"), &format!("{len}B")]);
    let hex = read["hex"].as_str().unwrap();
    hex.as_bytes().chunks(2).map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

/// A region over the file, by number.
pub fn region(server: &Server, file: &str) -> String {
    server.json(&["rdma-reg", file])["mr"].to_string()
}

/// The MD5 of a file of the host.
pub fn md5(path: &Path) -> String {
    let run = Command::new("md5sum").arg("--").arg(path).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    // A name with a backslash in it would have the line begin with one.
    String::from_utf8(run.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// The kinds of those who stand against a stranger's change of a file.
pub fn blockers(server: &Server, file: &str) -> Vec<String> {
    let blockers = server.json(&["blockers", file]);
    let kind = |found: &Value| found["kind"].as_str().unwrap().to_owned();
    blockers["stranger"].as_array().unwrap().iter().map(kind).collect()
}

/// Asserts that the guest has nothing mapped any more: its files read as zeros, and its ext4 gives
/// up.
pub fn assert_taken(guest: &mut Guest) {
    assert_eq!(guest.ok("head -c 4096 /mnt/synced | tr -d '\\0' | wc -c"), "0");
    assert_given_up(guest);
}

/// Asserts that from now on the guest's ext4 says so instead of losing anything: fsync fails, and
/// nothing can be made any more.
pub fn assert_given_up(guest: &mut Guest) {
    let failed = guest.run("echo lost >/mnt/lost && fsync /mnt/lost");
    assert_ne!(failed.status, 0, "an fsync that can't have been: {}", failed.text);
    let refused = guest.run("touch /mnt/more");
    assert!(refused.status != 0 && refused.text.contains("Read-only file system"), "{}", refused.text);
}
