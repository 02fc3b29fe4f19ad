/* The first process of the bare machine that a cold start is measured against:
 * reboot(2) with LINUX_REBOOT_CMD_POWER_OFF, and nothing else. */
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n"
        "mov $0xfee1dead, %edi\nmov $0x28121969, %esi\nmov $0x4321fedc, %edx\n"
        "mov $169, %eax\nsyscall\n1: jmp 1b\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n"
        "ldr w0, =0xfee1dead\nldr w1, =0x28121969\nldr w2, =0x4321fedc\n"
        "mov x8, #142\nsvc #0\n1: b 1b\n");
#endif
