//! A VM that was saved, to be restored.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use container_api::ram;

use container_runtime_linux::hypervisor::{
    Hypervisor, Nic, Origin, Qemu, RamSharing, Vm, VmConfig, VmStreams,
};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::machine::{self, LIMIT, Machine, console_until, guest};

/// Bytes of one.
pub const MIB: u64 = 1 << 20;

/// A number for all bytes of a RAM file.
#[allow(dead_code, reason = "not every test compares")]
pub fn checksum(ram: &Path) -> u64 {
    let mut file = File::open(ram).expect("the RAM");
    let mut hasher = DefaultHasher::new();
    let mut chunk = vec![0; MIB as usize];
    while let Ok(count @ 1..) = file.read(&mut chunk) {
        hasher.write(&chunk[..count]);
    }
    hasher.finish()
}

/// A saved VM.
pub struct Template {
    /// Where it was made.
    pub machine: Machine,
    /// Its RAM.
    pub ram: PathBuf,
    nic: bool,
}

impl Template {
    /// Boots a guest that waits for commands, has it do `first`, and saves it.
    pub async fn new(modules: &[&str], nic: bool, first: &str) -> Template {
        Template::on(if nic { Nic::Isolated } else { Nic::None }, modules, first).await
    }

    /// One whose VM has this NIC.
    pub async fn on(nic: Nic, modules: &[&str], first: &str) -> Template {
        let machine = Machine::new().await;
        let mut config = machine.config(&machine::shell(modules));
        let memory = File::from(memfd_create(c"ram", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
        memory.set_len(u64::from(config.memory_mib) * MIB).expect("its length");
        let Origin::Cold { ram: given, .. } = &mut config.origin else { unreachable!() };
        *given = Some(memory.try_clone().expect("a descriptor"));
        let has_nic = !matches!(nic, Nic::None);
        config.nic = nic;
        let (vm, mut streams) = Qemu.start(config).await.expect("a VM");
        console_until(&mut streams, "ready\r\n").await;
        guest(&mut streams, first).await;
        vm.pause().await.expect("paused");
        let state = File::create(machine.path("state")).expect("a file");
        let began = Instant::now();
        vm.save(state.into()).await.expect("saved");
        let len = fs::metadata(machine.path("state")).expect("the state").len();
        println!("saved {len} bytes in {:?}", began.elapsed());
        vm.quit().await.expect("quits");
        let exit = tokio::time::timeout(LIMIT, vm.ended()).await.expect("an end");
        assert_eq!(exit.code, Some(0), "{exit}");
        let ram = machine.path("ram");
        let file = File::create(&ram).expect("a file");
        ram::copy(&memory, &file).expect("written");
        Template { machine, ram, nic: has_nic }
    }

    /// What a clone is made of.
    pub fn config(&self, sharing: RamSharing) -> VmConfig {
        let origin = Origin::Template {
            ram: self.ram.clone(),
            state: File::open(self.machine.path("state")).expect("the state").into(),
            sharing,
        };
        let mut config = self.machine.with_origin(origin);
        if self.nic {
            config.nic = Nic::Isolated;
        }
        config
    }

    /// A clone of it.
    pub async fn restore(&self, sharing: RamSharing) -> (impl Vm + use<>, VmStreams) {
        Qemu.start(self.config(sharing)).await.expect("a clone")
    }
}
