//! The `ioctl` requests that a hypervisor in this jail may make; all others are refused.
//!
//! A descriptor alone allows most requests, without any capability: one of a tap could make
//! the device outlive its owner, change its address or its link. So only what QEMU asks for
//! is let through, by number. The tap's were seen in QEMU 7.2 under every way to start a VM,
//! and a test hunts those that it does not use. KVM's are those that a machine with KVM's own
//! interrupt controller needs in QEMU 7.2 to 10; none is for debuggers, memory encryption,
//! Hyper-V or passed-through devices. They go through only where the jail has `/dev/kvm`.

/// A request's number, and what QEMU needs it for.
pub type Allowed = (u32, &'static str);

/// Of a network card's tap (`linux/if_tun.h`).
pub const TAP: &[Allowed] = &[
    (0x8004_54d2, "TUNGETIFF: whether packets have a header"),
    (0x8004_54d7, "TUNGETVNETHDRSZ: which lengths that header may have"),
    (0x4004_54d8, "TUNSETVNETHDRSZ: the length that the guest's driver agreed to"),
    (0x4004_54d0, "TUNSETOFFLOAD: checksums and segments that the guest's driver leaves undone"),
    (0x4004_54d4, "TUNSETSNDBUF: how much may wait to be sent"),
];

/// Of `/dev/kvm`, its VMs and their processors, whatever the architecture (`linux/kvm.h`).
const KVM_COMMON: &[Allowed] = &[
    (0xae00, "KVM_GET_API_VERSION: of the system"),
    (0xae01, "KVM_CREATE_VM: the machine"),
    (0xae03, "KVM_CHECK_EXTENSION: what the host can do"),
    (0xae04, "KVM_GET_VCPU_MMAP_SIZE: the area shared with each processor"),
    (0xae41, "KVM_CREATE_VCPU: a processor"),
    (0xae80, "KVM_RUN: executes the guest"),
    (0x4068_aea3, "KVM_ENABLE_CAP: of the machine or a processor"),
    (0x4020_ae46, "KVM_SET_USER_MEMORY_REGION: the guest's memory"),
    (0x40a0_ae49, "KVM_SET_USER_MEMORY_REGION2: the same, in newer releases"),
    (0x4010_ae42, "KVM_GET_DIRTY_LOG: what was written while a template is saved"),
    (0xc018_aec0, "KVM_CLEAR_DIRTY_LOG: the same, in parts"),
    (0x4008_ae61, "KVM_IRQ_LINE: an interrupt of a device"),
    (0xc008_ae67, "KVM_IRQ_LINE_STATUS: the same, and whether it arrived"),
    (0x4008_ae6a, "KVM_SET_GSI_ROUTING: where interrupts go"),
    (0x4020_ae76, "KVM_IRQFD: an interrupt by an event"),
    (0x4040_ae79, "KVM_IOEVENTFD: a doorbell of a device as an event"),
    (0x4020_aea5, "KVM_SIGNAL_MSI: an interrupt by a message"),
    (0x8004_ae98, "KVM_GET_MP_STATE: whether a processor waits"),
    (0x4004_ae99, "KVM_SET_MP_STATE: the same, restored"),
    (0x8040_ae9f, "KVM_GET_VCPU_EVENTS: exceptions on their way"),
    (0x4040_aea0, "KVM_SET_VCPU_EVENTS: the same, restored"),
    (0x4018_aee2, "KVM_GET_DEVICE_ATTR: the large state components a guest may use"),
];

#[cfg(target_arch = "x86_64")]
const KVM_OWN: &[Allowed] = &[
    (0xc004_ae02, "KVM_GET_MSR_INDEX_LIST: registers to save"),
    (0xc004_ae0a, "KVM_GET_MSR_FEATURE_INDEX_LIST: registers that tell features"),
    (0xc008_ae05, "KVM_GET_SUPPORTED_CPUID: what the processor may claim"),
    (0x4008_ae90, "KVM_SET_CPUID2: what it claims"),
    (0xc008_ae88, "KVM_GET_MSRS: registers"),
    (0x4008_ae89, "KVM_SET_MSRS: registers"),
    (0x4188_aec6, "KVM_X86_SET_MSR_FILTER: registers that QEMU answers for"),
    (0x8090_ae81, "KVM_GET_REGS: registers"),
    (0x4090_ae82, "KVM_SET_REGS: registers"),
    (0x8138_ae83, "KVM_GET_SREGS: segments and control registers"),
    (0x4138_ae84, "KVM_SET_SREGS: segments and control registers"),
    (0x8140_aecc, "KVM_GET_SREGS2: the same with page table pointers"),
    (0x4140_aecd, "KVM_SET_SREGS2: the same with page table pointers"),
    (0x9000_aea4, "KVM_GET_XSAVE: floating point and vectors"),
    (0x9000_aecf, "KVM_GET_XSAVE2: the same with large components"),
    (0x5000_aea5, "KVM_SET_XSAVE: floating point and vectors"),
    (0x8188_aea6, "KVM_GET_XCRS: which of them are on"),
    (0x4188_aea7, "KVM_SET_XCRS: which of them are on"),
    (0x8080_aea1, "KVM_GET_DEBUGREGS: the guest's own breakpoints"),
    (0x4080_aea2, "KVM_SET_DEBUGREGS: the guest's own breakpoints"),
    (0x8400_ae8e, "KVM_GET_LAPIC: the interrupt controller of a processor"),
    (0x4400_ae8f, "KVM_SET_LAPIC: the interrupt controller of a processor"),
    (0xc028_ae92, "KVM_TPR_ACCESS_REPORTING: its priority, for old guests"),
    (0x4008_ae93, "KVM_SET_VAPIC_ADDR: its priority, for old guests"),
    (0xc080_aebe, "KVM_GET_NESTED_STATE: where the guest runs guests"),
    (0x4080_aebf, "KVM_SET_NESTED_STATE: where the guest runs guests"),
    (0xae9a, "KVM_NMI: an interrupt that can't be masked"),
    (0xaeb7, "KVM_SMI: into the firmware's mode"),
    (0x4004_ae86, "KVM_INTERRUPT: of an interrupt controller outside of KVM"),
    (0x8008_ae9d, "KVM_X86_GET_MCE_CAP_SUPPORTED: reports of hardware errors"),
    (0x4008_ae9c, "KVM_X86_SETUP_MCE: reports of hardware errors"),
    (0x4040_ae9e, "KVM_X86_SET_MCE: tells the guest of broken memory"),
    (0xae47, "KVM_SET_TSS_ADDR: three pages for real mode"),
    (0x4008_ae48, "KVM_SET_IDENTITY_MAP_ADDR: a page for real mode"),
    (0xae60, "KVM_CREATE_IRQCHIP: the interrupt controllers"),
    (0xc208_ae62, "KVM_GET_IRQCHIP: their state"),
    (0x8208_ae63, "KVM_SET_IRQCHIP: their state"),
    (0x4040_ae77, "KVM_CREATE_PIT2: the interval timer"),
    (0x8070_ae9f, "KVM_GET_PIT2: its state"),
    (0x4070_aea0, "KVM_SET_PIT2: its state"),
    (0xae71, "KVM_REINJECT_CONTROL: its ticks while a processor waits"),
    (0x8030_ae7c, "KVM_GET_CLOCK: the guest's clock"),
    (0x4030_ae7b, "KVM_SET_CLOCK: the guest's clock"),
    (0xaead, "KVM_KVMCLOCK_CTRL: that the guest was stopped"),
    (0xaea2, "KVM_SET_TSC_KHZ: the speed of a processor's counter"),
    (0xaea3, "KVM_GET_TSC_KHZ: the speed of a processor's counter"),
];

#[cfg(target_arch = "aarch64")]
const KVM_OWN: &[Allowed] = &[
    (0x8020_aeaf, "KVM_ARM_PREFERRED_TARGET: the host's processor"),
    (0x4020_aeae, "KVM_ARM_VCPU_INIT: the guest's processor"),
    (0x4004_aec2, "KVM_ARM_VCPU_FINALIZE: its vectors' length"),
    (0xc008_aeb0, "KVM_GET_REG_LIST: registers to save"),
    (0x4010_aeab, "KVM_GET_ONE_REG: a register; by the same number the address of a device"),
    (0x4010_aeac, "KVM_SET_ONE_REG: a register"),
    (0xae60, "KVM_CREATE_IRQCHIP: the interrupt controller of older hosts"),
    (0xc00c_aee0, "KVM_CREATE_DEVICE: the interrupt controller"),
    (0x4018_aee1, "KVM_SET_DEVICE_ATTR: its registers, and timers and counters"),
    (0x4018_aee3, "KVM_HAS_DEVICE_ATTR: which of these there are"),
];

/// What a jail lets through; KVM's only with `kvm`.
pub fn allowed(kvm: bool) -> impl Iterator<Item = &'static Allowed> {
    let kvm: [&[Allowed]; 2] = if kvm { [KVM_COMMON, KVM_OWN] } else { [&[], &[]] };
    TAP.iter().chain(kvm.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_request_is_there_once_with_a_reason() {
        let all: Vec<_> = allowed(true).collect();
        let numbers: BTreeSet<u32> = all.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers.len(), all.len());
        for (number, reason) in all {
            let (name, what) = reason.split_once(": ").expect("a name and a reason");
            assert!(!what.is_empty(), "{name}");
            // The kind of device is in the second byte: a tap's are 'T', KVM's 0xae.
            let kind = if name.starts_with("TUN") { 0x54 } else { 0xae };
            assert_eq!(number >> 8 & 0xff, kind, "{name}");
        }
    }
}
