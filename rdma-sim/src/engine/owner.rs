//! What a queue asks of the context that it belongs to.
//!
//! It owns the trait. Invariant: the engine reaches a context through this trait only, because
//! contexts belong to a layer above. Kernel counterpart: the `event_handler` and `uobject` of a
//! `struct ib_qp`.

use emulator::sync::Arc;

use super::event::AsyncEvent;
use crate::memory::nic::Nic;
use crate::memory::owner::ObjectOwner;

/// The context of a queue pair or completion queue, as the engine sees it.
pub(crate) trait QueueOwner: ObjectOwner {
    /// The NIC of the context.
    fn nic(&self) -> &Arc<Nic>;

    /// Whether the context was aborted or closed.
    fn is_aborted(&self) -> bool;

    /// Queues an asynchronous event and wakes the tasks that wait for one.
    fn raise(&self, event: AsyncEvent);
}
