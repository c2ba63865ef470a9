//! The table of operations that `daxlab ctl` can ask for.
//!
//! It owns each one's name, typed arguments and documentation. The type [`ControlOp`], its JSON
//! form on the control socket, the command line of `daxlab ctl` and its reference all come from
//! this one table. Sizes and offsets are in bytes.

use serde::{Deserialize, Serialize};

/// The syntax of an argument on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlSyntax {
    /// A word: a file's name, or text.
    Word,
    /// A word that may be left out.
    MaybeWord,
    /// A number of bytes, with its unit unless it is 0.
    Size,
    /// A whole number.
    Number,
    /// `on` or `off`; `true` or `false` in JSON.
    Switch,
    /// The option `--seed S`, a whole number.
    Seed,
}

/// Whether an answer can take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnswerDelay {
    /// It may take any time: a guest, a user or another process decides when.
    MayWait,
    /// The server answers at once.
    AtOnce,
}

/// An argument of a row.
#[derive(Clone, Copy, Debug)]
pub struct ControlArg {
    /// The name in JSON.
    pub name: &'static str,
    /// The name in the help of the command line.
    pub value_name: &'static str,
    /// Its syntax.
    pub syntax: ControlSyntax,
    /// One line on what it means.
    pub doc: &'static str,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct ControlRow {
    /// The name on the command line and in JSON.
    pub name: &'static str,
    /// One line on what it does.
    pub doc: &'static str,
    /// Its arguments.
    pub args: &'static [ControlArg],
}

macro_rules! control_operations {
    ($($variant:ident $name:literal $delay:ident $doc:literal { $($field:ident: $type:ty as $syntax:ident $value_name:literal $field_doc:literal),* $(,)? };)+) => {
        /// One operation with its arguments.
        ///
        /// ```
        /// use workloads::ops::ControlOp;
        ///
        /// let op = ControlOp::Truncate { file: "data".to_owned(), size: 4096 };
        /// let line = r#"{"command":"truncate","file":"data","size":4096}"#;
        /// assert_eq!(serde_json::to_string(&op).unwrap(), line);
        /// assert!(op.may_wait());
        /// ```
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(tag = "command", deny_unknown_fields)]
        pub enum ControlOp {
            $(
                #[doc = $doc]
                #[serde(rename = $name)]
                $variant { $(#[doc = $field_doc] $field: $type),* },
            )+
        }

        impl ControlOp {
            /// Every operation, in the order of the help.
            pub const TABLE: &[ControlRow] = &[$(ControlRow {
                name: $name,
                doc: $doc,
                args: &[$(ControlArg {
                    name: stringify!($field),
                    value_name: $value_name,
                    syntax: ControlSyntax::$syntax,
                    doc: $field_doc,
                }),*],
            }),+];

            /// Whether the answer may take any time, because a guest, a user or another process
            /// must act first. The counters of all guests count too: the server waits for each
            /// guest's backend as long as it must.
            pub fn may_wait(&self) -> bool {
                let delay = match self {
                    $(ControlOp::$variant { .. } => AnswerDelay::$delay),+
                };
                delay == AnswerDelay::MayWait
            }
        }
    };
}

control_operations! {
    Blockers "blockers" AtOnce "Who stands against a layout change of a file, and who waits for whom" {
            file: String as Word "FILE" "The file's name, or its inode's number",
    };
    Leases "leases" AtOnce "The layout leases of a file, or of all files" {
            file: Option<String> as MaybeWord "FILE" "The file's name, or its inode's number",
    };
    Pins "pins" AtOnce "The long-term pins of a file, or of all files" {
            file: Option<String> as MaybeWord "FILE" "The file's name, or its inode's number",
    };
    Truncate "truncate" MayWait "Truncate a file, as a process of its own; waits as long as the design does, Ctrl-C gives up" {
            file: String as Word "FILE" "The file's name",
            size: u64 as Size "SIZE" "Its new size, such as `64MiB` or `0`",
    };
    Punch "punch" MayWait "Punch a hole into a file, as a process of its own" {
            file: String as Word "FILE" "The file's name",
            offset: u64 as Size "OFFSET" "Where the hole begins",
            len: u64 as Size "LEN" "How long it is",
    };
    Fallocate "fallocate" MayWait "Allocate a range of a file, as a process of its own" {
            file: String as Word "FILE" "The file's name",
            offset: u64 as Size "OFFSET" "Where the range begins",
            len: u64 as Size "LEN" "How long it is",
    };
    Guests "guests" AtOnce "The guests and the state of each" {};
    FlushStats "flush-stats" MayWait "The counters of the guests' devices: requests, flushes, failures, maps" {};
    Stale "stale" AtOnce "Pages that guests have mapped and that have left their file" {};
    Poison "poison" AtOnce "Poison blocks of a file: the host and the NIC fail on them (a guest can't be told)" {
            file: String as Word "FILE" "The file's name, or its inode's number",
            offset: u64 as Size "OFFSET" "Where the range begins",
            len: u64 as Size "LEN" "How long it is; whole blocks of 4 KiB are poisoned",
    };
    PowerCut "power-cut" MayWait "Cut the guests' power: what was not flushed survives line by line, by chance (needs `serve --power-cut-model`)" {
            seed: Option<u64> as Seed "S" "What decides which lines survive; the server's own seed if not given",
    };
    FailFlush "fail-flush" MayWait "Make every flush fail, or let flushes succeed again" {
            on: bool as Switch "SWITCH" "Whether they fail",
    };
    Revoke "revoke" MayWait "Take a file (without a name: all, or the image) from the guests that have it" {
            file: Option<String> as MaybeWord "FILE" "The file's name",
    };
    RdmaReg "rdma-reg" MayWait "Register a file that a guest has as an RDMA region, in the process that has it for the guest" {
            file: String as Word "FILE" "The file's name",
    };
    RdmaWrite "rdma-write" AtOnce "Write into a region by RDMA, as a client of the NIC" {
            mr: u64 as Number "MR" "The region's number",
            offset: u64 as Size "OFFSET" "Where in the region",
            text: String as Word "TEXT" "What",
    };
    RdmaRead "rdma-read" AtOnce "Read from a region by RDMA, as a client of the NIC" {
            mr: u64 as Number "MR" "The region's number",
            offset: u64 as Size "OFFSET" "Where in the region",
            len: u64 as Size "LEN" "How much, at most 1MiB",
    };
    RdmaDereg "rdma-dereg" MayWait "Deregister a region" {
            mr: u64 as Number "MR" "The region's number",
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_reads_its_own_json() {
        for row in ControlOp::TABLE {
            let mut line = serde_json::Map::from_iter([("command".to_owned(), row.name.into())]);
            for arg in row.args {
                let value: serde_json::Value = match arg.syntax {
                    ControlSyntax::Word | ControlSyntax::MaybeWord => "data".into(),
                    ControlSyntax::Size | ControlSyntax::Number | ControlSyntax::Seed => 1.into(),
                    ControlSyntax::Switch => true.into(),
                };
                line.insert(arg.name.to_owned(), value);
            }
            let line = serde_json::Value::Object(line);
            let op: ControlOp = serde_json::from_value(line.clone()).unwrap();
            assert_eq!(serde_json::to_value(op).unwrap(), line);
        }
    }

    #[test]
    fn an_unknown_field_is_refused() {
        assert!(serde_json::from_str::<ControlOp>(r#"{"command":"pins","files":"data"}"#).is_err());
    }
}
