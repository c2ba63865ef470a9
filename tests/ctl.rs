//! `daxlab ctl` on a running race: it lists leases, pins and blockers, and its errors say what is
//! wrong.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Output, Stdio};

use common::daxlab;
use serde_json::Value;

/// A race that listens, until it is dropped.
struct Race(Child);

impl Race {
    fn start(dir: &Path, design: &str) -> Race {
        let mut command = daxlab();
        command.args(["race", "--design", design, "--duration", "60s", "--control"]).arg(dir.join("ctl"));
        let child = command.arg("--out").arg(dir.join("out")).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Race(child.unwrap())
    }
}

impl Drop for Race {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn ctl(dir: &Path, args: &[&str]) -> Output {
    daxlab().arg("ctl").arg(dir.join("ctl")).args(args).output().unwrap()
}

/// Asks until `found` finds something in the answer, which must come while a race of this kind
/// runs.
fn until<T>(dir: &Path, args: &[&str], found: impl Fn(&Value) -> Option<T>) -> T {
    for _ in 0..20_000 {
        let answer = ctl(dir, args);
        let parsed = serde_json::from_slice(&answer.stdout);
        if let Some(found) = parsed.ok().as_ref().and_then(&found) {
            return found;
        }
    }
    panic!("never came: {args:?}: {:?}", ctl(dir, args));
}

#[test]
fn a_blocked_change_names_everybody_in_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let _race = Race::start(dir, "chinner-2025");
    let pin = until(dir, &["pins", "--json"], |pins| pins.get(0).cloned());
    for field in ["ino", "pin", "registrant", "processes", "context", "region", "range"] {
        assert!(!pin[field].is_null(), "{field} in {pin}");
    }
    let blocker = until(dir, &["blockers", "file-0", "--json"], |found| {
        let blockers = found["blocked"]["blockers"].as_array()?;
        blockers.iter().find(|blocker| blocker["what"] == "pin" && !blocker["releasers"][0]["fd"].is_null()).cloned()
    });
    assert_eq!(blocker["effect"], "waited-for");
    for field in ["ino", "range", "holder", "registrant", "context", "region", "releasers"] {
        assert!(!blocker[field].is_null(), "{field} in {blocker}");
    }
    let change = until(dir, &["changes", "--json"], |changes| {
        let met = |change: &&Value| change["state"] == "waiting" && !change["blockers"][0]["releasers"].is_null();
        changes.as_array()?.iter().find(met).cloned()
    });
    for field in ["ino", "task", "pid", "ranges", "arrived_ns", "since_ns", "now_ns"] {
        assert!(!change[field].is_null(), "{field} in {change}");
    }
    assert_eq!((&change["has_turn"], &change["behind"]), (&false.into(), &Value::Array(Vec::new())), "{change}");
    let behind = until(dir, &["changes", "file-0", "--json"], |changes| {
        changes.as_array()?.iter().find(|change| !change["behind"][0].is_null()).cloned()
    });
    assert_eq!(behind["state"], "queued");
    let unknown = ctl(dir, &["changes", "nothing"]);
    assert!(unknown.status.code() == Some(2) && unknown.stdout.is_empty());
    let lease = until(dir, &["leases", "--json"], |leases| leases.get(0).cloned());
    assert!(lease["kind"].is_string() && lease["pid"].is_u64(), "{lease}");
    let text = ctl(dir, &["blockers", "file-0"]);
    assert!(String::from_utf8_lossy(&text.stdout).starts_with("inode "));
    let unknown = ctl(dir, &["blockers", "nothing"]);
    let stderr = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(unknown.status.code() == Some(2) && stderr.contains("file-0"), "{stderr}");
}

#[test]
fn nobody_there_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let unanswered = ctl(dir.path(), &["pins"]);
    let stderr = String::from_utf8_lossy(&unanswered.stderr).into_owned();
    assert!(unanswered.status.code() == Some(3) && stderr.contains("no process answers at"), "{stderr}");
}

#[test]
fn a_socket_in_use_or_too_long_is_refused_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(dir.path().join("ctl")).unwrap();
    let refused = |socket: &Path, word: &str| {
        let out = dir.path().join("out");
        let run = daxlab().args(["race", "--quick", "--control"]).arg(socket).arg("--out").arg(&out).output().unwrap();
        let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(word), "{stderr}");
        assert!(!out.join("result.json").exists());
    };
    refused(&dir.path().join("ctl"), "a process listens there");
    refused(&dir.path().join("x".repeat(120)), "may have 107");
    std::fs::write(dir.path().join("file"), "").unwrap();
    refused(&dir.path().join("file"), "no socket");
    refused(&dir.path().join("no/ctl"), "No such file or directory");
}
