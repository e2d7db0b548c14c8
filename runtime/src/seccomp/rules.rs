//! Translates a profile to decisions by system call number. As in libseccomp, with which other runtimes compile
//! profiles, the order of the rules does not affect what is allowed: rules with the default action are ignored,
//! and a rule without conditions overrides rules with conditions.

use std::collections::BTreeMap;
use std::ops::Range;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::SeccompError;
use super::machine::{self, ARM_PRIVATE, Abi, X32};

/// The kernel's action for a system call: the return value of a filter (seccomp(2), "SECCOMP_RET_*").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Action(pub(super) u32);

impl Action {
    pub(super) const KILL_THREAD: Self = Self(0);

    /// Returns the action that makes the call fail with this error.
    pub(super) const fn errno(errno: u32) -> Self {
        // Errors are at most 4095. The lower half of the action is the error.
        Self(0x0005_0000 | errno & 0xffff)
    }

    fn of(action: LinuxSeccompAction, errno: Option<u32>) -> Self {
        const EPERM: u32 = 1;
        let data = errno.unwrap_or(EPERM) & 0xffff;
        match action {
            LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => Self::KILL_THREAD,
            LinuxSeccompAction::ScmpActKillProcess => Self(0x8000_0000),
            LinuxSeccompAction::ScmpActTrap => Self(0x0003_0000),
            LinuxSeccompAction::ScmpActErrno => Self::errno(data),
            LinuxSeccompAction::ScmpActNotify => Self(0x7fc0_0000),
            LinuxSeccompAction::ScmpActTrace => Self(0x7ff0_0000 | data),
            LinuxSeccompAction::ScmpActLog => Self(0x7ffc_0000),
            LinuxSeccompAction::ScmpActAllow => Self(0x7fff_0000),
        }
    }

    /// Returns whether the call is made.
    fn allows(self) -> bool {
        matches!(self.0 & 0xffff_0000, 0x7ffc_0000 | 0x7fff_0000)
    }

    /// Returns whether the call is made or a tracer decides.
    fn lets_through(self) -> bool {
        let kind = self.0 & 0xffff_0000;
        matches!(kind, 0x7ff0_0000 | 0x7ffc_0000 | 0x7fff_0000)
    }
}

/// A condition on an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// The index of the argument, from 0.
    pub(super) index: u8,
    pub(super) operator: LinuxSeccompOperator,
    pub(super) value: u64,
    pub(super) value_two: u64,
    /// Whether the argument has 64 bits.
    pub(super) wide: bool,
}

impl Condition {
    /// Returns whether the condition holds for this argument (seccomp_rule_add(3), "SCMP_CMP_*").
    fn holds(self, argument: u64) -> bool {
        let mask = if self.wide { u64::MAX } else { u64::from(u32::MAX) };
        let (argument, value) = (argument & mask, self.value & mask);
        match self.operator {
            LinuxSeccompOperator::ScmpCmpNe => argument != value,
            LinuxSeccompOperator::ScmpCmpLt => argument < value,
            LinuxSeccompOperator::ScmpCmpLe => argument <= value,
            LinuxSeccompOperator::ScmpCmpEq => argument == value,
            LinuxSeccompOperator::ScmpCmpGe => argument >= value,
            LinuxSeccompOperator::ScmpCmpGt => argument > value,
            LinuxSeccompOperator::ScmpCmpMaskedEq => argument & value == self.value_two & mask,
        }
    }
}

/// An action that applies if all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

/// The decision for a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The same action in all cases.
    Always(Action),
    /// The action of the first rule that holds, else the given action.
    Rules(Vec<Rule>, Action),
}

/// The decisions for one value of `seccomp_data.arch`.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) audit: u32,
    /// Ranges of numbers in order, starting at 0. Each contains its first number and ends before the next range.
    pub(super) from: Vec<(u32, Decision)>,
}

/// Returns the decisions for each ABI. Calls of ABIs that the profile does not list kill the thread.
pub(super) fn groups(profile: &LinuxSeccomp, abis: &[Abi]) -> Result<Vec<Group>, SeccompError> {
    let default = Action::of(profile.default_action(), profile.default_errno_ret());
    let listed = |abi: &Abi| {
        abi.native || profile.architectures().iter().flatten().any(|arch: &Arch| *arch == abi.arch)
    };
    let mut groups: Vec<Group> = Vec::new();
    for abi in abis.iter().filter(|abi| listed(abi)) {
        let start = if is_x32(abi) { X32 } else { 0 };
        let from = ranges(&decisions(profile, abi, default)?, start, default);
        match groups.iter_mut().find(|group| group.audit == abi.audit) {
            Some(group) => group.from.extend(from),
            None => groups.push(Group { audit: abi.audit, from }),
        }
    }
    let x32 = abis.iter().find(|abi| is_x32(abi)).map(|abi| abi.audit);
    for group in groups.iter_mut().filter(|group| Some(group.audit) == x32) {
        close_x32(group, default);
    }
    Ok(groups)
}

/// Returns whether a program of the native ABI may make a call with any arguments; if `first` is given, with this
/// first argument.
pub(super) fn is_always_allowed(groups: &[Group], name: &str, first: Option<u64>) -> bool {
    let native = machine::abis().into_iter().find(|abi| abi.native);
    let Some((number, audit)) = native.and_then(|abi| Some(((abi.number)(name)?, abi.audit))) else {
        return false;
    };
    let group = groups.iter().find(|group| group.audit == audit);
    match group.and_then(|group| group.from.iter().rev().find(|(from, _)| *from <= number)) {
        Some((_, Decision::Always(action))) => action.allows(),
        Some((_, Decision::Rules(rules, otherwise))) => {
            first.is_some_and(|first| decide(rules, *otherwise, first).is_some_and(Action::allows))
        }
        None => false,
    }
}

/// Returns the rules' action for a call of which only the first argument is known. Returns `None` if it depends on
/// others.
fn decide(rules: &[Rule], otherwise: Action, first: u64) -> Option<Action> {
    for rule in rules {
        if rule.conditions.iter().any(|condition| condition.index != 0) {
            return None;
        }
        if rule.conditions.iter().all(|condition| condition.holds(first)) {
            return Some(rule.action);
        }
    }
    Some(otherwise)
}

fn is_x32(abi: &Abi) -> bool {
    abi.arch == Arch::ScmpArchX32
}

/// Adds the ranges of x32 numbers. x32 is a separate ABI. -1 is not an x32 call: a tracer sets this number to skip
/// a call (seccomp(2), `SECCOMP_RET_TRACE`).
fn close_x32(group: &mut Group, default: Action) {
    if group.from.iter().all(|(from, _)| *from < X32) {
        group.from.push((X32, Decision::Always(Action::KILL_THREAD)));
    }
    group.from.push((u32::MAX, Decision::Always(default)));
}

fn decisions(
    profile: &LinuxSeccomp,
    abi: &Abi,
    default: Action,
) -> Result<BTreeMap<u32, Decision>, SeccompError> {
    let mut decisions = BTreeMap::new();
    for syscall in profile.syscalls().iter().flatten() {
        let action = Action::of(syscall.action(), syscall.errno_ret());
        // A name that the kernel does not have is ignored.
        for number in syscall.names().iter().filter_map(|name| (abi.number)(name)) {
            let decision = decisions.entry(number).or_insert(Decision::Rules(Vec::new(), default));
            if action != default {
                add(decision, rules(syscall, abi.wide, action)?, action);
            }
        }
    }
    Ok(decisions)
}

fn add(decision: &mut Decision, new: Vec<Rule>, action: Action) {
    match decision {
        Decision::Always(_) => {}
        Decision::Rules(..) if new.is_empty() => *decision = Decision::Always(action),
        Decision::Rules(rules, _) => rules.extend(new),
    }
}

/// Translates a rule. Conditions on different arguments must all hold; of several on the same argument one is
/// enough, as in runc and crun. Returns an empty list if the rule has no conditions.
fn rules(syscall: &LinuxSyscall, wide: bool, action: Action) -> Result<Vec<Rule>, SeccompError> {
    let condition = |arg: &LinuxSeccompArg| match u8::try_from(arg.index()) {
        Ok(index) if index < 6 => Ok(Condition {
            index,
            operator: arg.op(),
            value: arg.value(),
            value_two: arg.value_two().unwrap_or(0),
            wide,
        }),
        _ => Err(SeccompError::Argument {
            call: syscall.names().first().cloned().unwrap_or_default(),
            index: arg.index(),
        }),
    };
    let conditions: Vec<Condition> =
        syscall.args().iter().flatten().map(condition).collect::<Result<_, _>>()?;
    let twice = |one: &Condition| conditions.iter().filter(|other| other.index == one.index).count() > 1;
    if conditions.iter().any(twice) {
        return Ok(conditions.iter().map(|one| Rule { conditions: vec![*one], action }).collect());
    }
    if conditions.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![Rule { conditions, action }])
}

/// Converts decisions to ranges from `start` on. If the default action does not let calls through, calls that are
/// newer than all calls in the profile fail with ENOSYS, so that programs use older ones, as in runc. The private calls
/// of ARM are not newer than others.
fn ranges(decisions: &BTreeMap<u32, Decision>, start: u32, default: Action) -> Vec<(u32, Decision)> {
    const ENOSYS: u32 = 38;
    let mut ranges: Vec<(u32, Decision)> = vec![(start, Decision::Always(default))];
    let mut put = |from: u32, decision: Decision| match ranges.last_mut() {
        Some((last, previous)) if *last == from => *previous = decision,
        Some((_, previous)) if *previous == decision && matches!(decision, Decision::Always(_)) => {}
        _ => ranges.push((from, decision)),
    };
    let mut put_all = |numbers: Range<u32>| {
        for (number, decision) in decisions.range(numbers.clone()) {
            let decision = match decision {
                Decision::Rules(rules, default) if rules.is_empty() => Decision::Always(*default),
                decision => decision.clone(),
            };
            put(*number, decision);
            put(number + 1, Decision::Always(default));
        }
        let newest = decisions.range(numbers).next_back();
        if let Some((newest, _)) = newest.filter(|_| !default.lets_through()) {
            put(newest + 1, Decision::Always(Action::errno(ENOSYS)));
        }
    };
    put_all(start..start + ARM_PRIVATE);
    put_all(start + ARM_PRIVATE..u32::MAX);
    ranges
}
