//! The peer: a plain QEMU with our kernel, the container's image as a disk, an ext4 disk, and our
//! file server for a directory, which an `/init` mounts as ours does; then the guest program reads
//! operations from the serial line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::bench::Bench;
use crate::bench::bare;
use crate::workspace::{ARCH, make_dir};

const INIT: &str = r#"#!/busybox sh
/busybox mkdir -p /dev /image /shares
/busybox mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
for list in /modules.list /drivers.list; do
    while read -r module; do /busybox insmod "$module"; done <$list
done
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do /busybox usleep 10000; done
/busybox mount -t erofs -o ro,nodev /dev/vda /image
/busybox mount -t ext4 -o nodev,discard,noinit_itable,no_prefetch_block_bitmaps /dev/vdb /image/disk
/busybox mount -t virtiofs -o nosuid,nodev shares /shares
/busybox mount -o bind /shares/0 /image/share
/busybox mount -t devtmpfs dev /image/dev
/busybox mount -t proc proc /image/proc
exec /busybox chroot /image /files loop </dev/ttyS0 >/dev/ttyS0
"#;

/// A machine that runs, and its file server; gone on drop.
pub struct Machine {
    qemu: Child,
    server: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in [&mut self.qemu, &mut self.server] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Machine {
    /// Boots one like the machine of ours that `like`, its arguments, describes.
    pub fn boot(
        bench: &Bench<'_>,
        like: &[String],
        image: &Path,
        disk: &Path,
        share: &Path,
    ) -> Result<Self> {
        let folder = bench.workspace.target.join("bench");
        make_dir(&folder)?;
        let busybox = std::fs::read("/bin/busybox").context("read busybox")?;
        let files =
            [("init", 0o100_755, INIT.as_bytes()), ("busybox", 0o100_755, busybox.as_slice())];
        let initramfs = folder.join("files.cpio");
        std::fs::write(&initramfs, bare::archive(bench.workspace, &files)?)
            .context("write an initramfs")?;
        let socket = folder.join("shares.sock");
        let mut server = serve(bench, &socket, share)?;
        let shape = bare::shape(bench.workspace, like, &initramfs)?;
        let mut qemu = qemu(shape, &socket, image, disk)?.spawn().inspect_err(|_| {
            let _ = server.kill();
        })?;
        let input = qemu.stdin.take().context("no standard input")?;
        let output = BufReader::new(qemu.stdout.take().context("no standard output")?);
        let mut machine = Self { qemu, server, input, output };
        let ready = machine.answer()?;
        match ready.as_str() {
            "ready" => Ok(machine),
            other => bail!("the bare machine says {other:?}"),
        }
    }

    /// Nanoseconds of an operation.
    pub fn measure(&mut self, operation: &str, directory: &str) -> Result<f64> {
        writeln!(self.input, "{operation} {directory}").context("ask the bare machine")?;
        let answer = self.answer()?;
        answer.parse().with_context(|| format!("{operation}: the bare machine says {answer:?}"))
    }

    fn answer(&mut self) -> Result<String> {
        let mut said = String::new();
        loop {
            let mut line = Vec::new();
            let len = self.output.read_until(b'\n', &mut line).context("read the serial line")?;
            if len == 0 {
                bail!("the bare machine has ended: {said}");
            }
            let line = String::from_utf8_lossy(&line);
            match line.trim().strip_prefix('=') {
                Some(answer) => return Ok(answer.to_owned()),
                None => said.push_str(&line),
            }
        }
    }
}

/// Our file server, for a directory that is its first share.
fn serve(bench: &Bench<'_>, socket: &Path, share: &Path) -> Result<Child> {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).context("listen for QEMU")?;
    let about = std::fs::metadata(share).context("look at the share")?;
    let mut command = Command::new("sh");
    // Its socket has a number above those of the standard streams.
    command.args(["-c", "exec 5<&0 </dev/null; exec \"$@\"", "sh"]);
    command.arg(bench.workspace.release().join("container-fileserver"));
    command.args(["5", "--"]).arg(share);
    command.args([about.dev().to_string(), about.ino().to_string()]).args(["d", "rw", "-"]);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    command.spawn().context("start the file server")
}

fn qemu(mut shape: Vec<String>, socket: &Path, image: &Path, disk: &Path) -> Result<Command> {
    let value = |name: &str, shape: &[String]| {
        let at = shape.iter().position(|word| word == name).map(|at| at + 1);
        at.with_context(|| format!("no {name} among the arguments"))
    };
    let memory = shape[value("-m", &shape)?].clone();
    let machine = value("-M", &shape)?;
    shape[machine].push_str(",memory-backend=ram");
    let serial = value("-serial", &shape)?;
    shape[serial] = "stdio".into();
    let block = |name: &str, file: &Path, read_only: bool| {
        let discard = if read_only { "ignore" } else { "unmap" };
        let access = if read_only { "on" } else { "off" };
        format!(
            "driver=file,node-name={name},filename={},read-only={access},locking=off,\
             discard={discard}",
            file.display()
        )
    };
    let mut command = Command::new(format!("qemu-system-{ARCH}"));
    command.args(shape).arg("-object");
    command.arg(format!("memory-backend-memfd,id=ram,size={memory},share=on"));
    command.arg("-blockdev").arg(block("image", image, true));
    command.args(["-device", "virtio-blk-pci,drive=image"]);
    command.arg("-blockdev").arg(block("disk", disk, false));
    command.args(["-device", "virtio-blk-pci,drive=disk,discard=on,write-zeroes=on"]);
    command.arg("-chardev").arg(format!("socket,id=shares,path={}", socket.display()));
    command.args(["-device", "vhost-user-fs-pci,chardev=shares,tag=shares"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok(command)
}
