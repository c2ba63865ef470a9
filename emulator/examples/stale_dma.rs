//! Detect a stale DMA: a NIC writes through a registration whose block already has a new owner.

use std::error::Error;

use emulator::device::{Device, FOLIO, PAGE};
use emulator::ledger::{Ledger, Ownership, OwnershipCheck};
use emulator::pin::PageRange;

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::memory(FOLIO)?;
    let ledger = Ledger::new(device.pages())?;
    let block = PageRange::new(8, 1);

    // The registrant remembers as of which event it knows the owner of the block.
    let registered = ledger.read_point();
    device.write(8 * PAGE, b"first")?;
    println!("DMA 1: {:?}", ledger.check_after_copy(block, registered));

    // A layout change ignores the registration: it stamps the block and hands it to the next owner.
    ledger.stamp(block, Ownership::Changed);
    device.write(8 * PAGE, b"next owner's data")?;

    // The DMA checks after its copy. The check before the copy would see the stamp too, but a stamp
    // that comes between the two is found by the second check only.
    device.write(8 * PAGE, b"late DMA")?;
    match ledger.check_after_copy(block, registered) {
        OwnershipCheck::Stale { page, stamp } => {
            println!("DMA 2: stale, page {page} changed owner in event {}", stamp.event())
        }
        other => return Err(format!("a stale DMA was reported as {other:?}").into()),
    }
    Ok(())
}
