//! What will be done, in order, as plain data.

use std::fmt;

/// Everything that will be done to make a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {}

impl fmt::Display for Plan {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}
