//! Files that can be executed.
//!
//! It owns the smallest program possible: it waits for a signal. Invariant: the image is a static
//! executable, and the bytes of the file behind it stay the file's own. Kernel counterpart:
//! fs/binfmt_elf.c.

/// The address that the file is loaded at.
const BASE: u64 = 0x40_0000;
/// The ELF header and one program header.
const HEADERS: u64 = 64 + 56;

/// The first bytes of an executable file; none on a processor whose instructions this module
/// doesn't know.
pub(super) fn image() -> Option<Vec<u8>> {
    let (machine, code) = code()?;
    let mut image = Vec::new();
    // 64 bits, little endian, version 1.
    image.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let len = HEADERS + code.len() as u64;
    // ET_EXEC, version 1, entry behind the headers; one program header; no sections.
    for half in [2, machine] {
        image.extend_from_slice(&u16::to_le_bytes(half));
    }
    image.extend_from_slice(&1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        image.extend_from_slice(&u64::to_le_bytes(word));
    }
    image.extend_from_slice(&0u32.to_le_bytes());
    for half in [64, 56, 1, 0, 0, 0] {
        image.extend_from_slice(&u16::to_le_bytes(half));
    }
    // PT_LOAD, readable and executable, from the file's start.
    for word in [1u32, 5] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    for word in [0, BASE, BASE, len, len, 4096] {
        image.extend_from_slice(&u64::to_le_bytes(word));
    }
    image.extend_from_slice(code);
    Some(image)
}

/// The ELF machine number, and the code of `for (;;) pause();`.
fn code() -> Option<(u16, &'static [u8])> {
    match std::env::consts::ARCH {
        // mov eax, 34; syscall; jmp back
        "x86_64" => Some((62, &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7])),
        _ => None,
    }
}
