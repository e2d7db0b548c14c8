//! What strangers can send, as one function each: bytes in, and nothing may break. The fuzz targets (`fuzz/`) call these
//! with anything; the tests here with what is kept in `fuzz/corpus`.

/// A packet, or a message, of a DHCP server.
///
/// # Panics
/// What was read is not what is written again, or means something that cannot be.
pub fn dhcp(bytes: &[u8]) {
    crate::dhcp::fuzz(bytes);
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_kept_breaks_nothing() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/dhcp");
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        let run = entries.map(|entry| super::dhcp(&std::fs::read(entry.path()).unwrap()));
        assert!(run.count() > 0, "no corpus in {folder}");
    }
}
