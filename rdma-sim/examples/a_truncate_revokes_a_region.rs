//! Truncates a file whose pages a NIC has pinned, under the revoke design: the region is revoked,
//! its pages are unpinned, an event names it, and the rest of the context works.
//!
//! Run it: `cargo run -p rdma-sim --example a_truncate_revokes_a_region`

use emulator::World;
use emulator::device::Device;
use emulator::sync::Arc;
use fs_sim::design::presets;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{BlockRange, Kernel, KernelConfig};
use rdma_sim::{AccessFlags, Context};

const LEN: u64 = 4 * 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let preset = presets().iter().find(|preset| preset.name == "revoke").ok_or("no such preset")?;
    let kernel = Kernel::new(Arc::new(World::manual(1)), Device::memory(4 << 20)?, KernelConfig::new(preset.axes))?;
    let holder = kernel.spawn();
    holder.process().set_disposition(Signal::Sigio, Disposition::Handler);
    let data = holder.open("data", OpenFlags::create())?;
    holder.write(data, 0, &[7; LEN as usize])?;
    holder.lease(data, LeaseKind::READ_U, BlockRange::ALL)?;
    let va = holder.mmap(data, 0, LEN, true)?;
    let (_fd, context) = Context::open(&holder)?;
    let pd = context.alloc_pd(&holder)?;
    let mr = context.reg_mr(&holder, &pd, va, LEN, AccessFlags::ALL)?;
    println!("registered: {mr:?}, regions that pin a file: {}", context.file_pins());

    let stranger = kernel.spawn();
    println!("a stranger truncates: {:?}", stranger.truncate("data", 0));
    println!("revoked: {}, pages unpinned: {}", mr.is_revoked(), mr.is_released());
    println!("event: {:?}", context.poll_event());
    let (buffer, _memory) = holder.mmap_anonymous(LEN)?;
    println!("another reg_mr: {:?}", context.reg_mr(&holder, &pd, buffer, LEN, AccessFlags::ALL).map(|_| ()));
    println!("dereg_mr of the revoked region: {:?}", context.dereg_mr(&holder, &mr));
    Ok(())
}
