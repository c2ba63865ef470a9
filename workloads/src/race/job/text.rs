//! A job's text as read: every key with its place, before any check.
//!
//! It owns the list of sections and keys. Invariant: after [`JobText::or`] with the built-in job
//! every key has a value, except `run.threads` and `run.seed`, whose absence has a meaning.

use crate::input::{Duration, Size};
use fs_sim::design::WriteBreak;
use serde::Deserialize;

use super::distribution::RawDistribution;
use super::given::GivenValue;

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($key:ident: $ty:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $(pub(super) $key: Option<GivenValue<$ty>>,)+
        }

        impl $name {
            #[cfg(test)]
            pub(super) const KEYS: &'static [&'static str] = &[$(stringify!($key)),+];

            /// Takes each value that is missing here from `built_in`.
            fn or(self, built_in: Self) -> Self {
                $name { $($key: self.$key.or(built_in.$key.map(GivenValue::taken_over)),)+ }
            }
        }
    };
}

section!(DeviceSection { size: Size });
section!(VolumeSection { lease_break_time: Duration, write_break: WriteBreak });
section!(FilesSection { count: u64, size: Size, popularity: PopularityText, moved: u64 });
section!(RunSection { duration: Duration, quick_duration: Duration, threads: u32, seed: u64 });
section!(RacePointsSection { probability: f64 });
section!(RegistrantsSection {
    count: u32,
    regions_max: u32,
    region_length: RawDistribution<Size>,
    region_lifetime: RawDistribution<Duration>,
    read_only: f64,
    whole_file_lease: f64,
    rude: f64,
    on_demand: f64,
    windows: f64,
    dma_burst: RawDistribution<u64>,
    dma_length: RawDistribution<Size>,
    pause: RawDistribution<Duration>,
});
section!(MixSection {
    register: u32,
    dma: u32,
    change: u32,
    unlock: u32,
    close: u32,
    pass: u32,
    fork: u32,
    exit: u32,
    kill: u32,
});
section!(DmaMixSection { write: u32, read: u32, compare_swap: u32, fetch_add: u32 });
section!(TruncatersSection { count: u32, size: RawDistribution<Size>, by_path: f64, unaligned: f64, pause: RawDistribution<Duration>, });
section!(PunchersSection { count: u32, length: RawDistribution<Size>, zero_range: f64, pause: RawDistribution<Duration>, });
section!(DirectIoSection { count: u32, length: RawDistribution<Size>, write: f64, pause: RawDistribution<Duration>, });
section!(ExtendersSection {
    count: u32,
    length: RawDistribution<Size>,
    fallocate: f64,
    shared: f64,
    recreate: f64,
    pause: RawDistribution<Duration>,
});
section!(AddressIoSection {
    count: u32,
    length: RawDistribution<Size>,
    hold: RawDistribution<Duration>,
    write: f64,
    pause: RawDistribution<Duration>,
});
section!(AddressIoMixSection { disk: u32, file: u32, pipe: u32, send: u32 });
section!(UmemsSection {
    count: u32,
    length: RawDistribution<Size>,
    lifetime: RawDistribution<Duration>,
    packets: RawDistribution<u64>,
    receive: f64,
    rude: f64,
    exit: f64,
    pause: RawDistribution<Duration>,
});
section!(RingsSection {
    count: u32,
    length: RawDistribution<Size>,
    lifetime: RawDistribution<Duration>,
    requests: RawDistribution<u64>,
    read: f64,
    rude: f64,
    exit: f64,
    pause: RawDistribution<Duration>,
});
section!(GuestsSection {
    count: u32,
    lifetime: RawDistribution<Duration>,
    accesses: RawDistribution<u64>,
    store: f64,
    flush: f64,
    rude: f64,
    exit: f64,
    pause: RawDistribution<Duration>,
});
section!(LayoutClientsSection {
    count: u32,
    length: RawDistribution<Size>,
    lifetime: RawDistribution<Duration>,
    requests: RawDistribution<u64>,
    write: f64,
    rude: f64,
    exit: f64,
    pause: RawDistribution<Duration>,
});
section!(CollapsersSection { count: u32, length: RawDistribution<Size>, insert: f64, pause: RawDistribution<Duration>, });
section!(ReflinkersSection { count: u32, length: RawDistribution<Size>, pause: RawDistribution<Duration> });
section!(ReflinkMixSection { clone: u32, dedupe: u32, exchange: u32, unshare: u32 });
section!(DefragmentersSection { count: u32, polite: f64, pause: RawDistribution<Duration> });
section!(ReaperSection { patience: Duration });

/// How often each file is chosen.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PopularityText {
    pub(super) dist: GivenValue<PopularityShape>,
    pub(super) exponent: Option<GivenValue<f64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PopularityShape {
    Uniform,
    Zipf,
}

macro_rules! text {
    ($($section:ident: $ty:ident),+ $(,)?) => {
        /// A whole job file.
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct JobText {
            pub(super) name: Option<GivenValue<String>>,
            $(pub(super) $section: $ty,)+
        }

        impl JobText {
            /// Every key, as `section.key`.
            #[cfg(test)]
            pub(super) fn keys() -> Vec<String> {
                let mut keys = vec!["name".to_owned()];
                $(keys.extend($ty::KEYS.iter().map(|key| format!("{}.{key}", stringify!($section))));)+
                keys
            }

            /// Takes each value that is missing here from `built_in`.
            pub(super) fn or(self, built_in: JobText) -> JobText {
                JobText {
                    name: self.name.or(built_in.name.map(GivenValue::taken_over)),
                    $($section: self.$section.or(built_in.$section),)+
                }
            }
        }
    };
}

text! {
    device: DeviceSection,
    volume: VolumeSection,
    files: FilesSection,
    run: RunSection,
    race_points: RacePointsSection,
    registrants: RegistrantsSection,
    mix: MixSection,
    dma_mix: DmaMixSection,
    truncaters: TruncatersSection,
    punchers: PunchersSection,
    direct_io: DirectIoSection,
    extenders: ExtendersSection,
    address_io: AddressIoSection,
    address_io_mix: AddressIoMixSection,
    umems: UmemsSection,
    rings: RingsSection,
    guests: GuestsSection,
    layout_clients: LayoutClientsSection,
    collapsers: CollapsersSection,
    reflinkers: ReflinkersSection,
    reflink_mix: ReflinkMixSection,
    defragmenters: DefragmentersSection,
    reaper: ReaperSection,
}
