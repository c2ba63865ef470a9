//! The bytes of one encoded histogram, checked before HdrHistogram's library decodes them.
//!
//! It owns the bounds. The library trusts the lengths and counts that an encoding states: it
//! allocates what the payload's length says, up to 4 GiB, and adds counts without a check.
//! Invariant: what [`plain`] returns is a V2 encoding that is as long as it states, and whose
//! counts can be added up. There is no kernel counterpart.

use std::io::Read;

use flate2::read::ZlibDecoder;

/// The first four bytes of an encoding, big-endian: plain and deflated V2.
const V2: u32 = 0x1c84_9313;
const V2_DEFLATED: u32 = 0x1c84_9314;

/// Cookie, payload length, normalising offset, digits: 4 bytes each; lowest and highest value,
/// ratio: 8 bytes each.
const HEADER_BYTES: usize = 40;

/// The longest plain encoding, in bytes. A histogram over all of `u64` with five digits that counts
/// a call at each of its values needs less than half of it.
const PLAIN_BYTES_MAX: u64 = 16 << 20;

/// The plain V2 encoding of the histogram that `encoded` holds, plain or deflated.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn plain(encoded: &[u8]) -> Result<Vec<u8>, String> {
    let plain = match word(encoded, 0)? {
        V2_DEFLATED => {
            let mut plain = Vec::new();
            let deflated = encoded.get(8..).ok_or_else(too_short)?;
            let mut inflated = ZlibDecoder::new(deflated).take(PLAIN_BYTES_MAX + 1);
            inflated.read_to_end(&mut plain).map_err(|error| format!("cannot be inflated: {error}"))?;
            plain
        }
        _ => encoded.to_vec(),
    };
    if plain.len() as u64 > PLAIN_BYTES_MAX {
        return Err(format!("longer than {PLAIN_BYTES_MAX} bytes"));
    }
    if word(&plain, 0)? != V2 {
        return Err("not a histogram of format V2".to_owned());
    }
    let stated = word(&plain, 4)? as usize;
    let rest = plain.get(HEADER_BYTES..).ok_or_else(too_short)?;
    let payload = rest.get(..stated);
    check_counts(payload.ok_or_else(|| format!("{stated} bytes of counts are stated, {} there", rest.len()))?)?;
    Ok(plain)
}

fn too_short() -> String {
    "too short for a histogram".to_owned()
}

/// The big-endian word at a position.
fn word(bytes: &[u8], at: usize) -> Result<u32, String> {
    let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_be_bytes).ok_or_else(too_short)
}

/// Checks the numbers of a payload: each is whole, and all counts and all skipped zeros can be
/// added up. A number is a count, or, if it is negative, says how many zeros are skipped.
fn check_counts(mut payload: &[u8]) -> Result<(), String> {
    let (mut calls, mut places) = (0_i64, 0_i64);
    while !payload.is_empty() {
        let (number, rest) = varint(payload).ok_or("its last count is cut off")?;
        payload = rest;
        // Zigzag: the lowest bit is the sign.
        let number = (number >> 1) as i64 ^ -((number & 1) as i64);
        let skipped = if number < 0 { number.checked_neg() } else { Some(1) };
        places = skipped.and_then(|skipped| places.checked_add(skipped)).ok_or("it skips too many zeros")?;
        calls = calls.checked_add(number.max(0)).ok_or("its counts exceed 2^63 calls")?;
    }
    Ok(())
}

/// Takes a LEB128 number of at most nine bytes, the last of which has eight bits. `None`: it is cut
/// off.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0;
    for n in 0..9 {
        let byte = *bytes.get(n)?;
        let whole = n == 8;
        number |= u64::from(if whole { byte } else { byte & 0x7f }) << (7 * n);
        if whole || byte & 0x80 == 0 {
            return Some((number, &bytes[n + 1..]));
        }
    }
    None
}
