//! The keeper's program: see `berth_runtime::keeper`.
fn main() {}
