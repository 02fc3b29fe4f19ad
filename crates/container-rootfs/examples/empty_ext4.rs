//! Writes an empty ext4: `empty_ext4 OUTPUT [MIB]`.

use std::error::Error;
use std::fs::File;

use container_rootfs::ext4::{Params, write_empty};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let output = args.next().ok_or("usage: empty_ext4 OUTPUT [MIB]")?;
    let mib = match args.next() {
        Some(mib) => mib.to_str().ok_or("MIB isn't a number")?.parse()?,
        None => 64 << 10,
    };
    let file = File::options().read(true).write(true).create(true).truncate(true).open(output)?;
    let start = std::time::Instant::now();
    write_empty(&file, mib << 20, &Params { uuid: [7; 16], ..Params::default() })?;
    println!("{:?}", start.elapsed());
    Ok(())
}
