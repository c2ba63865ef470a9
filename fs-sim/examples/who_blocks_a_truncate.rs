//! Shows which lease and which pin stand against a truncate, under every design.
//!
//! Run it: `cargo run -p fs-sim --example who_blocks_a_truncate`

use emulator::World;
use emulator::device::Device;
use emulator::sync::Arc;
use fs_sim::design::presets;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::{BLOCK, BlockRange, Errno, Kernel, KernelConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for preset in presets() {
        let device = Device::memory(4 << 20)?;
        let kernel = Kernel::new(Arc::new(World::manual(1)), device, KernelConfig::new(preset.axes))?;
        let holder = kernel.spawn();
        let data = holder.open("data", OpenFlags::create())?;
        holder.write(data, 0, &[7; 4 * BLOCK as usize])?;

        // The holder takes the strongest read lease that the design knows, and exports the file to
        // a guest, which is a long-term pin of the whole file.
        let lease = [LeaseKind::READ_U, LeaseKind::WRITE, LeaseKind::READ]
            .into_iter()
            .find(|kind| holder.lease(data, *kind, BlockRange::ALL).is_ok());
        let export = holder.export_to_guest(data);

        println!("{}", preset.name);
        match lease {
            Some(kind) => println!("  lease: {kind}"),
            None => println!("  lease: refused"),
        }
        match &export {
            Ok(_) => println!("  guest export: granted"),
            Err(errno) => println!("  guest export: {errno}"),
        }
        let inode = holder.inode(data)?;
        let blockers = kernel.blockers(inode.ino()).ok_or(Errno::ENOENT)?;
        for blocker in blockers.against_stranger() {
            println!("  against a truncate by a stranger: {blocker}");
        }
        holder.exit();
    }
    Ok(())
}
