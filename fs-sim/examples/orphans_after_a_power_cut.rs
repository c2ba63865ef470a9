//! Follows a pinned block of an unlinked file: orphaned, then freed by recovery after a power cut.
//!
//! Run it: `cargo run -p fs-sim --example orphans_after_a_power_cut`

use emulator::World;
use emulator::device::Device;
use emulator::sync::Arc;
use fs_sim::design::presets;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::{BLOCK, BlockRange, Kernel, KernelConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let preset = presets().iter().find(|preset| preset.name == "rfc-v2").ok_or("no such preset")?;
    // A design whose gate admits guests too: the preset admits only RDMA.
    let axes = fs_sim::design::Axes { gate_scope: fs_sim::design::GateScope::All, ..preset.axes };
    let world = Arc::new(World::manual(1));
    let kernel = Kernel::new(Arc::clone(&world), Device::memory(4 << 20)?, KernelConfig::new(axes))?;

    let task = kernel.spawn();
    let data = task.open("data", OpenFlags::create())?;
    task.write(data, 0, &[7; 4 * BLOCK as usize])?;
    task.lease(data, LeaseKind::READ_U, BlockRange::ALL)?;
    let mapping = task.mmap(data, 0, 4 * BLOCK, true)?;
    let socket = task.xdp_socket()?;
    task.register_umem(socket.0, mapping, 4 * BLOCK)?;
    println!("registered 4 blocks: {:?}", kernel.usage());

    task.munmap(mapping, 4 * BLOCK)?;
    task.unlink("data")?;
    task.close(data)?;
    println!("unlinked and closed, still pinned: {:?}", kernel.usage());

    let durable = kernel.power_cut()?;
    println!("power cut: {} blocks are waiting to be freed", durable.free_pending());

    let (recovered, report) = Kernel::recover(world, durable, KernelConfig::new(axes))?;
    println!("recovery: {report:?}");
    println!("after recovery: {:?}", recovered.usage());
    println!("check at rest: {:?}", recovered.check_at_rest());
    Ok(())
}
