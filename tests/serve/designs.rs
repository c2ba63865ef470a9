//! The host truncates a file that a guest has mapped: the outcome under every preset, as the host
//! and the guest see it.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::guest::{Asked, Guest};
use crate::server::{MIB, Server, outcome};

const BYTES: u64 = 4 * MIB;

fn serve(dir: &Path, design: &str) -> Server {
    let args = ["--control", "a.ctl", "--file", "data", "--create", "4MiB", "--extents", "2", "--design", design];
    Server::start(dir, &["a"], &args)
}

/// A guest with both pieces mapped, and where on the device they lie.
fn attached(server: &Server) -> (Guest, [u64; 2]) {
    let guest = server.guest("a");
    let second = guest.was_asked();
    let leases = server.json(&["pins", "data"]);
    assert_eq!(leases.as_array().unwrap().len(), 1, "{leases}");
    let Asked::Map(2_097_152, device, 2_097_152) = second else { panic!("{second:?}") };
    // The parts of a fragmented file lie in reverse order.
    (guest, [device + 2 * MIB, device])
}

/// What the guest has mapped that is not its file's, in bytes; and the lines stored there.
fn stale(server: &Server) -> (u64, u64) {
    let stale = server.json(&["stale"]);
    let number = |value: &Value| value.as_u64().unwrap();
    (number(&stale["guests"][0]["stale_guest_exposed_bytes"]), number(&stale["stale_guest_changed_lines"]))
}

/// A device is a file here: its lines 0 and 3 are stored to, as by the guest's processor.
fn store(guest: &Guest, device: u64) {
    let file = guest.file.lock();
    let file = file.as_ref().unwrap();
    file.write_all_at(b"mine", device).unwrap();
    file.write_all_at(&[9; 64], device + 3 * 64).unwrap();
}

#[test]
fn where_the_truncate_fails_it_names_the_guest() {
    for design in ["man-page", "kara", "gunthorpe", "chinner-2019"] {
        let dir = tempfile::tempdir().unwrap();
        let server = serve(dir.path(), design);
        let (mut guest, _) = attached(&server);
        let (code, out, err) = server.ctl(&["truncate", "data", "0"]);
        assert_eq!(code, 1, "{design}: {out}{err}");
        assert!(out.contains("truncate data to 0 B: ETXTBSY"), "{design}: {out}");
        let who = format!("guest at a, QEMU process {}", std::process::id());
        assert!(out.contains(&who), "{design}: `{who}` is not in {out}");
        let (code, out, _) = server.ctl(&["truncate", "data", "0", "--json"]);
        let found: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &found["outcome"]), (1, &"ETXTBSY".into()), "{found}");
        let blockers = found["blockers"]["stranger"].as_array().unwrap();
        assert!(blockers.iter().any(|blocker| blocker["guest"] == who.as_str()), "{found}");
        // A hole is refused as well; what changes nothing is not.
        assert_eq!(server.ctl(&["punch", "data", "0", "4KiB"]).0, 1, "{design}");
        assert_eq!(server.ctl(&["truncate", "data", "4MiB"]).0, 0, "{design}");
        assert_eq!(guest.flush(), 0, "{design}: the guest noticed nothing");
        assert_eq!(stale(&server), (0, 0), "{design}");
        guest.hang_up();
        server.says("is gone");
        assert_eq!(server.json(&["leases"]).as_array().unwrap().len(), 0, "{design}");
        assert_eq!(server.json(&["pins"]).as_array().unwrap().len(), 0, "{design}");
        assert_eq!(server.ctl(&["truncate", "data", "0"]).0, 0, "{design}: nothing holds the file now");
    }
}

#[test]
fn where_the_truncate_waits_it_ends_with_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), "chinner-2025");
    let (mut guest, _) = attached(&server);
    let blocked = |found: &Value| found["blocked"]["blockers"].as_array().map(Vec::len).filter(|many| *many > 0);
    let start = || server.ctl_command(&["truncate", "data", "0", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    // An asker who gives up leaves nothing behind.
    let mut asker = start();
    server.until(&["blockers", "data"], blocked);
    asker.kill().unwrap();
    asker.wait().unwrap();
    server.until(&["blockers", "data"], |found| found["blocked"].is_null().then_some(()));
    // One who does not gets what he asked for.
    let asker = start();
    server.until(&["blockers", "data"], blocked);
    let waiting = |found: &Value| found[0]["blockers"].as_array().map(Vec::len).filter(|many| *many > 0);
    assert_eq!(server.until(&["changes"], waiting), 2, "lease and pin of the guest's process");
    let (code, out, _) = server.ctl(&["changes", "data"]);
    let told =
        out.contains("change of all blocks, task ") && out.contains(": waiting for ") && out.contains("  meets ");
    assert!(code == 0 && told, "{out}");
    assert_eq!(guest.flush(), 0);
    guest.hang_up();
    let (code, out, _) = outcome(&asker.wait_with_output().unwrap());
    let done: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &done["outcome"], &done["waited"]), (0, &"done".into(), &true.into()), "{done}");
    assert_eq!(server.ctl(&["changes"]), (0, "none\n".to_owned(), String::new()));
}

#[test]
fn a_server_can_end_while_somebody_waits() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = serve(dir.path(), "chinner-2025");
    let (guest, _) = attached(&server);
    let asker = server.ctl_command(&["truncate", "data", "0"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    server.until(&["blockers", "data"], |found| (!found["blocked"].is_null()).then_some(()));
    server.terminate();
    let (code, out, err) = outcome(&asker.unwrap().wait_with_output().unwrap());
    assert!(code != 0 && out.is_empty(), "{code}: {out}{err}");
    drop(guest);
}

#[test]
fn where_it_is_revoked_nothing_stays_mapped_and_flushes_fail() {
    for design in ["revoke", "odp"] {
        let dir = tempfile::tempdir().unwrap();
        let server = serve(dir.path(), design);
        let guest = server.guest("a");
        guest.was_asked();
        let mut guest = guest;
        let (code, out, err) = server.ctl(&["truncate", "data", "2MiB"]);
        assert_eq!(code, 0, "{design}: {out}{err}");
        let taken = [guest.was_asked(), guest.was_asked()];
        assert!(taken.iter().all(|asked| matches!(asked, Asked::Unmap(..))), "{design}: {taken:?}");
        assert_eq!(stale(&server), (0, 0), "{design}");
        assert_eq!(guest.flush(), 1, "{design}");
        // Not after a reset either.
        guest.reset();
        guest.start();
        assert_eq!(guest.flush(), 1, "{design}");
        assert_eq!(server.json(&["guests"])[0]["state"], "revoked", "{design}");
        assert_eq!(server.json(&["pins"]).as_array().unwrap().len(), 0, "{design}");
        // The next guest has what is left.
        guest.hang_up();
        server.says("is gone");
        assert_eq!(server.guest("a").flush(), 0, "{design}");
    }
}

#[test]
fn where_nothing_is_asked_the_guest_keeps_what_is_no_longer_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), "unsafe");
    let (mut guest, device) = attached(&server);
    store(&guest, device[1]);
    assert_eq!(stale(&server), (0, 0), "still its own");
    assert_eq!(server.ctl(&["truncate", "data", "2MiB"]).0, 0);
    assert_eq!(stale(&server), (BYTES / 2, 0), "mapped, and not stored to since");
    store(&guest, device[0]);
    assert_eq!(stale(&server), (BYTES / 2, 0), "the first half is its own");
    store(&guest, device[1]);
    assert_eq!(stale(&server), (BYTES / 2, 2));
    assert_eq!(guest.flush(), 0, "the guest does not see the change");
}
