//! Functions for the fuzz targets (`fuzz/`), one for each kind of untrusted input: they take bytes, and no input
//! may break them. The tests here run them with the inputs in `fuzz/corpus`.

use oci_spec::runtime::LinuxSeccomp;

use crate::seccomp;
use crate::wire::transport::Report;
use crate::wire::{AnyRequest, Message, Request};

/// Decodes a message between daemon and keeper, or a report of a container's first process. A container may get
/// access to the socket of the latter.
///
/// # Panics
/// A decoded value differs after it is encoded and decoded again.
pub fn keeper(bytes: &[u8]) {
    if let Some(report) = Report::decode(bytes) {
        assert_eq!(Report::decode(&report.encode()), Some(report));
    }
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let again = serde_json::to_vec(&request).ok();
        assert_eq!(again.and_then(|text| serde_json::from_slice::<Request>(&text).ok()), Some(request));
    }
    if let Ok(message) = serde_json::from_slice::<Message>(bytes) {
        let again = serde_json::to_vec(&message).ok();
        assert_eq!(again.and_then(|text| serde_json::from_slice::<Message>(&text).ok()), Some(message));
    }
    drop(serde_json::from_slice::<AnyRequest>(bytes));
}

/// Compiles a seccomp profile from a file of the node or from an artifact. It must compile to a filter that passes
/// the kernel's checks, or be rejected with a reason.
///
/// # Panics
/// A filter is longer than the kernel accepts, jumps out of itself or does not end.
pub fn seccomp(bytes: &[u8]) {
    let Ok(profile) = serde_json::from_slice::<LinuxSeccomp>(bytes) else { return };
    match seccomp::compile(&profile) {
        Ok(filter) => {
            let program = crate::sys::fs::read_all(&filter.program, LONGEST)
                .expect("a filter of at most 4096 instructions");
            check(&program);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The maximum length of a filter in bytes: 4096 instructions of 8 (`BPF_MAXINSNS`).
const LONGEST: usize = 4096 * 8;

/// Repeats the kernel's first checks of a filter (net/core/filter.c, `bpf_check_classic`): jumps stay inside, and
/// the last instruction is a return.
fn check(program: &[u8]) {
    const JUMP: u8 = 0x05;
    const RETURN: u8 = 0x06;
    let instructions: Vec<&[u8]> = program.chunks(8).collect();
    let length = instructions.len();
    assert!(length > 0 && program.len().is_multiple_of(8));
    for (place, instruction) in instructions.iter().enumerate() {
        let &[code, _, yes, no, k0, k1, k2, k3] = *instruction else { panic!("a torn instruction") };
        let always = usize::try_from(u32::from_ne_bytes([k0, k1, k2, k3])).unwrap_or(usize::MAX);
        let farthest = match (code & 0x07, code & 0xf0) {
            (JUMP, 0) => always,
            (JUMP, _) => usize::from(yes.max(no)),
            _ => 0,
        };
        assert!(farthest < length - place, "a jump at {place} leads out of the filter");
    }
    let last = instructions.last().and_then(|instruction| instruction.first());
    assert_eq!(last.map(|code| code & 0x07), Some(RETURN));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(target: &str, run: fn(&[u8])) {
        let folder = format!("{}/../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let entries = std::fs::read_dir(&folder).unwrap().flatten();
        let count = entries.map(|entry| run(&std::fs::read(entry.path()).unwrap())).count();
        assert!(count > 0, "no corpus in {folder}");
    }

    #[test]
    fn the_corpus_causes_no_panic() {
        corpus("keeper", keeper);
        corpus("seccomp", seccomp);
    }
}
