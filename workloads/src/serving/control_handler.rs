//! What `daxlab ctl` does to a running server.
//!
//! It owns no state but the way to the machine. Invariants: a change of a file is done by a
//! simulated process of its own, which ends with the request, or with the asker; a failure names
//! what stands against it; a request waits without a bound only for a guest, a lease or a pin, and
//! then it can be given up.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;
use emulator::wait::{WaitError, Waiter};
use fs_sim::base::units::ShownBytes;
use fs_sim::extent_map::Layout;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::vfs::signals::{SigInfo, Signal};
use fs_sim::{BLOCK, BlockRange, Errno, Kernel, Task};
use serde_json::{Value, json};

use super::backend_handles::{Guest, Port, counted};
use super::link::{AT_ONCE, LinkError, PATIENCE, TakeReason};
use super::machine::ServedMachine;
use super::nic::{AccessFailure, READ_MAX};
use super::render::{self, DeviceStart};
use crate::input;
use crate::ops::{FlushRule, Op};
use crate::serving::control::protocol::Response;
use crate::serving::control::{Asker, Handler, answers};

/// The most blocks that one request poisons.
const POISON_MAX: u64 = 1 << 16;

/// The longest delay of a flush.
const FLUSH_DELAY_MAX: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Default)]
pub(super) struct ControlHandler {
    served: OnceLock<Served>,
}

struct Served {
    machine: Arc<ServedMachine>,
    ports: Vec<Arc<Port>>,
}

impl ControlHandler {
    /// Sets the machine and the ports that requests act on.
    pub(super) fn serve(&self, machine: &Arc<ServedMachine>, ports: &[Arc<Port>]) {
        let served = Served { machine: Arc::clone(machine), ports: ports.to_vec() };
        // Set once, by the one thread that starts the server.
        let _first = self.served.set(served);
    }
}

impl Handler for ControlHandler {
    fn handle(&self, request: &Op, asker: &Asker<'_>) -> Response {
        match self.served.get() {
            Some(served) => served.answer(request, asker).unwrap_or_else(|why| Response::Refused { why }),
            None => Response::Refused { why: "the server is starting: ask again".to_owned() },
        }
    }
}

/// An answer, or why the request makes no sense.
type Answered = Result<Response, String>;

/// A change of a file in words.
struct ChangeWords {
    /// For programs: bytes without a unit.
    call: String,
    /// For people.
    shown: String,
}

impl ChangeWords {
    fn of_range(verb: &str, file: &str, offset: u64, len: u64) -> ChangeWords {
        ChangeWords {
            call: format!("{verb} {file} from {offset} on {len}"),
            shown: format!("{verb} {file}, {} from {} on", ShownBytes(len), ShownBytes(offset)),
        }
    }
}

/// What the asker of a call that waits can do to it: hang up.
fn cancelled_by(waiter: &Arc<Waiter>) -> impl FnOnce() + Send + 'static {
    let waiter = Arc::clone(waiter);
    move || waiter.interrupt(false)
}

/// The blocks of `len` bytes from `offset` on, up to the last that can be named.
fn bytes_from(offset: u64, len: u64) -> BlockRange {
    BlockRange::of_bytes(offset, len.min(u64::MAX - offset))
}

/// A range without a byte is a mistake that the asker made.
fn has_length(verb: &str, file: &str, len: u64) -> Result<(), String> {
    match len {
        0 => Err(format!("{verb} {file}: the length is 0; give how many bytes, with a unit, such as `4KiB`")),
        _ => Ok(()),
    }
}

/// Whether a call may have failed because of a lease, a pin or another call.
fn is_of_blockers(errno: Errno) -> bool {
    matches!(errno, Errno::ETXTBSY | Errno::EAGAIN | Errno::EBUSY | Errno::EDEADLK | Errno::EINTR)
}

fn cannot_start(error: std::io::Error) -> String {
    format!("the server could not start a thread or open a descriptor: {error}")
}

impl Served {
    fn answer(&self, request: &Op, asker: &Asker<'_>) -> Answered {
        match request {
            Op::Guests {} => Ok(self.guests()),
            Op::FlushStats {} => Ok(self.flush_stats()),
            Op::FailFlush { on } => Ok(self.shape(&words_of_rule(*on), |port| port.fail_flush(*on))),
            Op::DelayFlush { delay } => self.delay_flush(delay.0),
            Op::CutGuestPower { seed } => self.power_cut(*seed, asker),
            Op::Revoke { file } => self.revoke(file.as_deref(), asker),
            _ => {
                let kernel = self.machine.kernel().ok_or("this server serves an image, in which there are no files")?;
                self.about_files(kernel, request, asker)
            }
        }
    }

    fn about_files(&self, kernel: &Arc<Kernel>, request: &Op, asker: &Asker<'_>) -> Answered {
        match request {
            Op::Truncate { file, size } => {
                let what = ChangeWords {
                    call: format!("truncate {file} to {}", size.0),
                    shown: format!("truncate {file} to {}", ShownBytes(size.0)),
                };
                // What a change of size is about, from the smaller size on.
                let from = kernel.named(file).map_or(0, |inode| inode.layout(Layout::size)).min(size.0);
                let range = BlockRange::new(from / BLOCK, u64::MAX);
                self.change(kernel, file, &what, range, asker, |task| task.truncate(file, size.0))
            }
            Op::PunchByPath { file, offset, len } => {
                has_length("punch", file, len.0)?;
                let what = ChangeWords::of_range("punch", file, offset.0, len.0);
                let range = bytes_from(offset.0, len.0);
                self.change(kernel, file, &what, range, asker, |task| {
                    fallocate(task, file, FallocateMode::PunchHole, offset.0, len.0)
                })
            }
            Op::FallocateByPath { file, offset, len } => {
                has_length("fallocate", file, len.0)?;
                let what = ChangeWords::of_range("fallocate", file, offset.0, len.0);
                let range = bytes_from(offset.0, len.0);
                let mode = FallocateMode::Allocate { keep_size: false };
                self.change(kernel, file, &what, range, asker, |task| fallocate(task, file, mode, offset.0, len.0))
            }
            Op::Blockers { file } => Ok(self.blockers(kernel, file, request)),
            Op::Stale {} => Ok(self.stale(kernel)),
            Op::PoisonRange { file, offset, len } => poison(kernel, file, offset.0, len.0),
            Op::RegisterGuestFile { file } => self.rdma_reg(file, asker),
            Op::RegionWrite { mr, offset, text } => self.rdma_write(*mr, offset.0, text),
            Op::RegionRead { mr, offset, len } => self.rdma_read(*mr, offset.0, len.0),
            Op::RegionDereg { mr } => self.rdma_dereg(*mr, asker),
            question => answers::answer(kernel, question).ok_or_else(|| "this is no request for a server".to_owned()),
        }
    }

    /// The ports that have a guest, and their guests.
    fn attached(&self) -> impl Iterator<Item = (&Arc<Port>, Arc<Guest>)> {
        self.ports.iter().filter_map(|port| Some((port, port.guest()?)))
    }

    /// Changes a file as a process of its own; `range` is what the change is about.
    fn change(
        &self,
        kernel: &Arc<Kernel>,
        file: &str,
        what: &ChangeWords,
        range: BlockRange,
        asker: &Asker<'_>,
        call: impl FnOnce(&Task) -> Result<(), Errno>,
    ) -> Answered {
        let Some(inode) = kernel.named(file) else {
            return Err(answers::unknown(kernel, file));
        };
        let task = kernel.spawn();
        let (pid, of) = (task.pid(), Arc::clone(kernel));
        let interrupt = move || {
            let _dropped_if_over = of.send_signal(pid, SigInfo::of(Signal::Sigterm));
        };
        let start = kernel.world().now();
        let outcome = asker.unless_gone(interrupt, || call(&task)).map_err(cannot_start)?;
        let waited = task.take_waited();
        let elapsed_ns = kernel.world().now().since(start);
        task.exit();
        let ChangeWords { call: called, shown } = what;
        let mut data =
            json!({ "call": called, "file": file, "process": pid.0, "waited": waited, "elapsed_ns": elapsed_ns });
        match outcome {
            Ok(()) => {
                data["outcome"] = json!("done");
                let waited =
                    if waited { format!(", after {:.3} s of waiting", elapsed_ns as f64 / 1e9) } else { String::new() };
                Ok(Response::Answer { text: format!("{shown}: done{waited}\n"), data })
            }
            Err(errno) => {
                data["outcome"] = json!(errno.to_string());
                let mut text = format!("{shown}: {errno}\n");
                if let Some(found) = kernel.blockers_of(inode.ino(), range).filter(|_| is_of_blockers(errno)) {
                    text += &found.to_string();
                    data["blockers"] = serde_json::to_value(&found).unwrap_or(Value::Null);
                }
                Ok(Response::Failed { text, data })
            }
        }
    }

    fn guests(&self) -> Response {
        let (mut text, mut data) = (String::new(), Vec::new());
        for port in &self.ports {
            let device = self.device_start(port);
            let (line, value) = render::guest(&self.machine, port, device.as_ref());
            text += &line;
            data.push(value);
        }
        text += self.beside();
        Response::Answer { text, data: Value::Array(data) }
    }

    /// What is said beside an answer about the guests at the sockets.
    fn beside(&self) -> &'static str {
        if self.attached().next().is_none() { render::ONLY_SOCKETS } else { "" }
    }

    /// What `port`'s device says of its frontend's machine; none without a guest, or an answer.
    fn device_start(&self, port: &Port) -> Option<DeviceStart> {
        let guest = port.guest().filter(|_| !port.has_ended())?;
        let (counters, silent) = match port.counters(AT_ONCE) {
            Ok((counters, _)) => (counters, None),
            Err(LinkError::Silent) => (BTreeMap::new(), Some(port.pid())),
            Err(LinkError::Over) => return None,
        };
        let count = |name: &str| counters.get(name).copied().unwrap_or(0);
        // Devices of this server in the same machine; of a process that is not known, this one.
        let same = self
            .attached()
            .filter(|(_, other)| Arc::ptr_eq(other, &guest) || (guest.pid.is_some() && other.pid == guest.pid));
        let pieces = same.map(|(_, other)| other.pieces.load(Ordering::Relaxed)).sum::<u64>();
        Some(DeviceStart {
            memory: count("ram_regions"),
            pieces: pieces + count("other_regions"),
            starting_ms: count("starting_ms"),
            silent,
        })
    }

    fn flush_stats(&self) -> Response {
        let (mut text, mut data) = (String::new(), Vec::new());
        for port in &self.ports {
            let socket = port.socket.display();
            match port.counters(PATIENCE) {
                Ok((counters, problem)) => {
                    let words: Vec<String> = counters.iter().map(render::counter).collect();
                    text += &format!("{socket}: {}\n", words.join(", "));
                    text.extend(problem.iter().map(|problem| format!("  last problem: {problem}\n")));
                    data.push(json!({ "socket": port.shown(), "counters": counters, "problem": problem }));
                }
                Err(error) => {
                    text += &format!("{socket}: {error}\n");
                    data.push(json!({ "socket": port.shown(), "error": error.to_string() }));
                }
            }
        }
        Response::Answer { text, data: Value::Array(data) }
    }

    fn delay_flush(&self, delay: Duration) -> Answered {
        if delay > FLUSH_DELAY_MAX {
            let (asked, most) = (input::Duration(delay), input::Duration(FLUSH_DELAY_MAX));
            return Err(format!(
                "flush-delay {asked}: at most {most}, as a guest that hangs up is waited for as long; use `fail-flush` for a flush that never comes"
            ));
        }
        let words = match delay.is_zero() {
            true => "flushes are not held up".to_owned(),
            false => format!("each flush is held up for {}", input::Duration(delay)),
        };
        let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        Ok(self.shape(&words, |port| port.delay_flush(nanos)))
    }

    /// Has every port do something to its flushes; `done` is what holds then.
    fn shape(&self, done: &str, change: impl Fn(&Port) -> Result<(), LinkError>) -> Response {
        let (mut text, mut data, mut all) = (String::new(), Vec::new(), true);
        for port in &self.ports {
            let socket = port.socket.display();
            let outcome = match change(port) {
                Ok(()) => done.to_owned(),
                Err(error) => {
                    all = false;
                    error.to_string()
                }
            };
            text += &format!("{socket}: {outcome}\n");
            data.push(json!({ "socket": port.shown(), "outcome": outcome }));
        }
        text += self.beside();
        let data = Value::Array(data);
        if all { Response::Answer { text, data } } else { Response::Failed { text, data } }
    }

    /// Waits until guests have unmapped what was demanded; false if the asker gave up before.
    fn wait_taken(&self, demands: &[(&Arc<Port>, u64)], asker: &Asker<'_>) -> Result<bool, String> {
        let waiter = self.machine.waiter();
        let taken = asker.unless_gone(cancelled_by(&waiter), || -> Result<(), WaitError> {
            demands.iter().try_for_each(|(port, number)| port.wait_taken(&self.machine, *number, &waiter))
        });
        taken.map(|taken| taken.is_ok()).map_err(cannot_start)
    }

    fn power_cut(&self, seed: Option<u64>, asker: &Asker<'_>) -> Answered {
        let durable =
            self.machine.durable().ok_or("the server keeps no durable copy; start it with --power-cut-model")?;
        let _outage = self.machine.fail_power().ok_or("the power is failing already")?;
        self.cut(durable, seed.unwrap_or(self.machine.waits().seed()), asker)
    }

    fn cut(&self, durable: &emulator::device::persistence::DurableImage, seed: u64, asker: &Asker<'_>) -> Answered {
        let waiter = self.machine.waiter();
        let alone = asker.unless_gone(cancelled_by(&waiter), || self.machine.wait_powerless(&waiter));
        if alone.map_err(cannot_start)?.is_err() {
            return Err("cancelled while a guest was attaching; no power was cut".to_owned());
        }
        let guests: Vec<_> = self.attached().collect();
        if let Some((port, guest)) = guests.iter().find(|(port, _)| port.has_ended()) {
            let socket = port.socket.display();
            return Err(format!("{socket}: its port has died, and {} keeps what it has mapped", guest.who()));
        }
        let demands: Vec<_> =
            guests.iter().map(|(port, guest)| (*port, port.take(guest.connection, TakeReason::PowerCut))).collect();
        let device = self.machine.device();
        if !self.wait_taken(&demands, asker)? {
            return Err(
                "given up before every guest had let go; each is without memory until its next reset".to_owned()
            );
        }
        let broken = |error| format!("the durable copy: {error}");
        let cut = durable.cut(device, seed).map_err(broken)?;
        durable.restore(device).map_err(broken)?;
        let (unflushed, survived) = (cut.lines_unflushed, cut.lines_survived);
        let text = format!(
            "power cut (seed {seed}): {} had not been flushed, of which {survived} survived; {} without power until its next reset\n",
            counted(unflushed, "line"),
            counted(guests.len() as u64, "guest"),
        );
        self.machine.tell(text.trim_end());
        let data = json!({
            "seed": seed, "lines_unflushed": unflushed, "lines_survived": survived, "guests": guests.len(),
        });
        Ok(Response::Answer { text, data })
    }

    fn revoke(&self, file: Option<&str>, asker: &Asker<'_>) -> Answered {
        if let (Some(file), Some(kernel)) = (file, self.machine.kernel())
            && kernel.named(file).is_none()
        {
            return Err(answers::unknown(kernel, file));
        }
        if file.is_some() && self.machine.kernel().is_none() {
            return Err("this server serves an image: `revoke` without a file takes it".to_owned());
        }
        let (nothing_left, guests): (Vec<_>, Vec<_>) = self
            .attached()
            .filter(|(port, _)| file.is_none() || port.file.as_deref() == file)
            .partition(|(port, guest)| port.has_nothing_left(guest));
        let demands: Vec<_> = guests.iter().map(|(port, guest)| (*port, port.revoke(&self.machine, guest))).collect();
        let all = self.wait_taken(&demands, asker)?;
        let mut text = String::new();
        for (port, guest) in &guests {
            text += &format!("{}: taken from {}\n", port.socket.display(), guest.who());
        }
        for (port, guest) in &nothing_left {
            text += &format!("{}: nothing is left to take from {}\n", port.socket.display(), guest.who());
        }
        if guests.is_empty() && nothing_left.is_empty() {
            text += "no guest at a socket has it\n";
            text += self.beside();
        }
        let revoked: Vec<Value> =
            guests.iter().map(|(port, guest)| json!({ "socket": port.shown(), "qemu": guest.pid })).collect();
        let data = json!({ "revoked": revoked, "unmapped": all });
        Ok(Response::Answer { text, data })
    }

    /// Who stands against a change of a file, and which guests have been asked to unmap it.
    fn blockers(&self, kernel: &Arc<Kernel>, file: &str, request: &Op) -> Response {
        let answered = answers::answer(kernel, request);
        let Some(Response::Answer { mut text, mut data }) = answered else {
            return answered.unwrap_or_else(|| Response::Refused { why: answers::unknown(kernel, file) });
        };
        let ino = answers::find(kernel, file).map(|(ino, _)| ino);
        let of_file = |port: &&Arc<Port>| {
            let inode = port.file.as_deref().and_then(|name| kernel.named(name));
            inode.is_some_and(|inode| Some(inode.ino()) == ino)
        };
        let mut waited_for = Vec::new();
        for port in self.ports.iter().filter(of_file) {
            if let Some(unanswered) = port.unanswered() {
                let (line, value) = render::unanswered(port, &unanswered);
                text += &format!("  {line}\n");
                waited_for.push(value);
            }
        }
        if !waited_for.is_empty() {
            data["guests_asked_to_unmap"] = Value::Array(waited_for);
        }
        Response::Answer { text, data }
    }

    fn stale(&self, kernel: &Arc<Kernel>) -> Response {
        let (mut text, mut data) = (String::new(), Vec::new());
        for (port, guest) in self.attached() {
            if let Some(holds) = &guest.holds {
                let (line, value) = render::stale(port, &guest, &holds.export.exposure(kernel));
                text += &line;
                data.push(value);
            }
        }
        let lines = kernel.stale_guest_changed_lines();
        text += &format!("stale_guest_changed_lines {lines}, in blocks freed beneath any guest so far\n");
        let data = json!({ "guests": data, "stale_guest_changed_lines": lines });
        Response::Answer { text, data }
    }

    fn rdma_reg(&self, file: &str, asker: &Asker<'_>) -> Answered {
        let has = |(port, guest): &(&Arc<Port>, Arc<Guest>)| port.file.as_deref() == Some(file) && !guest.is_revoked();
        let guest = self.attached().find(has);
        let Some((port, guest)) = guest else {
            return Err(format!(
                "no guest has `{file}`: the region is registered by the process that has the file for one"
            ));
        };
        let Some(holds) = &guest.holds else { return Err("this server serves an image".to_owned()) };
        let (pid, kernel) = (holds.task.pid(), Arc::clone(holds.task.kernel()));
        // It waits in a call of the guest's process, which must live on: it is left to end by
        // itself.
        let registered =
            asker.unless_gone(|| {}, || self.machine.nic().register(&holds.task, file)).map_err(cannot_start)?;
        match registered {
            Ok((number, region)) => {
                let mr = &region.mr;
                let text = format!(
                    "region {number}: {file}, {}, rkey {:#x}, of process {pid} ({})\n",
                    ShownBytes(mr.len()),
                    mr.rkey(),
                    port.socket.display(),
                );
                let data =
                    json!({ "mr": number, "file": file, "bytes": mr.len(), "rkey": mr.rkey(), "process": pid.0 });
                Ok(Response::Answer { text, data })
            }
            Err(errno) => {
                let mut text = format!("rdma-reg {file}: {errno}\n");
                let mut data = json!({ "call": "rdma-reg", "file": file, "outcome": errno.to_string() });
                let found = kernel.named(file).and_then(|inode| kernel.blockers(inode.ino()));
                if let Some(found) = found.filter(|_| is_of_blockers(errno)) {
                    text += &found.to_string();
                    data["blockers"] = serde_json::to_value(&found).unwrap_or(Value::Null);
                }
                Ok(Response::Failed { text, data })
            }
        }
    }

    fn region(&self, mr: u64) -> Result<Arc<super::nic::Region>, String> {
        let regions = self.machine.nic();
        regions.get(mr).ok_or_else(|| {
            let numbers: Vec<String> = regions.numbers().iter().map(u64::to_string).collect();
            let there = if numbers.is_empty() {
                "there are none".to_owned()
            } else {
                format!("there are {}", numbers.join(", "))
            };
            format!("there is no region {mr}; {there}")
        })
    }

    fn rdma_write(&self, mr: u64, offset: u64, text: &str) -> Answered {
        let region = self.region(mr)?;
        let what = format!("rdma-write {mr} at {}, {}", ShownBytes(offset), ShownBytes(text.len() as u64));
        let written = self.machine.under_power(|| region.write(offset, text.as_bytes()));
        Ok(match written.ok_or("the power is failing")? {
            Ok(()) => {
                let data = json!({ "mr": mr, "offset": offset, "bytes": text.len(), "outcome": "success" });
                Response::Answer { text: format!("{what}: success\n"), data }
            }
            Err(failure) => failed(&what, mr, &failure),
        })
    }

    fn rdma_read(&self, mr: u64, offset: u64, len: u64) -> Answered {
        if len > READ_MAX {
            return Err(format!("{}; at most {} are read at once", ShownBytes(len), ShownBytes(READ_MAX)));
        }
        let region = self.region(mr)?;
        let what = format!("rdma-read {mr} at {}, {}", ShownBytes(offset), ShownBytes(len));
        Ok(match region.read(offset, len) {
            Ok(bytes) => {
                let shown: String = bytes.iter().flat_map(|byte| byte.escape_ascii()).map(char::from).collect();
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                let data = json!({
                    "mr": mr, "offset": offset, "bytes": len, "outcome": "success", "text": shown, "hex": hex,
                });
                Response::Answer { text: format!("{shown}\n"), data }
            }
            Err(failure) => failed(&what, mr, &failure),
        })
    }

    fn rdma_dereg(&self, mr: u64, asker: &Asker<'_>) -> Answered {
        let region = self.region(mr)?;
        let removed = self.machine.nic().remove(mr);
        if removed.is_none() {
            return Err(format!("region {mr} is being deregistered already"));
        }
        let done = asker.unless_gone(|| {}, || region.deregister()).map_err(cannot_start)?;
        let (pid, file) = (region.owner(), &region.file);
        let outcome = done.map_or_else(|errno| errno.to_string(), |()| "done".to_owned());
        let data = json!({ "mr": mr, "file": file, "process": pid.0, "outcome": outcome });
        Ok(match done {
            Ok(()) => Response::Answer { text: format!("region {mr} of {file} is gone\n"), data },
            Err(errno) => Response::Failed { text: format!("rdma-dereg {mr}: {errno}\n"), data },
        })
    }
}

fn words_of_rule(rule: FlushRule) -> String {
    match rule {
        FlushRule::Off => "flushes work again".to_owned(),
        FlushRule::On => "flushes fail".to_owned(),
        FlushRule::Nth(number) => format!("flush number {number} from now on fails, and no other"),
        FlushRule::Every(number) => format!("of every {number} flushes from now on the last one fails"),
    }
}

fn failed(what: &str, mr: u64, failure: &AccessFailure) -> Response {
    let outcome = match failure {
        AccessFailure::Errno(errno) => errno.to_string(),
        AccessFailure::Status(status) => render::spaced(&format!("{status:?}")),
    };
    let data = json!({ "mr": mr, "outcome": outcome });
    Response::Failed { text: format!("{what}: {outcome}\n"), data }
}

fn fallocate(task: &Task, file: &str, mode: FallocateMode, offset: u64, len: u64) -> Result<(), Errno> {
    let fd = task.open(file, OpenFlags::open(AccessMode::BOTH))?;
    let done = task.fallocate(fd, mode, offset, len);
    task.close(fd)?;
    done
}

fn poison(kernel: &Arc<Kernel>, file: &str, offset: u64, len: u64) -> Answered {
    let Some((ino, inode)) = answers::find(kernel, file) else {
        return Err(answers::unknown(kernel, file));
    };
    has_length("poison", file, len)?;
    let end = offset.checked_add(len).filter(|end| *end <= inode.layout(Layout::size));
    let Some(end) = end else {
        let size = ShownBytes(inode.layout(Layout::size));
        let (offset, len) = (ShownBytes(offset), ShownBytes(len));
        return Err(format!("poison {file}, {len} from {offset} on: the file has {size}"));
    };
    let blocks = offset / BLOCK..end.div_ceil(BLOCK);
    let count = blocks.end - blocks.start;
    if count > POISON_MAX {
        return Err(format!("{count} blocks; at most {POISON_MAX} are poisoned at once"));
    }
    let holes = blocks.filter(|block| kernel.poison(ino, *block).is_err()).count() as u64;
    let text = format!(
        "{} of {file} poisoned{}: the host and the NIC fail on them; a guest does not notice, virtio-pmem has no way to tell it\n",
        counted(count - holes, "block"),
        if holes > 0 { format!(" ({} left out)", counted(holes, "hole")) } else { String::new() },
    );
    let data = json!({ "file": file, "blocks": count - holes, "holes": holes, "guest_told": false });
    Ok(Response::Answer { text, data })
}
