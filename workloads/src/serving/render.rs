//! Texts that a server shows to people.
//!
//! It owns the wording, and nothing else. Invariant: a text about a refusal names the rule that
//! refuses.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use std::os::unix::ffi::OsStrExt as _;

use crate::input::Size;
use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;
use emulator::vhost_user::attach::shell;
use emulator::vhost_user::{self, MACHINE_REGIONS_MAX, VhostStats};
use fs_sim::base::units::ShownBytes;
use fs_sim::design::{Axis, GateScope, PinGate};
use fs_sim::extent_map::Layout;
use fs_sim::pinning::guest_export::Exposure;
use fs_sim::{Errno, Kernel};
use serde_json::{Value, json};

use super::backend_handles::{Guest, Port, Unanswered, counted};
use super::machine::ServedMachine;
use super::{Config, What};
use crate::ops::{FileName, Op};
use crate::serving::control::answers;
use crate::serving::control::protocol::Response;

/// What a device that was not started means, and what ends it.
pub(super) const NOT_STARTED: &str =
    "QEMU could not start the device: it began, and has told of no memory since; its guest's fsync hangs until a reset";

/// A device's counters, by name.
pub(super) fn counters(stats: &VhostStats) -> BTreeMap<String, u64> {
    let counters = [
        ("connections", stats.connections),
        ("refused", stats.refused),
        ("broken", stats.broken),
        ("kicks", stats.kicks),
        ("notifications", stats.notifications),
        ("requests", stats.requests),
        ("flushes", stats.flushes),
        ("coalesced", stats.coalesced),
        ("failed", stats.failed),
        ("unknown", stats.unknown),
        ("malformed", stats.malformed),
        ("maps", stats.maps),
        ("unmaps", stats.unmaps),
        ("resets", stats.resets),
        ("declined", stats.declined),
        ("violations", stats.violations),
        ("ram_regions", stats.ram_regions),
        ("own_regions", stats.own_regions),
        ("other_regions", stats.other_regions),
        ("starting_ms", stats.starting_ms),
    ];
    counters.map(|(name, count)| (name.to_owned(), count)).into()
}

/// A counter for people: one of bytes has a unit.
pub(super) fn counter((name, count): (&String, &u64)) -> String {
    if name.contains("bytes") { format!("{name} {}", ShownBytes(*count)) } else { format!("{name} {count}") }
}

/// What is held for a guest on trial, in words.
pub(super) fn held(kernel: &Arc<Kernel>, file: &str) -> String {
    let mut held = String::new();
    let name = || Some(FileName(file.to_owned()));
    for request in [Op::Leases { file: name() }, Op::Pins { file: name() }] {
        if let Some(Response::Answer { text, .. }) = answers::answer(kernel, &request) {
            let what = request.verb();
            for line in text.lines() {
                let _ = writeln!(held, "  {what}: {line}");
            }
        }
    }
    held
}

/// Why a design admits no guest.
pub(super) fn refusal(config: &Config, errno: Errno) -> String {
    let axes = &config.axes;
    let rule = |axis: Axis| format!("{} = {}", axis.name(), axes.get(axis));
    let why = match (axes.gate_scope, axes.pin_gate) {
        (_, PinGate::Refuse) => format!("{}: long-term pins of files are refused to every user", rule(Axis::PinGate)),
        (GateScope::RdmaOnly, _) => format!("{}: only RDMA may pin files for long", rule(Axis::GateScope)),
        _ => format!("{}, {}", rule(Axis::PinGate), rule(Axis::GateScope)),
    };
    format!(
        "the design {} does not let a guest have a file ({errno}; {why}); choose another with --design, or serve an --image",
        config.design
    )
}

/// What is served, and what that takes.
pub(super) fn what(config: &Config, machine: &ServedMachine, held: &str) -> String {
    let mut text = String::new();
    if config.read_only {
        text += "read-only: a guest mounts it with `-o ro`\n";
    }
    let size = Size(machine.device().bytes());
    match &config.what {
        What::Image { path, .. } => {
            let _ = writeln!(text, "image {}, {size}", path.display());
            if !config.read_only {
                let _ = writeln!(text, "a guest's FLUSH: what it flushed is durable in the image when it is answered");
            }
        }
        What::Files(files) => {
            let _ = writeln!(text, "design {}, seed {}, volume of {size}", config.design, config.seed);
            if let Some(kernel) = machine.kernel() {
                let runs = |name: &String| kernel.runs_of(name).unwrap_or(0);
                let all = files.names.iter().map(runs).sum::<u64>();
                for name in &files.names {
                    let runs = runs(name);
                    let extents = counted(runs, "extent");
                    let bytes = kernel.named(name).map_or(0, |inode| inode.layout(Layout::size));
                    let _ = writeln!(text, "file {name}, {}, {extents}", Size(bytes));
                    // One region is the guest's memory.
                    if runs >= MACHINE_REGIONS_MAX as u64 {
                        let _ = writeln!(
                            text,
                            "  more than {} extents: a machine has {MACHINE_REGIONS_MAX} regions for its memory and all its devices; QEMU can start no other device after this one (give it last), and not this one after `stop` and `cont` until the guest is reset; its lines `vhost_set_mem_table failed: No buffer space available` do no harm while this device works; --defragment joins the extents",
                            MACHINE_REGIONS_MAX - 1
                        );
                    }
                }
                if files.names.len() > 1 && all >= MACHINE_REGIONS_MAX as u64 {
                    let _ = writeln!(
                        text,
                        "together {}: a guest that gets all of them has more than the {MACHINE_REGIONS_MAX} regions that QEMU starts a device with, so the device that is given last does not start; --defragment joins extents",
                        counted(all, "extent")
                    );
                }
            }
            if !config.read_only {
                text += "a guest's FLUSH: what it flushed is kept as long as this server lives, as the volume is in its memory; with --image it is durable\n";
            }
            let whom = if config.nvdimm {
                "held as long as this server runs"
            } else {
                "held for a guest as long as it is attached"
            };
            let _ = writeln!(text, "{whom} (from a trial export; a guest gets higher numbers):\n{}", held.trim_end());
        }
    }
    text
}

/// What `daxlab ctl` can do here. A guest that is not `seen` by the server has its own device.
pub(super) fn to_try(config: &Config, seen: bool) -> String {
    let at = shell(config.control.as_os_str().as_bytes());
    let mut text = "to try:\n".to_owned();
    let mut example = |command: &str| {
        let _ = writeln!(text, "  daxlab ctl {at} {command}");
    };
    example("guests");
    if let What::Files(files) = &config.what {
        let name = files.names.first().map_or_else(String::new, |name| shell(name.as_bytes()));
        example(&format!("truncate {name} 0"));
        example(&format!("blockers {name}"));
        example("stale");
    }
    if seen {
        example("fail-flush on");
        example(if config.power_cut_model { "power-cut" } else { "flush-stats" });
    }
    text
}

/// What an answer says beside, where no guest is attached at a socket.
pub(super) const ONLY_SOCKETS: &str =
    "a guest that has this memory by a device of QEMU's own is not seen here, and not affected\n";

/// What limits a device's start in its frontend's machine.
pub(super) struct DeviceStart {
    /// Regions of the machine's own memory, as it told last.
    pub(super) memory: u64,
    /// Pieces of all its vhost-user devices, as far as they are known.
    pub(super) pieces: u64,
    /// For how long the frontend has been starting the device without telling of its memory.
    pub(super) starting_ms: u64,
    /// Its port's process, if that did not answer: nothing else is known then.
    pub(super) silent: Option<u32>,
}

impl DeviceStart {
    /// What there is to warn of, for people and for programs.
    fn warnings(&self) -> Vec<(&'static str, String)> {
        let mut warnings = Vec::new();
        if let Some(pid) = self.silent {
            let words = format!(
                "its port (process {pid}) does not answer: flushes wait for it; if it is stopped, `kill -CONT {pid}` lets it go on"
            );
            warnings.push(("port_silent", words));
        }
        if u128::from(self.starting_ms) >= vhost_user::NOT_STARTED.as_millis() {
            let words = format!("{NOT_STARTED} ({:.1} s ago)", self.starting_ms as f64 / 1e3);
            warnings.push(("not_started", words));
        }
        if self.memory + self.pieces > MACHINE_REGIONS_MAX as u64 {
            let words = format!(
                "its machine has {} and {}, more than {MACHINE_REGIONS_MAX} together: QEMU can start no other device there, and not this one after `stop` and `cont` until a reset; --defragment joins extents",
                counted(self.memory, "region") + " of memory",
                counted(self.pieces, "piece"),
            );
            warnings.push(("too_many_regions", words));
        }
        warnings
    }
}

/// How the guest of a port stands, for people and for programs.
pub(super) fn guest(machine: &ServedMachine, port: &Port, start: Option<&DeviceStart>) -> (String, Value) {
    let socket = port.socket.display();
    let mut text = format!("{socket}");
    let mut data = json!({ "socket": port.shown(), "file": port.file, "port": port.pid() });
    if let Some(file) = &port.file {
        let _ = write!(text, " ({file})");
    }
    let ended = port.has_ended();
    let Some(guest) = port.guest() else {
        data["state"] = json!(if ended { "ended" } else { "none" });
        text += if ended { ": its port has ended; no guest can attach any more\n" } else { ": no guest\n" };
        return (text, data);
    };
    let (state, words) = standing(&guest, ended);
    // ORDERING: Relaxed: numbers, each right by itself.
    let (pieces, attaches) = (guest.pieces.load(Ordering::Relaxed), guest.attaches.load(Ordering::Relaxed));
    let process = guest.file_process().map(|pid| pid.0);
    let since_ns = machine.waits().now().since(guest.since);
    let _ = write!(text, ": {}, {words}", guest.who());
    if let Some(process) = process {
        let _ = write!(text, "; process {process} has the file for it");
    }
    let _ = writeln!(text, "; attached for {:.1} s", since_ns as f64 / 1e9);
    if let Some(asked) = port.unanswered() {
        let (line, value) = unanswered(port, &asked);
        let _ = writeln!(text, "  {line}");
        data["asked_to_unmap"] = value;
    }
    for (name, words) in start.map(DeviceStart::warnings).unwrap_or_default() {
        let _ = writeln!(text, "  {words}");
        data[name] = json!(words);
    }
    data["state"] = json!(state);
    data["qemu"] = json!(guest.pid);
    data["process"] = json!(process);
    data["pieces"] = json!(pieces);
    data["attaches"] = json!(attaches);
    data["attached_ns"] = json!(since_ns);
    (text, data)
}

/// A guest that holds up what takes its memory, and what ends that.
pub(super) fn unanswered(port: &Port, asked: &Unanswered) -> (String, Value) {
    let guest = &asked.guest;
    let state = guest.pid.and_then(process_state);
    let stopped = matches!(state, Some('T' | 't'));
    let end = "its memory is waited for until it answers, hangs up or ends";
    let remedy = match guest.pid {
        Some(pid) if stopped => format!("that process is stopped: `kill -CONT {pid}` has it answer; {end}"),
        Some(pid) => format!("{end} (`kill {pid}`)"),
        None => end.to_owned(),
    };
    let text = format!(
        "guest at {}, {}, was asked to unmap {:.1} s ago and has not: {remedy}",
        port.shown(),
        guest.who(),
        asked.asked_ns as f64 / 1e9
    );
    let data = json!({ "socket": port.shown(), "qemu": guest.pid, "asked_ns": asked.asked_ns, "stopped": stopped });
    (text, data)
}

/// The state letter of a process, as proc_pid_stat(5) has it.
fn process_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may hold anything.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn standing(guest: &Guest, port_ended: bool) -> (&'static str, String) {
    // ORDERING: Relaxed: numbers, each right by itself.
    let (pieces, attaches) = (guest.pieces.load(Ordering::Relaxed), guest.attaches.load(Ordering::Relaxed));
    match () {
        () if port_ended => ("port-lost", "whose port has died: what it has mapped it keeps until it ends".to_owned()),
        () if guest.is_revoked() => ("revoked", "from which it was taken: flushes fail".to_owned()),
        () if pieces > 0 => ("mapped", format!("{} mapped", counted(pieces, "piece"))),
        () if attaches > 0 => ("unmapped", "nothing mapped until its next reset".to_owned()),
        () => ("connected", "connected, no driver so far".to_owned()),
    }
}

/// What a guest reaches that is no longer its file's.
pub(super) fn stale(port: &Port, guest: &Guest, exposure: &Exposure) -> (String, Value) {
    let text = format!(
        "{}: {}: stale_guest_exposed_bytes {}, orphaned bytes {}\n",
        port.socket.display(),
        guest.who(),
        ShownBytes(exposure.exposed_bytes),
        ShownBytes(exposure.orphaned_bytes),
    );
    let pieces: Vec<Value> = exposure
        .pieces
        .iter()
        .map(
            |piece| json!({ "file_offset": piece.file_offset, "device_offset": piece.device_offset, "len": piece.len }),
        )
        .collect();
    let data = json!({
        "socket": port.shown(), "file": port.file, "qemu": guest.pid,
        "stale_guest_exposed_bytes": exposure.exposed_bytes, "orphaned_bytes": exposure.orphaned_bytes, "pieces": pieces,
    });
    (text, data)
}

/// `RemoteAccessError` as `remote access error`.
pub(super) fn spaced(debug: &str) -> String {
    let mut words = String::new();
    for c in debug.chars() {
        if c.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(c.to_lowercase());
    }
    words
}
