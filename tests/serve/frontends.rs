//! What the server says of the process at a guest's socket: one that is no frontend, one too many,
//! one that refuses to map, one whose memory was taken.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::attached::serve_file;
use crate::common::daxlab;
use crate::guest::{Asked, Guest};
use crate::server::outcome;

#[test]
fn a_process_that_does_not_speak_vhost_user_is_not_called_qemu() {
    let (dir, server) = serve_file(&["a"], &[]);
    let (code, _, err) = outcome(&daxlab().arg("ctl").arg("a").arg("guests").current_dir(dir.path()).output().unwrap());
    assert!(
        code == 3 && err.contains("`a` hung up without an answer; a guest connects there, and `a.ctl` is"),
        "{err}"
    );
    let said = server.says_until("is gone");
    assert!(said.iter().all(|line| !line.contains("QEMU")), "{said:?}");
    assert!(said.last().unwrap().ends_with("is gone, and has sent no message of vhost-user"), "{said:?}");
    let mut stream = UnixStream::connect(server.socket("a")).unwrap();
    server.says("is attached");
    let me = format!("a (data): process {}, connected", std::process::id());
    assert!(server.ctl(&["guests"]).1.starts_with(&me));
    let _closed = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
    let _end = stream.read(&mut [0]);
    server.says("is gone, and has sent no message");
    let guest = server.guest("a");
    let me = format!("a (data): QEMU process {}, 1 piece mapped", std::process::id());
    assert!(server.ctl(&["guests"]).1.starts_with(&me), "{}", server.ctl(&["guests"]).1);
    guest.hang_up();
    assert!(server.says("is gone").contains("QEMU process"));
}

#[test]
fn a_second_guest_at_a_socket_is_refused_and_named() {
    let (_dir, server) = serve_file(&["a"], &[]);
    let mut guest = server.guest("a");
    let second = Guest::connect(&server.socket("a"));
    let me = std::process::id();
    let told = server.says("refused");
    assert_eq!(told, format!("a: refused: process {me} connected while process {me} is attached: one guest at a time"));
    // At most one line a second.
    drop(second);
    for _ in 0..20 {
        drop(Guest::connect(&server.socket("a")));
    }
    assert_eq!(guest.flush(), 0);
    guest.hang_up();
    let said = server.says_until("is gone");
    assert!(said.len() < 10, "{said:?}");
}

/// QEMU 11.1 over the socket of a server that is read-only.
#[test]
fn a_frontend_that_refuses_to_map_is_named_once_for_each_attach() {
    let (_dir, server) = serve_file(&["a"], &["--extents", "3", "--design", "man-page"]);
    let mut guest = Guest::connect(&server.socket("a"));
    guest.realise(Box::new(|asked| match asked {
        Asked::Map(..) => Err(libc::EACCES),
        _ => Ok(()),
    }));
    for _ in 0..2 {
        guest.start();
        guest.was_asked();
        let me = std::process::id();
        let told = server.says("refused to map");
        let words = format!(
            "a: QEMU process {me} refused to map (it answered -13; its own stderr may say why): its guest has no memory"
        );
        assert!(told.starts_with(&words), "{told}");
        assert_eq!(server.json(&["guests"])[0]["state"], "unmapped");
        assert_eq!(guest.flush(), 1);
        guest.reset();
    }
    guest.hang_up();
    let said = server.says_until("is gone");
    assert!(said.iter().all(|line| !line.contains("refused to map")), "{said:?}");
}

#[test]
fn a_revocation_is_told_once_and_takes_what_there_is_once() {
    for more in [&["--extents", "2"][..], &["--design", "odp"]] {
        let (_dir, server) = serve_file(&["a"], more);
        let guest = server.guest("a");
        assert!(server.json(&["guests"])[0]["process"].is_u64());
        let (_, out, _) = server.ctl(&["revoke"]);
        assert!(out.starts_with("a: taken from QEMU process"), "{out}");
        let guests = server.ctl(&["guests"]).1;
        assert!(guests.contains("from which it was taken: flushes fail; attached for"), "{guests}");
        assert!(server.json(&["guests"])[0]["process"].is_null());
        let (code, out, _) = server.ctl(&["revoke", "data"]);
        assert!(code == 0 && out.starts_with("a: nothing is left to take from QEMU process"), "{code}: {out}");
        assert_eq!(server.json(&["revoke"])["revoked"].as_array().unwrap().len(), 0);
        guest.hang_up();
        let said = server.says_until("is gone");
        let told: Vec<_> = said.iter().filter(|line| line.contains("is revoked")).collect();
        assert!(
            matches!(&told[..], [line] if line.contains("unmapped, flushes fail") && !line.contains(" 0 pieces")),
            "{said:?}"
        );
    }
}
