//! The presets: the positions taken, as axes. docs/semantics.md, section 5 is their source; a test
//! compares them cell by cell.

use super::{
    Axes, BreakTimeout, BusyScope, BusyUnit, ChangeRule, Design, EvictRule, GateScope, LastCloseRule, LeaseLost,
    LeaseRules, PassRule, PinGate, PinWaitHolds, RevokeScope, UnlockRule,
};

/// A built-in design.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// Its axes.
    pub axes: Axes,
    /// Whether it must show stale DMA: a race in which it shows none had a blind detector.
    pub negative_control: bool,
    /// Whose position it is and where it was stated.
    pub about: &'static str,
}

impl Preset {
    /// As a design.
    pub fn design(&self) -> Design {
        Design { name: self.name.to_owned(), axes: self.axes }
    }
}

/// The ten presets that are compared unless others are asked for, in the order of the document's
/// table.
pub const fn presets() -> &'static [Preset] {
    &PRESETS
}

/// Presets that are run only where they are named.
pub const fn further_presets() -> &'static [Preset] {
    &FURTHER_PRESETS
}

/// The preset of that name, among all of them.
pub fn preset(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().chain(&FURTHER_PRESETS).find(|preset| preset.name == name)
}

const UNSAFE: Axes = Axes {
    lease_rules: LeaseRules::ManPage,
    pin_gate: PinGate::Open,
    gate_scope: GateScope::All,
    stranger_change: ChangeRule::Proceed,
    holder_change: ChangeRule::Proceed,
    unlock_while_pinned: Some(UnlockRule::Release),
    last_close_while_pinned: Some(LastCloseRule::Release),
    pass_context: PassRule::Allow,
    break_timeout: BreakTimeout::Force,
    mr_holds_lease: Some(false),
    on_lease_lost: Some(LeaseLost::Nothing),
    revoke_scope: Some(RevokeScope::Context),
    busy_scope: BusyScope::Range,
    busy_unit: BusyUnit::Page,
    pin_wait_holds: PinWaitHolds::Range,
    evict_while_pinned: EvictRule::Proceed,
};

const MAINLINE: Axes = Axes {
    lease_rules: LeaseRules::None,
    pin_gate: PinGate::Refuse,
    gate_scope: GateScope::All,
    stranger_change: ChangeRule::Wait,
    holder_change: ChangeRule::Wait,
    unlock_while_pinned: None,
    last_close_while_pinned: None,
    pass_context: PassRule::Allow,
    break_timeout: BreakTimeout::Force,
    mr_holds_lease: None,
    on_lease_lost: None,
    revoke_scope: None,
    busy_scope: BusyScope::File,
    busy_unit: BusyUnit::Entry,
    pin_wait_holds: PinWaitHolds::Inode,
    evict_while_pinned: EvictRule::Wait,
};

const RFC_V2: Axes = Axes {
    lease_rules: LeaseRules::ManPage,
    pin_gate: PinGate::Unbreakable,
    gate_scope: GateScope::RdmaOnly,
    stranger_change: ChangeRule::Fail,
    holder_change: ChangeRule::Fail,
    unlock_while_pinned: Some(UnlockRule::Release),
    last_close_while_pinned: Some(LastCloseRule::Zombie),
    pass_context: PassRule::Allow,
    break_timeout: BreakTimeout::Force,
    mr_holds_lease: Some(false),
    on_lease_lost: Some(LeaseLost::Nothing),
    revoke_scope: Some(RevokeScope::Context),
    busy_scope: BusyScope::Range,
    busy_unit: BusyUnit::Page,
    pin_wait_holds: PinWaitHolds::Range,
    evict_while_pinned: EvictRule::Orphan,
};

const MAN_PAGE: Axes = Axes {
    gate_scope: GateScope::All,
    unlock_while_pinned: Some(UnlockRule::Busy),
    pass_context: PassRule::Deny,
    ..RFC_V2
};

const CHINNER_2019: Axes = Axes {
    lease_rules: LeaseRules::Chinner,
    pin_gate: PinGate::Lease,
    gate_scope: GateScope::All,
    stranger_change: ChangeRule::Fail,
    holder_change: ChangeRule::Orphan,
    unlock_while_pinned: Some(UnlockRule::Busy),
    last_close_while_pinned: Some(LastCloseRule::WaitKillable),
    pass_context: PassRule::ReceiverLease,
    break_timeout: BreakTimeout::Kill,
    mr_holds_lease: Some(false),
    on_lease_lost: Some(LeaseLost::Nothing),
    revoke_scope: Some(RevokeScope::Context),
    busy_scope: BusyScope::Range,
    busy_unit: BusyUnit::Page,
    pin_wait_holds: PinWaitHolds::Range,
    evict_while_pinned: EvictRule::Orphan,
};

const CHINNER_2025: Axes =
    Axes { stranger_change: ChangeRule::Wait, break_timeout: BreakTimeout::Never, ..CHINNER_2019 };

const KARA: Axes = Axes {
    gate_scope: GateScope::All,
    unlock_while_pinned: Some(UnlockRule::Wait),
    mr_holds_lease: Some(true),
    ..RFC_V2
};

const GUNTHORPE: Axes =
    Axes { unlock_while_pinned: Some(UnlockRule::Release), on_lease_lost: Some(LeaseLost::Abort), ..KARA };

const ODP: Axes = Axes {
    pin_gate: PinGate::Fault,
    gate_scope: GateScope::All,
    last_close_while_pinned: Some(LastCloseRule::Release),
    ..RFC_V2
};

const REVOKE: Axes = Axes {
    gate_scope: GateScope::All,
    stranger_change: ChangeRule::Revoke,
    holder_change: ChangeRule::Revoke,
    last_close_while_pinned: Some(LastCloseRule::Revoke),
    on_lease_lost: Some(LeaseLost::Abort),
    revoke_scope: Some(RevokeScope::Region),
    ..RFC_V2
};

const MAINLINE_6_12: Axes = Axes { evict_while_pinned: EvictRule::Proceed, ..MAINLINE };

static FURTHER_PRESETS: [Preset; 1] = [Preset {
    name: "mainline-6.12",
    axes: MAINLINE_6_12,
    negative_control: false,
    about: "Linux 6.12, as measured in guests: as mainline, but the last close of an unlinked file frees pinned pages.",
}];

static PRESETS: [Preset; 10] = [
    Preset {
        name: "unsafe",
        axes: UNSAFE,
        negative_control: true,
        about: "The negative control: nothing guards a pinned block. It must show stale DMA; no other preset ever may.",
    },
    Preset {
        name: "mainline",
        axes: MAINLINE,
        negative_control: false,
        about: "Linux 7.3, as measured in guests: no user layout leases, long-term pins of DAX files refused. A change waits \
                for a pin anywhere in the file, with the inode locked; so does eviction, and it can't be killed.",
    },
    Preset {
        name: "rfc-v2",
        axes: RFC_V2,
        negative_control: false,
        about: "RFC v2, cover letter of 2019-08-09. Its truncate first hung, and was ETXTBSY after a fix of 08-16; it knew one \
                exclusive kind of lease, both +U kinds stand for it; its own errno for a holder's change was EDEADLOCK, here \
                ETXTBSY [chosen].",
    },
    Preset {
        name: "man-page",
        axes: MAN_PAGE,
        negative_control: false,
        about: "The lease proposal of 2019-09-23; unlock as of 09-04, passing as of 08-23, close [chosen].",
    },
    Preset {
        name: "chinner-2019",
        axes: CHINNER_2019,
        negative_control: false,
        about: "List mail of 2019-08-09 to 09-03. It also called refusing to pass \"a fine idea\", and passing \"not the kernel's \
                problem\".",
    },
    Preset {
        name: "chinner-2025",
        axes: CHINNER_2025,
        negative_control: false,
        about: "List mail of October 2025: block rather than ETXTBSY. Outside the 2019 texts.",
    },
    Preset {
        name: "kara",
        axes: KARA,
        negative_control: false,
        about: "List mail of 2019-08-14 to 08-19: unlock waits for the pins, and the region holds the lease.",
    },
    Preset {
        name: "gunthorpe",
        axes: GUNTHORPE,
        negative_control: false,
        about: "List mail of 2019-08-23 and 08-25: the region holds the lease, and losing it aborts the context.",
    },
    Preset {
        name: "odp",
        axes: ODP,
        negative_control: false,
        about: "On-demand paging: regions pin nothing, so the two change axes only speak of exclusive leases.",
    },
    Preset {
        name: "revoke",
        axes: REVOKE,
        negative_control: false,
        about: "The dma-buf revoke of 2026 applied to files. Outside the 2019 texts.",
    },
];
