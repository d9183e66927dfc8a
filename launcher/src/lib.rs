//! See ARCHITECTURE.md.

pub mod channel;
pub mod cli;
pub mod clock;
pub mod diff;
pub mod exec;
pub mod idmap;
pub mod plan;
pub mod policy;
pub mod probe;
pub mod run;
pub mod spawn;
pub mod spec;
pub mod stage;
pub mod store;
pub mod sys;
pub mod terminal;
