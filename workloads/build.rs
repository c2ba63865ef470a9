//! Lists the built-in scenarios: every `scenarios/*.scn` becomes part of the library, by its file's
//! name.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=scenarios");
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
    let mut files: Vec<_> = fs::read_dir(Path::new(&root).join("scenarios"))
        .expect("the folder of scenarios")
        .map(|entry| entry.expect("an entry of it").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "scn"))
        .collect();
    files.sort();
    let mut list =
        String::from("/// Name and text of every built-in scenario.\nconst BUILT_IN: &[(&str, &str)] = &[\n");
    for path in files {
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        writeln!(list, "    ({name:?}, include_str!({:?})),", path.display().to_string()).expect("a String takes all");
    }
    list += "];\n";
    let out = env::var("OUT_DIR").expect("cargo says where to write");
    fs::write(Path::new(&out).join("scenarios.rs"), list).expect("the list can be written");
}
