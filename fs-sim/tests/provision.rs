//! Dialogues about files that are provisioned with a given number of extents.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use common::changes::{ALL, scattered};
use common::{Lab, preset};
use fs_sim::layout_change::defragment::Defragmented;
use fs_sim::{BLOCK, Errno};

/// Provisioned files have exactly as many runs as requested and read as zeros; a request that
/// cannot be met changes nothing.
#[test]
fn provisioned_files() {
    let (lab, [a]) = Lab::cast(preset("mainline"));
    for runs in [1, 2, 3, 7, 128, 200] {
        assert_eq!(a.provision("data", 200 * BLOCK, Some(runs)), Ok(()), "{runs}");
        assert_eq!(lab.kernel.runs_of("data"), Ok(runs));
        let fd = a.opens("data");
        assert_eq!(a.bytes_of(fd), [0; 200]);
        assert!(a.fiemap(fd, ALL).unwrap().iter().all(|extent| !extent.unwritten), "{runs}");
        assert_eq!(a.provision("data", BLOCK, None), Err(Errno::EEXIST));
        if runs > 1 {
            assert_eq!(lab.kernel.defragment_politely("data"), Ok(Defragmented { moved: 200, skipped: 0 }), "{runs}");
            assert_eq!(lab.kernel.runs_of("data"), Ok(1));
        }
        // The old contents of the blocks do not appear in the next file.
        (0..200).for_each(|block| assert!(a.fills(fd, block, 7).is_ok()));
        a.close(fd).unwrap();
        a.unlink("data").unwrap();
    }
    for (bytes, runs, errno) in [
        (0, None, Errno::EINVAL),
        (BLOCK + 1, None, Errno::EINVAL),
        (4 * BLOCK, Some(0), Errno::EINVAL),
        (4 * BLOCK, Some(5), Errno::EINVAL),
        (u64::MAX, None, Errno::EFBIG),
        (common::DEVICE + BLOCK, None, Errno::ENOSPC),
    ] {
        assert_eq!(a.provision("data", bytes, runs), Err(errno), "{bytes} {runs:?}");
        assert_eq!(lab.kernel.runs_of("data"), Err(Errno::ENOENT));
    }
    // No free run is as long as the file: one run is refused, several succeed.
    let (b, _) = scattered(&lab, 200);
    b.unlink("other").unwrap();
    b.exit();
    let free = lab.kernel.usage().free;
    assert_eq!(a.provision("more", free * BLOCK, Some(1)), Err(Errno::ENOSPC));
    assert_eq!((lab.kernel.runs_of("more"), lab.kernel.usage().free), (Err(Errno::ENOENT), free));
    assert_eq!(a.provision("more", free * BLOCK, None), Ok(()));
    assert!(lab.kernel.runs_of("more").unwrap() > 1);
    lab.end([&a, &b]);
}
