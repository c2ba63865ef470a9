//! Pin a page, try to truncate it, unpin it, truncate it, and give its block to the next owner.
//!
//! It shows the whole life of a block with `emulator` alone: [`PinTable`] keeps the block from
//! being freed while it is pinned, and [`Ledger`] tells an old registration that the block has a
//! new owner.

use std::error::Error;

use emulator::device::{Device, FOLIO, PAGE};
use emulator::ledger::{Ledger, Ownership};
use emulator::pin::{PageRange, PinKind, PinTable};

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::memory(FOLIO)?;
    let pins = PinTable::new(device.pages())?;
    let ledger = Ledger::new(device.pages())?;
    let page = PageRange::new(3, 1);
    println!("device: {} pages of {PAGE} bytes", device.pages());

    let registered = ledger.read_point();
    let pin = pins.pin(page, PinKind::Long)?;
    device.write(3 * PAGE, b"data of the first owner")?;
    println!("registrant: pinned {page}: {:?}", pins.census(page));

    let closing = pins.close(page)?;
    println!("changer: closed {page}; a new pin: {}", outcome(pins.pin(page, PinKind::Short).map(|_| ())));
    let closing = match closing.freeze() {
        Ok(_) => return Err("a pinned page was frozen".into()),
        Err(still_closed) => still_closed,
    };
    println!("changer: cannot freeze, still pinned: {:?}", closing.census());

    let left = pins.unpin(pin);
    println!("registrant: unpinned; orphaned blocks to look for: {}", left.orphan_seen);

    let frozen = closing.freeze().map_err(|_| "an unpinned page was not frozen")?;
    let stamp = ledger.stamp(frozen.range(), Ownership::Changed);
    println!("changer: froze {}, stamped it with event {}", frozen.range(), stamp.event());
    drop(frozen);
    println!("changer: reopened {page}");

    println!("old registration, before a DMA: {:?}", ledger.check(page, registered));
    let pin = pins.pin(page, PinKind::Long)?;
    println!("next owner: pinned {page}; its check: {:?}", ledger.check(page, ledger.read_point()));
    let _no_orphans = pins.unpin(pin);
    assert!(pins.all_zero(), "no pin is left");
    Ok(())
}

fn outcome<E: std::fmt::Display>(result: Result<(), E>) -> String {
    result.map_or_else(|error| format!("refused ({error})"), |()| "granted".to_owned())
}
