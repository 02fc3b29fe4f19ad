//! A network that the host's end of a VM's NICs is in: a namespace of its own with a tap for each.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};

/// `linux/if_tun.h`.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace, which ends with it.
pub struct Lan {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Lan {
    /// A namespace with nothing in it but its loopback.
    pub fn new() -> Lan {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: the test needs root");
            queue.iter().for_each(|job| job());
        });
        let lan = Lan { jobs: Some(jobs), thread: Some(thread) };
        lan.ip("link set lo up");
        lan
    }

    /// Runs something there.
    pub fn within<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        let job = Box::new(move || drop(answer.send(job())));
        self.jobs.as_ref().expect("not dropped").send(job).expect("the thread lives");
        answered.recv().expect("the job did not panic")
    }

    /// `ip` there.
    pub fn ip(&self, arguments: &str) -> String {
        let arguments = arguments.to_owned();
        self.within(move || {
            let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "ip {arguments}: {error}");
            String::from_utf8(output.stdout).expect("text")
        })
    }

    /// A tap with addresses.
    pub fn tap(&self, name: &'static str, addresses: &[&str]) -> OwnedFd {
        let tap = self.within(move || tap(name));
        for address in addresses {
            let family = if address.contains(':') { " nodad" } else { "" };
            self.ip(&format!("address add {address} dev {name}{family}"));
        }
        self.ip(&format!("link set {name} up"));
        tap
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// As the service makes them.
fn tap(name: &str) -> OwnedFd {
    let mut options = File::options();
    let tap = options.read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
    // SAFETY: ifreq is plain data; all zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: the structure outlives the call.
    let made = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request) };
    Errno::result(made).expect("a tap");
    tap.into()
}
