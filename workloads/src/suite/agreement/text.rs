//! Writes steps in the language of scenarios.
//!
//! It owns the way back from an operation to its text. Invariant: the parser reads the text as the
//! same operation. Kernel counterpart: none.

use crate::input::Size;

use super::view::AgreementStep;
use crate::language::{Contents, FileSetup};
use crate::ops::{Arg, Op, Param};

/// A line of a scenario, and its outcome on both machines.
#[derive(Clone, Debug)]
pub(super) struct ScenarioLine {
    pub(super) text: String,
    pub(super) outcome: String,
}

/// `A: f = open data rw`.
pub(super) fn step(step: &AgreementStep) -> String {
    let bind = step.bind.as_ref().map(|name| format!("{name} = ")).unwrap_or_default();
    format!("{}: {bind}{}", step.process, op(&step.op))
}

fn op(op: &Op) -> String {
    let mut words = vec![op.verb().name().to_owned()];
    for (arg, parameter) in op.args().iter().zip(op.verb().params()) {
        match (arg, parameter.syntax) {
            (Arg::Name(name), _) => words.push(name.clone()),
            (Arg::Number(number), Param::Number) => words.push(number.to_string()),
            (Arg::Number(number), _) => words.push(Size(*number).to_string()),
            (Arg::Absent, _) => {}
            (Arg::Range(range), _) => {
                words.push(Size(range.offset).to_string());
                words.push(if range.len == u64::MAX { "inf".to_owned() } else { Size(range.len).to_string() });
            }
            (Arg::Byte(0), _) => words.push("zeros".to_owned()),
            (Arg::Byte(byte), _) => words.push(char::from(*byte).to_string()),
            (Arg::Word(word), _) => words.push((*word).to_owned()),
            (Arg::Words(all), _) => words.extend(all.iter().map(|word| (*word).to_owned())),
        }
    }
    words.join(" ")
}

fn file(file: &FileSetup) -> String {
    let contents = match file.contents {
        Contents::Byte(byte) => char::from(byte).to_string(),
        Contents::Hole => "hole".to_owned(),
        Contents::Unwritten => "unwritten".to_owned(),
    };
    format!("file {} {} {contents}", file.name, Size(file.size))
}

/// A whole scenario whose last step shows the difference. `other` is the other machine's answer
/// there. The scenario ends by killing every process in `blocked`.
pub(super) fn scenario(
    title: &str,
    files: &[FileSetup],
    lines: &[ScenarioLine],
    other: &str,
    blocked: &[String],
) -> String {
    let mut text = format!("# {title}\nlinux\n");
    for setup in files {
        text += &format!("{}\n", file(setup));
    }
    for (n, ScenarioLine { text: step, outcome }) in lines.iter().enumerate() {
        match n + 1 == lines.len() {
            false => text += &format!("{step} -> {outcome}\n"),
            true => text += &format!("{step} => {outcome}  # elsewhere: {other}\n"),
        }
    }
    for name in blocked {
        text += &format!("kill {name} SIGKILL\n{name}: returns -> killed\n");
    }
    text
}
