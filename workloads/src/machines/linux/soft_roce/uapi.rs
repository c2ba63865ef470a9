//! The kernel's structures for verbs, and of the queues that rdma_rxe shares with a process.
//!
//! It owns their layouts, which the compiler checks against the sizes that a C compiler finds.
//! Invariant: no structure has padding, so that all of its bytes are written and none of them is
//! another value's. Kernel counterpart: include/uapi/rdma/ib_user_verbs.h, rdma_user_ioctl_cmds.h,
//! rdma_user_rxe.h.

/// A structure that is exchanged with the kernel as its bytes.
///
/// # Safety
/// It has no padding, and every pattern of bits is a value of it.
pub(super) unsafe trait Uapi: Copy {
    /// All bytes zero.
    fn zeroed() -> Self {
        // SAFETY: every pattern of bits is a value.
        unsafe { std::mem::MaybeUninit::zeroed().assume_init() }
    }

    /// Its bytes.
    fn bytes(&self) -> &[u8] {
        // SAFETY: without padding all bytes are initialized.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// Its bytes, for the kernel to write.
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: without padding all bytes are initialized, and whatever is written is a value.
        unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(self).cast(), size_of::<Self>()) }
    }
}

// SAFETY: no bytes.
unsafe impl Uapi for () {}
// SAFETY: a whole number.
unsafe impl Uapi for u32 {}
// SAFETY: a whole number.
unsafe impl Uapi for u64 {}

macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident, $size:literal { $($field:ident: $type:ty),* $(,)? })+) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            pub(super) struct $name {
                $(pub(super) $field: $type,)*
            }
            const _: () = assert!(size_of::<$name>() == $size);
            // The fields fill it: there is no padding.
            const _: () = assert!(0 $(+ size_of::<$type>())* == $size);
            // SAFETY: checked above; all fields are whole numbers, or such structures.
            unsafe impl Uapi for $name {}
        )+
    };
}

structures! {
    /// `struct ib_uverbs_ex_query_device`.
    QueryDevice, 8 { mask: u32, reserved: u32 }
    /// `struct ib_uverbs_ex_query_device_resp` up to `general_caps` of its `odp_caps`.
    DeviceQueried, 192 { base: [u8; 176], mask: u32, length: u32, on_demand: u64 }
    /// `struct ib_uverbs_reg_mr`.
    Register, 40 { response: u64, start: u64, length: u64, address: u64, pd: u32, access: u32 }
    /// `struct ib_uverbs_reg_mr_resp`.
    Registered, 12 { handle: u32, lkey: u32, rkey: u32 }
    /// `struct ib_uverbs_rereg_mr`.
    Reregister, 48 {
        response: u64, handle: u32, flags: u32, start: u64, length: u64, address: u64, pd: u32, access: u32,
    }
    /// `struct ib_uverbs_rereg_mr_resp`.
    Reregistered, 8 { lkey: u32, rkey: u32 }
    /// `struct ib_uverbs_alloc_mw`.
    AllocateWindow, 16 { response: u64, pd: u32, kind: u8, reserved: [u8; 3] }
    /// `struct ib_uverbs_alloc_mw_resp`.
    WindowAllocated, 8 { handle: u32, rkey: u32 }
    /// `struct ib_uverbs_create_cq`.
    CreateCq, 32 { response: u64, user_handle: u64, entries: u32, vector: u32, channel: u32, reserved: u32 }
    /// `struct ib_uverbs_create_cq_resp`.
    CqCreated, 8 { handle: u32, entries: u32 }
    /// `struct ib_uverbs_req_notify_cq`.
    NotifyCq, 8 { cq: u32, solicited: u32 }
    /// `struct ib_uverbs_create_qp`.
    CreateQp, 56 {
        response: u64, user_handle: u64, pd: u32, send_cq: u32, recv_cq: u32, srq: u32, max_send: u32, max_recv: u32,
        max_send_sge: u32, max_recv_sge: u32, max_inline: u32, signal_all: u8, kind: u8, is_srq: u8, reserved: u8,
    }
    /// `struct ib_uverbs_create_qp_resp`.
    QpCreated, 32 {
        handle: u32, number: u32, max_send: u32, max_recv: u32, max_send_sge: u32, max_recv_sge: u32, max_inline: u32,
        reserved: u32,
    }
    /// `struct ib_uverbs_qp_dest`.
    Destination, 32 {
        gid: [u8; 16], flow_label: u32, lid: u16, reserved: u16, source_gid_index: u8, hop_limit: u8, traffic_class: u8,
        service_level: u8, source_path: u8, rate: u8, is_global: u8, port: u8,
    }
    /// `struct ib_uverbs_modify_qp`.
    ModifyQp, 112 {
        to: Destination, alternative: Destination, handle: u32, mask: u32, qkey: u32, recv_psn: u32, send_psn: u32,
        peer: u32, access: u32, pkey_index: u16, alternative_pkey_index: u16, state: u8, current_state: u8, mtu: u8,
        migration: u8, notify_drained: u8, max_reads: u8, max_peer_reads: u8, rnr_timer: u8, port: u8, timeout: u8,
        retries: u8, rnr_retries: u8, alternative_port: u8, alternative_timeout: u8, reserved: [u8; 2],
    }
    /// `struct ib_uverbs_post_send`, without requests: those are in the shared queue.
    PostSend, 24 { response: u64, qp: u32, requests: u32, buffers: u32, request_size: u32 }
    /// `struct ib_uverbs_wc`.
    WorkCompletion, 48 {
        id: u64, status: u32, opcode: u32, vendor_error: u32, len: u32, data: u32, qp: u32, source: u32, flags: u32,
        pkey_index: u16, lid: u16, service_level: u8, path: u8, port: u8, reserved: u8,
    }
    /// `struct ib_uverbs_sge`, and `struct rxe_sge`.
    Buffer, 16 { at: u64, len: u32, lkey: u32 }
    /// `struct mminfo`: where a shared queue is mapped from.
    QueuePlace, 16 { offset: u64, size: u32, pad: u32 }
    /// `struct rxe_create_qp_resp`.
    QpQueues, 32 { receive: QueuePlace, send: QueuePlace }
    /// `struct rxe_dma_info` with room for one buffer, or the eight bytes of an atomic write.
    Data, 40 {
        len: u32, left: u32, current: u32, buffers: u32, offset: u32, reserved: u32, buffer: Buffer,
    }
    /// `struct rxe_send_wqe`, whose union `wr` is words here: see [`SendElement::operands`].
    SendElement, 224 {
        id: u64, reserved: u32, opcode: u32, flags: u32, invalidate: u32, operands: [u64; 15], status: u32, state: u32,
        address: u64, mask: u32, first_psn: u32, last_psn: u32, ack_len: u32, number: u32, reads: u32, data: Data,
    }
    /// `struct rxe_recv_wqe`.
    ReceiveElement, 56 { id: u64, reserved: u32, padding: u32, data: Data }
}

impl Data {
    /// One buffer.
    pub(super) fn of(buffer: Buffer) -> Data {
        Data { buffers: 1, buffer, ..Data::bytes_of_message(buffer.len) }
    }

    /// That many bytes, without a buffer.
    pub(super) fn bytes_of_message(len: u32) -> Data {
        Data { len, left: len, ..Data::zeroed() }
    }
}

/// Two 32-bit fields that stand one behind the other, as a word.
pub(super) fn pair_of(first: u32, second: u32) -> u64 {
    let mut word = [0; 8];
    word[..4].copy_from_slice(&first.to_ne_bytes());
    word[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(word)
}
