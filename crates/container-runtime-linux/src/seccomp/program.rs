//! The kernel's classic BPF. Every jump goes forward by a distance, so that pieces can be made
//! on their own and put one after the other.

use std::collections::BTreeMap;

use container_api::seccomp::{Argument, Comparison};

/// `SECCOMP_RET_ALLOW`.
pub const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_KILL_PROCESS`.
pub const KILL_PROCESS: u32 = 0x8000_0000;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const NOT_LESS: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// `struct seccomp_data`: number, architecture, instruction pointer, six arguments.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub(super) code: u16,
    pub(super) yes: u8,
    pub(super) no: u8,
    pub(super) k: u32,
}

impl Instruction {
    /// As the kernel has it, on a little-endian machine.
    pub fn bytes(&self) -> [u8; 8] {
        let [a, b] = self.code.to_le_bytes();
        let [c, d, e, f] = self.k.to_le_bytes();
        [a, b, self.yes, self.no, c, d, e, f]
    }
}

const fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, yes: 0, no: 0, k }
}

/// What happens to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The first whose conditions all hold.
    when: Vec<(Vec<Argument>, u32)>,
    /// Else this.
    otherwise: u32,
    settled: bool,
}

impl Decision {
    /// Nothing is said of it yet.
    pub fn new(otherwise: u32) -> Self {
        Decision { when: Vec::new(), otherwise, settled: false }
    }

    /// A rule without conditions; the first counts.
    pub fn settle(&mut self, value: u32) {
        if !self.settled {
            (self.otherwise, self.settled) = (value, true);
        }
    }

    /// A rule with conditions.
    pub fn add(&mut self, when: Vec<Argument>, value: u32) {
        self.when.push((when, value));
    }

    fn code(&self) -> Vec<Instruction> {
        let mut code = Vec::new();
        // What decides nothing is left out, so that the kernel sees a constant.
        for (when, value) in self.when.iter().filter(|(_, value)| *value != self.otherwise) {
            code.extend(rule(when, *value));
        }
        code.push(plain(RETURN, self.otherwise));
        code
    }
}

/// Finds the decision of a call by halves.
pub fn search(
    decisions: &BTreeMap<u32, Decision>,
    otherwise: u32,
    beyond: u32,
    unknown: u32,
) -> Vec<Instruction> {
    // Where another piece of code begins.
    let mut steps: Vec<(u32, Vec<Instruction>)> = Vec::new();
    let mut step = |from: u32, code: Vec<Instruction>| {
        if steps.last().is_none_or(|(_, last)| *last != code) {
            steps.push((from, code));
        }
    };
    let mut next = 0;
    for (&number, decision) in decisions {
        if number > next {
            step(next, vec![plain(RETURN, otherwise)]);
        }
        step(number, decision.code());
        next = number + 1;
    }
    if next < beyond {
        step(next, vec![plain(RETURN, otherwise)]);
    }
    step(beyond, vec![plain(RETURN, unknown)]);
    let mut code = vec![plain(LOAD, NUMBER)];
    code.extend(halves(&steps));
    code
}

fn halves(steps: &[(u32, Vec<Instruction>)]) -> Vec<Instruction> {
    if let [(_, code)] = steps {
        return code.clone();
    }
    let (low, high) = steps.split_at(steps.len() / 2);
    let pivot = high[0].0;
    let (low, high) = (halves(low), halves(high));
    let mut code = match u8::try_from(low.len()) {
        Ok(over) => vec![Instruction { code: NOT_LESS, yes: over, no: 0, k: pivot }],
        Err(_) => vec![
            Instruction { code: NOT_LESS, yes: 0, no: 1, k: pivot },
            plain(JUMP, low.len() as u32),
        ],
    };
    code.extend(low);
    code.extend(high);
    code
}

/// All sections, by architecture; whatever calls in another way ends.
pub fn assemble(sections: Vec<(u32, Vec<Instruction>)>) -> Vec<Instruction> {
    let mut code = vec![plain(LOAD, ARCHITECTURE)];
    for (architecture, section) in sections {
        code.push(Instruction { code: EQUAL, yes: 1, no: 0, k: architecture });
        code.push(plain(JUMP, section.len() as u32));
        code.extend(section);
    }
    code.push(plain(RETURN, KILL_PROCESS));
    code
}

fn rule(when: &[Argument], value: u32) -> Vec<Instruction> {
    let mut code = vec![plain(RETURN, value)];
    for argument in when.iter().rev() {
        // Where it doesn't hold, over all that follows.
        let mut with = condition(argument, code.len() as u8);
        with.extend(code);
        code = with;
    }
    code
}

/// Goes on where a condition holds, else `fail` instructions further.
fn condition(argument: &Argument, fail: u8) -> Vec<Instruction> {
    let at = ARGUMENTS + 8 * argument.index;
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high, low) = halves(argument.value);
    let (load_low, load_high) = (plain(LOAD, at), plain(LOAD, at + 4));
    let jump = |code, k, yes, no| Instruction { code, yes, no, k };
    match argument.op {
        Comparison::Equal => {
            vec![load_high, jump(EQUAL, high, 0, 2 + fail), load_low, jump(EQUAL, low, 0, fail)]
        }
        Comparison::NotEqual => {
            vec![load_high, jump(EQUAL, high, 0, 2), load_low, jump(EQUAL, low, fail, 0)]
        }
        Comparison::Greater | Comparison::GreaterOrEqual => {
            let code = if argument.op == Comparison::Greater { GREATER } else { NOT_LESS };
            vec![
                load_high,
                jump(GREATER, high, 3, 0),
                jump(EQUAL, high, 0, 2 + fail),
                load_low,
                jump(code, low, 0, fail),
            ]
        }
        Comparison::LessOrEqual | Comparison::Less => {
            let code = if argument.op == Comparison::LessOrEqual { GREATER } else { NOT_LESS };
            vec![
                load_high,
                jump(GREATER, high, 3 + fail, 0),
                jump(EQUAL, high, 0, 2),
                load_low,
                jump(code, low, fail, 0),
            ]
        }
        Comparison::MaskedEqual => {
            let (wanted_high, wanted_low) = halves(argument.value_two & argument.value);
            vec![
                load_high,
                plain(AND, high),
                jump(EQUAL, wanted_high, 0, 3 + fail),
                load_low,
                plain(AND, low),
                jump(EQUAL, wanted_low, 0, fail),
            ]
        }
    }
}
