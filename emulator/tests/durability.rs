//! Checks that [`Device::sync`] makes stores durable, by asking the kernel (`cachestat`: no dirty
//! page left, none being written), for stores through our mapping and through another process's;
//! that a sync which fails says so; and what a large sparse device costs.
#![cfg(not(any(daxlab_loom, daxlab_shuttle)))]
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

#[path = "vhost_user/page_cache.rs"]
mod page_cache;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

use emulator::device::persistence::DurableImage;
use emulator::device::{Device, FOLIO, OpenError, PAGE};
use emulator::pin::PageRange;
use page_cache::cachestat;

/// An image on a filesystem that writes back; none, with the reason printed, where dirty pages
/// can't be counted.
fn image(bytes: u64) -> Option<(tempfile::TempDir, Device)> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let device = Device::image(&folder.path().join("image"), bytes).unwrap();
    device.write(0, b"dirty").unwrap();
    match cachestat(device.fd(), 0, PAGE) {
        None => eprintln!("not run: cachestat needs Linux 6.5"),
        Some(found) if found.dirty == 0 => {
            eprintln!("not run: the build folder's filesystem keeps no dirty pages (tmpfs?)")
        }
        Some(_) => return Some((folder, device)),
    }
    None
}

fn unwritten(device: &Device, offset: u64, len: u64) -> (u64, u64) {
    let found = cachestat(device.fd(), offset, len).unwrap();
    (found.dirty, found.writeback)
}

#[test]
fn after_a_sync_no_page_is_dirty() {
    let Some((_folder, device)) = image(64 * FOLIO) else { return };
    let mut seen = 0;
    for round in 0..10u64 {
        // Fewer pages than the kernel's own write-back would start on by itself.
        for nth in 0..16 {
            device.write(nth * 4 * FOLIO + round, &[round as u8 + 1]).unwrap();
        }
        seen += unwritten(&device, 0, device.bytes()).0;
        device.sync().unwrap();
        assert_eq!(unwritten(&device, 0, device.bytes()), (0, 0), "round {round}");
    }
    // Not in each round: a busy machine may write back on its own at any time.
    assert!(seen > 0, "nothing was ever dirty before");
    // A part: that part, and at least that.
    let part = PageRange::new(4 * FOLIO / PAGE, 2);
    device.write(4 * FOLIO, &[9; 2 * PAGE as usize]).unwrap();
    device.sync_pages(part).unwrap();
    assert_eq!(unwritten(&device, 4 * FOLIO, 2 * PAGE), (0, 0));
}

/// Run by the tests below as another process; by itself it does nothing. On each line from standard
/// input it stores that byte to the pages of the image it has mapped, and says so; it leaves when
/// the input ends.
#[test]
fn another_process() {
    let Ok(path) = std::env::var("DAXLAB_TEST_IMAGE") else { return };
    let bytes = std::env::var("DAXLAB_TEST_BYTES").unwrap().parse().unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let device = Device::from_fd(file.into(), bytes).unwrap();
    for line in std::io::stdin().lock().lines() {
        let byte: u8 = line.unwrap().parse().unwrap();
        for at in (0..bytes).step_by(FOLIO as usize) {
            device.write(at + 100, &[byte]).unwrap();
        }
        // To the terminal that the harness does not capture.
        let mut out = File::options().write(true).open("/proc/self/fd/1").unwrap();
        out.write_all(b"stored\n").unwrap();
    }
}

#[test]
fn a_sync_covers_stores_of_another_process() {
    let Some((_folder, device)) = image(16 * FOLIO) else { return };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["another_process", "--exact", "--nocapture"])
        .env("DAXLAB_TEST_IMAGE", device.path().unwrap())
        .env("DAXLAB_TEST_BYTES", device.bytes().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut tell = child.stdin.take().unwrap();
    let mut hear = BufReader::new(child.stdout.take().unwrap()).lines();
    device.sync().unwrap();
    // The second round stores through a mapping that the first sync has seen: it must have been
    // made to fault again.
    let mut seen = Vec::new();
    for byte in [1u8, 2, 3, 4, 5] {
        writeln!(tell, "{byte}").unwrap();
        assert!(hear.any(|line| line.unwrap().ends_with("stored")), "the other process ended");
        let mut found = [0];
        device.read(5 * FOLIO + 100, &mut found).unwrap();
        assert_eq!(found, [byte], "both map the same file");
        seen.push(unwritten(&device, 0, device.bytes()).0);
        device.sync().unwrap();
        assert_eq!(unwritten(&device, 0, device.bytes()), (0, 0), "its mapping is still there");
    }
    assert!(seen[1..].iter().any(|dirty| *dirty > 0), "its later stores were never dirty before: {seen:?}");
    drop(tell);
    assert!(child.wait().unwrap().success());
}

/// A file of `memfd_secret` can be mapped and shared like any other, and the kernel has nothing
/// that could write it back: its sync fails in earnest (`EINVAL`), without privileges and without a
/// fault injector.
#[test]
fn a_sync_that_fails_says_so() {
    // SAFETY: takes no pointer; returns a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    if fd < 0 {
        eprintln!("not run: memfd_secret: {}", std::io::Error::last_os_error());
        return;
    }
    // SAFETY: new, and owned by this test alone.
    let file = unsafe { File::from_raw_fd(fd as i32) };
    file.set_len(FOLIO).unwrap();
    let device = Device::from_fd(file.into(), FOLIO).unwrap();
    device.write(77, b"stored").unwrap();
    let mut found = [0; 6];
    device.read(77, &mut found).unwrap();
    assert_eq!(&found, b"stored");
    for _ in 0..2 {
        assert_eq!(device.sync().unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(device.sync_pages(PageRange::new(0, 1)).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * PAGE
}

#[test]
fn a_large_sparse_device_stays_small() {
    const BYTES: u64 = 32 << 30;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = Device::image(&folder.path().join("image"), BYTES).unwrap();
    for device in [image, Device::memory(BYTES).unwrap()] {
        let durable = DurableImage::new(&device).unwrap();
        for nth in 0..64 {
            device.write(nth * (BYTES / 64) + 5, &[1; 64]).unwrap();
        }
        device.sync().unwrap();
        let flushed = durable.flush(&device, Some(0..BYTES)).unwrap();
        assert_eq!(flushed.bytes_copied, 64 * 64 * 2, "each store touches two lines");
        assert_eq!(durable.cut(&device, 1).unwrap().lines_unflushed, 0);
    }
    assert!(resident() < 64 << 20, "{} bytes resident", resident());
}

#[test]
fn a_device_from_a_descriptor_shares_bytes_and_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let device = Device::image(&path, 2 * FOLIO).unwrap();
    let passed = device.fd().try_clone_to_owned().unwrap();
    let port = Device::from_fd(passed, FOLIO).unwrap();
    assert_eq!((port.bytes(), port.path()), (FOLIO, Some(path.as_path())));
    port.write(3, b"from the port").unwrap();
    let mut found = [0; 13];
    device.read(3, &mut found).unwrap();
    assert_eq!(&found, b"from the port");
    port.sync().unwrap();

    // The lock outlives the one who took it, and what is mapped again keeps it as well.
    drop(device);
    let error = Device::image(&path, FOLIO).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("a guest that is still attached"), "{error}");
    let again = port.map_again().unwrap();
    drop(port);
    assert!(matches!(Device::image(&path, FOLIO), Err(OpenError::Locked { .. })));
    drop(again);
    Device::image(&path, FOLIO).unwrap();

    let memory = Device::memory(FOLIO).unwrap();
    let port = Device::from_fd(memory.fd().try_clone_to_owned().unwrap(), FOLIO).unwrap();
    memory.write(9, b"memory").unwrap();
    let mut found = [0; 6];
    port.read(9, &mut found).unwrap();
    assert_eq!((&found, port.path()), (b"memory", None));
}

#[test]
fn descriptors_that_are_no_device_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, vec![1; FOLIO as usize + 5]).unwrap();
    let open = || -> OwnedFd { File::options().read(true).write(true).open(&path).unwrap().into() };
    Device::from_fd(open(), FOLIO).unwrap();
    let refused = |fd, bytes| Device::from_fd(fd, bytes).unwrap_err();
    let error = refused(open(), 2 * FOLIO);
    assert!(matches!(error, OpenError::TooSmall { asked: 4194304, found: 2097157, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("ask for at most 2097152, enlarge it with `truncate -s 4194304`"), "{text}");
    let error = refused(open(), FOLIO + 4096).to_string();
    assert!(error.contains("2101248 bytes: the size must be a multiple of 2 MiB"), "{error}");
    assert!(error.ends_with("4194304 bytes would do"), "{error}");
    assert!(matches!(refused(File::open(folder.path()).unwrap().into(), FOLIO), OpenError::NotAFile { .. }));
    let (reader, _writer) = std::io::pipe().unwrap();
    assert!(matches!(refused(reader.into(), FOLIO), OpenError::NotAFile { .. }));
    let error = refused(File::open(&path).unwrap().into(), FOLIO);
    assert!(error.to_string().contains("not open for reading and writing"), "{error}");
    assert_eq!(path.metadata().unwrap().len(), FOLIO + 5, "left alone");
}
