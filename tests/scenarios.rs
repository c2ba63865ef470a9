//! `daxlab scenario`: its exit codes, its formats, and its errors.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::fs;
use std::process::Output;

use common::daxlab;

/// Runs `daxlab scenario` with `args`.
fn scenario(args: &[&str]) -> Output {
    daxlab().arg("scenario").args(args).output().unwrap()
}

/// [`GOOD`] with a queue pair and, in line 12, `step` behind it.
fn connected(step: &str) -> String {
    let made = "A: m = mmap_anon 4KiB\nA: c = rdma_open\nA: r = reg_mr c m 0 4KiB\nA: q = connect c c\n";
    format!("{GOOD}{made}A: {step}\n")
}

/// Runs a scenario of this text under `designs`.
fn run_text(text: &str, designs: &str, format: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.scn");
    fs::write(&file, text).unwrap();
    scenario(&["run", file.to_str().unwrap(), "--design", designs, "--format", format])
}

fn stdout(run: &Output) -> String {
    String::from_utf8(run.stdout.clone()).unwrap()
}

const GOOD: &str = "# MINE: truncate under a read lease\nfile data 64KiB\nA: f = open data rw
A: lease f read -> ok | EINVAL n/a @lease_rules=none\nB: truncate data 0 => blocks\nA: unlock f\nB: returns -> ok\n";

#[test]
fn the_whole_suite_passes_under_every_preset() {
    let run = scenario(&["run", "--format", "json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&run)).unwrap();
    let mut failed = Vec::new();
    for row in report["scenarios"].as_array().unwrap() {
        let cells = row["cells"].as_array().unwrap();
        assert_eq!(cells.len(), 10, "{row}");
        let bad =
            |cell: &&serde_json::Value| !["passed", "not_applicable"].contains(&cell["verdict"].as_str().unwrap());
        failed.extend(cells.iter().filter(bad).map(|cell| format!("{}: {cell}", row["id"])));
    }
    assert!(failed.is_empty() && run.status.code() == Some(0), "{failed:#?}");
}

/// Every scenario of the contract is there, perhaps in parts: S07a, S07b.
#[test]
fn the_suite_has_every_scenario_of_the_contract_that_can_be_said() {
    let list = stdout(&scenario(&["list"]));
    let ids: Vec<&str> = list.lines().filter_map(|line| line.split(' ').next()).collect();
    let there = |n: u32| {
        let id = format!("S{n:02}");
        ids.iter()
            .any(|found| found.strip_prefix(id.as_str()).is_some_and(|rest| rest.chars().all(char::is_alphabetic)))
    };
    let missing: Vec<u32> = (1..=67).filter(|n| !there(*n)).collect();
    assert_eq!(missing, Vec::<u32>::new());
    assert!(ids.len() > 140, "{} scenarios", ids.len());
}

/// The fenced blocks of a page, with the line on which each begins.
fn fenced_blocks(page: &str) -> Vec<(usize, String)> {
    let mut blocks: Vec<(usize, String)> = Vec::new();
    let mut inside = false;
    for (at, line) in page.lines().enumerate() {
        match (line.starts_with("```"), inside) {
            (true, _) => {
                inside = !inside;
                if inside {
                    blocks.push((at + 2, String::new()));
                }
            }
            (false, true) => blocks.last_mut().unwrap().1 += &format!("{line}\n"),
            (false, false) => {}
        }
    }
    blocks
}

/// Whether a block begins with a scenario's title, `# ID: title`.
fn is_whole_scenario(block: &str) -> bool {
    let title = block.lines().next().and_then(|line| line.strip_prefix("# ")?.split_once(": "));
    title.is_some_and(|(id, _)| id.starts_with(|c: char| c.is_ascii_uppercase()) && !id.contains(' '))
}

/// A reader who saves a scenario of the documentation can run it, under every preset.
#[test]
fn the_scenarios_of_the_pages_pass() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let dir = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for page in pages.chain([root.join("README.md")]) {
        for (line, block) in fenced_blocks(&fs::read_to_string(&page).unwrap()) {
            if is_whole_scenario(&block) {
                let name = format!("{}-line-{line}.scn", page.file_stem().unwrap().to_str().unwrap());
                files.push(dir.path().join(name).to_str().unwrap().to_owned());
                fs::write(files.last().unwrap(), block).unwrap();
            }
        }
    }
    assert!(!files.is_empty(), "docs/scenarios.md has one");
    for file in files {
        let run = scenario(&["run", &file, "--design", "all,mainline-6.12"]);
        let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(0), "{}{stderr}", stdout(&run));
    }
}

/// README.md shows a part of the matrix, as the command prints it.
#[test]
fn the_matrix_of_the_readme_is_what_the_command_prints() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let block = fenced_blocks(&page).into_iter().find(|(_, block)| block.starts_with(" scenario ")).unwrap().1;
    let ids = block.lines().skip(1).filter_map(|row| row.split_whitespace().next());
    let args: Vec<&str> = ["run"].into_iter().chain(ids).collect();
    let printed = stdout(&scenario(&args));
    let matrix: Vec<&str> = printed.lines().filter(|line| line.starts_with(' ')).map(str::trim_end).collect();
    assert_eq!(block.lines().collect::<Vec<_>>(), matrix);
}

/// The suite holds for designs of one's own with values that no preset has.
#[test]
fn the_suite_passes_with_values_that_no_preset_has() {
    let dir = tempfile::tempdir().unwrap();
    for (base, value) in VALUES_OF_NO_PRESET {
        let file = dir.path().join("mine.toml");
        fs::write(&file, format!("name = \"mine\"\nbase = \"{base}\"\n{value}\n")).unwrap();
        let run = scenario(&["run", "--design", file.to_str().unwrap()]);
        assert_eq!(run.status.code(), Some(0), "{base}, {value}: {}", stdout(&run));
    }
}

/// A preset, and what is changed in it.
const VALUES_OF_NO_PRESET: [(&str, &str); 3] = [
    ("man-page", "pin_gate = \"reference\""),
    ("revoke", "revoke_scope = \"context\""),
    ("revoke", "on_lease_lost = \"nothing\""),
];

#[test]
fn list_and_show() {
    let list = stdout(&scenario(&["list"]));
    assert!(list.lines().any(|line| line.starts_with("S14 ")), "{list}");
    assert!(stdout(&scenario(&["show", "s14"])).starts_with("# S14: "));
    let unknown = scenario(&["show", "S99"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("unknown scenario `S99`"));
}

#[test]
fn a_file_of_ones_own_in_every_format() {
    let text = run_text(GOOD, "kara,mainline", "text");
    assert_eq!(text.status.code(), Some(0));
    assert!(stdout(&text).starts_with("MINE     pass  truncate under a read lease (1 passed, 1 n/a)"));
    let json: serde_json::Value = serde_json::from_str(&stdout(&run_text(GOOD, "kara,mainline", "json"))).unwrap();
    assert_eq!(json["scenarios"][0]["cells"][0]["outcome"], "blocks");
    assert_eq!(json["scenarios"][0]["cells"][1]["verdict"], "not_applicable");
    let junit = stdout(&run_text(GOOD, "kara,mainline", "junit"));
    assert!(junit.contains("<testsuite ") && junit.contains("<skipped"), "{junit}");
}

#[test]
fn a_wrong_outcome_exits_with_1_and_shows_the_state() {
    let run = run_text(&GOOD.replace("=> blocks", "=> ETXTBSY @kara | blocks"), "kara", "text");
    let text = stdout(&run);
    assert_eq!(run.status.code(), Some(1), "{text}");
    for part in ["mine.scn:5: B: truncate data 0", "expected ETXTBSY", "got      blocks lease break", "A:read:breaking"]
    {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

/// The other file is run, and its result is told.
#[test]
fn a_call_left_blocked_fails_its_file_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (left, good) = (dir.path().join("left.scn"), dir.path().join("good.scn"));
    fs::write(&left, GOOD.replace("MINE", "LEFT").replace("A: unlock f\nB: returns -> ok\n", "")).unwrap();
    fs::write(&good, GOOD).unwrap();
    let files = [left.to_str().unwrap(), good.to_str().unwrap()];
    let run = scenario(&["run", files[0], files[1], "--design", "kara", "-j", "2"]);
    let text = stdout(&run);
    assert_eq!(run.status.code(), Some(1), "{text}");
    for part in ["left.scn:5: B: truncate data 0", "`expect stuck B`", "got      blocks lease break", "MINE     pass"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    fs::write(&good, GOOD.replace("MINE", "left")).unwrap();
    let run = scenario(&["run", files[0], files[1], "--design", "kara"]);
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("good.scn:1:3") && stderr.contains("left.scn:1:3"), "{stderr}");
}

#[test]
fn the_order_of_results_does_not_depend_on_how_many_run_at_once() {
    let run = |jobs: &str| stdout(&scenario(&["run", "S18", "S14", "S01", "--format", "json", "-j", jobs]));
    let one = run("1");
    assert!(one.find("\"S18\"").unwrap() < one.find("\"S14\"").unwrap(), "{one}");
    assert_eq!(run("7"), one);
    for wrong in ["0", "257", "many"] {
        assert_eq!(scenario(&["run", "S14", "-j", wrong]).status.code(), Some(2), "{wrong}");
    }
    assert_eq!(scenario(&["run", "--on", "kernel", "-j", "2"]).status.code(), Some(2));
}

#[test]
fn only_a_real_kernel_is_ranked() {
    let cases: [(&[&str], &str); 2] = [
        (&["--which-design"], "needs --on kernel or --on guest"),
        (&["--which-design", "--on", "guest", "--format", "junit"], "no --format junit"),
    ];
    for (args, what) in cases {
        let run = scenario(&[&["run"], args].concat());
        let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.code() == Some(2) && stderr.contains(what), "{args:?}: {stderr}");
    }
    // A folder in which nothing can run.
    let run = scenario(&["run", "K01", "--on", "kernel", "--which-design", "--dir", "/proc"]);
    assert!(run.status.code() == Some(3) && stdout(&run).contains("not run: no temporary directory in /proc"));
}

#[test]
fn an_option_of_another_machine_is_refused() {
    for (option, value, machine) in [
        ("--page-cache-dir", "/tmp", "--on kernel"),
        ("--device-dax", "/dev/dax0.0", "--on kernel"),
        ("--boot-limit", "9", "--on guest"),
    ] {
        let run = scenario(&["run", "K01", option, value]);
        let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(2), "{option}: {stderr}");
        assert!(stderr.contains(option) && stderr.contains(machine), "{option}: {stderr}");
    }
}

#[test]
fn a_wrong_script_exits_with_2_and_points() {
    let cases = [
        (GOOD.replace("unlock f", "unlok f"), "mine.scn:6:4", "unknown operation"),
        (GOOD.replace("unlock f", "unlock g"), "mine.scn:6:11", "nothing above is called `g`"),
        (GOOD.replace("=> blocks", "=> blocks @karra"), "mine.scn:5:31", "did you mean `kara`"),
        (GOOD.replace("=> blocks", "=> blocks @linux=nvdim"), "mine.scn:5:37", "did you mean `nvdimm`"),
        (GOOD.replace("A: unlock f", "A: exit\nA: exit"), "mine.scn:7:1", "A is dead"),
        (GOOD.replace("B: returns", "A: returns"), "mine.scn:7:1", "blocks under no design"),
        (GOOD.replace("64KiB", "65MiB"), "mine.scn:2:11", "does not fit into the volume"),
        (connected("post_send q 4KiB x"), "mine.scn:12:4", "needs a name"),
        (connected("w = post_send q 65MiB x"), "mine.scn:12:20", "moves at most 64MiB"),
        (connected("w = post_fetch_add q r 0 -1"), "mine.scn:12:29", "no whole number"),
        (connected("modify_qp q rtr"), "mine.scn:12:16", "unknown word `rtr`"),
        (connected("poll q"), "mine.scn:12:9", "`q` is a queue pair"),
        (connected("w = post_send q 4KiB x\nA: close w"), "mine.scn:13:10", "`w` is a work request"),
    ];
    for (text, place, what) in cases {
        let run = run_text(&text, "kara", "text");
        let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(place) && stderr.contains(what), "{place} {what} in {stderr}");
        assert!(run.stdout.is_empty());
    }
    let missing = scenario(&["run", "no/such.scn"]);
    assert_eq!(missing.status.code(), Some(2));
    let design = scenario(&["run", "S14", "--design", "no-such-design"]);
    assert_eq!(design.status.code(), Some(2));
}

/// Most of a machine's cost was the first touch of each page of its device, which took 5 ms of
/// system time. A machine gets the memory of one that is gone. Time depends on what else runs here,
/// so the test counts page faults.
#[test]
#[allow(clippy::zombie_processes, reason = "wait4 waits for it")]
fn a_machine_of_the_suite_costs_few_page_faults() {
    let child = daxlab()
        .args(["scenario", "run", "-j", "2", "--format", "json"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // SAFETY: all zero is a value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let (pid, mut status) = (i32::try_from(child.id()).unwrap(), 0);
    // SAFETY: both places are writable for the call. The child is waited for here alone.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    assert_eq!((waited, status), (pid, 0));
    let list = stdout(&scenario(&["list"]));
    let cells = i64::try_from(list.lines().count() * 10).unwrap();
    assert!(usage.ru_minflt < 250 * cells, "{} faults of {cells} machines", usage.ru_minflt);
}
