//! Prints the table of operations: how a script writes each one, and what it does.

use workloads::ops::Verb;

fn main() {
    for verb in Verb::ALL {
        println!("{:60} {}", verb.usage(), verb.doc());
    }
}
