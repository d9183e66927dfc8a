//! The processes of a container, one file each.

/// When this process was started as one of a container's own stages: runs the
/// stage and returns its exit code. The first thing `main` does, before the
/// command line is looked at.
pub fn dispatch() -> Option<u8> {
    None
}
