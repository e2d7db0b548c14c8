//! Parsers of untrusted input, one function each, that must accept any bytes. The fuzz targets (`fuzz/`) call them with
//! arbitrary input; the tests in this file with `fuzz/corpus`.

use crate::result::CniResult;
use crate::version::Version;

/// Parses a packet or a message of a DHCP server.
///
/// # Panics
/// The input does not survive a round trip, or was parsed into an impossible value.
pub fn dhcp(bytes: &[u8]) {
    crate::dhcp::fuzz(bytes);
}

/// Parses the output of a plugin program: its result, which later plugins receive in the form of any version.
///
/// # Panics
/// The input does not survive a round trip.
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
    fn the_corpus_does_not_panic() {
        corpus("dhcp", dhcp);
        corpus("cni_result", result);
    }
}
