//! System calls that have no safe wrapper: the only `unsafe` of this crate.

pub mod userns;
