//! Layouts with the client's I/O in flight, held there by the test. What can be tested from
//! outside is in `tests/`.

use emulator::World;
use emulator::device::Device;
use emulator::sync::thread;

use super::*;
use crate::base::numbers::Fd;
use crate::design::presets;
use crate::pinning::dma::write_extent;
use crate::syscalls::open::OpenFlags;
use crate::vfs::kernel::KernelConfig;
use crate::vfs::task::Task;

/// A client with the layout of a file of four blocks.
struct Client {
    kernel: Arc<Kernel>,
    task: Arc<Task>,
    file: Fd,
    layout_fd: Fd,
    layout: Arc<BlockLayout>,
}

fn client() -> Client {
    let device = Device::memory(2 << 20).expect("a device");
    let config = KernelConfig::new(presets()[0].axes);
    let kernel = Kernel::new(Arc::new(World::manual(1)), device, config).expect("a kernel");
    let task = Arc::new(kernel.spawn());
    let file = task.open("data", OpenFlags::create()).expect("open");
    task.write(file, 0, &[7; 4 * BLOCK as usize]).expect("write");
    let (layout_fd, layout) = task.layoutget(file, BlockRange::new(0, 4), IoMode::ReadWrite).expect("layoutget");
    Client { kernel, task, file, layout_fd, layout }
}

impl Client {
    /// A write of the client to its whole layout, before whose end `meanwhile` happens.
    fn writes(&self, meanwhile: impl FnOnce()) -> Result<(), Errno> {
        let (kernel, layout) = (&self.kernel, &self.layout);
        layout.access(kernel, || {
            meanwhile();
            layout.parts(0, 4 * BLOCK).try_for_each(|(extent, skip, part)| {
                write_extent(kernel, layout.inode.ino(), extent, skip, layout.read_point, &vec![8; part.len()])
            })
        })
    }

    pub(crate) fn end(self) {
        self.task.exit();
        assert_eq!(self.kernel.check_at_rest(), Vec::<String>::new());
        assert_eq!(self.kernel.counters.stale_dma.get(), 0);
    }
}

/// Neither the return of a layout nor its client's death frees an unlinked file's blocks under the
/// client's I/O.
#[test]
fn an_unlinked_file_stays_while_its_clients_io_is_in_flight() {
    for dies in [false, true] {
        let client = client();
        client.task.unlink("data").unwrap();
        client.task.close(client.file).unwrap();
        let written = client.writes(|| {
            match dies {
                true => client.task.exit(),
                false => client.task.layoutreturn(client.layout_fd).unwrap(),
            }
            assert_eq!(client.layout.read(&client.kernel, 0, &mut [0]), Err(Errno::EIO), "it has ended");
            assert_eq!(client.kernel.usage().allocated, 4, "not under the I/O");
        });
        assert_eq!(written, Ok(()));
        assert_eq!(client.kernel.usage().allocated, 0, "the last I/O let go of it");
        client.end();
    }
}

/// A client that takes blocks away while its own I/O on them is in flight waits for it, as for any
/// I/O: that is no deadlock.
#[test]
fn a_clients_own_change_waits_for_its_own_io() {
    let client = client();
    let mut truncating = None;
    let written = client.writes(|| {
        let task = Arc::clone(&client.task);
        let fd = client.file;
        let call = thread::spawn(move || task.ftruncate(fd, 0));
        let asleep = || client.kernel.waits.blocked().iter().any(|waiting| waiting.reason == "block layout recall");
        while !asleep() {
            assert!(!call.is_finished(), "it returned: {:?}", client.kernel.deadlocks());
            thread::yield_now();
        }
        assert_eq!(client.task.stat(client.file).map(|stat| stat.size), Ok(4 * BLOCK), "not before the I/O has ended");
        truncating = Some(call);
    });
    assert_eq!(written, Ok(()));
    assert_eq!(truncating.map(|call| call.join().expect("the call")), Some(Ok(())));
    assert_eq!(client.kernel.counters.deadlocks.get(), 0);
    client.end();
}
