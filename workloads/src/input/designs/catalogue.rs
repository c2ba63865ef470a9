//! The designs that can be named: the presets, and the designs of files named on the command line.
//!
//! Invariant: names are unique across presets and files, so the `name` in a result is unambiguous.

use std::path::{Path, PathBuf};

use super::entry::{ALL, DesignEntry, all_preset_entries, preset_entries};
use super::parse::parse_beside;
use crate::input::{InputError, Source};

/// The designs that can be named: presets first, then files in the order they were loaded.
#[derive(Clone, Debug)]
pub struct DesignCatalogue {
    entries: Vec<DesignEntry>,
    /// Canonical paths of the loaded files, and the positions of their designs in `entries`.
    files: Vec<(PathBuf, std::ops::Range<usize>)>,
}

impl Default for DesignCatalogue {
    /// The presets alone.
    fn default() -> Self {
        DesignCatalogue { entries: all_preset_entries(), files: Vec::new() }
    }
}

impl DesignCatalogue {
    /// All entries: presets in the order of `docs/semantics.md`, section 5, then files in load
    /// order.
    pub fn entries(&self) -> &[DesignEntry] {
        &self.entries
    }

    /// The entry with that name.
    pub fn find(&self, name: &str) -> Option<&DesignEntry> {
        self.entries.iter().find(|entry| entry.design.name == name)
    }

    /// Every name, in the order of [`entries`](Self::entries).
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.design.name.as_str())
    }

    /// Adds the designs of a text and returns them. On an error it adds nothing.
    ///
    /// # Errors
    /// As [`parse`](super::parse()), and a name that another loaded file defines.
    pub fn add(&mut self, source: &Source) -> Result<&[DesignEntry], InputError> {
        let entries = parse_beside(source, &self.entries)?;
        let from = self.entries.len();
        self.entries.extend(entries);
        Ok(&self.entries[from..])
    }

    /// Loads a TOML file and returns its designs. A file that is named a second time isn't read
    /// again.
    ///
    /// # Errors
    /// The file can't be read, or as [`add`](Self::add).
    pub fn load(&mut self, path: &Path) -> Result<&[DesignEntry], InputError> {
        let source = Source::read(path)?;
        // The file was just read, so this fails only if the file was removed meanwhile. Then the
        // path serves as the key.
        let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let known = self.files.iter().find(|(file, _)| *file == canonical).map(|(_, range)| range.clone());
        let range = match known {
            Some(range) => range,
            None => {
                let from = self.entries.len();
                let range = from..from + self.add(&source)?.len();
                self.files.push((canonical, range.clone()));
                range
            }
        };
        Ok(&self.entries[range])
    }

    /// Whether a word of `--design` is a path to a file and not a name.
    pub fn is_path(word: &str) -> bool {
        word.contains('/') || word.ends_with(".toml")
    }

    /// Resolves a list as `--design` takes it, separated by commas: names, paths to TOML files (all
    /// their designs), and `all` (the ten presets of the table).
    ///
    /// Files are loaded first, so a name may stand before the file that defines it. The result has
    /// the order of the list; a design named twice occurs once.
    ///
    /// # Errors
    /// An empty item, an unknown name (the error suggests the nearest and lists all), a file that
    /// can't be used.
    ///
    /// # Example
    /// ```
    /// use workloads::input::designs::DesignCatalogue;
    ///
    /// let mut catalogue = DesignCatalogue::default();
    /// let designs = catalogue.resolve("kara, rfc-v2").unwrap();
    /// assert_eq!(designs[1].design.name, "rfc-v2");
    /// let error = catalogue.resolve("rfc-v3").unwrap_err();
    /// assert_eq!(error.label_text(), Some("did you mean `rfc-v2`?"));
    /// ```
    pub fn resolve(&mut self, list: &str) -> Result<Vec<DesignEntry>, InputError> {
        let source = Source::new("<designs>", list);
        let mut items = Vec::new();
        let mut at = 0;
        for item in list.split(',') {
            let word = item.trim();
            let start = at + (item.len() - item.trim_start().len());
            items.push((word, start..start + word.len()));
            at += item.len() + 1;
        }
        for (word, _) in items.iter().filter(|(word, _)| Self::is_path(word)) {
            self.load(Path::new(word))?;
        }
        let mut designs: Vec<DesignEntry> = Vec::new();
        for (word, span) in items {
            let found: Vec<DesignEntry> = match word {
                "" => return Err(self.empty_item(&source, span)),
                ALL => preset_entries(),
                word if Self::is_path(word) => self.load(Path::new(word))?.to_vec(),
                word => match self.find(word) {
                    Some(entry) => vec![entry.clone()],
                    None => return Err(self.unknown(&source, span, word)),
                },
            };
            for entry in found {
                if designs.iter().all(|known| known.design.name != entry.design.name) {
                    designs.push(entry);
                }
            }
        }
        Ok(designs)
    }

    fn empty_item(&self, source: &Source, span: std::ops::Range<usize>) -> InputError {
        source
            .error(span, "a design's name is missing")
            .help("name designs between commas, like `rfc-v2,kara` or `all`; `daxlab designs` lists them")
    }

    fn unknown(&self, source: &Source, span: std::ops::Range<usize>, word: &str) -> InputError {
        source.unknown_word(span, "design", word, self.names().chain([ALL]))
    }
}
