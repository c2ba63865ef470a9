//! Operations: what a process of a scenario can ask of a machine, and a user of a running server.
//!
//! It owns the typed operation [`Op`] and its table: names, typed arguments, values, documentation,
//! and where it can run. One macro makes the type and the table, so the parser of scenarios, the
//! machines, the generator of random sequences, the control socket, `daxlab ctl` and the reference
//! pages always know the same operations. Invariant: an [`Op`] has exactly the arguments of its
//! row; no other can be built. Kernel counterpart: the system call table; `xfs_io`'s commands for
//! the style.
//!
//! ```
//! use workloads::ops::{Arg, Bytes, FileName, Op, Verb};
//!
//! let args = [Arg::Name("data".to_owned()), Arg::Number(4096)];
//! let op = Op::from_args(Verb::Truncate, &args).unwrap();
//! assert_eq!(op, Op::Truncate { file: FileName("data".to_owned()), size: Bytes(4096) });
//! assert!(Op::from_args(Verb::Truncate, &args[..1]).is_err());
//! ```

mod arguments;
mod table;

pub use arguments::*;
pub use table::{AnswerDelay, Op, OpValue, Parameter, RunsOn, Verb, WrongArguments};

/// A cell of a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// Every request of `daxlab ctl` as the reference in `docs/attach-qemu.md` lists it: a table in
/// Markdown.
pub fn server_reference() -> String {
    let mut page = "| request | may wait | what it does |\n|---|---|---|\n".to_owned();
    for verb in Verb::ALL.iter().filter(|verb| verb.is_for_servers()) {
        let waits = if verb.may_wait() { "yes" } else { "" };
        page += &format!("| `{}` | {waits} | {} |\n", cell(&verb.usage()), cell(verb.doc()));
    }
    page
}

/// The bytes that an operation read, in the words of scenarios: `a` if all `asked` are that, `eof`
/// if there is none, else runs with their lengths in bytes, `a:4096,zeros:4096`; at most
/// [`RUNS_MAX`] of them.
pub fn describe_bytes(bytes: &[u8], asked: usize) -> String {
    let name = |byte: u8| match byte {
        0 => "zeros".to_owned(),
        b if b.is_ascii_graphic() => (b as char).to_string(),
        b => format!("x{b:02x}"),
    };
    let mut runs = bytes.chunk_by(|a, b| a == b);
    match (bytes.first(), bytes.len()) {
        (None, _) if asked > 0 => return "eof".to_owned(),
        (None, _) => return "nothing".to_owned(),
        (Some(first), len) if len == asked && runs.clone().count() == 1 => return name(*first),
        _ => {}
    }
    let mut words: Vec<String> = runs
        .by_ref()
        .take(RUNS_MAX)
        .map(|run| format!("{}:{}", name(run[0]), crate::input::Size(run.len() as u64)))
        .collect();
    if runs.next().is_some() {
        words.push("…".to_owned());
    }
    words.join(",")
}

/// How many runs of equal bytes [`describe_bytes`] tells.
pub const RUNS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_verb_has_words() {
        for verb in Verb::ALL {
            let named = [Verb::of_script(verb.name()), Verb::of_server(verb.name())];
            let expected = [verb.is_for_scripts(), verb.is_for_servers()];
            for (found, expected) in named.into_iter().zip(expected) {
                assert_eq!(found == Some(*verb), expected, "{verb}");
            }
            assert!(verb.doc().ends_with('.') && !verb.section().is_empty());
        }
    }

    #[test]
    fn the_help_of_every_request_says_what_each_argument_is() {
        for verb in Verb::ALL.iter().filter(|verb| verb.is_for_servers()) {
            assert!(verb.params().iter().all(|parameter| parameter.doc.is_some()), "{verb}");
        }
    }

    #[test]
    fn bytes_in_words() {
        assert_eq!(describe_bytes(b"aaaa", 4), "a");
        assert_eq!(describe_bytes(b"", 4), "eof");
        assert_eq!(describe_bytes(&[0; 3], 4), "zeros:3B");
        assert_eq!(describe_bytes(b"aab\0", 4), "a:2B,b:1B,zeros:1B");
        assert_eq!(describe_bytes(&[7], 1), "x07");
    }
}
