//! The software RDMA NIC: verbs, queue pairs, protection, the in-process transport.
