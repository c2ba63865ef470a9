//! `serve --read-only`: a frontend gets memory that it can read and can't write.

use std::fs;
use std::os::unix::fs::FileExt;

use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::attached::{FILE, serve_file};
use crate::common::daxlab;
use crate::guest::{Asked, Guest};
use crate::server::{MIB, Server, outcome};

/// A guest, its frontend's file of the first piece, which is for reading only, and where the piece
/// begins in it.
fn first_piece(server: &Server) -> (Guest, fs::File, u64) {
    let (mut guest, piece) = server.attach("a");
    let Asked::Map(0, at, _) = piece else { panic!("{piece:?}") };
    // It was told so in the message too: the frontend looks at that.
    let file = guest.file.lock().as_ref().unwrap().try_clone().unwrap();
    assert!(file.write_at(b"x", at).is_err());
    let map = |access| {
        // SAFETY: a new mapping where there was none, which nothing uses.
        unsafe { mmap(std::ptr::null_mut(), MIB as usize, access, MapFlags::SHARED, &file, at) }
    };
    assert_eq!(map(ProtFlags::READ | ProtFlags::WRITE), Err(rustix::io::Errno::ACCESS));
    assert!(map(ProtFlags::READ).is_ok());
    assert_eq!(guest.flush(), 0);
    (guest, file, at)
}

#[test]
fn an_image_and_a_file_can_be_read_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("img"), vec![7; 4 * MIB as usize]).unwrap();
    let args = ["--control", "a.ctl", "--image", "img", "--read-only"];
    let server = Server::start(dir.path(), &["a"], &args);
    let (_guest, file, at) = first_piece(&server);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    assert_eq!(byte, [7]);
    assert!(server.introduction.starts_with("read-only: "), "{}", server.introduction);
    assert!(server.introduction.contains(",readonly=on"), "{}", server.introduction);
    assert!(!server.introduction.contains("vhost-user-test-device-pci"), "{}", server.introduction);

    let (_dir, server) = serve_file(&["a"], &["--read-only", "--extents", "3"]);
    let _guest = first_piece(&server);
    assert_eq!(server.json(&["pins"]).as_array().unwrap().len(), 1, "it is held as any other");

    let args = [&["serve", "--socket", "b"], &FILE[..], &["--read-only", "--nvdimm"]].concat();
    let (code, _, err) = outcome(&daxlab().args(args).current_dir(dir.path()).output().unwrap());
    assert!(code == 2 && err.contains("--nvdimm"), "{code}: {err}");
}
