//! Which pieces of the device are mapped for the guest.
//!
//! It owns the list of what is or may be mapped, and the thread that changes it. Invariants: every
//! byte that the guest can reach is in the list (a piece enters before the map request, and leaves
//! after the frontend has unmapped it). An unmap requested while pieces are being mapped wins. Only
//! SET_FEATURES causes pieces to be mapped. Counterparts: `vhost_user_backend_handle_shmem_map` and
//! `..._unmap` in QEMU's hw/virtio/vhost-user.c.
//!
//! # Why a thread
//! A frontend does not answer on the backend channel while it waits for the answer to its own
//! message. So the thread that handles its messages must not wait for such an answer.
//!
//! # What a reset does
//! QEMU drops the mappings when the driver resets the device, does not report it, and sends
//! SET_FEATURES when a driver takes it again. It also sends SET_FEATURES without a reset, when a
//! stopped machine continues. Its answer to the map request shows which of the two happened: it
//! refuses a piece that is still mapped.

use std::os::fd::{AsFd, BorrowedFd};
use std::task::Poll;
use std::time::Duration;

use super::channel::{Channel, ChannelError, PieceReply, PieceRequest};
use super::stats::VhostCounters;
use super::wake::{BackendWaits, WakeFd, wait_readable};
use super::{Medium, PIECES_MAX, PmemPiece};
use crate::device::PAGE;
use crate::runtime::sync::{Arc, Mutex};
use crate::runtime::wait::WaitQueue;

/// How long [`super::VhostServer::unmap`] waits for a frontend that does not answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long the start of a driver waits for a medium that has not returned its pieces.
const START_PATIENCE: Duration = Duration::from_secs(1);

/// What became of [`super::VhostServer::unmap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped {
    /// How many pieces were, or may have been, mapped when it was demanded.
    pub pieces: usize,
    /// Nothing is mapped any more: the frontend has answered for each piece, or has hung up. If
    /// not, it is still being asked.
    pub acknowledged: bool,
}

/// Why the pieces of a medium cannot form a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PiecesError {
    #[error("a device of {0} pieces: at most {PIECES_MAX} can be mapped")]
    TooMany(usize),
    #[error("{0:?}: offsets and lengths must be multiples of 4096, and a length not 0")]
    Unaligned(PmemPiece),
    #[error("{piece:?}: the pieces before it end at {expected}")]
    Gap { piece: PmemPiece, expected: u64 },
    #[error("pieces of {found} bytes for a device of {expected}")]
    Sum { found: u64, expected: u64 },
}

/// Checks that `pieces` make up a device of `bytes`, or are none.
pub(super) fn check_pieces(pieces: &[PmemPiece], bytes: u64) -> Result<(), PiecesError> {
    if pieces.len() > PIECES_MAX {
        return Err(PiecesError::TooMany(pieces.len()));
    }
    let mut expected = 0_u64;
    for piece in pieces.iter().copied() {
        let multiple =
            [piece.guest_offset, piece.device_offset, piece.len].iter().all(|value| value.is_multiple_of(PAGE));
        if !multiple || piece.len == 0 || piece.device_offset.checked_add(piece.len).is_none() {
            return Err(PiecesError::Unaligned(piece));
        }
        if piece.guest_offset != expected {
            return Err(PiecesError::Gap { piece, expected });
        }
        expected = expected.saturating_add(piece.len);
    }
    if pieces.is_empty() || expected == bytes {
        Ok(())
    } else {
        Err(PiecesError::Sum { found: expected, expected: bytes })
    }
}

#[derive(Debug, Default)]
struct MappingState {
    /// By which the frontend is asked; none if it gave none, or is not able to map.
    channel: Option<Arc<Channel>>,
    /// What is mapped, or may be.
    mapped: Vec<PmemPiece>,
    /// A driver took the device, and nothing was mapped for it yet.
    attach: bool,
    /// The driver must wait: the first map request has not been sent, and may still be.
    starting: bool,
    /// The frontend has been asked for something, and has not answered.
    asking: bool,
    /// The thread maps what a driver wants.
    mapping: bool,
    /// The last driver that took the device has not all of it mapped.
    missing: bool,
    /// Nothing may be mapped.
    unmap: bool,
    /// The connection is being closed: nothing may be mapped any more.
    for_good: bool,
    /// Grows with each attach and each unmap; the thread drops work of an older epoch.
    epoch: u64,
    /// The connection ended.
    over: bool,
}

struct MappingEnd<'a>(&'a PieceMapping);

impl Drop for MappingEnd<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct PieceMapping {
    bytes: u64,
    state: Mutex<MappingState>,
    /// Woken when [`MappingState::unmap`] is done with, or the connection ended.
    settled: WaitQueue,
    wake: WakeFd,
}

impl PieceMapping {
    /// Nothing mapped of a device of `bytes`.
    pub(super) fn new(bytes: u64) -> std::io::Result<PieceMapping> {
        Ok(PieceMapping { bytes, state: Mutex::default(), settled: WaitQueue::new(), wake: WakeFd::new()? })
    }

    /// The frontend is asked by `channel` from now on.
    pub(super) fn set_channel(&self, channel: Channel) {
        self.state.lock().channel = Some(Arc::new(channel));
        // An unmap that could not be requested before is requested now.
        self.wake.ring();
    }

    /// A driver took the device.
    pub(super) fn attach(&self) {
        {
            let mut state = self.state.lock();
            state.attach = !state.for_good;
            state.starting = !state.for_good;
            state.missing = true;
            state.epoch += 1;
        }
        self.wake.ring();
    }

    /// Whether the driver has all of its device mapped, or had until it was taken away. While it is
    /// being mapped, waits for it: what is stored there before that is lost, and a flush must not
    /// say that it is durable.
    pub(super) fn is_whole(&self, waits: &BackendWaits) -> bool {
        let look = || {
            let state = self.state.lock();
            let coming = (state.attach || state.mapping) && !state.unmap && !state.over;
            if coming { Poll::Pending } else { Poll::Ready(!state.missing) }
        };
        match look() {
            Poll::Ready(whole) => whole,
            Poll::Pending => {
                waits.until(&self.settled, "the device to be mapped", Some(PATIENCE), look).unwrap_or(false)
            }
        }
    }

    /// Waits until the frontend has been asked for the first piece, if one is going to be mapped;
    /// to be called before it is let go on with starting the driver. It does not wait for the
    /// answer, which comes only afterwards. A driver that runs before its device is mapped reads
    /// zeros there, and its stores are lost.
    ///
    /// It waits for at most 1 s; then the driver starts before its device is mapped.
    pub(super) fn await_asked(&self, waits: &BackendWaits) {
        waits.until(&self.settled, "the first piece to be asked for", Some(START_PATIENCE), || {
            let state = self.state.lock();
            // The frontend answers a request only after this message has been answered.
            let ready = !state.starting || state.asking || state.unmap || state.over;
            if ready { Poll::Ready(()) } else { Poll::Pending }
        });
    }

    /// What is mapped, or may be.
    pub(super) fn mapped(&self) -> Vec<PmemPiece> {
        self.state.lock().mapped.clone()
    }

    /// Has every piece unmapped, and waits for it, but not longer than `patience`.
    pub(super) fn unmap(&self, waits: &BackendWaits, patience: Duration, counters: &VhostCounters) -> Unmapped {
        let pieces = {
            let mut state = self.state.lock();
            state.attach = false;
            state.starting = false;
            state.epoch += 1;
            counters.revokes.add(1);
            if state.mapped.is_empty() || state.over {
                return Unmapped { pieces: 0, acknowledged: true };
            }
            state.unmap = true;
            state.mapped.len()
        };
        self.wake.ring();
        let acknowledged = waits.until(&self.settled, "the frontend to unmap", Some(patience), || {
            let state = self.state.lock();
            // Without a channel the frontend cannot be asked to unmap, so waiting is useless.
            match (state.unmap && !state.over, &state.channel) {
                (false, _) => Poll::Ready(true),
                (true, None) => Poll::Ready(false),
                (true, Some(_)) => Poll::Pending,
            }
        });
        Unmapped { pieces, acknowledged: acknowledged.unwrap_or(false) }
    }

    /// As [`PieceMapping::unmap`], and nothing is mapped any more: the frontend is about to be sent
    /// away.
    pub(super) fn unmap_for_good(&self, waits: &BackendWaits, counters: &VhostCounters) {
        self.state.lock().for_good = true;
        self.unmap(waits, PATIENCE, counters);
    }

    /// The connection ended: with it goes whatever was mapped.
    pub(super) fn end(&self) {
        self.state.lock().over = true;
        self.settled.wake_all();
        self.wake.ring();
    }

    fn is_over(&self) -> bool {
        self.state.lock().over
    }

    /// The thread's life: until [`PieceMapping::end`]. If it ends otherwise, no caller waits for
    /// it.
    pub(super) fn run(&self, medium: &dyn Medium, counters: &VhostCounters) {
        let _end = MappingEnd(self);
        loop {
            let (unmap, attach, epoch) = {
                let mut state = self.state.lock();
                if state.over {
                    return;
                }
                // An unmap cancels the attaches before it. A later attach runs after the unmap.
                let attach = !state.unmap && std::mem::take(&mut state.attach);
                state.mapping |= attach;
                (state.unmap && state.channel.is_some(), attach, state.epoch)
            };
            if unmap {
                self.unmap_all(medium.fd(), counters);
            } else if attach {
                let whole = self.map_all(epoch, medium, counters);
                self.started(epoch, whole);
            } else if wait_readable([self.wake.as_fd()]).is_ok() {
                self.wake.clear();
            }
        }
    }

    fn unmap_all(&self, file: BorrowedFd<'_>, counters: &VhostCounters) {
        if let Err(why) = self.unmap_pieces(&self.mapped(), file, counters) {
            self.give_up(&why, counters);
            return;
        }
        self.state.lock().unmap = false;
        self.settled.wake_all();
    }

    /// If the frontend refuses an unmap, the piece is unmapped already, by a reset.
    fn unmap_pieces(
        &self,
        pieces: &[PmemPiece],
        file: BorrowedFd<'_>,
        counters: &VhostCounters,
    ) -> Result<(), ChannelError> {
        if pieces.is_empty() {
            return Ok(());
        }
        for piece in pieces.iter().copied() {
            self.ask(PieceRequest::Unmap, piece, file)?;
            counters.unmaps.add(1);
        }
        self.settle()?;
        self.state.lock().mapped.retain(|piece| !pieces.contains(piece));
        Ok(())
    }

    /// Maps what `epoch`'s driver wants; true if it has all of it.
    fn map_all(&self, epoch: u64, medium: &dyn Medium, counters: &VhostCounters) -> bool {
        if self.state.lock().channel.is_none() {
            counters.problem("nothing is mapped: the frontend did not negotiate SHMEM, BACKEND_REQ and REPLY_ACK, or closed the channel");
            return false;
        }
        let mut pieces = medium.attach();
        if let Err(why) = check_pieces(&pieces, self.bytes) {
            counters.problem(format!("nothing is mapped: {why}"));
            pieces.clear();
        }
        let mapped = self.map_pieces(epoch, &pieces, medium.fd(), counters);
        mapped.unwrap_or_else(|why| {
            self.give_up(&why, counters);
            false
        })
    }

    fn map_pieces(
        &self,
        epoch: u64,
        pieces: &[PmemPiece],
        file: BorrowedFd<'_>,
        counters: &VhostCounters,
    ) -> Result<bool, ChannelError> {
        let before = self.mapped();
        // Only a machine that continues without a reset still has them.
        let gone: Vec<PmemPiece> = before.iter().copied().filter(|piece| !pieces.contains(piece)).collect();
        self.unmap_pieces(&gone, file, counters)?;
        for piece in pieces.iter().copied() {
            if !self.enter(epoch, piece) {
                return Ok(false);
            }
            match self.ask(PieceRequest::Map, piece, file)? {
                PieceReply::Done => counters.maps.add(1),
                // It still has it from before.
                PieceReply::Refused(_) if before.contains(&piece) => {}
                PieceReply::Refused(error) => {
                    counters.problem(format!(
                        "nothing is mapped: the frontend refused {piece:?} (its error: {})",
                        error.cast_signed()
                    ));
                    self.state.lock().mapped.retain(|other| *other != piece);
                    // A device with holes reads as zeros there: no device is better.
                    self.unmap_pieces(&self.mapped(), file, counters)?;
                    return Ok(false);
                }
            }
        }
        Ok(!pieces.is_empty())
    }

    /// Enters a piece that is about to be mapped; false if it must not be.
    fn enter(&self, epoch: u64, piece: PmemPiece) -> bool {
        let mut state = self.state.lock();
        if state.epoch != epoch || state.over {
            return false;
        }
        if !state.mapped.contains(&piece) {
            state.mapped.push(piece);
        }
        true
    }

    /// What `epoch`'s driver wants mapped is, or never will be.
    fn started(&self, epoch: u64, whole: bool) {
        {
            let mut state = self.state.lock();
            state.mapping = false;
            state.starting &= state.epoch != epoch;
            // If an unmap came meanwhile, the medium decides whether flushes fail.
            state.missing &= !whole;
        }
        self.settled.wake_all();
    }

    fn ask(&self, ask: PieceRequest, piece: PmemPiece, file: BorrowedFd<'_>) -> Result<PieceReply, ChannelError> {
        self.asking(|channel, sent| channel.ask(ask, piece, file, sent, &self.wake, || self.is_over()))
    }

    fn settle(&self) -> Result<(), ChannelError> {
        self.asking(|channel, sent| channel.settle(sent, &self.wake, || self.is_over()))
    }

    /// Runs `ask` on the channel; `ask` reports that its request was sent.
    fn asking<T>(&self, ask: impl FnOnce(&Channel, &dyn Fn()) -> Result<T, ChannelError>) -> Result<T, ChannelError> {
        let channel = self.state.lock().channel.clone().ok_or(ChannelError::Closed)?;
        let sent = || {
            self.state.lock().asking = true;
            self.settled.wake_all();
        };
        let reply = ask(&channel, &sent);
        let mut state = self.state.lock();
        state.asking = false;
        state.starting = false;
        reply
    }

    /// The frontend can't be asked any more. What is mapped stays in the list, and is out of reach
    /// only when it hangs up.
    fn give_up(&self, why: &ChannelError, counters: &VhostCounters) {
        if !matches!(why, ChannelError::Over) {
            counters.problem(format!("mapping: {why}"));
        }
        {
            let mut state = self.state.lock();
            state.channel = None;
            state.attach = false;
            state.starting = false;
        }
        self.settled.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::runtime::sync::thread;
    use crate::vhost_user::{FlushError, Peer};

    struct OnePiece(std::fs::File);

    const BYTES: u64 = 2 << 20;

    impl Medium for OnePiece {
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn connect(&self, _peer: Peer) -> Result<u64, String> {
            Ok(BYTES)
        }

        fn attach(&self) -> Vec<PmemPiece> {
            vec![PmemPiece { guest_offset: 0, device_offset: 0, len: BYTES }]
        }

        fn flush(&self) -> Result<(), FlushError> {
            Ok(())
        }

        fn gone(&self) {}
    }

    #[test]
    fn who_does_not_answer_is_not_waited_for_for_ever_and_still_asked() {
        let medium = OnePiece(std::fs::File::open("/dev/null").unwrap());
        let (mapping, counters, waits) =
            (PieceMapping::new(BYTES).unwrap(), VhostCounters::default(), BackendWaits::new());
        let (ours, theirs) = UnixStream::pair().unwrap();
        mapping.set_channel(Channel::new(ours.into()));
        let answer = |code: u32| {
            rustix::net::send(
                &theirs,
                &[code, 5, 8, 0, 0].map(u32::to_ne_bytes).concat(),
                rustix::net::SendFlags::empty(),
            )
            .unwrap();
        };
        thread::scope(|scope| {
            scope.spawn(|| mapping.run(&medium, &counters));
            mapping.attach();
            answer(9);
            while counters.snapshot().maps == 0 {
                thread::yield_now();
            }
            let unmapped = mapping.unmap(&waits, Duration::from_millis(1), &counters);
            assert_eq!(unmapped, Unmapped { pieces: 1, acknowledged: false });
            assert_eq!(mapping.mapped(), medium.attach(), "it may still be there");
            // A driver that comes now has to wait until it is gone.
            mapping.attach();
            answer(10);
            answer(2);
            answer(9);
            while counters.snapshot().maps == 1 {
                thread::yield_now();
            }
            assert_eq!(counters.snapshot().unmaps, 1);
            answer(10);
            answer(2);
            let unmapped = mapping.unmap(&waits, PATIENCE, &counters);
            assert_eq!(unmapped, Unmapped { pieces: 1, acknowledged: true });
            mapping.end();
        });
    }

    /// QEMU 11.1 answers an unmap first and does it then; it looks at nothing else on the channel
    /// meanwhile.
    #[test]
    fn an_unmap_is_over_when_the_frontend_looks_at_the_next_request() {
        let medium = OnePiece(std::fs::File::open("/dev/null").unwrap());
        let (mapping, counters, waits) =
            (PieceMapping::new(BYTES).unwrap(), VhostCounters::default(), BackendWaits::new());
        let (ours, theirs) = UnixStream::pair().unwrap();
        mapping.set_channel(Channel::new(ours.into()));
        let answer_next = || {
            let mut request = [0; 256];
            let (read, _) = rustix::net::recv(&theirs, &mut request[..], rustix::net::RecvFlags::empty()).unwrap();
            assert!(read >= 12);
            let code = u32::from_ne_bytes(*request.first_chunk().unwrap());
            let answer = [code, 5, 8, 0, 0].map(u32::to_ne_bytes).concat();
            rustix::net::send(&theirs, &answer, rustix::net::SendFlags::empty()).unwrap();
            code
        };
        thread::scope(|scope| {
            scope.spawn(|| mapping.run(&medium, &counters));
            mapping.attach();
            assert_eq!(answer_next(), 9);
            while counters.snapshot().maps == 0 {
                thread::yield_now();
            }
            let unmap = scope.spawn(|| mapping.unmap(&waits, PATIENCE, &counters));
            assert_eq!(answer_next(), 10);
            while counters.snapshot().unmaps == 0 && !unmap.is_finished() {
                thread::yield_now();
            }
            // The frontend is only now unmapping.
            let mut looked = [0; 12];
            let peek = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
            while rustix::net::recv(&theirs, &mut looked[..], peek).is_err() {
                if unmap.is_finished() {
                    mapping.end();
                    panic!("it may still be mapped");
                }
                thread::yield_now();
            }
            assert!(!unmap.is_finished());
            answer_next();
            assert_eq!(unmap.join().unwrap(), Unmapped { pieces: 1, acknowledged: true });
            mapping.end();
        });
    }
}
