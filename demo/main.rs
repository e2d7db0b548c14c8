//! The demo program.
fn main() {}
