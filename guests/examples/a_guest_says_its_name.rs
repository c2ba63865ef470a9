//! Boots a guest, has it print the name of its kernel, and powers it off. Where no guest can be
//! had, it says why.

use std::time::Duration;

use guests::packages::{self, CURRENT, Package};
use guests::vm::GuestMachine;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for package in packages::fetch(Some(CURRENT))? {
        match package {
            Package::NotRun { name, reason } => println!("{name} can't be had: {reason}"),
            Package::Ready { name, dir, versions } => {
                let machine = GuestMachine::fetched(&name, &versions, &dir)?;
                let mut guest = machine.boot().try_start()?;
                let said = guest.try_run("uname -sr", Duration::from_secs(60))?;
                println!("{versions}: {}", said.text.trim());
                guest.try_poweroff()?;
            }
        }
    }
    Ok(())
}
