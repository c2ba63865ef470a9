//! The Soft-RoCE device.
//!
//! It owns the search for it in sysfs. Invariant: only a device of rdma_rxe is used: the layout of
//! its queues is what this module's siblings know. Kernel counterpart: drivers/infiniband/core/
//! sysfs.c, drivers/infiniband/sw/rxe/rxe_verbs.c (the attribute `parent`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The most entries of a table of addresses that are looked at.
const GIDS_MAX: u8 = 16;

/// A device and its address.
#[derive(Debug)]
pub(super) struct SoftRoce {
    /// Its file, `/dev/infiniband/uverbs0`.
    pub(super) path: PathBuf,
    pub(super) gid: [u8; 16],
    pub(super) gid_index: u8,
}

impl SoftRoce {
    /// Finds the first one with an IPv4 address.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn find() -> Result<SoftRoce, String> {
        let lacks = |what: &str| {
            format!(
                "{what}: verbs need a kernel with CONFIG_INFINIBAND_USER_ACCESS, CONFIG_RDMA_RXE and CONFIG_DUMMY, built in or as modules, and a Soft-RoCE device, which a guest makes (`--on guest`)"
            )
        };
        let mut found = None;
        for name in entries("/sys/class/infiniband_verbs").into_iter().filter(|name| name.starts_with("uverbs")) {
            let Ok(device) = fs::read_to_string(format!("/sys/class/infiniband_verbs/{name}/ibdev")) else { continue };
            let device = Path::new("/sys/class/infiniband").join(device.trim());
            // Only rdma_rxe has this attribute.
            if !device.join("parent").exists() {
                continue;
            }
            found = Some(format!("{} has no IPv4 address", device.display()));
            for gid_index in 0..GIDS_MAX {
                let gid = fs::read_to_string(device.join(format!("ports/1/gids/{gid_index}")));
                if let Some(gid) = gid.ok().and_then(|text| of_ipv4(&text)) {
                    return Ok(SoftRoce { path: Path::new("/dev/infiniband").join(&name), gid, gid_index });
                }
            }
        }
        Err(lacks(&found.unwrap_or_else(|| "there is no Soft-RoCE device".to_owned())))
    }
}

/// The names in a folder, sorted; none if it is not there.
fn entries(folder: &str) -> Vec<String> {
    let names = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    let mut names: Vec<String> = fs::read_dir(folder).into_iter().flatten().filter_map(names).collect();
    names.sort();
    names
}

/// An address that sysfs shows, if it is one of IPv4: `0000:…:ffff:0a53:0001`.
fn of_ipv4(text: &str) -> Option<[u8; 16]> {
    let mut gid = [0; 16];
    let mut words = text.trim().split(':');
    for pair in gid.chunks_exact_mut(2) {
        pair.copy_from_slice(&u16::from_str_radix(words.next()?, 16).ok()?.to_be_bytes());
    }
    (gid[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] && words.next().is_none()).then_some(gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_sysfs() {
        let gid = of_ipv4("0000:0000:0000:0000:0000:ffff:0a53:0001\n").unwrap();
        assert_eq!(gid[10..], [0xff, 0xff, 10, 0x53, 0, 1]);
        assert_eq!(of_ipv4("fe80:0000:0000:0000:0011:22ff:fe33:4455"), None, "IPv6");
        assert_eq!(of_ipv4("0000:0000:0000:0000:0000:0000:0000:0000"), None, "no address");
        for wrong in ["", "ffff:0a53:0001", "0000:0000:0000:0000:0000:ffff:0a53:0001:0000"] {
            assert_eq!(of_ipv4(wrong), None, "{wrong}");
        }
    }
}
