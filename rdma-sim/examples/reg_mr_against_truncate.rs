//! Races `reg_mr` against `truncate` on two threads, under the man-page design: the first one wins.
//! A registered region is written by RDMA while the truncate is under way, and no DMA is ever
//! stale. With the design `unsafe` instead (and without the assertion below) a run finds some.
//!
//! Run it: `cargo run -p rdma-sim --example reg_mr_against_truncate`

use emulator::World;
use emulator::device::Device;
use emulator::sync::atomic::{AtomicU32, Ordering};
use emulator::sync::{Arc, thread};
use fs_sim::design::presets;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::{BlockRange, Errno, Kernel, KernelConfig};
use rdma_sim::{AccessFlags, Context, Qp, QpConfig, Sge, WorkOperation, WorkRequest, WorkStatus};

const LEN: u64 = 4 * 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let preset = presets().iter().find(|preset| preset.name == "man-page").ok_or("no such preset")?;
    let kernel = Kernel::new(Arc::new(World::manual(1)), Device::memory(4 << 20)?, KernelConfig::new(preset.axes))?;
    let registrant = kernel.spawn();
    let changer = registrant.thread();
    let (_fd, context) = Context::open(&registrant)?;
    let pd = context.alloc_pd(&registrant)?;
    let cq = context.create_cq(&registrant, 16)?;
    let config = QpConfig { send_cq: Arc::clone(&cq), recv_cq: Arc::clone(&cq), max_send: 8, max_recv: 8 };
    let qp = context.create_qp(&registrant, &pd, config.clone())?;
    Qp::connect(&qp, &context.create_qp(&registrant, &pd, config)?)?;
    let (buffer, _memory) = registrant.mmap_anonymous(LEN)?;
    let source = context.reg_mr(&registrant, &pd, buffer, LEN, AccessFlags::LOCAL_READ)?;
    let local = Sge { lkey: source.lkey(), addr: buffer, len: LEN as u32 };
    let (mut written, mut registered, mut truncated, rounds) = (0, 0, 0, 2000);
    for _ in 0..rounds {
        let data = registrant.open("data", OpenFlags::create())?;
        registrant.write(data, 0, &[7; LEN as usize])?;
        registrant.lease(data, LeaseKind::WRITE_U, BlockRange::ALL)?;
        let va = registrant.mmap(data, 0, LEN, true)?;
        let ready = AtomicU32::new(0);
        let start = || {
            ready.fetch_add(1, Ordering::SeqCst);
            while ready.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
        };
        let (mr, truncate) = thread::scope(|scope| {
            let truncate = scope.spawn(|| {
                start();
                changer.ftruncate(data, 0)
            });
            start();
            let mr = context.reg_mr(&registrant, &pd, va, LEN, AccessFlags::ALL);
            if let Ok(mr) = &mr {
                let (wr_id, op, remote_addr, rkey) = (1, WorkOperation::Write, va, mr.rkey());
                let posted = qp.post_send(WorkRequest { wr_id, op, local, remote_addr, rkey, signaled: true });
                written += u32::from(posted.is_ok());
            }
            (mr, truncate.join().unwrap_or(Err(Errno::EIO)))
        });
        registered += u32::from(mr.is_ok());
        truncated += u32::from(truncate.is_ok());
        assert!(mr.is_err() || truncate.is_err(), "a registered page was truncated away");
        assert!(cq.poll(1).iter().all(|done| done.status == WorkStatus::Success));
        mr.map_or(Ok(()), |mr| context.dereg_mr(&registrant, &mr))?;
        registrant.munmap(va, LEN)?;
        registrant.close(data)?;
        registrant.unlink("data")?;
    }
    println!("{rounds} races: reg_mr won {registered}, truncate won {truncated}; {written} RDMA writes");
    println!("stale DMA seen: {}", kernel.counters.stale_dma.get());
    Ok(())
}
