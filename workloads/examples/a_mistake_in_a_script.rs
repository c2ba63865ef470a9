//! Parses a script with a mistake in it and prints the error: the line, the column, and the word
//! that was meant.
//!
//! Run it with `cargo run -p workloads --example a_mistake_in_a_script`.

use workloads::input::Source;
use workloads::language::Scenario;

const SCRIPT: &str = "\
# X2: a misspelled operation
file data 4MiB

A: f = open data rw
A: truncat data 0 -> ok
";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match Scenario::parse(&Source::new("mistake.scn", SCRIPT), &[]) {
        Ok(_) => Err("the script was expected to be refused".into()),
        Err(error) => {
            println!("{error}");
            Ok(())
        }
    }
}
