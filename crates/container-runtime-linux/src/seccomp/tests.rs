//! Programs are run as the kernel runs them.

use proptest::prelude::*;

use super::*;
use container_api::seccomp::Comparison;

const PERM: u32 = 0x0005_0001;
const NOSYS: u32 = 0x0005_0026;

/// What the kernel would answer.
fn run(program: &[u8], audit: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [number.to_le_bytes(), audit.to_le_bytes(), [0; 4], [0; 4]].concat();
    arguments.iter().for_each(|argument| data.extend(argument.to_le_bytes()));
    let word = |at: u32| {
        let at = at as usize;
        u32::from_le_bytes(data[at..at + 4].try_into().unwrap())
    };
    let (mut at, mut a) = (0, 0u32);
    loop {
        let bytes: [u8; 8] = program[at * 8..at * 8 + 8].try_into().unwrap();
        let code = u16::from_le_bytes([bytes[0], bytes[1]]);
        let k = u32::from_le_bytes(bytes[4..].try_into().unwrap());
        at += 1;
        let jump = |holds: bool| usize::from(if holds { bytes[2] } else { bytes[3] });
        match code {
            0x20 => a = word(k),
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(a == k),
            0x25 => at += jump(a > k),
            0x35 => at += jump(a >= k),
            0x06 => return k,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

fn caps(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).into()).collect()
}

/// The answer to a call by name.
fn ask(machine: &Machine, at: usize, capabilities: &[&str], name: &str, first: u64) -> u32 {
    let program = compile_for(machine, &Seccomp::Default, &caps(capabilities)).unwrap();
    let architecture = &machine.architectures[at];
    let number = numbers(architecture.column)[name];
    run(&program, architecture.audit, number, [first, 0, 0, 0, 0, 0])
}

#[test]
fn the_built_in_profile() {
    for (machine, at) in [(&X86_64, 0), (&X86_64, 1), (&AARCH64, 0), (&AARCH64, 1)] {
        let ask = |capabilities: &[&str], name, first| ask(machine, at, capabilities, name, first);
        for name in ["read", "execve", "openat", "setresuid", "seccomp", "capset", "ptrace"] {
            assert_eq!(ask(&[], name, 0), program::ALLOW, "{name}");
        }
        for name in ["keyctl", "add_key", "mount", "unshare", "bpf", "io_uring_setup", "swapon"] {
            assert_eq!(ask(&[], name, 0), PERM, "{name}");
        }
        assert_eq!(ask(&["CAP_SYS_ADMIN"], "mount", 0), program::ALLOW);
        assert_eq!(ask(&["CAP_SYS_ADMIN"], "keyctl", 0), PERM);
        assert_eq!(ask(&["CAP_BPF"], "bpf", 0), program::ALLOW);
        assert_eq!(ask(&[], "clone3", 0), NOSYS);
        assert_eq!(ask(&["CAP_SYS_ADMIN"], "clone3", 0), program::ALLOW);
        assert_eq!(ask(&[], "clone", 0x3d_0f00), program::ALLOW);
        for flag in [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000u64] {
            assert_eq!(ask(&[], "clone", flag | 17), PERM);
            assert_eq!(ask(&["CAP_SYS_ADMIN"], "clone", flag | 17), program::ALLOW);
        }
        for (family, answer) in [(1, program::ALLOW), (37, program::ALLOW), (38, PERM)] {
            assert_eq!(ask(&[], "socket", family), answer, "{family}");
        }
        for (family, answer) in [(39, program::ALLOW), (40, PERM), (41, program::ALLOW)] {
            assert_eq!(ask(&[], "socket", family), answer, "{family}");
        }
        assert_eq!(ask(&[], "personality", 0xffff_ffff), program::ALLOW);
        assert_eq!(ask(&[], "personality", 0x4_0000), PERM);
    }
}

#[test]
fn other_ways_to_call_the_kernel() {
    let program = compile_for(&X86_64, &Seccomp::Default, &[]).unwrap();
    // A call newer than the table, one of the x32 ABI, an architecture of nobody's.
    assert_eq!(run(&program, 0xc000_003e, 5000, [0; 6]), NOSYS);
    assert_eq!(run(&program, 0xc000_003e, 0x4000_0000, [0; 6]), NOSYS);
    assert_eq!(run(&program, 0xc000_00b7, 0, [0; 6]), program::KILL_PROCESS);
    assert!(compile_for(&X86_64, &Seccomp::Unconfined, &[]).unwrap().is_empty());
    let profile = Box::new(Profile { default_action: Action::Allow, ..Profile::default() });
    let program = compile_for(&X86_64, &Seccomp::Profile { profile }, &[]).unwrap();
    assert_eq!(run(&program, 0xc000_003e, 0, [0; 6]), program::ALLOW);
    assert_eq!(run(&program, 0x4000_0003, 0, [0; 6]), program::KILL_PROCESS);
}

#[test]
fn names_are_in_the_table() {
    let known: Vec<&str> = CALLS.lines().filter_map(|line| line.split(' ').next()).collect();
    for name in builtin::names() {
        // The name that another architecture has for ARM's.
        assert!(known.contains(&name) || name == "sync_file_range2", "{name}");
    }
    let program = compile_for(&X86_64, &Seccomp::Default, &[]).unwrap();
    assert!(program.len() / 8 < 1024, "{} instructions", program.len() / 8);
}

#[test]
fn a_profile_that_is_too_long_is_refused() {
    let argument = Argument { index: 0, value: 1, value_two: 0, op: Comparison::Equal };
    let rule = Rule {
        names: caps(&["read"; 5000]),
        action: Action::Allow,
        args: vec![argument],
        ..Rule::default()
    };
    let profile = Box::new(Profile { syscalls: vec![rule], ..Profile::default() });
    compile(&Seccomp::Profile { profile }, &[]).unwrap_err();
}

fn holds(argument: &Argument, value: u64) -> bool {
    match argument.op {
        Comparison::NotEqual => value != argument.value,
        Comparison::Less => value < argument.value,
        Comparison::LessOrEqual => value <= argument.value,
        Comparison::Equal => value == argument.value,
        Comparison::GreaterOrEqual => value >= argument.value,
        Comparison::Greater => value > argument.value,
        Comparison::MaskedEqual => value & argument.value == argument.value_two & argument.value,
    }
}

fn argument() -> impl Strategy<Value = Argument> {
    let ops = prop_oneof![
        Just(Comparison::NotEqual),
        Just(Comparison::Less),
        Just(Comparison::LessOrEqual),
        Just(Comparison::Equal),
        Just(Comparison::GreaterOrEqual),
        Just(Comparison::Greater),
        Just(Comparison::MaskedEqual),
    ];
    (0..6u32, number(), number(), ops).prop_map(|(index, value, value_two, op)| Argument {
        index,
        value,
        value_two,
        op,
    })
}

/// Numbers that are often equal in one half.
fn number() -> impl Strategy<Value = u64> {
    (0..3u64, 0..3u64).prop_map(|(high, low)| high << 32 | low)
}

proptest! {
    #[test]
    fn conditions_are_what_they_say(
        mut args in proptest::collection::vec(argument(), 1..4),
        values in proptest::array::uniform6(number()),
    ) {
        let twice = (1..args.len()).any(|at| args[..at].iter().any(|a| a.index == args[at].index));
        args.shrink_to_fit();
        let check = |arg: &Argument| holds(arg, values[arg.index as usize]);
        let wanted = if twice { args.iter().any(check) } else { args.iter().all(check) };
        let rule = Rule { names: caps(&["read"]), action: Action::Allow, args, ..Rule::default() };
        let profile = Box::new(Profile { syscalls: vec![rule], ..Profile::default() });
        let program = compile_for(&X86_64, &Seccomp::Profile { profile }, &[]).unwrap();
        let answer = run(&program, 0xc000_003e, 0, values);
        prop_assert_eq!(answer == program::ALLOW, wanted);
    }

    #[test]
    fn calls_are_found(
        allowed in proptest::collection::btree_set(0..483usize, 0..200),
        number in 0..500u32,
    ) {
        let all: Vec<&str> =
            CALLS.lines().skip(2).filter_map(|line| line.split(' ').next()).collect();
        let names: Vec<&str> = allowed.iter().filter_map(|at| all.get(*at).copied()).collect();
        let table = numbers(1);
        let wanted = names.iter().any(|name| table.get(name) == Some(&number));
        let rule = Rule { names: caps(&names), action: Action::Allow, ..Rule::default() };
        let profile = Box::new(Profile { syscalls: vec![rule], ..Profile::default() });
        let program = compile_for(&X86_64, &Seccomp::Profile { profile }, &[]).unwrap();
        prop_assert_eq!(run(&program, 0xc000_003e, number, [0; 6]) == program::ALLOW, wanted);
    }
}
