//! Makes the first file system of a guest from a folder of programs and one of kernel modules, and
//! prints the names in the archive. A module stands behind what it depends on.

use std::fs;

use guests::initramfs;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let (tools, modules) = (dir.path().join("tools"), dir.path().join("modules"));
    fs::create_dir_all(tools.join("bin"))?;
    fs::create_dir(&modules)?;
    fs::write(tools.join("bin/busybox"), "a program")?;
    fs::write(modules.join("nd_pmem.ko"), "\0depends=libnvdimm\0")?;
    fs::write(modules.join("libnvdimm.ko"), "\0depends=\0")?;
    let archive = initramfs::build(&tools, &modules)?;
    let names: Vec<String> = archive
        .split(|byte| *byte == 0)
        .filter_map(|part| part.windows(6).position(|magic| magic == b"070701").map(|at| &part[at..]))
        // The header is 110 bytes long; the name follows.
        .filter_map(|entry| entry.get(110..).map(|name| String::from_utf8_lossy(name).into_owned()))
        .collect();
    println!("{} bytes: {}", archive.len(), names.join(" "));
    let place = |wanted: &str| names.iter().position(|name| name == wanted);
    assert!(place("modules/libnvdimm.ko") < place("modules/nd_pmem.ko"), "in the order of loading");
    Ok(())
}
