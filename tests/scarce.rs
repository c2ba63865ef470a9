//! Where the machine gives no more threads, descriptors, memory or file size, the command names
//! what failed and exits with 3; a server goes on.
//!
//! The limits are set by `prlimit` (util-linux). RLIMIT_NPROC does not bind root: as root, the
//! tests run the command as a user that has no other process, by `setpriv` (util-linux). As any
//! other user, every process of that user counts, so only the limit of one, which no thread fits
//! in, is tested.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::daxlab;

/// A limit on a wait that a broken server would make endless.
const PATIENCE: Duration = Duration::from_secs(60);

/// The command under a limit, such as `--nofile=5`.
fn limited(limit: &str) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(limit).arg(env!("CARGO_BIN_EXE_daxlab"));
    command
}

fn stderr(run: &Output) -> String {
    String::from_utf8_lossy(&run.stderr).into_owned()
}

#[track_caller]
fn could_not(run: &Output, words: &[&str]) {
    let stderr = stderr(run);
    assert_eq!(run.status.code(), Some(3), "{:?}: {stderr}", run.status);
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not in:\n{stderr}");
    }
}

/// A folder that any user can write to, with a copy of the command that any user can run.
struct OpenFolder {
    dir: tempfile::TempDir,
    uid: u32,
}

impl OpenFolder {
    fn new() -> OpenFolder {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        // Not by this process: a command that another test starts meanwhile would have the copy
        // open for writing until its exec, and the copy could not be run (ETXTBSY).
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_daxlab")).arg(dir.path().join("daxlab")).status();
        assert!(copied.unwrap().success());
        // A user without a process: each folder takes another, also in tests that run at once.
        let uid = 1_000_000 + u32::try_from(fs::metadata(dir.path()).unwrap().ino() % 1_000_000).unwrap();
        OpenFolder { dir, uid }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command as a user that may have `processes` processes and threads; not run as another
    /// user than root unless that is one.
    fn with_processes(&self, processes: u32) -> Option<Command> {
        let limit = format!("--nproc={processes}");
        if !rustix::process::geteuid().is_root() {
            return (processes == 1).then(|| limited(&limit));
        }
        let mut command = Command::new("setpriv");
        let (user, group) = (format!("--reuid={}", self.uid), format!("--regid={}", self.uid));
        command.args([&user, &group]).args(["--clear-groups", "prlimit", &limit]).arg(self.path("daxlab"));
        Some(command)
    }
}

#[test]
fn a_thread_that_cannot_be_created_is_named() {
    let folder = OpenFolder::new();
    // One: not even Ctrl-C can be waited for. Three: some actors have a thread, others have not.
    for processes in [1, 3] {
        let Some(mut race) = folder.with_processes(processes) else {
            eprintln!("not run: {processes} processes for a user who has others need root");
            continue;
        };
        let run = race.args(["race", "--design", "kara", "--duration", "1ms", "--out"]).arg(folder.path("out"));
        could_not(&run.output().unwrap(), &["thread", "Resource temporarily unavailable"]);
        assert!(!folder.path("out").exists(), "no folder of a race that did not run");
    }
    let Some(mut scenario) = folder.with_processes(1) else { return };
    let run = scenario.args(["scenario", "run", "S14", "--design", "kara"]).output().unwrap();
    could_not(&run, &["1 of 1 could not be run", "no thread could be created", "ulimit -u"]);
}

#[test]
fn descriptors_that_run_out_are_named() {
    let out = tempfile::tempdir().unwrap();
    let run =
        limited("--nofile=4").args(["race", "--design", "kara", "--duration", "1ms", "--out"]).arg(out.path()).output();
    could_not(&run.unwrap(), &["--out", "Too many open files", "ulimit -n"]);
    // Three are open, and the fourth is the memory device: a boot after a power cut needs a fifth.
    let run = limited("--nofile=4").args(["scenario", "run", "S46a", "--design", "kara"]).output().unwrap();
    could_not(&run, &["1 of 1 could not be run", "opening the device again: Too many open files"]);
    let mut serve = limited("--nofile=4");
    serve.args(["serve", "--file", "x", "--create", "2MiB", "--socket"]).arg(out.path().join("s"));
    could_not(&serve.output().unwrap(), &["Too many open files"]);
}

#[test]
fn memory_that_is_refused_is_named() {
    let run = limited("--as=60000000").args(["scenario", "run", "S14", "--design", "kara"]).output().unwrap();
    could_not(&run, &["a device of 67108864 bytes", "Cannot allocate memory"]);
    // The smallest limit under which the program is loaded: it gets no memory soon after.
    let list = |step: u64| limited(&format!("--as={}", step << 16)).args(["scenario", "list"]).output().unwrap();
    let runs = (64_u64..).map(list);
    let mut loaded = runs.skip_while(|run| run.status.code() == Some(127) || run.status.signal().is_some());
    could_not(&loaded.next().unwrap(), &["this machine gives no memory", "bytes were asked for"]);
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_not_a_signal() {
    let out = tempfile::tempdir().unwrap();
    let run = limited("--fsize=4096")
        .args(["race", "--design", "kara", "--duration", "1ms", "--out"])
        .arg(out.path())
        .output();
    could_not(&run.unwrap(), &["File too large"]);
}

/// The threads of a race of two actors: they, the first one, Ctrl-C's and the listening one.
const RACE_THREADS: usize = 5;

/// A race that is on, with a control socket. It ends with this value.
struct Race(Child);

impl Race {
    /// Starts `command` as a race, and waits until its actors run.
    fn start(mut command: Command, folder: &Path) -> Race {
        let child = command
            .args(["race", "--design", "kara", "--threads", "2", "--duration", "1h", "--out"])
            .arg(folder.join("out"))
            .arg("--control")
            .arg(folder.join("control"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut race = Race(child);
        let tasks = format!("/proc/{}/task", race.0.id());
        // prlimit and setpriv become the command, under the same number.
        while fs::read_dir(&tasks).map_or(0, Iterator::count) < RACE_THREADS {
            assert!(race.0.try_wait().unwrap().is_none(), "it did not start");
            std::thread::yield_now();
        }
        race
    }

    /// The answer to one request.
    fn ask(control: &Path) -> String {
        let mut stream = UnixStream::connect(control).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // A refusal may come before the request.
        let _refused = stream.write_all(b"{\"command\":\"leases\"}\n");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Race {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// The listening thread answers each connection for which it has no descriptor, however many there
/// are, and serves again as soon as it has some.
#[test]
fn a_control_server_without_descriptors_refuses_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let _race = Race::start(limited("--nofile=16"), dir.path());
    let control = dir.path().join("control");
    assert!(Race::ask(&control).starts_with("{\"answer\""));
    // Each holds two descriptors of the server until it hangs up. One that asks holds as many until
    // the server has seen that it has its answer.
    let (mut idle, mut refused) = (Vec::new(), 0);
    while refused < 50 {
        let answer = Race::ask(&control);
        match answer.contains("Too many open files") {
            true => refused += 1,
            false => {
                assert!(answer.starts_with("{\"answer\"") && idle.len() < 32, "{answer}");
                idle.push(UnixStream::connect(&control).unwrap());
                refused = 0;
            }
        }
    }
    drop(idle);
    // The server has yet to see that they have hung up.
    let served = (0..100_000).any(|_| Race::ask(&control).starts_with("{\"answer\""));
    assert!(served, "it serves again");
}

#[test]
fn a_control_server_without_threads_refuses_and_goes_on() {
    let folder = OpenFolder::new();
    let Some(command) = folder.with_processes(RACE_THREADS as u32) else {
        eprintln!("not run: five processes for a user who has others need root");
        return;
    };
    let _race = Race::start(command, folder.dir.path());
    for _ in 0..3 {
        let answer = Race::ask(&folder.path("control"));
        assert!(answer.starts_with("{\"refused\"") && answer.contains("Resource temporarily unavailable"), "{answer}");
    }
    let asked = daxlab().arg("ctl").arg(folder.path("control")).arg("leases").output().unwrap();
    assert!(asked.status.code().is_some_and(|code| code != 0), "{}", stderr(&asked));
    assert!(stderr(&asked).contains("Resource temporarily unavailable"), "{}", stderr(&asked));
}
