//! The `daxlab` command.
fn main() {}
