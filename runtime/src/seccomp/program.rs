//! Compiles decisions to a classic BPF program. A binary search over the system call numbers takes about ten
//! instructions per call, and allows the kernel to determine in advance which calls are always allowed
//! (seccomp(2), "BPF filters").
//!
//! A program is built from its end, because jumps lead only forward and need their distance.

use std::collections::HashMap;

use oci_spec::runtime::LinuxSeccompOperator;

use super::rules::{Action, Condition, Decision, Group, Rule};

/// One instruction (`struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) jump_true: u8,
    pub(super) jump_false: u8,
    pub(super) value: u32,
}

impl Instruction {
    pub(super) fn bytes(self) -> [u8; 8] {
        let ([a, b], [e, f, g, h]) = (self.code.to_ne_bytes(), self.value.to_ne_bytes());
        [a, b, self.jump_true, self.jump_false, e, f, g, h]
    }
}

// linux/bpf_common.h
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const RETURN: u16 = 0x06;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const JUMP_GREATER: u16 = 0x25;
pub(super) const JUMP_GREATER_OR_EQUAL: u16 = 0x35;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

fn plain(code: u16, value: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, value }
}

/// Builds the whole program.
pub(super) fn assemble(groups: &[Group]) -> Vec<Instruction> {
    let mut program = ReverseProgram::default();
    let bad_arch = program.action(Action::KILL_THREAD);
    let mut next = bad_arch;
    for group in groups.iter().rev() {
        let tree = program.tree(&group.from);
        let section = program.push_before(tree, plain(LOAD, NUMBER));
        next = program.jump(JUMP_EQUAL, group.audit, section, next);
    }
    program.push_before(next, plain(LOAD, ARCH));
    program.forwards()
}

/// A position in a program: the number of instructions after it.
type Place = usize;

/// A program in reverse order.
#[derive(Default)]
struct ReverseProgram {
    instructions: Vec<Instruction>,
    returns: HashMap<Action, Place>,
}

impl ReverseProgram {
    /// The maximum distance of a jump. It leaves a margin for instructions that are inserted.
    const REACH: usize = 250;

    fn push(&mut self, instruction: Instruction) -> Place {
        self.instructions.push(instruction);
        self.instructions.len() - 1
    }

    fn distance(&self, place: Place) -> usize {
        self.instructions.len() - place - 1
    }

    fn action(&mut self, action: Action) -> Place {
        match self.returns.get(&action) {
            Some(place) if self.distance(*place) < Self::REACH => *place,
            _ => {
                let place = self.push(plain(RETURN, action.0));
                self.returns.insert(action, place);
                place
            }
        }
    }

    /// Adds an instruction that continues at `place`.
    fn push_before(&mut self, place: Place, instruction: Instruction) -> Place {
        let distance = self.distance(place);
        if distance > 0 {
            self.push(plain(JUMP, u32::try_from(distance).unwrap_or(u32::MAX)));
        }
        self.push(instruction)
    }

    /// Returns a position that continues at `place` and is close enough for a jump.
    fn near(&mut self, place: Place) -> Place {
        match self.distance(place) {
            distance if distance < Self::REACH => place,
            distance => self.push(plain(JUMP, u32::try_from(distance).unwrap_or(u32::MAX))),
        }
    }

    fn jump(&mut self, code: u16, value: u32, to: Place, otherwise: Place) -> Place {
        let (to, otherwise) = (self.near(to), self.near(otherwise));
        let offset = |place| u8::try_from(self.distance(place)).unwrap_or(u8::MAX);
        let (jump_true, jump_false) = (offset(to), offset(otherwise));
        self.push(Instruction { code, jump_true, jump_false, value })
    }

    /// Adds the search for the range of a number.
    fn tree(&mut self, ranges: &[(u32, Decision)]) -> Place {
        match ranges {
            [] => self.action(Action::KILL_THREAD),
            [(_, Decision::Always(action))] => self.action(*action),
            [(_, Decision::Rules(rules, otherwise))] => self.rules(rules, *otherwise),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let from = high.first().map_or(0, |(from, _)| *from);
                let high = self.tree(high);
                let low = self.tree(low);
                self.jump(JUMP_GREATER_OR_EQUAL, from, high, low)
            }
        }
    }

    fn rules(&mut self, rules: &[Rule], otherwise: Action) -> Place {
        let mut next = self.push(plain(RETURN, otherwise.0));
        for rule in rules.iter().rev() {
            let mut holds = self.action(rule.action);
            for condition in rule.conditions.iter().rev() {
                holds = self.condition(condition, holds, next);
            }
            next = holds;
        }
        next
    }

    /// Adds a test that continues at one of two positions.
    fn condition(&mut self, condition: &Condition, holds: Place, fails: Place) -> Place {
        use LinuxSeccompOperator as Operator;
        let (value, two) = (condition.value, condition.value_two);
        match condition.operator {
            Operator::ScmpCmpEq => self.equal(condition, u64::MAX, value, holds, fails),
            Operator::ScmpCmpNe => self.equal(condition, u64::MAX, value, fails, holds),
            Operator::ScmpCmpMaskedEq => self.equal(condition, value, two, holds, fails),
            Operator::ScmpCmpGt => self.above(JUMP_GREATER, condition, holds, fails),
            Operator::ScmpCmpGe => self.above(JUMP_GREATER_OR_EQUAL, condition, holds, fails),
            Operator::ScmpCmpLe => self.above(JUMP_GREATER, condition, fails, holds),
            Operator::ScmpCmpLt => self.above(JUMP_GREATER_OR_EQUAL, condition, fails, holds),
        }
    }

    /// Tests whether the argument, masked, is `value`.
    fn equal(&mut self, condition: &Condition, mask: u64, value: u64, yes: Place, no: Place) -> Place {
        let mut place = yes;
        for word in words(condition) {
            place = self.jump(JUMP_EQUAL, part(value, word), place, no);
            if part(mask, word) != u32::MAX {
                place = self.push_before(place, plain(AND, part(mask, word)));
            }
            place = self.push_before(place, plain(LOAD, offset(condition.index, word)));
        }
        place
    }

    /// Tests whether the argument is above the condition's value, or also equal, depending on `code`.
    fn above(&mut self, code: u16, condition: &Condition, yes: Place, no: Place) -> Place {
        let low = self.jump(code, part(condition.value, Word::Low), yes, no);
        let low = self.push_before(low, plain(LOAD, offset(condition.index, Word::Low)));
        if !condition.wide {
            return low;
        }
        let high = part(condition.value, Word::High);
        let equal = self.jump(JUMP_EQUAL, high, low, no);
        let place = self.jump(JUMP_GREATER, high, yes, equal);
        self.push_before(place, plain(LOAD, offset(condition.index, Word::High)))
    }

    fn forwards(mut self) -> Vec<Instruction> {
        self.instructions.reverse();
        self.instructions
    }
}

/// Half of an argument. BPF reads 32-bit words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Low,
    High,
}

/// Returns the halves of an argument, the one that is tested last first.
fn words(condition: &Condition) -> impl Iterator<Item = Word> + use<> {
    [Word::Low, Word::High].into_iter().take(if condition.wide { 2 } else { 1 })
}

fn part(value: u64, word: Word) -> u32 {
    let shift = if word == Word::High { 32 } else { 0 };
    u32::try_from(value >> shift & 0xffff_ffff).unwrap_or(0)
}

fn offset(index: u8, word: Word) -> u32 {
    let second = (word == Word::High) == cfg!(target_endian = "little");
    ARGUMENTS + u32::from(index) * 8 + if second { 4 } else { 0 }
}
