//! Faults at moments that a seed decides, and the look afterwards: is everything as it should be?

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::processes::{self, Process};
use crate::{Installation, Output, wait_for};

/// How long an installation may take to come to rest after a fault, on a busy machine.
const REST: Duration = Duration::from_secs(90);

/// Numbers that follow from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Those of `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// One of several.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }

    /// A time up to `most`.
    pub fn within(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.below(most.as_micros() as u64 + 1))
    }
}

/// A process that a fault ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// `container-apiserver`.
    Apiserver,
    /// `container-images`.
    Images,
    /// `container-network`, the service.
    Network,
    /// A container's `container-runtime-linux`.
    Helper,
    /// A container's QEMU.
    Hypervisor,
    /// A container's `container-fileserver`.
    FileServer,
    /// A network's resolver.
    Resolver,
    /// A container's forwarder.
    Forwarder,
    /// The command itself.
    CommandLine,
}

impl Victim {
    /// All of them.
    pub const ALL: [Victim; 9] = [
        Victim::Apiserver,
        Victim::Images,
        Victim::Network,
        Victim::Helper,
        Victim::Hypervisor,
        Victim::FileServer,
        Victim::Resolver,
        Victim::Forwarder,
        Victim::CommandLine,
    ];

    /// Whether its death ends a container.
    pub fn is_of_a_vm(self) -> bool {
        matches!(self, Victim::Helper | Victim::Hypervisor | Victim::FileServer)
    }

    fn is(self, process: &Process) -> bool {
        let named = |name: &str| process.name == name[..name.len().min(15)];
        let carries = |what: &str| process.arguments.split(' ').any(|word| word == what);
        match self {
            Victim::Apiserver => named("container-apiserver"),
            Victim::Images => named("container-images"),
            Victim::Network => named("container-network") && carries("serve"),
            Victim::Helper => named("container-runtime-linux"),
            Victim::Hypervisor => process.name.starts_with("qemu-system"),
            Victim::FileServer => named("container-fileserver"),
            Victim::Resolver => named("container-network") && carries("resolver"),
            Victim::Forwarder => named("container-network") && carries("forward"),
            Victim::CommandLine => false,
        }
    }
}

impl Installation {
    /// The processes that `victim` may mean now. Spares' and makers' are among them: their deaths
    /// are faults too.
    pub fn victims(&self, victim: Victim) -> Vec<Process> {
        let mut all = self.processes();
        all.retain(|process| victim.is(process));
        all
    }

    /// `container ARGS…`, in the middle of which, after `delay` or as soon as there is one, `victim`
    /// is killed. Says how the command ended, and which process was killed if there was one.
    #[track_caller]
    pub fn run_with_fault(
        &self,
        args: &[&str],
        victim: Victim,
        delay: Duration,
        random: &mut Random,
    ) -> (Output, Option<u32>) {
        let before = Instant::now();
        let mut running = self.container(args).spawn();
        // The moment is whatever the seed says; nothing is waited for here.
        std::thread::sleep(delay.saturating_sub(before.elapsed()));
        let killed = match victim {
            Victim::CommandLine => Some(running.pid()),
            _ => loop {
                let goes_on = running.is_running();
                let found = self.victims(victim);
                if !found.is_empty() {
                    break Some(random.one_of(&found).pid);
                }
                if !goes_on {
                    break None;
                }
            },
        };
        if let Some(pid) = killed {
            processes::kill(pid, Signal::KILL);
        }
        (running.wait(REST), killed)
    }

    /// Waits until everything is as it should be, `system check --state` says. Panics with what is
    /// not, and `context`.
    #[track_caller]
    pub fn comes_to_rest(&self, context: &str) {
        let mut last = String::new();
        let end = Instant::now() + REST;
        loop {
            // A service that was killed is started by the next who needs it.
            self.run(["system", "start"]).ok();
            let output = self.run(["system", "check", "--state", "--format", "json"]);
            if output.code == Some(0) && wrong(&output).is_empty() {
                return;
            }
            let now = match output.code {
                Some(0 | 1) => wrong(&output).join("\n"),
                _ => output.errors(),
            };
            if now != last {
                eprintln!("after {context}, not yet: {now}");
                last = now;
            }
            assert!(Instant::now() < end, "{context}: it does not come to rest:\n{last}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the container has this status.
    #[track_caller]
    pub fn comes_to(&self, id: &str, status: &str) {
        wait_for(&format!("container {id} {status}"), REST, || {
            (self.status(id).as_deref() == Some(status)).then_some(())
        });
    }
}

/// What `system check --format json` says that is not `pass`.
fn wrong(output: &Output) -> Vec<String> {
    let rows = output.json();
    let rows = rows.as_array().cloned().unwrap_or_default();
    assert!(!rows.is_empty(), "nothing was checked: {output:?}");
    let failed = rows.iter().filter(|row| row["result"] != "pass");
    failed.map(|row| format!("{}: {}", row["check"], row["evidence"])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            (0..4).map(|_| random.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
        let mut random = Random::new(1);
        let mut seen = [false; 3];
        (0..100).for_each(|_| seen[*random.one_of(&[0, 1, 2])] = true);
        assert_eq!(seen, [true; 3]);
        assert!(random.within(Duration::from_millis(5)) <= Duration::from_millis(5));
    }
}
