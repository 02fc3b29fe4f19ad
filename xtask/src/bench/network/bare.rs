//! The peer: plain QEMUs on a bridge with a tap each, in a namespace of their own, with our kernel
//! and an `/init` that inserts our modules, sets its address, and runs the guest program.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::command::Running;
use e2e::world::Place;

use super::throughput::PORT;
use crate::bench::Bench;
use crate::bench::bare;
use crate::workspace::{ARCH, make_dir};

/// The host's address on the bridge.
const HOST: &str = "10.77.0.1";
const LIMIT: Duration = Duration::from_secs(60);

const INIT: &str = r#"#!/busybox sh
for list in /modules.list /drivers.list; do
    while read -r module; do /busybox insmod "$module"; done <$list
done
/busybox ip address add "$ADDRESS/24" dev eth0
/busybox ip link set eth0 up
exec /transfer serve "$PORT"
"#;

/// Machines that run; gone on drop.
pub struct Machines {
    _running: Vec<Running>,
    /// Their addresses.
    pub addresses: Vec<String>,
}

impl Machines {
    /// Boots `count` like the machine of ours that `like`, its arguments, describes; each shows
    /// the program `transfer` on [`PORT`].
    pub fn boot(
        bench: &Bench<'_>,
        place: &Place,
        like: &[String],
        transfer: &Path,
        count: usize,
    ) -> Result<Self> {
        let folder = bench.workspace.target.join("bench");
        make_dir(&folder)?;
        let read =
            |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
        let busybox = read(Path::new("/bin/busybox"))?;
        let program = transfer.to_string_lossy().into_owned();
        let transfer = read(transfer)?;
        let files = [
            ("init", 0o100_755, INIT.as_bytes()),
            ("busybox", 0o100_755, &busybox),
            ("transfer", 0o100_755, &transfer),
        ];
        let initramfs = folder.join("transfer.cpio");
        std::fs::write(&initramfs, bare::archive(bench.workspace, &files)?)
            .context("write an initramfs")?;
        place.sh(&format!(
            "ip link add br0 type bridge; ip address add {HOST}/24 dev br0; ip link set br0 up"
        ));
        let (mut running, mut addresses) = (Vec::new(), Vec::new());
        for number in 0..count {
            let address = format!("10.77.0.{}", number + 2);
            let tap = format!("tap{number}");
            place.sh(&format!(
                "ip tuntap add {tap} mode tap vnet_hdr; ip link set {tap} master br0 up"
            ));
            let mut shape = bare::shape(bench.workspace, like, &initramfs)?;
            let at = shape.iter().position(|word| word == "-append").context("no -append")?;
            // What the kernel does not know becomes the first process's environment.
            shape[at + 1].push_str(&format!(" ADDRESS={address} PORT={PORT}"));
            let mac = format!("mac=02:77:00:00:00:{number:02x}");
            running.push(
                place
                    .command(&format!("qemu-system-{ARCH}"))
                    .args(shape)
                    .arg("-netdev")
                    .arg(format!("tap,id=net0,ifname={tap},script=no,downscript=no,vhost=off"))
                    .arg("-device")
                    .arg(format!("virtio-net-pci,netdev=net0,romfile=,{mac}"))
                    .spawn(),
            );
            addresses.push(address);
        }
        for address in &addresses {
            let port = PORT.to_string();
            e2e::wait_for("a bare machine", LIMIT, || {
                let look = place.command(&program).args(["send", address, &port, "1"]).run();
                (look.code == Some(0)).then_some(())
            });
        }
        Ok(Self { _running: running, addresses })
    }
}
