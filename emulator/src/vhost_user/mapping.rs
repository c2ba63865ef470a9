//! Which pieces of the device are mapped for the guest.
//!
//! It owns the list of what is or may be mapped, and the thread that changes it. Invariants: every
//! byte that the guest can reach is in the list (a piece enters before the map request, and leaves
//! after the frontend has unmapped it). An unmap requested while pieces are being mapped wins. Only
//! SET_FEATURES causes pieces to be mapped. No flush succeeds for a driver that may have stored
//! something before its device was mapped. Counterparts: `vhost_user_backend_handle_shmem_map` and
//! `..._unmap` in QEMU's hw/virtio/vhost-user.c.
//!
//! # Why a thread
//! A frontend does not answer on the backend channel while it waits for the answer to its own
//! message. So the thread that handles its messages must not wait for such an answer.
//!
//! # What a reset does
//! QEMU drops the mappings when the driver resets the device, does not report it, and sends
//! SET_FEATURES when a driver takes it again. It also sends SET_FEATURES without a reset, when a
//! stopped machine continues. Its answer to the map request and its memory table show which of the
//! two happened: it refuses a piece that is still mapped, and has it in the table. A piece that is
//! refused and not in the table could not be mapped, and flushes fail.
//!
//! # A device that is mapped late
//! A driver that starts before its device is mapped stores into nothing, and a flush that succeeds
//! afterwards would be a lie. So SET_FEATURES is held until the first piece was asked for, and the
//! frontend answers that request as soon as its driver starts. If an answer comes more than
//! [`LATE`] after the driver was let go, or after the answer before it (the server or the frontend
//! stood still meanwhile), the device is *late*: every flush fails until a later driver's first
//! piece is accepted in time. That one begins with a reset, as a frontend refuses a piece that it
//! still has.

use std::os::fd::{AsFd, BorrowedFd};
use std::task::Poll;
use std::time::Duration;

use vhost::vhost_user::message::BackendReq;

use super::channel::{Channel, ChannelError, ChannelWait, PieceReply, PieceRequest};
use super::stats::VhostCounters;
use super::wake::{BackendWaits, WakeFd, wait_readable};
use super::{FlushError, Medium, PIECES_MAX, PmemPiece};
use crate::device::PAGE;
use crate::runtime::clock::Nanos;
use crate::runtime::sync::{Arc, Mutex};
use crate::runtime::wait::WaitQueue;

/// How long [`super::VhostServer::unmap`] waits for a frontend that does not answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long the start of a driver waits for a medium that has not returned its pieces.
const START_PATIENCE: Duration = Duration::from_secs(1);

/// How long after a driver was let go, or after the piece before, a piece may be mapped: far longer
/// than a frontend takes to answer, and shorter than a guest takes from the start of its driver to
/// its first store.
const LATE: Duration = Duration::from_millis(500);

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
    /// When the last driver that took the device was let go, or the last answer for it came after
    /// that; none if it is held.
    waiting: Option<Nanos>,
    /// A driver may have stored something before its device was mapped.
    late: bool,
    /// Which parts of the device's file the machine had as memory when it started the device for
    /// the last driver, offset and length; none if it did not tell.
    shown: Option<Vec<(u64, u64)>>,
    /// Pieces that the frontend refused to map for the last driver, and that it had before.
    refused: Vec<PmemPiece>,
    /// The last driver's machine has not what its frontend refused.
    gone: bool,
    /// Why there is no channel, if the frontend gave one that can't be used.
    unable: Option<String>,
    /// Nothing may be mapped.
    unmap: bool,
    /// The connection is being closed: nothing may be mapped any more.
    for_good: bool,
    /// Grows with each attach and each unmap; the thread drops work of an older epoch.
    epoch: u64,
    /// Grows with each attach.
    driver: u64,
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
    counters: Arc<VhostCounters>,
    waits: Arc<BackendWaits>,
    state: Mutex<MappingState>,
    /// Woken when [`MappingState::unmap`] is done with, or the connection ended.
    settled: WaitQueue,
    wake: WakeFd,
}

impl PieceMapping {
    /// Nothing mapped of a device of `bytes`.
    pub(super) fn new(
        bytes: u64,
        counters: Arc<VhostCounters>,
        waits: Arc<BackendWaits>,
    ) -> std::io::Result<PieceMapping> {
        let (state, settled, wake) = (Mutex::default(), WaitQueue::new(), WakeFd::new()?);
        Ok(PieceMapping { bytes, counters, waits, state, settled, wake })
    }

    /// The frontend is asked by this channel from now on, or can't be asked, and why.
    pub(super) fn set_channel(&self, channel: Result<Channel, String>) {
        {
            let mut state = self.state.lock();
            (state.channel, state.unable) = match channel {
                Ok(channel) => (Some(Arc::new(channel)), None),
                Err(why) => (None, Some(why)),
            };
        }
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
            state.waiting = None;
            (state.shown, state.gone) = (None, false);
            state.refused.clear();
            state.epoch += 1;
            state.driver += 1;
        }
        self.wake.ring();
    }

    /// Whether a flush may succeed: the driver has all of its device mapped, or had until it was
    /// taken away, and stored nothing before. While the device is being mapped, waits for it.
    pub(super) fn admit_flush(&self) -> Result<(), FlushError> {
        let look = || {
            let state = self.state.lock();
            let coming = (state.attach || state.mapping) && !state.unmap && !state.over;
            match (coming, state.missing || state.gone, state.late) {
                (true, _, _) => Poll::Pending,
                (false, true, _) => Poll::Ready(Err(FlushError::Unmapped)),
                (false, false, true) => Poll::Ready(Err(FlushError::Late)),
                (false, false, false) => Poll::Ready(Ok(())),
            }
        };
        match look() {
            Poll::Ready(admitted) => admitted,
            Poll::Pending => {
                let admitted = self.waits.until(&self.settled, "the device to be mapped", Some(PATIENCE), look);
                admitted.unwrap_or(Err(FlushError::Unmapped))
            }
        }
    }

    /// Waits until the frontend has been asked for the first piece, if one is going to be mapped,
    /// and then lets the driver go. It does not wait for the answer, which comes only afterwards.
    ///
    /// It waits for at most 1 s; then the driver starts before its device is mapped.
    pub(super) fn hold_start(&self) {
        self.waits.until(&self.settled, "the first piece to be asked for", Some(START_PATIENCE), || {
            let state = self.state.lock();
            let ready = !state.starting || state.asking || state.unmap || state.over;
            if ready { Poll::Ready(()) } else { Poll::Pending }
        });
        let now = self.waits.now();
        self.state.lock().waiting = Some(now);
    }

    /// The machine told of its memory: these parts of the device's file, offset and length, are
    /// among it.
    pub(super) fn told_table(&self, shown: Vec<(u64, u64)>) {
        // Later tables show what was mapped and unmapped since.
        self.state.lock().shown.get_or_insert(shown);
        self.look_at_refused();
    }

    /// A piece that is refused may be there from before: the machine continued without a reset. Or
    /// it can't be mapped, and QEMU's answer is 1 in both cases. The memory table that the machine
    /// tells when it starts the device has the pieces that are there. The answer and the table
    /// come in either order.
    fn look_at_refused(&self) {
        let mut state = self.state.lock();
        let Some(shown) = &state.shown else { return };
        let is_shown = |piece: &PmemPiece| {
            let end = piece.device_offset + piece.len;
            shown.iter().any(|(offset, len)| *offset <= piece.device_offset && end <= offset.saturating_add(*len))
        };
        if let Some(piece) = state.refused.iter().copied().find(|piece| !is_shown(piece)) {
            state.gone = true;
            drop(state);
            self.counters.problem(format!(
                "not all is mapped: the frontend refused the piece at {} of {} bytes, which it had before the guest's reset",
                piece.guest_offset, piece.len
            ));
        }
    }

    /// What is mapped, or may be.
    pub(super) fn mapped(&self) -> Vec<PmemPiece> {
        self.state.lock().mapped.clone()
    }

    /// Has every piece unmapped, and waits for it, but not longer than `patience`.
    pub(super) fn unmap(&self, patience: Duration) -> Unmapped {
        let pieces = {
            let mut state = self.state.lock();
            state.attach = false;
            state.starting = false;
            state.epoch += 1;
            self.counters.revokes.add(1);
            if state.mapped.is_empty() || state.over {
                return Unmapped { pieces: 0, acknowledged: true };
            }
            state.unmap = true;
            state.mapped.len()
        };
        self.wake.ring();
        let acknowledged = self.waits.until(&self.settled, "the frontend to unmap", Some(patience), || {
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
    pub(super) fn unmap_for_good(&self) {
        self.state.lock().for_good = true;
        self.unmap(PATIENCE);
    }

    /// The connection ended: with it goes whatever was mapped.
    pub(super) fn end(&self) {
        self.state.lock().over = true;
        self.settled.wake_all();
        self.wake.ring();
    }

    /// The thread's life: until [`PieceMapping::end`]. If it ends otherwise, no caller waits for
    /// it.
    pub(super) fn run(&self, medium: &dyn Medium) {
        let _end = MappingEnd(self);
        loop {
            let (unmap, attach, epoch, driver) = {
                let mut state = self.state.lock();
                if state.over {
                    return;
                }
                // An unmap cancels the attaches before it. A later attach runs after the unmap.
                let attach = !state.unmap && std::mem::take(&mut state.attach);
                state.mapping |= attach;
                (state.unmap && state.channel.is_some(), attach, state.epoch, state.driver)
            };
            if unmap {
                self.unmap_all(medium.fd());
            } else if attach {
                let whole = self.map_all((epoch, driver), medium);
                self.started((epoch, driver), whole);
            } else if wait_readable([self.wake.as_fd()], None).is_ok() {
                self.wake.clear();
            }
        }
    }

    fn unmap_all(&self, file: BorrowedFd<'_>) {
        if let Err(why) = self.unmap_pieces(&self.mapped(), file) {
            self.give_up(&why);
            return;
        }
        self.state.lock().unmap = false;
        self.settled.wake_all();
    }

    /// If the frontend refuses an unmap, the piece is unmapped already, by a reset.
    fn unmap_pieces(&self, pieces: &[PmemPiece], file: BorrowedFd<'_>) -> Result<(), ChannelError> {
        let Some(last) = pieces.last() else { return Ok(()) };
        for piece in pieces {
            self.ask(PieceRequest::Unmap, *piece, file)?;
            self.counters.unmaps.add(1);
        }
        self.asking(|channel| channel.settle(*last, file, self))?;
        self.state.lock().mapped.retain(|piece| !pieces.contains(piece));
        Ok(())
    }

    /// Maps what `epoch`'s driver wants; true if it has all of it.
    fn map_all(&self, (epoch, driver): (u64, u64), medium: &dyn Medium) -> bool {
        let (has_channel, unable) = {
            let state = self.state.lock();
            (state.channel.is_some(), state.unable.clone())
        };
        if !has_channel {
            let why = unable.unwrap_or_else(|| "the frontend did not give a backend channel, or closed it".to_owned());
            self.counters.problem(format!("nothing is mapped: {why}"));
            return false;
        }
        let mut pieces = medium.attach();
        if let Err(why) = check_pieces(&pieces, self.bytes) {
            self.counters.problem(format!("nothing is mapped: {why}"));
            pieces.clear();
        }
        let mapped = self.map_pieces((epoch, driver), &pieces, medium);
        mapped.unwrap_or_else(|why| {
            self.give_up(&why);
            false
        })
    }

    fn map_pieces(
        &self,
        (epoch, driver): (u64, u64),
        pieces: &[PmemPiece],
        medium: &dyn Medium,
    ) -> Result<bool, ChannelError> {
        let (before, file) = (self.mapped(), medium.fd());
        // Only a machine that continues without a reset still has them.
        let gone: Vec<PmemPiece> = before.iter().copied().filter(|piece| !pieces.contains(piece)).collect();
        self.unmap_pieces(&gone, file)?;
        for (at, piece) in pieces.iter().copied().enumerate() {
            if !self.enter(epoch, piece) {
                return Ok(false);
            }
            match self.ask(PieceRequest::Map, piece, file)? {
                PieceReply::Done => {
                    self.accepted(driver, at == 0);
                    self.counters.maps.add(1);
                }
                PieceReply::Refused(_) if before.contains(&piece) => {
                    let mut state = self.state.lock();
                    if state.driver == driver {
                        state.refused.push(piece);
                    }
                    drop(state);
                    self.look_at_refused();
                }
                PieceReply::Refused(error) => {
                    self.counters.problem(format!(
                        "nothing is mapped: the frontend refused the piece at {} of {} bytes (its error: {})",
                        piece.guest_offset,
                        piece.len,
                        error.cast_signed()
                    ));
                    medium.mapping_refused(error.cast_signed());
                    self.state.lock().mapped.retain(|other| *other != piece);
                    // A device with holes reads as zeros there: no device is better.
                    self.unmap_pieces(&self.mapped(), file)?;
                    return Ok(false);
                }
            }
        }
        Ok(!pieces.is_empty())
    }

    /// A piece of `driver`, its first one or another, was accepted just now.
    fn accepted(&self, driver: u64, first: bool) {
        let now = self.waits.now();
        let mut state = self.state.lock();
        // If another driver came meanwhile without a reset, it will be refused the piece: the
        // answer to this one then says when the device was there, which is too late for either.
        let in_time = state.driver == driver && state.waiting.is_none_or(|since| now <= since.after(LATE));
        if let Some(since) = &mut state.waiting {
            *since = now;
        }
        let newly = !in_time && !state.late;
        state.late = if first { !in_time } else { state.late || !in_time };
        drop(state);
        if newly {
            self.counters.problem(format!(
                "the device was mapped more than {} ms after its driver had started: every flush fails until the guest binds the driver anew or reboots",
                LATE.as_millis()
            ));
        }
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
    fn started(&self, (epoch, driver): (u64, u64), whole: bool) {
        {
            let mut state = self.state.lock();
            state.mapping = false;
            state.starting &= state.epoch != epoch;
            // If an unmap came meanwhile, the medium decides whether flushes fail. Another driver
            // has not this one's device.
            state.missing &= !whole || state.driver != driver;
        }
        self.settled.wake_all();
    }

    fn ask(&self, ask: PieceRequest, piece: PmemPiece, file: BorrowedFd<'_>) -> Result<PieceReply, ChannelError> {
        self.asking(|channel| channel.ask(ask, piece, file, self))
    }

    /// Runs `ask` on the channel.
    fn asking<T>(&self, ask: impl FnOnce(&Channel) -> Result<T, ChannelError>) -> Result<T, ChannelError> {
        let channel = self.state.lock().channel.clone().ok_or(ChannelError::Closed)?;
        let reply = ask(&channel);
        let mut state = self.state.lock();
        state.asking = false;
        state.starting = false;
        reply
    }

    /// The frontend can't be asked any more. What is mapped stays in the list, and is out of reach
    /// only when it hangs up.
    fn give_up(&self, why: &ChannelError) {
        if !matches!(why, ChannelError::Over) {
            self.counters.problem(format!("mapping: {why}"));
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

impl ChannelWait for PieceMapping {
    fn sent(&self) {
        self.state.lock().asking = true;
        self.settled.wake_all();
    }

    fn wake(&self) -> &WakeFd {
        &self.wake
    }

    fn is_over(&self) -> bool {
        self.state.lock().over
    }

    fn silent(&self, request: BackendReq, limit: Duration) {
        self.counters.problem(format!(
            "mapping: the frontend has not answered {request:?} for {} s: its process may be stopped; it is still waited for",
            limit.as_secs()
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::runtime::sync::thread;
    use crate::runtime::world::World;
    use crate::vhost_user::Peer;
    use crate::vhost_user::trace::MessageTracer;

    struct OnePiece(std::fs::File);

    const BYTES: u64 = 2 << 20;
    /// QEMU's answer to a request that it refuses.
    const STILL_THERE: u32 = 1;
    const PIECE: PmemPiece = PmemPiece { guest_offset: 0, device_offset: 0, len: BYTES };

    impl Medium for OnePiece {
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn connect(&self, _peer: Peer, _process: Option<OwnedFd>) -> Result<u64, String> {
            Ok(BYTES)
        }

        fn attach(&self) -> Vec<PmemPiece> {
            vec![PIECE]
        }

        fn flush(&self) -> Result<(), FlushError> {
            Ok(())
        }

        fn gone(&self) {}
    }

    /// A mapping, and the frontend's end of its channel.
    struct Asked {
        mapping: PieceMapping,
        medium: OnePiece,
        world: Arc<World>,
        frontend: UnixStream,
    }

    fn asked(world: World, has_config: bool) -> Asked {
        let world = Arc::new(world);
        let waits = Arc::new(BackendWaits::new(Arc::clone(&world)));
        let mapping = PieceMapping::new(BYTES, Arc::default(), waits).unwrap();
        let (ours, frontend) = UnixStream::pair().unwrap();
        mapping.set_channel(Ok(Channel::new(ours.into(), has_config, MessageTracer::silent())));
        Asked { mapping, medium: OnePiece(std::fs::File::open("/dev/null").unwrap()), world, frontend }
    }

    impl Asked {
        fn answer(&self, code: u32, error: u32) {
            let answer = [code, 5, 8, error, 0].map(u32::to_ne_bytes).concat();
            rustix::net::send(&self.frontend, &answer, rustix::net::SendFlags::empty()).unwrap();
        }

        fn next_request(&self) -> u32 {
            let mut request = [0; 256];
            let received = rustix::net::recv(&self.frontend, &mut request[..], rustix::net::RecvFlags::empty());
            assert!(received.unwrap().0 >= 12);
            u32::from_ne_bytes(*request.first_chunk().unwrap())
        }

        fn stats(&self) -> crate::vhost_user::VhostStats {
            self.mapping.counters.snapshot(self.world.now())
        }

        /// A driver takes the device; it is let go, and its map request answered `after` that.
        fn driver(&self, after: Duration, error: u32) {
            self.mapping.attach();
            self.mapping.hold_start();
            assert_eq!(self.next_request(), 9);
            self.world.advance(after);
            self.answer(9, error);
        }
    }

    #[test]
    fn who_does_not_answer_is_not_waited_for_for_ever_and_still_asked() {
        let asked = asked(World::real(0), true);
        let (mapping, medium) = (&asked.mapping, &asked.medium);
        thread::scope(|scope| {
            scope.spawn(|| mapping.run(medium));
            mapping.attach();
            asked.answer(9, 0);
            while asked.stats().maps == 0 {
                thread::yield_now();
            }
            let unmapped = mapping.unmap(Duration::from_millis(1));
            assert_eq!(unmapped, Unmapped { pieces: 1, acknowledged: false });
            assert_eq!(mapping.mapped(), medium.attach(), "it may still be there");
            // A driver that comes now has to wait until it is gone.
            mapping.attach();
            asked.answer(10, 0);
            asked.answer(2, 0);
            asked.answer(9, 0);
            while asked.stats().maps == 1 {
                thread::yield_now();
            }
            assert_eq!(asked.stats().unmaps, 1);
            asked.answer(10, 0);
            asked.answer(2, 0);
            let unmapped = mapping.unmap(PATIENCE);
            assert_eq!(unmapped, Unmapped { pieces: 1, acknowledged: true });
            mapping.end();
        });
    }

    /// QEMU 11.1 answers an unmap first and does it then; it looks at nothing else on the channel
    /// meanwhile. Without CONFIG there is no other request than one more unmap.
    #[test]
    fn an_unmap_is_over_when_the_frontend_looks_at_the_next_request() {
        for (has_config, next) in [(true, 2), (false, 10)] {
            let asked = asked(World::real(0), has_config);
            let mapping = &asked.mapping;
            let answer_next = |error| {
                let code = asked.next_request();
                asked.answer(code, error);
                code
            };
            thread::scope(|scope| {
                scope.spawn(|| mapping.run(&asked.medium));
                mapping.attach();
                assert_eq!(answer_next(0), 9);
                while asked.stats().maps == 0 {
                    thread::yield_now();
                }
                let unmap = scope.spawn(|| mapping.unmap(PATIENCE));
                assert_eq!(answer_next(0), 10);
                while asked.stats().unmaps == 0 && !unmap.is_finished() {
                    thread::yield_now();
                }
                // The frontend is only now unmapping.
                let mut looked = [0; 12];
                let peek = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
                while rustix::net::recv(&asked.frontend, &mut looked[..], peek).is_err() {
                    if unmap.is_finished() {
                        mapping.end();
                        panic!("it may still be mapped");
                    }
                    thread::yield_now();
                }
                assert!(!unmap.is_finished());
                assert_eq!(answer_next(u32::MAX), next);
                assert_eq!(unmap.join().unwrap(), Unmapped { pieces: 1, acknowledged: true });
                mapping.end();
            });
        }
    }

    /// The frontend has answered the unmap, and ends the channel instead of answering more.
    #[test]
    fn a_channel_that_ends_after_an_unmap_was_answered_ends_the_wait() {
        let asked = asked(World::real(0), true);
        let mapping = &asked.mapping;
        thread::scope(|scope| {
            scope.spawn(|| mapping.run(&asked.medium));
            mapping.attach();
            asked.answer(9, 0);
            while asked.stats().maps == 0 {
                thread::yield_now();
            }
            assert_eq!(asked.next_request(), 9);
            let unmap = scope.spawn(|| mapping.unmap(PATIENCE));
            assert_eq!(asked.next_request(), 10);
            asked.answer(10, 0);
            assert_eq!(asked.next_request(), 2);
            asked.frontend.shutdown(std::net::Shutdown::Both).unwrap();
            assert_eq!(unmap.join().unwrap(), Unmapped { pieces: 1, acknowledged: true });
            mapping.end();
        });
    }

    #[test]
    fn flushes_fail_from_a_late_mapping_to_the_next_driver_that_is_mapped_in_time() {
        let asked = asked(World::manual(0), true);
        let (mapping, millisecond) = (&asked.mapping, Duration::from_millis(1));
        thread::scope(|scope| {
            scope.spawn(|| mapping.run(&asked.medium));
            asked.driver(LATE, 0);
            assert!(mapping.admit_flush().is_ok(), "just in time");
            asked.driver(LATE + millisecond, 0);
            assert!(matches!(mapping.admit_flush(), Err(FlushError::Late)));
            assert!(asked.stats().problem.unwrap().contains("500 ms after its driver"));
            // A machine that continues still has the piece.
            asked.driver(millisecond, STILL_THERE);
            assert!(matches!(mapping.admit_flush(), Err(FlushError::Late)), "there was no reset");
            asked.driver(LATE + millisecond, 0);
            assert!(matches!(mapping.admit_flush(), Err(FlushError::Late)), "late once more");
            asked.driver(millisecond, 0);
            assert!(mapping.admit_flush().is_ok(), "the guest has begun anew");
            mapping.end();
        });
    }

    /// The machine stops and continues while the first driver's map request is not answered: the
    /// second one is then refused the piece.
    #[test]
    fn a_late_mapping_is_not_made_good_by_a_driver_without_a_reset() {
        let asked = asked(World::manual(0), true);
        let mapping = &asked.mapping;
        thread::scope(|scope| {
            scope.spawn(|| mapping.run(&asked.medium));
            mapping.attach();
            mapping.hold_start();
            assert_eq!(asked.next_request(), 9);
            asked.world.advance(LATE * 2);
            mapping.attach();
            asked.answer(9, 0);
            assert_eq!(asked.next_request(), 9);
            mapping.hold_start();
            asked.answer(9, STILL_THERE);
            assert!(matches!(mapping.admit_flush(), Err(FlushError::Late)));
            mapping.end();
        });
    }
}
