//! From text to a scenario.
//!
//! It owns the grammar (`docs/scenarios.md`). Invariants: a parsed scenario holds [`super`]'s; a
//! name is used only below the line that binds it, and only as what it is bound to; every error
//! points at its line and column. Nothing is run here.

mod arguments;
mod outcome;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::input::{self, InputError, Size, Source};
use emulator::device::FOLIO;
use fs_sim::design::{Platform, VolumeOptions, WriteBreak};

use super::condition::Condition;
use super::lex::{Token, words};
use super::{
    Action, Actor, Contents, FileSetup, Of, Query, QuerySubject, STUCK, SYSTEM, Scenario, Setup, Step, processes_named,
};
use crate::ops::{BindingKind, Op, RunsOn, SignalName, Verb};

/// The most lines a scenario may have.
const LINES_MAX: usize = 4096;
/// The most processes and threads of a scenario.
const ACTORS_MAX: usize = 32;
/// The largest simulated device of a scenario: 1 GiB.
const DEVICE_MAX: u64 = 1 << 30;
/// The device of a scenario that asks for no other: 64 MiB.
const DEVICE: u64 = 64 << 20;

/// What a name is bound to. A received descriptor can be of any kind.
#[derive(Clone, Copy, Debug)]
enum Bound {
    Known(BindingKind),
    AnyDescriptor,
}

/// A scenario being read.
struct Parser<'a> {
    source: &'a Source,
    designs: &'a [&'a str],
    setup: Setup,
    steps: Vec<Step>,
    bound: BTreeMap<String, Bound>,
    /// Processes, and whether they were forked (or are the first of their name).
    actors: BTreeMap<Actor, Range<usize>>,
    /// The options of the volume that are set, and where.
    options: BTreeMap<&'a str, Range<usize>>,
    /// Where the size of each file stands.
    sizes_at: Vec<Range<usize>>,
}

/// The first line.
struct Title {
    id: String,
    id_at: Range<usize>,
    title: String,
    line: Range<usize>,
}

impl Scenario {
    /// Parses a scenario. `designs` are the names that conditions may use.
    ///
    /// # Errors
    /// Whatever is wrong first, at its line and column.
    pub fn parse(source: &Source, designs: &[&str]) -> Result<Scenario, InputError> {
        let Title { id, id_at, title, line: title_at } = title(source)?;
        let mut parser = Parser {
            source,
            designs,
            setup: Setup {
                device: DEVICE,
                options: VolumeOptions::default(),
                memlock: None,
                files: Vec::new(),
                linux: false,
                dax: false,
            },
            steps: Vec::new(),
            bound: BTreeMap::new(),
            actors: BTreeMap::new(),
            options: BTreeMap::new(),
            sizes_at: Vec::new(),
        };
        let mut at = 0;
        for (n, line) in source.text().split_inclusive('\n').enumerate() {
            let span = at..at + line.trim_end_matches(['\n', '\r']).len();
            at += line.len();
            if n >= LINES_MAX {
                return Err(source.error(span, format!("a scenario has at most {LINES_MAX} lines")));
            }
            let tokens = words(source, span)?;
            if !tokens.is_empty() {
                parser.line(&tokens)?;
            }
        }
        let (setup, steps) = parser.finish(title_at)?;
        Ok(Scenario { id, id_at, title, source: source.clone(), setup, steps })
    }
}

/// Id and title from the first line, `# S18: munmap and close with live pins`.
fn title(source: &Source) -> Result<Title, InputError> {
    let first = source.text().lines().next().unwrap_or_default();
    let line = 0..first.len();
    let Some(text) = first.trim().strip_prefix('#').map(str::trim).filter(|text| !text.is_empty()) else {
        return Err(source.error(line, "a scenario begins with its title").help("write `# S18: munmap and close`"));
    };
    if let Some(control) = first.find(char::is_control) {
        return Err(source.error(control..control + 1, "the title has a control character").help("leave it out"));
    }
    if let Some((id, title)) = text.split_once(':')
        && let id = id.trim()
        && !id.is_empty()
        && !id.contains(char::is_whitespace)
    {
        // Nothing but blanks and the `#` stands before it.
        let at = first.find(id).unwrap_or_default();
        return Ok(Title { id: id.to_owned(), id_at: at..at + id.len(), title: title.trim().to_owned(), line });
    }
    let stem = std::path::Path::new(source.name()).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    Ok(Title { id: stem.unwrap_or_default(), id_at: line.clone(), title: text.to_owned(), line })
}

impl<'a> Parser<'a> {
    fn line(&mut self, tokens: &[Token<'a>]) -> Result<(), InputError> {
        let first = &tokens[0];
        match first.text {
            "volume" => self.volume(tokens),
            "file" => self.file(tokens),
            "linux" => {
                self.before_steps(first)?;
                self.setup.linux = true;
                self.setup.dax = match &tokens[1..] {
                    [] => false,
                    [word] if word.text == "dax" => true,
                    [word, ..] => {
                        let title = format!("`{}` stands behind `linux`", input::shown(word.text));
                        let help = "write `linux`, or `linux dax` if only a file system with DAX will do";
                        return Err(self.source.error(word.span.clone(), title).help(help));
                    }
                };
                Ok(())
            }
            _ => self.step(tokens),
        }
    }

    fn before_steps(&self, token: &Token<'_>) -> Result<(), InputError> {
        match self.steps.is_empty() {
            true => Ok(()),
            false => Err(self
                .source
                .error(token.span.clone(), format!("`{}` stands before the first step", token.text))
                .help("move this line to the top")),
        }
    }

    /// `volume size=64MiB write_break=precise lease_break_time=45s memlock=1MiB platform=adr`.
    fn volume(&mut self, tokens: &[Token<'a>]) -> Result<(), InputError> {
        self.before_steps(&tokens[0])?;
        for token in &tokens[1..] {
            let Some((key, value)) = token.text.split_once('=') else {
                return Err(self.source.error(token.span.clone(), format!("`{}` is no `key=value`", token.text)));
            };
            let at = token.span.end - value.len()..token.span.end;
            self.set_once(key, token.span.start..token.span.start + key.len())?;
            match key {
                "size" => self.setup.device = self.device_size(value, at)?,
                "memlock" => self.setup.memlock = Some(self.size(value, at)?),
                "lease_break_time" => {
                    let time: input::Duration = value.parse().map_err(|error| self.unit(at, &error))?;
                    self.setup.options.lease_break_time = time.0;
                }
                "write_break" => {
                    self.setup.options.write_break = match value {
                        "precise" => WriteBreak::Precise,
                        "conservative" => WriteBreak::Conservative,
                        _ => {
                            let words = ["precise", "conservative"];
                            return Err(self.source.unknown_word(at, "write_break", value, words));
                        }
                    }
                }
                "platform" => {
                    self.setup.options.platform = match value {
                        "eadr" => Platform::Eadr,
                        "adr" => Platform::Adr,
                        _ => return Err(self.source.unknown_word(at, "platform", value, ["eadr", "adr"])),
                    }
                }
                _ => {
                    let key_at = token.span.start..token.span.start + key.len();
                    let keys = ["size", "memlock", "lease_break_time", "write_break", "platform"];
                    return Err(self.source.unknown_word(key_at, "option", key, keys));
                }
            }
        }
        Ok(())
    }

    fn set_once(&mut self, key: &'a str, at: Range<usize>) -> Result<(), InputError> {
        let Some(earlier) = self.options.insert(key, at.clone()) else { return Ok(()) };
        let (line, column) = self.source.line_column(earlier.start);
        Err(self
            .source
            .error(at, format!("`{}` is set a second time", input::shown(key)))
            .help(format!("it is set in line {line}, column {column} already: keep one of them")))
    }

    fn device_size(&self, value: &str, at: Range<usize>) -> Result<u64, InputError> {
        let size = self.size(value, at.clone())?;
        if size == 0 || size > DEVICE_MAX || !size.is_multiple_of(FOLIO) {
            let help = format!("a multiple of {}, at most {}", Size(FOLIO), Size(DEVICE_MAX));
            return Err(self.source.error(at, "no size for the device of a scenario").help(help));
        }
        Ok(size)
    }

    /// `file NAME SIZE [BYTE|hole|unwritten]`.
    fn file(&mut self, tokens: &[Token<'a>]) -> Result<(), InputError> {
        self.before_steps(&tokens[0])?;
        let [_, name, size, rest @ ..] = tokens else {
            let all = tokens[0].span.start..tokens[tokens.len() - 1].span.end;
            return Err(self.source.error(all, "a file has a name and a size").help("write `file data 4MiB`"));
        };
        if self.setup.files.iter().any(|file| file.name == name.text) {
            return Err(self.source.error(name.span.clone(), format!("there is a file `{}` already", name.text)));
        }
        let bytes = self.size(size.text, size.span.clone())?;
        if bytes > DEVICE_MAX {
            return Err(self.source.error(size.span.clone(), "a file of a scenario has at most 1GiB"));
        }
        let contents = match rest {
            [] => Contents::Byte(b'a'),
            [word] => match word.text {
                "hole" => Contents::Hole,
                "unwritten" => Contents::Unwritten,
                _ => Contents::Byte(self.byte(word)?),
            },
            [_, extra, ..] => return Err(self.extra(extra)),
        };
        self.setup.files.push(FileSetup { name: name.text.to_owned(), size: bytes, contents });
        self.sizes_at.push(size.span.clone());
        Ok(())
    }

    fn step(&mut self, tokens: &[Token<'a>]) -> Result<(), InputError> {
        let span = tokens[0].span.start..tokens[tokens.len() - 1].span.end;
        let (guard, tokens) = match tokens {
            [when, condition, rest @ ..] if when.text == "when" => {
                let text = condition.text.strip_prefix('@').unwrap_or(condition.text);
                let at = condition.span.end - text.len()..condition.span.end;
                (Some(Condition::parse(self.source, at, self.designs)?), rest)
            }
            _ => (None, tokens),
        };
        let arrow = tokens.iter().position(|token| !token.quoted && matches!(token.text, "->" | "=>"));
        let (left, right) = tokens.split_at(arrow.unwrap_or(tokens.len()));
        let Some(first) = left.first() else {
            return Err(self.source.error(span, "a step is missing here").help(STEP_HELP));
        };
        let action = match (first.text, left) {
            ("advance", [_, time]) => {
                let time: input::Duration = time.text.parse().map_err(|error| self.unit(time.span.clone(), &error))?;
                Action::Advance(time.0)
            }
            ("kill", [_, process, signal]) => Action::Kill {
                process: self.process(process)?,
                signal: self.choice(signal, "signal", SignalName::WORDS)?,
            },
            ("expect", [_, stuck, rest @ ..]) if stuck.text == STUCK => self.stuck(stuck, rest, right)?,
            ("expect", [_, rest @ ..]) => Action::Expect(self.query(first, rest)?),
            ("blockers", [_, rest @ ..]) => Action::Expect(self.query(first, rest)?),
            (name, [_, rest @ ..]) if name.ends_with(':') => self.actors_turn(first, rest)?,
            _ => {
                return Err(self
                    .source
                    .error(first.span.clone(), format!("`{}` begins no line", input::shown(first.text)))
                    .help(STEP_HELP));
            }
        };
        let asks = right.first().is_some_and(|arrow| arrow.text == "=>");
        let stated = right.get(1..).unwrap_or_default();
        if let (Action::Expect(_) | Action::Returns(_), true) = (&action, stated.is_empty()) {
            return Err(self
                .source
                .error(span, "what must come of it is missing")
                .help("end the line with `-> OUTCOME`"));
        }
        if arrow.is_some() && stated.is_empty() {
            let at = right[0].span.clone();
            return Err(self.source.error(at, "an outcome is missing behind the arrow"));
        }
        let expected = self.alternatives(&action, stated, &span)?;
        self.bind(&action, &tokens[0])?;
        let elsewhere = guard.as_ref().is_some_and(Condition::excludes_linux);
        if self.setup.linux && !elsewhere {
            self.check_linux(&action, &span)?;
        }
        self.steps.push(Step { span, guard, action, expected, asks });
        Ok(())
    }

    fn query(&self, first: &Token<'a>, rest: &[Token<'a>]) -> Result<Query, InputError> {
        let (word, rest) = match (first.text, rest) {
            ("blockers", rest) => (first, rest),
            (_, [word, rest @ ..]) => (word, rest),
            (_, []) => return Err(self.source.error(first.span.clone(), "what to look at is missing")),
        };
        let names = QuerySubject::ALL.iter().map(|subject| subject.facts().0);
        let Some(subject) = QuerySubject::ALL.into_iter().find(|subject| subject.facts().0 == word.text) else {
            let names = names.chain([STUCK]);
            return Err(self.source.unknown_word(word.span.clone(), "thing to look at", word.text, names));
        };
        let of = match (subject.facts().1, rest) {
            (Of::Nothing, []) => String::new(),
            (Of::File, [name]) => name.text.to_owned(),
            (Of::Process, [name]) => self.process(name)?,
            (_, [_, extra, ..]) | (Of::Nothing, [extra, ..]) => return Err(self.extra(extra)),
            (_, []) => return Err(self.source.error(word.span.clone(), format!("`{}` of what?", word.text))),
        };
        Ok(Query { subject, of })
    }

    /// `expect stuck A`: it says all by itself.
    fn stuck(&self, word: &Token<'a>, rest: &[Token<'a>], right: &[Token<'a>]) -> Result<Action, InputError> {
        let usage = "write `expect stuck A`; `blocked` tells what it waits for";
        let who = match (rest, right) {
            ([who], []) => who,
            ([], _) => return Err(self.source.error(word.span.clone(), "who is stuck is missing").help(usage)),
            ([_, extra, ..], _) | (_, [extra, ..]) => return Err(self.extra(extra).help(usage)),
        };
        let actor = self.actor(who)?;
        match self.actors.contains_key(&actor) {
            true => Ok(Action::Stuck(actor)),
            false => Err(self.source.error(who.span.clone(), format!("{actor} has begun no call that could block"))),
        }
    }

    /// Refuses `returns` where under no design a call of `actor` can have blocked.
    fn check_returns(&self, actor: &Actor, at: Range<usize>) -> Result<(), InputError> {
        let of_actor = |step: &&Step| match &step.action {
            Action::Perform { actor: who, .. } | Action::Returns(who) => who == actor,
            _ => false,
        };
        let mut last = None;
        for step in self.steps.iter().rev().filter(of_actor) {
            if step.expected.iter().any(|stated| stated.outcome.split(' ').next() == Some("blocks")) {
                return Ok(());
            }
            last = last.or(Some(step));
            // Under every design, this call has returned at once.
            if step.guard.is_none() {
                break;
            }
        }
        let title = match last {
            None => format!("{actor} has done nothing yet that could return"),
            Some(step) => {
                let (line, _) = self.source.line_column(step.span.start);
                format!("{actor}'s call of line {line} blocks under no design: nothing is left that could return")
            }
        };
        Err(self.source.error(at, title).help("state `blocks` where the call begins, or take this line away"))
    }

    /// `A: f = open data rw`, `A: returns`.
    fn actors_turn(&mut self, who: &Token<'a>, rest: &[Token<'a>]) -> Result<Action, InputError> {
        let actor = self.actor(who)?;
        let (bind, rest) = match rest {
            [name, equals, rest @ ..] if equals.text == "=" => (Some(name), rest),
            _ => (None, rest),
        };
        let Some((verb_at, arguments)) = rest.split_first() else {
            return Err(self.source.error(who.span.clone(), "an operation is missing").help(STEP_HELP));
        };
        if verb_at.text == "returns" && bind.is_none() {
            if let [extra, ..] = arguments {
                return Err(self.extra(extra));
            }
            self.check_returns(&actor, who.span.start..who.span.end - 1)?;
            return Ok(Action::Returns(actor));
        }
        let Some(verb) = Verb::of_script(verb_at.text) else {
            let in_scripts = Verb::ALL.iter().filter(|verb| verb.is_for_scripts());
            let names = in_scripts.map(|verb| verb.name()).chain(["returns"]);
            let error = self.source.unknown_word(verb_at.span.clone(), "operation", verb_at.text, names);
            return Err(error.help("docs/scenarios.md lists every operation"));
        };
        let args = self.arguments(verb, verb_at, arguments)?;
        let op =
            Op::from_args(verb, &args).map_err(|error| self.source.error(verb_at.span.clone(), error.to_string()))?;
        let bind = match (verb.binds(), bind) {
            (Some(kind), Some(name)) => Some(self.new_name(kind, name)?),
            (None, Some(name)) => {
                let title = format!("`{verb}` makes nothing that could be called `{}`", name.text);
                return Err(self.source.error(name.span.clone(), title));
            }
            (Some(_), None) => {
                let title = format!("what `{verb}` makes needs a name");
                return Err(self.source.error(verb_at.span.clone(), title).help(format!("write `{}`", verb.usage())));
            }
            (None, None) => None,
        };
        self.meet(actor.clone(), who.span.clone())?;
        for process in processes_named(&op) {
            self.meet(Actor { process, thread: 1 }, verb_at.span.clone())?;
        }
        Ok(Action::Perform { actor, op, bind })
    }

    fn actor(&self, who: &Token<'a>) -> Result<Actor, InputError> {
        let name = who.text.trim_end_matches(':');
        let (process, thread) = match name.split_once('.') {
            None => (name, 1),
            Some((process, thread)) => match thread.parse() {
                Ok(thread @ 2..=16) => (process, thread),
                _ => {
                    let at = who.span.start + process.len() + 1..who.span.start + name.len();
                    return Err(self.source.error(at, "a further thread has a number from 2 to 16"));
                }
            },
        };
        if process != SYSTEM && !is_process_name(process) {
            return Err(self
                .source
                .error(who.span.start..who.span.start + process.len(), format!("`{process}` is no process's name"))
                .help(
                    "a process is called by a capital letter and letters or digits: `A`, `Child2`; or it is `system`",
                ));
        }
        Ok(Actor { process: process.to_owned(), thread })
    }

    fn meet(&mut self, actor: Actor, at: Range<usize>) -> Result<(), InputError> {
        self.actors.entry(actor).or_insert(at.clone());
        match self.actors.len() > ACTORS_MAX {
            true => Err(self.source.error(at, format!("a scenario has at most {ACTORS_MAX} processes and threads"))),
            false => Ok(()),
        }
    }

    /// A name that is not taken, of the right case for `kind`.
    fn new_name(&self, kind: BindingKind, name: &Token<'a>) -> Result<String, InputError> {
        let good = match kind {
            BindingKind::Process => is_process_name(name.text),
            _ => is_bound_name(name.text),
        };
        if !good {
            let help = match kind {
                BindingKind::Process => "a process is called by a capital letter and letters or digits",
                _ => "a name is a small letter and small letters, digits or `_`",
            };
            return Err(self.source.error(name.span.clone(), format!("`{}` is no such name", name.text)).help(help));
        }
        if kind == BindingKind::Process && self.actors.keys().any(|actor| actor.process == name.text) {
            return Err(self.source.error(name.span.clone(), format!("there is a process `{}` already", name.text)));
        }
        Ok(name.text.to_owned())
    }

    /// Makes the names that a step binds known.
    fn bind(&mut self, action: &Action, at: &Token<'a>) -> Result<(), InputError> {
        let Action::Perform { op, bind: Some(name), .. } = action else { return Ok(()) };
        let kind = match (op, op.verb().binds()) {
            (Op::Recv {}, _) => Bound::AnyDescriptor,
            (Op::Dup { fd }, _) => self.bound.get(&fd.0).copied().unwrap_or(Bound::AnyDescriptor),
            (_, Some(BindingKind::Process)) => {
                return self.meet(Actor { process: name.clone(), thread: 1 }, at.span.clone());
            }
            (_, Some(kind)) => Bound::Known(kind),
            (_, None) => return Ok(()),
        };
        self.bound.insert(name.clone(), kind);
        Ok(())
    }

    fn check_linux(&self, action: &Action, span: &Range<usize>) -> Result<(), InputError> {
        let what = match action {
            Action::Perform { op, .. } if op.verb().on() == RunsOn::Simulation => format!("`{}`", op.verb()),
            Action::Expect(query) if !query.subject.facts().2 => format!("a look at `{}`", query.subject.facts().0),
            _ => return Ok(()),
        };
        Err(self
            .source
            .error(span.clone(), format!("a real Linux can't do {what}"))
            .help("take the line `linux` away, use operations that docs/scenarios.md marks, or begin the line with `when @!linux`"))
    }

    fn process(&self, token: &Token<'a>) -> Result<String, InputError> {
        if self.actors.keys().any(|actor| actor.process == token.text) {
            return Ok(token.text.to_owned());
        }
        let known = self.actors.keys().map(|actor| actor.process.as_str());
        Err(self.source.unknown_word(token.span.clone(), "process", token.text, known))
    }

    /// A process that an operation names. It starts when it is first heard of, also here.
    fn named_process(&self, token: &Token<'a>) -> Result<String, InputError> {
        match is_process_name(token.text) {
            true => Ok(token.text.to_owned()),
            false => self.process(token),
        }
    }

    /// Refuses files for which the volume has no room.
    fn check_room(&self) -> Result<(), InputError> {
        let mut room = self.setup.device;
        for (file, at) in self.setup.files.iter().zip(&self.sizes_at) {
            let taken = match file.contents {
                Contents::Hole => 0,
                _ => file.size.next_multiple_of(fs_sim::BLOCK),
            };
            room = room.checked_sub(taken).ok_or_else(|| {
                let (device, left) = (Size(self.setup.device), Size(room));
                self.source
                    .error(at.clone(), format!("the file `{}` does not fit into the volume", input::shown(&file.name)))
                    .help(format!("the device has {device}, of which {left} are left: write `volume size=` for more"))
            })?;
        }
        Ok(())
    }

    fn finish(self, title_at: Range<usize>) -> Result<(Setup, Vec<Step>), InputError> {
        self.check_room()?;
        if self.steps.is_empty() {
            return Err(self.source.error(title_at, "nothing happens in this scenario").help(STEP_HELP));
        }
        if !self.steps.iter().any(|step| step.asks) {
            return Err(self
                .source
                .error(title_at, "no step of this scenario is its question")
                .help("write `=>` instead of `->` in the step whose outcome it is about"));
        }
        Ok((self.setup, self.steps))
    }
}

fn is_process_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn is_bound_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

const STEP_HELP: &str = "a step is `A: OPERATION …`, `advance TIME`, `kill A SIGNAL`, `expect THING …` or `blockers FILE`, then `-> OUTCOME`";
