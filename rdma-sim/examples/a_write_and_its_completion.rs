//! Connects two queue pairs and writes from one program's memory to the other's: post, poll, look.
//!
//! Run it: `cargo run -p rdma-sim --example a_write_and_its_completion`

use emulator::World;
use emulator::device::Device;
use emulator::sync::Arc;
use fs_sim::design::presets;
use fs_sim::vfs::anon::AnonMemory;
use fs_sim::{Kernel, KernelConfig, Task};
use rdma_sim::{AccessFlags, Context, Mr, Qp, QpConfig, Sge, WorkOperation, WorkRequest};

/// A queue pair, and one registered page with its bytes.
type Program = (Arc<Qp>, Arc<Mr>, Arc<AnonMemory>);

fn program(task: &Task) -> Result<Program, Box<dyn std::error::Error>> {
    let (_fd, context) = Context::open(task)?;
    let pd = context.alloc_pd(task)?;
    let cq = context.create_cq(task, 16)?;
    let config = QpConfig { send_cq: Arc::clone(&cq), recv_cq: cq, max_send: 8, max_recv: 8 };
    let (va, memory) = task.mmap_anonymous(4096)?;
    let mr = context.reg_mr(task, &pd, va, 4096, AccessFlags::ALL)?;
    Ok((context.create_qp(task, &pd, config)?, mr, memory))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = KernelConfig::new(presets()[0].axes);
    let kernel = Kernel::new(Arc::new(World::manual(1)), Device::memory(2 << 20)?, config)?;
    let (sender, receiver) = (kernel.spawn(), kernel.spawn());
    let (qp, source, bytes) = program(&sender)?;
    let (peer, target, arrived) = program(&receiver)?;
    Qp::connect(&qp, &peer)?;

    bytes.write(0, b"hello, region")?;
    let write = |wr_id, rkey| WorkRequest {
        wr_id,
        op: WorkOperation::Write,
        local: Sge { lkey: source.lkey(), addr: source.va(), len: 13 },
        remote_addr: target.va() + 100,
        rkey,
        signaled: true,
    };
    qp.post_send(write(1, target.rkey()))?;
    println!("completion: {:?}", qp.send_cq().poll_one());
    let mut found = [0; 13];
    arrived.read(100, &mut found)?;
    println!("the peer's memory: {:?}", String::from_utf8_lossy(&found));

    qp.post_send(write(2, target.rkey() ^ 1))?;
    println!("with a wrong key: {:?}", qp.send_cq().poll_one());
    println!("both queue pairs: {}, {}", qp.state(), peer.state());
    Ok(())
}
