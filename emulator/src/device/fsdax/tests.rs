//! Tests of the info block: against bytes made elsewhere, against each of the kernel's checks, and
//! on devices in use.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

use super::*;
use crate::runtime::pages::PageRange;
use proptest::prelude::*;

const SIZE: u64 = 256 << 20;

fn uuid() -> [u8; 16] {
    std::array::from_fn(|i| i as u8)
}

fn good() -> [u8; BYTES] {
    InfoBlock::new(SIZE, uuid()).unwrap().emit()
}

/// The checksum again, by another way: with n words, the running sums are sum(w) and sum((n - i) *
/// w).
fn sum_of(block: &[u8; BYTES]) -> u64 {
    let mut block = *block;
    block[4088..].fill(0);
    let words: Vec<u128> =
        block.chunks(4).map(|word| u128::from(u32::from_le_bytes(word.try_into().unwrap()))).collect();
    let low: u128 = words.iter().sum();
    let high: u128 = words.iter().enumerate().map(|(i, word)| (1024 - i as u128) * word).sum();
    ((high as u64) << 32) | u64::from(low as u32)
}

/// `block` with a change, and a checksum that fits.
fn changed(at: usize, value: &[u8]) -> [u8; BYTES] {
    let mut block = good();
    block[at..at + value.len()].copy_from_slice(value);
    let sum = sum_of(&block);
    block[4088..].copy_from_slice(&sum.to_le_bytes());
    block
}

/// Made by a script from the kernel's structure definition, not by this code.
#[test]
fn the_block_of_256_mib() {
    let head = "4e5644494d4d5f50464e5f494e464f00000102030405060708090a0b0c0d0e0f\
                0000000000000000000000000000000000000000010004000000200000000000\
                00fe000000000000010000000000000000000000000020000010000040000000";
    let block = good();
    let hex: String = block[..96].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, head);
    assert_eq!(block[96..4088], [0; 4088 - 96]);
    assert_eq!(block[4088..], 0x1a14_72c6_07b7_6289u64.to_le_bytes());
    let info = InfoBlock::parse(&block, SIZE).unwrap();
    assert_eq!(info, InfoBlock { uuid: uuid(), data_offset: 2 << 20, pages: 65024, align: 2 << 20 });
}

#[test]
fn sizes_without_room_for_data_are_refused() {
    for bytes in [0, 4096, FOLIO, FOLIO + 4096, 2 * FOLIO + 1, u64::MAX] {
        assert!(InfoBlock::new(bytes, uuid()).is_err(), "{bytes}");
    }
    assert_eq!(InfoBlock::new(2 * FOLIO, uuid()).unwrap().pages, 512);
}

#[test]
fn each_check_of_the_kernel_is_made() {
    let refusal = |block: [u8; BYTES]| InfoBlock::parse(&block, SIZE).unwrap_err();
    assert_eq!(refusal([0; BYTES]), InvalidInfoBlock::Absent);
    assert_eq!(refusal(changed(0, b"NVDIMM_DAX_INFO\0")), InvalidInfoBlock::Absent);
    assert_eq!(refusal(changed(32, &[1])), InvalidInfoBlock::Parent);
    let mut torn = good();
    torn[4000] ^= 1;
    assert!(matches!(refusal(torn), InvalidInfoBlock::Checksum { .. }));
    let field = |at, value: &[u8]| match refusal(changed(at, value)) {
        InvalidInfoBlock::Field { field, .. } => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(72, &[0]), "mode");
    assert_eq!(field(72, &[3]), "mode");
    assert_eq!(field(84, &[1]), "align");
    assert_eq!(field(84, &(512u32 << 20).to_le_bytes()), "align");
    assert_eq!(field(56, &4096u64.to_le_bytes()), "dataoff");
    assert_eq!(field(56, &(3u64 << 20).to_le_bytes()), "dataoff");
    assert_eq!(field(56, &SIZE.to_le_bytes()), "dataoff");
    assert_eq!(field(56, &(u64::MAX << 21).to_le_bytes()), "dataoff");
    assert_eq!(field(76, &4096u32.to_le_bytes()), "start_pad");
    assert_eq!(field(80, &4096u32.to_le_bytes()), "end_trunc");
    assert_eq!(field(80, &(256u32 << 20).to_le_bytes()), "end_trunc");
    assert_eq!(field(64, &65025u64.to_le_bytes()), "npfns");
    assert_eq!(field(64, &u64::MAX.to_le_bytes()), "npfns");
    // What older versions did not have counts as what it was then.
    let mut old = changed(54, &[0]);
    old[76..92].copy_from_slice(&[0xff; 16]);
    let sum = sum_of(&old);
    old[4088..].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(InfoBlock::parse(&old, SIZE).unwrap().align, 2 << 20, "from the offset of the data");
}

#[test]
fn a_device_is_prepared_once_and_never_over_data() {
    let device = Device::memory(8 * FOLIO).unwrap();
    // At the end of a device: others' bytes before it stay.
    device.fill(PageRange::new(0, 1024), 0xaa).unwrap();
    let (start, bytes) = (2 * FOLIO, 6 * FOLIO);
    let fresh = InfoBlock::new(bytes, uuid()).unwrap();
    assert!(matches!(prepare(&device, start, bytes, uuid()), Ok(Prepared::Written(block)) if block == fresh));
    assert!(matches!(prepare(&device, start, bytes, [9; 16]), Ok(Prepared::Found(block)) if block == fresh));
    let mut block = [0; BYTES];
    device.read(start + 4096, &mut block).unwrap();
    assert_eq!(block, fresh.emit());

    // A block for another size is not overwritten: data lie behind it.
    let error = prepare(&device, start, bytes - FOLIO, uuid()).unwrap_err();
    assert!(error.to_string().contains("npfns is 2560"), "{error}");
    // Nor is anything else, to the last byte before the data.
    for at in [0, 1080, 4096, 3 << 19, DATA - 1] {
        let device = Device::memory(4 * FOLIO).unwrap();
        device.write(at, &[1]).unwrap();
        match prepare(&device, 0, 4 * FOLIO, uuid()) {
            Err(PrepareError::InUse { at: found }) => assert_eq!(found, at),
            other => panic!("{other:?}"),
        }
        let mut block = [0; BYTES];
        device.read(OFFSET, &mut block).unwrap();
        assert_eq!(block.iter().filter(|byte| **byte != 0).count(), usize::from(at == 4096));
    }
    for (start, bytes) in [(4 * FOLIO, 6 * FOLIO), (u64::MAX, 2 * FOLIO)] {
        assert!(matches!(prepare(&device, start, bytes, uuid()), Err(PrepareError::Access(_))));
    }
    assert!(matches!(prepare(&device, 0, FOLIO, uuid()), Err(PrepareError::InvalidInfoBlock(_))));
}

proptest! {
    #[test]
    fn what_is_emitted_is_parsed(folios in 2u64..1 << 19, uuid: [u8; 16]) {
        let info = InfoBlock::new(folios * FOLIO, uuid).unwrap();
        let block = info.emit();
        prop_assert_eq!(sum_of(&block), u64_at(&block, 4088));
        prop_assert_eq!(InfoBlock::parse(&block, folios * FOLIO), Ok(info));
    }

    /// Whatever the fields hold, behind a checksum that fits: an answer, and never data beyond the
    /// namespace.
    #[test]
    fn any_fields_are_judged(
        data in prop_oneof![(0..9u64).prop_map(|n| n << 21), any::<u64>()],
        pages in prop_oneof![0..3000u64, any::<u64>()],
        pads in [0..4u32, 0..4u32],
        align in prop_oneof![Just(0u32), Just(4096), Just(1 << 21), any::<u32>()],
        page_size: u32,
        version in 0..6u8,
        mode in 0..4u8,
        folios in 0..8u64,
    ) {
        let mut block = changed(54, &[version]);
        block[56..64].copy_from_slice(&data.to_le_bytes());
        block[64..72].copy_from_slice(&pages.to_le_bytes());
        block[72] = mode;
        block[76..80].copy_from_slice(&(pads[0] << 21).to_le_bytes());
        block[80..84].copy_from_slice(&(pads[1] << 21).to_le_bytes());
        block[84..88].copy_from_slice(&align.to_le_bytes());
        block[88..92].copy_from_slice(&page_size.to_le_bytes());
        let sum = sum_of(&block);
        block[4088..].copy_from_slice(&sum.to_le_bytes());
        let bytes = folios * FOLIO;
        if let Ok(info) = InfoBlock::parse(&block, bytes) {
            prop_assert!(info.data_offset >= 8192 && info.data_offset + info.pages * PAGE <= bytes);
        }
    }
}
