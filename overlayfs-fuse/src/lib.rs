//! A copy-on-write union file system over FUSE, without privilege: several
//! read-only lower directories and one writable upper, joined under one mount
//! point. Drop-in for fuse-overlayfs; on disk as the kernel's overlay.
//!
//! [`overlay`] is the union and knows no FUSE; [`layer`] what it is made of;
//! [`fuse`] and [`session`] carry it to the kernel; [`cli`] and [`config`] say
//! what is wanted.

pub mod cli;
pub mod config;
pub mod error;
pub mod fuse;
pub mod layer;
mod mount;
pub mod overlay;
pub mod session;
mod sync;
mod sys;
