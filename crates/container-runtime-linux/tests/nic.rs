//! NICs of VMs without a container, on taps of another user's namespace too.

#[path = "support/lan.rs"]
mod lan;
#[path = "support/machine.rs"]
mod machine;
#[expect(dead_code, reason = "other tests use the rest")]
mod support;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/template.rs"]
mod template;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use container_api::network::Mac;
use container_runtime_linux::hypervisor::{
    Error, ExtraNic, Hypervisor, Nic, Qemu, RamSharing, Vm, VmStreams,
};
use lan::Lan;
use machine::{Machine, console_until, guest, runtime, shell};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use template::Template;

/// The taps that an unprivileged run of a test gets from the privileged one.
const TAPS: &str = "CONTAINER_TEST_TAPS";
const MODULES: [&str; 2] = ["virtio", "failover"];
const SECOND: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// Five taps, 10.9.1.1 to 10.9.5.1; the network lives as long as the first of both.
fn taps() -> (Option<Lan>, Vec<OwnedFd>) {
    if let Ok(numbers) = std::env::var(TAPS) {
        // SAFETY: whoever started this test has opened them for it.
        let owned =
            |number: &str| unsafe { OwnedFd::from_raw_fd(number.parse().expect("a number")) };
        return (None, numbers.split(',').map(owned).collect());
    }
    let lan = Lan::new();
    let names = ["one", "two", "three", "four", "five"];
    let tap = |(n, name)| lan.tap(name, &[&format!("10.9.{n}.1/24")]);
    let taps = (1..).zip(names).map(tap).collect();
    (Some(lan), taps)
}

/// Reaches the host's end of tap `n` over an interface.
async fn ping(streams: &mut VmStreams, interface: &str, n: u8) {
    let wait = format!(
        "n=0; while [ ! -e /sys/class/net/{interface} ] && [ $n -lt 3000 ]; do n=$((n+1)); usleep 10000; done"
    );
    guest(streams, &wait).await;
    let up = format!("ip address add 10.9.{n}.2/24 dev {interface} && ip link set {interface} up");
    guest(streams, &up).await;
    guest(streams, &format!("ping -c 1 -w 20 10.9.{n}.1 > /dev/null")).await;
}

#[test]
fn taps_carry_what_nics_send() {
    runtime().block_on(async {
        let (_lan, taps) = taps();
        let mut taps = taps.into_iter();
        let mut next = || taps.next().expect("a tap");

        let machine = Machine::new().await;
        let mut config = machine.config(&shell(&MODULES));
        config.nic = Nic::Tap(next());
        config.more_nics = vec![ExtraNic { mac: SECOND, tap: next() }];
        let (vm, mut streams) = Qemu.start(config).await.expect("a VM");
        console_until(&mut streams, "ready\r\n").await;
        ping(&mut streams, "eth0", 1).await;
        ping(&mut streams, "eth1", 2).await;
        let address = guest(&mut streams, "cat /sys/class/net/eth1/address").await;
        assert_eq!(address, SECOND.to_string());
        vm.kill();

        // A clone of a VM whose NIC led elsewhere.
        let template = Template::on(Nic::Tap(next()), &MODULES, "true").await;
        let mut config = template.config(RamSharing::CopyOnWrite);
        config.nic = Nic::Tap(next());
        let (vm, mut streams) = Qemu.start(config).await.expect("a clone");
        ping(&mut streams, "eth0", 4).await;
        vm.plug_nic(ExtraNic { mac: SECOND, tap: next() }).await.expect("plugged");
        ping(&mut streams, "eth1", 5).await;
        let address = guest(&mut streams, "cat /sys/class/net/eth1/address").await;
        assert_eq!(address, SECOND.to_string());
        let null = std::fs::File::open("/dev/null").expect("/dev/null");
        let refused = vm.plug_nic(ExtraNic { mac: SECOND, tap: null.into() }).await;
        assert!(refused.is_err(), "{refused:?}");
    });
}

#[test]
fn work_for_an_unprivileged_user() {
    if !nix::unistd::getuid().is_root() {
        return;
    }
    let (_lan, taps) = taps();
    let keep = |tap: &OwnedFd| -> RawFd {
        fcntl(tap, FcntlArg::F_SETFD(FdFlag::empty())).expect("kept");
        tap.as_raw_fd()
    };
    let numbers: Vec<String> = taps.iter().map(|tap| keep(tap).to_string()).collect();
    support::again_unprivileged_with("taps_carry_what_nics_send", &[(TAPS, numbers.join(","))]);
}

#[test]
fn further_nics_of_a_clone_are_plugged() {
    runtime().block_on(async {
        let template = Template::new(&MODULES, true, "true").await;
        let mut config = template.config(RamSharing::CopyOnWrite);
        let tap = std::fs::File::open("/dev/null").expect("/dev/null").into();
        config.more_nics = vec![ExtraNic { mac: SECOND, tap }];
        let refused = Qemu.start(config).await.map(drop).expect_err("refused");
        assert!(matches!(refused, Error::Config(_)), "{refused:?}");
    });
}
