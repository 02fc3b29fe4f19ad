# Runs a virtual machine: a few instructions in real mode, whose result it prints. By numbers of
# calls and requests (linux/kvm.h) on x86-64, since perl is in every Debian image.
use strict;
use warnings;

use constant { READ => 0, MMAP => 9, IOCTL => 16 };
use constant { GET_API_VERSION => 0xAE00, CREATE_VM => 0xAE01, GET_MMAP_SIZE => 0xAE04 };
use constant { CREATE_VCPU => 0xAE41, SET_MEMORY => 0x4020AE46, RUN => 0xAE80 };
use constant { GET_SREGS => 0x8138AE83, SET_SREGS => 0x4138AE84, SET_REGS => 0x4090AE82 };
use constant { EXIT_IO => 2, EXIT_HLT => 5, SIZE => 0x2000, START => 0x1000 };

sub checked {
    my ($what, $answer) = @_;
    die "$what: $!\n" if $answer == -1;
    return $answer;
}

sub control { my ($what, @rest) = @_; return checked($what, syscall(IOCTL, @rest)) }

# Shared memory: of a descriptor, or (-1) nobody's.
sub mapped {
    my ($fd, $size) = @_;
    return checked("mmap", syscall(MMAP, 0, $size, 3, $fd < 0 ? 0x21 : 1, $fd, 0));
}

sub bytes { my ($address, $size) = @_; return unpack("P$size", pack("Q", $address)) }

open(my $kvm, "+<", "/dev/kvm") or die "/dev/kvm: $!\n";
print "version ", control("version", fileno($kvm), GET_API_VERSION, 0), "\n";
my $vm = control("create a VM", fileno($kvm), CREATE_VM, 0);

# mov dx, 0x3f8; add al, bl; out dx, al; hlt
my $code = pack("C*", 0xBA, 0xF8, 0x03, 0x00, 0xD8, 0xEE, 0xF4);
my $memory = mapped(-1, SIZE);
pipe(my $out, my $in) or die "pipe: $!\n";
checked("write", syswrite($in, $code) // -1);
checked("fill the memory", syscall(READ, fileno($out), $memory, length $code));
my $region = pack("LLQQQ", 0, 0, START, SIZE, $memory);
control("give it memory", $vm, SET_MEMORY, $region);

my $cpu = control("create a CPU", $vm, CREATE_VCPU, 0);
my $run = mapped($cpu, control("size", fileno($kvm), GET_MMAP_SIZE, 0));
my $segments = "\0" x 312;
control("read the segments", $cpu, GET_SREGS, $segments);
# cs is the first: its base, and its selector.
substr($segments, 0, 8) = pack("Q", 0);
substr($segments, 12, 2) = pack("S", 0);
control("set the segments", $cpu, SET_SREGS, $segments);
# rax, rbx, the others to r15, rip, rflags.
my $registers = pack("Q18", 40, 2, (0) x 14, START, 2);
control("set the registers", $cpu, SET_REGS, $registers);

while (1) {
    control("run", $cpu, RUN, 0);
    my $reason = unpack("L", bytes($run + 8, 4));
    if ($reason == EXIT_IO) {
        my $offset = unpack("Q", bytes($run + 40, 8));
        print "result ", unpack("C", bytes($run + $offset, 1)), "\n";
    } elsif ($reason == EXIT_HLT) {
        print "halted\n";
        last;
    } else {
        die "the virtual machine ended with $reason\n";
    }
}
