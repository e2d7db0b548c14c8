//! What strangers can send, as one function each: bytes in, and nothing may break. The fuzz targets (`fuzz/`) call these
//! with anything; the tests here with what is kept in `fuzz/corpus`.

use crate::conflist::Version;
use crate::result::CniResult;

/// A packet, or a message, of a DHCP server.
///
/// # Panics
/// What was read is not what is written again, or means something that cannot be.
pub fn dhcp(bytes: &[u8]) {
    crate::dhcp::fuzz(bytes);
}

/// What a plugin that is a program has printed: its result, which the plugins after it are given in the form of any version.
///
/// # Panics
/// What was read is not what is written again.
pub fn result(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    let Ok(result) = CniResult::parse(&value) else { return };
    assert_eq!(CniResult::parse(&result.to_value(Version::V1_1_0)).as_ref(), Ok(&result));
    for version in [Version::V0_4_0, Version::V1_0_0] {
        let older = CniResult::parse(&result.to_value(version)).map(|older| older.ips);
        assert_eq!(older.as_ref(), Ok(&result.ips));
    }
    result.routes_with_gateways().chain(result.routes.clone()).for_each(drop);
    result.of_pod().for_each(drop);
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
    fn what_is_kept_breaks_nothing() {
        corpus("dhcp", dhcp);
        corpus("cni_result", result);
    }
}
