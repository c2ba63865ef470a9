//! The typed arguments of operations.
//!
//! It owns the small types that the fields of an [`Op`](super::Op) have, and the untyped form
//! [`Arg`] that the parser and the random generator build first. Invariant: each type accepts
//! exactly the words that its [`Param`] describes.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a name in a scenario stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BindingKind {
    /// A process.
    Process,
    /// A descriptor of an open file.
    Fd,
    /// A mapping of a file or of anonymous memory.
    Map,
    /// An RDMA context (a descriptor too).
    Context,
    /// A memory region.
    Region,
    /// A memory window.
    Window,
    /// A connected queue pair.
    Qp,
    /// A work request that was posted.
    Work,
    /// Direct I/O in flight.
    Io,
    /// An AF_XDP umem (a descriptor too).
    Umem,
    /// An io_uring with fixed buffers (a descriptor too).
    Ring,
    /// A block-layout client's layout.
    BlockLayout,
    /// A guest that a file is exported to.
    Guest,
    /// A running program.
    Program,
    /// A pipe that holds pages of a mapping.
    Pipe,
    /// A zero-copy send that the peer has not acknowledged.
    Sent,
    /// A disk without a file system (a descriptor too).
    Disk,
}

impl BindingKind {
    /// The phrase that error messages use for it.
    pub fn words(self) -> &'static str {
        match self {
            BindingKind::Process => "a process",
            BindingKind::Fd => "an open file",
            BindingKind::Map => "a mapping",
            BindingKind::Context => "an RDMA context",
            BindingKind::Region => "a memory region",
            BindingKind::Window => "a memory window",
            BindingKind::Qp => "a queue pair",
            BindingKind::Work => "a work request",
            BindingKind::Io => "direct I/O in flight",
            BindingKind::Umem => "an AF_XDP umem",
            BindingKind::Ring => "an io_uring with fixed buffers",
            BindingKind::BlockLayout => "a block layout",
            BindingKind::Guest => "a guest",
            BindingKind::Program => "a running program",
            BindingKind::Pipe => "a pipe with pages",
            BindingKind::Sent => "a zero-copy send",
            BindingKind::Disk => "a disk",
        }
    }

    /// Whether it is a descriptor, which a process can close, duplicate and pass.
    pub fn is_descriptor(self) -> bool {
        use BindingKind::{BlockLayout, Context, Disk, Fd, Guest, Ring, Umem};
        matches!(self, Fd | Context | Umem | Ring | BlockLayout | Guest | Disk)
    }
}

/// The syntax of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// The name of a file.
    File,
    /// A bound name of one of these kinds.
    Bound(&'static [BindingKind]),
    /// A process.
    Process,
    /// A size in bytes: `0`, `4KiB`.
    Size,
    /// As [`Param::Size`], of bytes that are moved: at most [`DATA_MAX`] of them.
    Length,
    /// Two sizes: offset and length; the length may be `inf`.
    Range,
    /// As [`Param::Range`], of bytes that are moved: at most [`DATA_MAX`] of them.
    Data,
    /// A byte: one printable character, or `zeros`.
    Byte,
    /// A time: `5ms`, `45s`.
    Span,
    /// A whole number.
    Number,
    /// A signal.
    Signal,
    /// Exactly one of these words.
    Choice(&'static [&'static str]),
    /// Any of these words, in any order.
    Flags(&'static [&'static str]),
    /// Any text without a line end.
    Text,
    /// A time, or `off`.
    Delay,
    /// Which flushes fail: `on`, `off`, `nth=3`, `every=3`.
    FlushRule,
    /// As the inner one, or left out.
    Optional(&'static Param),
}

/// The most bytes that one operation moves: 64 MiB.
pub const DATA_MAX: u64 = 64 << 20;

/// The untyped form of an argument, for code that treats all operations alike: the parser, the
/// random generator, the writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arg {
    /// The name of a file, of a binding, or of a process; a text.
    Name(String),
    /// A size, a number, or a time in nanoseconds.
    Number(u64),
    /// A range.
    Range(ByteRange),
    /// A byte.
    Byte(u8),
    /// One of the words that the parameter lists; a signal.
    Word(&'static str),
    /// Some of them.
    Words(Vec<&'static str>),
    /// An optional argument that was left out.
    Absent,
}

/// A type that a field of an operation can have.
pub trait Argument: Sized {
    /// Its syntax in scripts.
    const PARAM: Param;

    /// The typed value; `None` if `arg` does not have this type.
    fn from_arg(arg: &Arg) -> Option<Self>;

    /// The untyped form; [`Argument::from_arg`] gives this value back.
    fn to_arg(&self) -> Arg;
}

macro_rules! names {
    ($($(#[doc = $doc:literal])+ $name:ident $param:expr;)+) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(pub String);

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl Argument for $name {
            const PARAM: Param = $param;

            fn from_arg(arg: &Arg) -> Option<$name> {
                match arg {
                    Arg::Name(name) => Some($name(name.clone())),
                    _ => None,
                }
            }

            fn to_arg(&self) -> Arg {
                Arg::Name(self.0.clone())
            }
        }
    )+};
}

names! {
    /// The name of a file of the volume.
    FileName Param::File;
    /// The name of a process.
    ProcessName Param::Process;
    /// The name of any descriptor: an open file or another object with a descriptor.
    DescriptorName Param::Bound(&[
        BindingKind::Fd, BindingKind::Context, BindingKind::Umem, BindingKind::Ring, BindingKind::BlockLayout, BindingKind::Guest,
        BindingKind::Disk,
    ]);
    /// The name of a descriptor of an open file.
    FdName Param::Bound(&[BindingKind::Fd]);
    /// The name of a descriptor of what direct I/O can go to: an open file or a disk.
    FileOrDiskName Param::Bound(&[BindingKind::Fd, BindingKind::Disk]);
    /// The name of a mapping.
    MapName Param::Bound(&[BindingKind::Map]);
    /// The name of an RDMA context.
    ContextName Param::Bound(&[BindingKind::Context]);
    /// The name of a memory region.
    MrName Param::Bound(&[BindingKind::Region]);
    /// The name of a memory window.
    MwName Param::Bound(&[BindingKind::Window]);
    /// The name of memory that a peer can address: a memory region or a memory window.
    RemoteName Param::Bound(&[BindingKind::Region, BindingKind::Window]);
    /// The name of a queue pair.
    QpName Param::Bound(&[BindingKind::Qp]);
    /// The name of direct I/O in flight.
    IoName Param::Bound(&[BindingKind::Io]);
    /// The name of an AF_XDP umem.
    UmemName Param::Bound(&[BindingKind::Umem]);
    /// The name of an io_uring with fixed buffers.
    RingName Param::Bound(&[BindingKind::Ring]);
    /// The name of a block layout.
    BlockLayoutName Param::Bound(&[BindingKind::BlockLayout]);
    /// The name of a guest.
    GuestName Param::Bound(&[BindingKind::Guest]);
    /// The name of a running program.
    ProgramName Param::Bound(&[BindingKind::Program]);
    /// The name of a pipe that holds pages.
    PipeName Param::Bound(&[BindingKind::Pipe]);
    /// The name of a zero-copy send.
    SentName Param::Bound(&[BindingKind::Sent]);
    /// A text to be written.
    Text Param::Text;
}

/// A range of bytes; `len == u64::MAX` is to infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte.
    pub offset: u64,
    /// The number of bytes.
    pub len: u64,
}

impl Argument for ByteRange {
    const PARAM: Param = Param::Range;

    fn from_arg(arg: &Arg) -> Option<ByteRange> {
        match arg {
            Arg::Range(range) => Some(*range),
            _ => None,
        }
    }

    fn to_arg(&self) -> Arg {
        Arg::Range(*self)
    }
}

/// `None` is an argument that was left out; a range that was left out is the whole file or mapping.
impl<T: Argument> Argument for Option<T> {
    const PARAM: Param = Param::Optional(&T::PARAM);

    fn from_arg(arg: &Arg) -> Option<Option<T>> {
        match arg {
            Arg::Absent => Some(None),
            present => T::from_arg(present).map(Some),
        }
    }

    fn to_arg(&self) -> Arg {
        self.as_ref().map_or(Arg::Absent, T::to_arg)
    }
}

/// A range of bytes that an operation moves: at most [`DATA_MAX`] long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRange(ByteRange);

impl Deref for DataRange {
    type Target = ByteRange;

    fn deref(&self) -> &ByteRange {
        &self.0
    }
}

impl Argument for DataRange {
    const PARAM: Param = Param::Data;

    fn from_arg(arg: &Arg) -> Option<DataRange> {
        ByteRange::from_arg(arg).filter(|range| range.len <= DATA_MAX).map(DataRange)
    }

    fn to_arg(&self) -> Arg {
        self.0.to_arg()
    }
}

/// A size or an offset in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl Argument for Bytes {
    const PARAM: Param = Param::Size;

    fn from_arg(arg: &Arg) -> Option<Bytes> {
        u64::from_arg(arg).map(Bytes)
    }

    fn to_arg(&self) -> Arg {
        Arg::Number(self.0)
    }
}

/// A span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Argument for Span {
    const PARAM: Param = Param::Span;

    fn from_arg(arg: &Arg) -> Option<Span> {
        u64::from_arg(arg).map(|nanos| Span(Duration::from_nanos(nanos)))
    }

    fn to_arg(&self) -> Arg {
        Arg::Number(u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// A number of bytes that an operation moves: at most [`DATA_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataLength(pub u64);

impl Argument for DataLength {
    const PARAM: Param = Param::Length;

    fn from_arg(arg: &Arg) -> Option<DataLength> {
        u64::from_arg(arg).filter(|len| *len <= DATA_MAX).map(DataLength)
    }

    fn to_arg(&self) -> Arg {
        Arg::Number(self.0)
    }
}

impl Argument for u64 {
    const PARAM: Param = Param::Number;

    fn from_arg(arg: &Arg) -> Option<u64> {
        match arg {
            Arg::Number(number) => Some(*number),
            _ => None,
        }
    }

    fn to_arg(&self) -> Arg {
        Arg::Number(*self)
    }
}

impl Argument for u8 {
    const PARAM: Param = Param::Byte;

    fn from_arg(arg: &Arg) -> Option<u8> {
        match arg {
            Arg::Byte(byte) => Some(*byte),
            _ => None,
        }
    }

    fn to_arg(&self) -> Arg {
        Arg::Byte(*self)
    }
}

/// How long something is held up; none at all is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay(pub Duration);

impl Argument for Delay {
    const PARAM: Param = Param::Delay;

    fn from_arg(arg: &Arg) -> Option<Delay> {
        Span::from_arg(arg).map(|Span(time)| Delay(time))
    }

    fn to_arg(&self) -> Arg {
        Span(self.0).to_arg()
    }
}

/// Which flushes fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlushRule {
    /// None.
    #[default]
    Off,
    /// All of them.
    On,
    /// One: that with this number, counted from now on and from 1.
    Nth(u64),
    /// Each that so many others come before, itself included.
    Every(u64),
}

impl fmt::Display for FlushRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FlushRule::Off => f.write_str("off"),
            FlushRule::On => f.write_str("on"),
            FlushRule::Nth(number) => write!(f, "nth={number}"),
            FlushRule::Every(number) => write!(f, "every={number}"),
        }
    }
}

/// The words are no [`FlushRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write `on`, `off`, `nth=3` or `every=3`, with a number from 1 on")]
pub struct FlushRuleError;

impl FromStr for FlushRule {
    type Err = FlushRuleError;

    fn from_str(text: &str) -> Result<FlushRule, FlushRuleError> {
        let number = |text: &str| text.parse().ok().filter(|number: &u64| *number > 0).ok_or(FlushRuleError);
        match text.split_once('=') {
            None if text == "on" => Ok(FlushRule::On),
            None if text == "off" => Ok(FlushRule::Off),
            Some(("nth", count)) => number(count).map(FlushRule::Nth),
            Some(("every", count)) => number(count).map(FlushRule::Every),
            _ => Err(FlushRuleError),
        }
    }
}

impl Argument for FlushRule {
    const PARAM: Param = Param::FlushRule;

    fn from_arg(arg: &Arg) -> Option<FlushRule> {
        match arg {
            Arg::Name(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn to_arg(&self) -> Arg {
        Arg::Name(self.to_string())
    }
}

macro_rules! choices {
    ($($(#[doc = $doc:literal])+ $name:ident $(as $param:expr)? => { $($variant:ident $word:literal $variant_doc:literal),+ $(,)? })+) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $(#[doc = $variant_doc] $variant),+
        }

        impl $name {
            /// All words, in the order of the reference page.
            pub const WORDS: &[&str] = &[$($word),+];

            /// The word that scripts use.
            pub fn word(self) -> &'static str {
                match self {
                    $($name::$variant => $word),+
                }
            }

            /// The value of a script's word.
            pub fn from_word(word: &str) -> Option<$name> {
                match word {
                    $($word => Some($name::$variant),)+
                    _ => None,
                }
            }
        }

        impl Argument for $name {
            const PARAM: Param = choices!(@param $name $($param)?);

            fn from_arg(arg: &Arg) -> Option<$name> {
                match arg {
                    Arg::Word(word) => $name::from_word(word),
                    _ => None,
                }
            }

            fn to_arg(&self) -> Arg {
                Arg::Word(self.word())
            }
        }
    )+};
    (@param $name:ident) => { Param::Choice($name::WORDS) };
    (@param $name:ident $param:expr) => { $param };
}

choices! {
    /// A signal.
    SignalName as Param::Signal => {
        Sigio "SIGIO" "A lease is being broken, or I/O is possible.",
        Sigusr1 "SIGUSR1" "For the program's own use.",
        Sigusr2 "SIGUSR2" "For the program's own use.",
        Sigterm "SIGTERM" "Ends the process unless it has a handler.",
        Sigkill "SIGKILL" "Ends the process.",
        Sigbus "SIGBUS" "A page that the process has mapped went bad.",
    }
    /// What a signal does to a process.
    SignalAction => {
        Handler "handler" "The process runs a handler.",
        Ignore "ignore" "Nothing.",
        Default "default" "What the kernel does if the program sets nothing.",
    }
    /// When a process is told of a bad page.
    MemoryFailurePolicy => {
        Early "early" "PR_MCE_KILL_EARLY: when the page goes bad.",
        Late "late" "PR_MCE_KILL_LATE: when it is accessed.",
    }
    /// How a file is opened.
    OpenAccess => {
        Read "r" "For reading.",
        Write "w" "For writing.",
        Both "rw" "For reading and writing.",
        Path "path" "O_PATH: neither.",
    }
    /// The mode of a layout lease.
    LayoutLeaseMode => {
        Read "read" "Shared.",
        Write "write" "Exclusive, for a writer.",
        Exclusive "exclusive" "What the design's gates ask for.",
    }
    /// What F_SETLEASE is asked for.
    BaseLeaseRequest => {
        Read "read" "F_RDLCK.",
        Write "write" "F_WRLCK.",
        Unlock "unlock" "F_UNLCK.",
    }
    /// How far an RDMA FLUSH reaches.
    FlushScope => {
        Global "global" "The bytes are visible to all readers.",
        Persistent "persistent" "The bytes survive a power cut.",
    }
    /// A state of a queue pair that `modify_qp` moves it to.
    QpStateName => {
        ReadyToSend "rts" "IBV_QPS_RTS.",
        SendQueueDrained "sqd" "IBV_QPS_SQD.",
        Error "err" "IBV_QPS_ERR.",
        Reset "reset" "IBV_QPS_RESET.",
    }
    /// What a block layout is for.
    BlockLayoutAccess => {
        Read "r" "For reading.",
        Both "rw" "For reading and writing.",
    }
}

macro_rules! flags {
    ($($(#[doc = $doc:literal])+ $name:ident { $($flag:ident $flag_doc:literal),+ $(,)? })+) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $(#[doc = $flag_doc] pub $flag: bool),+
        }

        impl Argument for $name {
            const PARAM: Param = Param::Flags(&[$(stringify!($flag)),+]);

            fn from_arg(arg: &Arg) -> Option<$name> {
                let Arg::Words(words) = arg else { return None };
                let mut flags = $name::default();
                for word in words {
                    match *word {
                        $(stringify!($flag) => flags.$flag = true,)+
                        _ => return None,
                    }
                }
                Some(flags)
            }

            fn to_arg(&self) -> Arg {
                let words = [$((stringify!($flag), self.$flag)),+];
                Arg::Words(words.into_iter().filter(|(_, set)| *set).map(|(word, _)| word).collect())
            }
        }
    )+};
}

flags! {
    /// The capabilities that a process keeps.
    CapabilityFlags {
        cap_lease "CAP_LEASE: it may take leases on files of other users.",
    }
    /// The flags of `open`.
    OpenFlagWords {
        create "O_CREAT.",
        excl "O_EXCL.",
        trunc "O_TRUNC.",
        nonblock "O_NONBLOCK.",
    }
    /// The flags of `fallocate`.
    AllocateFlags {
        keep_size "FALLOC_FL_KEEP_SIZE.",
    }
    /// The flags of a layout lease.
    LayoutLeaseFlags {
        unbreakable "A layout change does not break the lease.",
    }
    /// The flags of `mmap`.
    MapFlags {
        ro "Read-only.",
        private "MAP_PRIVATE: a page that is stored to becomes a copy of the process's own.",
        sync "MAP_SYNC: what a store needs of the file system is durable before the store.",
    }
    /// The flags of `reg_mr`.
    RegisterFlags {
        ro "The peer may only read.",
        on_demand "On-demand paging: the NIC faults pages in at each access.",
        window "Memory windows may be bound to the region.",
        flush "For FLUSH of both placements.",
    }
    /// The flags of `defragment`.
    DefragmentFlags {
        polite "It breaks no lease and never waits.",
    }
    /// The flags of `prefetch`.
    PrefetchFlags {
        write "For accesses that write.",
    }
    /// The flags of `alloc_mw`.
    WindowFlags {
        type2 "IBV_MW_TYPE_2.",
    }
    /// The flags of a binding.
    BindFlags {
        same_key "A window of type 2 is given the key that it has.",
    }
    /// The flags of `connect`.
    ConnectFlags {
        rnr_wait "`rnr_retry` 7: a send waits until the peer has posted a receive.",
    }
    /// The flags of RDMA reads and writes.
    TransferFlags {
        bad_key "A key that belongs to no region names the local buffer.",
    }
}
