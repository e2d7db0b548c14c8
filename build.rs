//! Builds what the daemon embeds.
fn main() {}
