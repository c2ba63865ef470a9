//! The orders in which frontends speak: QEMU's, an old guest's, rebinds, reboots, one frontend after the other.

use crate::guest::{Asked, Guest, willing};
use crate::medium::{BYTES, Event, MIB, Served};

#[test]
fn a_guest_attaches_as_under_qemu_and_flushes() {
    let served = Served::new();
    let mut guest = Guest::connect(&served.path());
    let regions = guest.realise(willing());
    assert_eq!((regions.nregions, &regions.memory_sizes[..3]), (2, &[6 * MIB, 2 * MIB, 0][..]));
    assert_eq!(served.medium.count(|event| *event == Event::Attach), 0, "before a driver took it");
    guest.start();
    assert_eq!(guest.was_asked(), Asked::Map(0, 0, BYTES));
    assert_eq!(guest.flush(), 0);
    assert_eq!(guest.flush(), 0);
    assert_eq!(served.medium.flushes(), 2);
    let stats = served.server.stats();
    assert_eq!((stats.requests, stats.flushes, stats.failed, stats.malformed), (2, 2, 0, 0), "{stats:?}");
    assert_eq!((stats.maps, stats.resets, stats.problem.clone()), (1, 0, None), "{stats:?}");
    assert!(served.server.is_connected());
}
