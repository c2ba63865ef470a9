//! Reads a `result.json` back.
//!
//! Invariant: a file is read as a whole or refused. The version is checked first, so that a file of
//! another version gives an error about the version, not about an unknown field. At most
//! [`MAX_RESULT_BYTES`] are read.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::run::{RunResult, SCHEMA_VERSION};

/// The largest `result.json` that is read, in bytes: a hundred times what ten designs with full
/// findings need.
pub const MAX_RESULT_BYTES: u64 = 256 << 20;

/// Why a result could not be read.
#[derive(Debug, Error)]
pub enum ResultReadError {
    /// The file could not be opened or read.
    #[error("{}: cannot read the result: {source}", file.display())]
    Io {
        /// The file asked for.
        file: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file is larger than [`MAX_RESULT_BYTES`].
    #[error("{}: too large for a result: more than {MAX_RESULT_BYTES} bytes; is this a result.json?", file.display())]
    TooLarge {
        /// The file asked for.
        file: PathBuf,
    },
    /// The file is not JSON, or its JSON has another shape.
    #[error(
        "{}:{line}:{column}: not a result of schema {SCHEMA_VERSION}: {what}; \
         docs/result-schema.md describes the format",
        file.display()
    )]
    Malformed {
        /// The file asked for.
        file: PathBuf,
        /// The line of the fault, from 1.
        line: usize,
        /// The column of the fault, from 1; 0 if the fault is the end of the line.
        column: usize,
        /// What is wrong there.
        what: String,
    },
    /// The result has another version of the format.
    #[error(
        "{}:{line}:{column}: the result has schema {found}, this daxlab reads schema {SCHEMA_VERSION}; \
         use the version that wrote it, or run the job again",
        file.display()
    )]
    Schema {
        /// The file asked for.
        file: PathBuf,
        /// The line of the `schema` field's value, from 1.
        line: usize,
        /// The column of its last digit, from 1.
        column: usize,
        /// The file's version.
        found: u64,
    },
}

/// The one field that every version of the format has.
#[derive(Deserialize)]
struct SchemaField {
    schema: u64,
}

impl RunResult {
    /// Reads the text of a `result.json`. `file` appears in errors only.
    ///
    /// # Errors
    /// [`ResultReadError::Malformed`] and [`ResultReadError::Schema`], with line and column.
    ///
    /// ```
    /// use reports::RunResult;
    /// let error = RunResult::from_json("{\n  \"schema\": 9\n}", "old.json".as_ref()).unwrap_err();
    /// assert!(error.to_string().starts_with("old.json:2:13: the result has schema 9"), "{error}");
    /// ```
    pub fn from_json(text: &str, file: &Path) -> Result<RunResult, ResultReadError> {
        let malformed = |error: serde_json::Error| {
            let what = error.to_string();
            // serde_json's message ends with the position. Remove it: this error begins with the
            // position.
            let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(message, _)| message).to_owned();
            ResultReadError::Malformed { file: file.to_owned(), line: error.line(), column: error.column(), what }
        };
        let version: SchemaField = serde_json::from_str(text).map_err(malformed)?;
        if version.schema != u64::from(SCHEMA_VERSION) {
            let (line, column) = schema_position(text);
            return Err(ResultReadError::Schema { file: file.to_owned(), line, column, found: version.schema });
        }
        serde_json::from_str(text).map_err(malformed)
    }

    /// Reads a `result.json`.
    ///
    /// # Errors
    /// Those of [`RunResult::from_json`]; [`ResultReadError::Io`], also if the file is not UTF-8;
    /// [`ResultReadError::TooLarge`].
    pub fn read(file: &Path) -> Result<RunResult, ResultReadError> {
        let io_error = |source| ResultReadError::Io { file: file.to_owned(), source };
        let mut text = String::new();
        // Reading one byte more than allowed detects a file that is too large, even one that grows
        // during the read.
        let mut bounded = File::open(file).map_err(io_error)?.take(MAX_RESULT_BYTES + 1);
        bounded.read_to_string(&mut text).map_err(io_error)?;
        if text.len() as u64 > MAX_RESULT_BYTES {
            return Err(ResultReadError::TooLarge { file: file.to_owned() });
        }
        RunResult::from_json(&text, file)
    }
}

/// Line and column of the top-level `schema` field's value. A visitor that accepts only our version
/// fails exactly there.
fn schema_position(text: &str) -> (usize, usize) {
    struct OwnSchema;
    impl serde::de::Visitor<'_> for OwnSchema {
        type Value = OwnSchema;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "schema {SCHEMA_VERSION}")
        }
        fn visit_u64<E: serde::de::Error>(self, found: u64) -> Result<OwnSchema, E> {
            if found == u64::from(SCHEMA_VERSION) { Ok(self) } else { Err(E::custom("another schema")) }
        }
    }
    impl<'de> Deserialize<'de> for OwnSchema {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_u64(OwnSchema)
        }
    }
    #[derive(Deserialize)]
    struct SchemaProbe {
        #[serde(rename = "schema")]
        _schema: OwnSchema,
    }
    serde_json::from_str::<SchemaProbe>(text).map_or_else(|error| (error.line(), error.column()), |_| (1, 1))
}
