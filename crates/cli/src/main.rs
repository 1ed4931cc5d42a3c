//! The `alexnet` program.
fn main() {}
