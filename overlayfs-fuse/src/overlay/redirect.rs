//! Renaming a directory that a lower has.
//!
//! The copy would have to say where its lower part now is (the kernel's
//! `redirect_dir`). It does not yet: such a rename is EXDEV, as with the peers
//! and with the kernel's overlay in a user namespace, and mv(1) and rename-aware
//! programs fall back to copying.

use super::inode::{Lower, Node};
use crate::error::{Error, Result};

/// Whether a directory may be renamed.
pub(crate) fn may_move(node: &Node) -> Result<()> {
    match &node.body().lower {
        Lower::Dirs(dirs, _) if !dirs.is_empty() => Err(Error::CrossDevice),
        _ => Ok(()),
    }
}
