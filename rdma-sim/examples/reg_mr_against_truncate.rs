//! Races `reg_mr` against `truncate` on two threads, under the man-page design: whichever thread comes
//! first wins, and no DMA is ever stale.
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
use rdma_sim::{AccessFlags, Context};

const LEN: u64 = 4 * 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let preset = presets().iter().find(|preset| preset.name == "man-page").ok_or("no such preset")?;
    let kernel = Kernel::new(Arc::new(World::manual(1)), Device::memory(4 << 20)?, KernelConfig::new(preset.axes))?;
    let registrant = kernel.spawn();
    let changer = registrant.thread();
    let (_fd, context) = Context::open(&registrant)?;
    let pd = context.alloc_pd(&registrant)?;
    let (mut registered, mut truncated, rounds) = (0, 0, 2000);
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
            (mr, truncate.join().unwrap_or(Err(Errno::EIO)))
        });
        registered += u32::from(mr.is_ok());
        truncated += u32::from(truncate.is_ok());
        assert!(mr.is_err() || truncate.is_err(), "a registered page was truncated away");
        mr.map_or(Ok(()), |mr| context.dereg_mr(&registrant, &mr))?;
        registrant.munmap(va, LEN)?;
        registrant.close(data)?;
        registrant.unlink("data")?;
    }
    println!("{rounds} races: reg_mr won {registered}, truncate won {truncated}");
    println!("stale DMA: {}", kernel.counters.stale_dma.get());
    Ok(())
}
