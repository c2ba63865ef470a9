//! Kernel modules, each after those that it depends on.
//!
//! It owns the search for a module's file and the order. Invariant: a module stands behind all that
//! its `depends=` names (the entry of `.modinfo` that modpost writes), so that the order holds for
//! a kernel which has part of them built in. Counterpart: depmod(8).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

/// The programs that unpack compressed modules, by the end of the file's name
/// (`CONFIG_MODULE_COMPRESS_*`).
const UNPACKERS: [(&str, &str); 3] = [("xz", "xz"), ("zst", "zstd"), ("gz", "gzip")];

/// What a module needs and does not name in `depends=`: it asks for it by an alias when it starts
/// (`MODULE_SOFTDEP`), which modprobe(8) knows beforehand and insmod does not. Linux before 6.14.
const SOFT_DEPENDENCIES: [(&str, &str); 3] =
    [("libcrc32c", "crc32c_generic"), ("ext4", "crc32c_generic"), ("rdma_rxe", "crc32_generic")];

/// The deepest folder that is searched. `/lib/modules/VERSION` has fewer levels.
const DEPTH_MAX: u32 = 16;

/// The modules below a folder, by name.
#[derive(Debug, Default)]
pub(super) struct ModuleFiles(BTreeMap<String, PathBuf>);

/// A module as it goes into an archive.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

impl ModuleFiles {
    /// Looks below `dir`, in `/lib/modules/VERSION` as well as in a flat folder.
    ///
    /// # Errors
    /// What reading the folders said.
    pub(super) fn below(dir: &Path) -> io::Result<ModuleFiles> {
        let mut found = ModuleFiles::default();
        found.search(dir, DEPTH_MAX)?;
        Ok(found)
    }

    fn search(&mut self, dir: &Path, depth: u32) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let file = entry.file_name().to_string_lossy().into_owned();
            if kind.is_dir() && depth > 0 {
                self.search(&path, depth - 1)?;
            } else if let Some((name, "" | ".xz" | ".zst" | ".gz")) = file.split_once(".ko") {
                // A file may spell with a dash what the kernel spells with an underscore.
                self.0.insert(name.replace('-', "_"), path);
            }
        }
        Ok(())
    }

    /// The module `name` behind what it depends on, without those in `seen`, which then has them
    /// too. A name without a file is built into the kernel, or the kernel does not have it: what
    /// needs it is missed later, with its name.
    ///
    /// # Errors
    /// A file can't be read, or not be unpacked.
    pub(super) fn with_dependencies(&self, name: &str, seen: &mut BTreeSet<String>) -> io::Result<Vec<Module>> {
        let Some(path) = self.0.get(name).filter(|_| seen.insert(name.to_owned())) else { return Ok(Vec::new()) };
        let content = unpacked(path)?;
        let mut order = Vec::new();
        let soft = SOFT_DEPENDENCIES.iter().filter(|(module, _)| *module == name).map(|(_, needs)| (*needs).to_owned());
        for dependency in depends(&content).into_iter().chain(soft) {
            order.extend(self.with_dependencies(&dependency, seen)?);
        }
        order.push(Module { name: name.to_owned(), content });
        Ok(order)
    }
}

/// The bytes of a module that may be compressed.
fn unpacked(path: &Path) -> io::Result<Vec<u8>> {
    let end = path.extension().unwrap_or_default();
    let Some((_, program)) = UNPACKERS.iter().find(|(ends, _)| *ends == end) else { return fs::read(path) };
    let cannot = |why: String| io::Error::other(format!("{}: {program} -dc: {why}", path.display()));
    let run = Command::new(program).arg("-dc").arg(path).stdin(Stdio::null()).output();
    let run = run.map_err(|error| cannot(error.to_string()))?;
    if run.status.success() {
        Ok(run.stdout)
    } else {
        Err(cannot(String::from_utf8_lossy(&run.stderr).trim().to_owned()))
    }
}

/// The names after `depends=` in a module's `.modinfo`, whose entries are separated by zero bytes.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else { return Vec::new() };
    let value = module[at + key.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_stands_behind_what_it_depends_on_and_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("kernel/fs")).unwrap();
        let module = |path: &str, depends: &str| {
            fs::write(dir.path().join(path), format!("ELF\0license=GPL\0depends={depends}\0name=x\0")).unwrap();
        };
        module("kernel/fs/top.ko", "left,right-side,built-in");
        module("kernel/left.ko", "bottom");
        module("right-side.ko", "bottom,left");
        module("bottom.ko", "");
        fs::write(dir.path().join("modules.dep"), "").unwrap();
        let files = ModuleFiles::below(dir.path()).unwrap();
        let mut seen = BTreeSet::new();
        let names = |modules: Vec<Module>| modules.into_iter().map(|module| module.name).collect::<Vec<_>>();
        assert_eq!(names(files.with_dependencies("top", &mut seen).unwrap()), ["bottom", "left", "right_side", "top"]);
        assert!(files.with_dependencies("left", &mut seen).unwrap().is_empty(), "it is there");
        assert!(files.with_dependencies("ext4", &mut seen).unwrap().is_empty(), "built in, or not there");
    }

    #[test]
    fn a_compressed_module_is_unpacked_and_a_broken_one_named() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain.ko");
        fs::write(&plain, "ELF\0depends=\0").unwrap();
        assert!(Command::new("gzip").arg(&plain).status().unwrap().success());
        let files = ModuleFiles::below(dir.path()).unwrap();
        let found = files.with_dependencies("plain", &mut BTreeSet::new()).unwrap();
        assert_eq!(found[0].content, b"ELF\0depends=\0");
        fs::write(dir.path().join("plain.ko.gz"), "no gzip").unwrap();
        let error = files.with_dependencies("plain", &mut BTreeSet::new()).unwrap_err().to_string();
        assert!(error.contains("plain.ko.gz") && error.contains("gzip -dc"), "{error}");
    }
}
