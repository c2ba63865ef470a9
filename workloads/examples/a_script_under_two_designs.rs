//! Runs one scenario under two designs: B truncates a file while A's NIC has its pages pinned.
//!
//! `rfc-v2` fails the truncate with ETXTBSY. `revoke` lets it pass and takes the pages from
//! the NIC. Each line states the outcome under each design, and the run checks it.
//!
//! Run it with `cargo run -p workloads --example a_script_under_two_designs`.

use workloads::input::Source;
use workloads::input::designs::DesignCatalogue;
use workloads::language::Scenario;
use workloads::suite::scenarios::run_simulated;

const SCRIPT: &str = "\
# X1: B truncates a file that A's NIC has pinned
file data 4MiB

A: f   = open data rw
A:       lease f exclusive
A: m   = mmap f 0 4MiB
A: ctx = rdma_open
A: mr  = reg_mr ctx m 0 2MiB
B:       truncate data 0     => ETXTBSY | ok @revoke
expect pins data             -> 512 | 0 @revoke
";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut catalogue = DesignCatalogue::default();
    let designs = catalogue.resolve("rfc-v2, revoke")?;
    let names: Vec<&str> = catalogue.names().collect();
    let scenario = Scenario::parse(&Source::new("<example>", SCRIPT), &names)?;
    let report = run_simulated(&[scenario], &designs)?;
    for cell in report.scenarios.iter().flat_map(|row| &row.cells) {
        println!("{:7} {:?}: the truncate gave {}", cell.design, cell.verdict, cell.outcome);
    }
    match report.failed() {
        true => Err("an outcome was not as stated".into()),
        false => Ok(()),
    }
}
