//! A server under test: started, waited for until it is ready, asked, ended.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

use crate::common::daxlab;

pub const MIB: u64 = 1 << 20;

/// How long anything may take before a test has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// A running server, killed at the end if it still runs.
pub struct Server {
    child: Child,
    dir: PathBuf,
    pub introduction: String,
    events: Receiver<String>,
}

impl Server {
    /// Starts `daxlab serve` with `args` and the sockets `names`, all in `dir`, and waits until
    /// guests can connect.
    pub fn start(dir: &Path, names: &[&str], args: &[&str]) -> Server {
        Server::run(&mut daxlab(), dir, names, args)
    }

    pub fn run(command: &mut Command, dir: &Path, names: &[&str], args: &[&str]) -> Server {
        command.arg("serve").current_dir(dir);
        for name in names {
            command.args(["--socket", name]);
        }
        Server::ready(command.args(args), dir, names.len())
    }

    /// Starts `command` and waits until it is ready at so many sockets.
    pub fn ready(command: &mut Command, dir: &Path, sockets: usize) -> Server {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut introduction = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready = 0;
        while ready < sockets {
            let mut line = String::new();
            if stdout.read_line(&mut line).unwrap() == 0 {
                let out = child.wait_with_output().unwrap();
                panic!("not ready: {introduction}{}", String::from_utf8_lossy(&out.stderr));
            }
            ready += usize::from(line.starts_with("ready: "));
            introduction += &line;
        }
        let (sender, events) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Server { child, dir: dir.to_owned(), introduction, events }
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Waits until stderr says something with `words` in it.
    pub fn says(&self, words: &str) -> String {
        loop {
            let line = self.events.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("never said: {words}"));
            if line.contains(words) {
                return line;
            }
        }
    }

    /// All that stderr says up to a line with `words` in it, and that line.
    pub fn says_until(&self, words: &str) -> Vec<String> {
        let mut said = Vec::new();
        while !said.last().is_some_and(|line: &String| line.contains(words)) {
            said.push(self.events.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("never said: {words}: {said:?}")));
        }
        said
    }

    pub fn ctl_command(&self, args: &[&str]) -> Command {
        let mut command = daxlab();
        command.arg("ctl").arg(self.dir.join("a.ctl")).args(args);
        command
    }

    /// Asks; exit code, stdout, stderr.
    pub fn ctl(&self, args: &[&str]) -> (i32, String, String) {
        outcome(&self.ctl_command(args).output().unwrap())
    }

    /// Asks what must be answered; the answer as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let (code, out, err) = self.ctl(&[args, &["--json"]].concat());
        assert_eq!(code, 0, "{args:?}: {out}{err}");
        serde_json::from_str(&out).unwrap()
    }

    /// Asks until `found` finds something in the answer.
    pub fn until<T>(&self, args: &[&str], found: impl Fn(&Value) -> Option<T>) -> T {
        let mut last = Value::Null;
        for _ in 0..2_000 {
            last = self.json(args);
            if let Some(found) = found(&last) {
                return found;
            }
        }
        panic!("never came: {args:?}: {last}");
    }

    /// The port process of the socket number `at`.
    pub fn port(&self, at: usize) -> Watched {
        Watched::new(&self.json(&["guests"])[at]["port"])
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap()
    }

    /// Sends a signal, and waits for the end.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        kill_process(self.pid(), signal).unwrap();
        self.child.wait().unwrap()
    }

    pub fn terminate(&mut self) {
        let status = self.end(Signal::TERM);
        assert_eq!((status.code(), status.signal()), (Some(0), None));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// A process that is no child of ours, to be waited for.
pub struct Watched(std::os::fd::OwnedFd);

impl Watched {
    pub fn new(pid: &Value) -> Watched {
        let pid = Pid::from_raw(i32::try_from(pid.as_u64().unwrap()).unwrap()).unwrap();
        Watched(pidfd_open(pid, PidfdFlags::empty()).unwrap())
    }

    pub fn await_end(&self) {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let limit = Timespec { tv_sec: LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "the process does not end");
    }

    pub fn kill(&self) {
        rustix::process::pidfd_send_signal(&self.0, Signal::KILL).unwrap();
    }
}

/// From here on this process and whatever it starts gets `errno` of the system call `number`, as
/// fdatasync(2) gets EIO from a broken disk (seccomp(2)).
pub fn fail_call(number: libc::c_long, errno: i32) -> std::io::Result<()> {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO};
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        // The system call's number is the first word of what a filter sees.
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0),
        step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, number as u32),
        step(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | errno as u32),
        step(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the arguments are those of prctl(2); the filter lives through the call.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
    };
    if set { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
