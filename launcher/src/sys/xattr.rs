//! Extended attributes: xattr(7).
#![allow(unsafe_code, reason = "these calls have no safe wrapper")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The value of an attribute of a file, or of a symbolic link itself. `None`
/// when there is none, or more than 256 bytes.
///
/// # Errors
/// As of lgetxattr(2).
pub fn get(path: &Path, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut value = vec![0u8; 256];
    // SAFETY: both strings end in NUL, and `value` has as many bytes as are said.
    let length = unsafe {
        libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    let Ok(length) = usize::try_from(length) else {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENODATA | libc::EOPNOTSUPP | libc::ERANGE | libc::EPERM) => Ok(None),
            _ => Err(error),
        };
    };
    value.truncate(length);
    Ok(Some(value))
}

/// Sets an attribute of a file; symbolic links are followed.
///
/// # Errors
/// As of setxattr(2).
pub fn set(path: &CStr, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: both strings end in NUL, and `value` has as many bytes as are said.
    let result = unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    super::check(result.into()).map(drop)
}
