//! The table of operations.
//!
//! It owns every operation's name, arguments, value and documentation. The type [`Op`], the parser
//! of scenarios, the requests of the control socket with the command line of `daxlab ctl`, the
//! reference pages and the generator of random sequences all come from this one table. Sizes and
//! offsets are in bytes.

use std::fmt;

use super::arguments::*;

/// Where an operation can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunsOn {
    /// In a scenario, on the simulated machine alone.
    Simulation,
    /// In a scenario, on a real Linux too.
    Linux,
    /// On a running `daxlab serve` or `daxlab race`, which `daxlab ctl` asks for it.
    Server(AnswerDelay),
    /// In a scenario, also on a real Linux, and on a running server, where it may wait.
    Everywhere,
}

/// Whether a server's answer can take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerDelay {
    /// It may take any time, because a guest, a user or another process must act first. The
    /// counters of all guests count too: the server waits for each guest's backend as long as it
    /// must.
    MayWait,
    /// The server answers at once.
    AtOnce,
}

/// An argument of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// Its syntax.
    pub syntax: Param,
    /// What it means, where the name does not say it: for the help of `daxlab ctl`.
    pub doc: Option<&'static str>,
}

/// What a successful operation gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpValue {
    /// Nothing: the outcome is `ok`.
    Nothing,
    /// A binding of this kind: the step gives it a name.
    Binding(BindingKind),
    /// The bytes read, as [`describe_bytes`](super::describe_bytes) writes them.
    Bytes,
    /// A size in bytes.
    FileSize,
    /// `same` or `differs`.
    Comparison,
    /// `read`, `write` or `none`.
    BaseLease,
    /// A whole number.
    Number,
    /// The name of an asynchronous event, or `none`.
    EventName,
    /// The name of a request and how it ended, or `none`.
    Completion,
    /// Two counts of blocks.
    BlockCounts,
    /// A report: a text for people, and the same as JSON.
    Report,
}

/// The arguments do not fit the operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongArguments {
    /// There are more or fewer than the operation has.
    #[error("`{verb}` takes {expected} arguments, not {found}")]
    Count {
        /// The operation.
        verb: Verb,
        /// How many arguments it has.
        expected: usize,
        /// How many were given.
        found: usize,
    },
    /// One has the wrong type.
    #[error("`{verb}`: argument `{name}` can't be {found:?}")]
    Type {
        /// The operation.
        verb: Verb,
        /// The argument's name.
        name: &'static str,
        /// What was given.
        found: Arg,
    },
}

fn typed<T: Argument>(verb: Verb, name: &'static str, arg: &Arg) -> Result<T, WrongArguments> {
    T::from_arg(arg).ok_or_else(|| WrongArguments::Type { verb, name, found: arg.clone() })
}

macro_rules! optional {
    () => {
        None
    };
    ($value:literal) => {
        Some($value)
    };
}

macro_rules! operations {
    ($($section:literal {
        $($verb:ident $name:literal { $($field:ident: $type:ty $(=> $field_doc:literal)?),* $(,)? }
            -> $value:ident $(($kind:expr))?, $on:ident $(($delay:ident))? $doc:literal;)+
    })+) => {
        /// One operation with its arguments.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Op {
            $($(
                #[doc = $doc]
                $verb { $(#[doc = concat!("The argument `", stringify!($field), "`.")] $(#[doc = $field_doc])? $field: $type),* },
            )+)+
        }

        /// The row of an operation in the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Verb {
            $($(#[doc = $doc] $verb,)+)+
        }

        impl Op {
            /// Its row in the table.
            pub fn verb(&self) -> Verb {
                match self {
                    $($(Op::$verb { .. } => Verb::$verb,)+)+
                }
            }

            /// The operation of this row with these arguments, one for each of [`Verb::params`].
            ///
            /// # Errors
            /// [`WrongArguments`]: their number or the type of one does not fit.
            pub fn from_args(verb: Verb, args: &[Arg]) -> Result<Op, WrongArguments> {
                match verb {
                    $($(Verb::$verb => match args {
                        [$($field),*] => Ok(Op::$verb { $($field: typed(verb, stringify!($field), $field)?),* }),
                        _ => Err(WrongArguments::Count { verb, expected: verb.params().len(), found: args.len() }),
                    },)+)+
                }
            }

            /// Its arguments in their untyped form, one for each of [`Verb::params`].
            pub fn args(&self) -> Vec<Arg> {
                match self {
                    $($(Op::$verb { $($field),* } => vec![$($field.to_arg()),*],)+)+
                }
            }
        }

        impl Verb {
            /// All of them, in the order of the reference page.
            pub const ALL: &[Verb] = &[$($(Verb::$verb,)+)+];

            /// The name that scripts and requests use.
            pub fn name(self) -> &'static str {
                match self {
                    $($(Verb::$verb => $name,)+)+
                }
            }

            /// Its arguments.
            pub fn params(self) -> &'static [Parameter] {
                match self {
                    $($(Verb::$verb => const { &[$(Parameter {
                        name: stringify!($field),
                        syntax: <$type as Argument>::PARAM,
                        doc: optional!($($field_doc)?),
                    }),*] },)+)+
                }
            }

            /// What it gives when it succeeds.
            pub fn value(self) -> OpValue {
                match self {
                    $($(Verb::$verb => OpValue::$value$(($kind))?,)+)+
                }
            }

            /// Where it can run.
            pub fn on(self) -> RunsOn {
                match self {
                    $($(Verb::$verb => RunsOn::$on$((AnswerDelay::$delay))?,)+)+
                }
            }

            /// One line on what it does.
            pub fn doc(self) -> &'static str {
                match self {
                    $($(Verb::$verb => $doc,)+)+
                }
            }

            /// Its heading on the reference page.
            pub fn section(self) -> &'static str {
                match self {
                    $($(Verb::$verb)|+ => $section,)+
                }
            }
        }
    };
}

operations! {
    "Processes and descriptors" {
        Fork "fork" {} -> Binding(BindingKind::Process), Linux
            "A child with copies of descriptors, mappings and signal dispositions.";
        Exit "exit" {} -> Nothing, Linux
            "Ends the process.";
        Kill "kill" { process: ProcessName, signal: SignalName } -> Nothing, Linux
            "Sends a signal.";
        Signal "signal" { signal: SignalName, disposition: SignalAction } -> Nothing, Linux
            "Sets what a signal does to the process. A scenario's processes start with a handler for SIGIO and SIGUSR1.";
        MceKill "mce_kill" { policy: MemoryFailurePolicy } -> Nothing, Simulation
            "When SIGBUS comes for a bad page that the process has mapped: as soon as the page goes bad, or `late`, as at the start, at the next access: prctl(PR_MCE_KILL). A child inherits it.";
        Credentials "credentials" { uid: u64, capabilities: CapabilityFlags } -> Nothing, Linux
            "Changes the user, and whether CAP_LEASE is kept. A scenario's processes start as user 0 with CAP_LEASE.";
        RamDisk "ram_disk" { length: Bytes, delay: Option<Span> } -> Binding(BindingKind::Disk), Linux
            "Opens a new disk without a file system, full of zeros. I/O to it ends by itself after DELAY, also after its process; without DELAY by `complete`.";
        Dup "dup" { fd: DescriptorName } -> Binding(BindingKind::Fd), Linux
            "A second descriptor for the same open file.";
        Dup2 "dup2" { from: DescriptorName, to: DescriptorName } -> Nothing, Linux
            "Makes `to` a descriptor of what `from` is; what `to` was is closed.";
        Close "close" { fd: DescriptorName } -> Nothing, Linux
            "Closes a descriptor.";
        Send "send" { process: ProcessName, fd: DescriptorName } -> Nothing, Linux
            "Sends a descriptor to a process (SCM_RIGHTS); it waits unread in its socket.";
        Recv "recv" {} -> Binding(BindingKind::Fd), Linux
            "Receives the oldest descriptor sent. `MSG_CTRUNC` if the design drops it. The name stands for whatever was sent.";
    }
    "Files" {
        Open "open" { file: FileName, access: OpenAccess, flags: OpenFlagWords } -> Binding(BindingKind::Fd), Linux
            "Opens a file, or by the name `.` the directory; `path` is O_PATH.";
        Memfd "memfd" { length: Bytes } -> Binding(BindingKind::Fd), Linux
            "Makes and opens a file of tmpfs, without a name and full of zeros (memfd_create). Its pages are ordinary memory: long-term pins of them need no lease, and no change of the file waits for them.";
        Tmpfile "tmpfile" { length: Bytes } -> Binding(BindingKind::Fd), Linux
            "As `memfd`, in a file system without DAX (O_TMPFILE): its pages are page cache, and a long-term pin for writing is EFAULT. On a real Linux it is made in the folder that `--page-cache-dir` names, or in that of the scenario's files, if these are not DAX.";
        Read "read" { fd: FdName, range: DataRange } -> Bytes, Linux
            "Reads. The value tells the bytes: `a` if all are that, `a:4KiB,zeros:4KiB` if not, `eof` if none.";
        Write "write" { fd: FdName, range: DataRange, byte: u8 } -> Nothing, Linux
            "Writes the byte all over the range.";
        SubmitRead "submit_read" { fd: FdName, range: DataRange } -> Binding(BindingKind::Io), Simulation
            "Starts direct I/O that stays in flight, its pages pinned short-term (io_submit).";
        SubmitWrite "submit_write" { fd: FdName, range: DataRange, byte: u8 } -> Binding(BindingKind::Io), Simulation
            "As `submit_read`, writing.";
        SubmitReadInto "submit_read_into" { fd: FileOrDiskName, range: DataRange, map: MapName, at: Bytes } -> Binding(BindingKind::Io), Linux
            "As `submit_read`, into the mapping at AT: the pages there are pinned short-term too, by address.";
        SubmitWriteFrom "submit_write_from" { fd: FileOrDiskName, range: DataRange, map: MapName, at: Bytes } -> Binding(BindingKind::Io), Linux
            "As `submit_write`, from the mapping at AT: the pages there are pinned short-term too, by address.";
        Complete "complete" { io: IoName } -> Bytes, Linux
            "Lets direct I/O in flight finish. The value of a read is as for `read`.";
        Truncate "truncate" { file: FileName => "The file's name", size: Bytes => "Its new size, such as `64MiB` or `0`" } -> Nothing, Everywhere
            "Sets the size of a file, by path.";
        Ftruncate "ftruncate" { fd: FdName, size: Bytes } -> Nothing, Linux
            "Sets the size, through a descriptor.";
        Fallocate "fallocate" { fd: FdName, range: ByteRange, flags: AllocateFlags } -> Nothing, Linux
            "Allocates what is missing.";
        Punch "punch" { fd: FdName, range: ByteRange } -> Nothing, Linux
            "FALLOC_FL_PUNCH_HOLE.";
        Zero "zero" { fd: FdName, range: ByteRange, flags: AllocateFlags } -> Nothing, Linux
            "FALLOC_FL_ZERO_RANGE.";
        Collapse "collapse" { fd: FdName, range: ByteRange } -> Nothing, Linux
            "FALLOC_FL_COLLAPSE_RANGE.";
        Insert "insert" { fd: FdName, range: ByteRange } -> Nothing, Linux
            "FALLOC_FL_INSERT_RANGE.";
        Unshare "unshare" { fd: FdName, range: ByteRange } -> Nothing, Linux
            "FALLOC_FL_UNSHARE_RANGE.";
        Reflink "reflink" { from: FdName, from_offset: Bytes, to: FdName, to_range: ByteRange } -> Nothing, Linux
            "FICLONERANGE: `to` shares the blocks of `from`.";
        Dedupe "dedupe" { from: FdName, from_offset: Bytes, to: FdName, to_range: ByteRange } -> Comparison, Linux
            "FIDEDUPERANGE: shares, of no more than the first 16 MiB, if the bytes are the same; the value is `same` or `differs`.";
        Exchange "exchange" { a: FdName, a_offset: Bytes, b: FdName, b_range: ByteRange } -> Nothing, Linux
            "Exchanges the blocks of two ranges (XFS_IOC_EXCHANGE_RANGE).";
        Fsync "fsync" { fd: FdName } -> Nothing, Linux
            "Makes the bytes that CPUs stored through mappings of the file durable (fsync). It misses what a device stores into a page that it has pinned, and that no CPU stored to since the last `fsync`.";
        Unlink "unlink" { file: FileName } -> Nothing, Linux
            "Removes a name.";
        Rename "rename" { from: FileName, to: FileName } -> Nothing, Linux
            "Renames; what had the name is replaced.";
        Link "link" { file: FileName, name: FileName } -> Nothing, Linux
            "Gives a file a second name.";
        Chmod "chmod" { file: FileName } -> Nothing, Linux
            "Sets the mode bits, to what they are.";
        Utime "utime" { file: FileName } -> Nothing, Linux
            "Sets the times.";
        Stat "stat" { file: FileName } -> FileSize, Linux
            "Looks at a file by path; the value is its size.";
        Fstat "fstat" { fd: FdName } -> FileSize, Linux
            "Looks at an open file; the value is its size.";
        Exec "exec" { file: FileName } -> Binding(BindingKind::Program), Linux
            "Runs the file as a program in a child, until `end`.";
        End "end" { program: ProgramName } -> Nothing, Linux
            "Ends a running program.";
    }
    "Leases" {
        Lease "lease" { fd: FdName, mode: LayoutLeaseMode, flags: LayoutLeaseFlags, range: Option<ByteRange> } -> Nothing, Simulation
            "Takes a layout lease, or converts the one held. Rounded outward to blocks. `exclusive` is the kind that gates ask for: `write` under `chinner` rules, else `read unbreakable`.";
        Unlock "unlock" { fd: FdName, range: Option<ByteRange> } -> Nothing, Simulation
            "Gives a layout lease back.";
        Downgrade "downgrade" { fd: FdName, range: Option<ByteRange> } -> Nothing, Simulation
            "Turns a write lease into read+U.";
        SetLease "setlease" { fd: FdName, lease: BaseLeaseRequest } -> Nothing, Linux
            "An ordinary lease: F_SETLEASE with F_RDLCK, F_WRLCK or F_UNLCK.";
        GetLease "getlease" { fd: FdName } -> BaseLease, Linux
            "F_GETLEASE; the value is `read`, `write` or `none`.";
        SetDeleg "setdeleg" { fd: FdName, delegation: BaseLeaseRequest } -> Nothing, Linux
            "A delegation, of a file or of the directory: F_SETDELEG with F_RDLCK, F_WRLCK or F_UNLCK. Linux has it since 6.19.";
        GetDeleg "getdeleg" { fd: FdName } -> BaseLease, Linux
            "F_GETDELEG; the value is `read`, `write` or `none`.";
        SetOwn "setown" { fd: FdName, process: ProcessName } -> Nothing, Linux
            "F_SETOWN.";
        SetSig "setsig" { fd: FdName, signal: SignalName } -> Nothing, Linux
            "F_SETSIG.";
    }
    "Memory" {
        Mmap "mmap" { fd: FdName, range: ByteRange, flags: MapFlags } -> Binding(BindingKind::Map), Linux
            "Maps a range of a file, shared; `private`: a page that is stored to, or pinned for long, becomes a copy; `sync`: with MAP_SYNC, so that a store needs no `fsync` beside the write-back of its line; EOPNOTSUPP where that can't be promised.";
        MmapAnon "mmap_anon" { length: Bytes } -> Binding(BindingKind::Map), Linux
            "Maps anonymous shared memory.";
        MmapDevDax "mmap_devdax" { length: Bytes } -> Binding(BindingKind::Map), Linux
            "Maps device-DAX memory, full of zeros: a device of its own, without a file system whose layout could change. On a real Linux a part of the device that `--device-dax` names.";
        MmapDevice "mmap_device" { file: FileName, range: ByteRange } -> Binding(BindingKind::Map), Simulation
            "Maps the pages of the volume's own device under a range of a file, as device-DAX over the same memory would, and stays at them: no lease is asked for their pins, which count all the same. ENXIO if the range is not one run of blocks.";
        Munmap "munmap" { map: MapName, range: Option<ByteRange> } -> Nothing, Linux
            "Unmaps a mapping, or a part of it.";
        Msync "msync" { map: MapName, range: ByteRange } -> Nothing, Linux
            "As `fsync`, of what a part of a mapping shows (msync with MS_SYNC).";
        Load "load" { map: MapName, range: DataRange } -> Bytes, Linux
            "Reads through a mapping; the value is as for `read`.";
        Store "store" { map: MapName, range: DataRange, byte: u8 } -> Nothing, Linux
            "Writes through a mapping.";
        SendZeroCopy "send_zero_copy" { map: MapName, range: DataRange } -> Binding(BindingKind::Sent), Simulation
            "Sends pages of a mapping without a copy (MSG_ZEROCOPY): pinned short-term until the peer acknowledges them, also after the sender's exit.";
        Acknowledge "acknowledge" { send: SentName } -> Bytes, Simulation
            "The peer acknowledges, which lets the pages go; the value is what it got, as for `read`. Any process may say so.";
        Vmsplice "vmsplice" { map: MapName, range: DataRange } -> Binding(BindingKind::Pipe), Linux
            "Puts pages of a mapping into a pipe, which holds them (short-term pins) after munmap and close too.";
        Drain "drain" { pipe: PipeName } -> Bytes, Linux
            "Reads the pipe empty, which lets its pages go; the value is as for `read`.";
    }
    "RDMA" {
        RdmaOpen "rdma_open" {} -> Binding(BindingKind::Context), Linux
            "Opens the NIC.";
        RegMr "reg_mr" { context: ContextName, map: MapName, range: ByteRange, flags: RegisterFlags } -> Binding(BindingKind::Region), Linux
            "Registers memory, for every access unless `ro`; `on_demand`: faulted in at each access; `window`: windows may be bound; `flush`: for FLUSH of both kinds.";
        ReregMr "rereg_mr" { mr: MrName, map: MapName, range: ByteRange } -> Binding(BindingKind::Region), Linux
            "Changes what a region covers; the name stands for it from now on, under the same keys.";
        ReregAccess "rereg_access" { mr: MrName, flags: RegisterFlags } -> Binding(BindingKind::Region), Linux
            "Changes what a region allows, and nothing else (IBV_REREG_MR_CHANGE_ACCESS); the flags are those of `reg_mr`. The name stands for the region from now on, under the same keys.";
        DeregMr "dereg_mr" { mr: MrName } -> Nothing, Linux
            "Deregisters.";
        Prefetch "prefetch" { context: ContextName, mr: MrName, range: ByteRange, flags: PrefetchFlags } -> Nothing, Linux
            "Faults a part of an on-demand region in, before it is used (ibv_advise_mr). `write`: for writing.";
        AllocMw "alloc_mw" { context: ContextName, flags: WindowFlags } -> Binding(BindingKind::Window), Linux
            "Allocates a memory window: of type 1, or of type 2 (`type2`), which opens for the queue pair alone that bound it and can be invalidated.";
        BindMw "bind_mw" { qp: QpName, window: MwName, mr: MrName, range: ByteRange, flags: BindFlags } -> Nothing, Linux
            "Binds a window to a part of a region; length 0 unbinds one of type 1. A window of type 2 must not be bound; the program chooses its next key, or with `same_key` the key that it has.";
        Invalidate "invalidate" { qp: QpName, window: MwName } -> Nothing, Linux
            "Ends the binding of a window of type 2, from its own side (IBV_WR_LOCAL_INV). No effect if it is not bound.";
        DeallocMw "dealloc_mw" { window: MwName } -> Nothing, Linux
            "Deallocates a window.";
        Connect "connect" { own: ContextName, peer: ContextName, flags: ConnectFlags } -> Binding(BindingKind::Qp), Linux
            "A queue pair on each of two contexts, connected. The name stands for this side's end. `rnr_wait`: what this side sends waits until the peer has posted a receive (`rnr_retry` 7, not 0).";
        Accept "accept" { qp: QpName } -> Binding(BindingKind::Qp), Linux
            "Gives a name to the other end of a connection, whose context this process has.";
        ModifyQp "modify_qp" { qp: QpName, state: QpStateName } -> Nothing, Simulation
            "Moves a queue pair (ibv_modify_qp). `sqd`: what is posted to its send queue waits there; `rts`: this call executes what waited; `err`: work is flushed; `reset`: work vanishes, and so does the connection.";
        DestroyQp "destroy_qp" { qp: QpName } -> Nothing, Simulation
            "Destroys a queue pair; its work vanishes.";
        RdmaWrite "rdma_write" { qp: QpName, remote: RemoteName, range: DataRange, byte: u8, flags: TransferFlags } -> Nothing, Linux
            "Writes into the peer's region. Fails with the completion's status, such as `remote_access_error` or `flushed`; `EAGAIN`, and nothing is posted, if the request would have to wait in the queue. `bad_key`: this side's buffer is named by a key that is no region's.";
        RdmaRead "rdma_read" { qp: QpName, remote: RemoteName, range: DataRange, flags: TransferFlags } -> Bytes, Linux
            "Reads the peer's region; the value is as for `read`. `bad_key` is as for `rdma_write`.";
        RdmaSend "rdma_send" { qp: QpName, length: DataLength, byte: u8 } -> Nothing, Linux
            "Sends a message into the oldest receive that the peer has posted.";
        SendInvalidate "send_invalidate" { qp: QpName, window: MwName, length: DataLength, byte: u8 } -> Nothing, Linux
            "As `rdma_send`; ends the binding of the receiver's window of type 2 (IBV_WR_SEND_WITH_INV).";
        FetchAdd "fetch_add" { qp: QpName, remote: RemoteName, offset: Bytes, add: u64 } -> Number, Linux
            "Adds to 8 bytes; the value is what was there.";
        Cas "cas" { qp: QpName, remote: RemoteName, offset: Bytes, compare: u64, swap: u64 } -> Number, Linux
            "Replaces 8 bytes if they are `compare`; the value is what was there.";
        AtomicWrite "atomic_write" { qp: QpName, remote: RemoteName, offset: Bytes, value: u64 } -> Nothing, Linux
            "Writes 8 bytes, never torn.";
        Flush "flush" { qp: QpName, remote: RemoteName, range: ByteRange, placement: FlushScope } -> Nothing, Linux
            "RDMA FLUSH.";
        FlushRegion "flush_region" { qp: QpName, remote: RemoteName, placement: FlushScope } -> Nothing, Linux
            "RDMA FLUSH of the whole region (IB_FLUSH_MR).";
        PostWrite "post_write" { qp: QpName, remote: RemoteName, range: DataRange, byte: u8, flags: TransferFlags } -> Binding(BindingKind::Work), Linux
            "Posts what `rdma_write` does, and does not wait for it: `poll` tells how it ended, under the name given here. Its buffer lives until then.";
        PostRead "post_read" { qp: QpName, remote: RemoteName, range: DataRange, flags: TransferFlags } -> Binding(BindingKind::Work), Linux
            "Posts what `rdma_read` does.";
        PostFetchAdd "post_fetch_add" { qp: QpName, remote: RemoteName, offset: Bytes, add: u64 } -> Binding(BindingKind::Work), Linux
            "Posts what `fetch_add` does.";
        PostCas "post_cas" { qp: QpName, remote: RemoteName, offset: Bytes, compare: u64, swap: u64 } -> Binding(BindingKind::Work), Linux
            "Posts what `cas` does.";
        PostAtomicWrite "post_atomic_write" { qp: QpName, remote: RemoteName, offset: Bytes, value: u64 } -> Binding(BindingKind::Work), Linux
            "Posts what `atomic_write` does.";
        PostFlush "post_flush" { qp: QpName, remote: RemoteName, range: ByteRange, placement: FlushScope } -> Binding(BindingKind::Work), Linux
            "Posts what `flush` does.";
        PostSend "post_send" { qp: QpName, length: DataLength, byte: u8 } -> Binding(BindingKind::Work), Linux
            "Posts what `rdma_send` does.";
        PostSendInvalidate "post_send_invalidate" { qp: QpName, window: MwName, length: DataLength, byte: u8 } -> Binding(BindingKind::Work), Linux
            "Posts what `send_invalidate` does.";
        PostBindMw "post_bind_mw" { qp: QpName, window: MwName, mr: MrName, range: ByteRange, flags: BindFlags } -> Binding(BindingKind::Work), Linux
            "Posts what `bind_mw` does.";
        PostInvalidate "post_invalidate" { qp: QpName, window: MwName } -> Binding(BindingKind::Work), Linux
            "Posts what `invalidate` does.";
        PostRecv "post_recv" { qp: QpName, mr: MrName, range: DataRange } -> Binding(BindingKind::Work), Linux
            "Posts a part of an own region as a receive, for one message of the peer.";
        Poll "poll" { context: ContextName } -> Completion, Linux
            "Takes the oldest completion of what was posted on a context (ibv_poll_cq): `w:success` or another status under the request's name, `w:success:a` with the value of a read or atomic, `r:success:4KiB` with the length of a received message, and `:invalidated` behind it if the message did that; or `none`.";
        Event "event" { context: ContextName } -> EventName, Simulation
            "Takes the oldest asynchronous event; the value is its name, `region_revoked:NAME` with the region's name, or `none`.";
        Memlock "memlock" { limit: Bytes } -> Nothing, Linux
            "Sets the limit of locked memory (RLIMIT_MEMLOCK).";
    }
    "Other holders of pages" {
        UmemRegister "umem" { map: MapName, range: ByteRange } -> Binding(BindingKind::Umem), Linux
            "Registers an AF_XDP umem (XDP_UMEM_REG).";
        UmemReceive "umem_receive" { umem: UmemName, range: DataRange, byte: u8 } -> Nothing, Simulation
            "A packet arrives in the umem.";
        FixedBuffers "fixed_buffers" { map: MapName, range: ByteRange } -> Binding(BindingKind::Ring), Linux
            "Registers io_uring fixed buffers (IORING_REGISTER_BUFFERS).";
        RingRead "ring_read" { ring: RingName, range: DataRange, from: FdName, at: Bytes } -> Nothing, Linux
            "An I/O reads a file at AT into the fixed buffers (IORING_OP_READ_FIXED).";
        GuestAttach "guest_attach" { fd: FdName } -> Binding(BindingKind::Guest), Simulation
            "Exports an open file to a guest as its persistent memory.";
        GuestStore "guest_store" { guest: GuestName, range: DataRange, byte: u8 } -> Nothing, Simulation
            "The guest stores.";
        GuestFlush "guest_flush" { guest: GuestName } -> Nothing, Simulation
            "The guest flushes.";
        GuestDetach "guest_detach" { guest: GuestName } -> Nothing, Simulation
            "The guest is gone.";
        LayoutGet "layoutget" { fd: FdName, range: ByteRange, access: BlockLayoutAccess } -> Binding(BindingKind::BlockLayout), Simulation
            "A block-layout client (pNFS) takes a layout.";
        LayoutWrite "layout_write" { layout: BlockLayoutName, range: DataRange, byte: u8 } -> Nothing, Simulation
            "The client writes to the device directly.";
        LayoutReturn "layoutreturn" { layout: BlockLayoutName } -> Nothing, Simulation
            "The client returns its layout.";
    }
    "The system" {
        Defragment "defragment" { file: FileName, flags: DefragmentFlags } -> BlockCounts, Simulation
            "The system moves the file's blocks together, as a stranger: it breaks breakable leases, and skips exclusive leases and pins. `polite`: it breaks none and skips everything leased. The value is `moved:N skipped:N` in blocks.";
        Poison "poison" { file: FileName, offset: Bytes, length: Option<Bytes> } -> Nothing, Simulation
            "The page under this offset, or the pages under this range of a file, go bad. Holes are left out; ENXIO if nothing else is there.";
        PoisonMap "poison_map" { map: MapName, range: ByteRange } -> Nothing, Simulation
            "The pages that a part of a shared mapping of a file, or of the volume's device, shows go bad.";
        PoisonMr "poison_mr" { mr: MrName, range: ByteRange } -> Nothing, Simulation
            "The pages that a part of a region has pinned go bad, whether or not they are still the file's. ENXIO if it pins none of a file.";
        ClearPoison "clear_poison" { file: FileName, range: ByteRange } -> Nothing, Simulation
            "Heals the bad pages under a range, which read as zeros then (ndctl clear-errors). A `write` of whole blocks heals them too; a store and a DMA do not.";
        Persist "persist" { file: FileName, offset: Bytes, length: Bytes } -> Nothing, Simulation
            "The CPU caches write back the lines of a range of a file, as they may at any moment. Holes are left out; ENXIO if nothing else is there.";
        PersistMap "persist_map" { map: MapName, range: ByteRange } -> Nothing, Simulation
            "The process writes back the lines of a part of a mapping: CLWB of each line, then SFENCE (pmem_persist).";
        PersistMr "persist_mr" { mr: MrName, range: ByteRange } -> Nothing, Simulation
            "The CPU caches write back the lines of a part of a region, whether or not its pages are still the file's. ENXIO if it pins none of a file.";
        PowerCut "power_cut" {} -> BlockCounts, Simulation
            "The power fails, and the machine boots again: every process is gone (calls in progress are `killed`), the volume is recovered; the value is `pending:N removed:N`, blocks freed that were orphaned and inodes removed that had no name. Under `platform=adr` stores that were not written back are lost, and ` lost:N` follows: that many lines of 64 bytes of files went back to what they were.";
        Unmount "unmount" {} -> Nothing, Simulation
            "Unmounts the volume.";
        RemoveDevice "remove_device" {} -> Nothing, Simulation
            "Takes the device away.";
        RemoveNic "remove_nic" {} -> Nothing, Simulation
            "Unplugs the NIC (ib_unregister_device): queue pairs go to error, regions end with their pins, each context gets the event `fatal`. Descriptors stay; calls on them are EIO, `rdma_open` is ENODEV. Completions and events can still be taken.";
    }
    "A running server" {
        Blockers "blockers" { file: FileName => "The file's name, or its inode's number" } -> Report, Server(AtOnce)
            "Who stands against a layout change of a file, and who waits for whom.";
        Changes "changes" { file: Option<FileName> => "The file's name, or its inode's number" } -> Report, Server(AtOnce)
            "The layout changes of a file, or of all files, that are under way or queued, and what each waits for.";
        Leases "leases" { file: Option<FileName> => "The file's name, or its inode's number" } -> Report, Server(AtOnce)
            "The layout leases of a file, or of all files.";
        Pins "pins" { file: Option<FileName> => "The file's name, or its inode's number" } -> Report, Server(AtOnce)
            "The long-term pins of a file, or of all files.";
        PunchByPath "punch" {
            file: FileName => "The file's name",
            offset: Bytes => "Where the hole begins",
            len: Bytes => "How long it is",
        } -> Nothing, Server(MayWait)
            "Punches a hole into a file.";
        FallocateByPath "fallocate" {
            file: FileName => "The file's name",
            offset: Bytes => "Where the range begins",
            len: Bytes => "How long it is",
        } -> Nothing, Server(MayWait)
            "Allocates a range of a file.";
        Guests "guests" {} -> Report, Server(AtOnce)
            "The guests and the state of each.";
        FlushStats "flush-stats" {} -> Report, Server(MayWait)
            "The counters of the guests' devices: requests, flushes, failures, maps.";
        Stale "stale" {} -> Report, Server(AtOnce)
            "Pages that guests have mapped and that have left their file.";
        PoisonRange "poison" {
            file: FileName => "The file's name, or its inode's number",
            offset: Bytes => "Where the range begins",
            len: Bytes => "How long it is; whole blocks of 4 KiB are poisoned",
        } -> Nothing, Server(AtOnce)
            "Poisons blocks of a file: the host and the NIC fail on them (a guest can't be told).";
        CutGuestPower "power-cut" {
            seed: Option<u64> => "Decides which lines survive; the server's own seed if not given",
        } -> Nothing, Server(MayWait)
            "Cuts the guests' power: lines that were not flushed survive by chance (needs `serve --power-cut-model`).";
        FailFlush "fail-flush" {
            on: FlushRule => "Which flushes fail"
        } -> Nothing, Server(MayWait)
            "Makes flushes fail: all, the Nth from now on, or the last of every N; or lets them succeed again.";
        DelayFlush "flush-delay" {
            delay: Delay => "How long each flush is held up, at most 60s"
        } -> Nothing, Server(MayWait)
            "Holds up each flush before it is made, or lets flushes go at once again.";
        Revoke "revoke" { file: Option<FileName> => "The file's name" } -> Nothing, Server(MayWait)
            "Takes a file (without a name: all files, or the image) from the guests that have it.";
        RegisterGuestFile "rdma-reg" { file: FileName => "The file's name" } -> Number, Server(MayWait)
            "Registers a file that a guest has as an RDMA region, in the process that has it for the guest.";
        RegionWrite "rdma-write" {
            mr: u64 => "The region's number",
            offset: Bytes => "Where in the region",
            text: Text => "What is written",
        } -> Nothing, Server(AtOnce)
            "Writes into a region by RDMA, as a client of the NIC.";
        RegionRead "rdma-read" {
            mr: u64 => "The region's number",
            offset: Bytes => "Where in the region",
            len: Bytes => "How much, at most 1MiB",
        } -> Bytes, Server(AtOnce)
            "Reads from a region by RDMA, as a client of the NIC.";
        RegionDereg "rdma-dereg" { mr: u64 => "The region's number" } -> Nothing, Server(MayWait)
            "Deregisters a region.";
    }
}

impl Verb {
    /// What kind of thing it makes, if it makes one.
    pub fn binds(self) -> Option<BindingKind> {
        match self.value() {
            OpValue::Binding(kind) => Some(kind),
            _ => None,
        }
    }

    /// Whether scenarios can use it.
    pub fn is_for_scripts(self) -> bool {
        !matches!(self.on(), RunsOn::Server(_))
    }

    /// Whether a running server can be asked for it.
    pub fn is_for_servers(self) -> bool {
        matches!(self.on(), RunsOn::Server(_) | RunsOn::Everywhere)
    }

    /// Whether a server's answer may take any time; see [`AnswerDelay`].
    pub fn may_wait(self) -> bool {
        self.on() != RunsOn::Server(AnswerDelay::AtOnce)
    }

    /// The row that a scenario means by `name`.
    pub fn of_script(name: &str) -> Option<Verb> {
        Verb::ALL.iter().copied().find(|verb| verb.name() == name && verb.is_for_scripts())
    }

    /// The row that a request to a server means by `name`.
    pub fn of_server(name: &str) -> Option<Verb> {
        Verb::ALL.iter().copied().find(|verb| verb.name() == name && verb.is_for_servers())
    }

    /// How it is written, as the reference pages show it: `open FILE r|w|rw|path [create] [excl]
    /// …`.
    pub fn usage(self) -> String {
        let mut usage = String::new();
        if let Some(kind) = self.binds() {
            usage += if kind == BindingKind::Process { "NAME = " } else { "name = " };
        }
        usage += self.name();
        for parameter in self.params() {
            usage.push(' ');
            usage += &parameter.usage();
        }
        usage
    }
}

impl Parameter {
    fn usage(&self) -> String {
        let capital = self.name.to_uppercase();
        match self.syntax {
            Param::File | Param::Size | Param::Length | Param::Span | Param::Number | Param::Text => capital,
            Param::Bound(_) => self.name.to_owned(),
            Param::Process => "PROCESS".to_owned(),
            Param::Range | Param::Data => "OFFSET LENGTH".to_owned(),
            Param::Byte => "BYTE".to_owned(),
            Param::Signal => "SIGNAL".to_owned(),
            Param::Delay => format!("{capital}|off"),
            Param::FlushRule => "on|off|nth=N|every=N".to_owned(),
            Param::Choice(words) => words.join("|"),
            Param::Flags(words) => words.iter().map(|word| format!("[{word}]")).collect::<Vec<_>>().join(" "),
            Param::Optional(Param::Number) => format!("[--{} {capital}]", self.name),
            Param::Optional(inner) => format!("[{}]", Parameter { syntax: *inner, ..*self }.usage()),
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
