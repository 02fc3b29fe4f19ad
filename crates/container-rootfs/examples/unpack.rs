//! Unpacks layer files into an EROFS image and prints how long it took.
//!
//! `unpack OUTPUT LAYER...`, layers bottom first, gzip, zstd or plain.

use std::error::Error;
use std::fs::File;
use std::ops::ControlFlow;
use std::time::Instant;

use container_rootfs::{Decompressor, ImageBuilder, Limits, ReadAhead};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let output = args.next().ok_or("usage: unpack OUTPUT LAYER...")?;
    let start = Instant::now();
    let output = File::options().read(true).write(true).create(true).truncate(true).open(output)?;
    let mut builder = ImageBuilder::new(output, Limits::default())?;
    for layer in args {
        let reader = ReadAhead::new(Decompressor::detect(File::open(layer)?)?)?;
        let stats = builder.apply_layer(reader, |_| ControlFlow::Continue(()))?;
        println!("{stats:?}");
    }
    let applied = start.elapsed();
    let summary = builder.finish(64 << 30)?;
    println!("{} inodes, {} bytes", summary.inodes, summary.bytes);
    println!("layers {applied:?}, in all {:?}", start.elapsed());
    Ok(())
}
