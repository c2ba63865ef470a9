//! The real kernel as a machine for scenarios: what is known of fs/locks.c, step by step.
//!
//! A machine that can't do it (no leases on the file system of temporary files, no permission) says
//! so, and the test does not count: the reason is printed as `not run`.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use fs_sim::design::VolumeOptions;
use workloads::language::{Actor, Contents, FileSetup, Query, QuerySubject, Setup};
use workloads::machines::linux::{BreakTime, Host, LinuxConfig, LinuxMachine};
use workloads::machines::machine::{Machine, Progress, Trouble};
use workloads::ops::{Arg, ByteRange, Op, Param, SignalName, Verb};

fn config() -> LinuxConfig {
    LinuxConfig { program: PathBuf::from(env!("CARGO_BIN_EXE_daxlab")), ..LinuxConfig::new() }
}

fn setup() -> Setup {
    let file = |name: &str, contents| FileSetup { name: name.to_owned(), size: 64 << 10, contents };
    Setup {
        device: 64 << 20,
        options: VolumeOptions::default(),
        memlock: None,
        files: vec![
            file("data", Contents::Byte(b'a')),
            file("hole", Contents::Hole),
            file("prog", Contents::Byte(b'p')),
        ],
        linux: true,
        dax: false,
    }
}

/// An operation from its words; sizes in plain bytes.
fn op(verb: Verb, words: &[&str]) -> Op {
    let mut words = words.iter().copied().peekable();
    let mut args = Vec::new();
    for parameter in verb.params() {
        let number = |word: &str| word.parse::<u64>().unwrap();
        args.push(match parameter.syntax {
            Param::File | Param::Bound(_) | Param::Process => Arg::Name(words.next().unwrap().to_owned()),
            Param::Size | Param::Length | Param::Span | Param::Number => Arg::Number(number(words.next().unwrap())),
            Param::Optional(_) if words.peek().is_none() => Arg::Absent,
            Param::Range | Param::Data | Param::Optional(Param::Range) => {
                Arg::Range(ByteRange { offset: number(words.next().unwrap()), len: number(words.next().unwrap()) })
            }
            Param::Byte => Arg::Byte(words.next().unwrap().as_bytes()[0]),
            Param::Signal => {
                let word = words.next().unwrap();
                Arg::Word(SignalName::from_word(word).map(SignalName::word).unwrap())
            }
            Param::Choice(all) => {
                let word = words.next().unwrap();
                Arg::Word(all.iter().copied().find(|one| *one == word).unwrap())
            }
            Param::Flags(all) => {
                let mut flags = Vec::new();
                while let Some(flag) = words.peek().and_then(|word| all.iter().copied().find(|one| one == word)) {
                    flags.push(flag);
                    words.next();
                }
                Arg::Words(flags)
            }
            Param::Text | Param::Delay | Param::FlushRule | Param::Optional(_) => panic!("{verb} is not for scenarios"),
        });
    }
    assert_eq!(words.next(), None, "{verb}: a word too many");
    Op::from_args(verb, &args).unwrap()
}

/// A machine and a short way to talk to it.
struct Bench(Box<LinuxMachine>);

impl Bench {
    /// `A: f = open data rw`: what comes of it; `blocks`.
    fn step(&mut self, line: &str) -> String {
        let (who, rest) = line.split_once(": ").unwrap();
        let (bind, rest) = match rest.split_once(" = ") {
            Some((bind, rest)) => (Some(bind), rest),
            None => (None, rest),
        };
        let mut words = rest.split(' ');
        let verb = Verb::of_script(words.next().unwrap()).unwrap();
        let words: Vec<&str> = words.collect();
        let actor = Actor { process: who.to_owned(), thread: 1 };
        match self.0.perform(&actor, &op(verb, &words), bind).unwrap() {
            Progress::Done(outcome) => outcome,
            Progress::Blocked(_) => "blocks".to_owned(),
        }
    }

    fn returns(&mut self, who: &str) -> String {
        match self.0.progress(&Actor { process: who.to_owned(), thread: 1 }).unwrap() {
            Progress::Done(outcome) => outcome,
            Progress::Blocked(_) => "blocks".to_owned(),
        }
    }

    fn ask(&mut self, subject: QuerySubject, of: &str) -> String {
        self.0.ask(&Query { subject, of: of.to_owned() }).unwrap()
    }

    /// Lines of `STEP -> OUTCOME`; `A: returns` and `signals A` as in scenarios.
    fn script(&mut self, text: &str) {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (step, wanted) = line.split_once(" -> ").unwrap_or((line, "ok"));
            let got = match (step.split_once(": "), step.split_once(' ')) {
                (Some((who, "returns")), _) => self.returns(who),
                (Some(_), _) => self.step(step),
                (None, Some(("signals", who))) => self.ask(QuerySubject::Signals, who),
                (None, Some(("process", who))) => self.ask(QuerySubject::Process, who),
                (None, Some(("size", file))) => self.ask(QuerySubject::Size, file),
                _ => panic!("no step: {line}"),
            };
            assert_eq!(got, wanted, "{line}\n{}", self.0.state().join("\n"));
        }
    }
}

/// Runs `body` on a machine, if there can be one.
fn on_linux(config: LinuxConfig, body: impl FnOnce(&mut Bench)) {
    let host = match Host::start(config) {
        Ok(host) => host,
        Err(Trouble::CannotRun(why)) => return println!("not run: {why}"),
        Err(other) => panic!("{other}"),
    };
    let mut bench = Bench(Box::new(LinuxMachine::new(&host, &setup(), &["prog".to_owned()]).unwrap()));
    body(&mut bench);
    let Bench(machine) = bench;
    assert_eq!(machine.finish(), Vec::<String>::new());
    drop(Rc::try_unwrap(host).unwrap());
}

fn run(text: &str) {
    on_linux(config(), |bench| bench.script(text));
}

#[test]
fn a_lease_is_broken_and_given_back() {
    run("A: f = open data r
         A: setlease f read
         A: getlease f -> ok read
         B: g = open data w -> blocks
         signals A -> SIGIO
         A: getlease f -> ok none
         A: setlease f unlock
         B: returns -> ok
         B: setlease g write -> EAGAIN
         A: close f
         B: setlease g write
         B: getlease g -> ok write");
}

/// On a kernel with delegations a change waits for the break. One without says so, and the step is
/// no outcome of the scenario.
#[test]
fn a_delegation_is_broken_or_there_is_none() {
    on_linux(config(), |bench| {
        bench.script("A: f = open data r");
        let actor = Actor { process: "A".to_owned(), thread: 1 };
        for asked in ["read", "write", "unlock"] {
            match bench.0.perform(&actor, &op(Verb::SetDeleg, &["f", asked]), None) {
                Ok(Progress::Done(outcome)) => assert_eq!(outcome, "ok", "{asked}"),
                Err(Trouble::CannotRun(why)) => {
                    assert!(why.contains("F_SETDELEG"), "{why}");
                    return println!("not run: {why}");
                }
                other => panic!("{asked}: {other:?}"),
            }
        }
        bench.script(
            "A: setdeleg f read
             A: getdeleg f -> ok read
             B: chmod data -> blocks
             signals A -> SIGIO
             A: getdeleg f -> ok none
             A: setdeleg f unlock
             B: returns -> ok
             A: d = open . r
             A: setdeleg d write -> EINVAL
             A: setdeleg d read
             B: unlink data -> blocks
             A: close d
             B: returns -> ok",
        );
    });
}

#[test]
fn a_break_to_read_then_to_none_signals_twice() {
    run("A: f = open data rw
         A: setlease f write
         B: g = open data r nonblock -> EAGAIN
         A: getlease f -> ok read
         B: g = open data r -> blocks
         C: h = open data w nonblock -> EAGAIN
         signals A -> SIGIO SIGIO
         A: close f
         B: returns -> ok
         signals A -> none");
}

#[test]
fn an_interrupted_open_ends_and_the_break_goes_on() {
    run("A: f = open data r
         A: setlease f read
         B: g = open data rw -> blocks
         A: kill B SIGUSR1
         B: returns -> EINTR
         signals B -> SIGUSR1
         A: getlease f -> ok none
         B: truncate data 0 -> blocks
         A: kill B SIGKILL
         B: returns -> killed
         process B -> dead
         size data -> 64KiB");
}

#[test]
fn a_process_that_does_not_care_for_sigio_is_killed_by_a_break() {
    run("A: f = open data r
         A: signal SIGIO default
         A: setlease f read
         B: g = open data w
         process A -> dead");
}

#[test]
fn descriptors_pass_through_sockets_unread() {
    run("B: x = open hole r
         A: f = open data r
         A: setlease f read
         A: send B f
         A: close f
         C: g = open data w nonblock -> EAGAIN
         B: h = recv
         B: getlease h -> ok none
         B: close h
         C: g = open data w nonblock
         A: y = recv -> EAGAIN
         B: send A x
         A: y = recv
         A: fstat y -> ok 64KiB");
}

#[test]
fn forks_copy_descriptors_and_mappings() {
    run("A: f = open data rw
         A: m = mmap f 0 8192
         A: P = fork
         A: store m 4096 4096 x
         P: load m 0 8192 -> ok a:4KiB,x:4KiB
         P: setlease f write
         A: close f
         P: getlease f -> ok write
         P: exit
         process P -> dead
         B: g = open data w nonblock -> EAGAIN
         A: munmap m
         B: g = open data w nonblock
         B: read g 4096 4096 -> EBADF
         B: r = open data r
         B: read r 4096 4096 -> ok x");
}

#[test]
fn faults_tell_their_signal_and_harm_nobody() {
    run("A: f = open data rw
         A: m = mmap f 0 8192
         A: r = mmap f 0 4096 ro
         A: store r 0 1 x -> SIGSEGV
         A: ftruncate f 4096
         A: load m 0 4096 -> ok a
         A: load m 4096 1 -> SIGBUS
         A: store m 4096 1 x -> SIGBUS
         A: munmap m 0 4096
         A: load m 0 1 -> SIGSEGV
         A: munmap m
         A: munmap m
         A: load r 0 1 -> ok a
         B: load r 0 1 -> SIGSEGV");
}

#[test]
fn holes_are_zeros_and_sizes_are_told() {
    run("A: f = open data rw
         A: punch f 4096 4096
         A: read f 0 12288 -> ok a:4KiB,zeros:4KiB,a:4KiB
         A: truncate data 4096
         A: read f 4096 4096 -> ok eof
         A: fstat f -> ok 4KiB
         A: g = open data r excl create -> EEXIST
         A: n = open new w create
         A: link new other
         A: unlink new
         A: rename other data
         A: stat data -> ok 0B");
}

#[test]
fn programs_run_until_they_are_ended() {
    run("A: w = open prog rw
         A: p = exec prog -> ETXTBSY
         A: close w
         A: p = exec prog
         A: w = open prog w -> ETXTBSY
         A: r = open prog r
         A: setlease r write -> EAGAIN
         A: end p
         A: w = open prog w
         A: q = exec data -> EACCES");
}

#[test]
fn a_stranger_needs_cap_lease() {
    run("A: f = open data r
         A: credentials 1000
         A: setlease f read -> EACCES
         A: credentials 1000 cap_lease
         A: setlease f read
         A: credentials 0
         A: setlease f unlock");
}

#[test]
fn a_break_that_nobody_answers_ends_in_time() {
    let break_time = match BreakTime::shorten(&config().program) {
        Ok(break_time) => break_time,
        Err(why) => return println!("not run: {why}"),
    };
    assert_eq!(std::fs::read_to_string("/proc/sys/fs/lease-break-time").unwrap(), "1\n");
    on_linux(LinuxConfig { break_time: Some(break_time), ..config() }, |bench| {
        bench.script(
            "A: f = open data rw
             A: setlease f write
             B: g = open data r -> blocks",
        );
        bench.0.advance(Duration::from_secs(44)).unwrap();
        assert_eq!(bench.returns("B"), "blocks");
        bench.0.advance(Duration::from_secs(1)).unwrap();
        bench.script(
            "B: returns -> ok
             A: getlease f -> ok read",
        );
    });
    assert_ne!(std::fs::read_to_string("/proc/sys/fs/lease-break-time").unwrap(), "1\n");
}

#[test]
fn time_does_not_pass_where_breaks_are_long() {
    on_linux(config(), |bench| {
        bench.script("A: f = open data r");
        assert!(matches!(bench.0.advance(Duration::from_secs(1)), Err(Trouble::CannotRun(_))));
    });
}

#[test]
fn what_can_not_be_is_told() {
    on_linux(config(), |bench| {
        let actor = |thread| Actor { process: "A".to_owned(), thread };
        let open = op(Verb::Open, &["data", "r"]);
        assert!(matches!(bench.0.perform(&actor(2), &open, Some("f")), Err(Trouble::CannotRun(_))));
        let outside = op(Verb::Open, &["../data", "r"]);
        assert!(matches!(bench.0.perform(&actor(1), &outside, Some("f")), Err(Trouble::Script(_))));
        assert!(matches!(bench.0.perform(&actor(1), &op(Verb::Close, &["g"]), None), Err(Trouble::Script(_))));
    });
    // Device-DAX memory is overwritten, so none is taken that was not named.
    on_linux(config(), |bench| {
        let map = op(Verb::MmapDevDax, &["4096"]);
        let refused = bench.0.perform(&Actor { process: "A".to_owned(), thread: 1 }, &map, Some("m")).unwrap_err();
        assert!(refused.to_string().contains("--device-dax"), "{refused}");
    });
    let none = LinuxConfig { page_cache_dir: Some(PathBuf::from("/proc")), ..config() };
    assert!(matches!(Host::start(none), Err(Trouble::CannotRun(why)) if why.contains("/proc")));
    let nowhere = LinuxConfig { dir: PathBuf::from("/proc"), ..config() };
    assert!(matches!(Host::start(nowhere), Err(Trouble::CannotRun(_))));
    let no_agent = LinuxConfig { program: PathBuf::from("/dev/null"), ..config() };
    assert!(matches!(Host::start(no_agent), Err(Trouble::CannotRun(_))));
}
