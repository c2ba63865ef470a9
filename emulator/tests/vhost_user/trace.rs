//! The lines that a trace of messages has, and the violations that it reports.

use emulator::sync::{Arc, Mutex};
use emulator::vhost_user::{MessageTrace, VIOLATIONS_MAX, VhostOptions, ViolationReport};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::guest::{ALL, Guest, willing};
use crate::medium::{Served, TestMedium};

#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl MessageTrace for Lines {
    fn line(&self, line: &str) {
        // Without the time.
        self.0.lock().push(line.split_once(' ').unwrap().1.to_owned());
    }
}

#[test]
fn each_message_is_a_line_and_violations_are_reported() {
    let lines = Arc::new(Lines::default());
    let trace = Some(Arc::clone(&lines) as Arc<dyn MessageTrace>);
    let reported = Arc::new(Mutex::new(Vec::new()));
    let report = Arc::clone(&reported);
    let violations: Option<ViolationReport> = Some(Arc::new(move |what: &str| report.lock().push(what.to_owned())));
    let options = VhostOptions { trace, violations, ..VhostOptions::default() };
    let served = Served::with_options(TestMedium::new(), options);
    let gone = served.medium.tell_gone();
    let mut guest = Guest::connect(&served.path());
    assert_eq!(guest.frontend.get_features().unwrap(), ALL);
    let offered = guest.frontend.get_protocol_features().unwrap();
    guest.frontend.set_protocol_features(offered).unwrap();
    // It is not the owner yet.
    guest.frontend.set_features(ALL).unwrap();
    assert!(guest.frontend.set_vring_num(0, 3).is_err());
    assert!(guest.frontend.set_features(1 << 60).is_err());
    drop(guest);
    gone.recv().unwrap();
    let problem = served.server.stats().problem.unwrap();
    let wrong = "SET_FEATURES takes features 0x1000000000000000 that were not offered";
    assert_eq!(problem, format!("connection ended: {wrong}"));
    let stats = served.server.stats();
    assert_eq!((stats.violations, stats.declined, stats.broken), (4, 1, 1));
    let early = "SET_FEATURES before SET_OWNER";
    assert_eq!(*reported.lock(), [early, "SET_VRING_NUM before SET_OWNER", early, wrong]);
    let pid = std::process::id();
    let num = "SET_VRING_NUM flags 0x9 size 8 files 0";
    let says = [
        format!("1 -- process {pid} connected"),
        "1 -> GET_FEATURES flags 0x9 size 0 files 0: forwarded".to_owned(),
        "1 <- GET_FEATURES size 8 value 0x170000001".to_owned(),
        "1 -> GET_PROTOCOL_FEATURES flags 0x9 size 0 files 0: forwarded".to_owned(),
        format!("1 <- GET_PROTOCOL_FEATURES size 8 value {:#x}", offered.bits()),
        "1 -> SET_PROTOCOL_FEATURES flags 0x9 size 8 files 0: forwarded".to_owned(),
        "1 <- SET_PROTOCOL_FEATURES size 8 value 0x0".to_owned(),
        "1 -- violation: SET_FEATURES before SET_OWNER".to_owned(),
        "1 -> SET_FEATURES flags 0x9 size 8 files 0: forwarded".to_owned(),
        "1 <- SET_FEATURES size 8 value 0x0".to_owned(),
        "1 -- violation: SET_VRING_NUM before SET_OWNER".to_owned(),
        format!("1 -> {num}: declined: a queue of 3 descriptors: it must be a power of two, at most 1024"),
        "1 <- SET_VRING_NUM size 8 value 0x1".to_owned(),
        "1 -- violation: SET_FEATURES before SET_OWNER".to_owned(),
        format!("1 -> SET_FEATURES flags 0x9 size 8 files 0: wrong: {wrong}"),
        format!("1 -- violation: {wrong}"),
        "1 <- SET_FEATURES size 8 value 0x1".to_owned(),
        format!("1 -- ended: {wrong}"),
    ];
    assert_eq!(*lines.0.lock(), says);
}

#[test]
fn a_flood_of_violations_is_reported_so_far_and_counted_to_its_end() {
    let reported = Arc::new(Mutex::new(0));
    let report = Arc::clone(&reported);
    let violations: Option<ViolationReport> = Some(Arc::new(move |_: &str| *report.lock() += 1));
    let served = Served::with_options(TestMedium::new(), VhostOptions { violations, ..VhostOptions::default() });
    let guest = Guest::connect(&served.path());
    guest.frontend.get_features().unwrap();
    let floods = VIOLATIONS_MAX + 50;
    for _ in 0..floods {
        guest.frontend.set_features(ALL).unwrap();
    }
    guest.frontend.get_features().unwrap();
    // It is not the owner, and asks for a reply without REPLY_ACK.
    assert_eq!(served.server.stats().violations, 2 * u64::from(floods));
    assert_eq!(*reported.lock(), VIOLATIONS_MAX);
}

#[test]
fn what_is_asked_on_the_channel_is_a_line_too() {
    let lines = Arc::new(Lines::default());
    let trace = Some(Arc::clone(&lines) as Arc<dyn MessageTrace>);
    let served = Served::with_options(TestMedium::new(), VhostOptions { trace, ..VhostOptions::default() });
    let mut guest = Guest::connect(&served.path());
    guest.realise(willing());
    guest.start();
    assert_eq!(guest.flush(), 0);
    assert!(served.server.unmap().acknowledged);
    let lines = lines.0.lock().clone();
    let channel: Vec<&str> = lines.iter().map(String::as_str).filter(|line| line.contains("SHMEM_")).collect();
    let piece = "shm_offset 0x0 fd_offset 0x0 len 0x600000";
    assert_eq!(
        channel,
        [
            "1 -> GET_SHMEM_CONFIG flags 0x9 size 0 files 0: forwarded",
            "1 <- GET_SHMEM_CONFIG size 2056",
            &format!("1 <- SHMEM_MAP {piece} files 1"),
            "1 -> SHMEM_MAP: 0",
            &format!("1 <- SHMEM_UNMAP {piece} files 0"),
            "1 -> SHMEM_UNMAP: 0",
        ]
    );
    assert!(lines.iter().any(|line| line.starts_with("1 -> SET_MEM_TABLE flags 0x9 size 40 files 1: forwarded")));
}
