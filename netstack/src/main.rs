//! Entry point: parse, wire, exit.
fn main() {}
