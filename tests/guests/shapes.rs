//! How many pieces a machine's devices have: what QEMU's memory table of eight regions carries over
//! resets, driver changes and stops, and what is told where it carries no more.

use tempfile::TempDir;

use crate::guest::{self, BootGuest as _, CURRENT, Guest, Machine};
use crate::more::Monitor;
use crate::server::{MIB, Server};

/// A device of its own server, and the folder that it serves from.
struct Device {
    server: Server,
    _dir: TempDir,
}

/// A guest with one device for each number of pieces, in this order.
struct Shape {
    devices: Vec<Device>,
    guest: Guest,
    monitor: Monitor,
    _dir: TempDir,
}

impl Shape {
    fn boot(machine: &Machine, pieces: &[usize]) -> Shape {
        let devices: Vec<Device> = pieces
            .iter()
            .zip(b'0'..)
            .map(|(pieces, number)| {
                let dir = tempfile::tempdir().unwrap();
                let mut marked = vec![0; 4 * MIB as usize];
                marked[..5].copy_from_slice(&[b'm', b'a', b'r', b'k', number]);
                std::fs::write(dir.path().join("content"), marked).unwrap();
                let count = pieces.to_string();
                let args = ["--control", "a.ctl", "--file", "data", "--import", "content", "--extents", &count];
                Device { server: Server::start(dir.path(), &["a"], &args), _dir: dir }
            })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let qmp = dir.path().join("qmp");
        let boot = machine.boot().args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())]);
        let boot = devices.iter().fold(boot, |boot, device| boot.vhost_user_pmem(&device.server.socket("a")));
        let guest = boot.start();
        Shape { devices, guest, monitor: Monitor::connect(&qmp), _dir: dir }
    }

    /// Asserts that each of the first so many of the guest's devices has its memory and can be
    /// flushed. The guest's order is not ours: each device says its number.
    fn assert_working(&mut self, devices: usize) {
        let script = "count=0; for at in 0 1 2 3 4 5 6 7 8; do
                mark=$(head -c 5 /dev/pmem$at 2>/dev/null | tr -d '\\0')
                case $mark in mark[0-DEVICES]) ;; *) continue ;; esac
                echo x | dd of=/dev/pmem$at bs=4096 seek=9 conv=fsync,notrunc 2>/dev/null && count=$((count + 1))
            done; echo $count";
        let script = script.replace("DEVICES", &(devices - 1).to_string());
        assert_eq!(self.guest.ok(&script).trim(), devices.to_string());
    }

    fn stop_and_continue(&mut self) {
        self.monitor.ask(r#"{"execute":"stop"}"#);
        self.monitor.ask(r#"{"execute":"cont"}"#);
    }

    /// Whether QEMU started a device in this boot of the guest. If not, its server says so.
    fn is_started(&self, device: usize, boots: u64) -> bool {
        let server = &self.devices[device].server;
        server.until(&["guests"], |guests| (guests[0]["attaches"] == boots).then_some(()));
        let started =
            server.until(&["flush-stats"], |stats| match stats[0]["counters"]["starting_ms"].as_u64().unwrap() {
                0 => Some(true),
                starting => (starting >= 1_000).then_some(false),
            });
        if !started {
            server.says("QEMU could not start the device");
            self.await_not_started(device);
        }
        started
    }

    /// Waits until the server of a device says that QEMU could not start it.
    fn await_not_started(&self, device: usize) {
        self.devices[device]
            .server
            .until(&["guests"], |guests| guests.to_string().contains("could not start").then_some(()));
    }
}

#[test]
fn up_to_seven_pieces_are_carried_over_everything() {
    let Some(machine) = guest::machine(CURRENT, "shapes of up to seven pieces") else { return };
    for pieces in [vec![1], vec![3, 4], vec![1; 7]] {
        let mut shape = Shape::boot(machine, &pieces);
        shape.assert_working(pieces.len());
        shape.stop_and_continue();
        shape.assert_working(pieces.len());
        shape.guest.reset();
        shape.assert_working(pieces.len());
        shape.guest.ok(crate::REBIND);
        shape.assert_working(pieces.len());
        assert!(shape.guest.is_running(), "{pieces:?}");
        shape.guest.poweroff();
    }
}

#[test]
fn a_device_of_128_pieces_is_carried_over_resets() {
    let Some(machine) = guest::machine(CURRENT, "a device of 128 pieces") else { return };
    let mut shape = Shape::boot(machine, &[128]);
    shape.assert_working(1);
    shape.guest.reset();
    shape.assert_working(1);
    shape.guest.ok(crate::REBIND);
    shape.assert_working(1);
    // After a stop QEMU can't start it: its pieces are too many for the table. A reset unmaps them.
    shape.stop_and_continue();
    shape.await_not_started(0);
    shape.guest.reset();
    shape.assert_working(1);
    shape.guest.poweroff();
}

#[test]
fn with_a_ninth_region_the_last_device_starts_or_its_server_says_that_it_did_not() {
    let Some(machine) = guest::machine(CURRENT, "shapes of more than eight regions") else { return };
    for pieces in [vec![8, 8], vec![1; 9]] {
        let mut shape = Shape::boot(machine, &pieces);
        let last = pieces.len() - 1;
        for boots in 1..=2 {
            // The guest may reach the last device while QEMU still maps the pieces of the one
            // before. Then there is room for its start.
            let working = if shape.is_started(last, boots) { last + 1 } else { last };
            shape.assert_working(working);
            if boots == 1 {
                shape.guest.reset();
            }
        }
        assert!(shape.guest.is_running(), "{pieces:?}");
    }
}
