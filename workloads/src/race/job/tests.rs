//! Job files: the built-in one, and every way in which a job can be wrong.

use super::text::JobText;
use super::*;

/// A job with every role.
const ALL_ROLES: &str = include_str!("../../../jobs/all-roles.toml");
use crate::input::{InputError, Source};

fn parse(text: &str) -> Result<Job, InputError> {
    Job::parse(&Source::new("my.toml", text))
}

/// Title, line, and the marked text of the error that `text` gives.
fn error(text: &str) -> (String, usize, String) {
    let error = parse(text).expect_err("an error");
    assert!(error.help_text().is_some() || error.label_text().is_some(), "{error}\nsays nothing about what to do");
    let (line, span) = (error.line().expect("a line"), error.span().expect("a place"));
    (error.title().to_owned(), line, text[span].to_owned())
}

#[test]
fn the_built_in_job_states_every_key_and_is_what_an_empty_file_means() {
    let built_in = Job::built_in();
    assert_eq!(built_in.actors().len(), 10);
    let mut named = parse("name = \"mine\"").unwrap();
    assert_eq!(named.name, "mine");
    named.name = built_in.name.clone();
    assert_eq!(named, built_in);

    let stated = built_in.parameters();
    for key in JobText::keys() {
        let optional = ["name", "run.threads", "run.seed"].contains(&key.as_str());
        assert!(optional || stated.contains_key(&key), "jobs/default.toml does not state {key}");
    }
}

#[test]
fn the_document_names_every_key_with_its_default() {
    let document = include_str!("../../../../docs/job-files.md");
    let built_in = Job::built_in();
    for key in JobText::keys() {
        let (section, key_alone) = key.split_once('.').unwrap_or(("", &key));
        let heading = if section.is_empty() { "## At the top".to_owned() } else { format!("## `[{section}]`") };
        let part = document.split("\n## ").map(|part| format!("## {part}")).find(|part| part.starts_with(&heading));
        let part = part.unwrap_or_else(|| panic!("no section {heading}"));
        let row = part.lines().find(|line| line.starts_with(&format!("| `{key_alone}` |")));
        let row = row.unwrap_or_else(|| panic!("no row for {key}"));
        if let Some(default) = built_in.parameters().get(&key) {
            assert!(row.contains(&format!("`{default}`")), "the default of {key} is {default}:\n{row}");
        }
    }
    assert!(document.contains(BUILT_IN), "the built-in job stands in the document as it is");
    assert!(document.contains(ALL_ROLES), "the job with all roles stands in the document as it is");
}

#[test]
fn a_file_changes_what_it_states_and_nothing_else() {
    let job = parse(
        "[files]\ncount = 3\npopularity = { dist = \"uniform\" }\n[truncaters]\ncount = 1\n\
         pause = { dist = \"exponential\", mean = \"1ms\", max = \"9ms\" }\n[run]\nseed = 11\n",
    )
    .unwrap();
    let built_in = Job::built_in();
    assert_eq!((job.files.count, job.files.size), (3, built_in.files.size));
    assert_eq!(job.files.popularity, Popularity::Uniform);
    assert_eq!(job.count(Role::Truncater), 1);
    assert_eq!(job.truncaters.size, built_in.truncaters.size);
    assert_eq!(job.truncaters.pause.max(), 9_000_000);
    assert_eq!(job.seed, Some(11));
    assert_eq!(job.parameters()["files.count"], "3");
    assert_eq!(job.parameters()["files.size"], "512KiB");
    assert_eq!(job.quick().duration, job.quick_duration);
}

#[test]
fn errors_point_at_the_value_and_say_what_to_do() {
    let cases: &[(&str, &str, usize, &str)] = &[
        // Unknown and mistyped.
        ("[files]\ncuont = 3", "unknown key `cuont`", 2, "cuont"),
        ("[truncators]\ncount = 3", "unknown key `truncators`", 1, "truncators"),
        ("[volume]\nwrite_break = \"precice\"", "unknown value `precice`", 2, "\"precice\""),
        // Units.
        ("[files]\nsize = 4096", "the size `4096` has no unit", 2, "4096"),
        ("[run]\nduration = \"5\"", "the time `5` has no unit", 2, "\"5\""),
        ("[run]\nduration = \"5kB\"", "unknown unit of time `kB`", 2, "\"5kB\""),
        (
            "[device]\nsize = \"1GB\"",
            "the unit `GB` counts in thousands, and pages are counted in powers of two",
            2,
            "\"1GB\"",
        ),
        // Ranges and distributions.
        (
            "[punchers]\nlength = { dist = \"uniform\", min = \"8KiB\", max = \"4KiB\" }",
            "the bounds of `length` are reversed: from 8KiB to 4KiB",
            2,
            "\"4KiB\"",
        ),
        (
            "[registrants]\nregion_length = { dist = \"uniform\", min = \"1B\", max = \"4KiB\" }",
            "1B is too small for `region_length`",
            2,
            "\"1B\"",
        ),
        (
            "[truncaters]\nsize = { dist = \"constant\", value = \"1MiB\" }",
            "1MiB is too large for `size`",
            2,
            "\"1MiB\"",
        ),
        (
            "[registrants]\npause = { dist = \"exponential\", median = \"1us\" }",
            "`mean` is missing for this distribution",
            2,
            "\"exponential\"",
        ),
        (
            "[registrants]\npause = { dist = \"uniform\", min = \"1us\", max = \"2us\", sigma = 1.0 }",
            "a uniform distribution takes no `sigma`",
            2,
            "1.0",
        ),
        (
            "[registrants]\npause = { dist = \"exponential\", mean = \"9us\", max = \"2us\" }",
            "the mean of `pause` is not between its bounds",
            2,
            "\"9us\"",
        ),
        ("[registrants]\npause = { dist = \"poisson\" }", "unknown value `poisson`", 2, "\"poisson\""),
        ("[files]\npopularity = { dist = \"zipf\" }", "`exponent` is missing for this distribution", 2, "\"zipf\""),
        ("[files]\npopularity = { dist = \"zipf\", exponent = -1.0 }", "`exponent` can't be -1", 2, "-1.0"),
        ("[race_points]\nprobability = 1.5", "`probability` is 1.5, which is not a probability", 2, "1.5"),
        ("[race_points]\nprobability = nan", "`probability` is NaN, which is not a probability", 2, "nan"),
        // Several values together.
        ("[mix]\nregister = 0", "a race needs a `mix` with a weight for `register`", 2, "0"),
        ("[dma_mix]\nwrite = 0", "a `dma_mix` without `write` can't show corruption", 2, "0"),
        ("[registrants]\ncount = 0", "a race without registrants", 2, "0"),
        ("[registrants]\ncount = 300", "306 actors are too many", 2, "300"),
        (
            "[truncaters]\ncount = 0\n[punchers]\ncount = 0\n[extenders]\ncount = 0",
            "a race in which no actor changes a layout",
            2,
            "0",
        ),
        ("[device]\nsize = \"2MiB\"", "a device of 2MiB is too small for this job", 2, "\"2MiB\""),
        ("[device]\nsize = \"3KiB\"", "a device size of 3KiB is not allowed", 2, "\"3KiB\""),
        ("[files]\ncount = 0", "a job can't have 0 files", 2, "0"),
        ("[files]\nsize = \"5000B\"", "a file size of 5000B is not allowed", 2, "\"5000B\""),
        ("[run]\nduration = \"0s\"", "`duration` is zero", 2, "\"0s\""),
        (
            "[run]\nthreads = 1",
            "a race needs from 2 threads (a registrant and one that changes layouts) to 255, not 1",
            2,
            "1",
        ),
        ("name = \"\"", "`` can't be a job's name", 1, "\"\""),
        // The roles that the built-in job does not have.
        ("[registrants]\non_demand = 1.01", "`on_demand` is 1.01, which is not a probability", 2, "1.01"),
        ("[registrants]\nwindows = -0.5", "`windows` is -0.5, which is not a probability", 2, "-0.5"),
        ("[files]\nmoved = 25", "25 of 24 files can't be moved", 2, "25"),
        ("[files]\nmoved = 5", "5 moved files of 512KiB are too many", 2, "5"),
        (
            "[collapsers]\ncount = 1",
            "[collapsers] need a file whose blocks they may move, and `moved` in [files] is 0",
            2,
            "1",
        ),
        (
            "[files]\nmoved = 1\n[reflinkers]\ncount = 2",
            "[reflinkers] need two files whose blocks they may move, and `moved` in [files] is 1",
            4,
            "2",
        ),
        (
            "[address_io_mix]\ndisk = 0\nfile = 0\npipe = 0\nsend = 0",
            "all weights of [address_io_mix] are zero",
            5,
            "0",
        ),
        (
            "[reflink_mix]\nclone = 0\ndedupe = 0\nexchange = 0\nunshare = 0",
            "all weights of [reflink_mix] are zero",
            5,
            "0",
        ),
        ("[umems]\npackets = { dist = \"constant\", value = 2000 }", "2000 is too large for `packets`", 2, "2000"),
        ("[rings]\nrequests = { dist = \"constant\", value = 0 }", "0 is too small for `requests`", 2, "0"),
        (
            "[rings]\nlength = { dist = \"constant\", value = \"128KiB\" }",
            "128KiB is too large for `length`",
            2,
            "\"128KiB\"",
        ),
        ("[address_io]\nhold = { dist = \"constant\", value = \"2s\" }", "2s is too large for `hold`", 2, "\"2s\""),
        ("[guests]\nlifetime = { dist = \"constant\", value = \"1h\" }", "1h is too large for `lifetime`", 2, "\"1h\""),
        (
            "[layout_clients]\ncount = 1\nlength = { dist = \"constant\", value = \"2KiB\" }",
            "2KiB is too small for `length`",
            3,
            "\"2KiB\"",
        ),
        (
            "[files]\nmoved = 2\n[collapsers]\ncount = 1\nlength = { dist = \"constant\", value = \"1MiB\" }",
            "1MiB is too large for `length`",
            5,
            "\"1MiB\"",
        ),
        ("[defragmenters]\npolite = 2.0", "`polite` is 2, which is not a probability", 2, "2.0"),
        ("[guests]\nstore = -1.0", "`store` is -1, which is not a probability", 2, "-1.0"),
        ("[guests]\ncount = 250", "260 actors are too many", 2, "250"),
        (
            "[guests]\ncount = 200\n[device]\nsize = \"32MiB\"",
            "a device of 32MiB is too small for this job",
            4,
            "\"32MiB\"",
        ),
    ];
    for (text, title, line, marked) in cases {
        assert_eq!(error(text), ((*title).to_owned(), *line, (*marked).to_owned()), "in {text:?}");
    }
}

#[test]
fn what_conflicts_with_the_built_in_job_is_an_error_all_the_same() {
    let error = parse("[files]\ncount = 4000").expect_err("too many for the built-in device");
    assert!(error.to_string().contains("is too small for this job"), "{error}");
    assert!(error.to_string().contains("my.toml"), "{error}");
}

/// A value of the wrong type: the reader of TOML says what it expects.
#[test]
fn values_of_the_wrong_type_are_errors_at_their_place() {
    for (text, line) in [
        ("[umems]\ncount = -1", 2),
        ("[umems]\ncount = 99999999999", 2),
        ("[guests]\ncount = \"2\"", 2),
        ("[collapsers]\ninsert = \"often\"", 2),
        ("[address_io_mix]\ndisk = 1.5", 2),
        ("[files]\nmoved = -1", 2),
        ("[rings]\nlength = \"4KiB\"", 2),
    ] {
        let error = parse(text).expect_err(text);
        assert_eq!(error.line(), Some(line), "{error}");
        assert!(error.span().is_some(), "{error}");
    }
}

/// The new roles say nothing about a job that does not have them: its files may be smaller than
/// their lengths, and its device as small as before.
#[test]
fn a_role_without_actors_asks_nothing_of_files_and_device() {
    let small = |size: &str| format!("{{ dist = \"constant\", value = \"{size}\" }}");
    let text = format!(
        "[device]\nsize = \"4MiB\"\n[files]\nsize = \"8KiB\"\n[registrants]\nregion_length = {block}\n\
         [truncaters]\nsize = {block}\n[punchers]\nlength = {block}\n[direct_io]\nlength = {block}\n\
         [extenders]\nlength = {block}\n",
        block = small("4KiB"),
    );
    assert!(parse(&text).is_ok());
    let error = parse(&format!("{text}[umems]\ncount = 1\n")).expect_err("umems of up to 64KiB");
    assert!(error.title().contains("64KiB is too large for `length`"), "{error}");
}

#[test]
fn every_job_file_of_the_project_is_a_job() {
    for text in [BUILT_IN, ALL_ROLES] {
        parse(text).unwrap();
    }
    let all = parse(ALL_ROLES).unwrap();
    assert!(Role::ALL.iter().all(|role| all.count(*role) > 0), "{:?}", all.actors());
}

#[test]
fn threads_scale_roles_in_proportion() {
    let job = Job::built_in();
    let counts = |threads| Role::ALL.map(|role| job.with_threads(threads).unwrap().count(role));
    assert_eq!(counts(10), Role::ALL.map(|role| job.count(role)));
    assert_eq!(counts(20), Role::ALL.map(|role| 2 * job.count(role)));
    assert_eq!(counts(2)[..5], [1, 1, 0, 0, 0]);
    assert_eq!(counts(255)[5..], [0; 8], "a role that the job does not have stays out");
    for threads in 2..=ACTORS_MAX {
        let scaled = job.with_threads(threads).unwrap();
        assert_eq!(scaled.actors().len(), threads as usize);
        assert!(scaled.count(Role::Registrant) > 0);
        assert!(scaled.actors().iter().any(|role| role.changes_layouts()));
    }
    assert!(job.with_threads(1).is_err() && job.with_threads(256).is_err());
}

#[test]
fn distributions_stay_in_their_bounds_and_around_their_middle() {
    let draw = |text: &str| {
        let job = parse(&format!("[registrants]\nregion_lifetime = {text}")).unwrap();
        let mut rng = emulator::runtime::rng::stream(5, "test", 0);
        let mut drawn: Vec<u64> = (0..10_001).map(|_| job.registrants.region_lifetime.draw(&mut rng)).collect();
        drawn.sort_unstable();
        (drawn[0], drawn[5_000], drawn[10_000], drawn.iter().sum::<u64>() / 10_001)
    };
    assert_eq!(draw("{ dist = \"constant\", value = \"7ns\" }"), (7, 7, 7, 7));
    let (low, _, high, mean) = draw("{ dist = \"uniform\", min = \"10ns\", max = \"20ns\" }");
    assert_eq!((low, high), (10, 20));
    assert!((14..=16).contains(&mean));
    let (low, _, high, mean) = draw("{ dist = \"exponential\", mean = \"1us\", min = \"5ns\", max = \"9us\" }");
    assert!(low == 5 && high <= 9_000 && (950..1_050).contains(&mean), "{low} {high} {mean}");
    let (_, median, _, mean) = draw("{ dist = \"normal\", mean = \"1us\", std_dev = \"100ns\" }");
    assert!((990..1_010).contains(&median) && (990..1_010).contains(&mean));
    let (_, median, high, _) = draw("{ dist = \"lognormal\", median = \"1us\", sigma = 1.0, max = \"50us\" }");
    assert!((950..1_050).contains(&median) && high > 10_000);
}
