//! Operations: what a process of a scenario, or somebody at a control socket, can ask of the machine.
//!
//! It owns the one table of operations ([`Verb`]): their names, their arguments, what they bind, whether Linux itself can
//! run them. The parser, the reference page and the generator of random sequences read this table, so none of them knows an
//! operation that another doesn't. Invariant: an [`Op`] holds exactly the arguments that its verb's signature names, in that
//! order; who made one has checked it. Kernel counterpart: the system call table; `xfs_io`'s commands for the style.

use std::fmt;

/// What a name in a scenario stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
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
}

impl Kind {
    /// As errors call it.
    pub fn words(self) -> &'static str {
        match self {
            Kind::Process => "a process",
            Kind::Fd => "an open file",
            Kind::Map => "a mapping",
            Kind::Context => "an RDMA context",
            Kind::Region => "a memory region",
            Kind::Window => "a memory window",
            Kind::Qp => "a queue pair",
            Kind::Io => "direct I/O in flight",
            Kind::Umem => "an AF_XDP umem",
            Kind::Ring => "an io_uring with fixed buffers",
            Kind::BlockLayout => "a block layout",
            Kind::Guest => "a guest",
            Kind::Program => "a running program",
        }
    }

    /// Whether it is a descriptor, which can be closed, duplicated and passed.
    pub fn is_descriptor(self) -> bool {
        matches!(self, Kind::Fd | Kind::Context | Kind::Umem | Kind::Ring | Kind::BlockLayout | Kind::Guest)
    }
}

/// What an argument of an operation looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// The name of a file.
    File,
    /// A bound name of one of these kinds.
    Bound(&'static [Kind]),
    /// A process.
    Process,
    /// A size in bytes: `0`, `4KiB`.
    Size,
    /// Two sizes: offset and length; the length may be `inf`.
    Range,
    /// As [`Param::Range`], of bytes that are moved: at most [`DATA_MAX`] of them.
    Data,
    /// As [`Param::Range`], or nothing: the whole.
    MaybeRange,
    /// A byte: one printable character, or `zeros`.
    Byte,
    /// A whole number.
    Number,
    /// A signal.
    Signal,
    /// Exactly one of these words.
    Choice(&'static [&'static str]),
    /// Any of these words, in any order.
    Flags(&'static [&'static str]),
}

/// The most bytes that one operation moves: 64 MiB.
pub const DATA_MAX: u64 = 64 << 20;

/// The signals that can be named.
pub const SIGNALS: [&str; 5] = ["SIGIO", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGKILL"];

const DESCRIPTOR: Param =
    Param::Bound(&[Kind::Fd, Kind::Context, Kind::Umem, Kind::Ring, Kind::BlockLayout, Kind::Guest]);
const FD: Param = Param::Bound(&[Kind::Fd]);
const MAP: Param = Param::Bound(&[Kind::Map]);
const CONTEXT: Param = Param::Bound(&[Kind::Context]);
const REGION: Param = Param::Bound(&[Kind::Region]);
const WINDOW: Param = Param::Bound(&[Kind::Window]);
const REMOTE: Param = Param::Bound(&[Kind::Region, Kind::Window]);
const QP: Param = Param::Bound(&[Kind::Qp]);
const IO: Param = Param::Bound(&[Kind::Io]);
const UMEM: Param = Param::Bound(&[Kind::Umem]);
const RING: Param = Param::Bound(&[Kind::Ring]);
const BLOCK_LAYOUT: Param = Param::Bound(&[Kind::BlockLayout]);
const GUEST: Param = Param::Bound(&[Kind::Guest]);
const PROGRAM: Param = Param::Bound(&[Kind::Program]);

/// Where an operation can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// On the simulated machine alone.
    Simulation,
    /// On a real Linux too.
    Linux,
}

macro_rules! verbs {
    ($($section:literal { $($verb:ident $name:literal ($($param:ident: $kind:expr),*) $(-> $binds:ident)? $on:ident $doc:literal;)+ })+) => {
        /// Every operation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Verb {
            $($(#[doc = $doc] $verb,)+)+
        }

        impl Verb {
            /// All of them, in the order of the reference page.
            pub const ALL: &[Verb] = &[$($(Verb::$verb,)+)+];

            /// As scenarios write it.
            pub fn name(self) -> &'static str {
                match self {
                    $($(Verb::$verb => $name,)+)+
                }
            }

            /// Its arguments: name and kind.
            pub fn params(self) -> &'static [(&'static str, Param)] {
                match self {
                    $($(Verb::$verb => &[$((stringify!($param), $kind)),*],)+)+
                }
            }

            /// What kind of thing it makes, if it makes one.
            pub fn binds(self) -> Option<Kind> {
                match self {
                    $($(Verb::$verb => None$(.or(Some(Kind::$binds)))?,)+)+
                }
            }

            /// Where it can run.
            pub fn on(self) -> On {
                match self {
                    $($(Verb::$verb => On::$on,)+)+
                }
            }

            /// What it does.
            pub fn doc(self) -> &'static str {
                match self {
                    $($(Verb::$verb => $doc,)+)+
                }
            }

            /// The heading it stands under on the reference page.
            pub fn section(self) -> &'static str {
                match self {
                    $($(Verb::$verb)|+ => $section,)+
                }
            }
        }
    };
}

verbs! {
    "Processes and descriptors" {
        Fork "fork" () -> Process Linux "A child with copies of descriptors, mappings and signal dispositions.";
        Exit "exit" () Linux "Ends the process.";
        Kill "kill" (process: Param::Process, signal: Param::Signal) Linux "Sends a signal.";
        Signal "signal" (signal: Param::Signal, disposition: Param::Choice(&["handler", "ignore", "default"])) Linux
            "Sets what a signal does to the process. A scenario's processes start with a handler for SIGIO and SIGUSR1.";
        Credentials "credentials" (uid: Param::Number, capabilities: Param::Flags(&["cap_lease"])) Linux
            "Changes the user, and whether CAP_LEASE is kept. A scenario's processes start as user 0 with CAP_LEASE.";
        Dup "dup" (fd: DESCRIPTOR) -> Fd Linux "A second descriptor for the same open file.";
        Dup2 "dup2" (from: DESCRIPTOR, to: DESCRIPTOR) Linux "Makes `to` a descriptor of what `from` is; what `to` was is closed.";
        Close "close" (fd: DESCRIPTOR) Linux "Closes a descriptor.";
        Send "send" (process: Param::Process, fd: DESCRIPTOR) Linux "Sends a descriptor to a process (SCM_RIGHTS); it waits unread in its socket.";
        Recv "recv" () -> Fd Linux "Receives the oldest descriptor sent. `MSG_CTRUNC` if the design drops it. The name stands for whatever was sent.";
    }
    "Files" {
        Open "open" (file: Param::File, access: Param::Choice(&["r", "w", "rw", "path"]), flags: Param::Flags(&["create", "excl", "trunc", "nonblock"])) -> Fd Linux
            "Opens a file; `path` is O_PATH.";
        Read "read" (fd: FD, range: Param::Data) Linux "Reads. The value tells the bytes: `a` if all are that, `a:4KiB,zeros:4KiB` if not, `eof` if none.";
        Write "write" (fd: FD, range: Param::Data, byte: Param::Byte) Linux "Writes the byte all over the range.";
        SubmitRead "submit_read" (fd: FD, range: Param::Data) -> Io Simulation "Starts direct I/O that stays in flight, its pages pinned short-term (io_submit).";
        SubmitWrite "submit_write" (fd: FD, range: Param::Data, byte: Param::Byte) -> Io Simulation "As `submit_read`, writing.";
        Complete "complete" (io: IO) Simulation "Lets direct I/O in flight finish. The value of a read is as for `read`.";
        Truncate "truncate" (file: Param::File, size: Param::Size) Linux "Sets the size, by path.";
        Ftruncate "ftruncate" (fd: FD, size: Param::Size) Linux "Sets the size, through a descriptor.";
        Fallocate "fallocate" (fd: FD, range: Param::Range, flags: Param::Flags(&["keep_size"])) Linux "Allocates what is missing.";
        Punch "punch" (fd: FD, range: Param::Range) Linux "FALLOC_FL_PUNCH_HOLE.";
        Zero "zero" (fd: FD, range: Param::Range, flags: Param::Flags(&["keep_size"])) Linux "FALLOC_FL_ZERO_RANGE.";
        Collapse "collapse" (fd: FD, range: Param::Range) Linux "FALLOC_FL_COLLAPSE_RANGE.";
        Insert "insert" (fd: FD, range: Param::Range) Linux "FALLOC_FL_INSERT_RANGE.";
        Unshare "unshare" (fd: FD, range: Param::Range) Simulation "FALLOC_FL_UNSHARE_RANGE.";
        Reflink "reflink" (from: FD, from_offset: Param::Size, to: FD, to_range: Param::Range) Simulation "FICLONERANGE: `to` shares the blocks of `from`.";
        Dedupe "dedupe" (from: FD, from_offset: Param::Size, to: FD, to_range: Param::Range) Simulation "FIDEDUPERANGE: shares, of no more than the first 16 MiB, if the bytes are the same; the value is `same` or `differs`.";
        Exchange "exchange" (a: FD, a_offset: Param::Size, b: FD, b_range: Param::Range) Simulation "Exchanges the blocks of two ranges (XFS_IOC_EXCHANGE_RANGE).";
        Unlink "unlink" (file: Param::File) Linux "Removes a name.";
        Rename "rename" (from: Param::File, to: Param::File) Linux "Renames; what had the name is replaced.";
        Link "link" (file: Param::File, name: Param::File) Linux "Gives a file a second name.";
        Chmod "chmod" (file: Param::File) Linux "Sets the mode bits, to what they are.";
        Utime "utime" (file: Param::File) Linux "Sets the times.";
        Stat "stat" (file: Param::File) Linux "Looks at a file by path; the value is its size.";
        Fstat "fstat" (fd: FD) Linux "Looks at an open file; the value is its size.";
        Exec "exec" (file: Param::File) -> Program Linux "Runs the file as a program in a child, until `end`.";
        End "end" (program: PROGRAM) Linux "Ends a running program.";
    }
    "Leases" {
        Lease "lease" (fd: FD, mode: Param::Choice(&["read", "write", "exclusive"]), flags: Param::Flags(&["unbreakable"]), range: Param::MaybeRange) Simulation
            "Takes a layout lease, or converts the one held. Rounded outward to blocks. `exclusive` is the kind that gates ask for: `write` under `chinner` rules, else `read unbreakable`.";
        Unlock "unlock" (fd: FD, range: Param::MaybeRange) Simulation "Gives a layout lease back.";
        Downgrade "downgrade" (fd: FD, range: Param::MaybeRange) Simulation "Turns a write lease into read+U.";
        SetLease "setlease" (fd: FD, lease: Param::Choice(&["read", "write", "unlock"])) Linux "An ordinary lease: F_SETLEASE with F_RDLCK, F_WRLCK or F_UNLCK.";
        GetLease "getlease" (fd: FD) Linux "F_GETLEASE; the value is `read`, `write` or `none`.";
        SetOwn "setown" (fd: FD, process: Param::Process) Linux "F_SETOWN.";
        SetSig "setsig" (fd: FD, signal: Param::Signal) Linux "F_SETSIG.";
    }
    "Memory" {
        Mmap "mmap" (fd: FD, range: Param::Range, flags: Param::Flags(&["ro"])) -> Map Linux "Maps a range of a file, shared.";
        MmapAnon "mmap_anon" (length: Param::Size) -> Map Linux "Maps anonymous shared memory.";
        MmapDevDax "mmap_devdax" (length: Param::Size) -> Map Simulation "Maps device-DAX memory: a device of its own, without a file system whose layout could change.";
        Munmap "munmap" (map: MAP, range: Param::MaybeRange) Linux "Unmaps a mapping, or a part of it.";
        Load "load" (map: MAP, range: Param::Data) Linux "Reads through a mapping; the value is as for `read`.";
        Store "store" (map: MAP, range: Param::Data, byte: Param::Byte) Linux "Writes through a mapping.";
    }
    "RDMA" {
        RdmaOpen "rdma_open" () -> Context Simulation "Opens the NIC.";
        RegMr "reg_mr" (context: CONTEXT, map: MAP, range: Param::Range, flags: Param::Flags(&["ro", "on_demand", "window", "flush"])) -> Region Simulation
            "Registers memory, for every access unless `ro`; `on_demand`: faulted in at each access; `window`: windows may be bound; `flush`: for FLUSH of both kinds.";
        ReregMr "rereg_mr" (mr: REGION, map: MAP, range: Param::Range) -> Region Simulation "Changes what a region covers; the name stands for it from now on, under the same keys.";
        DeregMr "dereg_mr" (mr: REGION) Simulation "Deregisters.";
        AllocMw "alloc_mw" (context: CONTEXT) -> Window Simulation "Allocates a memory window (type 1).";
        BindMw "bind_mw" (qp: QP, window: WINDOW, mr: REGION, range: Param::Range) Simulation "Binds a window to a part of a region; length 0 unbinds.";
        DeallocMw "dealloc_mw" (window: WINDOW) Simulation "Deallocates a window.";
        Connect "connect" (own: CONTEXT, peer: CONTEXT) -> Qp Simulation "A queue pair on each of two contexts, connected. The name stands for this side's end.";
        RdmaWrite "rdma_write" (qp: QP, remote: REMOTE, range: Param::Data, byte: Param::Byte, flags: Param::Flags(&["bad_key"])) Simulation
            "Writes into the peer's region. Fails with the completion's status, such as `remote_access_error` or `flushed`. `bad_key`: this side's buffer is named by a key that is no region's.";
        RdmaRead "rdma_read" (qp: QP, remote: REMOTE, range: Param::Data, flags: Param::Flags(&["bad_key"])) Simulation
            "Reads the peer's region; the value is as for `read`. `bad_key` is as for `rdma_write`.";
        FetchAdd "fetch_add" (qp: QP, remote: REMOTE, offset: Param::Size, add: Param::Number) Simulation "Adds to 8 bytes; the value is what was there.";
        AtomicWrite "atomic_write" (qp: QP, remote: REMOTE, offset: Param::Size, value: Param::Number) Simulation "Writes 8 bytes, never torn.";
        Flush "flush" (qp: QP, remote: REMOTE, range: Param::Range, placement: Param::Choice(&["global", "persistent"])) Simulation "RDMA FLUSH.";
        Event "event" (context: CONTEXT) Simulation "Takes the oldest asynchronous event; the value is its name, or `none`.";
        Memlock "memlock" (limit: Param::Size) Simulation "Sets the limit of locked memory (RLIMIT_MEMLOCK).";
    }
    "Other holders of pages" {
        UmemRegister "umem" (map: MAP, range: Param::Range) -> Umem Simulation "Registers an AF_XDP umem.";
        UmemReceive "umem_receive" (umem: UMEM, range: Param::Data, byte: Param::Byte) Simulation "A packet arrives in the umem.";
        FixedBuffers "fixed_buffers" (map: MAP, range: Param::Range) -> Ring Simulation "Registers io_uring fixed buffers.";
        RingRead "ring_read" (ring: RING, range: Param::Data, from: FD, at: Param::Size) Simulation "An I/O reads a file at AT into the fixed buffers.";
        GuestAttach "guest_attach" (fd: FD) -> Guest Simulation "Exports an open file to a guest as its persistent memory.";
        GuestStore "guest_store" (guest: GUEST, range: Param::Data, byte: Param::Byte) Simulation "The guest stores.";
        GuestFlush "guest_flush" (guest: GUEST) Simulation "The guest flushes.";
        GuestDetach "guest_detach" (guest: GUEST) Simulation "The guest is gone.";
        LayoutGet "layoutget" (fd: FD, range: Param::Range, access: Param::Choice(&["r", "rw"])) -> BlockLayout Simulation "A block-layout client (pNFS) takes a layout.";
        LayoutWrite "layout_write" (layout: BLOCK_LAYOUT, range: Param::Data, byte: Param::Byte) Simulation "The client writes to the device directly.";
        LayoutReturn "layoutreturn" (layout: BLOCK_LAYOUT) Simulation "The client returns its layout.";
    }
    "The system" {
        Defragment "defragment" (file: Param::File) Simulation "The system moves the file's blocks together; the value is `moved:N skipped:N` in blocks.";
        Poison "poison" (file: Param::File, offset: Param::Size) Simulation "The page under this offset goes bad.";
        PowerCut "power_cut" () Simulation "The power fails, and the machine boots again: every process is gone (calls in progress are `killed`), the volume is recovered; the value is `pending:N removed:N`, blocks freed that were orphaned and inodes removed that had no name.";
        Unmount "unmount" () Simulation "Unmounts the volume.";
        RemoveDevice "remove_device" () Simulation "Takes the device away.";
    }
}

impl Verb {
    /// The verb of that name.
    pub fn from_name(name: &str) -> Option<Verb> {
        Verb::ALL.iter().copied().find(|verb| verb.name() == name)
    }

    /// How it is written, as the reference page shows it: `open FILE r|w|rw|path [create] [excl] …`.
    pub fn usage(self) -> String {
        let mut usage = String::new();
        if let Some(kind) = self.binds() {
            usage += if kind == Kind::Process { "NAME = " } else { "name = " };
        }
        usage += self.name();
        for (name, param) in self.params() {
            usage.push(' ');
            usage += &match param {
                Param::File => name.to_uppercase(),
                Param::Bound(_) => (*name).to_owned(),
                Param::Process => "PROCESS".to_owned(),
                Param::Size | Param::Number => name.to_uppercase(),
                Param::Range | Param::Data => "OFFSET LENGTH".to_owned(),
                Param::MaybeRange => "[OFFSET LENGTH]".to_owned(),
                Param::Byte => "BYTE".to_owned(),
                Param::Signal => "SIGNAL".to_owned(),
                Param::Choice(words) => words.join("|"),
                Param::Flags(words) => words.iter().map(|word| format!("[{word}]")).collect::<Vec<_>>().join(" "),
            };
        }
        usage
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A range of bytes; `len == u64::MAX` is to infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub len: u64,
}

/// An argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A file's name, a bound name, or a process's.
    Name(String),
    /// A size or a number.
    Number(u64),
    /// A range; none is the whole.
    Range(Option<ByteRange>),
    /// A byte.
    Byte(u8),
    /// One of the words that the signature lists; a signal.
    Word(&'static str),
    /// Some of them.
    Words(Vec<&'static str>),
}

/// An operation with its arguments; see the module's invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// Which.
    pub verb: Verb,
    /// One for each of [`Verb::params`].
    pub args: Vec<Arg>,
}

/// Why the accessors below never fail: see the module's invariant.
const CHECKED: &str = "arguments are checked against the signature when an operation is made";

impl Op {
    /// The `n`th argument, a name.
    pub fn name(&self, n: usize) -> &str {
        match self.args.get(n) {
            Some(Arg::Name(name)) => name,
            other => unreachable!("{CHECKED}: {} argument {n} is {other:?}", self.verb),
        }
    }

    /// The `n`th argument, a size or number.
    pub fn number(&self, n: usize) -> u64 {
        match self.args.get(n) {
            Some(Arg::Number(number)) => *number,
            other => unreachable!("{CHECKED}: {} argument {n} is {other:?}", self.verb),
        }
    }

    /// The `n`th argument, a range that may be missing.
    pub fn maybe_range(&self, n: usize) -> Option<ByteRange> {
        match self.args.get(n) {
            Some(Arg::Range(range)) => *range,
            other => unreachable!("{CHECKED}: {} argument {n} is {other:?}", self.verb),
        }
    }

    /// The `n`th argument, a range.
    pub fn range(&self, n: usize) -> ByteRange {
        self.maybe_range(n).unwrap_or(ByteRange { offset: 0, len: u64::MAX })
    }

    /// The `n`th argument, a byte.
    pub fn byte(&self, n: usize) -> u8 {
        match self.args.get(n) {
            Some(Arg::Byte(byte)) => *byte,
            other => unreachable!("{CHECKED}: {} argument {n} is {other:?}", self.verb),
        }
    }

    /// The `n`th argument, a word.
    pub fn word(&self, n: usize) -> &'static str {
        match self.args.get(n) {
            Some(Arg::Word(word)) => word,
            other => unreachable!("{CHECKED}: {} argument {n} is {other:?}", self.verb),
        }
    }

    /// Whether the `n`th argument, a set of flags, has `flag`.
    pub fn has(&self, n: usize, flag: &str) -> bool {
        match self.args.get(n) {
            Some(Arg::Words(words)) => words.contains(&flag),
            other => unreachable!("{CHECKED}: {} argument {n} is {other:?}", self.verb),
        }
    }
}

/// Every operation as the reference page in `docs/scenarios.md` lists it: a table for each section, in Markdown.
pub fn reference() -> String {
    let mut page = String::new();
    let mut section = "";
    for verb in Verb::ALL {
        if verb.section() != section {
            section = verb.section();
            page += &format!("\n### {section}\n\n| operation | on Linux | what it does |\n|---|---|---|\n");
        }
        let linux = if verb.on() == On::Linux { "yes" } else { "" };
        page += &format!("| `{}` | {linux} | {} |\n", verb.usage().replace('|', "\\|"), verb.doc().replace('|', "\\|"));
    }
    page
}

/// The bytes that an operation read, in the words of scenarios: `a` if all `asked` are that, `eof` if there is none, else runs
/// with their lengths in bytes, `a:4096,zeros:4096`; at most [`RUNS_MAX`] of them.
pub fn describe_bytes(bytes: &[u8], asked: usize) -> String {
    let name = |byte: u8| match byte {
        0 => "zeros".to_owned(),
        b if b.is_ascii_graphic() => (b as char).to_string(),
        b => format!("x{b:02x}"),
    };
    let mut runs = bytes.chunk_by(|a, b| a == b);
    match (bytes.first(), bytes.len()) {
        (None, _) if asked > 0 => return "eof".to_owned(),
        (None, _) => return "nothing".to_owned(),
        (Some(first), len) if len == asked && runs.clone().count() == 1 => return name(*first),
        _ => {}
    }
    let mut words: Vec<String> = runs
        .by_ref()
        .take(RUNS_MAX)
        .map(|run| format!("{}:{}", name(run[0]), crate::input::Size(run.len() as u64)))
        .collect();
    if runs.next().is_some() {
        words.push("…".to_owned());
    }
    words.join(",")
}

/// How many runs of equal bytes [`describe_bytes`] tells.
pub const RUNS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_verb_has_words() {
        for (n, verb) in Verb::ALL.iter().enumerate() {
            assert_eq!(Verb::from_name(verb.name()), Some(*verb));
            assert!(Verb::ALL[..n].iter().all(|other| other.name() != verb.name()));
            assert!(verb.doc().ends_with('.') && !verb.section().is_empty());
        }
    }

    #[test]
    fn the_reference_page_lists_this_table() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scenarios.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let (before, listed) = page.split_once("checked by a test -->\n").unwrap();
        let (listed, after) = listed.split_once("\n<!-- end -->").unwrap();
        if std::env::var_os("DAXLAB_WRITE_REFERENCE").is_some() {
            let page = format!("{before}checked by a test -->\n{}\n<!-- end -->{after}", reference().trim_end());
            std::fs::write(path, page).unwrap();
            return;
        }
        assert!(listed == reference().trim_end(), "out of date: run this test with DAXLAB_WRITE_REFERENCE=1");
    }

    #[test]
    fn bytes_in_words() {
        assert_eq!(describe_bytes(b"aaaa", 4), "a");
        assert_eq!(describe_bytes(b"", 4), "eof");
        assert_eq!(describe_bytes(&[0; 3], 4), "zeros:3B");
        assert_eq!(describe_bytes(b"aab\0", 4), "a:2B,b:1B,zeros:1B");
        assert_eq!(describe_bytes(&[7], 1), "x07");
    }
}
