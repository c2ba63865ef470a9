//! Cut the power: flushed lines survive, each other line survives or is lost by a seeded choice.

use std::error::Error;

use emulator::device::persistence::{DurableImage, LINE};
use emulator::device::{Device, FOLIO};

const LINES: u64 = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::memory(FOLIO)?;
    let durable = DurableImage::new(&device)?;

    device.write(0, b"flushed")?;
    let flushed = durable.flush(&device, Some(0..LINE))?;
    println!("flush: copied {} bytes to the durable image", flushed.bytes_copied);

    // These stores reach the CPU cache only. They lie in a page of their own, because a flush works
    // on whole pages.
    for line in 0..LINES {
        device.write(4096 + line * LINE, b"in the cache")?;
    }
    let cut = durable.cut(&device, 7)?;
    println!("power cut: {} of {} unflushed lines were evicted in time", cut.lines_survived, cut.lines_unflushed);
    durable.restore(&device)?;

    let mut bytes = [0; 7];
    device.read(0, &mut bytes)?;
    println!("after power-on: line 0 holds {:?}", String::from_utf8_lossy(&bytes));
    assert_eq!(&bytes, b"flushed");
    let mut survived = 0;
    for line in 0..LINES {
        let mut bytes = [0; 12];
        device.read(4096 + line * LINE, &mut bytes)?;
        assert!(&bytes == b"in the cache" || bytes == [0; 12], "a line is whole or lost");
        survived += u64::from(bytes != [0; 12]);
    }
    assert_eq!(survived, cut.lines_survived);
    Ok(())
}
