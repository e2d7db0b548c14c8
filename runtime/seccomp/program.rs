//! Decisions as a program of classic BPF: a binary search over the numbers, so that a call takes some ten instructions
//! and the kernel can tell in advance which calls are always allowed (seccomp(2), "BPF filters").
//!
//! A program is put together from its end, since a jump only leads forward and must know how far.

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

/// The whole program.
pub(super) fn assemble(groups: &[Group]) -> Vec<Instruction> {
    let mut program = Backwards::default();
    let bad_arch = program.action(Action::KILL_THREAD);
    let mut next = bad_arch;
    for group in groups.iter().rev() {
        let tree = program.tree(&group.from);
        let section = program.go_on_at(tree, plain(LOAD, NUMBER));
        next = program.jump(JUMP_EQUAL, group.audit, section, next);
    }
    program.go_on_at(next, plain(LOAD, ARCH));
    program.forwards()
}

/// A place in a program: how many instructions come after it.
type Place = usize;

/// A program from its end.
#[derive(Default)]
struct Backwards {
    instructions: Vec<Instruction>,
    returns: HashMap<Action, Place>,
}

impl Backwards {
    /// How far a jump may lead; some room is left for the instructions that are put between.
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

    /// An instruction after which `place` comes next.
    fn go_on_at(&mut self, place: Place, instruction: Instruction) -> Place {
        let distance = self.distance(place);
        if distance > 0 {
            self.push(plain(JUMP, u32::try_from(distance).unwrap_or(u32::MAX)));
        }
        self.push(instruction)
    }

    /// A place from which a jump that is put now reaches `place`.
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

    /// The search for the range of a number.
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

    /// A test that goes on at one of two places.
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

    /// Whether the argument, masked, is `value`.
    fn equal(&mut self, condition: &Condition, mask: u64, value: u64, yes: Place, no: Place) -> Place {
        let mut place = yes;
        for word in words(condition) {
            place = self.jump(JUMP_EQUAL, part(value, word), place, no);
            if part(mask, word) != u32::MAX {
                place = self.go_on_at(place, plain(AND, part(mask, word)));
            }
            place = self.go_on_at(place, plain(LOAD, offset(condition.index, word)));
        }
        place
    }

    /// Whether the argument is above the condition's value, or equal where `code` says so.
    fn above(&mut self, code: u16, condition: &Condition, yes: Place, no: Place) -> Place {
        let low = self.jump(code, part(condition.value, Word::Low), yes, no);
        let low = self.go_on_at(low, plain(LOAD, offset(condition.index, Word::Low)));
        if !condition.wide {
            return low;
        }
        let high = part(condition.value, Word::High);
        let equal = self.jump(JUMP_EQUAL, high, low, no);
        let place = self.jump(JUMP_GREATER, high, yes, equal);
        self.go_on_at(place, plain(LOAD, offset(condition.index, Word::High)))
    }

    fn forwards(mut self) -> Vec<Instruction> {
        self.instructions.reverse();
        self.instructions
    }
}

/// Half of an argument: BPF reads words of 32 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Low,
    High,
}

/// The halves that an argument has, the one that is looked at last first.
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
