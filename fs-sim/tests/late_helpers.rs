//! A process that takes a descriptor from its inbox while the kernel asks who could drop the pins
//! of a context: first the descriptor tables are asked, then the inboxes.

mod common;

use common::stops::stops_at;
use common::{Actor, Lab, Nic, patient, preset};
use emulator::sync::race;
use fs_sim::base::numbers::Fd;
use fs_sim::design::{Axes, ChangeRule};
use fs_sim::syscalls::descriptors::Received;
use fs_sim::{BLOCK, Errno};

/// The moment between the two questions.
const HALF_ASKED: &str = "descriptor: tables asked, inboxes not asked";

fn waiting() -> Axes {
    let axes = patient(preset("unsafe"));
    Axes { stranger_change: ChangeRule::Wait, holder_change: ChangeRule::Wait, ..axes }
}

fn receives(actor: &Actor) -> Fd {
    match actor.recv_fd() {
        Ok(Received::Fd(fd)) => fd,
        other => panic!("no descriptor: {other:?}"),
    }
}

/// The receiver is named: it is neither in the tables that were asked before nor in the inboxes
/// that are asked after it has received.
#[test]
fn a_receiver_is_named_while_it_receives() {
    let (lab, [a, b, helper]) = Lab::cast(waiting());
    let f = a.writes_file("data", 1, 1);
    let (nic_fd, nic) = Nic::open(&a);
    let region = nic.pins(&a, f, 0..1).unwrap();
    a.send_fd(helper.pid(), nic_fd).unwrap();
    let changing = b.blocks("long-term pins", |b| b.truncate("data", 0));
    let receiver = helper.clone();
    race::call(move |name| {
        if name == HALF_ASKED {
            receives(&receiver);
        }
    });
    let blocked = lab.kernel.blocked();
    race::disarm();
    let both = format!("needs [process {} or process {}]", a.pid(), helper.pid());
    assert!(blocked[0].ends_with(&both), "{blocked:?}");
    region.dereg(&helper);
    assert_eq!(changing.finish(), Ok(()));
    lab.end([&a, &b, &helper]);
}

/// Two changes wait for each other's pins, and a third process has a descriptor of one context,
/// which it receives between the two questions: no wait is refused.
#[test]
fn a_receiver_counts_while_it_receives() {
    let (lab, [a, b, helper]) = Lab::cast(waiting());
    let (fa, fb) = (a.writes_file("one", 1, 1), b.writes_file("two", 1, 2));
    let ((_, of_a), (nic_fd, of_b)) = (Nic::open(&a), Nic::open(&b));
    let (region_a, region_b) = (of_a.pins(&a, fa, 0..1).unwrap(), of_b.pins(&b, fb, 0..1).unwrap());
    b.send_fd(helper.pid(), nic_fd).unwrap();
    let first = a.blocks("long-term pins", |a| a.truncate("two", 0));
    let second = stops_at(HALF_ASKED, &b, |b| b.truncate("one", 0));
    let received = receives(&helper);
    second.goes_on();
    second.expect_blocked(&b, "long-term pins");
    // The helper goes without help: now the second wait, which began last, is refused.
    helper.close(received).unwrap();
    assert_eq!(second.finish(), Err(Errno::EDEADLK));
    region_b.dereg(&b);
    assert_eq!(first.finish(), Ok(()));
    region_a.dereg(&a);
    assert_eq!((a.stat(fa).unwrap().size, b.stat(fb).unwrap().size), (BLOCK, 0));
    lab.end([&a, &b, &helper]);
}
