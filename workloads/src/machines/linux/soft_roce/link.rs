//! Makes a Soft-RoCE device on a network device.
//!
//! It owns the one request of netlink that does it, as `rdma link add rxe0 type rxe netdev NAME`.
//! It is for guests, whose network devices nothing else uses. Kernel counterpart: `nldev_newlink`
//! in drivers/infiniband/core/nldev.c.

use std::io;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto, socket_with};

/// The name of the device that is made.
const DEVICE: &str = "rxe0";

/// `RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, RDMA_NLDEV_CMD_NEWLINK)`.
const NEW_LINK: u16 = 5 << 10 | 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;

const ATTR_DEV_NAME: u16 = 2;
const ATTR_NDEV_NAME: u16 = 51;
const ATTR_LINK_TYPE: u16 = 65;

/// Makes the device on the network device `netdev`.
///
/// # Errors
/// What the kernel answers: EINVAL without rdma_rxe, EEXIST if the device is there.
pub fn add(netdev: &str) -> io::Result<()> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::RDMA))?;
    sendto(&socket, &request(netdev), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 4096];
    let (len, _) = rustix::io::retry_on_intr(|| recv(&socket, &mut answer[..], RecvFlags::empty()))?;
    match error(&answer[..len]) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        None => Err(Errno::PROTO.into()),
    }
}

fn request(netdev: &str) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    for (kind, text) in [(ATTR_DEV_NAME, DEVICE), (ATTR_LINK_TYPE, "rxe"), (ATTR_NDEV_NAME, netdev)] {
        // The length counts its own header and the final zero, not the bytes to the next word.
        let len = 4 + text.len() + 1;
        message.extend((len as u16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(text.as_bytes());
        message.push(0);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let len = message.len() as u32;
    message[..4].copy_from_slice(&len.to_ne_bytes());
    message[4..6].copy_from_slice(&NEW_LINK.to_ne_bytes());
    message[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message
}

/// The errno in an acknowledgement: 0, or a negative number.
fn error(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let error = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_its_attributes_at_word_boundaries() {
        for netdev in ["dummy0", "eth0", "a", "abc"] {
            let message = request(netdev);
            assert_eq!(u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize, message.len());
            let (mut at, mut found) = (HEADER, Vec::new());
            while at < message.len() {
                let half = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
                let len = usize::from(half(at));
                assert_eq!(message[at + len - 1], 0, "{netdev}: a string ends with a zero");
                found.push((half(at + 2), String::from_utf8(message[at + 4..at + len - 1].to_vec()).unwrap()));
                at += len.next_multiple_of(4);
            }
            assert_eq!(at, message.len(), "{netdev}");
            let wanted = [(ATTR_DEV_NAME, "rxe0"), (ATTR_LINK_TYPE, "rxe"), (ATTR_NDEV_NAME, netdev)];
            assert_eq!(found, wanted.map(|(kind, text)| (kind, text.to_owned())));
        }
    }

    #[test]
    fn an_acknowledgement_is_read() {
        let answer = |kind: u16, error: i32| {
            let mut bytes = vec![0; HEADER];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes.extend(error.to_ne_bytes());
            bytes
        };
        assert_eq!(error(&answer(NLMSG_ERROR, 0)), Some(0));
        assert_eq!(error(&answer(NLMSG_ERROR, -17)), Some(-17));
        assert_eq!(error(&answer(NEW_LINK, 0)), None);
        assert_eq!(error(&[0; HEADER]), None);
    }
}
