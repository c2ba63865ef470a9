//! Prints what guests are made of, and fetches it if it is not there.

use guests::packages::{self, Package};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for package in packages::fetch(None)? {
        match package {
            Package::Ready { name, dir, versions } => println!("{name}: {versions}, in {}", dir.display()),
            Package::NotRun { name, reason } => println!("{name} can't be had: {reason}"),
        }
    }
    Ok(())
}
