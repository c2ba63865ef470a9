//! Serving guests: files of a simulated volume, or an image, as persistent memory of virtual
//! machines.
//!
//! It owns a server's life. Invariants: nothing is made or changed before every argument is found
//! good, an image last; a socket's path is removed at the end; a guest survives the server's end,
//! with flushes that fail. It is the only place where NIC and guest meet. There is no kernel
//! counterpart; vhost-user backends such as virtiofsd are the relatives.
//!
//! # Processes
//! The *server* (this process) has kernel, files, NIC and control socket; each guest's device
//! lives in a [`backend_process`] of its own, which outlives the server if it must.
//!
//! | module | owns |
//! |---|---|
//! | [`backend_process`] | the process of one guest's backend |
//! | `flush_shaping` | flushes that are made to fail or to take long, for tests |
//! | `link` | the messages between server and backend process |
//! | `backend_handles` | the server's side: which guest is there, and what is held for it |
//! | `machine` | what all guests share |
//! | `files` | the files, their making and their export |
//! | `image` | the image that is served, and what is wrong with a file that can't be one |
//! | `host_paths` | what lies at a path that a user named, in words |
//! | `message_trace` | the file with guests' messages |
//! | `nic` | RDMA regions over the same files |
//! | `qemu_args` | the QEMU command lines that attach |
//! | `control`, `control_handler` | the control socket, and what `daxlab ctl` does |
//! | `render` | texts for people |
//! | `fuzz` | what the fuzzer of requests runs |
//!
//! The files of this folder import each other: each one works on the server's [`Config`], and
//! returns its [`ServeError`]; `files` exports what `backend_handles` then holds for a guest.

mod backend_handles;
pub mod backend_process;
pub mod control;
mod control_handler;
mod files;
mod flush_shaping;
#[doc(hidden)]
pub mod fuzz;
mod host_paths;
mod image;
mod link;
mod machine;
mod message_trace;
mod nic;
mod qemu_args;
mod render;

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::task::Poll;

use crate::messages::peers::AllowedPeers;
use crate::messages::socket::{self, ListenError};
use emulator::World;
use emulator::device::persistence::DurableImage;
use emulator::device::{ImageSpace, OpenError};
use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::wait::{WaitFor, WaitQueue, Waiter, WaiterId};
use fs_sim::Kernel;
use fs_sim::design::Axes;
use fs_sim::extent_map::Layout;
use fs_sim::pinning::guest_export::GuestMapping;

use self::backend_handles::{Holds, Port};
use self::control_handler::ControlHandler;
use self::files::ExportError;
use self::machine::{ServedMachine, ServedMemory};
use self::message_trace::OpenedTrace;

pub use files::{Files, NewContents};
pub use machine::Events;

/// What to serve, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where guests connect, at least one.
    pub sockets: Vec<PathBuf>,
    /// What they get.
    pub what: What,
    /// What the design is called.
    pub design: String,
    /// What it does.
    pub axes: Axes,
    /// Whether the memory gets what the guest of an NVDIMM wants to find in it.
    pub nvdimm: bool,
    /// Whether guests may only read what they get.
    pub read_only: bool,
    /// Where each message of a guest's frontend is written to as a line.
    pub trace: Option<PathBuf>,
    /// Whether what a frontend does against the vhost-user specification is told.
    pub strict: bool,
    /// Whether a durable copy is kept, so that the power can be cut.
    pub power_cut_model: bool,
    /// What every choice is drawn from.
    pub seed: u64,
    /// Where `daxlab ctl` asks.
    pub control: PathBuf,
    /// The users that may connect there and at `sockets`.
    pub allowed: AllowedPeers,
    /// The QEMU that command lines are for; if none is given, those that are found.
    pub qemu: Option<PathBuf>,
    /// The program that runs [`backend_process::main`] for the argument `guest-port`: `daxlab`
    /// itself.
    pub program: PathBuf,
}

impl Config {
    fn serves_an_image(&self) -> bool {
        matches!(self.what, What::Image { .. })
    }

    /// What an error about the control socket begins with.
    fn control_option(&self) -> &'static str {
        let path = self.control.as_os_str().as_bytes();
        let first = self.sockets.first().map(|first| first.as_os_str().as_bytes());
        match path.strip_suffix(b".ctl") {
            Some(path) if first == Some(path) => {
                "--control (if not given, the first --socket's path with `.ctl` behind it)"
            }
            _ => "--control",
        }
    }
}

/// What guests get.
#[derive(Clone, Debug)]
pub enum What {
    /// A whole device, kept in this file of the host.
    Image {
        /// The file; made if there is none.
        path: PathBuf,
        /// The device's size in bytes; the file's if none is given.
        bytes: Option<u64>,
        /// When it takes its room on the host's filesystem.
        space: ImageSpace,
    },
    /// Files of a simulated volume.
    Files(Files),
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The user asked for something that cannot be; the text says what to change.
    #[error("{0}")]
    Wrong(String),
    /// The design admits no guest.
    #[error("{0}")]
    Refused(String),
    /// This machine lacks something, such as memory or descriptors.
    #[error("{0}")]
    Cannot(String),
}

/// Asks a server to end. Setting it twice is setting it once.
#[derive(Debug)]
pub struct StopRequest {
    asked: AtomicBool,
    changed: WaitQueue,
    world: World,
}

impl Default for StopRequest {
    fn default() -> Self {
        StopRequest { asked: AtomicBool::new(false), changed: WaitQueue::new(), world: World::real(0) }
    }
}

impl StopRequest {
    /// Asks.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
        self.changed.wake_all();
    }

    /// Waits for a request. One thread may wait.
    pub fn wait(&self) {
        let how = WaitFor::uninterruptible("being asked to end");
        let asked = || if self.asked.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending };
        // Nothing ends it early.
        let _asked = self.changed.wait(&self.world, &Waiter::new(WaiterId(0)), how, asked);
    }
}

/// A server that runs. Its end is [`Server::end`], or its drop.
pub struct Server {
    machine: Arc<ServedMachine>,
    ports: Vec<Arc<Port>>,
    /// The ports have the listeners.
    sockets: Vec<SocketFile>,
    control: control::ControlServer,
    introduction: String,
    _residents: Vec<Holds>,
}

/// A socket's file, removed at the end.
struct SocketFile(Option<socket::Name>);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(name) = self.0.take() {
            name.remove();
        }
    }
}

/// The file that each socket serves; none where it is an image.
fn pairs(config: &Config) -> Result<Vec<Option<String>>, ServeError> {
    let wrong = |what: String| Err(ServeError::Wrong(what));
    for (at, socket) in config.sockets.iter().enumerate() {
        let place = host_paths::place(socket);
        if config.sockets[..at].iter().any(|other| host_paths::place(other) == place) {
            return wrong(format!("--socket {}: given twice; each guest connects at its own", socket.display()));
        }
        if host_paths::place(&config.control) == place {
            return wrong(format!(
                "--socket {}: given twice, it is {} too; a guest and `daxlab ctl` connect at different ones",
                socket.display(),
                config.control_option(),
            ));
        }
    }
    let What::Files(files) = &config.what else { return Ok(vec![None; config.sockets.len()]) };
    if let Some((at, name)) = files.names.iter().enumerate().find(|(at, name)| files.names[..*at].contains(name)) {
        return wrong(format!("--file {name}: given twice (number {}); sockets may share one file", at + 1));
    }
    match (files.names.len(), config.sockets.len()) {
        (1, sockets) => Ok(vec![files.names.first().cloned(); sockets]),
        (files_count, sockets) if files_count == sockets => Ok(files.names.iter().cloned().map(Some).collect()),
        (files_count, sockets) => wrong(format!(
            "{} for {}: give one --file for all of them, or one for each --socket in order",
            backend_handles::counted(files_count as u64, "file"),
            backend_handles::counted(sockets as u64, "socket"),
        )),
    }
}

/// The files that options name beside the trace.
fn named_files(config: &Config) -> Vec<(&'static str, &Path)> {
    match &config.what {
        What::Image { path, .. } => vec![("--image", path)],
        What::Files(Files { contents: NewContents::Import(path), .. }) => vec![("--import", path)],
        What::Files(_) => Vec::new(),
    }
}

/// A port for each socket, and the trace's begin.
fn start_ports(
    config: &Config,
    machine: &Arc<ServedMachine>,
    listening: &[(SocketFile, UnixListener)],
    trace: Option<OpenedTrace<'_>>,
    files: Vec<Option<String>>,
) -> Result<Vec<Arc<Port>>, ServeError> {
    let mut ports = Vec::new();
    let start = || -> Result<(), ServeError> {
        for ((path, (_, listener)), file) in config.sockets.iter().zip(listening).zip(files) {
            let fd = trace.as_ref().map(OpenedTrace::fd);
            let port = Port::start(machine, config, path.clone(), listener, fd, file).map_err(|error| {
                let hint = out_of_descriptors(&error, config.sockets.len());
                ServeError::Cannot(format!("no process for {}: {error}{hint}", path.display()))
            })?;
            ports.push(port);
        }
        trace.map_or(Ok(()), OpenedTrace::begin)
    };
    let started = start();
    if let Err(error) = started {
        machine.end();
        for port in &ports {
            let _idle_it_ends: bool = Port::part(port);
        }
        return Err(error);
    }
    ports.iter().for_each(|port| port.begin_trace());
    Ok(ports)
}

impl Server {
    /// Starts serving: when this returns, guests can connect.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left behind, and an image that was there is as it was.
    pub fn start(config: &Config, events: Events) -> Result<Server, ServeError> {
        let files = pairs(config)?;
        let qemus = qemu_args::qemus(config)?;
        let mut listening = Vec::new();
        for path in &config.sockets {
            let listener = socket::listen(path, &config.allowed)
                .map_err(|error| not_there("--socket", error, config.sockets.len()))?;
            listening.push((SocketFile(socket::Name::of(&listener)), listener));
        }
        let control_handler = Arc::new(ControlHandler::default());
        let (handler, told) = (Arc::clone(&control_handler) as Arc<dyn control::Handler>, Arc::clone(&events));
        let control = control::ControlServer::listen(
            &config.control,
            config.allowed.clone(),
            handler,
            Box::new(move |line| told(line)),
        )
        .map_err(|error| not_there(config.control_option(), error, config.sockets.len()))?;
        let others = named_files(config);
        let trace =
            config.trace.as_deref().map(|path| OpenedTrace::open(path, &others, config.sockets.len())).transpose()?;
        let (backing, held) = backing(config)?;
        let prepared = if config.nvdimm { qemu_args::prepare(config, &backing)? } else { String::new() };
        let durable = config.power_cut_model.then(|| DurableImage::new(backing.device())).transpose();
        let durable = durable.map_err(|error| cannot(error, config.sockets.len()))?;
        let machine = Arc::new(ServedMachine::new(backing, durable, config.seed, events));
        machine.warn_of_room();
        let residents = if config.nvdimm { residents(config, &machine)? } else { Vec::new() };
        let ports = start_ports(config, &machine, &listening, trace, files)?;
        control_handler.serve(&machine, &ports);
        let what = render::what(config, &machine, &held);
        let how = qemu_args::how_to_attach(config, machine.backing(), &qemus);
        let introduction = format!("{what}{prepared}{}\n{}", how.text, render::to_try(config, how.is_seen));
        // Only the backend processes listen from here on: when one ends, no frontend waits in
        // vain.
        let sockets = listening.into_iter().map(|(file, _)| file).collect();
        Ok(Server { machine, ports, sockets, control, introduction, _residents: residents })
    }

    /// What is served, how to attach, what to try: for people.
    pub fn introduction(&self) -> &str {
        &self.introduction
    }

    /// Ends. Backend processes without a guest have ended when this returns; the others live on
    /// until their guest hangs up, and fail its flushes. Returns how many those are.
    pub fn end(self) -> usize {
        let Server { machine, ports, sockets, control, .. } = self;
        // The paths first: once no process listens, another may take them.
        drop(sockets);
        drop(control);
        machine.end();
        machine.tell_of_full_disk();
        ports.iter().filter(|port| port.part()).count()
    }
}

/// What to do where descriptors have run out; nothing for another error.
fn out_of_descriptors(error: &std::io::Error, sockets: usize) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => format!(
            "; {} take more descriptors than this process may have; raise the limit (`ulimit -n`) or name fewer sockets",
            backend_handles::counted(sockets as u64, "socket")
        ),
        _ => String::new(),
    }
}

/// Why no process can listen at a path: the user can change it, unless the machine can't.
fn not_there(option: &str, error: ListenError, sockets: usize) -> ServeError {
    match &error {
        ListenError::Os { path, source } => match host_paths::unusable(option, path, source, "") {
            wrong @ ServeError::Wrong(_) => wrong,
            _ => ServeError::Cannot(format!("{option}: {error}{}", out_of_descriptors(source, sockets))),
        },
        ListenError::Locked { .. } | ListenError::Unlocked { .. } => ServeError::Cannot(format!("{option}: {error}")),
        _ => ServeError::Wrong(format!("{option}: {error}")),
    }
}

/// Why a device can't be opened.
fn cannot(error: OpenError, sockets: usize) -> ServeError {
    match &error {
        OpenError::Os { source, .. } => ServeError::Cannot(format!("{error}{}", out_of_descriptors(source, sockets))),
        OpenError::NoRoom { .. } => ServeError::Cannot(error.to_string()),
        wrong => ServeError::Wrong(wrong.to_string()),
    }
}

/// The memory; and what the design demands of a process that serves a file of it, in words.
fn backing(config: &Config) -> Result<(ServedMemory, String), ServeError> {
    match &config.what {
        What::Image { path, bytes, space } => {
            let bytes = image::size(path, *bytes)?;
            if config.nvdimm {
                qemu_args::check_room(bytes)?;
            }
            let device = image::open(path, bytes, *space, config.sockets.len())?;
            Ok((ServedMemory::Image(device), String::new()))
        }
        What::Files(files) => {
            let kernel = files::make(files, config.axes, config.seed)?;
            let mut held = String::new();
            for name in &files.names {
                if config.nvdimm {
                    qemu_args::check_room(kernel.named(name).map_or(0, |inode| inode.layout(Layout::size)))?;
                }
                held += &trial(config, &kernel, name)?;
            }
            Ok((ServedMemory::Files(kernel), held))
        }
    }
}

/// The guest that has a file as its NVDIMM: it comes and goes unseen, and nothing can be revoked
/// from it.
struct Resident;

impl GuestMapping for Resident {
    /// It cannot be asked. A task that wants to change the file waits until the server's end.
    fn unmap(&self) {}

    fn describe(&self) -> String {
        "the guest that has it as an NVDIMM, until the server ends".to_owned()
    }
}

/// Holds every file for guests that have it as an NVDIMM.
fn residents(config: &Config, machine: &ServedMachine) -> Result<Vec<Holds>, ServeError> {
    let (What::Files(files), Some(kernel)) = (&config.what, machine.kernel()) else { return Ok(Vec::new()) };
    let resident = |name: &String| {
        let exported = files::export(kernel, name, Arc::new(Resident));
        let holds = exported.map_err(|error| ServeError::Wrong(format!("--nvdimm: --file {name}: {error}")))?.holds;
        // From here on it may be mapped.
        let _given = files::pieces(&holds.export, kernel);
        Ok(holds)
    };
    files.names.iter().map(resident).collect()
}

/// A mapping that never is one.
struct Trial;

impl GuestMapping for Trial {
    fn unmap(&self) {}

    fn describe(&self) -> String {
        "a guest on trial".to_owned()
    }
}

/// Exports a file as to a guest, and takes it back: what is held then, in words.
fn trial(config: &Config, kernel: &Arc<Kernel>, name: &str) -> Result<String, ServeError> {
    let exported = files::export(kernel, name, Arc::new(Trial));
    match exported {
        Ok(exported) => {
            let held = render::held(kernel, name);
            exported.holds.task.exit();
            Ok(held)
        }
        Err(ExportError::Errno { call: "export", errno }) => Err(ServeError::Refused(render::refusal(config, errno))),
        Err(error) => Err(ServeError::Wrong(format!("--file {name}: {error}"))),
    }
}
