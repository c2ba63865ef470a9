//! The server refuses input that it cannot serve: its message says why, and it creates and changes
//! no file.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use crate::common::daxlab;
use crate::server::{MIB, Server, outcome};

fn refused(dir: &Path, code: i32, words: &[&str], args: &[&str]) {
    let before = listing(dir);
    let (found, out, err) = outcome(&daxlab().arg("serve").args(args).current_dir(dir).output().unwrap());
    assert_eq!(found, code, "{args:?}: {out}{err}");
    for word in words {
        assert!(err.contains(word), "{args:?}: `{word}` is not in: {err}");
    }
    assert_eq!(listing(dir), before, "{args:?}: something was left behind");
}

fn listing(dir: &Path) -> Vec<(String, u64)> {
    let entry =
        |entry: fs::DirEntry| (entry.file_name().to_string_lossy().into_owned(), entry.metadata().unwrap().len());
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|found| entry(found.unwrap())).collect();
    entries.sort();
    entries
}

#[test]
fn sockets_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let image = ["--image", "img", "--size", "2MiB"];
    let refused = |words: &[&str], args: &[&str]| refused(dir, 2, words, &[args, &image].concat());
    let _listener = UnixListener::bind(dir.join("used")).unwrap();
    fs::write(dir.join("file"), "kept").unwrap();
    refused(&["used", "in use"], &["--socket", "used"]);
    refused(&["120 bytes", "107"], &["--socket", &"x".repeat(120)]);
    refused(&["file", "no socket"], &["--socket", "file"]);
    refused(&["--socket none/a: its folder none is missing"], &["--socket", "none/a"]);
    refused(&["--control none/a: its folder none is missing"], &["--socket", "a", "--control", "none/a"]);
    refused(&["--qemu none/q: its folder none is missing"], &["--socket", "a", "--qemu", "none/q"]);
    refused(&["--control", "no socket"], &["--socket", "a", "--control", "file"]);
    refused(&["--control", "in use"], &["--socket", "a", "--control", "used"]);
    refused(&["--socket a: given twice"], &["--socket", "a", "--socket", "a"]);
    let absolute = dir.join("a").display().to_string();
    for other in ["./a", &absolute] {
        refused(&["--socket", other, ": given twice"], &["--socket", "a", "--socket", other]);
        refused(&["--socket a: given twice, it is --control too"], &["--socket", "a", "--control", other]);
    }
    let derived = "--socket ./a.ctl: given twice, it is --control (if not given, the first --socket's path with `.ctl` behind it) too";
    refused(&[derived], &["--socket", "a", "--socket", "./a.ctl"]);
    refused(&["--control", "with `.ctl` behind it", "108 bytes"], &["--socket", &"x".repeat(104)]);
    assert_eq!(fs::read(dir.join("file")).unwrap(), b"kept");
}

#[test]
fn more_sockets_than_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let sockets: Vec<String> = (0..30).map(|number| format!("--socket=s{number}")).collect();
    let trace = "a 0.001204 1 -- process 7 connected\n";
    fs::write(dir.path().join("trace"), trace).unwrap();
    // The descriptors run out at every step: to listen, to open the image, for a backend process.
    // How many this process hands down is not known.
    for limit in (20..45).map(|limit| format!("--nofile={limit}")) {
        let mut command = Command::new("prlimit");
        command.arg(&limit).arg(env!("CARGO_BIN_EXE_daxlab")).arg("serve").args(&sockets);
        let run = command
            .args(["--image", "img", "--size", "2MiB", "--trace", "trace"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let (code, out, err) = outcome(&run);
        assert_eq!(code, 3, "{limit}: {out}{err}");
        for words in ["30 sockets", "Too many open files", "ulimit -n"] {
            assert!(err.contains(words), "{limit}: `{words}` is not in: {err}");
        }
        let left = listing(dir.path());
        assert!(left.iter().all(|(name, _)| name == "img" || name == "trace"), "{left:?}");
        assert_eq!(fs::read_to_string(dir.path().join("trace")).unwrap(), trace, "{limit}");
    }
}

#[test]
fn images_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let refused = |code, words: &[&str], args: &[&str]| refused(dir, code, words, &[&["--socket", "a"], args].concat());
    File::create(dir.join("small")).unwrap().set_len(2 * MIB).unwrap();
    File::create(dir.join("odd")).unwrap().set_len(3 * MIB).unwrap();
    fs::create_dir(dir.join("folder")).unwrap();
    File::create(dir.join("empty")).unwrap();
    let small = "--image small: it has 2MiB (2097152 bytes), and --size asks for 4MiB (4194304 bytes)";
    refused(2, &[small, "`truncate -s 4194304 small`"], &["--image", "small", "--size", "4MiB"]);
    let size = "--size 3MiB (3145728 bytes): a device is a multiple of 2 MiB";
    refused(2, &[size, "such as 4MiB"], &["--image", "new", "--size", "3MiB"]);
    let odd = "--image odd: it has 3MiB (3145728 bytes): a device is a multiple of 2 MiB";
    refused(2, &[odd, "`truncate -s 4194304 odd`"], &["--image", "odd"]);
    refused(2, &["--image empty: it is empty; --size says how large"], &["--image", "empty"]);
    refused(2, &["--size says how large"], &["--image", "new"]);
    for size in [&["--size", "2MiB"][..], &[]] {
        let folder = &["--image folder: a directory, and not a regular file"];
        refused(2, folder, &[&["--image", "folder"], size].concat());
        refused(2, &["--image none/img: its folder none is missing"], &[&["--image", "none/img"], size].concat());
        refused(2, &["--image odd/img: Not a directory"], &[&["--image", "odd/img"], size].concat());
    }
    refused(2, &["no unit"], &["--image", "new", "--size", "2097152"]);
    refused(2, &["--image", "--file"], &[]);
    std::os::unix::fs::symlink("nothing", dir.join("dangling")).unwrap();
    std::os::unix::fs::symlink("/dev/null", dir.join("device")).unwrap();
    refused(2, &["dangling", "symbolic link"], &["--image", "dangling", "--size", "2MiB"]);
    refused(2, &["--image dangling: a symbolic link to nothing, where nothing lies"], &["--image", "dangling"]);
    refused(2, &["device", "no regular file"], &["--image", "device", "--size", "2MiB"]);
    refused(2, &["--preallocate"], &["--file", "data", "--create", "2MiB", "--preallocate"]);
    // What is said of files would have no effect.
    for option in
        [&["--create", "4MiB"][..], &["--extents", "2"], &["--defragment"], &["--volume", "8MiB"], &["--design", "odp"]]
    {
        refused(2, &["cannot be used with", option[0]], &[&["--image", "new", "--size", "2MiB"], option].concat());
    }
}

/// None of them is waited for, or read without an end.
#[test]
fn paths_of_what_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    rustix::fs::mknodat(rustix::fs::CWD, dir.join("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .unwrap();
    fs::create_dir(dir.join("folder")).unwrap();
    let refused = |words: &[&str], args: &[&str]| refused(dir, 2, words, args);
    for path in ["fifo", "folder", "/dev/zero"] {
        let image = ["--image", "img", "--size", "2MiB"];
        refused(&["socket", path], &[&["--socket", path], &image[..]].concat());
        refused(&["--control", path], &[&["--socket", "a", "--control", path], &image[..]].concat());
        refused(&["--qemu", path, "and no program"], &[&["--socket", "a", "--qemu", path], &image[..]].concat());
        refused(&[path, "not a regular file"], &["--socket", "a", "--image", path, "--size", "2MiB"]);
        refused(&["--import", path], &["--socket", "a", "--file", "data", "--import", path]);
    }
}

#[test]
fn files_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let refused = |code, words: &[&str], args: &[&str]| refused(dir, code, words, &[&["--socket", "a"], args].concat());
    File::create(dir.join("odd")).unwrap().set_len(3 * MIB).unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    refused(2, &["--create SIZE or --import"], &["--file", "data"]);
    refused(2, &["3145728 bytes", "such as 4MiB"], &["--file", "data", "--create", "3MiB"]);
    refused(2, &["odd", "3145728 bytes"], &["--file", "data", "--import", "odd"]);
    refused(2, &["empty", "0 bytes"], &["--file", "data", "--import", "empty"]);
    refused(2, &["nothing", "No such file"], &["--file", "data", "--import", "nothing"]);
    refused(2, &["not a regular file"], &["--file", "data", "--import", "."]);
    refused(2, &["no/host: its folder no is missing"], &["--file", "data", "--import", "no/host"]);
    let design = |name: &'static str| ["--file", "data", "--create", "4MiB", "--design", name];
    refused(2, &["--design nosuch: unknown design; it can be `unsafe`,", "`, or a TOML file"], &design("nosuch"));
    refused(2, &["--design revok: unknown design (did you mean `revoke`?)"], &design("revok"));
    refused(2, &["200 extents", "128", "--defragment"], &["--file", "data", "--create", "4MiB", "--extents", "200"]);
    refused(
        2,
        &["--extents 0", "served in 1 to 128 extents", "up to 1024"],
        &["--file", "data", "--create", "4MiB", "--extents", "0"],
    );
    refused(2, &["the files need 4MiB"], &["--file", "data", "--create", "4MiB", "--volume", "2MiB"]);
    refused(2, &["multiple of 2 MiB", "--volume"], &["--file", "data", "--create", "4MiB", "--volume", "5MiB"]);
    refused(2, &["given twice"], &["--file", "data", "--file", "data", "--create", "4MiB"]);
    refused(2, &["--file", "1 to 255 bytes"], &["--file", "", "--create", "4MiB"]);
    refused(2, &["--file", "1 to 255 bytes"], &["--file", &"x".repeat(256), "--create", "4MiB"]);
    for name in ["a/b", "/data", "..", "."] {
        refused(2, &["--file", name, "without `/`"], &["--file", name, "--create", "4MiB"]);
    }
    refused(2, &["8EiB", "at most"], &["--file", "data", "--create", "8EiB"]);
    refused(2, &["--nvdimm", "at least 4 MiB"], &["--file", "data", "--create", "2MiB", "--nvdimm"]);
    refused(2, &["--size", "--file"], &["--file", "data", "--create", "4MiB", "--size", "4MiB"]);
    for option in ["--create=4MiB", "--import=empty", "--extents=2", "--defragment", "--volume=4MiB"] {
        let name = option.split('=').next().unwrap();
        refused(2, &[name, "--image"], &["--image", "odd", option]);
    }
    refused(
        2,
        &["2 files for 3 sockets"],
        &["--socket", "b", "--socket", "c", "--file", "x", "--file", "y", "--create", "2MiB"],
    );
    refused(2, &["2 files for 1 socket"], &["--file", "x", "--file", "y", "--create", "2MiB"]);
    refused(2, &["10 designs"], &["--file", "data", "--create", "4MiB", "--design", "all"]);
    refused(1, &["mainline", "pin_gate = refuse"], &["--file", "data", "--create", "4MiB", "--design", "mainline"]);
    refused(1, &["rfc-v2", "gate_scope = rdma-only"], &["--file", "data", "--create", "4MiB", "--design", "rfc-v2"]);
}

#[test]
fn fragments_beyond_what_can_be_mapped_are_joined_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--control", "a.ctl", "--file", "data", "--create", "64MiB", "--extents", "200", "--defragment"];
    let server = Server::start(dir.path(), &["a"], &args);
    assert!(server.introduction.contains("4MiB, 1 extent\n"), "{}", server.introduction);
}

#[test]
fn what_cannot_be_asked_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ctl = |args: &[&str]| outcome(&daxlab().arg("ctl").args(args).current_dir(dir).output().unwrap());
    fs::write(dir.join("file"), "").unwrap();
    let (code, _, err) = ctl(&["file", "guests"]);
    assert!(code == 2 && err.contains("no socket"), "{code}: {err}");
    let (code, _, err) = ctl(&["none", "guests"]);
    assert!(code == 3 && err.contains("no process answers at"), "{code}: {err}");
    drop(UnixListener::bind(dir.join("left")).unwrap());
    let (code, _, err) = ctl(&["left", "guests"]);
    assert!(code == 3 && err.contains("no process answers at"), "{code}: {err}");

    let server = Server::start(dir, &["a"], &["--control", "a.ctl", "--file", "data", "--create", "4MiB"]);
    let wrong = |args: &[&str], word: &str| {
        let (code, out, err) = server.ctl(args);
        assert!(code == 2 && err.contains(word), "{args:?}: {code}: {out}{err}");
    };
    wrong(&["truncate", "nothing", "0"], "there are data");
    wrong(&["truncate", "data", "4096"], "no unit");
    wrong(&["power-cut"], "--power-cut-model");
    wrong(&["revoke", "nothing"], "there are data");
    wrong(&["rdma-reg", "data"], "no guest has `data`");
    wrong(&["rdma-write", "7", "0", "x"], "there are none");
    for verb in ["poison", "punch", "fallocate"] {
        wrong(&[verb, "data", "0", "0"], &format!("{verb} data: the length is 0; give how many bytes"));
    }
    wrong(&["poison", "data", "4MiB", "1B"], "1 B from 4 MiB on: the file has 4 MiB");
    let image = tempfile::tempdir().unwrap();
    let server = Server::start(image.path(), &["a"], &["--control", "a.ctl", "--image", "img", "--size", "2MiB"]);
    for args in [&["truncate", "data", "0"][..], &["leases"], &["revoke", "data"]] {
        let (code, _, err) = server.ctl(args);
        assert!(code == 2 && err.contains("image"), "{args:?}: {code}: {err}");
    }
}

#[test]
fn users_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    for uid in ["root", "-1", "", "4294967295", "1.5"] {
        let user = format!("--allow-uid={uid}");
        let words = [uid, "--allow-uid", "from 0 to 4294967294", "id -u NAME"];
        refused(dir.path(), 2, &words, &["--socket", "a", "--image", "img", "--size", "2MiB", &user]);
    }
}
