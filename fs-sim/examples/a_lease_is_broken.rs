//! Breaks a read layout lease: the holder is signalled, the truncate waits, the holder unlocks.
//!
//! Run it: `cargo run -p fs-sim --example a_lease_is_broken`

use emulator::World;
use emulator::device::Device;
use emulator::sync::{Arc, thread};
use fs_sim::design::presets;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{BLOCK, BlockRange, Kernel, KernelConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let preset = presets().iter().find(|preset| preset.name == "man-page").ok_or("no such preset")?;
    let world = Arc::new(World::manual(1));
    let kernel = Kernel::new(Arc::clone(&world), Device::memory(4 << 20)?, KernelConfig::new(preset.axes))?;

    let holder = kernel.spawn();
    holder.process().set_disposition(Signal::Sigio, Disposition::Handler);
    let data = holder.open("data", OpenFlags::create())?;
    holder.write(data, 0, &[7; 4 * BLOCK as usize])?;
    holder.lease(data, LeaseKind::READ, BlockRange::ALL)?;
    println!("holder: read lease on the whole file");

    let stranger = kernel.spawn();
    let truncated = thread::scope(|scope| {
        let truncate = scope.spawn(|| stranger.truncate("data", 0));
        // The kernel knows exactly who sleeps: the truncate does, once the break has begun.
        while kernel.blocked().is_empty() {
            thread::yield_now();
        }
        println!("blocked: {}", kernel.blocked().join("; "));
        println!("holder's signals: {:?}", holder.take_signals().iter().map(|info| info.signal).collect::<Vec<_>>());
        let unlocked = holder.unlock(data, BlockRange::ALL);
        println!("holder unlocks: {unlocked:?}");
        truncate.join()
    });
    println!("stranger's truncate: {:?}", truncated.map_err(|_| "the thread ended in a panic")?);
    println!("size now: {}", holder.stat(data)?.size);
    Ok(())
}
