//! What the fuzzer `ctl_request` runs: any bytes as lines at a server's control socket.
//!
//! It owns the machine that is asked, and the properties that must hold for every line: a line is
//! a request or is refused with a reason, a request is read back from what it encodes to, an answer
//! is read back from its JSON and ends its text with a line end, and no request breaks an invariant
//! of the simulated kernel. The folder `fuzz` holds the fuzzer and its corpus, which the tests
//! replay.

use emulator::World;
use emulator::device::{Device, FOLIO};
use emulator::sync::Arc;
use fs_sim::design::{Axes, Axis, preset};
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::{Kernel, KernelConfig, Task};

use super::control::protocol::{REQUEST_MAX, Response};
use super::control::request::{decode, encode};
use super::control::{Asker, Handler, Questions};
use super::control_handler::ControlHandler;
use super::machine::{ServedMachine, ServedMemory};
use crate::ops::Op;

/// The most requests of one input that are answered.
const REQUESTS_MAX: usize = 32;
const FILE_BYTES: usize = 64 << 10;

/// A served volume with two files, each with a region registered over it, and no guest.
struct AskedServer {
    handler: ControlHandler,
    /// What a race answers about the same kernel.
    questions: Questions,
    machine: Arc<ServedMachine>,
    /// The registrant.
    process: Task,
}

/// The design of the machine: a region needs no lease, and a change revokes regions and waits for
/// none.
fn axes() -> Axes {
    let mut axes = preset("revoke").expect("a preset").axes;
    axes.set(Axis::PinGate, "open").expect("a choice of the axis");
    axes
}

impl AskedServer {
    fn start() -> AskedServer {
        let device = Device::memory(FOLIO).expect("a device of memory");
        let world = Arc::new(World::real(1));
        let kernel = Kernel::new(world, device, KernelConfig::new(axes())).expect("a kernel");
        let process = kernel.spawn();
        let questions = Questions::default();
        questions.publish(&kernel);
        let machine = Arc::new(ServedMachine::new(ServedMemory::Files(kernel), None, 1, Arc::new(|_| {})));
        for name in ["data", "log"] {
            let fd = process.open(name, OpenFlags::create()).expect("a file");
            process.write(fd, 0, &[b'.'; FILE_BYTES]).expect("room");
            process.close(fd).expect("a descriptor");
            machine.nic().register(&process, name).expect("the design grants a region");
        }
        let handler = ControlHandler::default();
        handler.serve(&machine, &[]);
        AskedServer { handler, questions, machine, process }
    }

    fn check(&self, request: &Op) {
        for handler in [&self.handler as &dyn Handler, &self.questions] {
            let response = handler.handle(request, &Asker::WITHIN);
            let line = serde_json::to_string(&response).expect("an answer is JSON");
            assert!(!line.contains('\n'), "an answer is one line: {line}");
            assert_eq!(serde_json::from_str::<Response>(&line).expect("the asker reads it"), response);
            match &response {
                Response::Answer { text, .. } | Response::Failed { text, .. } => {
                    // There is no port to speak of.
                    assert!(text.is_empty() || text.ends_with('\n'), "{request:?}: {text:?}");
                }
                Response::Refused { why } => assert!(!why.is_empty()),
            }
        }
        let kernel = self.machine.kernel().expect("files are served");
        assert_eq!(kernel.violations(), Vec::<String>::new(), "after {request:?}");
    }

    fn end(self) {
        self.machine.nic().forget(self.process.pid());
        self.process.exit();
        let kernel = self.machine.kernel().expect("files are served");
        assert_eq!(kernel.check_at_rest(), Vec::<String>::new());
    }
}

/// An input as lines at a control socket, all to one server.
///
/// # Panics
/// When a property does not hold.
pub fn ctl_request(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut server = None;
    let mut answered = 0;
    for line in text.split_inclusive('\n').filter(|line| line.len() as u64 <= REQUEST_MAX) {
        let request = match decode(line) {
            Ok(request) => request,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                continue;
            }
        };
        let encoded = encode(&request);
        assert_eq!(decode(&encoded).expect("a line that was encoded"), request, "{encoded}");
        // Starting the server takes longer than a thousand lines that are refused.
        if answered < REQUESTS_MAX {
            server.get_or_insert_with(AskedServer::start).check(&request);
            answered += 1;
        }
    }
    if let Some(server) = server {
        server.end();
    }
}
